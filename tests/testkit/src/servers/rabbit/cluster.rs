//! A cluster of three `RabbitMQ` nodes.

use std::{fmt::Write as _, fs, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};

use super::{Family, Place, PrivateRabbit};
use crate::poll::within;

/// The time after which the broker repeats a transfer from a wait queue to the jobs that a lost
/// node interrupted. The default is 180 s.
const SETTINGS: &str = "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 2000}]}].\n";
const NODES: usize = 3;
/// The time limit for nodes to join, and for queues to have all members again.
const JOIN_LIMIT: Duration = Duration::from_secs(90);

/// A cluster that lives as long as this value. Its quorum queues have a member on each node.
#[derive(Debug)]
pub struct RabbitCluster {
    nodes: Vec<PrivateRabbit>,
}

impl RabbitCluster {
    /// Starts a new cluster and waits until each node is ready for clients. If another process took
    /// one of the ports meanwhile, tries other ports.
    pub async fn start() -> anyhow::Result<Self> {
        let mut tries_left = 3;
        loop {
            tries_left -= 1;
            match Self::start_once().await {
                Err(err) if tries_left > 0 && format!("{err:#}").contains("eaddrinuse") => {}
                done => return done,
            }
        }
    }

    async fn start_once() -> anyhow::Result<Self> {
        let family = Family::fresh()?;
        let places: Vec<Place> =
            (0..NODES).map(|_| Place::create(&family)).collect::<Result<_, _>>()?;
        let mut config = "listeners.ssl = none\n\
             cluster_partition_handling = pause_minority\n\
             cluster_formation.peer_discovery_backend = classic_config\n"
            .to_owned();
        for (n, place) in places.iter().enumerate() {
            let n = n + 1;
            writeln!(config, "cluster_formation.classic_config.nodes.{n} = {}", place.node_name)?;
        }
        let first = places.first().context("a node")?;
        let epmd = Arc::new(first.start_epmd().await?);
        let mut nodes = Vec::new();
        for place in places {
            place.configure(&config)?;
            fs::write(place.folder.outside("advanced.config"), SETTINGS)?;
            nodes.push(PrivateRabbit { node: None, epmd: Arc::clone(&epmd), place });
        }
        // Start all at once: newer versions wait for each other before they form a cluster.
        futures_util::future::try_join_all(nodes.iter_mut().map(PrivateRabbit::start_again))
            .await?;
        let first = nodes.first().context("a node")?;
        let all = NODES.to_string();
        first.ctl(&["await_online_nodes", &all, "--timeout", "60"]).await?;
        Ok(Self { nodes })
    }

    /// A node, by its index in [`Self::ports`].
    pub fn node(&mut self, n: usize) -> &mut PrivateRabbit {
        &mut self.nodes[n]
    }

    /// The ports for clients, one per node.
    pub fn ports(&self) -> Vec<u16> {
        self.nodes.iter().map(PrivateRabbit::port).collect()
    }

    /// [`PrivateRabbit::write_queue_names`] on every node.
    pub async fn write_queue_names(&self) -> anyhow::Result<()> {
        for node in &self.nodes {
            node.write_queue_names().await?;
        }
        Ok(())
    }

    /// The index of the node that leads a queue.
    pub async fn leader_of(&self, queue: &str) -> anyhow::Result<usize> {
        let leaders = self.list_queues("leader").await?;
        let leader = leaders.iter().find(|(name, _)| name == queue).context("no such queue")?;
        let led = |node: &PrivateRabbit| node.place.node_name == leader.1;
        self.nodes.iter().position(led).with_context(|| format!("{queue} is led by {leader:?}"))
    }

    /// Waits until every queue has a running member on every node, so that any one node may fail.
    pub async fn becomes_whole(&self) -> anyhow::Result<()> {
        let whole = within(JOIN_LIMIT, async || {
            let queues = self.list_queues("online").await.ok()?;
            let has_all = |(_, online): &(String, String)| {
                self.nodes.iter().all(|node| online.contains(&node.place.node_name))
            };
            (!queues.is_empty() && queues.iter().all(has_all)).then_some(())
        });
        whole.await.with_context(|| {
            let logs: Vec<String> = self.nodes.iter().map(PrivateRabbit::log).collect();
            format!("some queues have no member on some node:\n{}", logs.join("\n"))
        })
    }

    /// The name and one more column of each quorum queue.
    async fn list_queues(&self, column: &str) -> anyhow::Result<Vec<(String, String)>> {
        let node = self.nodes.iter().find(|node| node.node.is_some()).context("no node runs")?;
        let arguments = ["list_queues", "--no-table-headers", "type", "name", column];
        let listed = node.ctl(&arguments).await?;
        let mut queues = Vec::new();
        for line in listed.lines() {
            let mut words = line.splitn(3, '\t');
            let (Some(kind), Some(name), Some(value)) = (words.next(), words.next(), words.next())
            else {
                continue;
            };
            if kind.contains("quorum") {
                queues.push((name.to_owned(), value.to_owned()));
            }
        }
        ensure!(!queues.is_empty(), "no quorum queue: {listed}");
        Ok(queues)
    }
}
