//! A look into a queue that keeps what it holds: every message is handed out once and none is acked, until the look is closed
//! and all are back where they were, in their order. Those that are acted on meanwhile may be taken out, one by one.
//!
//! What is looked at is out of everybody else's sight, so looks at one queue wait for each other: each holds the exclusive
//! queue `<queue>.look`, which the broker removes with its connection. The client keeps whatever it is sent, so it is sent a
//! bounded window at a time: a consumer for each, cancelled when it has brought its window.
//!
//! A look that is closed gives back in order. One that is killed has the broker give back, which loses nothing, and keeps the
//! order of no more than some thirty of a window (RabbitMQ 3.10).
//!
//! The broker counts what is given back. A policy with a delivery limit would in the end drop it, so
//! a look may republish the whole queue when that count has grown: see [`Look::may_republish`].

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
use crate::domain::{class::Class, forward::ForwardFields, letter::DeadLetter, settle::epoch_ms};

/// The first window; later ones double while they stay small in bytes.
const WINDOW_MIN: u16 = 64;
/// A few dozen consumers for a hundred thousand letters.
const WINDOW_MAX: u16 = 4096;
/// A window of messages like those before takes at most so much memory, in bytes.
const WINDOW_BYTES: usize = 8 * 1024 * 1024;
/// The broker gives back in their order what one frame gives back, if it is no more than this: beyond, it goes by a table
/// without order.
const RETURNED_MAX: usize = 32;
/// And if it has no more such frames before it than this; else it puts them together.
const RETURNS_MAX: usize = 8;
/// It has worked on them when so many messages more are ready; where others take them meanwhile, that is not waited for.
const RETURN_TIMEOUT: Duration = Duration::from_secs(2);
const RETURN_EVERY: Duration = Duration::from_millis(1);
/// The broker answers a method, or hands out what is ready, within this time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a look ended early. Whatever was handed out is back in its queue, or will be soon.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// The broker refused something, or the connection is lost.
    #[error("the broker: {0}")]
    Broker(#[from] lapin::Error),
    /// It answers nothing.
    #[error("the broker did not answer in time")]
    TimedOut,
    /// It hands out nothing more.
    #[error("the broker ended the look")]
    Cancelled,
    /// Another look at the same queue takes too long.
    #[error("somebody else has been looking at {0} for five minutes: try again when that is over")]
    Busy(String),
}

/// A message as it lies in its queue, unacked by us.
#[derive(Clone, Debug)]
pub struct Found {
    pub(super) tag: u64,
    pub(super) properties: BasicProperties,
    /// The message, byte for byte.
    pub body: Vec<u8>,
    /// The name of the queue of jobs.
    jobs_queue: Arc<str>,
}

impl Found {
    /// Reads it as a letter of a class.
    #[must_use]
    pub fn letter(&self, class: Class, forward: &ForwardFields) -> DeadLetter {
        let now_ms = epoch_ms(OffsetDateTime::now_utc());
        let (body, jobs) = (self.body.clone(), &self.jobs_queue);
        headers::read_letter(class, body, &self.properties, forward, jobs, now_ms)
    }

    /// Its headers and its other properties, as JSON objects.
    #[must_use]
    pub fn shown(&self) -> (serde_json::Value, serde_json::Value) {
        headers::shown(&self.properties)
    }
}

/// The queues that can be looked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Browsed {
    /// The dead letters of a class.
    DeadLetters(Class),
    /// The audit records.
    Audit,
}

impl Browsed {
    /// The queue's name.
    fn queue(self, names: &Names) -> String {
        match self {
            Self::DeadLetters(class) => names.dead_queue(class),
            Self::Audit => names.audit(),
        }
    }

    /// The exchange and the routing key that lead to the queue.
    const fn address(self) -> (Exchange, &'static str) {
        match self {
            Self::DeadLetters(class) => (Exchange::Dead, class.name()),
            Self::Audit => (Exchange::Audit, AUDIT),
        }
    }
}

/// An open look.
pub struct Look {
    channel: Channel,
    queue: String,
    jobs_queue: Arc<str>,
    browsed: Browsed,
    /// Messages that were taken and not handed out yet.
    ahead: VecDeque<Found>,
    /// The largest delivery count that was seen.
    delivery_count: u32,
    /// Publishes the whole queue again, where the caller lets it.
    republisher: Option<Republisher>,
    total: u32,
    taken: u32,
    window: u16,
    in_window: u16,
    bytes: usize,
    consumers: u32,
    consumer: Option<Consumer>,
    /// Whether the last message had been handed out before.
    is_returned: bool,
    /// The tags of what is held, in order.
    held: Vec<u64>,
    /// The exclusive queue; `None` where we may not declare one.
    lock: Option<Lock>,
}

impl Look {
    /// Opens a look into a queue, once nobody else has one; `waits` is told if somebody has. `None`: there is no such queue.
    ///
    /// # Errors
    /// The broker refuses, is lost, or another look does not end.
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

    /// How many messages it will hand out: those that were ready when it began.
    #[must_use]
    pub const fn total(&self) -> u32 {
        self.total
    }

    /// The next message; `None` after the last of those that were there at the beginning.
    ///
    /// # Errors
    /// The broker is lost.
    pub async fn next(&mut self) -> Result<Option<Found>, LookError> {
        match self.ahead.pop_front() {
            Some(found) => Ok(Some(found)),
            None => self.take().await,
        }
    }

    /// Takes the next message out of the queue.
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
            // Somebody took messages without a look: those were not lost, they are in other hands.
            Err(LookError::TimedOut) => {
                tracing::warn!(queue = self.queue, "fewer messages came than were there");
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

    /// Takes a message out for good.
    ///
    /// # Errors
    /// The broker is lost: then it is still there.
    pub async fn remove(&mut self, found: &Found) -> Result<(), LookError> {
        self.channel.basic_ack(found.tag, BasicAckOptions::default()).await?;
        if let Ok(at) = self.held.binary_search(&found.tag) {
            self.held.remove(at);
        }
        // Whatever is acked makes room for one more with the consumer that is open.
        if self.consumer.is_some() && self.taken + u32::from(self.in_window) < self.total {
            self.in_window += 1;
        }
        Ok(())
    }

    /// Gives everything back that was not taken out, in its order.
    ///
    /// # Errors
    /// The broker is lost: then it gives back by itself.
    pub async fn close(mut self) -> Result<(), LookError> {
        // A window is brought to its end: what is on its way to a consumer that is cancelled goes back out of its turn. And what
        // came back before stands in front of the rest, in the order in which it came back: so all of that comes along.
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

    /// Begins again with all that is ready now, once nothing is held.
    async fn start_over(&mut self) -> Result<(), LookError> {
        self.total = self.ready().await?;
        (self.taken, self.in_window, self.bytes, self.window) = (0, 0, 0, WINDOW_MIN);
        (self.delivery_count, self.is_returned) = (0, false);
        self.ahead.clear();
        self.held.clear();
        Ok(())
    }

    /// In pieces, and never more than the broker works on one by one: whatever piles up it puts together, without order.
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

    /// A consumer for the next window.
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

    /// How many messages of the size of those so far fit into a window.
    fn fitting(&self) -> Option<u16> {
        let mean = self.bytes.checked_div(usize::try_from(self.taken).unwrap_or(usize::MAX))?;
        let fitting = WINDOW_BYTES.checked_div(mean)?;
        Some(u16::try_from(fitting).unwrap_or(u16::MAX))
    }

    /// What the consumer brought stays unacked; it brings no more, whatever is acked.
    async fn end_window(&mut self) -> Result<(), LookError> {
        let cancelled = self.channel.basic_cancel(self.tag().into(), BasicCancelOptions::default());
        answered(cancelled).await?;
        self.consumer = None;
        Ok(())
    }

    /// Sorted by when they began.
    fn tag(&self) -> String {
        format!("look-{:08}", self.consumers)
    }
}

impl Found {
    /// Of the parts that others decide on, in bytes.
    fn size(&self) -> usize {
        let headers = self.properties.headers().as_ref();
        self.body.len() + headers.map_or(0, headers::table_size)
    }
}

const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
const RESOURCE_LOCKED: u16 = 405;

/// The broker's code, if it refused.
fn code(error: &LookError) -> Option<u16> {
    match error {
        LookError::Broker(error) => match error.kind() {
            ErrorKind::ProtocolError(protocol) => Some(protocol.get_id()),
            _ => None,
        },
        _ => None,
    }
}

/// How many messages are ready in a queue; `None` if there is no such queue.
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

/// The next delivery; `None` if the consumer has ended.
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
