//! Logs, counters, and what the probes say.

use std::{
    borrow::Cow,
    fmt::Write,
    io::IsTerminal,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};
use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, filter::filter_fn, fmt, layer::SubscriberExt, util::SubscriberInitExt,
};

use crate::{
    config::LogFormat,
    domain::{
        history::History,
        outcome::{Attempt, Outcome},
        settle::Settlement,
    },
};

/// How long the loop may stand still before the liveness probe says so: longer than opening a session may take.
const TURNS_WITHIN: Duration = Duration::from_secs(120);
/// Bounds of the times, in seconds.
const SECONDS: [f64; 12] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0];

/// Sends logs to stderr from now on; without a format, as text to a terminal and as JSON elsewhere.
///
/// # Errors
/// The filter is none.
pub fn start_logging(format: Option<LogFormat>, filter: &str) -> Result<(), String> {
    let on_terminal = std::io::stderr().is_terminal();
    let by_default = if on_terminal { LogFormat::Text } else { LogFormat::Json };
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("log.filter: {error}"))?;
    let (json, text) = match format.unwrap_or(by_default) {
        LogFormat::Json => (Some(fmt::layer().json().flatten_event(true)), None),
        LogFormat::Text => (None, Some(fmt::layer())),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(filter_fn(keeps_secrets))
        .with(json.map(|layer| layer.with_writer(std::io::stderr)))
        .with(text.map(|layer| layer.with_writer(std::io::stderr)))
        .try_init()
        .map_err(|error| error.to_string())
}

/// Whatever the filter asks for: below `info`, libraries print frames, with passwords and bodies in them; and the AMQP client
/// prints whole messages that come back.
fn keeps_secrets(line: &Metadata<'_>) -> bool {
    let (target, level) = (line.target(), *line.level());
    target.starts_with("capture_worker")
        || (level <= Level::INFO && target != "lapin::returned_messages")
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Text(&'static str);

impl EncodeLabelValue for Text {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        encoder.write_str(self.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: Text,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: Text,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SettlementLabels {
    settlement: Text,
    class: Text,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabel {
    call: Text,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MoneyLabels {
    settlement: Text,
    class: Text,
    currency: Text,
}

type Times<L> = Family<L, Histogram, fn() -> Histogram>;

/// The counters of a worker.
pub struct Metrics {
    registry: Registry,
    outcomes: Family<OutcomeLabel, Counter>,
    attempts: Counter,
    doubts: Family<ReasonLabel, Counter>,
    deferrals: Family<ReasonLabel, Counter>,
    settlements: Family<SettlementLabels, Counter>,
    settled_money: Family<MoneyLabels, Counter>,
    gateway_seconds: Times<CallLabel>,
    lease_seconds: Times<CallLabel>,
    job_seconds: Histogram,
    jobs_in_flight: Gauge,
    breaker_open: Gauge,
    breaker_openings: Counter,
    calls_per_second_max: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(SECONDS);
        let mut metrics = Self {
            registry: Registry::with_prefix("capture_worker"),
            outcomes: Family::default(),
            attempts: Counter::default(),
            doubts: Family::default(),
            deferrals: Family::default(),
            settlements: Family::default(),
            settled_money: Family::default(),
            gateway_seconds: Family::new_with_constructor(histogram),
            lease_seconds: Family::new_with_constructor(histogram),
            job_seconds: Histogram::new(SECONDS),
            jobs_in_flight: Gauge::default(),
            breaker_open: Gauge::default(),
            breaker_openings: Counter::default(),
            calls_per_second_max: Gauge::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let registry = &mut self.registry;
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "What runs", build);
        registry.register("attempts", "Attempts spent", self.attempts.clone());
        registry.register("outcomes", "What deliveries came to", self.outcomes.clone());
        registry.register("doubts", "Outcomes in doubt, by what raised it", self.doubts.clone());
        registry.register("deferrals", "Deferrals, by reason", self.deferrals.clone());
        let help = "What was done with deliveries; class of dead letters, else none";
        registry.register("settlements", help, self.settlements.clone());
        let help = "Money captured and given up, in the smallest unit of its currency";
        registry.register("settled_money", help, self.settled_money.clone());
        let (help, unit) = ("Time of a call to the gateway", Unit::Seconds);
        registry.register_with_unit("gateway", help, unit, self.gateway_seconds.clone());
        let (help, unit) = ("Time of a call to Redis for the lease", Unit::Seconds);
        registry.register_with_unit("lease", help, unit, self.lease_seconds.clone());
        let (help, unit) = ("Time from delivery to decision", Unit::Seconds);
        registry.register_with_unit("job", help, unit, self.job_seconds.clone());
        registry.register(
            "jobs_in_flight",
            "Jobs begun and not ended",
            self.jobs_in_flight.clone(),
        );
        let help = "1 while captures pause because the gateway answers nobody, else 0";
        registry.register("breaker_open", help, self.breaker_open.clone());
        let help = "How often captures began to pause";
        registry.register("breaker_openings", help, self.breaker_openings.clone());
        let help = "The pace of calls to the gateway at present; 0: as they come";
        registry.register("calls_per_second_max", help, self.calls_per_second_max.clone());
    }

    /// The breaker opened, or closed.
    pub fn breaker(&self, is_open: bool) {
        self.breaker_open.set(i64::from(is_open));
        if is_open {
            self.breaker_openings.inc();
        }
    }

    /// How many calls a second may leave at present; 0: as they come.
    pub fn pace(&self, calls_per_second: u64) {
        self.calls_per_second_max.set(i64::try_from(calls_per_second).unwrap_or(i64::MAX));
    }

    /// What keeps calls to the gateway back, for people.
    #[must_use]
    pub fn guard(&self) -> String {
        let breaker = if self.breaker_open.get() == 0 { "closed" } else { "open" };
        match self.calls_per_second_max.get() {
            0 => format!("breaker {breaker}, calls not limited"),
            max => format!("breaker {breaker}, at most {max} calls a second"),
        }
    }

    /// One job begun; ended when the guard is dropped.
    #[must_use]
    pub fn in_flight(&self) -> InFlight {
        self.jobs_in_flight.inc();
        InFlight(self.jobs_in_flight.clone())
    }

    /// A call to the gateway took so long.
    pub fn called(&self, call: &'static str, took: Duration) {
        self.gateway_seconds
            .get_or_create(&CallLabel { call: Text(call) })
            .observe(took.as_secs_f64());
    }

    /// A call to Redis took so long.
    pub fn leased(&self, call: &'static str, took: Duration) {
        self.lease_seconds
            .get_or_create(&CallLabel { call: Text(call) })
            .observe(took.as_secs_f64());
    }

    /// Counts and logs a decision: one line for each.
    pub fn settled(
        &self,
        history: &History,
        attempt: &Attempt,
        settlement: &Settlement,
        took: Duration,
    ) {
        let outcome = &attempt.outcome;
        let label = OutcomeLabel { outcome: Text(outcome.name()) };
        self.outcomes.get_or_create(&label).inc();
        let (name, class, attempts) = describe(settlement, history);
        if attempts > history.attempts {
            self.attempts.inc();
        }
        match outcome {
            Outcome::InDoubt(doubt) => {
                let label = ReasonLabel { reason: Text(doubt.kind.name()) };
                self.doubts.get_or_create(&label).inc();
            }
            Outcome::Deferred(deferral) => {
                let label = ReasonLabel { reason: Text(deferral.name()) };
                self.deferrals.get_or_create(&label).inc();
            }
            _ => {}
        }
        let labels = SettlementLabels { settlement: Text(name), class: Text(class) };
        self.settlements.get_or_create(&labels).inc();
        self.count_money(attempt, name, class);
        self.job_seconds.observe(took.as_secs_f64());
        tracing::info!(
            captureRequestId = attempt.subject.capture_request_id,
            paymentId = attempt.subject.payment_id,
            outcome = outcome.name(),
            reason = reason(outcome).as_deref(),
            settlement = name,
            class,
            attempts,
            delay_ms = delay_ms(settlement),
            took_ms = %took.as_millis(),
            "settling"
        );
    }

    /// A copy of what was settled before is no more money.
    fn count_money(&self, attempt: &Attempt, settlement: &'static str, class: &'static str) {
        if attempt.remembered || !matches!(settlement, "captured" | "dead") {
            return;
        }
        if let Some(amount) = attempt.subject.capture_amount {
            let currency = Text(amount.currency().code());
            let labels = MoneyLabels { settlement: Text(settlement), class: Text(class), currency };
            self.settled_money.get_or_create(&labels).inc_by(amount.value());
        }
    }

    /// All counters in the text form of Prometheus.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap_or_default();
        text
    }
}

/// What is done, the class of a dead letter, and the attempts spent.
fn describe(settlement: &Settlement, history: &History) -> (&'static str, &'static str, u32) {
    match settlement {
        Settlement::Captured(result) => ("captured", "none", result.attempts),
        Settlement::Retry { carry, .. } if carry.deferrals > 0 => {
            ("deferred", "none", carry.attempts)
        }
        Settlement::Retry { carry, .. } => ("retry", "none", carry.attempts),
        Settlement::Dead { letter, carry, .. } => ("dead", letter.class.name(), carry.attempts),
        Settlement::HandBack => ("handed_back", "none", history.attempts),
    }
}

fn delay_ms(settlement: &Settlement) -> Option<u64> {
    match settlement {
        Settlement::Retry { delay, .. } => u64::try_from(delay.as_millis()).ok(),
        _ => None,
    }
}

fn reason(outcome: &Outcome) -> Option<Cow<'_, str>> {
    match outcome {
        Outcome::InDoubt(doubt) => Some((&doubt.reason).into()),
        Outcome::NotSent(reason) => Some(reason.into()),
        Outcome::Failed(verdict) | Outcome::Closed(verdict) | Outcome::Account(verdict) => {
            verdict.code.as_ref().map(Cow::from)
        }
        Outcome::Deferred(deferral) => Some(deferral.name().into()),
        Outcome::Malformed(error) => Some(error.to_string().into()),
        _ => None,
    }
}

/// A job in flight.
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What the probes say.
pub struct Health {
    session_open: AtomicBool,
    draining: AtomicBool,
    turned: Mutex<Instant>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            session_open: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            turned: Mutex::new(Instant::now()),
        }
    }
}

impl Health {
    /// The broker's session opened, or was lost.
    pub fn session(&self, open: bool) {
        self.session_open.store(open, Ordering::Relaxed);
    }

    /// The worker's loop turned.
    pub fn turned(&self) {
        *self.turned.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// The worker stops.
    pub fn draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether the loop turns: never a matter of broker, Redis or gateway.
    #[must_use]
    pub fn is_live(&self) -> bool {
        let turned = *self.turned.lock().unwrap_or_else(PoisonError::into_inner);
        self.draining.load(Ordering::Relaxed) || turned.elapsed() < TURNS_WITHIN
    }

    /// Why the worker is not ready, as far as it knows itself.
    #[must_use]
    pub fn unready(&self) -> Option<&'static str> {
        if self.draining.load(Ordering::Relaxed) {
            Some("draining")
        } else if !self.session_open.load(Ordering::Relaxed) {
            Some("no session with the broker")
        } else {
            None
        }
    }
}
