//! The bridge to the program's pure functions, which the model calls instead of a copy. Histories,
//! replies and outcomes have the few forms that the model needs. The results of calls are cached.

use std::{cell::RefCell, collections::HashMap, hash::Hash, thread::LocalKey};

use capture_worker::domain::{
    capture::{
        class::{Class, Codes},
        judge::{Before, Inquired, NextCall, SentMarker, first_call, judge_capture, judge_inquiry},
        outcome::{
            Capture, Deferral, Doubt, DoubtKind, FailureVerdict, FinalOutcome, Outcome, Recorded,
            Release, Throttle,
        },
    },
    job::{
        Job,
        history::{History, LastReply},
    },
};

use crate::{
    redis::{self, Mode, Record, Tells},
    replies::{capture_reply, inquiry_reply},
};

pub(crate) const NOW_MS: i64 = 1_800_000_000_000;
pub(crate) const MAX_AGE_MS: i64 = 3_600_000;
const DAY_MS: i64 = 86_400_000;

/// A result code of the gateway, as an index into [`WORDS`].
pub(crate) type Word = u8;
pub(crate) const NO_WORD: Word = 0;
pub(crate) const UNKNOWN: Word = 1;
pub(crate) const IN_PROCESS: Word = 2;
pub(crate) const RISK: Word = 3;
pub(crate) const DENIED: Word = 4;
pub(crate) const ILLEGAL: Word = 5;
pub(crate) const PROCESS_FAIL: Word = 6;
pub(crate) const CONFLICT: Word = 7;
pub(crate) const TRAFFIC: Word = 8;
const PAYMENT_IN_PROCESS: Word = 9;

pub(crate) const WORDS: [(&str, &str); 10] = [
    ("", ""),
    ("UNKNOWN_EXCEPTION", "U"),
    ("CAPTURE_IN_PROCESS", "U"),
    ("RISK_REJECT", "F"),
    ("ACCESS_DENIED", "F"),
    ("PARAM_ILLEGAL", "F"),
    ("PROCESS_FAIL", "F"),
    ("REPEAT_REQ_INCONSISTENT", "F"),
    ("REQUEST_TRAFFIC_EXCEED_LIMIT", "U"),
    ("PAYMENT_IN_PROCESS", "U"),
];

pub(crate) fn spell(word: Word) -> Option<LastReply> {
    let (code, status) = WORDS[usize::from(word)];
    (word != NO_WORD).then(|| LastReply::new(code, status))
}

fn word(code: Option<&str>) -> Word {
    let place = WORDS.iter().position(|(known, _)| Some(*known) == code);
    let place = place.and_then(|place| u8::try_from(place).ok()).unwrap_or(NO_WORD);
    // The two codes for "in process" mean the same to `first_call`.
    if place == PAYMENT_IN_PROCESS { IN_PROCESS } else { place }
}

/// The headers of a message: the parts of `src/domain/job/history.rs::History` that influence a
/// decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Carried {
    pub(crate) attempts: u8,
    pub(crate) word: Word,
    pub(crate) sent: bool,
    pub(crate) redelivered: bool,
    pub(crate) replays: u8,
    pub(crate) returns: u8,
}

/// What is known when an attempt begins: `src/domain/capture/judge.rs::Before`, and whether the job
/// is older than `retry.max_age`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Known {
    pub(crate) carried: Carried,
    pub(crate) marker: Option<Tells>,
    pub(crate) amount: u8,
    pub(crate) past_expiry: bool,
}

/// The outcome of an attempt: `src/domain/capture/outcome.rs::Outcome` without its texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Came {
    Captured,
    Failed(Class, Word),
    Closed(Class, Word),
    InDoubt(Word),
    /// In doubt after a signed `F` that may not be about the capture.
    Unproven(Word),
    Throttled(Word),
    NotSent,
    Account,
    Deferred,
    Expired {
        inquired: bool,
    },
    Poison,
}

/// The gateway's reply to a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Said {
    /// A signed reply with `S`.
    Captured,
    /// A signed reply with `F` and this code.
    Failed(Word),
    /// A signed reply with `U` and this code.
    Unsure(Word),
    /// An unsigned reply with `ACCESS_DENIED`.
    Unsigned,
    /// No reply: a timeout, or a lost connection.
    Nothing,
    /// The connection could not be made.
    NotSent,
}

/// What an inquiry shows about an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Shown {
    Success,
    OtherAmount,
    Fail(Word),
    Processing,
    NoSuchCapture,
    /// The inquiry had no reply.
    Nothing,
}

/// What an inquiry shows: the state of the id, and whether its child, its grandchild and an
/// ancestor have captured or may still capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Inquiry {
    pub(crate) shown: Shown,
    pub(crate) child_lives: bool,
    pub(crate) later_lives: bool,
    pub(crate) forebear_lives: bool,
}

impl Inquiry {
    pub(crate) const UNANSWERED: Self = Self { shown: Shown::Nothing, ..Self::NO_FAMILY };
    pub(crate) const NO_FAMILY: Self = Self {
        shown: Shown::NoSuchCapture,
        child_lives: false,
        later_lives: false,
        forebear_lives: false,
    };
}

/// The message that is published before the ack: `src/domain/settlement::Settlement`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Todo {
    Captured,
    Retry(Carried),
    Dead { class: Class, signed: bool, carried: Carried, in_doubt: bool },
}

/// The type `src/domain/capture/outcome.rs::Sent`, with `Hash`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Left {
    No,
    Unknown,
    Yes,
}

pub(crate) fn remembered<K: Copy + Eq + Hash, V: Copy>(
    memory: &'static LocalKey<RefCell<HashMap<K, V>>>,
    key: K,
    work: impl FnOnce(K) -> V,
) -> V {
    let found = memory.with_borrow(|memory| memory.get(&key).copied());
    found.unwrap_or_else(|| {
        let made = work(key);
        memory.with_borrow_mut(|memory| memory.insert(key, made));
        made
    })
}

pub(crate) const JOB: &str =
    r#"{"captureRequestId":"c","paymentId":"p","captureAmount":{"currency":"HKD","value":"100"}}"#;

/// The id of the ancestor that headers name.
pub(crate) const PARENT: &str = "parent";

pub(crate) fn job() -> Job {
    Job::parse(JOB.as_bytes()).expect("a job")
}

pub(crate) fn history(carried: Carried, is_old: bool) -> History {
    History {
        attempts: u32::from(carried.attempts),
        deferrals: 0,
        first_seen_ms: if is_old { NOW_MS - DAY_MS } else { NOW_MS },
        last_reply: spell(carried.word),
        sent: carried.sent,
        redelivered: carried.redelivered,
        replays: u32::from(carried.replays),
        returns: u32::from(carried.returns),
        // An inquiry shows no ancestor for an id that has none, so a name is harmless.
        parent: Some(PARENT.into()),
        origin: None,
    }
}

/// The inverse of [`history`]. Deferrals are left out: they only determine how long a job waits.
pub(crate) fn carried(history: &History) -> Carried {
    Carried {
        attempts: u8::try_from(history.attempts).unwrap_or(u8::MAX),
        word: word(history.last_reply.as_ref().map(|word| word.code.as_str())),
        sent: history.sent,
        redelivered: history.redelivered,
        replays: u8::try_from(history.replays).unwrap_or(u8::MAX),
        returns: u8::try_from(history.returns).unwrap_or(u8::MAX),
    }
}

fn came(outcome: &Outcome) -> Came {
    let of = |word_: &Option<LastReply>| word(word_.as_ref().map(|word| word.code.as_str()));
    match outcome {
        Outcome::Captured(_) => Came::Captured,
        Outcome::Failed(verdict) => Came::Failed(verdict.class, word(verdict.code.as_deref())),
        Outcome::FailedWhileLeased(verdict) => {
            Came::Closed(verdict.class, word(verdict.code.as_deref()))
        }
        Outcome::InDoubt(Doubt { kind: DoubtKind::Unproven, last_reply, .. }) => {
            Came::Unproven(of(last_reply))
        }
        Outcome::InDoubt(doubt) => Came::InDoubt(of(&doubt.last_reply)),
        Outcome::Throttled(throttle) => Came::Throttled(of(&throttle.last_reply)),
        Outcome::NotSent(_) => Came::NotSent,
        Outcome::Unauthenticated(_) => Came::Account,
        Outcome::Expired { inquired } => Came::Expired { inquired: *inquired },
        Outcome::Poison => Came::Poison,
        Outcome::Deferred(_) | Outcome::Malformed { .. } | Outcome::HandBack => Came::Deferred,
    }
}

pub(crate) fn outcome(came: Came) -> Outcome {
    let verdict = |class, word: Word, signed| FailureVerdict {
        class,
        code: spell(word).map(|word| word.code),
        message: None,
        signed,
    };
    match came {
        Came::Captured => Outcome::Captured(Capture::default()),
        Came::Failed(class, word) => Outcome::Failed(verdict(class, word, true)),
        Came::Closed(class, word) => Outcome::FailedWhileLeased(verdict(class, word, true)),
        Came::InDoubt(word) => Outcome::InDoubt(Doubt {
            reason: String::new(),
            kind: DoubtKind::Unknown,
            last_reply: spell(word),
        }),
        Came::Unproven(word) => Outcome::InDoubt(Doubt {
            reason: String::new(),
            kind: DoubtKind::Unproven,
            last_reply: spell(word),
        }),
        Came::Throttled(word) => {
            Outcome::Throttled(Throttle { retry_after: None, last_reply: spell(word) })
        }
        Came::NotSent => Outcome::NotSent(String::new()),
        Came::Account => Outcome::Unauthenticated(verdict(Class::Access, DENIED, false)),
        Came::Deferred => Outcome::Deferred(Deferral::LeaseHeld),
        Came::Expired { inquired } => Outcome::Expired { inquired },
        Came::Poison => Outcome::Poison,
    }
}

/// Converts `src/domain/capture/outcome.rs::FinalOutcome`, without its texts.
fn final_outcome(final_outcome: FinalOutcome) -> redis::FinalOutcome {
    let of = |verdict: &FailureVerdict| word(verdict.code.as_deref());
    match final_outcome {
        FinalOutcome::Captured(_) => redis::FinalOutcome::Captured,
        FinalOutcome::Failed(verdict) => redis::FinalOutcome::Failed(of(&verdict)),
        FinalOutcome::FailedWhileLeased(verdict) => redis::FinalOutcome::Closed(of(&verdict)),
    }
}

fn on_record(final_outcome: redis::FinalOutcome) -> FinalOutcome {
    let verdict = |word: Word| FailureVerdict {
        class: Codes::default().class_of(WORDS[usize::from(word)].0),
        code: spell(word).map(|word| word.code),
        message: None,
        signed: true,
    };
    match final_outcome {
        redis::FinalOutcome::Captured => FinalOutcome::Captured(Capture::default()),
        redis::FinalOutcome::Failed(word) => FinalOutcome::Failed(verdict(word)),
        redis::FinalOutcome::Closed(word) => FinalOutcome::FailedWhileLeased(verdict(word)),
    }
}

impl Came {
    /// Calls the program's `src/domain/capture/outcome.rs::Outcome::is_final`.
    pub(crate) fn is_final(self) -> bool {
        outcome(self).is_final()
    }

    /// Calls the program's `src/domain/capture/outcome.rs::Outcome::release`.
    pub(crate) fn release(self) -> Mode {
        match outcome(self).release() {
            Release::Final(of) => Mode::Final(final_outcome(of)),
            Release::FailedWhileLeased(of) => Mode::Close(final_outcome(of)),
            Release::Replace(of) => Mode::Replace(final_outcome(of)),
            Release::EndBlock => Mode::End,
            Release::KeepBlock { refused } => {
                Mode::Keep { refused: refused.map(|code| word(Some(&code))) }
            }
            Release::RollBack => Mode::Back,
            Release::RollBackAlways => Mode::Forget,
        }
    }

    /// The outcome of an attempt that finds a recorded outcome:
    /// `src/domain/capture/outcome.rs::Outcome::from`.
    pub(crate) fn of_known(final_outcome: redis::FinalOutcome) -> Self {
        came(&on_record(final_outcome).into())
    }

    /// Calls `src/domain/capture/outcome.rs::Outcome::settled_by`, with the record as
    /// `Leases::released` converts it.
    pub(crate) fn settled_by(self, found: Option<Record>, amount: u8, kept: bool) -> Option<Self> {
        let recorded = found.map(|(of, final_outcome)| match final_outcome {
            final_outcome if of == amount => Recorded::Same(on_record(final_outcome)),
            redis::FinalOutcome::Captured => Recorded::CapturedOther,
            _ => Recorded::ReplacedOther,
        });
        outcome(self).settled_by(recorded, kept).as_ref().map(came)
    }
}

impl Known {
    fn with<T>(self, work: impl FnOnce(&Before<'_>) -> T) -> T {
        let history = history(self.carried, false);
        // As `src/lease/record.rs::read_marker` does.
        let marker = self.marker.map(|tells| SentMarker {
            denied_at_replay: tells.denied_at.map(u32::from),
            refused: tells
                .refused
                .filter(|(amount, _)| *amount == self.amount)
                .and_then(|(_, word)| spell(word))
                .map(|word| word.code),
        });
        let past_expiry = self.past_expiry;
        let marker = marker.as_ref();
        work(&Before { history: &history, marker, past_expiry, forward_error: None })
    }

    /// Calls the program's `src/domain/capture/judge.rs::Before::sent`.
    pub(crate) fn sent(self) -> bool {
        self.with(|before| before.sent())
    }

    /// Calls the program's `src/domain/capture/judge.rs::first_call`.
    pub(crate) fn first_call(self) -> NextCall {
        thread_local!(static CALLS: RefCell<HashMap<Known, NextCall>> = RefCell::default());
        remembered(&CALLS, self, |known| known.with(|before| first_call(before, &Codes::default())))
    }

    /// Calls the program's `src/domain/capture/judge.rs::judge_capture`.
    pub(crate) fn judge_capture(self, said: Said) -> Came {
        thread_local!(static JUDGED: RefCell<HashMap<(Known, Said), Came>> = RefCell::default());
        remembered(&JUDGED, (self, said), |(known, said)| {
            let reply = capture_reply(said);
            known.with(|before| came(&judge_capture(reply, &job(), before, &Codes::default())))
        })
    }

    /// Calls `src/domain/capture/judge.rs::judge_inquiry`. `None`: the same attempt posts.
    pub(crate) fn judge_inquiry(self, inquiry: Inquiry) -> Option<Came> {
        type Memory = HashMap<(Known, Inquiry), Option<Came>>;
        thread_local!(static JUDGED: RefCell<Memory> = RefCell::default());
        remembered(&JUDGED, (self, inquiry), |(known, inquiry)| {
            let reply = inquiry_reply(inquiry);
            known.with(|before| match judge_inquiry(reply, &job(), before, &Codes::default()) {
                Inquired::Over(outcome) => Some(came(&outcome)),
                Inquired::Post => None,
            })
        })
    }
}
