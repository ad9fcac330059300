//! What a reply shows about the gateway and our credentials, rather than about one capture.

use std::time::Duration;

use super::{
    class::{Class, Codes, REQUEST_TRAFFIC_EXCEED_LIMIT},
    judge::{TOO_MANY_REQUESTS, describe},
    reply::{NoAnswer, Reply, Signature, Status},
};

/// What a reply shows about the gateway and our credentials, rather than about one capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Healthy: a normal reply, whatever it says about the capture.
    Well,
    /// Unhealthy: no reply that counts. The next job may meet the same failure. The text is the
    /// reason.
    Ill(Illness, String),
    /// The gateway refused the call because there were too many. It may say how long to wait.
    Throttled(Option<Duration>),
}

/// How far an unhealthy reply may affect other payments too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Illness {
    /// The gateway was not reached, which does not depend on the payment.
    NotSent,
    /// No reply, a reply that the gateway did not sign, or one that refuses our credentials.
    NoAnswer,
    /// An HTTP status that refuses this request: a firewall may reject the content of one job.
    Refused,
}

/// HTTP statuses from 400 to 499 that are about the gateway or our credentials, not about one
/// request.
const OF_THE_GATEWAY: [u16; 3] = [401, 407, 408];

/// Judges the gateway and our credentials by a reply. Unhealthy are: a call that was not sent, no
/// reply that counts, a reply of class `access`, and a reply without a valid signature. Without the
/// last, a proxy that strips headers or a wrong public key would spend the attempts of every job.
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
        ill("a reply with a bad signature".into())
    } else if answer.signature == Signature::Stale {
        ill("a reply whose response-time does not fit the request: check NTP".into())
    } else if result.code == REQUEST_TRAFFIC_EXCEED_LIMIT && result.status != Status::S {
        Health::Throttled(answer.retry_after)
    } else if result.status == Status::F && codes.class_of(&result.code) == Class::Access {
        ill(describe(result))
    } else if answer.signature == Signature::Missing {
        ill(format!("an unsigned reply: {}", describe(result)))
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
