//! The exchanges, queues and bindings of this program: their names, declaration and check.

use std::{collections::BTreeMap, time::Duration};

use lapin::{
    Channel, Connection, ErrorKind, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, ShortString},
};

use super::missing::{Missing, is_no_queue};
use crate::domain::{capture::class::Class, settlement::schedule::delay_name};

/// How often the broker redelivers a job before it dead-letters the job as poison.
pub const DELIVERY_LIMIT: u32 = 20;
/// The delivery limit of dead-letter and audit queues, where each browse counts as a delivery. It
/// means "no limit" in practice: no other way to write that works with every version of the broker.
const KEEP: i64 = 2_000_000_000;
/// The longest delay, in milliseconds: `x-message-ttl` is an unsigned 32-bit number.
pub const DELAY_MS_MAX: u128 = 4_294_967_295;

/// What a session does about the topology when it opens (`broker.topology`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// Declare everything. An item that exists with other arguments is an error.
    Declare,
    /// Check that every exchange and queue exists, by name only.
    Check,
    /// Neither declare nor check.
    None,
}

/// The exchanges that this program publishes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exchange {
    /// New jobs, replayed jobs, and jobs that return from a wait queue.
    Jobs,
    /// Jobs on their way to a wait queue.
    Wait,
    /// Dead letters, routed by class.
    Dead,
    /// Results, routed by status and class.
    Results,
    /// Records of the acts of operators.
    Audit,
}

impl Exchange {
    /// The name without the prefix (`broker.prefix`).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Jobs => "jobs",
            Self::Wait => "wait",
            Self::Dead => "dead",
            Self::Results => "results",
            Self::Audit => "audit",
        }
    }
}

/// The names of exchanges and queues, which all begin with `broker.prefix`.
#[derive(Clone, Debug)]
pub struct Names {
    prefix: String,
}

impl Names {
    /// The names that begin with this prefix.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// The prefix, as `broker.prefix` sets it.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The name of an exchange, with the prefix.
    #[must_use]
    pub fn exchange(&self, exchange: Exchange) -> String {
        format!("{}.{}", self.prefix, exchange.name())
    }

    /// The name of the exchange of jobs, and of its queue.
    #[must_use]
    pub fn jobs(&self) -> String {
        self.exchange(Exchange::Jobs)
    }

    /// The name of the exchange that routes to the wait queues.
    #[must_use]
    pub fn wait(&self) -> String {
        self.exchange(Exchange::Wait)
    }

    /// The name of the exchange of dead letters.
    #[must_use]
    pub fn dead(&self) -> String {
        self.exchange(Exchange::Dead)
    }

    /// The name of the exchange of results.
    #[must_use]
    pub fn results(&self) -> String {
        self.exchange(Exchange::Results)
    }

    /// The name of the exchange of audit records, and of its queue.
    #[must_use]
    pub fn audit(&self) -> String {
        self.exchange(Exchange::Audit)
    }

    /// The name of the wait queue with this delay.
    #[must_use]
    pub fn wait_queue(&self, delay: Duration) -> String {
        format!("{}.wait.{}", self.prefix, delay_name(delay))
    }

    /// The name of the dead-letter queue of a class.
    #[must_use]
    pub fn dead_queue(&self, class: Class) -> String {
        format!("{}.dead.{class}", self.prefix)
    }
}

/// Why the topology could not be declared, or failed its check.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// The broker refused declarations: the items, each with the broker's reason.
    #[error(
        "the broker refused to declare exchanges, queues or bindings (they exist with other \
         arguments, or the user lacks a permission):\n  {}",
        .0.join("\n  ")
    )]
    Refused(Vec<String>),
    /// These items do not exist, and the settings forbid to declare them.
    #[error(
        "broker.topology is \"check\", and these do not exist at the broker:\n  {}\n\
         Declare them, or set broker.topology = \"declare\".",
        .0.join("\n  ")
    )]
    Missing(Vec<String>),
    /// The connection failed during the declaration or the check.
    #[error("the connection failed while the topology was declared or checked: {0}")]
    Connection(#[from] lapin::Error),
}

enum Item {
    Exchange { name: String, kind: ExchangeKind },
    Queue { name: String, arguments: FieldTable },
    Binding { queue: String, exchange: String, key: String },
}

/// Declares or checks the whole topology, including a wait queue for each of these delays. If this
/// process has declared it before, queues that are missing now are logged before they are declared
/// again.
///
/// # Errors
/// All items that were refused or are missing, or the failure of the connection.
pub(super) async fn ensure(
    connection: &Connection,
    names: &Names,
    delays: &[Duration],
    topology: Topology,
    missing: &Missing,
) -> Result<(), TopologyError> {
    match topology {
        Topology::None => Ok(()),
        Topology::Declare => {
            if missing.was_declared() {
                report_missing(connection, &items(names, delays), missing).await?;
            }
            let refused = each(connection, &items(names, delays), false).await?;
            if !refused.is_empty() {
                return Err(TopologyError::Refused(refused));
            }
            missing.declared();
            Ok(())
        }
        Topology::Check => {
            let missing = each(connection, &items(names, delays), true).await?;
            if missing.is_empty() { Ok(()) } else { Err(TopologyError::Missing(missing)) }
        }
    }
}

/// Logs each queue that does not exist.
async fn report_missing(
    connection: &Connection,
    items: &[Item],
    missing: &Missing,
) -> Result<(), TopologyError> {
    let mut channel = connection.create_channel().await?;
    for item in items {
        let Item::Queue { name, .. } = item else { continue };
        let Err(error) = look(&channel, item).await else { continue };
        let ErrorKind::ProtocolError(refusal) = error.kind() else { return Err(error.into()) };
        if is_no_queue(refusal.get_message().as_str()) {
            missing.report(name);
        }
        channel = connection.create_channel().await?;
    }
    if let Err(error) = channel.close(200, "done".into()).await {
        tracing::debug!(%error, "topology channel did not close cleanly");
    }
    Ok(())
}

/// Declares or checks each item. A refusal closes the channel, so a new one is opened after it.
async fn each(
    connection: &Connection,
    items: &[Item],
    passive: bool,
) -> Result<Vec<String>, TopologyError> {
    let mut channel = connection.create_channel().await?;
    let mut refused = Vec::new();
    for item in items {
        let tried =
            if passive { look(&channel, item).await } else { declare(&channel, item).await };
        match tried {
            Ok(()) => {}
            Err(error) => {
                let ErrorKind::ProtocolError(protocol) = error.kind() else {
                    return Err(error.into());
                };
                let why = protocol.get_message();
                refused.push(if passive {
                    item.describe()
                } else {
                    format!("{}: {why}", item.describe())
                });
                channel = connection.create_channel().await?;
            }
        }
    }
    if let Err(error) = channel.close(200, "done".into()).await {
        tracing::debug!(%error, "topology channel did not close cleanly");
    }
    Ok(refused)
}

async fn declare(channel: &Channel, item: &Item) -> lapin::Result<()> {
    match item {
        Item::Exchange { name, kind } => {
            let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
            channel
                .exchange_declare(short(name), kind.clone(), options, FieldTable::default())
                .await
        }
        Item::Queue { name, arguments } => {
            let options = QueueDeclareOptions { durable: true, ..Default::default() };
            channel.queue_declare(short(name), options, arguments.clone()).await.map(drop)
        }
        Item::Binding { queue, exchange, key } => {
            let options = QueueBindOptions::default();
            channel
                .queue_bind(
                    short(queue),
                    short(exchange),
                    short(key),
                    options,
                    FieldTable::default(),
                )
                .await
        }
    }
}

async fn look(channel: &Channel, item: &Item) -> lapin::Result<()> {
    match item {
        Item::Exchange { name, kind } => {
            let options = ExchangeDeclareOptions { passive: true, ..Default::default() };
            channel
                .exchange_declare(short(name), kind.clone(), options, FieldTable::default())
                .await
        }
        Item::Queue { name, .. } => {
            let options = QueueDeclareOptions { passive: true, ..Default::default() };
            channel.queue_declare(short(name), options, FieldTable::default()).await.map(drop)
        }
        Item::Binding { .. } => Ok(()),
    }
}

impl Item {
    fn describe(&self) -> String {
        match self {
            Self::Exchange { name, .. } => format!("exchange {name}"),
            Self::Queue { name, .. } => format!("queue {name}"),
            Self::Binding { queue, exchange, key } => {
                format!("binding of queue {queue} to exchange {exchange} with key {key}")
            }
        }
    }
}

/// All items, in the order of declaration: exchanges first, and each queue before its binding.
fn items(names: &Names, delays: &[Duration]) -> Vec<Item> {
    let mut items: Vec<Item> = [
        (names.jobs(), ExchangeKind::Topic),
        (names.wait(), ExchangeKind::Direct),
        (names.dead(), ExchangeKind::Direct),
        (names.audit(), ExchangeKind::Direct),
        (names.results(), ExchangeKind::Topic),
    ]
    .into_iter()
    .map(|(name, kind)| Item::Exchange { name, kind })
    .collect();
    let mut queue = |name: String, exchange: String, key: String, more: Vec<(&str, AMQPValue)>| {
        items.push(Item::Queue { name: name.clone(), arguments: arguments(more) });
        items.push(Item::Binding { queue: name, exchange, key });
    };
    queue(
        names.jobs(),
        names.jobs(),
        "#".into(),
        vec![
            ("x-delivery-limit", AMQPValue::LongLongInt(i64::from(DELIVERY_LIMIT))),
            ("x-dead-letter-exchange", text(&names.dead())),
            ("x-dead-letter-routing-key", text(Class::Poison.name())),
            ("x-dead-letter-strategy", text("at-least-once")),
        ],
    );
    for delay in delays {
        let ttl = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
        queue(
            names.wait_queue(*delay),
            names.wait(),
            delay_name(*delay),
            vec![
                ("x-message-ttl", AMQPValue::LongLongInt(ttl)),
                ("x-dead-letter-exchange", text(&names.jobs())),
                ("x-dead-letter-routing-key", text("retry")),
                ("x-dead-letter-strategy", text("at-least-once")),
            ],
        );
    }
    for class in Class::ALL {
        let keep = vec![("x-delivery-limit", AMQPValue::LongLongInt(KEEP))];
        queue(names.dead_queue(class), names.dead(), class.name().into(), keep);
    }
    let keep = vec![("x-delivery-limit", AMQPValue::LongLongInt(KEEP))];
    queue(names.audit(), names.audit(), "audit".into(), keep);
    items
}

fn arguments(more: Vec<(&str, AMQPValue)>) -> FieldTable {
    let mut table: BTreeMap<ShortString, AMQPValue> =
        more.into_iter().map(|(name, value)| (short(name), value)).collect();
    table.insert(short("x-queue-type"), text("quorum"));
    table.insert(short("x-overflow"), text("reject-publish"));
    table.into()
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

fn short(text: &str) -> ShortString {
    text.into()
}
