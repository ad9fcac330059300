//! What our user may do at the broker, proven without a message: a passive declare needs no permission, so only what
//! the work itself does can tell.

use std::pin::pin;

use futures_util::StreamExt;
use lapin::{
    BasicProperties, Connection, Event,
    options::{BasicConsumeOptions, BasicPublishOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable},
};

use super::{
    connect::BrokerConnection,
    refusals::{PRECONDITION_FAILED, denial_of},
    session::{ANSWER_TIMEOUT, BrokerOptions, OpenError, Session},
    topology::{Exchange, Names},
};

/// To which exchanges a worker publishes.
const WRITES: [Exchange; 3] = [Exchange::Wait, Exchange::Dead, Exchange::Results];
/// A consumer that the broker must not accept.
const NO_CONSUMER: &str = "capture-worker-check";

/// Why nobody knows what our user may do.
#[derive(Debug, thiserror::Error)]
pub enum RightsError {
    /// No connection.
    #[error("{0}")]
    Open(#[from] OpenError),
    /// The connection fails.
    #[error("{0}")]
    Connection(#[from] lapin::Error),
    /// No answer.
    #[error("the broker did not answer within {ANSWER_TIMEOUT:?}")]
    TimedOut,
}

impl Session {
    /// What a worker needs and our user may not do, with the broker's words. No message is left, and none is taken.
    ///
    /// # Errors
    /// The connection fails, or does not answer in time.
    pub async fn missing_rights(&self) -> Result<Vec<String>, RightsError> {
        let mut missing = Vec::new();
        for exchange in WRITES {
            if let Some((_, reason)) = may_write(self.options(), exchange).await? {
                missing
                    .push(format!("write to exchange {}: {reason}", self.names.exchange(exchange)));
            }
        }
        if let Some((_, reason)) = may_read(&self.link().connection, &self.names.jobs()).await? {
            missing.push(format!("read from queue {}: {reason}", self.names.jobs()));
        }
        Ok(missing)
    }
}

/// Publishes to an exchange in a transaction that is rolled back: `None` if the broker takes it, else its code and text.
///
/// On a connection of its own: the broker answers the roll-back even after it closed the channel for the publish, and
/// the client takes that answer for an error of the connection.
pub(super) async fn may_write(
    options: &BrokerOptions,
    exchange: Exchange,
) -> Result<Option<(u16, String)>, RightsError> {
    let connection = BrokerConnection::open(options, "check").await?;
    let exchange_name = Names::new(&options.prefix).exchange(exchange);
    let mut events = pin!(connection.events_listener());
    let tried = async {
        let channel = connection.create_channel().await?;
        channel.tx_select().await?;
        // Each is on its way before the roll-back is asked for, whose answer comes after that of a refusal.
        let tried = async {
            for key in keys(exchange) {
                let (options, properties) =
                    (BasicPublishOptions::default(), BasicProperties::default());
                let exchange = exchange_name.as_str().into();
                drop(
                    channel
                        .basic_publish(exchange, (*key).into(), options, b"", properties)
                        .await?,
                );
            }
            channel.tx_rollback().await
        };
        let rolled_back = tried.await;
        if rolled_back.is_ok() && channel.status().connected() {
            return Ok(());
        }
        // Only the event says why a channel was closed between two calls.
        while let Some(event) = events.next().await {
            if let Event::Error(error) = event
                && denial_of(&error).is_some()
            {
                return Err(error);
            }
        }
        rolled_back
    };
    let told = told(tried).await;
    connection.close().await;
    told
}

/// Keys with which a worker publishes: a topic permission may take some and refuse others.
const fn keys(exchange: Exchange) -> &'static [&'static str] {
    match exchange {
        Exchange::Results => &["captured", "failed.risk", "in_doubt"],
        Exchange::Dead => &["poison"],
        Exchange::Jobs | Exchange::Wait | Exchange::Audit => &[NO_CONSUMER],
    }
}

/// Asks for a consumer with an argument that can't be: 406 says that only the argument is wrong.
async fn may_read(
    connection: &Connection,
    queue: &str,
) -> Result<Option<(u16, String)>, RightsError> {
    let tried = async {
        let channel = connection.create_channel().await?;
        // A broker that accepts it all the same hands out one message, which closing the channel gives back.
        channel.basic_qos(1, BasicQosOptions::default()).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-priority".into(), AMQPValue::LongString("none".into()));
        let options = BasicConsumeOptions::default();
        channel.basic_consume(queue.into(), NO_CONSUMER.into(), options, arguments).await?;
        channel.close(200, "done".into()).await
    };
    let denial = told(tried).await?;
    Ok(denial.filter(|(code, _)| *code != PRECONDITION_FAILED))
}

async fn told(
    tried: impl Future<Output = lapin::Result<()>>,
) -> Result<Option<(u16, String)>, RightsError> {
    match tokio::time::timeout(ANSWER_TIMEOUT, tried).await {
        Err(_) => Err(RightsError::TimedOut),
        Ok(Ok(())) => Ok(None),
        Ok(Err(error)) => match denial_of(&error) {
            Some(denial) => Ok(Some(denial)),
            None => Err(error.into()),
        },
    }
}
