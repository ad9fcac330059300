//! The worker: one session after the other, one pipeline for every job, and the drain.

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
        BrokerOptions, Delivery, Intake, OnPublish, OpenError, PublishError, Refusal, Session,
        Taken,
    },
    domain::{
        class::Codes,
        forward::ForwardFields,
        settle::{Policy, Settlement},
    },
    gateway::Gateway,
    lease::Leases,
    telemetry::{Health, Metrics, QueueSeen},
};

const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// A session that is lost so soon did not work.
const YOUNG: Duration = Duration::from_secs(5);
const YOUNG_PAUSE_MAX: Duration = Duration::from_secs(1);
/// How often it is looked whether jobs may be taken.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How often it is looked at what lies in the queues.
const COUNT_EVERY: Duration = Duration::from_secs(15);

/// All that a worker is made of.
pub struct Worker {
    /// The broker.
    pub broker: BrokerOptions,
    /// The gateway.
    pub gateway: Gateway,
    /// The leases.
    pub leases: Leases,
    /// The table of codes.
    pub codes: Codes,
    /// The fields of jobs that go to the gateway.
    pub forward: ForwardFields,
    /// When a job is tried again.
    pub policy: Policy,
    /// When captures pause.
    pub breaker: BreakerOptions,
    /// The most calls, as (how many, in how long).
    pub rate_limit: Option<(NonZeroU32, Duration)>,
    /// How long the jobs in flight may take at the end.
    pub drain_timeout: Duration,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// What the probes say.
    pub health: Arc<Health>,
}

/// How a worker stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Everything in flight was settled.
    Whole,
    /// The time was over before; what is unacked comes again.
    Overrun,
}

impl Worker {
    /// Works until `stop` is cancelled, then drains. A broker, Redis or gateway that is away is waited for.
    ///
    /// # Errors
    /// The broker's topology is not as it must be, or its URL can't be used: no later try would end otherwise.
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

/// A worker at work.
struct Crew {
    ctx: Arc<Context>,
    broker: BrokerOptions,
    tasks: TaskTracker,
    /// One permit for each job in flight, whichever session it came with.
    permits: Arc<Semaphore>,
    redis_up: watch::Receiver<bool>,
    breaker_open: watch::Receiver<bool>,
    health: Arc<Health>,
    /// The exchange that the last session found refused.
    refusal: Option<Refusal>,
    drain_timeout: Duration,
    /// Set when the drain begins.
    drain_until: Option<Instant>,
    stop: CancellationToken,
}

/// Why a session's work ended.
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
            // A message that the client can't read ends session after session, until the broker gives it up.
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
            // A broker that is gone may let the closing wait: the next session does not.
            tokio::spawn(async move { session.close().await });
        }
    }

    /// Opens a session, for ever, with growing pauses. `None`: told to stop. A topology of another shape is an error only at
    /// the start: later, captures are in flight, and whoever changed it may change it back.
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
                    tracing::info!("the broker's session is open");
                    return Ok(Some(session));
                }
                Err(error @ (OpenError::Url | OpenError::Topology(_))) if is_first => {
                    return Err(error);
                }
                Err(error) => error,
            };
            let pause = backoff.mul_f32(rand::random_range(0.75..1.25));
            tracing::warn!(%error, retry_ms = %pause.as_millis(), "no session with the broker");
            tokio::select! {
                () = self.stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(pause) => {}
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Takes jobs while they may be taken.
    async fn consume(&mut self, session: &Arc<Session>) -> Ended {
        let mut intake = Intake::new(Arc::clone(session));
        loop {
            self.look_at_refusal(session);
            let may_take = *self.redis_up.borrow_and_update()
                && !*self.breaker_open.borrow_and_update()
                && !session.is_blocked()
                && self.refusal.is_none();
            if may_take && intake.is_stopped() {
                intake.open().await;
            } else if !may_take && intake.is_open() {
                tracing::warn!("consumption pauses");
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
                (Taken::Delivery(delivery), permit) => {
                    let ctx = Arc::clone(&self.ctx);
                    self.tasks.spawn(async move {
                        let _in_flight = ctx.metrics.in_flight(delivery.born_ms());
                        process(ctx, *delivery).await;
                        drop(permit);
                    });
                }
                (Taken::Stopped, _) => {}
                (Taken::Lost, _) => return Ended::Lost,
            }
        }
    }

    /// Whether the broker takes what is published, for the probes and for the next session.
    fn look_at_refusal(&mut self, session: &Session) {
        // A session that is lost says nothing any more.
        if !session.is_alive() {
            return;
        }
        let refusal = session.refusal();
        if refusal != self.refusal {
            self.health.refused(refusal.as_ref().map(|refusal| {
                let exchange = session.names().exchange(refusal.exchange);
                format!("publishing to exchange {exchange} is refused: {}", refusal.reason)
            }));
            self.refusal = refusal;
        }
    }

    /// Ceases to consume, and gives back what was handed out and has not begun. A broker that does not answer may keep
    /// that from ending: the drain's time is its limit too.
    async fn hand_back(&mut self, intake: &mut Intake) {
        let until = Instant::now() + self.drain_timeout;
        self.drain_until = Some(until);
        self.health.draining();
        self.ctx.draining.cancel();
        let handed_back = async {
            intake.stop().await;
            while !intake.is_stopped() {
                match intake.next().await {
                    Taken::Delivery(delivery) => give_back(*delivery).await,
                    Taken::Stopped | Taken::Lost => return,
                }
            }
        };
        if tokio::time::timeout_at(until, handed_back).await.is_err() {
            tracing::warn!("not everything was handed back in time");
        }
    }

    /// Lets the jobs in flight end.
    async fn drain(self, session: Option<&Session>) -> Drained {
        self.health.draining();
        self.ctx.draining.cancel();
        self.tasks.close();
        let in_flight = self.tasks.len();
        tracing::info!(in_flight, "draining");
        let until = self.drain_until.unwrap_or_else(|| Instant::now() + self.drain_timeout);
        let drained = match tokio::time::timeout_at(until, self.tasks.wait()).await {
            Ok(()) => Drained::Whole,
            Err(_) => {
                let in_flight = self.tasks.len();
                tracing::error!(in_flight, "the drain overran; what is unacked comes again");
                Drained::Overrun
            }
        };
        if let Some(session) = session {
            session.close().await;
        }
        drained
    }
}

/// Looks now and then at what lies in the queues.
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
                tracing::debug!(%error, "what lies in the queues is not known");
            }
        }
        tokio::time::sleep(COUNT_EVERY).await;
    }
}

/// The next delivery, once there is room for it.
async fn take(
    permits: &Arc<Semaphore>,
    intake: &mut Intake,
) -> (Taken, Option<tokio::sync::OwnedSemaphorePermit>) {
    let permit = Arc::clone(permits).acquire_owned().await.ok();
    (intake.next().await, permit)
}

async fn give_back(delivery: Delivery) {
    let draining = CancellationToken::new();
    if let Err(lost) = delivery.settle(&Settlement::HandBack, &draining).await {
        tracing::debug!(%lost, "not handed back");
    }
}
