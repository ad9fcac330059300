//! Parses `broker.url`, and shows it without credentials.

use lapin::uri::AMQPUri;
use url::{Host, Url};

/// Parses an `amqp://` or `amqps://` URL; `None` if it can't be used. No part of such a URL may be
/// shown, because any part may be the password.
pub(super) fn parse(text: &str) -> Option<AMQPUri> {
    let url = parts(text)?;
    let mut uri: AMQPUri = text.trim().parse().ok()?;
    // The client's parser accepts only host names, and reads an IPv6 address as `localhost`.
    if let Some(Host::Ipv6(address)) = url.host() {
        uri.authority.host = address.to_string();
    }
    Some(uri)
}

/// Whether this is a valid AMQP URL.
#[must_use]
pub fn is_valid_url(text: &str) -> bool {
    parse(text).is_some()
}

/// The URL without credentials and query; `None` if it can't be used.
#[must_use]
pub fn without_credentials(text: &str) -> Option<String> {
    let mut url = parts(text).filter(|_| is_valid_url(text))?;
    url.set_query(None);
    url.set_username("").and_then(|()| url.set_password(None)).ok()?;
    Some(url.into())
}

fn parts(text: &str) -> Option<Url> {
    let url = Url::parse(text.trim()).ok()?;
    // An unencoded `/`, `?` or `#` in a password ends the authority: the parser would take the user
    // and the beginning of the password for host and port.
    let is_cut = [Some(url.path()), url.query(), url.fragment()]
        .into_iter()
        .flatten()
        .any(|part| part.contains('@'));
    let is_amqp = matches!(url.scheme(), "amqp" | "amqps");
    let has_host = url.host_str().is_some_and(|host| !host.is_empty());
    (is_amqp && has_host && !is_cut && url.fragment().is_none()).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_hosts_and_the_virtual_host_are_read() {
        for (text, host, password, vhost) in [
            ("amqp://guest:guest@127.0.0.1:5672/%2f", "127.0.0.1", "guest", "/"),
            (
                "amqps://u:p%40ss%2Fw0rd%231@rabbit/pay%2Fments",
                "rabbit",
                "p@ss/w0rd#1",
                "pay/ments",
            ),
            ("amqp://u:p@ss@[2001:db8::1]:5/%2f", "2001:db8::1", "p@ss", "/"),
            ("amqp://rabbit?heartbeat=5", "rabbit", "guest", "/"),
        ] {
            let uri = parse(text).expect(text);
            assert_eq!(uri.authority.host, host);
            assert_eq!(uri.authority.userinfo.password, password);
            assert_eq!(uri.vhost, vhost);
        }
    }

    #[test]
    fn a_url_is_shown_without_credentials_or_not_at_all() {
        for (text, shown) in [
            ("amqp://u:hush@h:5672/%2f?heartbeat=5", Some("amqp://h:5672/%2f")),
            ("amqps://u:hu%2Fsh@[::1]/v", Some("amqps://[::1]/v")),
            ("amqp://u:hush/@h:5672/%2f", None),
            ("amqp://hush:5/sh@h:5672/%2f", None),
            ("amqp://hush:5#sh@h:5672/%2f", None),
            ("amqp://hush:5?sh@h:5672/%2f", None),
            ("amqp://:hush@/v", None),
            ("http://u:hush@h", None),
            ("amqp:hush", None),
            ("amqp://u:hush@h/%2f?heartbeat=x", None),
        ] {
            assert_eq!(without_credentials(text).as_deref(), shown, "{text}");
        }
    }
}
