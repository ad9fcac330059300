//! `capture-worker status`: prints what Redis and the gateway know about one capture.

use std::path::Path;

use serde_json::{Value, json};

use super::{
    Exit,
    desk::{age, connect_redis, plain},
    print_error, print_json,
    settings::{self, Service},
    table::TextTable,
};
use crate::{
    capture_status::{GatewayStatus, StatusOf},
    domain::capture::{outcome::FinalOutcome, reply::Standing},
    lease::{Inspection, Role},
};

const EXAMPLES: &str = "\
Examples:
  capture-worker status shipment-1001 --payment pay-77
  capture-worker status shipment-1001 --payment pay-77 --json";

/// Print what Redis and the gateway know about one capture
///
/// The outcome if it is final, else where the job is; then the ids that it replaced and the fresh
/// ids that replaced it. Reading changes nothing.
///
/// Exit codes: 0: Redis and the gateway replied. 1: one of them did not. 64: bad usage or settings.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct StatusArgs {
    /// The captureRequestId of the capture
    #[arg(value_name = "CAPTURE_REQUEST_ID")]
    id: String,
    /// The paymentId of the same job
    #[arg(long, value_name = "PAYMENT_ID")]
    payment: String,
    /// Print one JSON document with the same facts
    #[arg(long)]
    json: bool,
}

impl StatusArgs {
    pub(super) async fn run(self, config: Option<&Path>) -> Exit {
        let settings = match settings::load(config, &[Service::Redis, Service::Gateway]) {
            Ok(settings) => settings,
            Err(exit) => return exit,
        };
        let (leases, gateway) =
            match (settings::leases(&settings, Role::Command), settings::gateway(&settings)) {
                (Ok(leases), Ok(gateway)) => (leases, gateway),
                (leases, gateway) => {
                    let errors = [leases.err(), gateway.err()].into_iter().flatten().flatten();
                    errors.for_each(|error| print_error(&format!("error: {error}")));
                    return Exit::Usage;
                }
            };
        let keeper = connect_redis(&leases).await;
        let status = StatusOf::ask(&gateway, &leases, &self.payment, &self.id).await;
        keeper.abort();
        if self.json {
            print_json(&self.document(&status));
        } else {
            let mut table = TextTable::untitled();
            self.facts(&status).into_iter().for_each(|fact| table.add(fact));
            table.flush();
        }
        if status.redis.is_ok() && status.is_answered { Exit::Done } else { Exit::Failed }
    }

    fn facts(&self, status: &StatusOf) -> Vec<[String; 2]> {
        let fact = |name: &str, text: &str| [name.to_owned(), plain(text)];
        let mut facts = vec![
            fact("captureRequestId", &self.id),
            fact("paymentId", &self.payment),
            fact("state", &self.state(status).describe()),
        ];
        match &status.redis {
            Ok(redis) => facts.extend(redis_facts(redis)),
            Err(why) => facts.push(fact("Redis", &format!("unknown: {why}"))),
        }
        let gateway = match &status.gateway {
            Ok(Some(shown)) => words(shown),
            Ok(None) => "knows of no such capture".to_owned(),
            Err(why) => format!("unknown: {why}"),
        };
        facts.push(fact("gateway", &gateway));
        for relative in &status.family {
            let kin = if relative.is_ancestor { "ancestor" } else { "descendant" };
            let known = relative.redis.as_ref().and_then(|redis| redis.recorded.as_ref());
            let word = match (&relative.gateway, known) {
                (Some(shown), _) => words(shown),
                (None, Some(outcome)) => outcome_words(outcome),
                (None, None) => "may have been sent; unknown at the gateway".to_owned(),
            };
            facts.push(fact(kin, &format!("{}: {word}", relative.capture_request_id)));
        }
        facts
    }

    /// The final outcome if it is known, else where the job is.
    fn state<'s>(&self, status: &'s StatusOf) -> State<'s> {
        let shown = status.gateway.as_ref().ok().and_then(Option::as_ref);
        let redis = status.redis.as_ref().ok();
        match (shown.map(|shown| shown.standing), redis.and_then(|redis| redis.recorded.as_ref())) {
            (Some(Standing::Captured), _) | (_, Some(FinalOutcome::Captured(_))) => {
                return State::Captured;
            }
            (Some(Standing::InProcess), _) => return State::InProcess,
            (Some(Standing::Failed), _)
            | (_, Some(FinalOutcome::Failed(_) | FinalOutcome::FailedWhileLeased(_))) => {
                return State::Failed;
            }
            _ => {}
        }
        let Some(redis) = redis else { return State::Unknown };
        match &redis.in_doubt_block {
            Some(hold) if hold.capture_request_id == self.id => {
                if redis.lease_left_ms.is_some() {
                    State::UnderWay
                } else {
                    State::InDoubt
                }
            }
            Some(hold) => State::Blocked(&hold.capture_request_id),
            None if redis.sent => State::Sent,
            None => State::NotSent,
        }
    }

    fn document(&self, status: &StatusOf) -> Value {
        let redis = status.redis.as_ref().ok();
        let family = status.family.iter().map(|relative| {
            json!({
                "captureRequestId": relative.capture_request_id,
                "relation": if relative.is_ancestor { "forebear" } else { "child" },
                "outcome": relative.redis.as_ref().and_then(outcome),
                "gateway": relative.gateway.as_ref().map(shown_document),
            })
        });
        json!({
            "captureRequestId": self.id,
            "paymentId": self.payment,
            "is": self.state(status).value(),
            "outcome": redis.and_then(outcome),
            "sent": redis.map(|redis| redis.sent),
            "leaseLeftMs": redis.and_then(|redis| redis.lease_left_ms),
            "waiting": redis.map(|redis| redis.waiting),
            "hold": redis.and_then(|redis| redis.in_doubt_block.as_ref()).map(|hold| {
                json!({"captureRequestId": hold.capture_request_id, "leftMs": hold.left_ms})
            }),
            "gateway": status.gateway.as_ref().ok().and_then(Option::as_ref).map(shown_document),
            "family": family.collect::<Vec<_>>(),
            "errors": {
                "redis": status.redis.as_ref().err(),
                "gateway": status.gateway.as_ref().err(),
            },
        })
    }
}

/// What is known of the capture, when Redis and the gateway are put together.
enum State<'s> {
    Captured,
    Failed,
    InProcess,
    UnderWay,
    InDoubt,
    Blocked(&'s str),
    Sent,
    NotSent,
    Unknown,
}

impl State<'_> {
    /// The value in JSON. Programs compare it: it must not change.
    fn value(&self) -> String {
        let value = match self {
            Self::Captured => "captured",
            Self::Failed => "failed",
            Self::InProcess => "in process at the gateway",
            Self::UnderWay => "being captured just now",
            Self::InDoubt => {
                "in doubt: it is tried again, or lies with the dead letters; others of its payment \
                 wait"
            }
            Self::Blocked(id) => return format!("not settled; its payment waits for {id}"),
            Self::Sent => "sent, and not settled: waiting, or with the dead letters (dead show)",
            Self::NotSent => {
                "not sent, as far as is known: in the queue, waiting, with the dead letters (dead \
                 show), or never published"
            }
            Self::Unknown => "not known",
        };
        value.to_owned()
    }

    /// A sentence for people.
    fn describe(&self) -> String {
        let sentence = match self {
            Self::Captured => "captured",
            Self::Failed => "failed",
            Self::InProcess => "in process at the gateway",
            Self::UnderWay => "a worker is capturing it now",
            Self::InDoubt => {
                "in doubt: it waits for a retry or is a dead letter (see dead show). Other \
                 captures of its payment wait"
            }
            Self::Blocked(id) => {
                return format!("not settled: it waits, because {id} of its payment is in doubt");
            }
            Self::Sent => {
                "a request may have been sent, and there is no final outcome: it waits for a retry \
                 or is a dead letter (see dead show)"
            }
            Self::NotSent => {
                "not sent, as far as Redis remembers: it is in the queue, waits for a retry, is a \
                 dead letter (see dead show), or was never published"
            }
            Self::Unknown => "unknown",
        };
        sentence.to_owned()
    }
}

/// The recorded outcome for JSON. How a failure was proven makes no difference to a reader, so both
/// kinds of failure look the same.
fn outcome(redis: &Inspection) -> Option<FinalOutcome> {
    redis.recorded.clone().map(|outcome| match outcome {
        FinalOutcome::FailedWhileLeased(verdict) => FinalOutcome::Failed(verdict),
        outcome => outcome,
    })
}

fn redis_facts(redis: &Inspection) -> Vec<[String; 2]> {
    let known = redis.recorded.as_ref().map_or_else(|| "none".to_owned(), outcome_words);
    let sent = if redis.sent { "set: a request may have been sent" } else { "not set" };
    let mut facts = vec![("recorded outcome", known), ("sent marker", sent.to_owned())];
    if let Some(ms) = redis.lease_left_ms {
        let waiting = redis.waiting;
        let lease = format!("held for another {ms} ms; workers waiting for it: {waiting}");
        facts.push(("lease", lease));
    }
    if let Some(hold) = &redis.in_doubt_block {
        let (id, left) = (&hold.capture_request_id, age(hold.left_ms));
        facts.push(("in-doubt block", format!("by {id}, for another {left}")));
    }
    facts.into_iter().map(|(name, text)| [name.to_owned(), plain(&text)]).collect()
}

fn outcome_words(outcome: &FinalOutcome) -> String {
    match outcome {
        FinalOutcome::Captured(capture) => {
            format!("captured, captureId {}", capture.capture_id.as_deref().unwrap_or("-"))
        }
        FinalOutcome::Failed(verdict) | FinalOutcome::FailedWhileLeased(verdict) => {
            format!("failed: {} ({})", verdict.code.as_deref().unwrap_or("no code"), verdict.class)
        }
    }
}

fn words(shown: &GatewayStatus) -> String {
    let mut words = shown.status.clone();
    let amount = shown.amount.map(|amount| amount.to_string());
    let code = shown.code.clone().filter(|code| *code != shown.status);
    for part in [&code, &amount, &shown.capture_id, &shown.time].into_iter().flatten() {
        words.push(' ');
        words.push_str(part);
    }
    words
}

fn shown_document(shown: &GatewayStatus) -> Value {
    json!({
        "status": shown.status,
        "code": shown.code,
        "captureId": shown.capture_id,
        "captureAmount": shown.amount,
        "time": shown.time,
    })
}
