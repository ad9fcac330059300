//! The metrics of a worker. The documentation lists their names, units and labels.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError, atomic::AtomicU64},
    time::{Duration, Instant},
};

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};
use time::OffsetDateTime;

use super::{
    in_flight::{JobInFlight, JobsInFlight},
    labels::{
        CallLabel, EndLabel, LeaseResult, MoneyLabels, OutcomeLabel, PublishLabels, QueueLabels,
        ReasonLabel, ResultLabel, SettlementLabels, Text, WithinLabel,
    },
};
use crate::domain::time::epoch_ms;

/// Histogram buckets for the durations of calls and decisions, in seconds.
const SECONDS: [f64; 12] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0];
/// Histogram buckets for waits for a lease, in seconds. A job waits for a minute at most.
const WAIT_SECONDS: [f64; 11] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0];
/// Histogram buckets for the ages of jobs at their end, in seconds. The default retry schedule
/// takes ten hours, and the default `retry.max_age` is a day.
const AGE_SECONDS: [f64; 12] =
    [0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 10_800.0, 21_600.0, 86_400.0];

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;
type Seconds = Gauge<f64, AtomicU64>;

/// All metrics of a worker, and the registry that renders them.
pub struct Metrics {
    registry: Registry,
    pub(super) outcomes: Family<OutcomeLabel, Counter>,
    pub(super) attempts: Counter,
    pub(super) doubts: Family<ReasonLabel, Counter>,
    pub(super) deferrals: Family<ReasonLabel, Counter>,
    pub(super) settlements: Family<SettlementLabels, Counter>,
    pub(super) settled_money: Family<MoneyLabels, Counter>,
    pub(super) expiring_jobs: Family<WithinLabel, Counter>,
    pub(super) job_seconds: Histogram,
    pub(super) job_age_seconds: Histograms<EndLabel>,
    gateway_seconds: Histograms<CallLabel>,
    lease_seconds: Histograms<CallLabel>,
    lease_acquisitions: Family<ResultLabel, Counter>,
    lease_wait_seconds: Histogram,
    publishes: Family<PublishLabels, Counter>,
    queue_messages: Family<QueueLabels, Gauge>,
    queue_nonempty_seconds: Family<QueueLabels, Seconds>,
    queue_missing: Family<QueueLabels, Gauge>,
    nonempty_since: Mutex<HashMap<QueueLabels, Instant>>,
    jobs_in_flight: JobsInFlight,
    oldest_job_age_seconds: Seconds,
    breaker_open: Gauge,
    breaker_openings: Counter,
    calls_per_second_max: Gauge,
}

/// The state of one queue, as the broker reported it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSeen {
    /// The exchange that the queue is bound to, without the prefix.
    pub kind: &'static str,
    /// The delay of a wait queue, the class of a dead-letter queue; otherwise the same as `kind`.
    pub name: String,
    /// The number of ready messages; `None` if the queue does not exist.
    pub messages: Option<u32>,
    /// Whether the queue is missing, or was missing a few minutes ago.
    pub is_missing: bool,
}

impl Default for Metrics {
    fn default() -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(SECONDS);
        let ages: fn() -> Histogram = || Histogram::new(AGE_SECONDS);
        let mut metrics = Self {
            registry: Registry::with_prefix("capture_worker"),
            outcomes: Family::default(),
            attempts: Counter::default(),
            doubts: Family::default(),
            deferrals: Family::default(),
            settlements: Family::default(),
            settled_money: Family::default(),
            expiring_jobs: Family::default(),
            job_seconds: Histogram::new(SECONDS),
            job_age_seconds: Family::new_with_constructor(ages),
            gateway_seconds: Family::new_with_constructor(histogram),
            lease_seconds: Family::new_with_constructor(histogram),
            lease_acquisitions: Family::default(),
            lease_wait_seconds: Histogram::new(WAIT_SECONDS),
            publishes: Family::default(),
            queue_messages: Family::default(),
            queue_nonempty_seconds: Family::default(),
            queue_missing: Family::default(),
            nonempty_since: Mutex::default(),
            jobs_in_flight: JobsInFlight::default(),
            oldest_job_age_seconds: Seconds::default(),
            breaker_open: Gauge::default(),
            breaker_openings: Counter::default(),
            calls_per_second_max: Gauge::default(),
        };
        metrics.register_jobs();
        metrics.register_services();
        metrics
    }
}

impl Metrics {
    fn register_jobs(&mut self) {
        let registry = &mut self.registry;
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "Version of this worker", build);
        registry.register("attempts", "Attempts spent", self.attempts.clone());
        registry.register("outcomes", "Outcomes of deliveries", self.outcomes.clone());
        registry.register("doubts", "Outcomes in doubt, by cause", self.doubts.clone());
        registry.register("deferrals", "Deferrals, by reason", self.deferrals.clone());
        let help = "Settlements of deliveries; class is none unless dead-lettered";
        registry.register("settlements", help, self.settlements.clone());
        let help = "Money captured or dead-lettered, in the smallest unit of its currency";
        registry.register("settled_money", help, self.settled_money.clone());
        let help = "Retried jobs whose expiresAt comes this soon after the next attempt";
        registry.register("expiring_jobs", help, self.expiring_jobs.clone());
        let (help, unit) = ("Time from delivery to decision", Unit::Seconds);
        registry.register_with_unit("job", help, unit, self.job_seconds.clone());
        let (help, unit) = ("Age of jobs at their end", Unit::Seconds);
        registry.register_with_unit("job_age", help, unit, self.job_age_seconds.clone());
        let help = "Jobs started and not yet settled";
        registry.register("jobs_in_flight", help, self.jobs_in_flight.count());
        let (help, unit) = ("Age of the oldest job in flight", Unit::Seconds);
        registry.register_with_unit(
            "oldest_job_age",
            help,
            unit,
            self.oldest_job_age_seconds.clone(),
        );
    }

    fn register_services(&mut self) {
        let registry = &mut self.registry;
        let (help, unit) = ("Duration of a call to the gateway", Unit::Seconds);
        registry.register_with_unit("gateway", help, unit, self.gateway_seconds.clone());
        let (help, unit) = ("Duration of a call to Redis for the lease", Unit::Seconds);
        registry.register_with_unit("lease", help, unit, self.lease_seconds.clone());
        let help = "Waits for the lease of a payment, by result";
        registry.register("lease_acquisitions", help, self.lease_acquisitions.clone());
        let (help, unit) = ("Time from delivery to the lease", Unit::Seconds);
        registry.register_with_unit("lease_wait", help, unit, self.lease_wait_seconds.clone());
        let help = "Messages published, by exchange and response of the broker";
        registry.register("publishes", help, self.publishes.clone());
        let help = "Messages ready in a queue of the broker";
        registry.register("queue_messages", help, self.queue_messages.clone());
        let (help, unit) = ("How long this process has not seen the queue empty", Unit::Seconds);
        registry.register_with_unit(
            "queue_nonempty",
            help,
            unit,
            self.queue_nonempty_seconds.clone(),
        );
        let help = "1 if the queue is missing, or was a few minutes ago, else 0";
        registry.register("queue_missing", help, self.queue_missing.clone());
        let help = "1 while the circuit breaker is open and captures are paused, else 0";
        registry.register("breaker_open", help, self.breaker_open.clone());
        let help = "How often the circuit breaker opened";
        registry.register("breaker_openings", help, self.breaker_openings.clone());
        let help = "Current limit of the rate of gateway calls; 0 means unlimited";
        registry.register("calls_per_second_max", help, self.calls_per_second_max.clone());
    }

    /// Records that the circuit breaker opened or closed.
    pub fn breaker_changed(&self, is_open: bool) {
        self.breaker_open.set(i64::from(is_open));
        if is_open {
            self.breaker_openings.inc();
        }
    }

    /// Records the current limit of calls per second; 0 means unlimited.
    pub fn call_rate(&self, calls_per_second: u64) {
        self.calls_per_second_max.set(i64::try_from(calls_per_second).unwrap_or(i64::MAX));
    }

    /// Counts a job as in flight until the returned guard is dropped. `created_ms` is the time
    /// since which the job's age counts, in epoch milliseconds.
    #[must_use]
    pub fn in_flight(&self, created_ms: i64) -> JobInFlight {
        self.jobs_in_flight.start(created_ms)
    }

    /// Records the duration of a call to the gateway.
    pub fn gateway_call(&self, call: &'static str, took: Duration) {
        self.gateway_seconds
            .get_or_create(&CallLabel { call: Text(call) })
            .observe(took.as_secs_f64());
    }

    /// Records the duration of a call to Redis for a lease.
    pub fn lease_call(&self, call: &'static str, took: Duration) {
        self.lease_seconds
            .get_or_create(&CallLabel { call: Text(call) })
            .observe(took.as_secs_f64());
    }

    /// Records the result and the duration of a wait for a lease.
    pub fn lease_wait(&self, result: LeaseResult, waited: Duration) {
        let label = ResultLabel { result: Text(result.name()) };
        self.lease_acquisitions.get_or_create(&label).inc();
        if matches!(result, LeaseResult::Taken | LeaseResult::HandedOver) {
            self.lease_wait_seconds.observe(waited.as_secs_f64());
        }
    }

    /// Counts a message published to an exchange (named without the prefix), by the response.
    pub fn published(&self, to: &'static str, result: &'static str) {
        let labels = PublishLabels { to: Text(to), result: Text(result) };
        self.publishes.get_or_create(&labels).inc();
    }

    /// Replaces the queue metrics by these. Queues that are not among them have no value until they
    /// are reported again.
    pub fn queues_seen(&self, queues: impl IntoIterator<Item = QueueSeen>) {
        let now = Instant::now();
        let mut since = self.nonempty_since.lock().unwrap_or_else(PoisonError::into_inner);
        self.queues_unknown();
        for QueueSeen { kind, name, messages, is_missing } in queues {
            let labels = QueueLabels { kind: Text(kind), name };
            self.queue_missing.get_or_create(&labels).set(i64::from(is_missing));
            let Some(messages) = messages else {
                since.remove(&labels);
                continue;
            };
            self.queue_messages.get_or_create(&labels).set(messages.into());
            let seconds = if messages == 0 {
                since.remove(&labels);
                Duration::ZERO
            } else {
                now - *since.entry(labels.clone()).or_insert(now)
            };
            self.queue_nonempty_seconds.get_or_create(&labels).set(seconds.as_secs_f64());
        }
    }

    /// Removes the queue metrics: no value is better than an old one.
    pub fn queues_unknown(&self) {
        self.queue_messages.clear();
        self.queue_nonempty_seconds.clear();
        self.queue_missing.clear();
    }

    /// Renders all metrics as text for Prometheus (`application/openmetrics-text`).
    #[must_use]
    pub fn render(&self) -> String {
        let age = self.jobs_in_flight.oldest_age(epoch_ms(OffsetDateTime::now_utc()));
        self.oldest_job_age_seconds.set(age.as_secs_f64());
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap_or_default();
        text
    }
}
