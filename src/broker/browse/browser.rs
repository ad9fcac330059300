//! A browse in progress: takes messages in windows, and returns them in their order.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::StreamExt;
use lapin::{
    Channel, Consumer,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    },
    types::FieldTable,
};

use super::{
    error::{BrowseError, step},
    lock::BrowseLock,
    message::BrowsedMessage,
    queue::BrowsedQueue,
    republisher::Republisher,
};
use crate::broker::{
    headers,
    response::{AmqpError, NOT_FOUND, ready_messages},
    session::Session,
};

/// The first window, in messages. Later ones double while they stay small in bytes.
const WINDOW_MIN: u16 = 64;
/// The largest window: a hundred thousand dead letters need a few dozen consumers.
const WINDOW_MAX: u16 = 4096;
/// The memory limit of a window, in bytes, estimated from the messages so far.
const WINDOW_BYTES: usize = 8 * 1024 * 1024;
/// How many messages one nack may return: the broker keeps their order only up to this number.
/// Beyond it, the broker uses a hash table without order.
const RETURNED_MAX: usize = 32;
/// How many such nacks may be pending: the broker merges more of them, and loses the order.
const RETURNS_MAX: usize = 8;
/// How long to wait until returned messages are ready again; another consumer may take them.
const RETURN_TIMEOUT: Duration = Duration::from_secs(2);
const RETURN_EVERY: Duration = Duration::from_millis(1);

/// A browse in progress.
pub struct Browser {
    pub(super) channel: Channel,
    pub(super) queue: String,
    jobs_queue: Arc<str>,
    pub(super) source: BrowsedQueue,
    /// Messages that were taken from the queue and not handed out yet.
    pub(super) ahead: VecDeque<BrowsedMessage>,
    /// The largest delivery count of the messages so far.
    pub(super) delivery_count: u32,
    /// Republishes the whole queue, if the caller allowed it.
    pub(super) republisher: Option<Republisher>,
    pub(super) total: u32,
    pub(super) taken: u32,
    window: u16,
    in_window: u16,
    bytes: usize,
    consumers: u32,
    pub(super) consumer: Option<Consumer>,
    /// Whether the last message was a redelivery.
    pub(super) is_returned: bool,
    /// The delivery tags of all messages that are held, in ascending order.
    pub(super) held: Vec<u64>,
    /// `None` if our user may not declare the exclusive queue.
    pub(super) lock: Option<BrowseLock>,
}

impl Browser {
    /// Opens a browse once no other process browses the queue; `waits` is called if one does.
    /// `None` if the queue does not exist.
    ///
    /// # Errors
    /// The broker refuses, its connection is lost, or another browse does not end.
    pub async fn open(
        session: &Session,
        source: BrowsedQueue,
        waits: impl Fn(),
    ) -> Result<Option<Self>, BrowseError> {
        let names = session.names();
        let queue = source.queue(names);
        if ready_unless_missing(session, &queue).await?.is_none() {
            return Ok(None);
        }
        let lock = BrowseLock::take(session, &queue, waits).await?;
        let Some(total) = ready_unless_missing(session, &queue).await? else { return Ok(None) };
        let channel = step(session.open_channel()).await?;
        Ok(Some(Self {
            channel,
            queue,
            jobs_queue: names.jobs().into(),
            source,
            ahead: VecDeque::new(),
            delivery_count: 0,
            republisher: None,
            total,
            taken: 0,
            window: WINDOW_MIN,
            in_window: 0,
            bytes: 0,
            consumers: 0,
            consumer: None,
            is_returned: false,
            held: Vec::new(),
            lock,
        }))
    }

    /// How many messages this browse hands out: those that were ready when it began.
    #[must_use]
    pub const fn total(&self) -> u32 {
        self.total
    }

    /// The next message; `None` after [`Self::total`] messages.
    ///
    /// # Errors
    /// The connection to the broker is lost.
    pub async fn next(&mut self) -> Result<Option<BrowsedMessage>, BrowseError> {
        match self.ahead.pop_front() {
            Some(message) => Ok(Some(message)),
            None => self.take().await,
        }
    }

    /// Receives the next message.
    pub(super) async fn take(&mut self) -> Result<Option<BrowsedMessage>, BrowseError> {
        if self.taken == self.total {
            return Ok(None);
        }
        let consumer = match &mut self.consumer {
            Some(consumer) => consumer,
            None => {
                let consumer = self.consume().await?;
                self.consumer.insert(consumer)
            }
        };
        let delivery = match next_delivery(consumer).await {
            Ok(Some(delivery)) => delivery,
            // Another consumer took messages without a browse. They are not lost.
            Err(BrowseError::TimedOut) => {
                tracing::warn!(queue = self.queue, "browse incomplete: others consumed messages");
                self.total = self.taken;
                return Ok(None);
            }
            Ok(None) => return Err(BrowseError::Cancelled),
            Err(error) => return Err(error),
        };
        self.taken += 1;
        self.in_window -= 1;
        let message = BrowsedMessage {
            tag: delivery.delivery_tag,
            properties: delivery.properties,
            body: delivery.data,
            jobs_queue: Arc::clone(&self.jobs_queue),
        };
        self.held.push(message.tag);
        self.delivery_count = self.delivery_count.max(headers::delivery_count(&message.properties));
        self.is_returned = delivery.redelivered;
        self.bytes += message.size();
        if self.in_window == 0 {
            self.end_window().await?;
        }
        Ok(Some(message))
    }

    /// Removes a message from the queue for good.
    ///
    /// # Errors
    /// The connection to the broker is lost. Then the message stays in the queue.
    pub async fn remove(&mut self, message: &BrowsedMessage) -> Result<(), BrowseError> {
        self.channel
            .basic_ack(message.tag, BasicAckOptions::default())
            .await
            .map_err(AmqpError::of)?;
        if let Ok(at) = self.held.binary_search(&message.tag) {
            self.held.remove(at);
        }
        // The ack frees one delivery of the open consumer's prefetch, so one more will come.
        if self.consumer.is_some() && self.taken + u32::from(self.in_window) < self.total {
            self.in_window += 1;
        }
        Ok(())
    }

    /// Starts again with the messages that are ready now. No message may be held.
    pub(super) async fn start_over(&mut self) -> Result<(), BrowseError> {
        self.total = self.ready().await?;
        (self.taken, self.in_window, self.bytes, self.window) = (0, 0, 0, WINDOW_MIN);
        (self.delivery_count, self.is_returned) = (0, false);
        self.ahead.clear();
        self.held.clear();
        Ok(())
    }

    /// Returns all messages that are held, in pieces. It waits for the broker in between, because
    /// the broker merges nacks that pile up and loses their order.
    pub(super) async fn return_held(&self) -> Result<(), BrowseError> {
        let up_to = BasicNackOptions { multiple: true, requeue: true };
        let before = self.ready().await?;
        let mut returned = 0;
        for pieces in self.held.chunks(RETURNED_MAX * RETURNS_MAX) {
            for last in pieces.chunks(RETURNED_MAX).filter_map(<[u64]>::last) {
                self.channel.basic_nack(*last, up_to).await.map_err(AmqpError::of)?;
            }
            returned += u32::try_from(pieces.len()).unwrap_or(u32::MAX);
            let until = tokio::time::Instant::now() + RETURN_TIMEOUT;
            while self.ready().await? < before + returned && tokio::time::Instant::now() < until {
                tokio::time::sleep(RETURN_EVERY).await;
            }
        }
        Ok(())
    }

    pub(super) async fn ready(&self) -> Result<u32, BrowseError> {
        step(ready_messages(&self.channel, &self.queue)).await
    }

    /// Starts the consumer of the next window.
    async fn consume(&mut self) -> Result<Consumer, BrowseError> {
        if let Some(fitting) = self.fitting() {
            self.window = self.window.saturating_mul(2).min(fitting).clamp(WINDOW_MIN, WINDOW_MAX);
        }
        let left = u16::try_from(self.total - self.taken).unwrap_or(u16::MAX);
        self.in_window = self.window.min(left);
        self.consumers += 1;
        step(self.channel.basic_qos(self.in_window, BasicQosOptions::default())).await?;
        let (queue, tag) = (self.queue.as_str().into(), self.tag());
        let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
        step(self.channel.basic_consume(queue, tag.into(), options, none)).await
    }

    /// How many messages of the mean size so far fit into a window.
    fn fitting(&self) -> Option<u16> {
        let mean = self.bytes.checked_div(usize::try_from(self.taken).unwrap_or(usize::MAX))?;
        let fitting = WINDOW_BYTES.checked_div(mean)?;
        Some(u16::try_from(fitting).unwrap_or(u16::MAX))
    }

    /// Cancels the consumer. Its messages stay unacked, and acks bring no more of them.
    pub(super) async fn end_window(&mut self) -> Result<(), BrowseError> {
        let cancelled = self.channel.basic_cancel(self.tag().into(), BasicCancelOptions::default());
        step(cancelled).await?;
        self.consumer = None;
        Ok(())
    }

    /// A consumer tag. Tags sort in the order in which the consumers started.
    fn tag(&self) -> String {
        format!("look-{:08}", self.consumers)
    }
}

/// The number of ready messages in a queue; `None` if the queue does not exist.
async fn ready_unless_missing(session: &Session, queue: &str) -> Result<Option<u32>, BrowseError> {
    let channel = step(session.open_channel()).await?;
    match step(ready_messages(&channel, queue)).await {
        Ok(ready) => {
            step(channel.close(200, "done".into())).await?;
            Ok(Some(ready))
        }
        Err(error) if error.code() == Some(NOT_FOUND) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The next delivery; `None` if the consumer was cancelled.
async fn next_delivery(
    consumer: &mut Consumer,
) -> Result<Option<lapin::message::Delivery>, BrowseError> {
    step(async { consumer.next().await.transpose() }).await
}
