//! A message to publish, and why the broker does not have it.

use std::sync::Arc;

use lapin::BasicProperties;
use time::OffsetDateTime;

use crate::{
    broker::{
        headers,
        names::Exchange,
        response::{MethodRefusal, NOT_FOUND},
    },
    domain::{settlement::ResultMessage, time::epoch_ms},
};

/// A message to publish. It is cheap to clone.
#[derive(Clone, Debug)]
pub(in crate::broker) struct Message {
    pub(in crate::broker) exchange: Exchange,
    pub(in crate::broker) routing_key: Arc<str>,
    /// Whether the broker must return the message if no queue is bound for it.
    pub(in crate::broker) mandatory: bool,
    pub(in crate::broker) properties: BasicProperties,
    pub(in crate::broker) body: Arc<[u8]>,
}

impl Message {
    /// The message that reports a result, with the trace context and priority of the original.
    pub(in crate::broker) fn of_result(original: &BasicProperties, result: &ResultMessage) -> Self {
        let now_ms = epoch_ms(OffsetDateTime::now_utc());
        Self {
            exchange: Exchange::Results,
            routing_key: result.routing_key().into(),
            mandatory: false,
            properties: headers::of_result(original, now_ms),
            body: serde_json::to_vec(result).unwrap_or_default().into(),
        }
    }
}

/// Why the broker does not have a message, or may not have it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No queue is bound to the exchange with the message's routing key.
    #[error("the message was returned as unroutable: no queue is bound for its routing key")]
    Returned,
    /// The broker rejected the message with a nack: a queue is full, or has no leader.
    #[error("the broker rejected the message (nack): a queue is full or unavailable")]
    Nacked,
    /// The broker refuses all publishes to this exchange.
    #[error("the broker refused the publish: {}", .0.reason)]
    Forbidden(PublishRefusal),
    /// The session was lost before the confirm: whether the message arrived is unknown.
    #[error("broker session lost: it is unknown whether the message arrived")]
    Lost,
}

impl PublishError {
    /// The value of the metric label `result`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Returned => "returned",
            Self::Nacked | Self::Forbidden(_) => "refused",
            Self::Lost => "lost",
        }
    }
}

/// Called after every publish, with its exchange and its result.
pub type OnPublish = Arc<dyn Fn(Exchange, &Result<(), PublishError>) + Send + Sync>;

/// The broker refuses all publishes to an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishRefusal {
    /// The exchange that refuses publishes.
    pub exchange: Exchange,
    /// The broker's error text, which names the cause.
    pub reason: String,
    /// Whether the exchange does not exist.
    pub(super) is_missing: bool,
}

impl PublishRefusal {
    pub(super) fn new(exchange: Exchange, refusal: MethodRefusal) -> Self {
        Self { exchange, reason: refusal.text, is_missing: refusal.code == NOT_FOUND }
    }
}
