//! Clients that survive every outage: a publisher that retries forever, and a recorder of results.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use lapin::{
    Connection, ConnectionProperties,
    options::{BasicAckOptions, BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, LongString},
};
use serde_json::Value;

use crate::broker::TestBroker;

/// The time without a reply from the broker after which a new connection is opened.
const REPLY_LIMIT: Duration = Duration::from_secs(20);
/// The pause between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(200);

/// Results by id, as (status, class), in the order of their arrival.
pub type Seen = Arc<Mutex<BTreeMap<String, Vec<(String, Option<String>)>>>>;

/// Publishes jobs to the exchange `<prefix>.jobs`, one after the other.
#[derive(Debug)]
pub struct Publisher {
    url: String,
    prefix: String,
    broker: Option<TestBroker>,
}

impl Publisher {
    /// Creates the publisher. It connects when it publishes its first job.
    pub fn to(url: String, prefix: &str) -> Self {
        Self { url, prefix: prefix.to_owned(), broker: None }
    }

    /// Publishes a job until the broker confirms it.
    pub async fn publish(&mut self, body: &[u8]) {
        while !self.try_to(body).await {
            self.broker = None;
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn try_to(&mut self, body: &[u8]) -> bool {
        let published = async {
            let broker = match self.broker.take() {
                Some(broker) => broker,
                None => TestBroker::connect(&self.url).await?,
            };
            let broker = self.broker.insert(broker);
            broker.publish_job(&self.prefix, body).await
        };
        matches!(tokio::time::timeout(REPLY_LIMIT, published).await, Ok(Ok(())))
    }
}

/// Binds the durable queue `<prefix>.seen` to the results, and records all its messages from now
/// on, as long as the runtime lives.
pub async fn record_results(broker_url: &str, prefix: &str) -> anyhow::Result<Seen> {
    let queue = format!("{prefix}.seen");
    declare(broker_url, &queue, &format!("{prefix}.results")).await?;
    let seen = Seen::default();
    tokio::spawn(collect(broker_url.to_owned(), queue, Arc::clone(&seen)));
    Ok(seen)
}

async fn declare(broker_url: &str, queue: &str, exchange: &str) -> anyhow::Result<()> {
    let connection = Connection::connect(broker_url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(LongString::from("quorum")));
    channel.queue_declare(queue.into(), options, arguments).await?;
    let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
    channel.queue_bind(queue.into(), exchange.into(), "#".into(), options, arguments).await?;
    Ok(())
}

/// Records every result and then acks it. Reconnects after each outage of the broker.
async fn collect(broker_url: String, queue: String, seen: Seen) {
    loop {
        // Any error ends this connection only. The next one continues.
        drop(collect_once(&broker_url, &queue, &seen).await);
        tokio::time::sleep(PAUSE).await;
    }
}

async fn collect_once(broker_url: &str, queue: &str, seen: &Seen) -> anyhow::Result<()> {
    let connect = Connection::connect(broker_url, ConnectionProperties::default());
    let connection = tokio::time::timeout(REPLY_LIMIT, connect).await??;
    let channel = connection.create_channel().await?;
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
    let mut results = tokio::time::timeout(REPLY_LIMIT, consumer).await??;
    loop {
        let next = tokio::time::timeout(Duration::from_secs(2), results.next()).await;
        let Ok(next) = next else {
            ensure!(connection.status().connected(), "connection to the broker lost");
            continue;
        };
        let delivery = next.context("the broker cancelled the consumer")??;
        let result: Value = serde_json::from_slice(&delivery.data)?;
        let text = |name: &str| result[name].as_str().map(str::to_owned);
        let id = text("captureRequestId").context("the result has no captureRequestId")?;
        let status = text("status").context("the result has no status")?;
        let result = (status, text("class"));
        seen.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default().push(result);
        channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await?;
    }
}
