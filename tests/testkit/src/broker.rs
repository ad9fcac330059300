//! A client of the broker for tests: publishes any message and reads any queue.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use futures_util::StreamExt as _;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind,
    message::Delivery,
    options::{
        BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions,
        BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
        QueueBindOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::poll::within;

/// A message as it was found in a queue.
#[derive(Clone, Debug)]
pub struct Message {
    pub routing_key: String,
    pub body: Vec<u8>,
    pub properties: BasicProperties,
    pub redelivered: bool,
}

impl Message {
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.body).context("parse a message body as JSON")
    }

    pub fn headers(&self) -> BTreeMap<String, AMQPValue> {
        let headers = self.properties.headers().clone().unwrap_or_default();
        headers.inner().iter().map(|(name, value)| (name.to_string(), value.clone())).collect()
    }

    /// A header of any type as text: `3`, `true`, `SUCCESS`.
    pub fn header(&self, name: &str) -> Option<String> {
        self.headers().remove(name).map(|value| match value {
            AMQPValue::LongString(text) => text.to_string(),
            AMQPValue::ShortString(text) => text.to_string(),
            AMQPValue::Boolean(flag) => flag.to_string(),
            AMQPValue::LongLongInt(number) => number.to_string(),
            AMQPValue::LongInt(number) => number.to_string(),
            AMQPValue::LongUInt(number) => number.to_string(),
            AMQPValue::ShortInt(number) => number.to_string(),
            other => format!("{other:?}"),
        })
    }
}

/// A connection for publishing and for reading queues. It publishes one message at a time, so that
/// confirms can't be confused.
#[derive(Debug)]
pub struct TestBroker {
    connection: Connection,
    publisher: tokio::sync::Mutex<Channel>,
}

impl TestBroker {
    pub async fn connect(url: &str) -> anyhow::Result<Self> {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { connection, publisher: tokio::sync::Mutex::new(channel) })
    }

    /// Opens another channel, for what the other methods don't cover.
    pub async fn channel(&self) -> anyhow::Result<Channel> {
        Ok(self.connection.create_channel().await?)
    }

    /// Publishes a message and waits for the confirm. It is an error if no queue accepts it.
    pub async fn publish(
        &self,
        exchange: &str,
        routing_key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> anyhow::Result<()> {
        let channel = self.publisher.lock().await;
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirm = channel
            .basic_publish(exchange.into(), routing_key.into(), options, body, properties)
            .await?
            .await?;
        match confirm {
            Confirmation::Ack(None) => Ok(()),
            other => bail!("publish to {exchange} with {routing_key}: {other:?}"),
        }
    }

    /// Publishes a persistent job to the exchange `<prefix>.jobs`.
    pub async fn publish_job(&self, prefix: &str, body: &[u8]) -> anyhow::Result<()> {
        let properties = BasicProperties::default().with_delivery_mode(2);
        self.publish(&format!("{prefix}.jobs"), "job", body, properties).await
    }

    /// Removes every ready message from a queue.
    pub async fn drain_queue(&self, queue: &str) -> anyhow::Result<Vec<Message>> {
        let channel = self.channel().await?;
        let mut messages = Vec::new();
        let options = BasicGetOptions { no_ack: true };
        while let Some(message) = channel.basic_get(queue.into(), options).await? {
            messages.push(Message::from(message.delivery));
        }
        channel.close(200, "done".into()).await?;
        Ok(messages)
    }

    /// Reads every ready message and returns all of them to the queue. Each read counts as a return
    /// to the broker.
    pub async fn peek_queue(&self, queue: &str) -> anyhow::Result<Vec<Message>> {
        let channel = self.channel().await?;
        let mut messages = Vec::new();
        while let Some(message) =
            channel.basic_get(queue.into(), BasicGetOptions::default()).await?
        {
            messages.push(Message::from(message.delivery));
        }
        // Closing the channel returns the messages that were not acked.
        channel.close(200, "done".into()).await?;
        Ok(messages)
    }

    /// Holds every ready message unacked by one consumer, which keeps their order. Messages from
    /// `basic.get` return in the order of their consumer tags as text, "10" before "2".
    pub async fn hold_queue(&self, queue: &str) -> anyhow::Result<Held> {
        let ready = self.queue_depth(queue).await?.unwrap_or_default();
        let channel = self.channel().await?;
        let prefetch = u16::try_from(ready).context("too many messages for a test")?;
        channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
        let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
        let consumer = channel.basic_consume(queue.into(), "hold".into(), options, none).await?;
        let mut taken = consumer.take(usize::try_from(ready)?);
        let (mut tags, mut messages) = (Vec::new(), Vec::new());
        while let Some(delivery) = taken.next().await {
            let delivery = delivery?;
            tags.push(delivery.delivery_tag);
            messages.push(Message::from(delivery));
        }
        channel.basic_cancel("hold".into(), BasicCancelOptions::default()).await?;
        Ok(Held { channel, tags, messages })
    }

    /// The number of ready messages in a queue, or `None` if the queue does not exist.
    pub async fn queue_depth(&self, queue: &str) -> anyhow::Result<Option<u32>> {
        // The broker closes the channel if the queue does not exist, so each call opens a new one.
        let channel = self.channel().await?;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        match channel.queue_declare(queue.into(), options, FieldTable::default()).await {
            Ok(found) => {
                channel.close(200, "done".into()).await?;
                Ok(Some(found.message_count()))
            }
            Err(err) if format!("{err:?}").contains("NOT_FOUND") => Ok(None),
            Err(err) => Err(err).with_context(|| format!("read the depth of queue {queue}")),
        }
    }

    /// Collects all results of a prefix from now on. It declares the exchange as the worker does,
    /// so it may run before any worker.
    pub async fn subscribe_results(&self, prefix: &str) -> anyhow::Result<Results> {
        let exchange = format!("{prefix}.results");
        let channel = self.channel().await?;
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        channel
            .exchange_declare(
                exchange.as_str().into(),
                ExchangeKind::Topic,
                durable,
                FieldTable::default(),
            )
            .await?;
        let own = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare("".into(), own, FieldTable::default()).await?;
        let queue = queue.name().clone();
        let bind = QueueBindOptions::default();
        let none = FieldTable::default();
        channel
            .queue_bind(queue.clone(), exchange.as_str().into(), "#".into(), bind, none.clone())
            .await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let mut consumer = channel.basic_consume(queue, "".into(), options, none).await?;
        let collected = Arc::<Mutex<Vec<Message>>>::default();
        let sink = Arc::clone(&collected);
        let task = tokio::spawn(async move {
            while let Some(Ok(delivery)) = consumer.next().await {
                sink.lock().unwrap_or_else(PoisonError::into_inner).push(Message::from(delivery));
            }
        });
        Ok(Results { collected, task, _channel: channel })
    }
}

/// Messages that a test holds unacked.
pub struct Held {
    pub channel: Channel,
    pub tags: Vec<u64>,
    pub messages: Vec<Message>,
}

impl Held {
    /// Returns all messages to the queue. Up to a few hundred keep their order.
    pub async fn requeue(self) -> anyhow::Result<Vec<Message>> {
        let up_to = BasicNackOptions { multiple: true, requeue: true };
        for last in self.tags.chunks(32).filter_map(<[u64]>::last) {
            self.channel.basic_nack(*last, up_to).await?;
        }
        self.channel.close(200, "done".into()).await?;
        Ok(self.messages)
    }
}

/// The results that were published since the subscription, in order.
#[derive(Debug)]
pub struct Results {
    collected: Arc<Mutex<Vec<Message>>>,
    task: JoinHandle<()>,
    /// The consumer lives as long as this channel, and its queue as long as the connection.
    _channel: Channel,
}

impl Results {
    /// All results received so far.
    pub fn all(&self) -> Vec<Message> {
        self.collected.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for at least `count` results.
    pub async fn wait_for(&self, count: usize, limit: Duration) -> anyhow::Result<Vec<Message>> {
        let enough = within(limit, async || self.all().len() >= count || self.task.is_finished());
        let in_time = enough.await.is_some();
        let all = self.all();
        ensure!(
            in_time && all.len() >= count,
            "{} of {count} results after {limit:?}: {:?}",
            all.len(),
            all.iter().map(|result| &result.routing_key).collect::<Vec<_>>()
        );
        Ok(all)
    }
}

impl Drop for Results {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl From<Delivery> for Message {
    fn from(delivery: Delivery) -> Self {
        Self {
            routing_key: delivery.routing_key.to_string(),
            body: delivery.data,
            properties: delivery.properties,
            redelivered: delivery.redelivered,
        }
    }
}
