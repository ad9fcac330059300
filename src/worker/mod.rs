//! The worker: it opens one broker session after another, starts the pipeline of each job, and
//! drains.

mod breaker;
mod call;
mod ended;
mod line;
mod pace;
mod process;

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::breaker::BreakerOptions;
use self::{
    breaker::Breaker,
    line::Line,
    pace::Pace,
    process::{Context, process},
};
use crate::{
    broker::{
        BrokerOptions, Consumer, ConsumerEvent, Delivery, OnPublish, OpenError, PublishError,
        PublishRefusal, Session,
    },
    domain::{
        capture::class::Codes,
        job::forward::ForwardFields,
        settlement::{Policy, Settlement},
    },
    gateway::Gateway,
    lease::Leases,
    telemetry::{Health, Metrics, QueueSeen},
};

const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// A session that is lost within this time did not work. A pause follows it, or the worker would
/// reconnect in a tight loop.
const YOUNG: Duration = Duration::from_secs(5);
const YOUNG_PAUSE_MAX: Duration = Duration::from_secs(1);
/// How often the main loop checks conditions that do not wake it: whether jobs may be taken.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How often the depths of the queues are read for the metrics.
const COUNT_EVERY: Duration = Duration::from_secs(15);

/// The services, policies and limits that a worker runs with.
pub struct Worker {
    /// How to connect to the broker, and what to declare there.
    pub broker: BrokerOptions,
    /// The client of the payment gateway.
    pub gateway: Gateway,
    /// The leases of payments, kept in Redis.
    pub leases: Leases,
    /// The class of each result code of the gateway.
    pub codes: Codes,
    /// The fields of a job that are forwarded to the gateway.
    pub forward: ForwardFields,
    /// When and how often a job is retried or deferred.
    pub policy: Policy,
    /// When the circuit breaker pauses captures.
    pub breaker: BreakerOptions,
    /// The limit of gateway calls as (calls, period); `None` means unlimited.
    pub rate_limit: Option<(NonZeroU32, Duration)>,
    /// How long a drain may take.
    pub drain_timeout: Duration,
    /// Where the worker reports its metrics.
    pub metrics: Arc<Metrics>,
    /// Where the worker reports its state for the probes.
    pub health: Arc<Health>,
}

/// The result of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// All jobs in flight were settled.
    Whole,
    /// The drain timed out. The broker requeues the unacked jobs.
    Overrun,
}

impl Worker {
    /// Processes jobs until `stop` is cancelled, then drains. While broker, Redis or gateway is
    /// unavailable, the worker waits for it.
    ///
    /// # Errors
    /// At the start, exchange or queue declarations do not match those at the broker, or the broker
    /// URL can't be used. Trying again would not help.
    pub async fn run(self, stop: CancellationToken) -> Result<Drained, OpenError> {
        let links = CancellationToken::new();
        let leases = self.leases.clone();
        let keeper = tokio::spawn({
            let links = links.clone();
            async move { leases.keep_connected(links).await }
        });
        let crew = Crew::new(self, stop);
        let prober = tokio::spawn({
            let (ctx, links) = (Arc::clone(&crew.ctx), links.clone());
            async move { ctx.breaker.probe(&ctx.gateway, &ctx.codes, links).await }
        });
        let ended = crew.work().await;
        links.cancel();
        keeper.await.unwrap_or_default();
        prober.abort();
        ended
    }
}

/// Supervises a running worker: sessions, consumption, jobs in flight, and the drain.
struct Crew {
    ctx: Arc<Context>,
    broker: BrokerOptions,
    tasks: TaskTracker,
    /// One permit for each job in flight, across sessions.
    permits: Arc<Semaphore>,
    redis_up: watch::Receiver<bool>,
    breaker_open: watch::Receiver<bool>,
    health: Arc<Health>,
    /// The exchange to which the broker refuses publishes, as last seen; the next session starts
    /// with it.
    refusal: Option<PublishRefusal>,
    drain_timeout: Duration,
    /// The deadline of the drain, set when it begins.
    drain_until: Option<Instant>,
    stop: CancellationToken,
}

/// Why consumption in a session ended.
enum Ended {
    Stopped,
    Lost,
}

impl Crew {
    fn new(worker: Worker, stop: CancellationToken) -> Self {
        let redis_up = worker.leases.up();
        let Worker { policy, metrics, .. } = worker;
        let counted = Arc::clone(&metrics);
        let on_publish: OnPublish = Arc::new(move |to, result| {
            let result = result.as_ref().map_or_else(PublishError::name, |()| "confirmed");
            counted.published(to.name(), result);
        });
        let broker = BrokerOptions { on_publish: Some(on_publish), ..worker.broker };
        let ctx = Context {
            gateway: worker.gateway,
            leases: worker.leases,
            line: Line::new(broker.prefetch, policy.defer_schedule.clone()),
            codes: worker.codes,
            forward: worker.forward,
            policy,
            breaker: Breaker::new(worker.breaker, Arc::clone(&metrics)),
            pace: Pace::new(worker.rate_limit, Arc::clone(&metrics)),
            metrics,
            draining: CancellationToken::new(),
        };
        Self {
            permits: Arc::new(Semaphore::new(broker.prefetch.into())),
            broker,
            tasks: TaskTracker::new(),
            breaker_open: ctx.breaker.watch(),
            ctx: Arc::new(ctx),
            redis_up,
            health: worker.health,
            refusal: None,
            drain_timeout: worker.drain_timeout,
            drain_until: None,
            stop,
        }
    }

    async fn work(mut self) -> Result<Drained, OpenError> {
        let (mut is_first, mut pause) = (true, Duration::ZERO);
        loop {
            let Some(session) = self.open(is_first).await? else {
                return Ok(self.drain(None).await);
            };
            is_first = false;
            let opened = Instant::now();
            let session = Arc::new(session);
            let watching = tokio::spawn({
                let session = Arc::clone(&session);
                async move { session.watch().await }
            });
            if let Some(refusal) = self.refusal.clone() {
                session.suspect(refusal).await;
            }
            let counting = tokio::spawn(count_queues(Arc::clone(&session), Arc::clone(&self.ctx)));
            self.health.session(true);
            let ended = self.consume(&session).await;
            self.health.session(false);
            counting.abort();
            self.ctx.metrics.queues_unknown();
            if matches!(ended, Ended::Stopped) {
                return Ok(self.drain(Some(&session)).await);
            }
            // A message that the client can't parse ends every session until the broker has
            // delivered it so often that it dead-letters it.
            let young = opened.elapsed() < YOUNG;
            pause = if young {
                (pause * 2).clamp(BACKOFF_MIN, YOUNG_PAUSE_MAX)
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
            self.health.turned();
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

    /// Consumes jobs until the session is lost or the worker is to stop. Pauses while Redis is
    /// unavailable, the circuit breaker is open, or the broker blocks or refuses publishes.
    async fn consume(&mut self, session: &Arc<Session>) -> Ended {
        let mut intake = Consumer::new(Arc::clone(session));
        loop {
            self.look_at_refusal(session);
            let may_take = *self.redis_up.borrow_and_update()
                && !*self.breaker_open.borrow_and_update()
                && !session.is_blocked()
                && self.refusal.is_none();
            if may_take && intake.is_stopped() {
                intake.open().await;
            } else if !may_take && intake.is_open() {
                tracing::warn!("consumption paused");
                intake.stop().await;
            } else if intake.may_widen(self.tasks.is_empty()) {
                intake.widen(self.tasks.is_empty()).await;
            }
            self.health.turned();
            let taken = tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    self.hand_back(&mut intake).await;
                    return Ended::Stopped;
                }
                () = session.lost() => return Ended::Lost,
                _ = self.redis_up.changed() => continue,
                _ = self.breaker_open.changed() => continue,
                taken = take(&self.permits, &mut intake) => taken,
                () = tokio::time::sleep(LOOK_EVERY) => continue,
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
                (ConsumerEvent::Lost, _) => return Ended::Lost,
            }
        }
    }

    /// Records whether the broker refuses publishes, for the probes and for the next session.
    fn look_at_refusal(&mut self, session: &Session) {
        // A lost session knows nothing about the broker's present state.
        if !session.is_alive() {
            return;
        }
        let refusal = session.refusal();
        if refusal != self.refusal {
            self.health.refused(refusal.as_ref().map(|refusal| {
                let exchange = session.names().exchange(refusal.exchange);
                format!("the broker refuses publishes to exchange {exchange}: {}", refusal.reason)
            }));
            self.refusal = refusal;
        }
    }

    /// Stops consuming, and hands back deliveries whose jobs have not started. A broker that does
    /// not respond could block this, so the deadline of the drain applies here too.
    async fn hand_back(&mut self, intake: &mut Consumer) {
        let until = Instant::now() + self.drain_timeout;
        self.drain_until = Some(until);
        self.health.draining();
        self.ctx.draining.cancel();
        let handed_back = async {
            intake.stop().await;
            while !intake.is_stopped() {
                match intake.next().await {
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
        self.health.draining();
        self.ctx.draining.cancel();
        self.tasks.close();
        let in_flight = self.tasks.len();
        tracing::info!(in_flight, "drain started");
        let until = self.drain_until.unwrap_or_else(|| Instant::now() + self.drain_timeout);
        let drained = match tokio::time::timeout_at(until, self.tasks.wait()).await {
            Ok(()) => Drained::Whole,
            Err(_) => {
                let in_flight = self.tasks.len();
                tracing::error!(in_flight, "drain timed out: unacked messages are requeued");
                Drained::Overrun
            }
        };
        if let Some(session) = session {
            session.close().await;
        }
        drained
    }
}

/// Reads the depths of the queues regularly, for the metrics.
async fn count_queues(session: Arc<Session>, ctx: Arc<Context>) {
    loop {
        match session.depths().await {
            Ok(depths) => ctx.metrics.queues(depths.into_iter().map(|depth| QueueSeen {
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
        tokio::time::sleep(COUNT_EVERY).await;
    }
}

/// Waits for a permit, then for the next delivery.
async fn take(
    permits: &Arc<Semaphore>,
    intake: &mut Consumer,
) -> (ConsumerEvent, Option<tokio::sync::OwnedSemaphorePermit>) {
    let permit = Arc::clone(permits).acquire_owned().await.ok();
    (intake.next().await, permit)
}

async fn give_back(delivery: Delivery) {
    let draining = CancellationToken::new();
    if let Err(lost) = delivery.settle(&Settlement::HandBack, &draining).await {
        tracing::debug!(%lost, "delivery not handed back");
    }
}
