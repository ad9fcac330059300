//! An HTTP/1.1 server with limits, for listeners that strangers may reach: it takes few descriptors of
//! the process, and a client that is slow or silent does not keep others out.
//!
//! A client has 5 s for the headers of a request, which is also how long a connection may be idle. When
//! 64 connections are open, a new one takes the place of the one that has been idle longest: a kubelet's
//! probe or Prometheus sends its request as soon as it is connected, and is answered. A connection whose
//! request is being answered keeps its place, so a handler that reads a body must limit the time for it.

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

/// How long a client may take for the headers of a request, and how long a connection may be idle.
const HEADERS_WITHIN: Duration = Duration::from_secs(5);
/// The most connections that are served at once.
const CONNECTIONS_MAX: usize = 64;
/// The largest request line and headers.
const HEADERS_BYTES_MAX: usize = 16 * 1024;
/// A connection that is older takes no further request.
const CONNECTION_LASTS: Duration = Duration::from_secs(60);
/// How long the last answer of such a connection may take.
const LAST_ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// After accepting failed: the process has no descriptor left, mostly.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves until `stop` is cancelled. The connections that are open then are closed.
pub async fn serve(listener: TcpListener, app: Router, stop: CancellationToken) {
    let connections = Arc::new(Connections::default());
    // Dropping it ends the tasks, and with them the connections.
    let mut tasks = JoinSet::new();
    let accepting = async {
        loop {
            while tasks.try_join_next().is_some() {}
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "a connection was not accepted");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let place = connections.place().await;
            tasks.spawn(serve_connection(stream, app.clone(), place));
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = accepting => {}
    }
}

async fn serve_connection(stream: TcpStream, app: Router, place: Place) {
    let app = TowerToHyperService::new(app);
    let service = service_fn(|request| {
        let serving = place.serving();
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
        () = place.close.cancelled() => return,
        () = tokio::time::sleep(CONNECTION_LASTS) => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(LAST_ANSWER_WITHIN, connection).await {
                Ok(served) => served,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection failed");
    }
}

/// The connections that are open.
#[derive(Default)]
struct Connections {
    open: Mutex<Open>,
    /// One of them was closed.
    closed: Notify,
}

#[derive(Default)]
struct Open {
    by_number: HashMap<u64, Connection>,
    last_number: u64,
}

struct Connection {
    /// Requests whose answer is not there yet.
    serving: u32,
    /// When it was opened, or its last request was answered.
    idle_since: Instant,
    close: CancellationToken,
}

impl Connections {
    /// A place for one more connection, once there is one: the connection that has been idle longest is
    /// closed for it.
    async fn place(self: &Arc<Self>) -> Place {
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
            // Only the loop that accepts waits here, so a permit that is left over does no harm.
            self.closed.notified().await;
        }
    }

    fn add(self: &Arc<Self>, open: &mut Open) -> Place {
        let (number, close) = (open.last_number + 1, CancellationToken::new());
        open.last_number = number;
        let connection =
            Connection { serving: 0, idle_since: Instant::now(), close: close.clone() };
        open.by_number.insert(number, connection);
        Place { connections: Arc::clone(self), number, close }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one connection; given up when it is dropped.
struct Place {
    connections: Arc<Connections>,
    number: u64,
    /// Cancelled when the place is needed for another connection.
    close: CancellationToken,
}

impl Place {
    fn serving(&self) -> Serving {
        let mut open = self.connections.lock();
        if let Some(connection) = open.by_number.get_mut(&self.number) {
            connection.serving += 1;
        }
        Serving { connections: Arc::clone(&self.connections), number: self.number }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.lock().by_number.remove(&self.number);
        self.connections.closed.notify_one();
    }
}

/// A request that is being answered: its connection is not closed for another one.
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
