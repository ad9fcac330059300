//! The owner of keys in Redis, their names, and what an acquisition asks for.

use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::domain::job::Job;

/// The characters of a name that are percent-encoded in a key, such as braces, colons and `%`.
const KEY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The length of an acquisition's token, in hexadecimal digits.
pub(super) const TOKEN_CHARS: usize = 32;

/// The deployment (`broker.prefix`) and the merchant (`gateway.client_id`), which own the keys. All
/// keys begin with the owner, because an outcome of one merchant proves nothing about the captures
/// of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner(Arc<str>);

impl Owner {
    /// The owner for `broker.prefix` and `gateway.client_id`.
    #[must_use]
    pub fn new(prefix: &str, client_id: &str) -> Self {
        Self(format!("{}:{}", encoded(prefix), encoded(client_id)).into())
    }

    /// A key of the owner itself, such as `:server`, which belongs to no payment.
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}:{name}", self.0)
    }
}

fn encoded(name: &str) -> impl std::fmt::Display {
    utf8_percent_encode(name, KEY)
}

/// The keys of one payment and one of its ids. All begin with `<owner>:{<paymentId>}`, which puts
/// them into one slot of a Cluster.
#[derive(Debug)]
pub(super) struct PaymentKeys {
    /// `:lease`: the token of the acquisition that has the lease.
    pub(super) lease: String,
    /// `:hold`, the in-doubt block: the token that wrote it, and the id in doubt.
    pub(super) in_doubt_block: String,
    /// `:line`, the waiting list: the tokens that wait for the lease, in the order of their
    /// arrival.
    pub(super) waiting_list: String,
    /// `:sent:<id>`, the sent marker: the token that first wrote it, and what the gateway signed
    /// since.
    pub(super) sent: String,
    /// `:known:<id>`: the recorded outcome.
    pub(super) recorded: String,
    /// `:replaced:<id>`: the failure that was recorded when a fresh id replaced this id.
    pub(super) replaced: String,
}

impl PaymentKeys {
    pub(super) fn of(owner: &Owner, payment_id: &str, capture_request_id: &str) -> Self {
        let payment = format!("{}:{{{}}}", owner.0, encoded(payment_id));
        let id = encoded(capture_request_id);
        Self {
            lease: format!("{payment}:lease"),
            in_doubt_block: format!("{payment}:hold"),
            waiting_list: format!("{payment}:line"),
            sent: format!("{payment}:sent:{id}"),
            recorded: format!("{payment}:known:{id}"),
            replaced: format!("{payment}:replaced:{id}"),
        }
    }

    /// The keys of the payment, in the order that the scripts expect; those of the id follow.
    pub(super) fn of_payment(&self) -> [&str; 3] {
        [&self.lease, &self.in_doubt_block, &self.waiting_list]
    }

    pub(super) fn of_id(&self) -> [&str; 3] {
        [&self.sent, &self.recorded, &self.replaced]
    }
}

/// One acquisition of a payment's lease, for one job. It is cheap to clone, and it is safe to ask
/// again with the same claim.
#[derive(Clone, Debug)]
pub struct Claim(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    token: String,
    id: String,
    amount: String,
    posts: bool,
    keys: PaymentKeys,
}

impl Claim {
    /// A claim with a new token. `posts`: a capture is sent as soon as the lease is acquired; only
    /// then are the in-doubt block and the sent marker written with the lease.
    #[must_use]
    pub fn of(owner: &Owner, job: &Job, posts: bool) -> Self {
        Self(Arc::new(Parts {
            token: format!("{:0width$x}", rand::random::<u128>(), width = TOKEN_CHARS),
            id: job.capture_request_id.clone(),
            amount: format!("{}:{}", job.amount.currency().code(), job.amount.value()),
            posts,
            keys: PaymentKeys::of(owner, &job.payment_id, &job.capture_request_id),
        }))
    }

    /// Whether the in-doubt block and the sent marker are written together with the lease.
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

    pub(super) fn keys(&self) -> &PaymentKeys {
        &self.0.keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_begin_with_the_owner_and_share_the_payments_slot() {
        let amount = r#"{"currency":"HKD","value":"1"}"#;
        let body =
            format!(r#"{{"captureRequestId":"a:}}b","paymentId":"p{{1}}/é","amount":{amount}}}"#);
        let owner = Owner::new("cap:{ture", "SANDBOX_1:2");
        let claim = Claim::of(&owner, &Job::parse(body.as_bytes()).unwrap(), true);
        let payment = "cap%3A%7Bture:SANDBOX_1%3A2:{p%7B1%7D%2F%C3%A9}";
        assert_eq!(claim.keys().lease, format!("{payment}:lease"));
        assert_eq!(claim.keys().recorded, format!("{payment}:known:a%3A%7Db"));
        assert_eq!(claim.keys().replaced, format!("{payment}:replaced:a%3A%7Db"));
        assert_eq!(owner.key("server"), "cap%3A%7Bture:SANDBOX_1%3A2:server");
    }
}
