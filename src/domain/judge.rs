//! Which call an attempt makes, and what a reply proves. The rules of money: read them beside the gateway's page.

use super::{
    class::{CAPTURE_IN_PROCESS, Class, Codes, PAYMENT_IN_PROCESS, REQUEST_TRAFFIC_EXCEED_LIMIT},
    history::{History, LastWord},
    job::{Job, JobError},
    outcome::{Capture, Doubt, DoubtKind, Outcome, Throttle, Verdict},
    reply::{
        Answer, CaptureBody, CaptureReply, GatewayResult, InquiryBody, InquiryReply, NoAnswer,
        Reply, Signature, Status,
    },
    transactions::{Shown, shown},
};

pub(super) const TOO_MANY_REQUESTS: u16 = 429;
/// Why an answer of [`Signature::Stale`] proves no failure.
const STALE: &str = "the answer is signed, but its response-time can't be read or lies more than 5 minutes before the \
    request: check that both clocks are right (NTP)";

/// What is known of an id when its attempt begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before<'a> {
    /// From headers and broker.
    pub history: &'a History,
    /// The sent marker that an earlier acquisition left in Redis, if there is one.
    pub marker: Option<&'a SentMarker>,
    /// Whether the job's time is over.
    pub past_expiry: bool,
    /// The rule that its forwarded fields break: it must not be posted.
    pub forward_error: Option<&'a JobError>,
}

/// What Redis keeps of an id whose capture may have been sent. Unlike headers, which anybody can write, it tells what
/// the gateway has signed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SentMarker {
    /// The number of replays at which an inquiry last showed that there is no such capture.
    pub denied_at_replay: Option<u32>,
    /// The code of a signed `F` for this amount that need not be about the capture.
    pub refused: Option<String>,
}

impl Before<'_> {
    /// Whether a capture request for this id may have left.
    #[must_use]
    pub const fn sent(&self) -> bool {
        self.marker.is_some() || self.history.sent || self.history.redelivered
    }

    /// The code of the signed `F` that an earlier attempt got on this id, and that is not proven to be about the capture.
    fn refused(&self) -> Option<&str> {
        self.marker.and_then(|marker| marker.refused.as_deref())
    }

    /// Whether headers say that the last answer was such an `F`. They choose the first call and prove nothing.
    fn claims_refusal(&self, codes: &Codes) -> bool {
        self.history
            .last_word
            .as_ref()
            .is_some_and(|word| word.status == "F" && may_be_about_another(&word.code, codes))
    }

    /// Whether Redis can't vouch for the calls before this attempt: it has no marker of an id that headers or the broker
    /// call sent; or the job was replayed, and no inquiry has shown since that nothing stands against a post. An operator
    /// has replayed others of its family, perhaps, and Redis may have forgotten that.
    fn needs_evidence(&self) -> bool {
        let replays = self.history.replays;
        match self.marker {
            None => self.sent() || replays > 0,
            Some(_) if replays == 0 => false,
            Some(marker) => marker.denied_at_replay.is_none_or(|denied_at| denied_at < replays),
        }
    }
}

/// Whether an `F` with this code need not be about the capture of an id that was sent: the gateway gives it before it
/// looks at the id, or because a repeat differs from an earlier request, which may have captured.
fn may_be_about_another(code: &str, codes: &Codes) -> bool {
    let class = codes.class_of(code);
    class.may_precede_the_id() || class == Class::Conflict
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
    /// Neither: its forwarded fields break the message contract, and it was not sent.
    Malformed,
}

/// Which call an attempt begins with.
#[must_use]
pub fn first_call(before: &Before<'_>, codes: &Codes) -> Call {
    let in_process =
        before.history.last_word.as_ref().is_some_and(|word| {
            [CAPTURE_IN_PROCESS, PAYMENT_IN_PROCESS].contains(&word.code.as_str())
        });
    if before.forward_error.is_some() && !before.sent() {
        return Call::Malformed;
    }
    if before.past_expiry && !before.sent() {
        return Call::Expired;
    }
    let was_refused = before.refused().is_some() || before.sent() && before.claims_refusal(codes);
    let must_inquire = was_refused || before.needs_evidence() || before.forward_error.is_some();
    if in_process || must_inquire { Call::Inquire } else { Call::Post }
}

/// What an inquiry came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inquired {
    /// The attempt is over.
    Over(Outcome),
    /// Evidence that there is no such capture, and the job may go on: post, in the same attempt.
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
        let reason = format!("{}, signed, but about another {other}", describe(&answer.result));
        return in_doubt(DoubtKind::Contradiction, reason, None);
    }
    match answer.result.status {
        Status::F => failed(answer.result, before, codes),
        Status::U => in_doubt(DoubtKind::Unknown, describe(&answer.result), word(&answer.result)),
        _ => in_doubt(DoubtKind::Untrusted, describe(&answer.result), None),
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
    let is_stale = answer.signature == Signature::Stale;
    match shown(&answer.body, job, before.history, codes) {
        Shown::Proves(outcome @ Outcome::Captured(_)) => Inquired::Over(outcome),
        _ if is_stale => Inquired::Over(no_evidence(STALE)),
        Shown::Proves(Outcome::Failed(verdict)) => {
            // What the gateway said of the repeat is the code that an operator knows.
            let of_repeat = before.refused().filter(|code| codes.class_of(code) == verdict.class);
            let code = verdict.code.or_else(|| of_repeat.map(str::to_owned));
            Inquired::Over(Outcome::Failed(Verdict { code, ..verdict }))
        }
        Shown::Proves(outcome) => Inquired::Over(outcome),
        Shown::NoSuchCapture if is_under_review(&answer.body) => {
            Inquired::Over(no_evidence("the authorization is under review: do not capture yet"))
        }
        Shown::NoSuchCapture => after_no_such_capture(before, codes),
    }
}

/// `authReviewStatus` PROCESSING: the gateway asks for no capture yet.
fn is_under_review(body: &InquiryBody) -> bool {
    body.auth_review_status.as_deref() == Some("PROCESSING")
}

/// There is no such capture: then the signed refusal stands; or the job's time is over; or it is posted.
fn after_no_such_capture(before: &Before<'_>, codes: &Codes) -> Inquired {
    if let Some(code) = before.refused() {
        let verdict = Verdict {
            class: codes.class_of(code),
            code: Some(code.to_owned()),
            message: Some("refused before, and the gateway knows of no such capture".into()),
            signed: true,
        };
        Inquired::Over(match verdict.class {
            Class::Conflict => Outcome::Failed(verdict),
            _ => Outcome::Closed(verdict),
        })
    } else if let Some(error) = before.forward_error {
        // What may have been sent is given up for its form only now.
        Inquired::Over(Outcome::Malformed { error: error.clone(), inquired: true })
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
    // A success is true whenever it was signed.
    if answer.signature == Signature::Stale && result.status != Status::S {
        return Some(in_doubt(DoubtKind::Untrusted, STALE.to_owned(), None));
    }
    if result.code == REQUEST_TRAFFIC_EXCEED_LIMIT && result.status != Status::S {
        let word = Some(LastWord::new(REQUEST_TRAFFIC_EXCEED_LIMIT, "U"));
        return Some(Outcome::Throttled(Throttle { retry_after: answer.retry_after, word }));
    }
    if matches!(answer.signature, Signature::Good | Signature::Stale) {
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
        acquirer_info: body.acquirer_info,
    })
}

/// Why a signed success is not about this job. The id must be there; payment and amount must not be others.
fn contradiction(body: &CaptureBody, job: &Job) -> Option<String> {
    if let Some(other) = about_another(body, job) {
        return Some(format!("a signed success about another {other}"));
    }
    if body.capture_request_id.is_none() {
        return Some("a signed success that names no captureRequestId".into());
    }
    match &body.amount {
        None => None,
        Some(Ok(amount)) if *amount == job.amount => None,
        Some(Ok(amount)) => Some(format!("a signed success about another amount: {amount}")),
        Some(Err(error)) => Some(format!("a signed success with no readable amount: {error}")),
    }
}

/// The name of the id, if an answer names another than the job's.
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

/// A signed `F`. The gateway checks access and form before it looks at the id, and a changed repeat is refused while the
/// first request may have captured. So on a sent id such an `F` does not prove that an earlier request failed: the next
/// attempt inquires. On an id that was not sent it stands as long as no copy could be sent.
fn failed(result: GatewayResult, before: &Before<'_>, codes: &Codes) -> Outcome {
    let class = codes.class_of(&result.code);
    if before.sent() && may_be_about_another(&result.code, codes) {
        let reason = format!("{}, which need not be about the capture", describe(&result));
        return in_doubt(DoubtKind::Unproven, reason, word(&result));
    }
    let verdict = Verdict { class, code: Some(result.code), message: result.message, signed: true };
    if class.may_precede_the_id() { Outcome::Closed(verdict) } else { Outcome::Failed(verdict) }
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

pub(super) fn no_evidence(reason: &str) -> Outcome {
    in_doubt(DoubtKind::NoEvidence, reason.to_owned(), None)
}

pub(super) fn in_doubt(kind: DoubtKind, reason: String, word: Option<LastWord>) -> Outcome {
    Outcome::InDoubt(Doubt { reason, kind, word })
}

fn word(result: &GatewayResult) -> Option<LastWord> {
    Some(LastWord::new(&result.code, result.status.text()))
}

pub(super) fn describe(result: &GatewayResult) -> String {
    let status = super::money::shorten(result.status.text());
    format!("{status} {}", super::money::shorten(&result.code))
}
