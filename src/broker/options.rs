//! The settings with which a session is opened, and why opening one fails.

use std::time::Duration;

use super::{
    missing::MissingQueues,
    publish::OnPublish,
    response::{AmqpError, NoResponse},
    topology::{TopologyError, TopologyMode},
};

/// The settings of a session with the broker.
#[derive(Clone)]
pub struct BrokerOptions {
    /// An `amqp://` or `amqps://` URL.
    pub url: String,
    /// The prefix of the names of all exchanges and queues.
    pub prefix: String,
    /// The maximum number of unacked deliveries.
    pub prefetch: u16,
    /// Whether the topology is declared or checked when a session opens.
    pub topology: TopologyMode,
    /// The delays that have a wait queue.
    pub delays: Vec<Duration>,
    /// The certificate of a private certificate authority (PEM).
    pub ca: Option<String>,
    /// The client certificate and its private key (PEM).
    pub client: Option<(Vec<u8>, Vec<u8>)>,
    /// Called after every publish, such as to count it.
    pub on_publish: Option<OnPublish>,
    /// The queues that were found missing. Sessions that share a clone share this record.
    pub missing: MissingQueues,
}

/// Why a session could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// `broker.url` can't be parsed as an AMQP URL.
    #[error(
        "broker.url is not a valid AMQP URL (its value is not shown): expected \
         amqp://user:password@host:port/vhost, or amqps://"
    )]
    Url,
    /// The broker can't be reached, or refuses the connection.
    #[error("{0}")]
    Connection(#[from] AmqpError),
    /// The broker did not respond in time.
    #[error("the broker did not respond in time")]
    TimedOut,
    /// The topology is wrong. Another try can't succeed until somebody fixes it.
    #[error(transparent)]
    Topology(TopologyError),
}

impl From<NoResponse> for OpenError {
    fn from(cause: NoResponse) -> Self {
        match cause {
            NoResponse::Failed(error) => Self::Connection(error),
            NoResponse::TimedOut => Self::TimedOut,
        }
    }
}

impl From<TopologyError> for OpenError {
    fn from(error: TopologyError) -> Self {
        match error {
            TopologyError::Connection(error) => Self::Connection(error),
            other => Self::Topology(other),
        }
    }
}
