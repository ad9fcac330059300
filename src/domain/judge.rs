//! Which call an attempt makes, and what a reply proves. The rules of money: read them beside the gateway's page.

use std::time::Duration;

use super::{
    class::{
        CAPTURE_IN_PROCESS, Class, Codes, PAYMENT_IN_PROCESS, REQUEST_TRAFFIC_EXCEED_LIMIT, SUCCESS,
    },
    history::{History, LastWord},
    job::Job,
    outcome::{Capture, Doubt, DoubtKind, Outcome, Throttle, Verdict},
    reply::{
        Answer, CaptureBody, CaptureReply, GatewayResult, InquiryBody, InquiryReply, NoAnswer,
        Reply, Signature, Status, Transaction,
    },
};

const TOO_MANY_REQUESTS: u16 = 429;

/// What is known of an id when its attempt begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before<'a> {
    /// From headers and broker.
    pub history: &'a History,
    /// Whether the lease found a mark of an earlier acquisition.
    pub marked: bool,
    /// Whether the job's time is over.
    pub past_expiry: bool,
}

impl Before<'_> {
    /// Whether a capture request for this id may have left.
    #[must_use]
    pub const fn sent(&self) -> bool {
        self.marked || self.history.sent || self.history.redelivered
    }

    /// The signed `F` that an earlier attempt got on a sent id, and that is not proven to be about the capture.
    fn unproven_failure(&self, codes: &Codes) -> Option<&LastWord> {
        self.history.last_word.as_ref().filter(|word| {
            self.sent() && word.status == "F" && codes.class_of(&word.code).may_precede_the_id()
        })
    }
}

/// The first call of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Post the same id.
    Post,
    /// Ask first what became of it.
    Inquire,
    /// Neither: its time was over before it was sent.
    Expired,
}

/// Which call an attempt begins with.
#[must_use]
pub fn first_call(before: &Before<'_>, codes: &Codes) -> Call {
    let history = before.history;
    let in_process = history
        .last_word
        .as_ref()
        .is_some_and(|word| [CAPTURE_IN_PROCESS, PAYMENT_IN_PROCESS].contains(&word.code.as_str()));
    let replays_a_sent_id = history.replays > 0 && history.attempts == 0 && before.sent();
    let only_redelivered = before.sent() && !before.marked && !history.sent;
    if before.past_expiry && !before.sent() {
        Call::Expired
    } else if in_process
        || replays_a_sent_id
        || before.past_expiry && only_redelivered
        || before.unproven_failure(codes).is_some()
    {
        Call::Inquire
    } else {
        Call::Post
    }
}

/// What an inquiry came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inquired {
    /// The attempt is over.
    Over(Outcome),
    /// Evidence that there is no such capture, and the job may go on: post, in the same attempt.
    Post,
}

/// What a reply says of the gateway and the account, rather than of one capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// A normal answer, whatever it says of the capture.
    Well,
    /// No answer, or one to nobody: it will be the same for the next job.
    Ill(String),
    /// Too many calls.
    Throttled(Option<Duration>),
}

/// What a reply says of the gateway and the account: class `access`, not sent, no answer that counts; and too many calls. A
/// bad signature is one of them: a wrong public key would spend the attempts of every job.
pub fn health<B>(reply: &Reply<B>, codes: &Codes) -> Health {
    let answer = match reply {
        Reply::Answered(answer) => answer,
        Reply::NotSent(reason) => return Health::Ill(reason.clone()),
        Reply::NoAnswer(NoAnswer::HttpStatus { status: TOO_MANY_REQUESTS, retry_after }) => {
            return Health::Throttled(*retry_after);
        }
        Reply::NoAnswer(reason) => return Health::Ill(reason.to_string()),
    };
    let result = &answer.result;
    if answer.signature == Signature::Bad {
        Health::Ill("a bad signature".into())
    } else if result.code == REQUEST_TRAFFIC_EXCEED_LIMIT && result.status != Status::S {
        Health::Throttled(answer.retry_after)
    } else if result.status == Status::F && codes.class_of(&result.code) == Class::Access {
        Health::Ill(describe(result))
    } else {
        Health::Well
    }
}

/// What the reply to a capture proves.
#[must_use]
pub fn judge_capture(
    reply: CaptureReply,
    job: &Job,
    before: &Before<'_>,
    codes: &Codes,
) -> Outcome {
    let answer = match reply {
        Reply::Answered(answer) => answer,
        Reply::NotSent(reason) => return Outcome::NotSent(reason),
        Reply::NoAnswer(reason) => return no_answer(&reason),
    };
    if let Some(outcome) = no_verdict(&answer, codes) {
        return outcome;
    }
    match answer.result.status {
        Status::S => captured(answer, job),
        Status::F => failed(answer.result, before, codes),
        Status::U => in_doubt(DoubtKind::Unknown, describe(&answer.result), word(&answer.result)),
        Status::Other(_) => in_doubt(DoubtKind::Untrusted, describe(&answer.result), None),
    }
}

/// What the reply to an inquiry proves about the job's capture.
#[must_use]
pub fn judge_inquiry(
    reply: InquiryReply,
    job: &Job,
    before: &Before<'_>,
    codes: &Codes,
) -> Inquired {
    let answer = match reply {
        Reply::Answered(answer) => answer,
        Reply::NotSent(reason) => return Inquired::Over(Outcome::NotSent(reason)),
        Reply::NoAnswer(reason) => return Inquired::Over(without_word(no_answer(&reason))),
    };
    if let Some(outcome) = no_verdict(&answer, codes) {
        return Inquired::Over(without_word(outcome));
    }
    if answer.result.status != Status::S {
        return Inquired::Over(no_evidence(&format!(
            "the inquiry came to {}",
            describe(&answer.result)
        )));
    }
    match evidence(&answer.body, job, codes) {
        Evidence::Proves(outcome) => Inquired::Over(outcome),
        Evidence::NoSuchCapture => after_no_such_capture(before, codes),
    }
}

/// There is no such capture: then the unproven failure stands; or the job's time is over; or it is posted.
fn after_no_such_capture(before: &Before<'_>, codes: &Codes) -> Inquired {
    if let Some(word) = before.unproven_failure(codes) {
        Inquired::Over(Outcome::Closed(Verdict {
            class: codes.class_of(&word.code),
            code: Some(word.code.clone()),
            message: Some("refused before, and the gateway knows of no such capture".into()),
            signed: true,
        }))
    } else if before.past_expiry {
        Inquired::Over(Outcome::Expired { inquired: true })
    } else {
        Inquired::Post
    }
}

/// Whatever is not the gateway's signed word, and too many calls, which no signature makes a verdict.
fn no_verdict<B>(answer: &Answer<B>, codes: &Codes) -> Option<Outcome> {
    let result = &answer.result;
    if answer.signature == Signature::Bad {
        let reason = "the answer's signature is bad, so it is not the gateway's word".to_owned();
        return Some(in_doubt(DoubtKind::Untrusted, reason, None));
    }
    if result.code == REQUEST_TRAFFIC_EXCEED_LIMIT && result.status != Status::S {
        let word = Some(LastWord::new(REQUEST_TRAFFIC_EXCEED_LIMIT, "U"));
        return Some(Outcome::Throttled(Throttle { retry_after: answer.retry_after, word }));
    }
    if answer.signature == Signature::Good {
        return None;
    }
    Some(match result.status {
        Status::F if codes.class_of(&result.code) == Class::Access => Outcome::Account(Verdict {
            class: Class::Access,
            code: Some(result.code.clone()),
            message: result.message.clone(),
            signed: false,
        }),
        Status::U => in_doubt(DoubtKind::Unknown, describe(result), word(result)),
        _ => in_doubt(DoubtKind::Untrusted, format!("unsigned: {}", describe(result)), None),
    })
}

fn captured(answer: Answer<CaptureBody>, job: &Job) -> Outcome {
    let Answer { result, body, .. } = answer;
    if let Some(contradiction) = contradiction(&body, job) {
        return in_doubt(DoubtKind::Contradiction, contradiction, None);
    }
    Outcome::Captured(Capture {
        code: result.code,
        message: result.message,
        capture_id: body.capture_id,
        capture_time: body.capture_time,
        acquirer_reference_no: body.acquirer_reference_no,
    })
}

/// Why a signed success is not about this job. The id must be there; payment and amount must not be others.
fn contradiction(body: &CaptureBody, job: &Job) -> Option<String> {
    let about = |what| Some(format!("a signed success about another {what}"));
    match &body.capture_request_id {
        Some(id) if *id == job.capture_request_id => {}
        Some(_) => return about("captureRequestId"),
        None => return Some("a signed success that names no captureRequestId".into()),
    }
    if body.payment_id.as_ref().is_some_and(|payment_id| *payment_id != job.payment_id) {
        return about("paymentId");
    }
    match &body.amount {
        None => None,
        Some(Ok(amount)) if *amount == job.amount => None,
        Some(Ok(amount)) => Some(format!("a signed success about another amount: {amount}")),
        Some(Err(error)) => Some(format!("a signed success with no readable amount: {error}")),
    }
}

/// A signed `F`. The gateway checks access and form before it looks at the id, so on a sent id such an `F` does not
/// prove that an earlier request failed: the next attempt inquires. On another it stands as long as no copy could be sent.
fn failed(result: GatewayResult, before: &Before<'_>, codes: &Codes) -> Outcome {
    let class = codes.class_of(&result.code);
    if before.sent() && class.may_precede_the_id() {
        let reason = format!("{}, which need not be about the capture", describe(&result));
        return in_doubt(DoubtKind::Unproven, reason, word(&result));
    }
    let verdict = Verdict { class, code: Some(result.code), message: result.message, signed: true };
    if class.may_precede_the_id() { Outcome::Closed(verdict) } else { Outcome::Failed(verdict) }
}

enum Evidence {
    Proves(Outcome),
    NoSuchCapture,
}

/// What the transactions of a payment say of one capture: SUCCESS beats PROCESSING beats FAIL, and what can't be read
/// is no evidence.
fn evidence(body: &InquiryBody, job: &Job, codes: &Codes) -> Evidence {
    if body.payment_id.as_ref().is_some_and(|payment_id| *payment_id != job.payment_id) {
        return Evidence::Proves(no_evidence("the inquiry's answer is about another paymentId"));
    }
    let Some(transactions) = &body.transactions else {
        return Evidence::Proves(no_evidence("the inquiry's answer has no readable transactions"));
    };
    let ours: Vec<_> = transactions
        .iter()
        .filter(|item| {
            item.kind.as_deref() == Some("CAPTURE")
                && item.request_id.as_deref() == Some(job.capture_request_id.as_str())
        })
        .collect();
    let with = |statuses: &[&str]| -> Vec<&Transaction> {
        let is = |item: &&&Transaction| statuses.contains(&item.status.as_deref().unwrap_or(""));
        ours.iter().filter(is).copied().collect()
    };
    let succeeded = with(&["SUCCESS"]);
    let ended = with(&["FAIL", "CANCELLED"]);
    let in_process = with(&["PROCESSING", "PENDING"]);
    if !succeeded.is_empty() {
        Evidence::Proves(inquired_success(&succeeded, job))
    } else if !in_process.is_empty() {
        let word = Some(LastWord::new(PAYMENT_IN_PROCESS, "U"));
        Evidence::Proves(in_doubt(DoubtKind::Unknown, "the capture is in process".into(), word))
    } else if ended.len() < ours.len() {
        Evidence::Proves(no_evidence("the capture's transactionStatus is not known"))
    } else if let Some(item) = ended.first() {
        Evidence::Proves(Outcome::Failed(inquired_failure(item, codes)))
    } else {
        Evidence::NoSuchCapture
    }
}

fn inquired_success(succeeded: &[&Transaction], job: &Job) -> Outcome {
    let amounts = || succeeded.iter().map(|item| &item.amount);
    if let Some(item) = succeeded.iter().find(|item| item.amount == Some(Ok(job.amount))) {
        return Outcome::Captured(Capture {
            code: SUCCESS.into(),
            message: item.result.as_ref().and_then(|result| result.message.clone()),
            capture_id: item.id.clone(),
            capture_time: item.time.clone(),
            acquirer_reference_no: None,
        });
    }
    if amounts().any(|amount| !matches!(amount, Some(Ok(_)))) {
        return no_evidence("the capture succeeded, but its amount can't be read");
    }
    let amount = amounts().flatten().flatten().next();
    Outcome::Failed(Verdict {
        class: Class::Conflict,
        code: None,
        message: amount.map(|amount| format!("this id captured another amount: {amount}")),
        signed: true,
    })
}

fn inquired_failure(item: &Transaction, codes: &Codes) -> Verdict {
    let code = item.result.as_ref().map(|result| result.code.clone()).filter(|c| !c.is_empty());
    let class = match (item.status.as_deref(), &code) {
        (Some("CANCELLED"), _) => Class::Order,
        (_, Some(code)) => codes.class_of(code),
        (_, None) => Class::Provider,
    };
    let message = item.result.as_ref().and_then(|result| result.message.clone());
    Verdict { class, code, message, signed: true }
}

fn no_answer(reason: &NoAnswer) -> Outcome {
    match reason {
        NoAnswer::HttpStatus { status: TOO_MANY_REQUESTS, retry_after } => {
            Outcome::Throttled(Throttle { retry_after: *retry_after, word: None })
        }
        other => in_doubt(DoubtKind::NoAnswer, other.to_string(), None),
    }
}

/// An inquiry that tells nothing leaves the last word as it was.
fn without_word(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::InDoubt(doubt) => Outcome::InDoubt(Doubt {
            kind: DoubtKind::NoEvidence,
            reason: format!("the inquiry told nothing: {}", doubt.reason),
            word: None,
        }),
        Outcome::Throttled(throttle) => Outcome::Throttled(Throttle { word: None, ..throttle }),
        other => other,
    }
}

fn no_evidence(reason: &str) -> Outcome {
    in_doubt(DoubtKind::NoEvidence, reason.to_owned(), None)
}

fn in_doubt(kind: DoubtKind, reason: String, word: Option<LastWord>) -> Outcome {
    Outcome::InDoubt(Doubt { reason, kind, word })
}

fn word(result: &GatewayResult) -> Option<LastWord> {
    Some(LastWord::new(&result.code, status_text(&result.status)))
}

fn status_text(status: &Status) -> &str {
    match status {
        Status::S => "S",
        Status::F => "F",
        Status::U => "U",
        Status::Other(text) => text,
    }
}

fn describe(result: &GatewayResult) -> String {
    let status = super::money::shorten(status_text(&result.status));
    format!("{status} {}", super::money::shorten(&result.code))
}
