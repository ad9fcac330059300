//! Supervises a running worker: it opens one broker session after another, starts the pipeline of
//! each delivery, and drains.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{context::Context, pipeline::process};
use crate::{
    broker::{
        BrokerOptions, Consumer, ConsumerEvent, Delivery, OpenError, PublishRefusal, Session,
    },
    domain::settlement::Settlement,
    telemetry::{ProbeState, QueueSeen},
};

/// The pause after a failed try to open a session. It doubles with each try, so that many workers
/// do not flood a broker that is starting.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// A session that is lost within this time did not work. A pause follows it, or the worker would
/// reconnect in a tight loop.
const SHORT_SESSION: Duration = Duration::from_secs(5);
const SHORT_SESSION_PAUSE_MAX: Duration = Duration::from_secs(1);
/// How often the main loop checks conditions that do not wake it: whether jobs may be taken.
const CHECK_EVERY: Duration = Duration::from_millis(200);

/// How often the depths of the queues are read for the metrics.
const READ_DEPTHS_EVERY: Duration = Duration::from_secs(15);

/// The result of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// All jobs in flight were settled.
    Complete,
    /// The drain timed out. The broker requeues the unacked jobs.
    TimedOut,
}

/// Supervises a running worker: sessions, consumption, jobs in flight, and the drain.
pub(super) struct Supervisor {
    ctx: Arc<Context>,
    broker: BrokerOptions,
    tasks: TaskTracker,
    /// One permit for each job in flight, across sessions.
    permits: Arc<Semaphore>,
    redis_up: watch::Receiver<bool>,
    breaker_open: watch::Receiver<bool>,
    probe_state: Arc<ProbeState>,
    /// The exchange to which the broker refuses publishes, as last seen; the next session starts
    /// with it.
    refusal: Option<PublishRefusal>,
    drain_timeout: Duration,
    /// The deadline of the drain, set when it begins.
    drain_until: Option<Instant>,
    stop: CancellationToken,
}

/// Why consumption in a session ended.
enum SessionEnd {
    Stopped,
    Lost,
}

impl Supervisor {
    pub(super) fn new(
        ctx: Arc<Context>,
        broker: BrokerOptions,
        probe_state: Arc<ProbeState>,
        drain_timeout: Duration,
        stop: CancellationToken,
    ) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(broker.prefetch.into())),
            broker,
            tasks: TaskTracker::new(),
            redis_up: ctx.leases.up(),
            breaker_open: ctx.breaker.watch(),
            ctx,
            probe_state,
            refusal: None,
            drain_timeout,
            drain_until: None,
            stop,
        }
    }

    /// Runs one session after another until the worker is to stop, then drains.
    ///
    /// # Errors
    /// The first session could not be opened, and trying again would not help.
    pub(super) async fn run(mut self) -> Result<Drained, OpenError> {
        let (mut is_first, mut pause) = (true, Duration::ZERO);
        loop {
            let Some(session) = self.open(is_first).await? else {
                return Ok(self.drain(None).await);
            };
            is_first = false;
            let (session, opened) = (Arc::new(session), Instant::now());
            let watching = tokio::spawn({
                let session = Arc::clone(&session);
                async move { session.watch().await }
            });
            match self.work(&session).await {
                SessionEnd::Stopped => return Ok(self.drain(Some(&session)).await),
                SessionEnd::Lost => {}
            }
            // A message that the client can't parse ends every session until the broker has
            // delivered it so often that it dead-letters it.
            let was_short = opened.elapsed() < SHORT_SESSION;
            pause = if was_short {
                (pause * 2).clamp(BACKOFF_MIN, SHORT_SESSION_PAUSE_MAX)
            } else {
                Duration::ZERO
            };
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
            watching.await.unwrap_or_default();
            // Closing may take long if the broker is gone. The next session does not wait for it.
            tokio::spawn(async move { session.close().await });
        }
    }

    /// Opens a session, and tries without end with growing pauses. `None` if the worker is to stop.
    /// Mismatched declarations are an error only at the start: later, captures are in flight, and
    /// the change at the broker may be reverted.
    async fn open(&self, is_first: bool) -> Result<Option<Session>, OpenError> {
        let mut backoff = BACKOFF_MIN;
        loop {
            self.probe_state.record_progress();
            let opened = tokio::select! {
                () = self.stop.cancelled() => return Ok(None),
                opened = Session::open(&self.broker) => opened,
            };
            let error = match opened {
                Ok(session) => {
                    tracing::info!("broker session opened");
                    return Ok(Some(session));
                }
                Err(error @ (OpenError::Url | OpenError::Topology(_))) if is_first => {
                    return Err(error);
                }
                Err(error) => error,
            };
            let pause = backoff.mul_f32(rand::random_range(0.75..1.25));
            tracing::warn!(%error, retry_ms = %pause.as_millis(), "broker session failed to open");
            tokio::select! {
                () = self.stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(pause) => {}
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Works in one session until it ends. Meanwhile, the depths of the queues are read.
    async fn work(&mut self, session: &Arc<Session>) -> SessionEnd {
        if let Some(refusal) = self.refusal.clone() {
            session.suspect(refusal).await;
        }
        let reading = tokio::spawn(read_depths(Arc::clone(session), Arc::clone(&self.ctx)));
        self.probe_state.set_session_open(true);
        let end = self.consume(session).await;
        self.probe_state.set_session_open(false);
        reading.abort();
        self.ctx.metrics.queues_unknown();
        end
    }

    /// Consumes jobs until the session is lost or the worker is to stop. Pauses while Redis is
    /// unavailable, the circuit breaker is open, or the broker blocks or refuses publishes.
    async fn consume(&mut self, session: &Arc<Session>) -> SessionEnd {
        let mut consumer = Consumer::new(Arc::clone(session));
        loop {
            self.check_refusal(session);
            let may_take = *self.redis_up.borrow_and_update()
                && !*self.breaker_open.borrow_and_update()
                && !session.is_blocked()
                && self.refusal.is_none();
            if may_take && consumer.is_stopped() {
                consumer.open().await;
            } else if !may_take && consumer.is_open() {
                tracing::warn!("consumption paused");
                consumer.stop().await;
            } else if consumer.may_widen(self.tasks.is_empty()) {
                consumer.widen(self.tasks.is_empty()).await;
            }
            self.probe_state.record_progress();
            let taken = tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    self.hand_back(&mut consumer).await;
                    return SessionEnd::Stopped;
                }
                () = session.lost() => return SessionEnd::Lost,
                _ = self.redis_up.changed() => continue,
                _ = self.breaker_open.changed() => continue,
                taken = take(&self.permits, &mut consumer) => taken,
                () = tokio::time::sleep(CHECK_EVERY) => continue,
            };
            match taken {
                (ConsumerEvent::Delivery(delivery), permit) => {
                    let ctx = Arc::clone(&self.ctx);
                    self.tasks.spawn(async move {
                        let _in_flight = ctx.metrics.in_flight(delivery.born_ms());
                        process(ctx, *delivery).await;
                        drop(permit);
                    });
                }
                (ConsumerEvent::Stopped, _) => {}
                (ConsumerEvent::Lost, _) => return SessionEnd::Lost,
            }
        }
    }

    /// Records whether the broker refuses publishes, for the probes and for the next session.
    fn check_refusal(&mut self, session: &Session) {
        // A lost session knows nothing about the broker's present state.
        if !session.is_alive() {
            return;
        }
        let refusal = session.refusal();
        if refusal != self.refusal {
            self.probe_state.set_publish_refusal(refusal.as_ref().map(|refusal| {
                let exchange = session.names().exchange(refusal.exchange);
                format!("the broker refuses publishes to exchange {exchange}: {}", refusal.reason)
            }));
            self.refusal = refusal;
        }
    }

    /// Stops consuming, and hands back deliveries whose jobs have not started. A broker that does
    /// not respond could block this, so the deadline of the drain applies here too.
    async fn hand_back(&mut self, consumer: &mut Consumer) {
        let until = Instant::now() + self.drain_timeout;
        self.drain_until = Some(until);
        self.probe_state.set_draining();
        self.ctx.draining.cancel();
        let handed_back = async {
            consumer.stop().await;
            while !consumer.is_stopped() {
                match consumer.next().await {
                    ConsumerEvent::Delivery(delivery) => give_back(*delivery).await,
                    ConsumerEvent::Stopped | ConsumerEvent::Lost => return,
                }
            }
        };
        if tokio::time::timeout_at(until, handed_back).await.is_err() {
            tracing::warn!("hand-back timed out: unacked messages are requeued");
        }
    }

    /// Waits until the jobs in flight have ended, or the drain times out.
    async fn drain(self, session: Option<&Session>) -> Drained {
        self.probe_state.set_draining();
        self.ctx.draining.cancel();
        self.tasks.close();
        let in_flight = self.tasks.len();
        tracing::info!(in_flight, "drain started");
        let until = self.drain_until.unwrap_or_else(|| Instant::now() + self.drain_timeout);
        let drained = match tokio::time::timeout_at(until, self.tasks.wait()).await {
            Ok(()) => Drained::Complete,
            Err(_) => {
                let in_flight = self.tasks.len();
                tracing::error!(in_flight, "drain timed out: unacked messages are requeued");
                Drained::TimedOut
            }
        };
        if let Some(session) = session {
            session.close().await;
        }
        drained
    }
}

/// Reads the depths of the queues regularly, for the metrics.
async fn read_depths(session: Arc<Session>, ctx: Arc<Context>) {
    loop {
        match session.depths().await {
            Ok(depths) => ctx.metrics.queues_seen(depths.into_iter().map(|depth| QueueSeen {
                kind: depth.of.name(),
                name: depth.name,
                messages: depth.messages,
                is_missing: depth.is_missing,
            })),
            Err(error) => {
                ctx.metrics.queues_unknown();
                tracing::debug!(%error, "queue depths could not be read");
            }
        }
        tokio::time::sleep(READ_DEPTHS_EVERY).await;
    }
}

/// Waits for a permit, then for the next delivery.
async fn take(
    permits: &Arc<Semaphore>,
    consumer: &mut Consumer,
) -> (ConsumerEvent, Option<OwnedSemaphorePermit>) {
    let permit = Arc::clone(permits).acquire_owned().await.ok();
    (consumer.next().await, permit)
}

async fn give_back(delivery: Delivery) {
    let draining = CancellationToken::new();
    if let Err(lost) = delivery.settle(&Settlement::HandBack, &draining).await {
        tracing::debug!(%lost, "delivery not handed back");
    }
}
