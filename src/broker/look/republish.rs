//! Publishes a whole queue again, in its order, so that the broker counts its deliveries anew.
//!
//! Up to RabbitMQ 4.2 whatever is given back counts towards the delivery limit. The argument of our
//! queues is as good as none, but the broker takes the smaller of argument and policy, and drops a
//! message without a word when a policy's limit is exceeded. With a limit of 12 a message is
//! dropped at its 13th return, so at a count of 10 there is room for two lookers that are killed.
//!
//! Each message is published to the exchange of its queue, confirmed, and only then acked: a crash
//! in between leaves a copy, never a loss. The pass ends with the messages that were ready when it
//! began; what comes meanwhile stands among the copies.

use std::{collections::BTreeSet, time::Duration};

use lapin::{
    Channel, Confirmation,
    options::{BasicAckOptions, BasicPublishOptions},
};

use super::{Found, Look, LookError, answered};
use crate::broker::{headers, session::Session};

/// The delivery count at which the queue is republished.
const WORN: u32 = 10;
/// Publishes that are confirmed together: a crash leaves at most so many copies.
const BATCH: usize = 128;
/// A broker that confirms nothing for so long takes no messages at present.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(20);

/// The channel that republishes, and the address of the queue.
pub(super) struct Republisher {
    channel: Channel,
    exchange: String,
    routing_key: &'static str,
    /// The broker has taken something there. Before that, one message is tried alone: among several
    /// the reason of a refusal would be lost.
    is_proven: bool,
}

impl Look {
    /// From now on the whole queue is republished when the broker has counted so many returns that
    /// a policy's delivery limit may be near: at once if the first messages show it, else when the
    /// look is closed. Without the permission to publish, everything is given back in place, and a
    /// warning says so. Whether the queue was republished at once; then [`Look::total`] is new.
    ///
    /// # Errors
    /// The broker is lost.
    pub async fn may_republish(&mut self, session: &Session) -> Result<bool, LookError> {
        let (exchange, routing_key) = self.browsed.address();
        let channel = answered(session.confirm_channel()).await?;
        let exchange = session.names().exchange(exchange);
        self.republisher = Some(Republisher { channel, exchange, routing_key, is_proven: false });
        // Before anything is handed out: while it is looked at, a crash would count once more.
        self.take_window().await?;
        let is_worn = self.is_worn();
        if is_worn {
            self.republish_all().await?;
        }
        Ok(is_worn && self.republisher.is_some())
    }

    /// The largest delivery count that was seen so far. A caller that may not republish should
    /// leave the queue alone once this has reached 10: each look adds one.
    #[must_use]
    pub const fn delivery_count(&self) -> u32 {
        self.delivery_count
    }

    /// Whether the queue is to be republished, and may be.
    pub(super) fn is_worn(&self) -> bool {
        self.delivery_count >= WORN && self.republisher.is_some()
    }

    /// Takes messages until the consumer has brought its window.
    async fn take_window(&mut self) -> Result<(), LookError> {
        while let Some(found) = self.take().await? {
            self.ahead.push_back(found);
            if self.consumer.is_none() {
                return Ok(());
            }
        }
        if self.consumer.is_some() {
            self.end_window().await?;
        }
        Ok(())
    }

    /// Republishes everything from what is taken and not handed out to the last message that was
    /// ready. What the broker does not take is handed out, and given back, as it is.
    pub(super) async fn republish_all(&mut self) -> Result<(), LookError> {
        let (queue, messages, count) = (self.queue.clone(), self.total, self.delivery_count);
        loop {
            if self.ahead.is_empty() {
                self.take_window().await?;
            }
            if self.ahead.is_empty() {
                break;
            }
            if let Err(reason) = self.republish_window().await? {
                tracing::warn!(
                    queue,
                    reason,
                    delivery_count = count,
                    "messages that were looked at often could not be republished; a policy with a \
                     delivery limit may drop them: grant write on their exchange, or remove the \
                     policy"
                );
                self.republisher = None;
                // With the copies of those that it did take.
                self.total = self.taken.saturating_add(self.ready().await?);
                return Ok(());
            }
        }
        tracing::info!(queue, messages, delivery_count = count, "queue republished in place");
        self.start_over().await
    }

    /// Republishes what is taken and not handed out. The inner error says why the broker does not
    /// take it; then the rest is still there.
    async fn republish_window(&mut self) -> Result<Result<(), String>, LookError> {
        while !self.ahead.is_empty() {
            let Some(republisher) = &mut self.republisher else { break };
            let most = if republisher.is_proven { BATCH } else { 1 };
            let batch: Vec<Found> = self.ahead.iter().take(most).cloned().collect();
            let taken = match republisher.publish(&batch).await {
                Ok(taken) => taken,
                // A refusal closes the channel that publishes. If the broker is lost, the next step
                // of the look finds that out.
                Err(error) => return Ok(Err(error.to_string())),
            };
            let tags = batch.iter().zip(&taken).filter(|(_, taken)| **taken);
            let tags: BTreeSet<u64> = tags.map(|(found, _)| found.tag).collect();
            for tag in &tags {
                self.channel.basic_ack(*tag, BasicAckOptions::default()).await?;
            }
            self.held.retain(|tag| !tags.contains(tag));
            self.ahead.retain(|found| !tags.contains(&found.tag));
            republisher.is_proven = true;
            if taken.iter().any(|taken| !taken) {
                return Ok(Err("the broker did not confirm all of them".to_owned()));
            }
        }
        Ok(Ok(()))
    }
}

impl Republisher {
    /// A courtesy: a command may look hundreds of times in one session.
    pub(super) async fn close(self) {
        if let Err(error) = answered(self.channel.close(200, "done".into())).await {
            tracing::debug!(%error, "the channel that republishes did not close cleanly");
        }
    }

    /// Which of them the broker has in the queue.
    async fn publish(&self, batch: &[Found]) -> lapin::Result<Vec<bool>> {
        let publish = async {
            let mut confirms = Vec::with_capacity(batch.len());
            let options = BasicPublishOptions { mandatory: true, ..Default::default() };
            for found in batch {
                let (to, key) = (self.exchange.as_str().into(), self.routing_key.into());
                let properties = headers::republished(&found.properties, &found.jobs_queue);
                confirms.push(
                    self.channel.basic_publish(to, key, options, &found.body, properties).await?,
                );
            }
            futures_util::future::try_join_all(confirms).await
        };
        let Ok(confirmed) = tokio::time::timeout(CONFIRM_TIMEOUT, publish).await else {
            return Ok(vec![false; batch.len()]);
        };
        let confirmed = confirmed?;
        // All have one address: if one found no queue, none did, whichever confirm says so.
        let is_returned = |confirmation: &Confirmation| {
            matches!(confirmation, Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_)))
        };
        let found_no_queue = confirmed.iter().any(is_returned);
        let taken = confirmed.iter().map(|confirmation| confirmation.is_ack() && !found_no_queue);
        Ok(taken.collect())
    }
}
