//! The bridge to `src/domain/replay.rs` and `src/domain/replay/decision.rs`: the decision about a
//! dead letter.

use capture_worker::domain::{
    capture::class::{Class, Codes},
    replay::{
        self, Changes,
        dead_letter::DeadLetter,
        decision::{Decision, decide},
        evidence::{CaptureSeen, PaymentSeen},
        prepare,
    },
};
use time::OffsetDateTime;

use crate::{
    domain::{Carried, Inquiry, JOB, NOW_MS, history, job, spell},
    replies::inquiry_reply,
};

/// The program's decision about a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decided {
    Send,
    Settle,
    Refuse,
}

/// Calls `src/domain/replay.rs::prepare` and `src/domain/replay/decision.rs::decide`: the decision
/// about a dead letter after this reply to an inquiry.
pub(crate) fn decide_replay(
    class: Class,
    signed: bool,
    carried: Carried,
    seen: Inquiry,
) -> Decided {
    let dead_letter = DeadLetter {
        class,
        body: JOB.as_bytes().into(),
        job: Ok(job()),
        history: history(carried, false),
        code: spell(carried.word).map(|word| word.code),
        status: spell(carried.word).map(|word| word.status),
        message: None,
        dead_at_ms: None,
        signed,
        broker_death: None,
    };
    let now = OffsetDateTime::from_unix_timestamp(NOW_MS / 1000).expect("a time");
    let Ok(replay) = prepare(&dead_letter, &Changes::default(), now) else {
        return Decided::Refuse;
    };
    let reply = inquiry_reply(seen);
    let evidence = CaptureSeen::of(&reply, &job(), &Codes::default());
    match decide(
        &dead_letter,
        replay,
        &evidence,
        &PaymentSeen::of(&reply, &job(), &dead_letter.history),
        now,
    ) {
        Decision::Send(_) => Decided::Send,
        Decision::Settle(_) => Decided::Settle,
        Decision::Refuse(_) => Decided::Refuse,
    }
}

/// Calls `src/domain/replay.rs::ReplayPolicy::of`: whether a replay sends a fresh id, the same id,
/// or nothing.
pub(crate) fn replays_fresh(class: Class, signed: bool) -> Option<bool> {
    match replay::ReplayPolicy::of(class, signed) {
        replay::ReplayPolicy::Never => None,
        replay::ReplayPolicy::SameId | replay::ReplayPolicy::SameBytes => Some(false),
        replay::ReplayPolicy::FreshId => Some(true),
    }
}
