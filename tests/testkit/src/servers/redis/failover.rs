//! Redis servers where a replica takes over from a failed primary: a Cluster, and servers behind
//! Sentinels.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use super::{Persistence, PrivateRedis, Reply, Role};
use crate::poll::within;

/// The time limit for servers to join and to take over.
const JOIN_LIMIT: Duration = Duration::from_secs(60);
const PRIMARIES: usize = 3;

/// A Cluster of three primaries with one replica each.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<PrivateRedis>,
}

impl RedisCluster {
    /// Starts a new Cluster and waits until every replica is in sync. A failed primary is replaced
    /// within some seconds.
    pub async fn start() -> anyhow::Result<Self> {
        let settings = ["--cluster-node-timeout", "2000"].map(str::to_owned);
        let start = || PrivateRedis::start_as(Persistence::None, Role::Cluster, &settings);
        let mut nodes = Vec::new();
        for _ in 0..2 * PRIMARIES {
            nodes.push(start().await?);
        }
        let cluster = Self { nodes };
        cluster.form().await?;
        Ok(cluster)
    }

    async fn form(&self) -> anyhow::Result<()> {
        let (primaries, replicas) = self.nodes.split_at(PRIMARIES);
        for (n, node) in self.nodes.iter().enumerate() {
            node.cmd(&["CLUSTER", "SET-CONFIG-EPOCH", &(n + 1).to_string()])?;
            let (port, bus_port) = (node.port.to_string(), node.bus_port.to_string());
            primaries[0].cmd(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus_port])?;
        }
        let share = 16384_usize.div_ceil(PRIMARIES);
        for (n, primary) in primaries.iter().enumerate() {
            let (from, to) = (n * share, ((n + 1) * share).min(16384) - 1);
            primary.cmd(&["CLUSTER", "ADDSLOTSRANGE", &from.to_string(), &to.to_string()])?;
        }
        let all_met = format!("cluster_known_nodes:{}", self.nodes.len());
        let met =
            within(JOIN_LIMIT, async || self.nodes.iter().all(|node| has_line(node, &all_met)));
        met.await.context("some nodes of the Cluster did not join")?;
        for (primary, replica) in primaries.iter().zip(replicas) {
            let Reply::Text(id) = primary.cmd(&["CLUSTER", "MYID"])? else { bail!("no id") };
            replica.cmd(&["CLUSTER", "REPLICATE", &id])?;
        }
        self.becomes_whole().await
    }

    /// Waits until every node reports that all slots are served, and every primary has a replica in
    /// sync, so that any one node may fail.
    pub async fn becomes_whole(&self) -> anyhow::Result<()> {
        let whole = within(JOIN_LIMIT, async || {
            let served = self.nodes.iter().all(|node| has_line(node, "cluster_state:ok"));
            let replicas = self.nodes.iter().filter(|node| is_replica_in_step(node));
            served && replicas.count() == self.nodes.len() - PRIMARIES
        });
        whole.await.context("the Cluster lacks slots or replicas in sync")
    }

    /// The value of the setting `redis.url`.
    pub fn url(&self) -> String {
        self.nodes.iter().map(PrivateRedis::url).collect::<Vec<_>>().join(",")
    }

    /// The address of one node.
    pub fn url_of_one(&self) -> anyhow::Result<String> {
        self.nodes.first().map(PrivateRedis::url).context("a node")
    }

    /// A node, by the number that [`Self::primary_of`] gives.
    pub fn node(&mut self, n: usize) -> &mut PrivateRedis {
        &mut self.nodes[n]
    }

    /// The index of the node that serves a key, as a running node reports it.
    pub fn primary_of(&self, key: &str) -> anyhow::Result<usize> {
        let living = self.nodes.iter().find(|node| node.server.is_some()).context("no node")?;
        let Reply::Int(slot) = living.cmd(&["CLUSTER", "KEYSLOT", key])? else { bail!("no slot") };
        let Reply::List(ranges) = living.cmd(&["CLUSTER", "SLOTS"])? else { bail!("no slots") };
        let serves = ranges.iter().find_map(|range| {
            let Reply::List(range) = range else { return None };
            let [Reply::Int(from), Reply::Int(to), Reply::List(primary), ..] = range.as_slice()
            else {
                return None;
            };
            let Some(Reply::Int(port)) = primary.get(1) else { return None };
            (from..=to).contains(&&slot).then_some(*port)
        });
        let port = serves.context("no node serves the slot")?;
        let node = self.nodes.iter().position(|node| i64::from(node.port) == port);
        node.context("an unknown node serves the slot")
    }

    /// Changes a setting of every running node.
    pub fn set(&self, name: &str, value: &str) -> anyhow::Result<()> {
        for node in self.nodes.iter().filter(|node| node.server.is_some()) {
            node.cmd(&["CONFIG", "SET", name, value])?;
        }
        Ok(())
    }
}

/// A primary with two replicas, and three Sentinels, two of which must agree.
#[derive(Debug)]
pub struct WatchedRedis {
    sentinels: Vec<PrivateRedis>,
    servers: Vec<PrivateRedis>,
}

impl WatchedRedis {
    /// Starts new servers and waits until they are in sync and known to every Sentinel. The primary
    /// accepts writes only while a replica follows it.
    pub async fn start() -> anyhow::Result<Self> {
        let careful = ["--min-replicas-to-write", "1"].map(str::to_owned);
        let start = |more: &[String]| {
            let more = [&careful, more].concat();
            async move { PrivateRedis::start_as(Persistence::None, Role::Single, &more).await }
        };
        let primary = start(&[]).await?;
        let port = primary.port;
        let follow = ["--replicaof".to_owned(), "127.0.0.1".to_owned(), port.to_string()];
        let servers = vec![primary, start(&follow).await?, start(&follow).await?];
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            let role = Role::SentinelOf { port, quorum: 2 };
            sentinels.push(PrivateRedis::start_as(Persistence::None, role, &[]).await?);
        }
        let watched = Self { sentinels, servers };
        watched.becomes_whole().await?;
        Ok(watched)
    }

    /// Waits until both replicas are in sync, and every Sentinel knows them and the other
    /// Sentinels, so that the primary may fail.
    pub async fn becomes_whole(&self) -> anyhow::Result<()> {
        let whole = within(JOIN_LIMIT, async || {
            let replicas = self.servers.iter().filter(|server| is_replica_in_step(server));
            let knows_all = |sentinel: &PrivateRedis| {
                let info = sentinel.cmd(&["INFO", "sentinel"]);
                matches!(info, Ok(Reply::Text(info)) if info.contains(",slaves=2,sentinels=3"))
            };
            replicas.count() == 2 && self.sentinels.iter().all(knows_all)
        });
        whole.await.context("replicas are not in sync, or Sentinels do not know each other")
    }

    /// The value of the setting `redis.url`.
    pub fn url(&self) -> String {
        let sentinels = self.sentinels.iter().map(|node| format!("127.0.0.1:{}", node.port));
        format!("redis-sentinel://{}#main", sentinels.collect::<Vec<_>>().join(","))
    }

    /// A server, by the number that [`Self::primary`] gives.
    pub fn server(&mut self, n: usize) -> &mut PrivateRedis {
        &mut self.servers[n]
    }

    /// The index of the primary, as the Sentinels report it.
    pub fn primary(&self) -> anyhow::Result<usize> {
        let asked = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main"];
        let sentinel = self.sentinels.first().context("a Sentinel")?;
        let Reply::List(address) = sentinel.cmd(&asked)? else { bail!("no primary") };
        ensure!(address.len() == 2, "no address: {address:?}");
        let is_it = |server: &PrivateRedis| address[1] == Reply::Text(server.port.to_string());
        self.servers.iter().position(is_it).context("the Sentinels name an unknown primary")
    }
}

/// Whether a node's `CLUSTER INFO` contains this text.
fn has_line(node: &PrivateRedis, what: &str) -> bool {
    let info = node.cmd(&["CLUSTER", "INFO"]);
    matches!(info, Ok(Reply::Text(info)) if info.lines().any(|line| line == what))
}

fn is_replica_in_step(server: &PrivateRedis) -> bool {
    let info = server.cmd(&["INFO", "replication"]);
    matches!(info, Ok(Reply::Text(info)) if info.contains("master_link_status:up"))
}
