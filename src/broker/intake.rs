//! The stream of deliveries, which can be stopped and started while the session lives.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use lapin::Consumer;

use super::{delivery::Delivery, session::Session};

/// So long without a delivery, and nothing that came back is left to be tried alone.
const QUIET: Duration = Duration::from_millis(500);

/// The prefetch of a session's first deliveries, until twice as many have come.
const NARROW: [u16; 3] = [1, 8, 64];

/// Deliveries of one session, as they come. It begins narrow, with one delivery at a time, and widens in steps: what came
/// back when the last session was lost comes first, and a message that ends sessions (the client can't read it) or
/// workers then takes few neighbours along, whose returns are counted with it: none once it is the first to come back.
pub struct Intake {
    session: Arc<Session>,
    consumer: Option<Consumer>,
    cancelled: bool,
    started: u32,
    /// Which of the narrow steps; past the last one, the full prefetch.
    step: usize,
    /// Deliveries since the step began.
    taken: u16,
    /// A delivery came that was never handed out before.
    saw_fresh: bool,
    last_change: Instant,
}

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
            consumer: None,
            cancelled: false,
            started: 0,
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
        self.consumer.is_some() && !self.cancelled
    }

    /// Whether nothing is asked for and nothing is underway.
    #[must_use]
    pub const fn is_stopped(&self) -> bool {
        self.consumer.is_none()
    }

    /// Asks for jobs.
    pub async fn open(&mut self) {
        self.started = self.started.wrapping_add(1);
        self.cancelled = false;
        self.last_change = Instant::now();
        let prefetch = self.narrow().unwrap_or_else(|| self.session.prefetch());
        match self.session.start_consumer(&self.tag(), prefetch).await {
            Ok(consumer) => self.consumer = Some(consumer),
            Err(error) => self.session.end(&format!("consuming failed: {error}")),
        }
    }

    /// Takes more at once from the next opening on; until then as [`Intake::stop`].
    pub async fn widen(&mut self, idle: bool) {
        self.step = if self.is_over(idle) { NARROW.len() } else { self.step + 1 };
        self.taken = 0;
        self.stop().await;
    }

    /// Asks for no more jobs. What the broker handed out already still comes, then [`Taken::Stopped`].
    pub async fn stop(&mut self) {
        if self.is_open() {
            self.cancelled = true;
            if let Err(error) = self.session.cancel_consumer(&self.tag()).await {
                self.session.end(&format!("cancelling the consumer failed: {error}"));
            }
        }
    }

    /// The next job.
    pub async fn next(&mut self) -> Taken {
        let Some(consumer) = &mut self.consumer else { return std::future::pending().await };
        let next = tokio::select! {
            () = self.session.lost() => return Taken::Lost,
            next = consumer.next() => next,
        };
        match next {
            // Buffered deliveries still come out after the broker is gone: ghosts, not to be started.
            Some(Ok(delivery)) if self.session.is_alive() => {
                self.saw_fresh |= !delivery.redelivered;
                self.taken = self.taken.saturating_add(1);
                self.last_change = Instant::now();
                Taken::Delivery(Box::new(Delivery::new(Arc::clone(&self.session), delivery)))
            }
            Some(Ok(_)) => Taken::Lost,
            Some(Err(error)) => {
                self.session.end(&format!("the consumer failed: {error}"));
                Taken::Lost
            }
            None if self.cancelled => {
                self.consumer = None;
                Taken::Stopped
            }
            None => {
                self.session.end("the broker cancelled the consumer");
                Taken::Lost
            }
        }
    }

    fn tag(&self) -> String {
        format!("capture-worker-{}", self.started)
    }
}
