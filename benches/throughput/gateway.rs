//! The benchmark's gateway: answers captures with signatures that were made before the clock starts, after a set time,
//! and writes down when each call came and went. It does next to nothing else, so that it does not eat the machine.

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
const BYTES_MAX: usize = 64 * 1024;

/// One capture call, seen from the gateway.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) is_hot: bool,
    /// Which worker called: each has a port of its own.
    pub(crate) worker: usize,
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
}

/// Whole answers, headers included, by `captureRequestId`; and whether the job is of the hot payment.
type Signed = Arc<HashMap<String, (Vec<u8>, bool)>>;

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Gateway {
    answers: Mutex<Signed>,
    latency_ms: AtomicU64,
    calls: Mutex<Vec<Call>>,
    ports: Vec<u16>,
}

impl Gateway {
    /// Listens once for each worker.
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
                    // A worker that leaves closes its connections: that is no news.
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

    /// Makes ready for a run: signs the answers, forgets the calls.
    pub(crate) fn prepare(&self, answers: &Answers, latency: Duration) {
        *lock(&self.answers) = Arc::clone(&answers.0);
        let ms = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
        self.latency_ms.store(ms, Ordering::Relaxed);
        lock(&self.calls).clear();
    }

    /// The calls so far, in the order in which they were answered.
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
            let (answer, is_hot) = answers.get(&id).context("a job that is not of this run")?;
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

/// Reads one request; its `captureRequestId`. `None`: the client is gone.
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
        let length: usize = length.context("a length")?.1.trim().parse()?;
        anyhow::ensure!(length < BYTES_MAX, "a request of {length} bytes");
        if body.len() >= length {
            let (_, id) = body.split_once(r#""captureRequestId":""#).context("an id")?;
            return Ok(id.split('"').next().map(str::to_owned));
        }
    }
}

/// Signed answers to the captures of some jobs.
#[derive(Clone, Debug)]
pub(crate) struct Answers(Signed);

impl Answers {
    /// Takes a third of a millisecond for each.
    pub(crate) fn sign(jobs: &[Job], keys: &Keys, key: &SigningKey) -> Self {
        let answer = |job: &Job| {
            let body = format!(
                r#"{{"result":{{"resultCode":"SUCCESS","resultStatus":"S","resultMessage":"success"}},"captureRequestId":"{}","paymentId":"{}","captureId":"20260101{}","captureAmount":{{"currency":"HKD","value":"100"}},"captureTime":"2026-01-01T00:00:00+08:00"}}"#,
                job.id, job.payment_id, job.id
            );
            let signature = key.sign(PATH, &keys.client_id, TIME, body.as_bytes());
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=UTF-8\r\nContent-Length: {}\r\nClient-Id: {}\r\nResponse-Time: {TIME}\r\nSignature: {}\r\n\r\n",
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
