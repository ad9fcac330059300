//! The gateway's sandbox: how it is told what to answer, and what its ledger says afterwards.

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// What the gateway does with a payment; the sandbox reads it from the beginning of the payment's id.
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
    serde_json::from_slice(&body).context("the sandbox's ledger")
}

pub(crate) async fn keys(base_url: &str) -> anyhow::Result<Keys> {
    let body = get(base_url, "/sandbox/keys").await?;
    serde_json::from_slice(&body).context("the sandbox's keys")
}

/// One HTTP/1.0 exchange: short enough to need no client. Gives the body of a 200.
pub(crate) async fn get(base_url: &str, path: &str) -> anyhow::Result<Vec<u8>> {
    let host = base_url.strip_prefix("http://").context("an http:// URL")?.trim_end_matches('/');
    let mut stream = TcpStream::connect(host).await.with_context(|| format!("reach {host}"))?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await?;
    let end =
        response.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("no HTTP answer")?;
    let body = response.split_off(end + 4);
    let head = String::from_utf8_lossy(&response);
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.contains(" 200 "), "GET {base_url}{path}: {status}");
    Ok(body)
}
