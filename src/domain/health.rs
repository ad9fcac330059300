//! What a reply says of the gateway and the account, rather than of one capture.

use std::time::Duration;

use super::{
    class::{Class, Codes, REQUEST_TRAFFIC_EXCEED_LIMIT},
    judge::{TOO_MANY_REQUESTS, describe},
    reply::{NoAnswer, Reply, Signature, Status},
};

/// What a reply says of the gateway and the account, rather than of one capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// A normal answer, whatever it says of the capture.
    Well,
    /// No answer that counts. The next job may meet the same.
    Ill(Illness, String),
    /// Too many calls.
    Throttled(Option<Duration>),
}

/// How far an unhealthy reply may concern other payments too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Illness {
    /// The gateway was not reached: that has nothing to do with the payment.
    NotSent,
    /// No answer, an answer that the gateway did not sign, or one that refuses the account.
    NoAnswer,
    /// An HTTP status that refuses this request: a firewall may dislike one job's content.
    Refused,
}

/// Statuses from 400 to 499 that are about the account or the gateway, and not about one request.
const OF_THE_GATEWAY: [u16; 3] = [401, 407, 408];

/// What a reply says of the gateway and the account: class `access`, not sent, no answer that counts; and
/// too many calls. An answer without a good signature is one of them: a proxy that strips headers, or a
/// wrong public key, would spend the attempts of every job.
pub fn health<B>(reply: &Reply<B>, codes: &Codes) -> Health {
    let answer = match reply {
        Reply::Answered(answer) => answer,
        Reply::NotSent(reason) => return Health::Ill(Illness::NotSent, reason.clone()),
        Reply::NoAnswer(NoAnswer::HttpStatus { status: TOO_MANY_REQUESTS, retry_after }) => {
            return Health::Throttled(*retry_after);
        }
        Reply::NoAnswer(reason) => return Health::Ill(illness(reason), reason.to_string()),
    };
    let result = &answer.result;
    let ill = |reason| Health::Ill(Illness::NoAnswer, reason);
    if answer.signature == Signature::Bad {
        ill("a bad signature".into())
    } else if answer.signature == Signature::Stale {
        ill("a response-time that does not fit the request: check NTP".into())
    } else if result.code == REQUEST_TRAFFIC_EXCEED_LIMIT && result.status != Status::S {
        Health::Throttled(answer.retry_after)
    } else if result.status == Status::F && codes.class_of(&result.code) == Class::Access {
        ill(describe(result))
    } else if answer.signature == Signature::Missing {
        ill(format!("an unsigned answer: {}", describe(result)))
    } else {
        Health::Well
    }
}

fn illness(reason: &NoAnswer) -> Illness {
    match reason {
        NoAnswer::HttpStatus { status: status @ 400..=499, .. }
            if !OF_THE_GATEWAY.contains(status) =>
        {
            Illness::Refused
        }
        _ => Illness::NoAnswer,
    }
}
