//! What commands publish: new jobs, and for dead letters the replays, results and audit records.

use std::sync::Arc;

use time::OffsetDateTime;

use super::{
    browse::BrowsedMessage,
    headers,
    names::{AUDIT_KEY, Exchange},
    publish::{Message, PublishError},
    session::Session,
};
use crate::domain::{replay::Replay, settlement::ResultMessage, time::epoch_ms};

/// The routing key of jobs from the command `submit`. The queue of jobs is bound with `#`.
const SUBMITTED: &str = "submit";
/// The routing key of replayed jobs, for people who trace messages.
const REPLAYED: &str = "replay";

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
    pub async fn replay(
        &self,
        dead_letter: &BrowsedMessage,
        replay: &Replay,
    ) -> Result<(), PublishError> {
        self.publish(Message {
            exchange: Exchange::Jobs,
            routing_key: REPLAYED.into(),
            mandatory: true,
            properties: headers::replayed(&dead_letter.properties, &replay.history),
            body: Arc::from(replay.body.as_slice()),
        })
        .await
    }

    /// Publishes the result of a dead letter's job, and waits for the confirm.
    ///
    /// # Errors
    /// The broker does not have the message, or that is unknown ([`PublishError::Lost`]).
    pub async fn publish_result(
        &self,
        dead_letter: &BrowsedMessage,
        result: &ResultMessage,
    ) -> Result<(), PublishError> {
        self.publish(Message::of_result(&dead_letter.properties, result)).await
    }

    /// Publishes an audit record, and waits until the broker has confirmed it.
    ///
    /// # Errors
    /// The broker does not have the message, or that is unknown ([`PublishError::Lost`]).
    pub async fn audit(&self, record: Vec<u8>) -> Result<(), PublishError> {
        self.publish(Message {
            exchange: Exchange::Audit,
            routing_key: AUDIT_KEY.into(),
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
