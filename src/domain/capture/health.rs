//! What a reply shows about the gateway and our credentials, rather than about one capture.

use std::time::Duration;

use super::{
    class::{Class, Codes, REQUEST_TRAFFIC_EXCEED_LIMIT},
    judge::{TOO_MANY_REQUESTS, describe},
    reply::{NoAnswer, Reply, Signature, Status},
};

/// What a reply shows about the gateway and our credentials, rather than about one capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewayHealth {
    /// Healthy: a normal reply, whatever it says about the capture.
    Healthy,
    /// Unhealthy: no reply that counts. The next job may meet the same failure. The text is the
    /// reason.
    Unhealthy(FailedReply, String),
    /// The gateway refused the call because there were too many. It may say how long to wait.
    Throttled(Option<Duration>),
}

/// How far an unhealthy reply may affect other payments too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailedReply {
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
pub fn health<B>(reply: &Reply<B>, codes: &Codes) -> GatewayHealth {
    let answer = match reply {
        Reply::Answered(answer) => answer,
        Reply::NotSent(reason) => {
            return GatewayHealth::Unhealthy(FailedReply::NotSent, reason.clone());
        }
        Reply::NoAnswer(NoAnswer::HttpStatus { status: TOO_MANY_REQUESTS, retry_after }) => {
            return GatewayHealth::Throttled(*retry_after);
        }
        Reply::NoAnswer(reason) => {
            return GatewayHealth::Unhealthy(failed_reply(reason), reason.to_string());
        }
    };
    let result = &answer.result;
    let unhealthy = |reason| GatewayHealth::Unhealthy(FailedReply::NoAnswer, reason);
    if answer.signature == Signature::Bad {
        unhealthy("a reply with a bad signature".into())
    } else if answer.signature == Signature::Stale {
        unhealthy("a reply whose response-time does not fit the request: check NTP".into())
    } else if result.code == REQUEST_TRAFFIC_EXCEED_LIMIT && result.status != Status::S {
        GatewayHealth::Throttled(answer.retry_after)
    } else if result.status == Status::F && codes.class_of(&result.code) == Class::Access {
        unhealthy(describe(result))
    } else if answer.signature == Signature::Missing {
        unhealthy(format!("an unsigned reply: {}", describe(result)))
    } else {
        GatewayHealth::Healthy
    }
}

fn failed_reply(reason: &NoAnswer) -> FailedReply {
    match reason {
        NoAnswer::HttpStatus { status: status @ 400..=499, .. }
            if !OF_THE_GATEWAY.contains(status) =>
        {
            FailedReply::Refused
        }
        _ => FailedReply::NoAnswer,
    }
}
