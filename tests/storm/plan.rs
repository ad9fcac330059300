//! The plan of a run, computed from the seed: the jobs, the gateway's fault for each job, and the
//! other faults.

use capture_worker::sandbox::Step;
use rand::{
    RngExt as _, SeedableRng as _,
    rngs::StdRng,
    seq::{IndexedRandom as _, SliceRandom as _},
};
use serde_json::{Value, json};

/// A job to publish.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) id: String,
    pub(crate) payment_id: String,
    pub(crate) currency: &'static str,
    pub(crate) value: u64,
    /// How often the job is published.
    pub(crate) copies: usize,
    /// The gateway's fault, by its name in [`GATEWAY_FAULTS`].
    pub(crate) gateway_fault: Option<&'static str>,
    /// The code of a final refusal. Every job without one is captured in the end.
    pub(crate) refusal: Option<&'static str>,
}

/// A fault of the servers, the workers or the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    KillWorker,
    DrainWorker,
    RestartBroker,
    KillBroker,
    RestartRedis,
    KillRedis,
    PauseRedis,
    FlushRedis,
    CutAll,
    ThrottleBroker,
    ThrottleRedis,
    ThrottleGateway,
    RefuseGateway,
    HideAnswers,
}

const FAULTS: [Fault; 14] = [
    Fault::KillWorker,
    Fault::DrainWorker,
    Fault::RestartBroker,
    Fault::KillBroker,
    Fault::RestartRedis,
    Fault::KillRedis,
    Fault::PauseRedis,
    Fault::FlushRedis,
    Fault::CutAll,
    Fault::ThrottleBroker,
    Fault::ThrottleRedis,
    Fault::ThrottleGateway,
    Fault::RefuseGateway,
    Fault::HideAnswers,
];

/// Names and steps of the gateway's faults. Each fault ends, so that every job can end.
const GATEWAY_FAULTS: [(&str, &str); 14] = [
    ("request lost", r#"{"answer":"no_answer"}"#),
    ("answer lost", r#"{"answer":"no_answer","executes":true}"#),
    ("hang", r#"{"answer":"hang"}"#),
    ("executed, then hang", r#"{"answer":"hang","executes":true}"#),
    ("slow", r#"{"answer":"honest","delay_ms":700}"#),
    ("http 503", r#"{"answer":{"http":503},"times":2}"#),
    ("executed, http 500", r#"{"answer":{"http":500},"executes":true}"#),
    ("garbage", r#"{"answer":"garbage","executes":true}"#),
    ("unsigned", r#"{"answer":"unsigned"}"#),
    ("forged", r#"{"answer":"bad_signature"}"#),
    ("unknown", r#"{"answer":{"code":"UNKNOWN_EXCEPTION"},"times":2}"#),
    ("in process", r#"{"answer":{"code":"CAPTURE_IN_PROCESS"}}"#),
    ("throttled", r#"{"answer":{"code":"REQUEST_TRAFFIC_EXCEED_LIMIT"}}"#),
    ("http 429", r#"{"answer":{"http":429},"retry_after":1}"#),
];

const REFUSALS: [&str; 4] =
    ["RISK_REJECT", "USER_BALANCE_NOT_ENOUGH", "ORDER_STATUS_INVALID", "PROCESS_FAIL"];

/// The plan of one run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) jobs: Vec<Job>,
    pub(crate) faults: Vec<Fault>,
}

impl Plan {
    pub(crate) fn of(seed: u64, jobs: usize) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let jobs: Vec<Job> = (0..jobs).map(|n| job(n, &mut rng)).collect();
        let mut faults = Vec::new();
        for _ in 0..(jobs.len() / 1000).div_ceil(FAULTS.len()).max(1) {
            let mut round = FAULTS;
            round.shuffle(&mut rng);
            faults.extend(round);
        }
        Self { jobs, faults }
    }
}

fn job(n: usize, rng: &mut StdRng) -> Job {
    // One third of the jobs are partial captures: about ten per payment, published closely
    // together.
    let is_partial = rng.random_bool(0.33);
    let group = if is_partial { (n / 300) * 10 + rng.random_range(0..10) } else { n };
    let payment_id = format!("{}-{group}", if is_partial { "shared" } else { "own" });
    let currency = ["HKD", "JPY", "USD"].get(group % 3).copied().unwrap_or("HKD");
    let (luck, copied) = (rng.random_range(0..100), rng.random_bool(0.03));
    let gateway_fault = GATEWAY_FAULTS.choose(rng).map(|(name, _)| *name).filter(|_| luck < 20);
    let refusal = REFUSALS.choose(rng).copied().filter(|_| (20..24).contains(&luck));
    Job {
        id: format!("j-{n}"),
        payment_id,
        currency,
        value: rng.random_range(1..100_000),
        copies: if copied { 2 } else { 1 },
        gateway_fault,
        refusal,
    }
}

impl Job {
    pub(crate) fn body(&self) -> Vec<u8> {
        let amount = json!({"currency": self.currency, "value": self.value.to_string()});
        // The gateway compares every field of a repeated request, so it detects a retry that drops
        // one.
        json!({
            "captureRequestId": self.id,
            "paymentId": self.payment_id,
            "captureAmount": amount,
            "captureType": "NON_FINAL",
            "goods": [{"referenceGoodsId": self.id}],
        })
        .to_string()
        .into_bytes()
    }

    /// The steps of the gateway's script for this id.
    pub(crate) fn steps(&self) -> anyhow::Result<Vec<Step>> {
        let gateway_fault =
            GATEWAY_FAULTS.iter().filter(|(name, _)| Some(*name) == self.gateway_fault);
        let mut steps: Vec<Value> =
            gateway_fault.map(|(_, step)| serde_json::from_str(step)).collect::<Result<_, _>>()?;
        steps
            .extend(self.refusal.map(|code| json!({"answer": {"code": code}, "times": "forever"})));
        for step in &mut steps {
            step["captureRequestId"] = json!(self.id);
        }
        Ok(serde_json::from_value(json!(steps))?)
    }
}
