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
    names::{Exchange, Names},
    options::{BrokerOptions, OpenError},
    response::{AmqpError, METHOD_TIMEOUT, MethodRefusal, PRECONDITION_FAILED},
};

/// The consumer tag, and an unused routing key, of these checks.
const NO_CONSUMER: &str = "capture-worker-check";

/// Why the permissions could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum PermissionsError {
    /// The connection for the check could not be opened.
    #[error("{0}")]
    Open(#[from] OpenError),
    /// The connection failed during the check.
    #[error("{0}")]
    Connection(#[from] AmqpError),
    /// The broker did not respond in time.
    #[error("the broker did not respond within {METHOD_TIMEOUT:?}")]
    TimedOut,
}

/// Publishes to an exchange in a transaction that is rolled back: `None` if the broker accepts it,
/// else its refusal.
///
/// This uses its own connection: the broker responds to the rollback even after it has closed the
/// channel because of the publish, and the client treats that response as a connection error.
pub(super) async fn may_write(
    options: &BrokerOptions,
    exchange: Exchange,
) -> Result<Option<MethodRefusal>, PermissionsError> {
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
                && MethodRefusal::lasting(&error).is_some()
            {
                return Err(error);
            }
        }
        rolled_back
    };
    let refusal = refusal_of(tried).await;
    connection.close().await;
    refusal
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
pub(super) async fn may_read(
    connection: &Connection,
    queue: &str,
) -> Result<Option<MethodRefusal>, PermissionsError> {
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
    let refusal = refusal_of(tried).await?;
    Ok(refusal.filter(|refusal| refusal.code != PRECONDITION_FAILED))
}

/// How the broker refused what was tried; `None` if it accepted it.
async fn refusal_of(
    tried: impl Future<Output = lapin::Result<()>>,
) -> Result<Option<MethodRefusal>, PermissionsError> {
    match tokio::time::timeout(METHOD_TIMEOUT, tried).await {
        Err(_) => Err(PermissionsError::TimedOut),
        Ok(Ok(())) => Ok(None),
        Ok(Err(error)) => match MethodRefusal::lasting(&error) {
            Some(refusal) => Ok(Some(refusal)),
            None => Err(AmqpError::of(error).into()),
        },
    }
}
