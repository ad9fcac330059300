//! Which call an attempt makes first, and what a reply proves. These are the rules about money:
//! read them beside the gateway's documentation.

use super::{
    class::{CAPTURE_IN_PROCESS, Class, Codes, PAYMENT_IN_PROCESS, REQUEST_TRAFFIC_EXCEED_LIMIT},
    outcome::{Capture, Doubt, DoubtKind, FailureVerdict, Outcome, Throttle},
    reply::{
        Answer, CaptureBody, CaptureReply, GatewayResult, InquiryBody, InquiryReply, NoAnswer,
        Reply, Signature, Status,
    },
    transactions::{TransactionEvidence, judge_transactions},
};
use crate::domain::job::{
    Job, JobError,
    history::{History, LastReply},
};

pub(super) const TOO_MANY_REQUESTS: u16 = 429;
/// Why a reply of [`Signature::Stale`] proves no failure.
const STALE: &str = "the reply is signed, but its response-time can't be read or is more than \
    5 minutes before the request: check that both clocks are right (NTP)";

/// What is known about an id when its attempt begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before<'a> {
    /// From the job's headers and from the broker.
    pub history: &'a History,
    /// The sent marker that an earlier lease acquisition left in Redis, if there is one.
    pub marker: Option<&'a SentMarker>,
    /// Whether `expiresAt` has passed.
    pub past_expiry: bool,
    /// The rule that the forwarded fields break: such a job must not be posted.
    pub forward_error: Option<&'a JobError>,
}

/// What Redis keeps about an id whose capture request may have been sent. Any publisher can write
/// headers; the sent marker holds what the gateway has signed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SentMarker {
    /// How many replays the job had when an inquiry last showed that there is no such capture.
    pub denied_at_replay: Option<u32>,
    /// The code of a signed `F` for this amount that might not be about the capture.
    pub refused: Option<String>,
}

impl Before<'_> {
    /// Whether a capture request for this id may have been sent.
    #[must_use]
    pub const fn sent(&self) -> bool {
        self.marker.is_some() || self.history.sent || self.history.redelivered
    }

    /// The code of the signed `F` that an earlier attempt received for this id, if that `F` is not
    /// proven to be about the capture.
    fn refused(&self) -> Option<&str> {
        self.marker.and_then(|marker| marker.refused.as_deref())
    }

    /// Whether the headers say that the last reply was such an `F`. Headers choose the first call,
    /// but prove nothing.
    fn claims_refusal(&self, codes: &Codes) -> bool {
        self.history
            .last_reply
            .as_ref()
            .is_some_and(|reply| reply.status == "F" && may_be_about_another(&reply.code, codes))
    }

    /// Whether Redis can't show what earlier calls did, so that an inquiry must come first. There
    /// are two cases. Redis has no sent marker, although the headers or the broker say that the id
    /// was sent. Or the job was replayed, and no inquiry since then has shown that it may be
    /// posted: an operator may have replayed another id of the family, and Redis may have lost that
    /// record.
    fn needs_evidence(&self) -> bool {
        let replays = self.history.replays;
        match self.marker {
            None => self.sent() || replays > 0,
            Some(_) if replays == 0 => false,
            Some(marker) => marker.denied_at_replay.is_none_or(|denied_at| denied_at < replays),
        }
    }
}

/// Whether an `F` with this code might not be about the capture of an id that was sent. The gateway
/// gives such an `F` before it looks up the id, or because a repeat differs from an earlier
/// request, which may have captured.
fn may_be_about_another(code: &str, codes: &Codes) -> bool {
    let class = codes.class_of(code);
    class.may_precede_the_id() || class == Class::Conflict
}

/// The call that an attempt makes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextCall {
    /// Post the capture with the same id.
    Post,
    /// Inquire first what happened to the id.
    Inquire,
    /// No call: `expiresAt` passed before anything was sent.
    Expired,
    /// No call: the forwarded fields break the message contract, and nothing was sent.
    Malformed,
}

/// Decides which call an attempt makes first.
#[must_use]
pub fn first_call(before: &Before<'_>, codes: &Codes) -> NextCall {
    let in_process = before.history.last_reply.as_ref().is_some_and(|reply| {
        [CAPTURE_IN_PROCESS, PAYMENT_IN_PROCESS].contains(&reply.code.as_str())
    });
    if before.forward_error.is_some() && !before.sent() {
        return NextCall::Malformed;
    }
    if before.past_expiry && !before.sent() {
        return NextCall::Expired;
    }
    let was_refused = before.refused().is_some() || before.sent() && before.claims_refusal(codes);
    let must_inquire = was_refused || before.needs_evidence() || before.forward_error.is_some();
    if in_process || must_inquire { NextCall::Inquire } else { NextCall::Post }
}

/// The result of an inquiry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inquired {
    /// The attempt is over with this outcome.
    Over(Outcome),
    /// There is evidence that no such capture exists, so the job may be posted in the same attempt.
    Post,
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
    if answer.result.status == Status::S {
        return captured(answer, job);
    }
    if let Some(other) = about_another(&answer.body, job) {
        let reason = format!("a signed reply ({}) names another {other}", describe(&answer.result));
        return Doubt::because(DoubtKind::Contradiction, reason, None);
    }
    match answer.result.status {
        Status::F => failed(answer.result, before, codes),
        Status::U => {
            Doubt::because(DoubtKind::Unknown, describe(&answer.result), last_reply(&answer.result))
        }
        _ => Doubt::because(DoubtKind::Untrusted, describe(&answer.result), None),
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
        Reply::NoAnswer(reason) => return Inquired::Over(without_last_reply(no_answer(&reason))),
    };
    if let Some(outcome) = no_verdict(&answer, codes) {
        return Inquired::Over(without_last_reply(outcome));
    }
    if answer.result.status != Status::S {
        return Inquired::Over(Doubt::no_evidence(&format!(
            "the inquiry returned {}",
            describe(&answer.result)
        )));
    }
    let is_stale = answer.signature == Signature::Stale;
    match judge_transactions(&answer.body, job, before.history, codes) {
        TransactionEvidence::Proves(outcome @ Outcome::Captured(_)) => Inquired::Over(outcome),
        _ if is_stale => Inquired::Over(Doubt::no_evidence(STALE)),
        TransactionEvidence::Proves(Outcome::Failed(verdict)) => {
            // The operator already knows the code that the gateway gave for the repeat.
            let of_repeat = before.refused().filter(|code| codes.class_of(code) == verdict.class);
            let code = verdict.code.or_else(|| of_repeat.map(str::to_owned));
            Inquired::Over(Outcome::Failed(FailureVerdict { code, ..verdict }))
        }
        TransactionEvidence::Proves(outcome) => Inquired::Over(outcome),
        TransactionEvidence::NoSuchCapture if is_under_review(&answer.body) => Inquired::Over(
            Doubt::no_evidence("the authorization is under review: captures must wait"),
        ),
        TransactionEvidence::NoSuchCapture => after_no_such_capture(before, codes),
    }
}

/// The gateway asks for no capture while `authReviewStatus` is PROCESSING.
fn is_under_review(body: &InquiryBody) -> bool {
    body.auth_review_status.as_deref() == Some("PROCESSING")
}

/// There is no such capture. Then a signed refusal is final, or the job has expired, or it is
/// posted.
fn after_no_such_capture(before: &Before<'_>, codes: &Codes) -> Inquired {
    if let Some(code) = before.refused() {
        let verdict = FailureVerdict {
            class: codes.class_of(code),
            code: Some(code.to_owned()),
            message: Some("the capture was refused, and an inquiry shows no such capture".into()),
            signed: true,
        };
        Inquired::Over(match verdict.class {
            Class::Conflict => Outcome::Failed(verdict),
            _ => Outcome::FailedWhileLeased(verdict),
        })
    } else if let Some(error) = before.forward_error {
        // A job that may have been sent becomes malformed only after an inquiry has shown no
        // capture.
        Inquired::Over(Outcome::Malformed { error: error.clone(), inquired: true })
    } else if before.past_expiry {
        Inquired::Over(Outcome::Expired { inquired: true })
    } else {
        Inquired::Post
    }
}

/// The outcome of a reply that is no verdict: either it is not proven to come from the gateway, or
/// it says that there were too many calls, which is no verdict even if it is signed.
fn no_verdict<B>(answer: &Answer<B>, codes: &Codes) -> Option<Outcome> {
    let result = &answer.result;
    if answer.signature == Signature::Bad {
        let reason = "the reply has a bad signature, so it is not proven to be the gateway's";
        return Some(Doubt::because(DoubtKind::Untrusted, reason.to_owned(), None));
    }
    // A capture stays captured, so the time of the reply does not matter for a success.
    if answer.signature == Signature::Stale && result.status != Status::S {
        return Some(Doubt::because(DoubtKind::Untrusted, STALE.to_owned(), None));
    }
    if result.code == REQUEST_TRAFFIC_EXCEED_LIMIT && result.status != Status::S {
        let last_reply = Some(LastReply::new(REQUEST_TRAFFIC_EXCEED_LIMIT, "U"));
        return Some(Outcome::Throttled(Throttle { retry_after: answer.retry_after, last_reply }));
    }
    if matches!(answer.signature, Signature::Good | Signature::Stale) {
        return None;
    }
    Some(match result.status {
        Status::F if codes.class_of(&result.code) == Class::Access => {
            Outcome::Unauthenticated(FailureVerdict {
                class: Class::Access,
                code: Some(result.code.clone()),
                message: result.message.clone(),
                signed: false,
            })
        }
        Status::U => Doubt::because(DoubtKind::Unknown, describe(result), last_reply(result)),
        _ => {
            let reason = format!("an unsigned reply: {}", describe(result));
            Doubt::because(DoubtKind::Untrusted, reason, None)
        }
    })
}

fn captured(answer: Answer<CaptureBody>, job: &Job) -> Outcome {
    let Answer { result, body, .. } = answer;
    if let Some(contradiction) = contradiction(&body, job) {
        return Doubt::because(DoubtKind::Contradiction, contradiction, None);
    }
    Outcome::Captured(Capture {
        code: result.code,
        message: result.message,
        capture_id: body.capture_id,
        capture_time: body.capture_time,
        acquirer_reference_no: body.acquirer_reference_no,
        acquirer_info: body.acquirer_info,
    })
}

/// Why a signed success is not about this job. The reply must name the id. It may leave out payment
/// and amount, but they must not differ.
fn contradiction(body: &CaptureBody, job: &Job) -> Option<String> {
    if let Some(other) = about_another(body, job) {
        return Some(format!("a signed success names another {other}"));
    }
    if body.capture_request_id.is_none() {
        return Some("a signed success names no captureRequestId".into());
    }
    match &body.amount {
        None => None,
        Some(Ok(amount)) if *amount == job.amount => None,
        Some(Ok(amount)) => Some(format!("a signed success names another amount: {amount}")),
        Some(Err(error)) => Some(format!("a signed success has no readable amount: {error}")),
    }
}

/// The name of the id field in which a reply differs from the job.
fn about_another(body: &CaptureBody, job: &Job) -> Option<&'static str> {
    let is_other = |named: &Option<String>, ours: &str| named.as_ref().is_some_and(|id| id != ours);
    if is_other(&body.capture_request_id, &job.capture_request_id) {
        Some("captureRequestId")
    } else if is_other(&body.payment_id, &job.payment_id) {
        Some("paymentId")
    } else {
        None
    }
}

/// Judges a signed `F`. The gateway checks credentials and form before it looks up the id, and
/// refuses a changed repeat although the first request may have captured. So for an id that was
/// sent, such an `F` does not prove that an earlier request failed, and the next attempt inquires.
/// For an id that was not sent, it holds as long as no other copy could be sent.
fn failed(result: GatewayResult, before: &Before<'_>, codes: &Codes) -> Outcome {
    let class = codes.class_of(&result.code);
    if before.sent() && may_be_about_another(&result.code, codes) {
        let reason = format!("{}, which might not be about the capture", describe(&result));
        return Doubt::because(DoubtKind::Unproven, reason, last_reply(&result));
    }
    let verdict =
        FailureVerdict { class, code: Some(result.code), message: result.message, signed: true };
    if class.may_precede_the_id() {
        Outcome::FailedWhileLeased(verdict)
    } else {
        Outcome::Failed(verdict)
    }
}

fn no_answer(reason: &NoAnswer) -> Outcome {
    match reason {
        NoAnswer::HttpStatus { status: TOO_MANY_REQUESTS, retry_after } => {
            Outcome::Throttled(Throttle { retry_after: *retry_after, last_reply: None })
        }
        other => Doubt::because(DoubtKind::NoAnswer, other.to_string(), None),
    }
}

/// An inquiry that shows nothing leaves the last reply in the headers as it was.
fn without_last_reply(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::InDoubt(doubt) => Outcome::InDoubt(Doubt {
            kind: DoubtKind::NoEvidence,
            reason: format!("the inquiry showed nothing: {}", doubt.reason),
            last_reply: None,
        }),
        Outcome::Throttled(throttle) => {
            Outcome::Throttled(Throttle { last_reply: None, ..throttle })
        }
        other => other,
    }
}

fn last_reply(result: &GatewayResult) -> Option<LastReply> {
    Some(LastReply::new(&result.code, result.status.text()))
}

pub(super) fn describe(result: &GatewayResult) -> String {
    let status = crate::domain::money::shorten(result.status.text());
    format!("{status} {}", crate::domain::money::shorten(&result.code))
}
