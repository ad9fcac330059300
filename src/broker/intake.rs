//! The stream of deliveries, which can be stopped and started while the session lives.

use std::sync::Arc;

use futures_util::StreamExt;
use lapin::Consumer;

use super::{delivery::Delivery, session::Session};

/// Deliveries of one session, as they come.
pub struct Intake {
    session: Arc<Session>,
    consumer: Option<Consumer>,
    cancelled: bool,
    started: u32,
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
    pub const fn new(session: Arc<Session>) -> Self {
        Self { session, consumer: None, cancelled: false, started: 0 }
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
        match self.session.start_consumer(&self.tag()).await {
            Ok(consumer) => self.consumer = Some(consumer),
            Err(error) => self.session.end(&format!("consuming failed: {error}")),
        }
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
