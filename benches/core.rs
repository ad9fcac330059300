//! Benchmarks of the pure parts of a job's path: `cargo bench --bench core`. Signing is the largest
//! cost of a job, so compare the others with it.
#![expect(clippy::unwrap_used, reason = "a panic reports why a benchmark can't start")]

use std::{sync::LazyLock, time::Duration};

use capture_worker::{
    domain::{
        capture::{
            class::{Codes, FINAL_CODES},
            judge::{Before, judge_capture},
            outcome::{FinishedAttempt, SentState},
            reply::{Answer, CaptureBody, CaptureReply, GatewayResult, Reply, Signature, Status},
        },
        job::{Job, history::History},
        settlement::{RetryPolicy, settle},
    },
    gateway::signing::{SigningKey, VerifyingKeys, signature_header},
};
use divan::{Bencher, black_box};
use time::OffsetDateTime;

const PATH: &str = "/ams/api/v1/payments/capture";
const CLIENT: &str = "5X00000000000000";
const TIME: &str = "1700000000000";
const SMALL: &str = concat!(
    r#"{"captureRequestId":"capture_20260920_005914_845","#,
    r#""paymentId":"20260919194010890100111740275820195","#,
    r#""captureAmount":{"currency":"HKD","value":"12990"}}"#
);
const LARGE: &str = concat!(
    r#"{"captureRequestId":"capture_20260920_005914_845","#,
    r#""paymentId":"20260919194010890100111740275820195","#,
    r#""amount":{"currency":"HKD","value":"129.90"},"expiresAt":"2026-12-24T18:00:00+08:00","#,
    r#""metadata":{"warehouse":"HKG-2","carrier":"SF","parcel":"3 of 5","order":"A-2026-000123"},"#,
    r#""lines":[{"sku":"1","quantity":2},{"sku":"2","quantity":1},{"sku":"3","quantity":7}]}"#
);

static SIGNING: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::generate().unwrap());
static VERIFYING: LazyLock<VerifyingKeys> =
    LazyLock::new(|| VerifyingKeys::parse(&SIGNING.public_key().unwrap()).unwrap());

fn main() {
    // Generate the keys before any measurement.
    LazyLock::force(&VERIFYING);
    divan::main();
}

#[divan::bench(args = ["small", "large"])]
fn parse(bencher: Bencher<'_, '_>, size: &str) {
    let body = if size == "small" { SMALL } else { LARGE };
    bencher.bench_local(|| Job::parse(black_box(body).as_bytes()).unwrap());
}

#[divan::bench]
fn classify(bencher: Bencher<'_, '_>) {
    let codes = Codes::default();
    bencher.bench_local(|| {
        FINAL_CODES.iter().filter(|(code, class)| codes.class_of(black_box(code)) == *class).count()
    });
}

/// From the gateway's reply to the settlement of the delivery.
#[divan::bench(args = ["S SUCCESS", "F RISK_REJECT", "F BRAND_NEW", "U UNKNOWN_EXCEPTION"])]
fn decide(bencher: Bencher<'_, '_>, result: &str) {
    let (job, codes) = (Job::parse(SMALL.as_bytes()).unwrap(), Codes::default());
    let policy = RetryPolicy {
        schedule: [5, 15, 60].map(Duration::from_secs).to_vec(),
        defer_schedule: vec![Duration::from_secs(1)],
        max_age: Duration::from_secs(86_400),
    };
    let (history, now) = (History::default(), OffsetDateTime::UNIX_EPOCH);
    let before =
        Before { history: &history, marker: None, past_expiry: false, forward_error: None };
    let reply = reply(&job, result);
    bencher.with_inputs(|| reply.clone()).bench_local_values(|reply| {
        let outcome = judge_capture(reply, &job, &before, &codes);
        let attempt = FinishedAttempt {
            subject: job.subject(),
            outcome,
            sent: SentState::No,
            remembered: false,
            evidence: None,
            outage: false,
        };
        settle(&attempt, &history, &policy, now)
    });
}

fn reply(job: &Job, result: &str) -> CaptureReply {
    let (status, code) = result.split_once(' ').unwrap();
    let body = CaptureBody {
        capture_request_id: Some(job.capture_request_id.clone()),
        payment_id: Some(job.payment_id.clone()),
        amount: Some(Ok(job.amount)),
        capture_id: Some("20260919194010890100111740275850565".into()),
        ..CaptureBody::default()
    };
    Reply::Answered(Answer {
        signature: Signature::Good,
        result: GatewayResult { status: Status::of(status), code: code.into(), message: None },
        retry_after: None,
        body,
    })
}

#[divan::bench]
fn sign() -> String {
    SIGNING.sign(PATH, CLIENT, TIME, black_box(SMALL.as_bytes()))
}

#[divan::bench]
fn verify(bencher: Bencher<'_, '_>) {
    let header = signature_header(1, &SIGNING.sign(PATH, CLIENT, TIME, SMALL.as_bytes()));
    bencher
        .bench_local(|| VERIFYING.verify(PATH, CLIENT, TIME, black_box(SMALL.as_bytes()), &header));
}
