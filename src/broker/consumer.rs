//! The stream of deliveries of one session. It can be stopped and started again.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{
    StreamExt,
    stream::{self, BoxStream, SelectAll},
};

use super::{delivery::Delivery, session::Session};

/// After this time without a delivery, no redelivered message is left in the queue that would have
/// to be tried alone.
const QUIET: Duration = Duration::from_millis(500);

/// The prefetch of the first steps of a session, in deliveries. A step ends after twice as many
/// deliveries.
const NARROW: [u16; 3] = [1, 8, 64];

/// Consumes the jobs of one session. The prefetch begins at one delivery and grows in steps.
///
/// Redelivered messages come first. If one of them ends the session (the client can't read it) or
/// kills the worker, all unacked deliveries are returned and counted. A small prefetch keeps that
/// number small, and it is zero once the harmful message is the first to be delivered.
///
/// Each step adds a consumer for the rest of its prefetch. If it replaced the consumer instead, the
/// broker would return, and count, the deliveries on their way to the cancelled one.
pub struct Consumer {
    session: Arc<Session>,
    consumers: SelectAll<BoxStream<'static, ConsumerItem>>,
    /// The tags of the consumers that have not ended.
    tags: Vec<String>,
    cancelled: bool,
    started: u32,
    /// The sum of the prefetch of all consumers so far.
    prefetch: u16,
    /// The index into [`NARROW`]; past its end, the full prefetch applies.
    step: usize,
    /// The number of deliveries since the step began.
    delivered: u16,
    /// Whether a delivery came that is not a redelivery.
    saw_fresh: bool,
    last_change: Instant,
}

/// What a consumer yields; `None` means that it has ended.
type ConsumerItem = Option<lapin::Result<lapin::message::Delivery>>;

/// The next event of the stream of deliveries.
pub enum ConsumerEvent {
    /// A job was delivered and must be settled.
    Delivery(Box<Delivery>),
    /// The stream was stopped, and every delivery that was on its way has come.
    Stopped,
    /// The session is lost.
    Lost,
}

impl Consumer {
    /// A stream that does not consume yet.
    #[must_use]
    pub fn new(session: Arc<Session>) -> Self {
        Self {
            session,
            consumers: SelectAll::new(),
            tags: Vec::new(),
            cancelled: false,
            started: 0,
            prefetch: 0,
            step: 0,
            delivered: 0,
            saw_fresh: false,
            last_change: Instant::now(),
        }
    }

    /// Whether the prefetch may grow to the next step. `idle`: no job is in flight.
    #[must_use]
    pub fn may_widen(&self, idle: bool) -> bool {
        let Some(narrow) = self.narrow() else { return false };
        self.is_open() && (self.is_over(idle) || self.delivered >= narrow.saturating_mul(2))
    }

    /// Whether all redelivered messages have come.
    fn is_over(&self, idle: bool) -> bool {
        self.saw_fresh || idle && self.last_change.elapsed() >= QUIET
    }

    /// The prefetch of this step; `None` if the full prefetch applies.
    fn narrow(&self) -> Option<u16> {
        NARROW.get(self.step).copied().filter(|narrow| *narrow < self.session.prefetch())
    }

    /// Whether the stream consumes jobs.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        !self.tags.is_empty() && !self.cancelled
    }

    /// Whether the stream does not consume, and no delivery is on its way.
    #[must_use]
    pub const fn is_stopped(&self) -> bool {
        self.tags.is_empty()
    }

    /// Starts to consume jobs.
    pub async fn open(&mut self) {
        self.cancelled = false;
        self.prefetch = 0;
        self.last_change = Instant::now();
        self.add_consumer().await;
    }

    /// Raises the prefetch to the next step, or to the full prefetch.
    pub async fn widen(&mut self, idle: bool) {
        self.step = if self.is_over(idle) { NARROW.len() } else { self.step + 1 };
        self.delivered = 0;
        self.add_consumer().await;
    }

    /// Adds a consumer for the part of the step's prefetch that the others don't cover.
    async fn add_consumer(&mut self) {
        self.started = self.started.wrapping_add(1);
        let tag = format!("capture-worker-{}", self.started);
        let prefetch = self.narrow().unwrap_or_else(|| self.session.prefetch());
        let more = prefetch - self.prefetch.min(prefetch);
        if more == 0 {
            return;
        }
        match self.session.start_consumer(&tag, more).await {
            Ok(consumer) => {
                let end = stream::once(std::future::ready(None));
                self.consumers.push(consumer.map(Some).chain(end).boxed());
                self.tags.push(tag);
                self.prefetch = prefetch;
            }
            Err(error) => self.session.end(&format!("starting a consumer failed: {error}")),
        }
    }

    /// Stops consuming. Deliveries on their way still come, then [`ConsumerEvent::Stopped`].
    pub async fn stop(&mut self) {
        if !self.is_open() {
            return;
        }
        self.cancelled = true;
        for tag in &self.tags {
            if let Err(error) = self.session.cancel_consumer(tag).await {
                return self.session.end(&format!("cancelling a consumer failed: {error}"));
            }
        }
    }

    /// Waits for the next event. Never returns while the stream is stopped.
    pub async fn next(&mut self) -> ConsumerEvent {
        if self.tags.is_empty() {
            return std::future::pending().await;
        }
        loop {
            let pulled = tokio::select! {
                () = self.session.lost() => return ConsumerEvent::Lost,
                pulled = self.consumers.next() => pulled.flatten(),
            };
            match pulled {
                // The client still yields buffered deliveries after the connection is lost. The
                // broker redelivers them, so they must not be started.
                Some(Ok(delivery)) if self.session.is_alive() => {
                    self.saw_fresh |= !delivery.redelivered;
                    self.delivered = self.delivered.saturating_add(1);
                    self.last_change = Instant::now();
                    let delivery = Delivery::new(Arc::clone(&self.session), delivery);
                    return ConsumerEvent::Delivery(Box::new(delivery));
                }
                Some(Ok(_)) => return ConsumerEvent::Lost,
                Some(Err(error)) => {
                    self.session.end(&format!("a consumer failed: {error}"));
                    return ConsumerEvent::Lost;
                }
                None if self.cancelled => {
                    self.tags.pop();
                    if self.tags.is_empty() {
                        return ConsumerEvent::Stopped;
                    }
                }
                None => {
                    self.session.end("the broker cancelled a consumer");
                    return ConsumerEvent::Lost;
                }
            }
        }
    }
}
