//! The stream of deliveries, which can be stopped and started while the session lives.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{
    StreamExt,
    stream::{self, BoxStream, SelectAll},
};

use super::{delivery::Delivery, session::Session};

/// So long without a delivery, and nothing that came back is left to be tried alone.
const QUIET: Duration = Duration::from_millis(500);

/// The prefetch of a session's first deliveries, until twice as many have come.
const NARROW: [u16; 3] = [1, 8, 64];

/// Deliveries of one session, as they come. It begins narrow, with one delivery at a time, and widens in steps: what came
/// back when the last session was lost comes first, and a message that ends sessions (the client can't read it) or
/// workers then takes few neighbours along, whose returns are counted with it: none once it is the first to come back.
///
/// Each step adds a consumer for the rest of its prefetch: a consumer that was cancelled for a wider one would have what
/// is on its way taken back by the broker, and counted.
pub struct Intake {
    session: Arc<Session>,
    consumers: SelectAll<BoxStream<'static, Pulled>>,
    /// Those of the consumers that have not ended.
    tags: Vec<String>,
    cancelled: bool,
    started: u32,
    /// What may be unacked by now.
    prefetch: u16,
    /// Which of the narrow steps; past the last one, the full prefetch.
    step: usize,
    /// Deliveries since the step began.
    taken: u16,
    /// A delivery came that was never handed out before.
    saw_fresh: bool,
    last_change: Instant,
}

/// What a consumer yields; at last nothing: that it has ended.
type Pulled = Option<lapin::Result<lapin::message::Delivery>>;

/// What the intake yields.
pub enum Taken {
    /// A job.
    Delivery(Box<Delivery>),
    /// Nothing more comes: the intake was stopped, and what was underway has come.
    Stopped,
    /// Nothing more comes, and nobody asked for that: the session is lost.
    Lost,
}

impl Intake {
    /// An intake that takes nothing yet.
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
            taken: 0,
            saw_fresh: false,
            last_change: Instant::now(),
        }
    }

    /// Whether it is time to take more at once. `idle`: nothing is in flight.
    #[must_use]
    pub fn may_widen(&self, idle: bool) -> bool {
        let Some(narrow) = self.narrow() else { return false };
        self.is_open() && (self.is_over(idle) || self.taken >= narrow.saturating_mul(2))
    }

    /// What came back has come.
    fn is_over(&self, idle: bool) -> bool {
        self.saw_fresh || idle && self.last_change.elapsed() >= QUIET
    }

    /// The prefetch of this step; `None` if it is the full one.
    fn narrow(&self) -> Option<u16> {
        NARROW.get(self.step).copied().filter(|narrow| *narrow < self.session.prefetch())
    }

    /// Whether jobs are asked for.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        !self.tags.is_empty() && !self.cancelled
    }

    /// Whether nothing is asked for and nothing is underway.
    #[must_use]
    pub const fn is_stopped(&self) -> bool {
        self.tags.is_empty()
    }

    /// Asks for jobs.
    pub async fn open(&mut self) {
        self.cancelled = false;
        self.prefetch = 0;
        self.last_change = Instant::now();
        self.add_consumer().await;
    }

    /// Takes more at once.
    pub async fn widen(&mut self, idle: bool) {
        self.step = if self.is_over(idle) { NARROW.len() } else { self.step + 1 };
        self.taken = 0;
        self.add_consumer().await;
    }

    /// For what the step's prefetch is more than that of the consumers so far.
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
            Err(error) => self.session.end(&format!("consuming failed: {error}")),
        }
    }

    /// Asks for no more jobs. What the broker handed out already still comes, then [`Taken::Stopped`].
    pub async fn stop(&mut self) {
        if !self.is_open() {
            return;
        }
        self.cancelled = true;
        for tag in &self.tags {
            if let Err(error) = self.session.cancel_consumer(tag).await {
                return self.session.end(&format!("cancelling the consumer failed: {error}"));
            }
        }
    }

    /// The next job.
    pub async fn next(&mut self) -> Taken {
        if self.tags.is_empty() {
            return std::future::pending().await;
        }
        loop {
            let pulled = tokio::select! {
                () = self.session.lost() => return Taken::Lost,
                pulled = self.consumers.next() => pulled.flatten(),
            };
            match pulled {
                // Buffered deliveries still come out after the broker is gone: ghosts, not to be started.
                Some(Ok(delivery)) if self.session.is_alive() => {
                    self.saw_fresh |= !delivery.redelivered;
                    self.taken = self.taken.saturating_add(1);
                    self.last_change = Instant::now();
                    let delivery = Delivery::new(Arc::clone(&self.session), delivery);
                    return Taken::Delivery(Box::new(delivery));
                }
                Some(Ok(_)) => return Taken::Lost,
                Some(Err(error)) => {
                    self.session.end(&format!("the consumer failed: {error}"));
                    return Taken::Lost;
                }
                None if self.cancelled => {
                    self.tags.pop();
                    if self.tags.is_empty() {
                        return Taken::Stopped;
                    }
                }
                None => {
                    self.session.end("the broker cancelled the consumer");
                    return Taken::Lost;
                }
            }
        }
    }
}
