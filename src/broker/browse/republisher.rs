//! Publishes messages of a queue again, to the exchange of that queue.

use lapin::{Channel, Confirmation, options::BasicPublishOptions};

use super::{
    error::{BrowseError, STEP_TIMEOUT, step},
    message::BrowsedMessage,
    queue::BrowsedQueue,
};
use crate::broker::{headers, session::Session};

/// The channel that republishes, and the exchange and routing key of the queue.
pub(super) struct Republisher {
    channel: Channel,
    exchange: String,
    routing_key: &'static str,
    /// Whether the broker has accepted a message. Until then, one message is tried alone: among
    /// several, the reason of a refusal would be lost.
    pub(super) is_proven: bool,
}

impl Republisher {
    /// Opens a channel that republishes messages to a queue.
    pub(super) async fn open(session: &Session, queue: BrowsedQueue) -> Result<Self, BrowseError> {
        let (exchange, routing_key) = queue.address();
        let channel = step(session.publishing().confirm_channel()).await?;
        let exchange = session.names().exchange(exchange);
        Ok(Self { channel, exchange, routing_key, is_proven: false })
    }

    /// Closes the channel, because a command may browse hundreds of times in one session.
    pub(super) async fn close(self) {
        if let Err(error) = step(self.channel.close(200, "done".into())).await {
            tracing::debug!(%error, "republish channel did not close cleanly");
        }
    }

    /// Publishes a batch. For each message: whether the broker has it in the queue.
    pub(super) async fn publish(&self, batch: &[BrowsedMessage]) -> lapin::Result<Vec<bool>> {
        let publish = async {
            let mut confirms = Vec::with_capacity(batch.len());
            let options = BasicPublishOptions { mandatory: true, ..Default::default() };
            for message in batch {
                let (to, key) = (self.exchange.as_str().into(), self.routing_key.into());
                let properties = headers::republished(&message.properties, &message.jobs_queue);
                confirms.push(
                    self.channel.basic_publish(to, key, options, &message.body, properties).await?,
                );
            }
            futures_util::future::try_join_all(confirms).await
        };
        // A broker that confirms nothing in time accepts no messages at present.
        let Ok(confirmed) = tokio::time::timeout(STEP_TIMEOUT, publish).await else {
            return Ok(vec![false; batch.len()]);
        };
        let confirmed = confirmed?;
        // All have the same routing key: if one was returned, all were, whichever confirm shows it.
        let is_returned = |confirmation: &Confirmation| {
            matches!(confirmation, Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_)))
        };
        let is_unroutable = confirmed.iter().any(is_returned);
        let taken = confirmed.iter().map(|confirmation| confirmation.is_ack() && !is_unroutable);
        Ok(taken.collect())
    }
}
