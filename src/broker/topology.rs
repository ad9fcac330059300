//! Declares or checks the exchanges, queues and bindings of this program.

use std::{collections::BTreeMap, time::Duration};

use lapin::{
    Channel, Connection, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, ShortString},
};

use super::{
    missing::MissingQueues,
    names::{AUDIT_KEY, Names},
    response::{AmqpError, MethodRefusal, ready_messages},
};
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
pub enum TopologyMode {
    /// Declare everything. An item that exists with other arguments is an error.
    Declare,
    /// Check that every exchange and queue exists, by name only.
    Check,
    /// Neither declare nor check.
    None,
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
    Connection(#[from] AmqpError),
}

enum TopologyItem {
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
    mode: TopologyMode,
    missing: &MissingQueues,
) -> Result<(), TopologyError> {
    match mode {
        TopologyMode::None => Ok(()),
        TopologyMode::Declare => {
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
        TopologyMode::Check => {
            let missing = each(connection, &items(names, delays), true).await?;
            if missing.is_empty() { Ok(()) } else { Err(TopologyError::Missing(missing)) }
        }
    }
}

/// Logs each queue that does not exist.
async fn report_missing(
    connection: &Connection,
    items: &[TopologyItem],
    missing: &MissingQueues,
) -> Result<(), TopologyError> {
    let mut channel = open_channel(connection).await?;
    for item in items {
        let TopologyItem::Queue { name, .. } = item else { continue };
        let Err(error) = check(&channel, item).await else { continue };
        let Some(refusal) = MethodRefusal::of(&error) else {
            return Err(AmqpError::of(error).into());
        };
        if refusal.is_no_queue() {
            missing.report(name);
        }
        channel = open_channel(connection).await?;
    }
    close_channel(&channel).await;
    Ok(())
}

/// Declares or checks each item. A refusal closes the channel, so a new one is opened after it.
async fn each(
    connection: &Connection,
    items: &[TopologyItem],
    passive: bool,
) -> Result<Vec<String>, TopologyError> {
    let mut channel = open_channel(connection).await?;
    let mut refused = Vec::new();
    for item in items {
        let tried =
            if passive { check(&channel, item).await } else { declare(&channel, item).await };
        let Err(error) = tried else { continue };
        let Some(refusal) = MethodRefusal::of(&error) else {
            return Err(AmqpError::of(error).into());
        };
        refused.push(if passive {
            item.describe()
        } else {
            format!("{}: {}", item.describe(), refusal.text)
        });
        channel = open_channel(connection).await?;
    }
    close_channel(&channel).await;
    Ok(refused)
}

async fn open_channel(connection: &Connection) -> Result<Channel, AmqpError> {
    connection.create_channel().await.map_err(AmqpError::of)
}

async fn close_channel(channel: &Channel) {
    if let Err(error) = channel.close(200, "done".into()).await {
        tracing::debug!(%error, "topology channel did not close cleanly");
    }
}

async fn declare(channel: &Channel, item: &TopologyItem) -> lapin::Result<()> {
    match item {
        TopologyItem::Exchange { name, kind } => {
            let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
            channel
                .exchange_declare(short(name), kind.clone(), options, FieldTable::default())
                .await
        }
        TopologyItem::Queue { name, arguments } => {
            let options = QueueDeclareOptions { durable: true, ..Default::default() };
            channel.queue_declare(short(name), options, arguments.clone()).await.map(drop)
        }
        TopologyItem::Binding { queue, exchange, key } => {
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

/// Checks that an item exists, by name only. The broker can't show whether a binding exists.
async fn check(channel: &Channel, item: &TopologyItem) -> lapin::Result<()> {
    match item {
        TopologyItem::Exchange { name, kind } => {
            let options = ExchangeDeclareOptions { passive: true, ..Default::default() };
            channel
                .exchange_declare(short(name), kind.clone(), options, FieldTable::default())
                .await
        }
        TopologyItem::Queue { name, .. } => ready_messages(channel, name).await.map(drop),
        TopologyItem::Binding { .. } => Ok(()),
    }
}

impl TopologyItem {
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
fn items(names: &Names, delays: &[Duration]) -> Vec<TopologyItem> {
    let mut items: Vec<TopologyItem> = [
        (names.jobs(), ExchangeKind::Topic),
        (names.wait(), ExchangeKind::Direct),
        (names.dead(), ExchangeKind::Direct),
        (names.audit(), ExchangeKind::Direct),
        (names.results(), ExchangeKind::Topic),
    ]
    .into_iter()
    .map(|(name, kind)| TopologyItem::Exchange { name, kind })
    .collect();
    let mut queue = |name: String, exchange: String, key: String, more: Vec<(&str, AMQPValue)>| {
        items.push(TopologyItem::Queue { name: name.clone(), arguments: arguments(more) });
        items.push(TopologyItem::Binding { queue: name, exchange, key });
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
    queue(names.audit(), names.audit(), AUDIT_KEY.into(), keep);
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
