//! A TCP proxy that simulates network faults: it cuts, refuses, freezes and throttles connections.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Mutex, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::servers::free_port;

/// Forwards connections from its own port to a target, until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    target: SocketAddr,
    frozen: watch::Sender<Frozen>,
    /// The maximum rate in bytes per second, for each direction of each connection.
    rate: watch::Sender<Option<u32>>,
    /// Cancelled and replaced by [`Self::cut`].
    connections: watch::Sender<CancellationToken>,
    /// `None` while connections are refused.
    acceptor: Mutex<Option<JoinHandle<()>>>,
}

/// The directions in which no bytes pass.
#[derive(Clone, Copy, Debug, Default)]
struct Frozen {
    requests: bool,
    replies: bool,
}

impl Proxy {
    /// Forwards to a port on loopback.
    pub async fn to(target_port: u16) -> anyhow::Result<Self> {
        let proxy = Self {
            address: (Ipv4Addr::LOCALHOST, free_port()?).into(),
            target: (Ipv4Addr::LOCALHOST, target_port).into(),
            frozen: watch::Sender::default(),
            rate: watch::Sender::default(),
            connections: watch::Sender::new(CancellationToken::new()),
            acceptor: Mutex::new(None),
        };
        proxy.accept().await?;
        Ok(proxy)
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The server's URL with the port of this proxy.
    pub fn url(&self, server_url: &str) -> String {
        let ours = self.address.to_string();
        server_url.replace(&self.target.to_string(), &ours)
    }

    /// Closes every open connection. New ones are still accepted.
    pub fn cut(&self) {
        self.connections.send_replace(CancellationToken::new()).cancel();
    }

    /// Refuses new connections ("connection refused"). Open ones stay.
    pub async fn refuse(&self) {
        if let Some(acceptor) = self.acceptor.lock().await.take() {
            acceptor.abort();
            // When the task has ended, the listener is closed. The error only says that it was
            // aborted.
            drop(acceptor.await);
        }
    }

    /// Accepts connections again, after [`Self::refuse`].
    pub async fn accept(&self) -> anyhow::Result<()> {
        let mut acceptor = self.acceptor.lock().await;
        if acceptor.is_none() {
            let listener = TcpListener::bind(self.address).await.context("the proxy's port")?;
            let (target, frozen) = (self.target, self.frozen.subscribe());
            let rate = self.rate.subscribe();
            let connections = self.connections.subscribe();
            *acceptor = Some(tokio::spawn(async move {
                while let Ok((client, _)) = listener.accept().await {
                    let cut = connections.borrow().clone();
                    let faults = (frozen.clone(), rate.clone());
                    tokio::spawn(forward(client, target, faults, cut));
                }
            }));
        }
        Ok(())
    }

    /// Limits the rate in bytes per second, for each direction of each connection. `None` removes
    /// the limit.
    pub fn throttle(&self, bytes_per_s: Option<u32>) {
        self.rate.send_replace(bytes_per_s);
    }

    /// Stops all bytes in both directions, and closes no connection.
    pub fn freeze(&self) {
        self.frozen.send_replace(Frozen { requests: true, replies: true });
    }

    /// Stops replies only: the server executes requests, and the client does not learn the result.
    pub fn freeze_replies(&self) {
        self.frozen.send_replace(Frozen { requests: false, replies: true });
    }

    /// Ends a freeze. The bytes that were held back pass now.
    pub fn thaw(&self) {
        self.frozen.send_replace(Frozen::default());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.connections.borrow().cancel();
        if let Some(acceptor) = self.acceptor.get_mut() {
            acceptor.abort();
        }
    }
}

async fn forward(
    client: TcpStream,
    target: SocketAddr,
    (frozen, rate): (watch::Receiver<Frozen>, watch::Receiver<Option<u32>>),
    cut: CancellationToken,
) {
    let both_ways = async {
        let server = TcpStream::connect(target).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::try_join!(
            one_way(from_client, to_server, frozen.clone(), rate.clone(), |frozen| frozen.requests),
            one_way(from_server, to_client, frozen, rate, |frozen| frozen.replies),
        )
    };
    // After any end, also an error, both connections are closed. Nothing else is to do.
    tokio::select! {
        _ = both_ways => {}
        () = cut.cancelled() => {}
    }
}

async fn one_way(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut frozen: watch::Receiver<Frozen>,
    rate: watch::Receiver<Option<u32>>,
    is_frozen: impl Fn(&Frozen) -> bool,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = from.read(&mut buffer).await?;
        if frozen.wait_for(|frozen| !is_frozen(frozen)).await.is_err() || count == 0 {
            return to.shutdown().await;
        }
        let bytes_per_s = *rate.borrow();
        if let (Some(bytes_per_s), Ok(count)) = (bytes_per_s, u32::try_from(count)) {
            tokio::time::sleep(Duration::from_secs(count.into()) / bytes_per_s.max(1)).await;
        }
        to.write_all(buffer.get(..count).unwrap_or_default()).await?;
    }
}
