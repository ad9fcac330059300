//! The rules about money, as tables and as properties. History and reply go in, and one settlement
//! comes out.

mod inquiring;
mod judging;
mod properties;
mod refusing;
mod replaying;
mod settling;

use std::time::Duration;

use super::{
    capture::{
        class::{Class, Codes},
        judge::{Before, Inquired, SentMarker, judge_capture, judge_inquiry},
        outcome::{FinishedAttempt, Outcome, SentState},
        reply::{
            Answer, CaptureBody, CaptureReply, GatewayResult, InquiryBody, InquiryReply, Reply,
            Signature, Status, Transaction,
        },
    },
    job::{
        Job,
        history::{History, LastReply},
    },
    money::Money,
    replay::dead_letter::DeadLetter,
    settlement::{RetryPolicy, Settlement, settle},
};
use time::OffsetDateTime;

const NOW_MS: i64 = 1_800_000_000_000;

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(NOW_MS / 1000).unwrap()
}

fn job() -> Job {
    let amount = r#"{"currency":"HKD","value":"100"}"#;
    let body = format!(r#"{{"captureRequestId":"c","paymentId":"p","captureAmount":{amount}}}"#);
    Job::parse(body.as_bytes()).unwrap()
}

fn history() -> History {
    History { first_seen_ms: NOW_MS, ..History::default() }
}

fn sent_history() -> History {
    History { sent: true, attempts: 1, ..history() }
}

fn with_last_word(code: &str, status: &str) -> History {
    History { last_reply: Some(LastReply::new(code, status)), ..sent_history() }
}

fn policy() -> RetryPolicy {
    let seconds = |list: &[u64]| list.iter().copied().map(Duration::from_secs).collect();
    RetryPolicy {
        schedule: seconds(&[5, 15, 60]),
        defer_schedule: seconds(&[1, 4]),
        max_age: Duration::from_secs(3600),
    }
}

fn before(history: &History) -> Before<'_> {
    Before { history, marker: None, past_expiry: false, forward_error: None }
}

/// What Redis keeps about an id that was sent and that the gateway refused with this code.
fn marker(refused: Option<&str>) -> SentMarker {
    SentMarker { denied_at_replay: None, refused: refused.map(str::to_owned) }
}

/// The body of a success about [`job`].
fn success() -> CaptureBody {
    CaptureBody {
        capture_request_id: Some("c".into()),
        payment_id: Some("p".into()),
        amount: Some(Ok(hkd("100"))),
        capture_id: Some("capture-1".into()),
        ..CaptureBody::default()
    }
}

fn hkd(value: &str) -> Money {
    Money::from_smallest("HKD", value).unwrap()
}

fn answer<B>(signature: Signature, status: &str, code: &str, body: B) -> Reply<B> {
    let result = GatewayResult { status: Status::of(status), code: code.into(), message: None };
    Reply::Answered(Answer { signature, result, retry_after: None, body })
}

fn signed(status: &str, code: &str) -> CaptureReply {
    let body = if status == "S" { success() } else { CaptureBody::default() };
    answer(Signature::Good, status, code, body)
}

fn transaction(status: &str, code: Option<&str>) -> Transaction {
    let status_of = |status: &str| Status::of(if status == "SUCCESS" { "S" } else { "F" });
    Transaction {
        kind: Some("CAPTURE".into()),
        request_id: Some("c".into()),
        id: Some("capture-1".into()),
        status: Some(status.into()),
        result: code.map(|code| GatewayResult {
            status: status_of(status),
            code: code.into(),
            message: None,
        }),
        amount: Some(Ok(hkd("100"))),
        ..Transaction::default()
    }
}

fn inquiry(transactions: Vec<Transaction>) -> InquiryReply {
    let body = InquiryBody {
        payment_id: Some("p".into()),
        transactions: Some(transactions),
        ..InquiryBody::default()
    };
    answer(Signature::Good, "S", "SUCCESS", body)
}

fn judged(reply: CaptureReply, before: &Before<'_>) -> Outcome {
    judge_capture(reply, &job(), before, &Codes::default())
}

fn inquired(reply: InquiryReply, before: &Before<'_>) -> Inquired {
    judge_inquiry(reply, &job(), before, &Codes::default())
}

fn settled(outcome: Outcome, sent: SentState, history: &History) -> Settlement {
    let attempt = FinishedAttempt {
        subject: job().subject(),
        outcome,
        sent,
        remembered: false,
        outage: false,
        evidence: None,
    };
    settle(&attempt, history, &policy(), now())
}

/// A settlement in one line: what is done, and with what.
fn describe(settlement: &Settlement) -> String {
    match settlement {
        Settlement::Captured(result) => format!("captured after {}", result.attempts),
        Settlement::Retry { delay, carry } => format!(
            "wait {}s, {} attempts, {} deferrals{}",
            delay.as_secs(),
            carry.attempts,
            carry.deferrals,
            if carry.sent { ", sent" } else { "" }
        ),
        Settlement::Dead { reason, carry, result } => {
            let told = result.as_ref().map_or_else(|| "none".into(), |result| result.routing_key());
            format!("dead {} after {}, result {told}", reason.class, carry.attempts)
        }
        Settlement::HandBack => "handed back".into(),
    }
}

/// A signed dead letter of HKD 1.00.
pub(crate) fn dead_letter(class: Class, id: &str) -> DeadLetter {
    let amount = r#"{"currency":"HKD","value":"100"}"#;
    let body = format!(r#"{{"captureRequestId":"{id}","paymentId":"p","captureAmount":{amount}}}"#);
    DeadLetter {
        class,
        job: Job::parse(body.as_bytes()),
        body: body.into_bytes().into(),
        history: History::default(),
        code: None,
        status: None,
        message: None,
        dead_at_ms: None,
        signed: true,
        broker_death: None,
    }
}
