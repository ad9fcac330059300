//! An HTTP/1.1 server with limits, for listeners that untrusted clients may reach. It uses few file
//! descriptors of the process, and a slow or silent client does not keep others out.
//!
//! A client has 5 s to send the headers of a request. A connection may be idle for the same time.
//! When 64 connections are open, a new connection replaces the one that has been idle longest. A
//! kubelet's probe and Prometheus send their request as soon as they are connected, so they are
//! served even then. A connection whose request is being processed is never replaced, so a handler
//! that reads a body must limit the time for it.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::Router;
use hyper::{
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// How long a client may take to send the headers of a request, and how long a connection may be
/// idle.
const HEADERS_WITHIN: Duration = Duration::from_secs(5);
/// How many connections are served at once, at most.
const CONNECTIONS_MAX: usize = 64;
/// Limit of the request line and the headers together, in bytes.
const HEADERS_BYTES_MAX: usize = 16 * 1024;
/// The age at which a connection accepts no further request.
const CONNECTION_LASTS: Duration = Duration::from_secs(60);
/// How long the last response of such a connection may take.
const LAST_ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// The pause after `accept` has failed. Usually the process has no file descriptor left, and
/// without a pause the loop would spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves `app` until `stop` is cancelled, then closes the open connections.
pub async fn serve(listener: TcpListener, app: Router, stop: CancellationToken) {
    let connections = Arc::new(Connections::default());
    // Dropping the set aborts its tasks, which closes their connections.
    let mut tasks = JoinSet::new();
    let accepting = async {
        loop {
            while tasks.try_join_next().is_some() {}
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "HTTP connection could not be accepted");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let slot = connections.slot().await;
            tasks.spawn(serve_connection(stream, app.clone(), slot));
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = accepting => {}
    }
}

async fn serve_connection(stream: TcpStream, app: Router, slot: ConnectionSlot) {
    let app = TowerToHyperService::new(app);
    let service = service_fn(|request| {
        let serving = slot.serving();
        let answering = app.call(request);
        async move {
            let answer = answering.await;
            drop(serving);
            answer
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_buf_size(HEADERS_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = slot.close.cancelled() => return,
        () = tokio::time::sleep(CONNECTION_LASTS) => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(LAST_ANSWER_WITHIN, connection).await {
                Ok(served) => served,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "HTTP connection failed");
    }
}

#[derive(Default)]
struct Connections {
    open: Mutex<Open>,
    /// Notified when a connection was closed.
    closed: Notify,
}

#[derive(Default)]
struct Open {
    by_number: HashMap<u64, OpenConnection>,
    last_number: u64,
}

struct OpenConnection {
    /// How many of its requests have no response yet.
    serving: u32,
    /// When it was opened, or when its last request was answered.
    idle_since: Instant,
    close: CancellationToken,
}

impl Connections {
    /// Waits until one more connection may be served. At the limit, closes the connection that has
    /// been idle longest.
    async fn slot(self: &Arc<Self>) -> ConnectionSlot {
        loop {
            {
                let mut open = self.lock();
                if open.by_number.len() < CONNECTIONS_MAX {
                    return self.add(&mut open);
                }
                let idle = open.by_number.values().filter(|connection| connection.serving == 0);
                if let Some(oldest) = idle.min_by_key(|connection| connection.idle_since) {
                    oldest.close.cancel();
                }
            }
            // Only the accept loop waits here, so a leftover permit does no harm: the loop checks
            // the count again.
            self.closed.notified().await;
        }
    }

    fn add(self: &Arc<Self>, open: &mut Open) -> ConnectionSlot {
        let (number, close) = (open.last_number + 1, CancellationToken::new());
        open.last_number = number;
        let connection =
            OpenConnection { serving: 0, idle_since: Instant::now(), close: close.clone() };
        open.by_number.insert(number, connection);
        ConnectionSlot { connections: Arc::clone(self), number, close }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The entry of one connection. Dropping it removes the connection from the count.
struct ConnectionSlot {
    connections: Arc<Connections>,
    number: u64,
    /// Cancelled when another connection replaces this one.
    close: CancellationToken,
}

impl ConnectionSlot {
    fn serving(&self) -> Serving {
        let mut open = self.connections.lock();
        if let Some(connection) = open.by_number.get_mut(&self.number) {
            connection.serving += 1;
        }
        Serving { connections: Arc::clone(&self.connections), number: self.number }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.connections.lock().by_number.remove(&self.number);
        self.connections.closed.notify_one();
    }
}

/// A request that is being processed. While it exists, no other connection replaces its connection.
struct Serving {
    connections: Arc<Connections>,
    number: u64,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let mut open = self.connections.lock();
        if let Some(connection) = open.by_number.get_mut(&self.number) {
            connection.serving = connection.serving.saturating_sub(1);
            connection.idle_since = Instant::now();
        }
    }
}
