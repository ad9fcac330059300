//! Publishing new jobs, as fulfilment systems do.

use std::sync::Arc;

use time::OffsetDateTime;

use super::{
    headers,
    publisher::{Message, PublishError},
    session::Session,
};
use crate::domain::settle::epoch_ms;

/// The routing key of jobs that the command line submits; the queue takes every key.
const SUBMITTED: &str = "submit";

impl Session {
    /// Publishes a job, and waits until the broker has it in its queue.
    ///
    /// # Errors
    /// It is not there, or whether it is there is not known.
    pub async fn submit(&self, body: &[u8]) -> Result<(), PublishError> {
        let now_ms = epoch_ms(OffsetDateTime::now_utc());
        let message = Message {
            exchange: self.names.jobs().into(),
            routing_key: SUBMITTED.into(),
            mandatory: true,
            properties: headers::of_job(now_ms),
            body: Arc::from(body),
        };
        self.publisher.publish(message).await
    }
}
