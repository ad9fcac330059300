//! A TCP load balancer in front of the nodes of a cluster, for clients that know one address only.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::Context as _;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

use crate::servers::free_port;

/// Forwards each connection from its own port to the running node that has the fewest connections,
/// until it is dropped.
#[derive(Debug)]
pub struct Balancer {
    port: u16,
    nodes: Arc<[Node]>,
    acceptor: JoinHandle<()>,
}

#[derive(Debug)]
struct Node {
    address: SocketAddr,
    connections: AtomicUsize,
}

impl Balancer {
    /// Forwards to these ports on loopback.
    pub async fn to(ports: &[u16]) -> anyhow::Result<Self> {
        let port = free_port()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        let listener = listener.await.context("the balancer's port")?;
        let node = |port: &u16| Node {
            address: (Ipv4Addr::LOCALHOST, *port).into(),
            connections: AtomicUsize::new(0),
        };
        let nodes: Arc<[Node]> = ports.iter().map(node).collect();
        let known = Arc::clone(&nodes);
        let acceptor = tokio::spawn(async move {
            // The connections end with this task.
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(forward(client, Arc::clone(&known)));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { port, nodes, acceptor })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The number of connections of each node.
    pub fn connections(&self) -> Vec<usize> {
        self.nodes.iter().map(|node| node.connections.load(Ordering::Relaxed)).collect()
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

async fn forward(mut client: TcpStream, nodes: Arc<[Node]>) {
    let mut by_load: Vec<&Node> = nodes.iter().collect();
    by_load.sort_by_key(|node| node.connections.load(Ordering::Relaxed));
    for node in by_load {
        node.connections.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut server) = TcpStream::connect(node.address).await {
            // After any end, also an error, both connections are closed. Nothing else is to do.
            drop(pass(&mut client, &mut server).await);
            node.connections.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        node.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Copies both ways until one side closes its connection.
async fn pass(client: &mut TcpStream, server: &mut TcpStream) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    tokio::select! {
        done = tokio::io::copy(&mut from_client, &mut to_server) => done.map(drop),
        done = tokio::io::copy(&mut from_server, &mut to_client) => done.map(drop),
    }
}
