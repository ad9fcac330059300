//! The result message, which tells the publisher what became of its job.

use serde::Serialize;
use time::OffsetDateTime;

use super::reason::DeadLetterReason;
use crate::domain::{
    capture::{
        class::Class,
        outcome::{Capture, Evidence},
        reply::AcquirerInfo,
    },
    job::{Subject, history::History},
    time::rfc3339,
};

/// The result message for the publisher.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResultMessage {
    /// The job that the result is about.
    #[serde(flatten)]
    pub subject: Subject,
    /// Whether the money was captured.
    pub status: ResultStatus,
    /// The class of the dead letter, if the job was given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
    /// The gateway's result code, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result_code: Option<String>,
    /// The gateway's result status, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result_status: Option<String>,
    /// The gateway's message, or a reason written by this program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result_message: Option<String>,
    /// The gateway's id of the capture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capture_id: Option<String>,
    /// When the money was captured, as the gateway wrote it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capture_time: Option<String>,
    /// The acquirer's reference for the capture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acquirer_reference_no: Option<String>,
    /// Further data about the acquirer, as the gateway sent it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acquirer_info: Option<AcquirerInfo>,
    /// What the outcome rests on; absent if nothing proves it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
    /// The id that this fresh id replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_capture_request_id: Option<String>,
    /// The first id of the family, which the publisher wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin_capture_request_id: Option<String>,
    /// How many attempts were spent.
    pub attempts: u32,
    /// When the delivery was settled, in RFC 3339.
    pub settled_at: String,
}

/// What a publisher may conclude from a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ResultStatus {
    /// The money is captured.
    Captured,
    /// The money is not captured, and will not be under this id unless an operator acts.
    Failed,
    /// It is not known whether the money is captured: the publisher must not send a new id for it.
    InDoubt,
}

/// What every result reports, whatever the outcome.
#[derive(Clone, Copy, Debug)]
pub struct ResultSource<'a> {
    /// What could be read of the job.
    pub subject: &'a Subject,
    /// What the delivery or the dead letter carries from earlier deliveries.
    pub history: &'a History,
    /// What the outcome rests on, if something proves it.
    pub evidence: Option<Evidence>,
    /// How many attempts were spent.
    pub attempts: u32,
    /// When the delivery or the dead letter is settled.
    pub now: OffsetDateTime,
}

impl ResultSource<'_> {
    /// The result of a job whose money is captured.
    #[must_use]
    pub fn captured(&self, capture: &Capture) -> ResultMessage {
        ResultMessage {
            result_code: Some(capture.code.clone()),
            result_status: Some("S".into()),
            result_message: capture.message.clone(),
            capture_id: capture.capture_id.clone(),
            capture_time: capture.capture_time.clone(),
            acquirer_reference_no: capture.acquirer_reference_no.clone(),
            acquirer_info: capture.acquirer_info.clone(),
            ..self.of(ResultStatus::Captured, None)
        }
    }

    /// The result of a job that was given up.
    #[must_use]
    pub fn given_up(&self, reason: &DeadLetterReason) -> ResultMessage {
        let status = match reason.class {
            Class::InDoubt | Class::Conflict | Class::Poison => ResultStatus::InDoubt,
            _ => ResultStatus::Failed,
        };
        ResultMessage {
            result_code: reason.code.clone(),
            result_status: reason.status.clone(),
            result_message: Some(reason.message.clone()),
            ..self.of(status, Some(reason.class))
        }
    }

    fn of(&self, status: ResultStatus, class: Option<Class>) -> ResultMessage {
        ResultMessage {
            subject: self.subject.clone(),
            status,
            class,
            result_code: None,
            result_status: None,
            result_message: None,
            capture_id: None,
            capture_time: None,
            acquirer_reference_no: None,
            acquirer_info: None,
            evidence: self.evidence,
            parent_capture_request_id: self.history.parent.clone(),
            origin_capture_request_id: self.history.origin.clone(),
            attempts: self.attempts,
            settled_at: rfc3339(self.now),
        }
    }
}

impl ResultMessage {
    /// The routing key: `captured`, `failed.<class>` or `in_doubt`.
    #[must_use]
    pub fn routing_key(&self) -> String {
        match (self.status, self.class) {
            (ResultStatus::Captured, _) => "captured".into(),
            (ResultStatus::InDoubt, _) => "in_doubt".into(),
            (ResultStatus::Failed, Some(class)) => format!("failed.{class}"),
            (ResultStatus::Failed, None) => "failed".into(),
        }
    }
}
