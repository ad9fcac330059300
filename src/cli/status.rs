//! `capture-worker status`.

use std::path::Path;

use serde_json::{Value, json};

use super::{
    Exit, complain,
    desk::{age, connect_redis, plain},
    say, say_json,
    settings::{self, Service},
};
use crate::{
    dead_letters::{Shown, StatusOf},
    domain::{outcome::Fate, reply::Standing},
    lease::{Inspection, Role},
};

/// What is known of one capture: its outcome, or where it is; and its family of fresh ids
///
/// Exit codes: 0 told; 1 Redis or the gateway could not be asked; 64 bad usage or settings.
#[derive(clap::Args)]
pub(super) struct StatusArgs {
    /// The captureRequestId
    #[arg(value_name = "CAPTURE_REQUEST_ID")]
    id: String,
    /// Its paymentId
    #[arg(long, value_name = "PAYMENT_ID")]
    payment: String,
    /// Print one JSON document
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
                    errors.for_each(|error| complain(&format!("error: {error}")));
                    return Exit::Usage;
                }
            };
        let keeper = connect_redis(&leases).await;
        let status = StatusOf::ask(&gateway, &leases, &self.payment, &self.id).await;
        keeper.abort();
        if self.json {
            say_json(&self.document(&status));
        } else {
            self.lines(&status).iter().for_each(|line| say(line));
        }
        if status.redis.is_ok() && status.is_answered { Exit::Done } else { Exit::Failed }
    }

    fn lines(&self, status: &StatusOf) -> Vec<String> {
        let mut lines = vec![
            format!("captureRequestId  {}", plain(&self.id)),
            format!("paymentId         {}", plain(&self.payment)),
            format!("it is             {}", plain(&self.place(status))),
        ];
        match &status.redis {
            Ok(redis) => lines.extend(redis_lines(redis)),
            Err(why) => lines.push(format!("redis             not known: {}", plain(why))),
        }
        lines.push(match &status.gateway {
            Ok(Some(shown)) => format!("the gateway       {}", plain(&words(shown))),
            Ok(None) => "the gateway       knows of no such capture".to_owned(),
            Err(why) => format!("the gateway       not known: {}", plain(why)),
        });
        for relative in &status.family {
            let kin = if relative.is_forebear { "forebear" } else { "child" };
            let known = relative.redis.as_ref().and_then(|redis| redis.known.as_ref());
            let word = match (&relative.gateway, known) {
                (Some(shown), _) => words(shown),
                (None, Some(fate)) => fate_words(fate),
                (None, None) => "sent, and not known at the gateway".to_owned(),
            };
            let id = plain(&relative.capture_request_id);
            lines.push(format!("{kin:<18}{id}: {}", plain(&word)));
        }
        lines
    }

    /// The final outcome if it is known, else where it is.
    fn place(&self, status: &StatusOf) -> String {
        let shown = status.gateway.as_ref().ok().and_then(Option::as_ref);
        let redis = status.redis.as_ref().ok();
        match (shown.map(|shown| shown.standing), redis.and_then(|redis| redis.known.as_ref())) {
            (Some(Standing::Captured), _) | (_, Some(Fate::Captured(_))) => {
                return "captured".into();
            }
            (Some(Standing::InProcess), _) => return "in process at the gateway".into(),
            (Some(Standing::Failed), _) | (_, Some(Fate::Failed(_) | Fate::Closed(_))) => {
                return "failed".into();
            }
            _ => {}
        }
        let Some(redis) = redis else { return "not known".into() };
        match &redis.hold {
            Some(hold) if hold.capture_request_id == self.id => {
                if redis.lease_left_ms.is_some() {
                    "being captured just now".into()
                } else {
                    "in doubt: it is tried again, or lies with the dead letters; others of its payment wait"
                        .into()
                }
            }
            Some(hold) => format!("not settled; its payment waits for {}", hold.capture_request_id),
            None if redis.sent => "sent, and not settled: waiting, or with the dead letters (dead show)".into(),
            None => {
                "not sent, as far as is known: in the queue, waiting, with the dead letters (dead show), or never published".into()
            }
        }
    }

    fn document(&self, status: &StatusOf) -> Value {
        let redis = status.redis.as_ref().ok();
        let family = status.family.iter().map(|relative| {
            json!({
                "captureRequestId": relative.capture_request_id,
                "relation": if relative.is_forebear { "forebear" } else { "child" },
                "outcome": relative.redis.as_ref().and_then(outcome),
                "gateway": relative.gateway.as_ref().map(shown_document),
            })
        });
        json!({
            "captureRequestId": self.id,
            "paymentId": self.payment,
            "is": self.place(status),
            "outcome": redis.and_then(outcome),
            "sent": redis.map(|redis| redis.sent),
            "leaseLeftMs": redis.and_then(|redis| redis.lease_left_ms),
            "waiting": redis.map(|redis| redis.waiting),
            "hold": redis.and_then(|redis| redis.hold.as_ref()).map(|hold| {
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

/// The outcome on record: how a failure was proven is of no use to a reader.
fn outcome(redis: &Inspection) -> Option<Fate> {
    redis.known.clone().map(|fate| match fate {
        Fate::Closed(verdict) => Fate::Failed(verdict),
        fate => fate,
    })
}

fn redis_lines(redis: &Inspection) -> Vec<String> {
    let known = redis.known.as_ref().map_or_else(|| "none".to_owned(), fate_words);
    let mut lines = vec![
        format!("outcome on record {}", plain(&known)),
        format!("sent              {}", if redis.sent { "may have been" } else { "no mark" }),
    ];
    if let Some(ms) = redis.lease_left_ms {
        lines.push(format!(
            "lease             held, for {ms} ms more; {} workers wait",
            redis.waiting
        ));
    }
    if let Some(hold) = &redis.hold {
        let (id, left) = (plain(&hold.capture_request_id), age(hold.left_ms));
        lines.push(format!("hold              by {id}, for {left} more"));
    }
    lines
}

fn fate_words(fate: &Fate) -> String {
    match fate {
        Fate::Captured(capture) => {
            format!("captured, captureId {}", capture.capture_id.as_deref().unwrap_or("-"))
        }
        Fate::Failed(verdict) | Fate::Closed(verdict) => {
            format!("failed: {} ({})", verdict.code.as_deref().unwrap_or("no code"), verdict.class)
        }
    }
}

fn words(shown: &Shown) -> String {
    let mut words = shown.status.clone();
    let amount = shown.amount.map(|amount| amount.to_string());
    let code = shown.code.clone().filter(|code| *code != shown.status);
    for part in [&code, &amount, &shown.capture_id, &shown.time].into_iter().flatten() {
        words.push(' ');
        words.push_str(part);
    }
    words
}

fn shown_document(shown: &Shown) -> Value {
    json!({
        "status": shown.status,
        "code": shown.code,
        "captureId": shown.capture_id,
        "captureAmount": shown.amount,
        "time": shown.time,
    })
}
