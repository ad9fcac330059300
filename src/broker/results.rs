//! Subscribes to results, for commands that wait for the outcome of certain jobs.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::{
    Channel, Consumer,
    options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};
use serde_json::Value;

use super::{response::AmqpError, session::Session};

/// A subscription to all results from now on. Its queue is deleted with the connection.
pub struct Results {
    consumer: Consumer,
    _channel: Channel,
}

impl Results {
    /// Declares an exclusive queue, binds it to all results, and consumes it.
    ///
    /// # Errors
    /// The broker refuses one of these steps, or the connection is lost.
    pub async fn subscribe(session: &Session) -> Result<Self, AmqpError> {
        Self::subscribe_on(session).await.map_err(AmqpError::of)
    }

    async fn subscribe_on(session: &Session) -> lapin::Result<Self> {
        let channel = session.open_channel().await?;
        let own = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        let queue = channel.queue_declare("".into(), own, FieldTable::default()).await?;
        let (name, exchange) = (queue.name().clone(), session.names.results());
        let (bind, none) = (QueueBindOptions::default(), FieldTable::default());
        channel
            .queue_bind(name.clone(), exchange.as_str().into(), "#".into(), bind, none.clone())
            .await?;
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let consumer = channel.basic_consume(name, "results".into(), options, none).await?;
        Ok(Self { consumer, _channel: channel })
    }

    /// The next result; `None` if none comes in time, or the connection is lost.
    pub async fn next(&mut self, within: Duration) -> Option<Value> {
        let deadline = tokio::time::Instant::now() + within;
        loop {
            let delivery = tokio::time::timeout_at(deadline, self.consumer.next()).await;
            let delivery = delivery.ok()??.ok()?;
            if let Ok(result) = serde_json::from_slice(&delivery.data) {
                return Some(result);
            }
        }
    }
}
