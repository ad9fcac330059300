//! A TCP proxy that cuts, refuses, freezes and throttles: the network's faults, on demand.

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

use super::servers::free_port;

/// Forwards from a port of its own to a target, until it is dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    target: SocketAddr,
    frozen: watch::Sender<Frozen>,
    /// Bytes a second, each way of each connection.
    pace: watch::Sender<Option<u32>>,
    /// Cancelled and replaced at each cut.
    connections: watch::Sender<CancellationToken>,
    /// `None` while connections are refused.
    acceptor: Mutex<Option<JoinHandle<()>>>,
}

/// Which directions stand still.
#[derive(Clone, Copy, Debug, Default)]
struct Frozen {
    requests: bool,
    answers: bool,
}

impl Proxy {
    /// To a port on loopback.
    pub(crate) async fn to(target_port: u16) -> anyhow::Result<Self> {
        let proxy = Self {
            address: (Ipv4Addr::LOCALHOST, free_port()?).into(),
            target: (Ipv4Addr::LOCALHOST, target_port).into(),
            frozen: watch::Sender::default(),
            pace: watch::Sender::default(),
            connections: watch::Sender::new(CancellationToken::new()),
            acceptor: Mutex::new(None),
        };
        proxy.accept().await?;
        Ok(proxy)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// The server's URL, with our port in place of its own.
    pub(crate) fn url(&self, server_url: &str) -> String {
        let ours = self.address.to_string();
        server_url.replace(&self.target.to_string(), &ours)
    }

    /// Closes every present connection; new ones are still accepted.
    pub(crate) fn cut(&self) {
        self.connections.send_replace(CancellationToken::new()).cancel();
    }

    /// New connections meet "connection refused"; present ones stay.
    pub(crate) async fn refuse(&self) {
        if let Some(acceptor) = self.acceptor.lock().await.take() {
            acceptor.abort();
            // Once it has ended, the listener is closed. Its error says only that it was aborted.
            drop(acceptor.await);
        }
    }

    /// The end of [`Self::refuse`].
    pub(crate) async fn accept(&self) -> anyhow::Result<()> {
        let mut acceptor = self.acceptor.lock().await;
        if acceptor.is_none() {
            let listener = TcpListener::bind(self.address).await.context("the proxy's port")?;
            let (target, frozen) = (self.target, self.frozen.subscribe());
            let pace = self.pace.subscribe();
            let connections = self.connections.subscribe();
            *acceptor = Some(tokio::spawn(async move {
                while let Ok((client, _)) = listener.accept().await {
                    let cut = connections.borrow().clone();
                    let faults = (frozen.clone(), pace.clone());
                    tokio::spawn(forward(client, target, faults, cut));
                }
            }));
        }
        Ok(())
    }

    /// So many bytes a second pass, each way of each connection; `None`: as they come.
    pub(crate) fn throttle(&self, bytes_per_s: Option<u32>) {
        self.pace.send_replace(bytes_per_s);
    }

    /// No byte passes either way, and no connection is closed.
    pub(crate) fn freeze(&self) {
        self.frozen.send_replace(Frozen { requests: true, answers: true });
    }

    /// Requests pass, answers do not: what was done is not heard of.
    pub(crate) fn freeze_answers(&self) {
        self.frozen.send_replace(Frozen { requests: false, answers: true });
    }

    /// The end of freezing; what was held back passes now.
    pub(crate) fn thaw(&self) {
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
    (frozen, pace): (watch::Receiver<Frozen>, watch::Receiver<Option<u32>>),
    cut: CancellationToken,
) {
    let both_ways = async {
        let server = TcpStream::connect(target).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::try_join!(
            one_way(from_client, to_server, frozen.clone(), pace.clone(), |frozen| frozen.requests),
            one_way(from_server, to_client, frozen, pace, |frozen| frozen.answers),
        )
    };
    // However it ends, both connections are closed: that is all there is to say about an error.
    tokio::select! {
        _ = both_ways => {}
        () = cut.cancelled() => {}
    }
}

async fn one_way(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut frozen: watch::Receiver<Frozen>,
    pace: watch::Receiver<Option<u32>>,
    stands_still: impl Fn(&Frozen) -> bool,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = from.read(&mut buffer).await?;
        if frozen.wait_for(|frozen| !stands_still(frozen)).await.is_err() || count == 0 {
            return to.shutdown().await;
        }
        let bytes_per_s = *pace.borrow();
        if let (Some(bytes_per_s), Ok(count)) = (bytes_per_s, u32::try_from(count)) {
            tokio::time::sleep(Duration::from_secs(count.into()) / bytes_per_s.max(1)).await;
        }
        to.write_all(buffer.get(..count).unwrap_or_default()).await?;
    }
}
