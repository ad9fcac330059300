//! The gateway's sandbox: how it is told what to answer, and what its ledger says afterwards.

use anyhow::Context as _;
use serde::Deserialize;

use crate::support::http::get;

/// What the gateway does with a payment. The sandbox reads it from the beginning of the payment id.
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

/// What a worker needs to speak with the sandbox; printed by it when it is ready.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Keys {
    pub(crate) client_id: String,
    pub(crate) private_key: String,
    pub(crate) public_key: String,
}

/// The sandbox's own books.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Ledger {
    pub(crate) captures: Vec<Capture>,
    /// How often two capture calls of one payment ran side by side.
    pub(crate) overlaps: u64,
}

/// One movement of money.
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
    /// Only what one run of the demo has captured.
    pub(crate) fn of_run(mut self, run: &str) -> Self {
        self.captures.retain(|capture| capture.capture_request_id.contains(run));
        self
    }
}

pub(crate) async fn ledger(base_url: &str) -> anyhow::Result<Ledger> {
    let body = get(base_url, "/sandbox/ledger").await?;
    serde_json::from_str(&body).context("the sandbox's ledger")
}
