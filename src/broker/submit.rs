//! What commands publish: new jobs, and for dead letters the replays, results and audit records.

use std::sync::Arc;

use time::OffsetDateTime;

use super::{
    headers,
    look::Found,
    publisher::{Message, PublishError},
    session::Session,
    topology::Exchange,
};
use crate::domain::{
    replay::Replay,
    settlement::{ResultMessage, epoch_ms},
};

/// The routing key of jobs from the command `submit`. The queue of jobs is bound with `#`.
const SUBMITTED: &str = "submit";
/// The routing key of replayed jobs, for people who trace messages.
const REPLAYED: &str = "replay";
/// The routing key of audit records, with which their queue is bound.
pub(super) const AUDIT: &str = "audit";

impl Session {
    /// Publishes a job, and waits until the broker has confirmed it.
    ///
    /// # Errors
    /// The broker does not have the message, or that is unknown ([`PublishError::Lost`]).
    pub async fn submit(&self, body: &[u8]) -> Result<(), PublishError> {
        let now_ms = epoch_ms(OffsetDateTime::now_utc());
        let message = Message {
            exchange: Exchange::Jobs,
            routing_key: SUBMITTED.into(),
            mandatory: true,
            properties: headers::of_job(now_ms),
            body: Arc::from(body),
        };
        self.publisher.publish(message).await
    }

    /// Publishes the job of a dead letter again, and waits until the broker has confirmed it. The
    /// dead letter stays in its queue.
    ///
    /// # Errors
    /// The broker does not have the message, or that is unknown ([`PublishError::Lost`]).
    pub async fn replay(&self, found: &Found, replay: &Replay) -> Result<(), PublishError> {
        self.publish(Message {
            exchange: Exchange::Jobs,
            routing_key: REPLAYED.into(),
            mandatory: true,
            properties: headers::replayed(&found.properties, &replay.history),
            body: Arc::from(replay.body.as_slice()),
        })
        .await
    }

    /// Publishes the result of a dead letter's job, and waits for the confirm.
    ///
    /// # Errors
    /// The broker does not have the message, or that is unknown ([`PublishError::Lost`]).
    pub async fn tell(&self, found: &Found, result: &ResultMessage) -> Result<(), PublishError> {
        self.publish(Message {
            exchange: Exchange::Results,
            routing_key: result.routing_key().into(),
            mandatory: false,
            properties: headers::of_result(&found.properties, epoch_ms(OffsetDateTime::now_utc())),
            body: serde_json::to_vec(result).unwrap_or_default().into(),
        })
        .await
    }

    /// Publishes an audit record, and waits until the broker has confirmed it.
    ///
    /// # Errors
    /// The broker does not have the message, or that is unknown ([`PublishError::Lost`]).
    pub async fn audit(&self, record: Vec<u8>) -> Result<(), PublishError> {
        self.publish(Message {
            exchange: Exchange::Audit,
            routing_key: AUDIT.into(),
            mandatory: true,
            properties: headers::of_audit(epoch_ms(OffsetDateTime::now_utc())),
            body: record.into(),
        })
        .await
    }

    async fn publish(&self, message: Message) -> Result<(), PublishError> {
        self.publisher.publish(message).await
    }
}
