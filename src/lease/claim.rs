//! What an acquisition asks for.

use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::domain::job::Job;

/// What stays readable of an id in a key; braces, colons and percent signs do not.
const KEY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The length of an acquisition's token.
pub(super) const TOKEN_CHARS: usize = 32;

/// One acquisition of a payment's lease, for one job. Cheap to clone; asking again with it does no harm.
#[derive(Clone, Debug)]
pub struct Claim(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    token: String,
    id: String,
    amount: String,
    posts: bool,
    keys: [String; 5],
}

impl Claim {
    /// A fresh one. `posts`: a capture is sent as soon as the lease is taken; only then hold and mark are written with it.
    #[must_use]
    pub fn of(job: &Job, posts: bool) -> Self {
        Self(Arc::new(Parts {
            token: format!("{:0width$x}", rand::random::<u128>(), width = TOKEN_CHARS),
            id: job.capture_request_id.clone(),
            amount: format!("{}:{}", job.amount.currency().code(), job.amount.value()),
            posts,
            keys: keys(&job.payment_id, &job.capture_request_id),
        }))
    }

    /// Whether hold and mark are written when the lease is taken.
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

    pub(super) fn keys(&self) -> &[String] {
        &self.0.keys
    }

    pub(super) fn mark_key(&self) -> &str {
        &self.0.keys[3]
    }

    pub(super) fn known_key(&self) -> &str {
        &self.0.keys[4]
    }
}

/// Lease, hold, line, mark and known outcome.
pub(super) fn keys(payment_id: &str, capture_request_id: &str) -> [String; 5] {
    let payment = utf8_percent_encode(payment_id, KEY);
    let id = utf8_percent_encode(capture_request_id, KEY);
    [
        format!("capture:{{{payment}}}:lease"),
        format!("capture:{{{payment}}}:hold"),
        format!("capture:{{{payment}}}:line"),
        format!("capture:{{{payment}}}:sent:{id}"),
        format!("capture:{{{payment}}}:known:{id}"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_a_payment_share_one_slot_whatever_its_id() {
        let body = r#"{"captureRequestId":"a:}b","paymentId":"p{1}/é","amount":{"currency":"HKD","value":"1"}}"#;
        let claim = Claim::of(&Job::parse(body.as_bytes()).unwrap(), true);
        assert_eq!(claim.keys()[0], "capture:{p%7B1%7D%2F%C3%A9}:lease");
        assert_eq!(claim.known_key(), "capture:{p%7B1%7D%2F%C3%A9}:known:a%3A%7Db");
    }
}
