//! The bridge to the pure functions of the program, which the model calls instead of mirroring: histories, replies and
//! outcomes in the few shapes that the model needs, and what the program makes of them, remembered.

use std::{cell::RefCell, collections::HashMap, hash::Hash, thread::LocalKey, time::Duration};

use capture_worker::domain::{
    class::{Class, Codes},
    history::{History, LastWord},
    job::Job,
    judge::{Before, Call, Inquired, first_call, judge_capture, judge_inquiry},
    money::Money,
    outcome::{
        Attempt, Capture, Deferral, Doubt, DoubtKind, Fate, Outcome, Release, Sent, Throttle,
        Verdict,
    },
    reply::{
        Answer, CaptureBody, GatewayResult, InquiryBody, NoAnswer, Reply, Signature, Status,
        Transaction,
    },
    settle::{Policy, ResultStatus, Settlement, settle},
};
use time::OffsetDateTime;

use crate::redis::{self, Mode};

const NOW_MS: i64 = 1_800_000_000_000;
const MAX_AGE_MS: i64 = 3_600_000;
const DAY_MS: i64 = 86_400_000;

/// A word of the gateway: an index into [`WORDS`].
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

const WORDS: [(&str, &str); 10] = [
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

fn spell(word: Word) -> Option<LastWord> {
    let (code, status) = WORDS[usize::from(word)];
    (word != NO_WORD).then(|| LastWord::new(code, status))
}

fn word(code: Option<&str>) -> Word {
    let place = WORDS.iter().position(|(known, _)| Some(*known) == code);
    let place = place.and_then(|place| u8::try_from(place).ok()).unwrap_or(NO_WORD);
    // The two words for "in process" mean the same to `first_call`.
    if place == PAYMENT_IN_PROCESS { IN_PROCESS } else { place }
}

/// What a message carries: the parts of `src/domain/history.rs::History` that decide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Carried {
    pub(crate) attempts: u8,
    pub(crate) word: Word,
    pub(crate) sent: bool,
    pub(crate) redelivered: bool,
    pub(crate) replays: u8,
    pub(crate) returns: u8,
}

/// What is known when an attempt begins: `src/domain/judge.rs::Before`, and whether the job is past `retry.max_age`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Known {
    pub(crate) carried: Carried,
    pub(crate) marked: bool,
    pub(crate) past_expiry: bool,
}

/// What an attempt came to: `src/domain/outcome.rs::Outcome` without its texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Came {
    Captured,
    Failed(Class, Word),
    Closed(Class, Word),
    InDoubt(Word),
    Throttled(Word),
    NotSent,
    Account,
    Deferred,
    Expired { inquired: bool },
    Poison,
}

/// What the gateway says to a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Said {
    /// Signed `S`.
    Captured,
    /// Signed `F` with this word.
    Failed(Word),
    /// Signed `U` with this word.
    Unsure(Word),
    /// Unsigned `ACCESS_DENIED`.
    Unsigned,
    /// Nothing: a time-out, or the connection was lost.
    Nothing,
    /// The connection could not be made.
    NotSent,
}

/// What the gateway shows of an id when it is inquired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Shown {
    Success,
    OtherAmount,
    Fail(Word),
    Processing,
    NoSuchCapture,
    /// The inquiry itself was not answered.
    Nothing,
}

/// What is published before the ack: `src/domain/settle.rs::Settlement`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Todo {
    Captured,
    Retry(Carried),
    Dead { class: Class, signed: bool, carried: Carried, in_doubt: bool },
}

/// `src/domain/outcome.rs::Sent`, with `Hash`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Left {
    No,
    Unknown,
    Yes,
}

fn remembered<K: Copy + Eq + Hash, V: Copy>(
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

fn job() -> Job {
    let body = r#"{"captureRequestId":"c","paymentId":"p","captureAmount":{"currency":"HKD","value":"100"}}"#;
    Job::parse(body.as_bytes()).expect("a job")
}

fn history(carried: Carried, is_old: bool) -> History {
    History {
        attempts: u32::from(carried.attempts),
        deferrals: 0,
        first_seen_ms: if is_old { NOW_MS - DAY_MS } else { NOW_MS },
        last_word: spell(carried.word),
        sent: carried.sent,
        redelivered: carried.redelivered,
        replays: u32::from(carried.replays),
        returns: u32::from(carried.returns),
        parent: None,
        origin: None,
    }
}

/// Deferrals are not kept: they decide only how long a job waits.
fn carried(history: &History) -> Carried {
    Carried {
        attempts: u8::try_from(history.attempts).unwrap_or(u8::MAX),
        word: word(history.last_word.as_ref().map(|word| word.code.as_str())),
        sent: history.sent,
        redelivered: history.redelivered,
        replays: u8::try_from(history.replays).unwrap_or(u8::MAX),
        returns: u8::try_from(history.returns).unwrap_or(u8::MAX),
    }
}

fn came(outcome: &Outcome) -> Came {
    let of = |word_: &Option<LastWord>| word(word_.as_ref().map(|word| word.code.as_str()));
    match outcome {
        Outcome::Captured(_) => Came::Captured,
        Outcome::Failed(verdict) => Came::Failed(verdict.class, word(verdict.code.as_deref())),
        Outcome::Closed(verdict) => Came::Closed(verdict.class, word(verdict.code.as_deref())),
        Outcome::InDoubt(doubt) => Came::InDoubt(of(&doubt.word)),
        Outcome::Throttled(throttle) => Came::Throttled(of(&throttle.word)),
        Outcome::NotSent(_) => Came::NotSent,
        Outcome::Account(_) => Came::Account,
        Outcome::Expired { inquired } => Came::Expired { inquired: *inquired },
        Outcome::Poison => Came::Poison,
        Outcome::Deferred(_) | Outcome::Malformed(_) | Outcome::HandBack => Came::Deferred,
    }
}

fn outcome(came: Came) -> Outcome {
    let verdict = |class, word: Word, signed| Verdict {
        class,
        code: spell(word).map(|word| word.code),
        message: None,
        signed,
    };
    match came {
        Came::Captured => Outcome::Captured(Capture::default()),
        Came::Failed(class, word) => Outcome::Failed(verdict(class, word, true)),
        Came::Closed(class, word) => Outcome::Closed(verdict(class, word, true)),
        Came::InDoubt(word) => Outcome::InDoubt(Doubt {
            reason: String::new(),
            kind: DoubtKind::Unknown,
            word: spell(word),
        }),
        Came::Throttled(word) => {
            Outcome::Throttled(Throttle { retry_after: None, word: spell(word) })
        }
        Came::NotSent => Outcome::NotSent(String::new()),
        Came::Account => Outcome::Account(verdict(Class::Access, DENIED, false)),
        Came::Deferred => Outcome::Deferred(Deferral::LeaseHeld),
        Came::Expired { inquired } => Outcome::Expired { inquired },
        Came::Poison => Outcome::Poison,
    }
}

impl Came {
    /// `src/domain/outcome.rs::Outcome::is_final`, itself.
    pub(crate) fn is_final(self) -> bool {
        outcome(self).is_final()
    }

    /// `src/domain/outcome.rs::Outcome::release`, itself.
    pub(crate) fn release(self) -> Mode {
        match outcome(self).release() {
            Release::Final(Fate::Captured(_)) => Mode::Final(redis::Fate::Captured),
            Release::Final(Fate::Failed(verdict)) => {
                Mode::Final(redis::Fate::Failed(word(verdict.code.as_deref())))
            }
            Release::Close(Fate::Captured(_)) => Mode::Close(redis::Fate::Captured),
            Release::Close(Fate::Failed(verdict)) => {
                Mode::Close(redis::Fate::Failed(word(verdict.code.as_deref())))
            }
            Release::EndHold => Mode::End,
            Release::KeepHold => Mode::Keep,
            Release::TakeBack => Mode::Back,
            Release::Forget => Mode::Forget,
        }
    }

    /// What a known outcome is: `src/domain/outcome.rs::Outcome::from`.
    pub(crate) fn of_known(fate: redis::Fate) -> Self {
        match fate {
            redis::Fate::Captured => Self::Captured,
            redis::Fate::Failed(word) => {
                Self::Failed(Codes::default().class_of(WORDS[usize::from(word)].0), word)
            }
        }
    }
}

impl Known {
    fn with<T>(self, work: impl FnOnce(&Before<'_>) -> T) -> T {
        let history = history(self.carried, false);
        work(&Before { history: &history, marked: self.marked, past_expiry: self.past_expiry })
    }

    /// `src/domain/judge.rs::Before::sent`, itself.
    pub(crate) fn sent(self) -> bool {
        self.with(|before| before.sent())
    }

    /// `src/domain/judge.rs::first_call`, itself.
    pub(crate) fn first_call(self) -> Call {
        thread_local!(static CALLS: RefCell<HashMap<Known, Call>> = RefCell::default());
        remembered(&CALLS, self, |known| known.with(|before| first_call(before, &Codes::default())))
    }

    /// `src/domain/judge.rs::judge_capture`, itself.
    pub(crate) fn judge_capture(self, said: Said) -> Came {
        thread_local!(static JUDGED: RefCell<HashMap<(Known, Said), Came>> = RefCell::default());
        remembered(&JUDGED, (self, said), |(known, said)| {
            let reply = capture_reply(said);
            known.with(|before| came(&judge_capture(reply, &job(), before, &Codes::default())))
        })
    }

    /// `src/domain/judge.rs::judge_inquiry`, itself. `None`: post, in the same attempt.
    pub(crate) fn judge_inquiry(self, shown: Shown) -> Option<Came> {
        thread_local!(static JUDGED: RefCell<HashMap<(Known, Shown), Option<Came>>> = RefCell::default());
        remembered(&JUDGED, (self, shown), |(known, shown)| {
            let reply = inquiry_reply(shown);
            known.with(|before| match judge_inquiry(reply, &job(), before, &Codes::default()) {
                Inquired::Over(outcome) => Some(came(&outcome)),
                Inquired::Post => None,
            })
        })
    }
}

fn answer<B>(signature: Signature, word: Word, status: &str, body: B) -> Reply<B> {
    let code = if word == NO_WORD { "SUCCESS" } else { WORDS[usize::from(word)].0 };
    let result = GatewayResult { status: Status::of(status), code: code.into(), message: None };
    Reply::Answered(Answer { signature, result, retry_after: None, body })
}

fn capture_reply(said: Said) -> Reply<CaptureBody> {
    let about = CaptureBody { capture_request_id: Some("c".into()), ..CaptureBody::default() };
    match said {
        Said::Captured => answer(Signature::Good, NO_WORD, "S", about),
        Said::Failed(word) => answer(Signature::Good, word, "F", about),
        Said::Unsure(word) => answer(Signature::Good, word, "U", about),
        Said::Unsigned => answer(Signature::Missing, DENIED, "F", about),
        Said::Nothing => Reply::NoAnswer(NoAnswer::TimedOut(Duration::from_secs(1))),
        Said::NotSent => Reply::NotSent(String::new()),
    }
}

fn inquiry_reply(shown: Shown) -> Reply<InquiryBody> {
    let item = |status: &str, word: Word, value: &str| {
        let result = GatewayResult {
            status: Status::of("F"),
            code: WORDS[usize::from(word)].0.into(),
            message: None,
        };
        vec![Transaction {
            kind: Some("CAPTURE".into()),
            request_id: Some("c".into()),
            status: Some(status.into()),
            result: Some(result),
            amount: Money::from_smallest("HKD", value).ok().map(Ok),
            ..Transaction::default()
        }]
    };
    let transactions = match shown {
        Shown::Success => item("SUCCESS", NO_WORD, "100"),
        Shown::OtherAmount => item("SUCCESS", NO_WORD, "200"),
        Shown::Fail(word) => item("FAIL", word, "100"),
        Shown::Processing => item("PROCESSING", NO_WORD, "100"),
        Shown::NoSuchCapture => Vec::new(),
        Shown::Nothing => {
            return Reply::NoAnswer(NoAnswer::TimedOut(Duration::from_secs(1)));
        }
    };
    let body = InquiryBody {
        payment_id: Some("p".into()),
        transactions: Some(transactions),
        ..InquiryBody::default()
    };
    answer(Signature::Good, NO_WORD, "S", body)
}

/// What is settled: everything that `src/domain/settle.rs::settle` looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ended {
    pub(crate) came: Came,
    pub(crate) sent: Left,
    pub(crate) remembered: bool,
    pub(crate) carried: Carried,
    pub(crate) is_old: bool,
    pub(crate) delays: u8,
}

impl Ended {
    /// `src/domain/settle.rs::settle`, itself.
    pub(crate) fn settle(self) -> Todo {
        thread_local!(static SETTLED: RefCell<HashMap<Ended, Todo>> = RefCell::default());
        remembered(&SETTLED, self, |ended| {
            let attempt = Attempt {
                subject: job().subject(),
                outcome: outcome(ended.came),
                sent: match ended.sent {
                    Left::No => Sent::No,
                    Left::Unknown => Sent::Unknown,
                    Left::Yes => Sent::Yes,
                },
                remembered: ended.remembered,
                outage: false,
            };
            let policy = Policy {
                schedule: vec![Duration::from_secs(5); usize::from(ended.delays)],
                defer_schedule: vec![Duration::from_secs(1)],
                max_age: Duration::from_millis(u64::try_from(MAX_AGE_MS).unwrap_or(0)),
            };
            let now = OffsetDateTime::from_unix_timestamp(NOW_MS / 1000).expect("a time");
            let history = history(ended.carried, ended.is_old);
            match settle(&attempt, &history, &policy, now) {
                Settlement::Captured(_) => Todo::Captured,
                Settlement::Retry { carry, .. } => Todo::Retry(carried(&carry)),
                Settlement::Dead { letter, carry, result } => Todo::Dead {
                    class: letter.class,
                    signed: letter.signed,
                    carried: carried(&carry),
                    in_doubt: result.is_none_or(|told| told.status == ResultStatus::InDoubt),
                },
                Settlement::HandBack => Todo::Retry(ended.carried),
            }
        })
    }
}
