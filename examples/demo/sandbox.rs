//! The gateway's sandbox: the payment ids that select its replies, and its ledger.

use anyhow::Context as _;
use serde::Deserialize;
use testkit::http::get;

/// How the sandbox replies about a payment. The beginning of the payment id selects it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Script {
    Capture,
    Refuse(&'static str),
    InProcess,
    UnknownException,
    AnswerLost,
    ServerError,
    Garbage,
    Unsigned,
}

impl Script {
    pub(crate) fn payment_id(self, run: &str, number: usize) -> String {
        let script = match self {
            Self::Capture => return format!("pay-{run}-{number:04}"),
            Self::Refuse(code) => code,
            Self::InProcess => "in-process",
            Self::UnknownException => "unknown-exception",
            Self::AnswerLost => "answer-lost",
            Self::ServerError => "http-500",
            Self::Garbage => "garbage",
            Self::Unsigned => "unsigned",
        };
        format!("sim-{script}-{run}-{number:04}")
    }
}

/// The sandbox's ledger.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Ledger {
    pub(crate) captures: Vec<Capture>,
    /// How often two capture calls of one payment overlapped.
    pub(crate) overlaps: u64,
}

/// One capture in the ledger.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Capture {
    pub(crate) capture_request_id: String,
    pub(crate) capture_amount: Amount,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Amount {
    pub(crate) currency: String,
    pub(crate) value: String,
}

impl Ledger {
    /// Keeps only the captures of one run of the demo.
    pub(crate) fn of_run(mut self, run: &str) -> Self {
        self.captures.retain(|capture| capture.capture_request_id.contains(run));
        self
    }
}

pub(crate) async fn ledger(base_url: &str) -> anyhow::Result<Ledger> {
    let body = get(base_url, "/sandbox/ledger").await?;
    serde_json::from_str(&body).context("read the sandbox's ledger")
}
