//! Browses a queue: hands out each message once, without acking it, and returns all messages in
//! their order when the browse is closed. The caller may remove single messages meanwhile.
//!
//! Other consumers don't see messages that are being browsed. So only one process browses a queue
//! at a time: it holds the exclusive queue `<queue>.look`, which the broker deletes with its
//! connection. The client buffers all that it receives, so messages come in bounded windows, each
//! by a consumer of its own that is cancelled once it has delivered its window.
//!
//! Closing a browse keeps the order. If the process is killed, the broker returns the messages:
//! none is lost, but RabbitMQ 3.10 keeps the order of only some thirty of a window.
//!
//! The broker counts every return, and a policy with a delivery limit would drop messages in the
//! end. So a browse may republish the whole queue once the count is high: see
//! [`Look::may_republish`].

mod lock;
mod republish;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Consumer, ErrorKind,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions,
        BasicQosOptions, QueueDeclareOptions,
    },
    types::FieldTable,
};
use time::OffsetDateTime;

use self::{lock::Lock, republish::Republisher};
use super::{
    headers,
    session::Session,
    submit::AUDIT,
    topology::{Exchange, Names},
};
use crate::domain::{
    capture::class::Class, job::forward::ForwardFields, replay::dead_letter::DeadLetter,
    settlement::epoch_ms,
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
/// The time limit for a response of the broker, and for the next ready message.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a browse ended early. The broker returns all messages that are still held to their queue.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// The broker refused a request, or the connection is lost.
    #[error("browsing failed at the broker: {0}")]
    Broker(#[from] lapin::Error),
    /// The broker did not respond in time.
    #[error("the broker did not respond in time")]
    TimedOut,
    /// The broker cancelled the consumer, such as when the queue is deleted.
    #[error("the broker cancelled the consumer that browses the queue")]
    Cancelled,
    /// Another process has browsed the same queue for too long.
    #[error("queue {0} has been browsed by another process for five minutes: try again later")]
    Busy(String),
}

/// A browsed message, which stays in its queue unless it is removed.
#[derive(Clone, Debug)]
pub struct Found {
    pub(super) tag: u64,
    pub(super) properties: BasicProperties,
    /// The body, byte for byte.
    pub body: Vec<u8>,
    jobs_queue: Arc<str>,
}

impl Found {
    /// Reads the message as a dead letter of a class.
    #[must_use]
    pub fn letter(&self, class: Class, forward: &ForwardFields) -> DeadLetter {
        let now_ms = epoch_ms(OffsetDateTime::now_utc());
        let (body, jobs) = (self.body.clone(), &self.jobs_queue);
        headers::read_letter(class, body, &self.properties, forward, jobs, now_ms)
    }

    /// The headers, and the other properties, as two JSON objects.
    #[must_use]
    pub fn shown(&self) -> (serde_json::Value, serde_json::Value) {
        headers::shown(&self.properties)
    }
}

/// The queues that can be browsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Browsed {
    /// The dead-letter queue of a class.
    DeadLetters(Class),
    /// The queue of audit records.
    Audit,
}

impl Browsed {
    fn queue(self, names: &Names) -> String {
        match self {
            Self::DeadLetters(class) => names.dead_queue(class),
            Self::Audit => names.audit(),
        }
    }

    /// The exchange and the routing key with which the queue is bound.
    const fn address(self) -> (Exchange, &'static str) {
        match self {
            Self::DeadLetters(class) => (Exchange::Dead, class.name()),
            Self::Audit => (Exchange::Audit, AUDIT),
        }
    }
}

/// A browse in progress.
pub struct Look {
    channel: Channel,
    queue: String,
    jobs_queue: Arc<str>,
    browsed: Browsed,
    /// Messages that were taken from the queue and not handed out yet.
    ahead: VecDeque<Found>,
    /// The largest delivery count of the messages so far.
    delivery_count: u32,
    /// Republishes the whole queue, if the caller allowed it.
    republisher: Option<Republisher>,
    total: u32,
    taken: u32,
    window: u16,
    in_window: u16,
    bytes: usize,
    consumers: u32,
    consumer: Option<Consumer>,
    /// Whether the last message was a redelivery.
    is_returned: bool,
    /// The delivery tags of all messages that are held, in ascending order.
    held: Vec<u64>,
    /// `None` if our user may not declare the exclusive queue.
    lock: Option<Lock>,
}

impl Look {
    /// Opens a browse once no other process browses the queue; `waits` is called if one does.
    /// `None` if the queue does not exist.
    ///
    /// # Errors
    /// The broker refuses, its connection is lost, or another browse does not end.
    pub async fn open(
        session: &Session,
        browsed: Browsed,
        waits: impl Fn(),
    ) -> Result<Option<Self>, LookError> {
        let names = session.names();
        let queue = browsed.queue(names);
        if depth(session, &queue).await?.is_none() {
            return Ok(None);
        }
        let lock = Lock::take(session, &queue, waits).await?;
        let Some(total) = depth(session, &queue).await? else { return Ok(None) };
        let channel = answered(session.look_channel()).await?;
        Ok(Some(Self {
            channel,
            queue,
            jobs_queue: names.jobs().into(),
            browsed,
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
    pub async fn next(&mut self) -> Result<Option<Found>, LookError> {
        match self.ahead.pop_front() {
            Some(found) => Ok(Some(found)),
            None => self.take().await,
        }
    }

    /// Receives the next message.
    async fn take(&mut self) -> Result<Option<Found>, LookError> {
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
        let delivery = match answered_next(consumer).await {
            Ok(Some(delivery)) => delivery,
            // Another consumer took messages without a browse. They are not lost.
            Err(LookError::TimedOut) => {
                tracing::warn!(queue = self.queue, "browse incomplete: others consumed messages");
                self.total = self.taken;
                return Ok(None);
            }
            Ok(None) => return Err(LookError::Cancelled),
            Err(error) => return Err(error),
        };
        self.taken += 1;
        self.in_window -= 1;
        let found = Found {
            tag: delivery.delivery_tag,
            properties: delivery.properties,
            body: delivery.data,
            jobs_queue: Arc::clone(&self.jobs_queue),
        };
        self.held.push(found.tag);
        self.delivery_count = self.delivery_count.max(headers::delivery_count(&found.properties));
        self.is_returned = delivery.redelivered;
        self.bytes += found.size();
        if self.in_window == 0 {
            self.end_window().await?;
        }
        Ok(Some(found))
    }

    /// Removes a message from the queue for good.
    ///
    /// # Errors
    /// The connection to the broker is lost. Then the message stays in the queue.
    pub async fn remove(&mut self, found: &Found) -> Result<(), LookError> {
        self.channel.basic_ack(found.tag, BasicAckOptions::default()).await?;
        if let Ok(at) = self.held.binary_search(&found.tag) {
            self.held.remove(at);
        }
        // The ack frees one delivery of the open consumer's prefetch, so one more will come.
        if self.consumer.is_some() && self.taken + u32::from(self.in_window) < self.total {
            self.in_window += 1;
        }
        Ok(())
    }

    /// Returns all messages that were not removed, in their order.
    ///
    /// # Errors
    /// The connection to the broker is lost. Then the broker returns them.
    pub async fn close(mut self) -> Result<(), LookError> {
        // Finish the window: messages on their way to a cancelled consumer would return out of
        // order. Also take all messages that were returned before: they stand in front of the
        // others, in the order of their return.
        while self.consumer.is_some() || self.is_returned {
            if self.take().await?.is_none() {
                break;
            }
        }
        if self.consumer.is_some() {
            self.end_window().await?;
        }
        self.give_back().await?;
        if self.is_worn() {
            self.start_over().await?;
            self.republish_all().await?;
            self.give_back().await?;
        }
        answered(self.channel.close(200, "done".into())).await?;
        if let Some(republisher) = self.republisher {
            republisher.close().await;
        }
        match self.lock {
            Some(lock) => lock.give_back().await,
            None => Ok(()),
        }
    }

    /// Starts again with the messages that are ready now. No message may be held.
    async fn start_over(&mut self) -> Result<(), LookError> {
        self.total = self.ready().await?;
        (self.taken, self.in_window, self.bytes, self.window) = (0, 0, 0, WINDOW_MIN);
        (self.delivery_count, self.is_returned) = (0, false);
        self.ahead.clear();
        self.held.clear();
        Ok(())
    }

    /// Returns all messages that are held, in pieces. It waits for the broker in between, because
    /// the broker merges nacks that pile up and loses their order.
    async fn give_back(&self) -> Result<(), LookError> {
        let up_to = BasicNackOptions { multiple: true, requeue: true };
        let before = self.ready().await?;
        let mut returned = 0;
        for pieces in self.held.chunks(RETURNED_MAX * RETURNS_MAX) {
            for last in pieces.chunks(RETURNED_MAX).filter_map(<[u64]>::last) {
                self.channel.basic_nack(*last, up_to).await?;
            }
            returned += u32::try_from(pieces.len()).unwrap_or(u32::MAX);
            let until = tokio::time::Instant::now() + RETURN_TIMEOUT;
            while self.ready().await? < before + returned && tokio::time::Instant::now() < until {
                tokio::time::sleep(RETURN_EVERY).await;
            }
        }
        Ok(())
    }

    async fn ready(&self) -> Result<u32, LookError> {
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let (queue, none) = (self.queue.as_str().into(), FieldTable::default());
        Ok(answered(self.channel.queue_declare(queue, options, none)).await?.message_count())
    }

    /// Starts the consumer of the next window.
    async fn consume(&mut self) -> Result<Consumer, LookError> {
        if let Some(fitting) = self.fitting() {
            self.window = self.window.saturating_mul(2).min(fitting).clamp(WINDOW_MIN, WINDOW_MAX);
        }
        let left = u16::try_from(self.total - self.taken).unwrap_or(u16::MAX);
        self.in_window = self.window.min(left);
        self.consumers += 1;
        answered(self.channel.basic_qos(self.in_window, BasicQosOptions::default())).await?;
        let (queue, tag) = (self.queue.as_str().into(), self.tag());
        let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
        answered(self.channel.basic_consume(queue, tag.into(), options, none)).await
    }

    /// How many messages of the mean size so far fit into a window.
    fn fitting(&self) -> Option<u16> {
        let mean = self.bytes.checked_div(usize::try_from(self.taken).unwrap_or(usize::MAX))?;
        let fitting = WINDOW_BYTES.checked_div(mean)?;
        Some(u16::try_from(fitting).unwrap_or(u16::MAX))
    }

    /// Cancels the consumer. Its messages stay unacked, and acks bring no more of them.
    async fn end_window(&mut self) -> Result<(), LookError> {
        let cancelled = self.channel.basic_cancel(self.tag().into(), BasicCancelOptions::default());
        answered(cancelled).await?;
        self.consumer = None;
        Ok(())
    }

    /// A consumer tag. Tags sort in the order in which the consumers started.
    fn tag(&self) -> String {
        format!("look-{:08}", self.consumers)
    }
}

impl Found {
    /// The size of body and headers, in bytes: the parts that publishers decide on.
    fn size(&self) -> usize {
        let headers = self.properties.headers().as_ref();
        self.body.len() + headers.map_or(0, headers::table_size)
    }
}

const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
const RESOURCE_LOCKED: u16 = 405;

/// The AMQP reply code, if the broker refused.
fn code(error: &LookError) -> Option<u16> {
    match error {
        LookError::Broker(error) => match error.kind() {
            ErrorKind::ProtocolError(protocol) => Some(protocol.get_id()),
            _ => None,
        },
        _ => None,
    }
}

/// The number of ready messages in a queue; `None` if the queue does not exist.
async fn depth(session: &Session, queue: &str) -> Result<Option<u32>, LookError> {
    let channel = answered(session.look_channel()).await?;
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    let declared = channel.queue_declare(queue.into(), options, FieldTable::default());
    match answered(declared).await {
        Ok(queue) => {
            answered(channel.close(200, "done".into())).await?;
            Ok(Some(queue.message_count()))
        }
        Err(error) if code(&error) == Some(NOT_FOUND) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The next delivery; `None` if the consumer was cancelled.
async fn answered_next(
    consumer: &mut Consumer,
) -> Result<Option<lapin::message::Delivery>, LookError> {
    let delivery = tokio::time::timeout(ANSWER_TIMEOUT, consumer.next()).await;
    Ok(delivery.map_err(|_| LookError::TimedOut)?.transpose()?)
}

async fn answered<T>(method: impl Future<Output = lapin::Result<T>>) -> Result<T, LookError> {
    let answered = tokio::time::timeout(ANSWER_TIMEOUT, method).await;
    Ok(answered.map_err(|_| LookError::TimedOut)??)
}
