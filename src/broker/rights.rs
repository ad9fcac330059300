//! Checks the broker permissions of our user without leaving a message. A passive declare needs no
//! permission and proves nothing, so the checks publish and consume as a worker does.

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

/// The exchanges that a worker publishes to.
const WRITES: [Exchange; 3] = [Exchange::Wait, Exchange::Dead, Exchange::Results];
/// The consumer tag, and an unused routing key, of these checks.
const NO_CONSUMER: &str = "capture-worker-check";

/// Why the permissions could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum RightsError {
    /// The connection for the check could not be opened.
    #[error("{0}")]
    Open(#[from] OpenError),
    /// The connection failed during the check.
    #[error("{0}")]
    Connection(#[from] lapin::Error),
    /// The broker did not respond in time.
    #[error("the broker did not respond within {ANSWER_TIMEOUT:?}")]
    TimedOut,
}

impl Session {
    /// The permissions that a worker needs and our user lacks, each with the broker's reason. No
    /// message is left and none is consumed.
    ///
    /// # Errors
    /// The connection fails, or the broker does not respond in time.
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

/// Publishes to an exchange in a transaction that is rolled back: `None` if the broker accepts it,
/// else the code and the text of the refusal.
///
/// This uses its own connection: the broker responds to the rollback even after it has closed the
/// channel because of the publish, and the client treats that response as a connection error.
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
        // All publishes are sent before the rollback, so a refusal arrives before the response to
        // the rollback.
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
        // Only the event has the reason if the channel was closed between two calls.
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

/// Routing keys that a worker uses: a topic permission may allow some and refuse others.
const fn keys(exchange: Exchange) -> &'static [&'static str] {
    match exchange {
        Exchange::Results => &["captured", "failed.risk", "in_doubt"],
        Exchange::Dead => &["poison"],
        Exchange::Jobs | Exchange::Wait | Exchange::Audit => &[NO_CONSUMER],
    }
}

/// Tries to consume with an invalid argument. The broker checks the permission first, so 406 says
/// that only the argument is wrong.
async fn may_read(
    connection: &Connection,
    queue: &str,
) -> Result<Option<(u16, String)>, RightsError> {
    let tried = async {
        let channel = connection.create_channel().await?;
        // If a broker accepts the argument after all, it delivers at most one message, and closing
        // the channel returns it.
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
