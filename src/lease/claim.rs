//! Whose memory Redis keeps, and what an acquisition asks for.

use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::domain::job::Job;

/// What stays readable of a name in a key; braces, colons and percent signs do not.
const KEY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The length of an acquisition's token.
pub(super) const TOKEN_CHARS: usize = 32;

/// Whose memory it is: the deployment (`broker.prefix`) and the merchant (`gateway.client_id`). All keys begin with it,
/// because what the gateway of one merchant said is no word about the captures of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner(Arc<str>);

impl Owner {
    /// The owner of these settings.
    #[must_use]
    pub fn new(prefix: &str, client_id: &str) -> Self {
        Self(format!("{}:{}", encoded(prefix), encoded(client_id)).into())
    }

    /// A key of the owner itself, rather than of one payment.
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}:{name}", self.0)
    }
}

fn encoded(name: &str) -> impl std::fmt::Display {
    utf8_percent_encode(name, KEY)
}

/// The keys of one id and its payment.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) lease: String,
    pub(super) hold: String,
    pub(super) line: String,
    /// The sent marker.
    pub(super) sent: String,
    /// The outcome on record.
    pub(super) known: String,
    /// That a fresh id replaced the id.
    pub(super) replaced: String,
}

impl Keys {
    pub(super) fn of(owner: &Owner, payment_id: &str, capture_request_id: &str) -> Self {
        let payment = format!("{}:{{{}}}", owner.0, encoded(payment_id));
        let id = encoded(capture_request_id);
        Self {
            lease: format!("{payment}:lease"),
            hold: format!("{payment}:hold"),
            line: format!("{payment}:line"),
            sent: format!("{payment}:sent:{id}"),
            known: format!("{payment}:known:{id}"),
            replaced: format!("{payment}:replaced:{id}"),
        }
    }

    /// In the order of the scripts: the keys of the payment, then those of the id.
    pub(super) fn of_payment(&self) -> [&str; 3] {
        [&self.lease, &self.hold, &self.line]
    }

    pub(super) fn of_id(&self) -> [&str; 3] {
        [&self.sent, &self.known, &self.replaced]
    }
}

/// One acquisition of a payment's lease, for one job. Cheap to clone; asking again with it does no harm.
#[derive(Clone, Debug)]
pub struct Claim(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    token: String,
    id: String,
    amount: String,
    posts: bool,
    keys: Keys,
}

impl Claim {
    /// A fresh one. `posts`: a capture is sent as soon as the lease is taken; only then hold and marker are written with it.
    #[must_use]
    pub fn of(owner: &Owner, job: &Job, posts: bool) -> Self {
        Self(Arc::new(Parts {
            token: format!("{:0width$x}", rand::random::<u128>(), width = TOKEN_CHARS),
            id: job.capture_request_id.clone(),
            amount: format!("{}:{}", job.amount.currency().code(), job.amount.value()),
            posts,
            keys: Keys::of(owner, &job.payment_id, &job.capture_request_id),
        }))
    }

    /// Whether hold and marker are written when the lease is taken.
    #[must_use]
    pub fn posts(&self) -> bool {
        self.0.posts
    }

    pub(super) fn token(&self) -> &str {
        &self.0.token
    }

    pub(super) fn id(&self) -> &str {
        &self.0.id
    }

    pub(super) fn amount(&self) -> &str {
        &self.0.amount
    }

    pub(super) fn keys(&self) -> &Keys {
        &self.0.keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_name_the_owner_and_share_the_payments_slot() {
        let body = r#"{"captureRequestId":"a:}b","paymentId":"p{1}/é","amount":{"currency":"HKD","value":"1"}}"#;
        let owner = Owner::new("cap:{ture", "SANDBOX_1:2");
        let claim = Claim::of(&owner, &Job::parse(body.as_bytes()).unwrap(), true);
        let payment = "cap%3A%7Bture:SANDBOX_1%3A2:{p%7B1%7D%2F%C3%A9}";
        assert_eq!(claim.keys().lease, format!("{payment}:lease"));
        assert_eq!(claim.keys().known, format!("{payment}:known:a%3A%7Db"));
        assert_eq!(claim.keys().replaced, format!("{payment}:replaced:a%3A%7Db"));
        assert_eq!(owner.key("server"), "cap%3A%7Bture:SANDBOX_1%3A2:server");
    }
}
