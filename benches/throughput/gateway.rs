//! The gateway of the benchmark. It replies to each capture after a fixed latency and records when
//! each call began and ended. Its replies are signed before the measurement starts, so that it
//! takes little CPU from the programs under test.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use capture_worker::{
    gateway::signing::{SigningKey, signature_header},
    sandbox::Keys,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::load::Job;

pub(crate) const PATH: &str = "/ams/api/v1/payments/capture";
const TIME: &str = "2026-01-01T00:00:00Z";
const RESULT: &str = r#"{"resultCode":"SUCCESS","resultStatus":"S","resultMessage":"success"}"#;
const CAPTURED: &str = concat!(
    r#""captureAmount":{"currency":"HKD","value":"100"},"#,
    r#""captureTime":"2026-01-01T00:00:00+08:00""#
);
const BYTES_MAX: usize = 64 * 1024;

/// One capture call, as the gateway saw it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) is_hot: bool,
    /// The number of the worker that called. Each worker has a port of its own.
    pub(crate) worker: usize,
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
}

/// The complete HTTP responses by `captureRequestId`, and whether the job belongs to the hot
/// payment.
type Signed = Arc<HashMap<String, (Vec<u8>, bool)>>;

/// The gateway: the state that all its connections share.
#[derive(Debug)]
pub(crate) struct Gateway {
    answers: Mutex<Signed>,
    latency_ms: AtomicU64,
    calls: Mutex<Vec<Call>>,
    ports: Vec<u16>,
}

impl Gateway {
    /// Starts a gateway with one listener for each worker.
    pub(crate) async fn start(workers: usize) -> anyhow::Result<Arc<Self>> {
        let mut listeners = Vec::new();
        for _ in 0..workers {
            listeners.push(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?);
        }
        let ports = listeners.iter().map(|listener| Ok(listener.local_addr()?.port()));
        let gateway = Arc::new(Self {
            answers: Mutex::default(),
            latency_ms: AtomicU64::new(0),
            calls: Mutex::default(),
            ports: ports.collect::<anyhow::Result<_>>()?,
        });
        for (worker, listener) in listeners.into_iter().enumerate() {
            let gateway = Arc::clone(&gateway);
            tokio::spawn(async move {
                while let Ok((client, _)) = listener.accept().await {
                    let gateway = Arc::clone(&gateway);
                    // The error is ignored: a worker that stops closes its connections.
                    tokio::spawn(async move { drop(gateway.serve(client, worker).await) });
                }
            });
        }
        Ok(gateway)
    }

    pub(crate) fn url(&self, worker: usize) -> String {
        let port = self.ports.get(worker).copied().unwrap_or_default();
        format!("http://127.0.0.1:{port}")
    }

    /// Prepares a run: sets the replies and the latency, and clears the recorded calls.
    pub(crate) fn prepare(&self, answers: &Answers, latency: Duration) {
        *lock(&self.answers) = Arc::clone(&answers.0);
        let ms = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
        self.latency_ms.store(ms, Ordering::Relaxed);
        lock(&self.calls).clear();
    }

    /// The calls of the run so far, in the order of their replies.
    pub(crate) fn calls(&self) -> Vec<Call> {
        lock(&self.calls).clone()
    }

    pub(crate) fn count(&self) -> usize {
        lock(&self.calls).len()
    }

    async fn serve(&self, mut client: TcpStream, worker: usize) -> anyhow::Result<()> {
        client.set_nodelay(true)?;
        let mut buffer = Vec::with_capacity(4096);
        loop {
            let Some(id) = read_request(&mut client, &mut buffer).await? else { return Ok(()) };
            let began = Instant::now();
            let answers = Arc::clone(&lock(&self.answers));
            let (answer, is_hot) = answers.get(&id).context("the job is not of this run")?;
            let latency = self.latency_ms.load(Ordering::Relaxed);
            if latency > 0 {
                tokio::time::sleep(Duration::from_millis(latency)).await;
            }
            let ended = Instant::now();
            lock(&self.calls).push(Call { is_hot: *is_hot, worker, began, ended });
            client.write_all(answer).await?;
        }
    }
}

/// Reads one request and returns its `captureRequestId`; `None` if the client has disconnected.
async fn read_request(
    client: &mut TcpStream,
    buffer: &mut Vec<u8>,
) -> anyhow::Result<Option<String>> {
    buffer.clear();
    loop {
        if client.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(buffer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let mut lines = head.lines().filter_map(|line| line.split_once(':'));
        let length = lines.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let length: usize = length.context("no Content-Length")?.1.trim().parse()?;
        anyhow::ensure!(length < BYTES_MAX, "the request is too large: {length} bytes");
        if body.len() >= length {
            let (_, id) = body.split_once(r#""captureRequestId":""#).context("no capture id")?;
            return Ok(id.split('"').next().map(str::to_owned));
        }
    }
}

/// Signed replies to the captures of a set of jobs.
#[derive(Clone, Debug)]
pub(crate) struct Answers(Signed);

impl Answers {
    /// Signs a reply for each job, which takes about 0.3 ms each.
    pub(crate) fn sign(jobs: &[Job], keys: &Keys, key: &SigningKey) -> Self {
        let answer = |job: &Job| {
            let (id, payment_id) = (&job.id, &job.payment_id);
            let ids = format!(
                r#""captureRequestId":"{id}","paymentId":"{payment_id}","captureId":"20260101{id}""#
            );
            let body = format!(r#"{{"result":{RESULT},{ids},{CAPTURED}}}"#);
            let signature = key.sign(PATH, &keys.client_id, TIME, body.as_bytes());
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=UTF-8\r\n\
                 Content-Length: {}\r\nClient-Id: {}\r\nResponse-Time: {TIME}\r\n\
                 Signature: {}\r\n\r\n",
                body.len(),
                keys.client_id,
                signature_header(1, &signature)
            );
            (job.id.clone(), ((head + &body).into_bytes(), job.is_hot()))
        };
        Self(Arc::new(jobs.iter().map(answer).collect()))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
