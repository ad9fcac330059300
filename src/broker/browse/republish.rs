//! Republishes a whole queue, in order, so that the broker counts its deliveries from zero.
//!
//! Up to RabbitMQ 4.2, every message that a browse returns counts towards the delivery limit. The
//! limit in the arguments of our queues is practically infinite, but the broker applies the smaller
//! of argument and policy, and silently drops a message that exceeds a policy's limit. With a limit
//! of 12, a message is dropped at its 13th return. Republishing at a count of 10 therefore leaves
//! room for two processes that are killed while they browse.
//!
//! Each message is published to the exchange of its queue, confirmed, and only then acked: a crash
//! in between leaves a duplicate, never a loss. The pass ends with the messages that were ready
//! when it began. Messages that arrive meanwhile stand among the copies.

use std::collections::BTreeSet;

use lapin::options::BasicAckOptions;

use super::{
    browser::Browser, error::BrowseError, message::BrowsedMessage, republisher::Republisher,
};
use crate::broker::{response::AmqpError, session::Session};

/// The delivery count at which the queue is republished.
const WORN: u32 = 10;
/// How many publishes are confirmed together. A crash leaves at most this many duplicates.
const BATCH: usize = 128;

impl Browser {
    /// Allows this browse to republish the whole queue when the delivery count of its messages
    /// comes near a policy's delivery limit: at once if the first messages show it, else when the
    /// browse is closed. Without the permission to publish, all messages are returned in place, and
    /// a warning is logged. Returns whether the queue was republished at once, which changes
    /// [`Browser::total`].
    ///
    /// # Errors
    /// The connection to the broker is lost.
    pub async fn may_republish(&mut self, session: &Session) -> Result<bool, BrowseError> {
        self.republisher = Some(Republisher::open(session, self.source).await?);
        // Before the caller gets any message: the longer messages are held, the likelier is a crash
        // that returns and counts them once more.
        self.take_window().await?;
        let is_worn = self.is_worn();
        if is_worn {
            self.republish_all().await?;
        }
        Ok(is_worn && self.republisher.is_some())
    }

    /// The largest delivery count of the messages so far. Each browse adds one. A caller that may
    /// not republish should leave the queue alone once this has reached 10.
    #[must_use]
    pub const fn delivery_count(&self) -> u32 {
        self.delivery_count
    }

    /// Whether the queue should be republished, and this browse may do it.
    pub(super) fn is_worn(&self) -> bool {
        self.delivery_count >= WORN && self.republisher.is_some()
    }

    /// Takes messages until the consumer has delivered its whole window.
    async fn take_window(&mut self) -> Result<(), BrowseError> {
        while let Some(message) = self.take().await? {
            self.ahead.push_back(message);
            if self.consumer.is_none() {
                return Ok(());
            }
        }
        if self.consumer.is_some() {
            self.end_window().await?;
        }
        Ok(())
    }

    /// Republishes every message that the caller has not seen yet, up to the last one that was
    /// ready. If the broker refuses, the remaining messages are handed out and returned unchanged.
    pub(super) async fn republish_all(&mut self) -> Result<(), BrowseError> {
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
                    "queue could not be republished: a policy with a delivery limit may drop its \
                     messages; grant write permission on their exchange, or remove the policy"
                );
                self.republisher = None;
                // Includes the copies of the messages that the broker did accept.
                self.total = self.taken.saturating_add(self.ready().await?);
                return Ok(());
            }
        }
        tracing::info!(queue, messages, delivery_count = count, "queue republished in place");
        self.start_over().await
    }

    /// Republishes the messages that were taken and not handed out. The inner error is the broker's
    /// reason for a refusal; the remaining messages are still held then.
    async fn republish_window(&mut self) -> Result<Result<(), String>, BrowseError> {
        while !self.ahead.is_empty() {
            let Some(republisher) = &mut self.republisher else { break };
            let most = if republisher.is_proven { BATCH } else { 1 };
            let batch: Vec<BrowsedMessage> = self.ahead.iter().take(most).cloned().collect();
            let taken = match republisher.publish(&batch).await {
                Ok(taken) => taken,
                // A refusal closes the publishing channel. If the connection is lost instead, the
                // next step of the browse fails.
                Err(error) => return Ok(Err(error.to_string())),
            };
            let tags = batch.iter().zip(&taken).filter(|(_, taken)| **taken);
            let tags: BTreeSet<u64> = tags.map(|(message, _)| message.tag).collect();
            for tag in &tags {
                self.channel
                    .basic_ack(*tag, BasicAckOptions::default())
                    .await
                    .map_err(AmqpError::of)?;
            }
            self.held.retain(|tag| !tags.contains(tag));
            self.ahead.retain(|message| !tags.contains(&message.tag));
            republisher.is_proven = true;
            if taken.iter().any(|taken| !taken) {
                return Ok(Err("the broker did not confirm every message".to_owned()));
            }
        }
        Ok(Ok(()))
    }
}
