//! Parses `redis.url`: `redis://`, `rediss://`, several of them separated by commas, or
//! `redis-sentinel://[user:password@]host:port,host:port[/db]#service`. A URL parser reads every
//! part, so that all kinds of passwords and IPv6 addresses work.

use percent_encoding::percent_decode_str;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, RedisConnectionInfo};
use url::Url;

const SENTINEL_PORT: u16 = 26_379;

/// The address of Redis, and the credentials for it.
#[derive(Clone, Default)]
pub struct RedisOptions {
    /// `redis://`, `rediss://`, several of them separated by commas (a Cluster), or
    /// `redis-sentinel://[user:password@]host:port,host:port[/db]#service`.
    pub url: String,
    /// The credentials for the Sentinels. `None`: connect without credentials, and with those of
    /// the URL if a Sentinel asks for a password.
    pub sentinel: Option<SentinelLogin>,
    /// The certificate of a private certificate authority (PEM).
    pub ca: Option<Vec<u8>>,
    /// The client certificate and its private key (PEM).
    pub client: Option<(Vec<u8>, Vec<u8>)>,
}

/// The credentials with which the Sentinels are asked.
#[derive(Clone)]
pub struct SentinelLogin {
    /// The user's name; `None` is the default user.
    pub username: Option<String>,
    /// The password of that user.
    pub password: String,
}

/// Why `redis.url` can't be used. The text never quotes the URL: in a URL that can't be parsed, any
/// part may be the password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("redis.url {}", self.text())]
pub enum BadUrl {
    /// No URL, a wrong scheme, no host, or an unencoded character in the password.
    Form,
    /// An `@` after the first `/`, `?` or `#`, probably from a password.
    Unencoded,
    /// The path is not the number of a database.
    Database,
    /// The name of the service that the Sentinels monitor is missing.
    Service,
    /// A fragment, which only the URL of Sentinels may have.
    Fragment,
    /// The Redis client rejects the combination of nodes.
    Client,
}

impl BadUrl {
    const fn text(self) -> &'static str {
        match self {
            Self::Form => {
                "is not a valid Redis URL (its value is not shown): expected redis://host:port, \
                 rediss://host:port, or redis-sentinel://host:port,host:port#service; in user and \
                 password, percent-encode every character that is not a letter or a digit"
            }
            Self::Unencoded => {
                "has an `@` after a `/`, `?` or `#` (its value is not shown): in user and \
                 password, percent-encode every character that is not a letter or a digit (`/` is \
                 %2F, `?` is %3F, `#` is %23)"
            }
            Self::Database => {
                "has a path that is not a database number: use a number such as /0, or no path"
            }
            Self::Service => {
                "names no service: end it with `#` and the name of the service that the Sentinels \
                 monitor"
            }
            Self::Fragment => {
                "has a `#`, which only a redis-sentinel:// URL may have: in a password, write %23"
            }
            Self::Client => {
                "is rejected by the Redis client: all nodes must have the same scheme and the same \
                 credentials"
            }
        }
    }
}

/// A parsed `redis.url`: a single server, a Cluster, or Sentinels.
#[derive(Clone, Debug)]
pub(super) enum Address {
    /// One address. On connecting, it may turn out to be a node of a Cluster.
    Node(ConnectionInfo),
    /// Several nodes of one Cluster.
    Cluster(Vec<ConnectionInfo>),
    /// A primary that Sentinels monitor.
    Sentinel(SentinelAddress),
}

/// The Sentinels, and the service that they monitor.
#[derive(Clone, Debug)]
pub(super) struct SentinelAddress {
    pub(super) sentinels: Vec<ConnectionAddr>,
    pub(super) service: String,
    /// The database and the credentials at the primary.
    pub(super) redis: RedisConnectionInfo,
    pub(super) is_tls: bool,
}

impl Address {
    pub(super) fn parse(text: &str) -> Result<Self, BadUrl> {
        let text = text.trim();
        let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
        match scheme.as_deref() {
            Some("redis-sentinel") => sentinel(text, "redis").map(Self::Sentinel),
            Some("rediss-sentinel") => sentinel(text, "rediss").map(Self::Sentinel),
            Some("redis" | "rediss") => {
                let nodes = nodes(text).map(|text| node(text).map(|(_, info)| info));
                let mut nodes = nodes.collect::<Result<Vec<_>, _>>()?;
                match (nodes.len(), nodes.pop()) {
                    (1, Some(node)) => Ok(Self::Node(node)),
                    (_, Some(last)) => {
                        nodes.push(last);
                        Ok(Self::Cluster(nodes))
                    }
                    (_, None) => Err(BadUrl::Form),
                }
            }
            _ => Err(BadUrl::Form),
        }
    }
}

/// Checks that [`RedisOptions::url`] accepts a URL.
///
/// # Errors
/// The first thing that is wrong with the URL.
pub fn check_url(url: &str) -> Result<(), BadUrl> {
    Address::parse(url).map(drop)
}

/// The URL, or list of URLs, without credentials and queries; `None` if it can't be parsed.
#[must_use]
pub fn without_credentials(url: &str) -> Option<String> {
    match Address::parse(url).ok()? {
        Address::Sentinel(address) => {
            let scheme = if address.is_tls { "rediss-sentinel" } else { "redis-sentinel" };
            let hosts: Vec<_> = address.sentinels.iter().map(ToString::to_string).collect();
            let db = Some(address.redis.db()).filter(|db| *db != 0);
            let db = db.map(|db| format!("/{db}")).unwrap_or_default();
            Some(format!("{scheme}://{}{db}#{}", hosts.join(","), address.service))
        }
        _ => nodes(url.trim())
            .map(|text| Some(bare(node(text).ok()?.0)))
            .collect::<Option<Vec<_>>>()
            .map(|nodes| nodes.join(",")),
    }
}

fn bare(mut url: Url) -> String {
    // Both setters fail only for URLs without a host.
    url.set_username("").unwrap_or_default();
    url.set_password(None).unwrap_or_default();
    url.set_query(None);
    url.into()
}

/// Splits a list of URLs. A comma is part of a password unless another URL begins after it.
fn nodes(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let ends = text.match_indices(',').find(|(at, _)| {
            let next = text[at + 1..].trim_start();
            next.is_empty() || next.starts_with("redis://") || next.starts_with("rediss://")
        });
        let (node, more) = match ends {
            Some((at, _)) => (&text[..at], Some(&text[at + 1..])),
            None => (text, None),
        };
        rest = more.filter(|more| !more.trim().is_empty());
        Some(node.trim())
    })
}

/// Parses the URL of one server.
fn node(text: &str) -> Result<(Url, ConnectionInfo), BadUrl> {
    let url = Url::parse(text).map_err(|_| BadUrl::Form)?;
    if !matches!(url.scheme(), "redis" | "rediss") {
        return Err(BadUrl::Form);
    }
    // The parser takes an unencoded `/`, `?` or `#` of a password for the end of the authority, and
    // the text before it for host and port.
    if [Some(url.path()), url.query(), url.fragment()]
        .into_iter()
        .flatten()
        .any(|part| part.contains('@'))
    {
        return Err(BadUrl::Unencoded);
    }
    if url.fragment().is_some() {
        return Err(BadUrl::Fragment);
    }
    if url.host_str().is_none_or(|host| host.is_empty() || host.contains(',')) {
        return Err(BadUrl::Form);
    }
    let db = url.path().trim_matches('/');
    if !db.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(BadUrl::Database);
    }
    let info = url.clone().into_connection_info().map_err(|_| BadUrl::Form)?;
    Ok((url, info))
}

/// Parses the URL of Sentinels. The parts before and after the hosts are those of the URL of one
/// server, so each host is parsed as one.
fn sentinel(text: &str, scheme: &str) -> Result<SentinelAddress, BadUrl> {
    let (_, rest) = text.split_once("://").ok_or(BadUrl::Form)?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    if tail.contains('@') {
        return Err(BadUrl::Unencoded);
    }
    let (path, service) = tail.split_once('#').ok_or(BadUrl::Service)?;
    let service = percent_decode_str(service).decode_utf8().map_err(|_| BadUrl::Service)?;
    if service.is_empty() {
        return Err(BadUrl::Service);
    }
    let (login, hosts) = match authority.rsplit_once('@') {
        Some((login, hosts)) => (format!("{login}@"), hosts),
        None => (String::new(), authority),
    };
    let (mut sentinels, mut redis) = (Vec::new(), RedisConnectionInfo::default());
    for host in hosts.split(',').map(str::trim) {
        let (url, info) = node(&format!("{scheme}://{login}{host}{path}"))?;
        let port = url.port().unwrap_or(SENTINEL_PORT);
        sentinels.push(with_port(info.addr().clone(), port));
        redis = info.redis_settings().clone();
    }
    Ok(SentinelAddress { sentinels, service: service.into(), redis, is_tls: scheme == "rediss" })
}

fn with_port(address: ConnectionAddr, port: u16) -> ConnectionAddr {
    match address {
        ConnectionAddr::Tcp(host, _) => ConnectionAddr::Tcp(host, port),
        ConnectionAddr::TcpTls { host, insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure, tls_params }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(info: &RedisConnectionInfo) -> (Option<&str>, Option<&str>, i64) {
        (info.username(), info.password(), info.db())
    }

    fn host(address: &ConnectionAddr) -> (&str, u16) {
        match address {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                (host, *port)
            }
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn parse_node(url: &str) -> ConnectionInfo {
        match Address::parse(url) {
            Ok(Address::Node(node)) => node,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn parse_sentinel(url: &str) -> SentinelAddress {
        match Address::parse(url) {
            Ok(Address::Sentinel(sentinel)) => sentinel,
            other => panic!("{other:?}"),
        }
    }

    /// Passwords, each in plain text and percent-encoded.
    const PASSWORDS: [(&str, &str); 8] = [
        ("simple", "simple"),
        ("p@ss/w0rd#1", "p%40ss%2Fw0rd%231"),
        ("a,b", "a,b"),
        ("a,b:c", "a%2Cb%3Ac"),
        ("50%", "50%25"),
        ("?&=+ ", "%3F%26%3D%2B%20"),
        ("p@ss", "p@ss"),
        ("\u{fc}\u{2713}", "%C3%BC%E2%9C%93"),
    ];

    #[test]
    fn any_password_is_read_percent_encoded() {
        for (password, encoded) in PASSWORDS {
            let node = parse_node(&format!("redis://:{encoded}@127.0.0.1:6380/2"));
            assert_eq!(login(node.redis_settings()), (None, Some(password), 2), "{encoded}");
            assert_eq!(host(node.addr()), ("127.0.0.1", 6380));
            let address = parse_sentinel(&format!("redis-sentinel://me:{encoded}@a:1,b/2#main"));
            assert_eq!(login(&address.redis), (Some("me"), Some(password), 2), "{encoded}");
            let hosts: Vec<_> = address.sentinels.iter().map(host).collect();
            assert_eq!(hosts, [("a", 1), ("b", SENTINEL_PORT)]);
            assert_eq!((address.service.as_str(), address.is_tls), ("main", false));
        }
    }

    #[test]
    fn addresses_of_ipv6_and_lists_of_nodes_are_read() {
        assert_eq!(host(parse_node("rediss://[2001:db8::1]").addr()), ("2001:db8::1", 6379));
        let address = parse_sentinel("rediss-sentinel://[::1]:26380,[::2],localhost:5#my%20own");
        let hosts: Vec<_> = address.sentinels.iter().map(host).collect();
        assert_eq!(hosts, [("::1", 26_380), ("::2", SENTINEL_PORT), ("localhost", 5)]);
        assert_eq!((address.service.as_str(), address.is_tls), ("my own", true));
        for url in
            ["redis://:a,b@[::1]:1,redis://:a,b@h:2", " redis://:a,b@[::1]:1 , redis://:a,b@h:2, "]
        {
            let Ok(Address::Cluster(nodes)) = Address::parse(url) else { panic!("{url}") };
            let hosts: Vec<_> = nodes.iter().map(|node| host(node.addr())).collect();
            assert_eq!(hosts, [("::1", 1), ("h", 2)]);
            assert_eq!(login(nodes[1].redis_settings()), (None, Some("a,b"), 0));
        }
    }

    #[test]
    fn an_error_shows_no_part_of_a_bad_url() {
        for (url, why) in [
            ("", BadUrl::Form),
            ("hush", BadUrl::Form),
            ("http://hush@h", BadUrl::Form),
            ("unix:///hush", BadUrl::Form),
            ("redis://:hush@h:x", BadUrl::Form),
            ("redis://:hush@", BadUrl::Form),
            ("redis://:hush/1@h:6379", BadUrl::Form),
            ("redis://hush:1/1@h:6379", BadUrl::Unencoded),
            ("redis://hush:1#1@h:6379", BadUrl::Unencoded),
            ("redis://hush:1?1@h:6379", BadUrl::Unencoded),
            ("redis://:a@h:1,hush:2", BadUrl::Form),
            ("redis://hush,h", BadUrl::Form),
            ("redis://:hush@h/db", BadUrl::Database),
            ("redis://:hush@h#main", BadUrl::Fragment),
            ("redis-sentinel://:hush@a:1", BadUrl::Service),
            ("redis-sentinel://:hush@a:1#", BadUrl::Service),
            ("redis-sentinel://:hush@a:1/x#main", BadUrl::Database),
            ("redis-sentinel://:hush/1@a:1#main", BadUrl::Unencoded),
            ("redis-sentinel://:hush#1@a:1#main", BadUrl::Unencoded),
            ("redis-sentinel://:hush@a:1,,b#main", BadUrl::Form),
            ("redis-sentinel://:hush@a:1,b:y#main", BadUrl::Form),
        ] {
            let error = Address::parse(url).map(drop).expect_err(url);
            assert_eq!(error, why, "{url}");
            assert!(!error.to_string().contains("hush"), "{url}: {error}");
            assert_eq!(without_credentials(url), None, "{url}");
        }
    }

    #[test]
    fn a_url_is_shown_without_credentials() {
        for (url, shown) in [
            ("redis://127.0.0.1:6379", "redis://127.0.0.1:6379"),
            ("rediss://me:hush@[::1]:1/2?protocol=resp3", "rediss://[::1]:1/2"),
            ("redis://:hu,sh@a:1,redis://:hu,sh@b:2", "redis://a:1,redis://b:2"),
            ("redis-sentinel://me:hush@a:1,b/2#main", "redis-sentinel://a:1,b:26379/2#main"),
        ] {
            assert_eq!(without_credentials(url).as_deref(), Some(shown));
        }
    }
}
