//! The exchanges and queues that the worker needs, and whether they are there.

use std::{collections::BTreeMap, time::Duration};

use lapin::{
    Channel, Connection, ErrorKind, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, ShortString},
};

use super::missing::{Missing, is_no_queue};
use crate::domain::{class::Class, schedule::delay_name};

/// How often the broker hands a job out before it takes it for poison.
pub const DELIVERY_LIMIT: u32 = 20;
/// The one number that every version of the broker takes as "keep the letter, however often it is looked at".
const KEEP: i64 = 2_000_000_000;
/// `x-message-ttl` is an unsigned number of 32 bits.
pub const DELAY_MS_MAX: u128 = 4_294_967_295;

/// What is done about the topology at the start of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// Declare everything; what exists otherwise is an error.
    Declare,
    /// Look whether everything exists, by name.
    Check,
    /// Neither.
    None,
}

/// Our exchanges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exchange {
    /// Jobs, new and come back.
    Jobs,
    /// Jobs that wait.
    Wait,
    /// Dead letters.
    Dead,
    /// Results.
    Results,
    /// Audit records.
    Audit,
}

impl Exchange {
    /// The name without the prefix.
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

/// The names at the broker.
#[derive(Clone, Debug)]
pub struct Names {
    prefix: String,
}

impl Names {
    /// The names with this prefix.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// The prefix.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// An exchange.
    #[must_use]
    pub fn exchange(&self, exchange: Exchange) -> String {
        format!("{}.{}", self.prefix, exchange.name())
    }

    /// The exchange, and the queue, of jobs.
    #[must_use]
    pub fn jobs(&self) -> String {
        self.exchange(Exchange::Jobs)
    }

    /// The exchange of delays.
    #[must_use]
    pub fn wait(&self) -> String {
        self.exchange(Exchange::Wait)
    }

    /// The exchange of dead letters.
    #[must_use]
    pub fn dead(&self) -> String {
        self.exchange(Exchange::Dead)
    }

    /// The exchange of results.
    #[must_use]
    pub fn results(&self) -> String {
        self.exchange(Exchange::Results)
    }

    /// The exchange, and the queue, of audit records.
    #[must_use]
    pub fn audit(&self) -> String {
        self.exchange(Exchange::Audit)
    }

    /// The queue of one delay.
    #[must_use]
    pub fn wait_queue(&self, delay: Duration) -> String {
        format!("{}.wait.{}", self.prefix, delay_name(delay))
    }

    /// The queue of one class of dead letters.
    #[must_use]
    pub fn dead_queue(&self, class: Class) -> String {
        format!("{}.dead.{class}", self.prefix)
    }
}

/// Why the topology is not as it must be.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// Something exists with other arguments, or may not be declared.
    #[error("the broker's topology is not as it must be:\n  {}", .0.join("\n  "))]
    Refused(Vec<String>),
    /// Something does not exist, and is not to be declared.
    #[error(
        "broker.topology is \"check\", and the broker has no:\n  {}\nDeclare them, or set broker.topology = \"declare\".",
        .0.join("\n  ")
    )]
    Missing(Vec<String>),
    /// The connection failed meanwhile.
    #[error("the connection failed while the topology was looked at: {0}")]
    Connection(#[from] lapin::Error),
}

enum Item {
    Exchange { name: String, kind: ExchangeKind },
    Queue { name: String, arguments: FieldTable },
    Binding { queue: String, exchange: String, key: String },
}

/// Declares or checks everything, with the queues of these delays. A queue that is missing although
/// this process has declared it before is reported as such, and declared again.
///
/// # Errors
/// Everything that is not as it must be, or the connection's failure.
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

/// Looks which of the queues are gone.
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
        tracing::debug!(%error, "the topology's channel did not close cleanly");
    }
    Ok(())
}

/// Tries each item, on a channel of its own after one was refused: a refusal closes its channel.
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
        tracing::debug!(%error, "the topology's channel did not close cleanly");
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

/// Exchanges before queues before bindings.
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
