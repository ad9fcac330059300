//! A session: two connections, their channels, and the state that says whether they all work. Any
//! error ends the session as a whole, and the caller opens the next one.
//!
//! There are two connections because the broker may block the one that publishes. It must not block
//! acks at the same time.

use std::{
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lapin::{
    Channel, Consumer,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, ConfirmSelectOptions},
    types::FieldTable,
};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{
    acks::Acks,
    address,
    connect::{BrokerConnection, CLOSE_TIMEOUT},
    missing::Missing,
    publisher::{OnPublish, Publisher},
    refusals::Refusal,
    topology::{self, Names, Topology, TopologyError},
};

/// The time limit for opening a session, which may declare some thirty queues.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
/// The time limit for the broker's response to a method. It notices a dead broker long before two
/// heartbeats are missed.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the state of the connections is polled.
const WATCH_EVERY: Duration = Duration::from_millis(200);

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
    pub topology: Topology,
    /// The delays that have a wait queue.
    pub delays: Vec<Duration>,
    /// The certificate of a private certificate authority (PEM).
    pub ca: Option<String>,
    /// The client certificate and its private key (PEM).
    pub client: Option<(Vec<u8>, Vec<u8>)>,
    /// Called after every publish, such as to count it.
    pub on_publish: Option<OnPublish>,
    /// The queues that were found missing. Sessions that share a clone share this record.
    pub missing: Missing,
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
    Connection(#[from] lapin::Error),
    /// The broker did not respond in time.
    #[error("the broker did not respond in time")]
    TimedOut,
    /// The topology is wrong. Another try can't succeed until somebody fixes it.
    #[error(transparent)]
    Topology(TopologyError),
}

/// The state of a session: whether it is lost, and whether the broker blocks publishing.
#[derive(Clone, Default)]
pub(super) struct Life {
    lost: CancellationToken,
    blocked: Arc<AtomicBool>,
}

impl Life {
    pub(super) async fn lost(&self) {
        self.lost.cancelled().await;
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    /// Marks the session as lost, and logs the reason the first time.
    pub(super) fn end(&self, reason: &str) {
        if !self.is_lost() {
            tracing::warn!(reason, "broker session lost: unacked jobs are redelivered");
            self.lost.cancel();
        }
    }
}

/// The connection that publishes, and what opening channels and declaring needs.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) connection: Arc<BrokerConnection>,
    pub(super) names: Names,
    channels: Arc<std::sync::Mutex<Vec<Channel>>>,
    pub(super) options: Arc<BrokerOptions>,
}

impl Link {
    /// Opens a channel with publisher confirms. The error is the reason why the session ends.
    pub(super) async fn confirming(&self) -> Result<Channel, String> {
        let opened = async {
            let channel = self.connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            // Kept until the connection is closed. The last clone that is dropped closes the
            // channel, and beside a closing connection the client reports that as an error.
            let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
            channels.retain(|channel: &Channel| channel.status().connected());
            channels.push(channel.clone());
            drop(channels);
            Ok::<_, lapin::Error>(channel)
        };
        match tokio::time::timeout(ANSWER_TIMEOUT, opened).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(format!("opening a channel to publish failed: {error}")),
            Err(_) => Err("opening a channel to publish failed: the broker did not respond".into()),
        }
    }

    /// Whether this program declares what is missing (`broker.topology` is `declare`).
    pub(super) fn declares(&self) -> bool {
        self.options.topology == Topology::Declare
    }

    /// Declares the topology again, if `broker.topology` is `declare`. A failure is only logged.
    pub(super) async fn declare(&self) {
        if self.declares() {
            let (delays, missing) = (&self.options.delays, &self.options.missing);
            let (connection, declare) = (&self.connection, Topology::Declare);
            let declared =
                topology::ensure(connection, &self.names, delays, declare, missing).await;
            if let Err(error) = declared {
                tracing::error!(%error, "topology could not be declared again");
            }
        }
    }
}

/// An open session, through which jobs are consumed and acked, and messages published.
pub struct Session {
    pub(super) names: Names,
    pub(super) publisher: Publisher,
    pub(super) acks: Acks,
    pub(super) channel: Channel,
    /// The channel that counts the messages in queues, once it is open. It is kept, like those with
    /// confirms, until the connection is closed.
    pub(super) counting: Mutex<Option<Channel>>,
    pub(super) life: Life,
    consuming: BrokerConnection,
    link: Link,
}

impl Session {
    /// Connects, declares or checks the topology, and opens the channels.
    ///
    /// # Errors
    /// The broker can't be reached, which may be temporary; or the URL or the topology is wrong,
    /// where another try does not help.
    pub async fn open(options: &BrokerOptions) -> Result<Self, OpenError> {
        let opened = tokio::time::timeout(OPEN_TIMEOUT, Self::open_untimed(options)).await;
        opened.map_err(|_| OpenError::TimedOut)?
    }

    async fn open_untimed(options: &BrokerOptions) -> Result<Self, OpenError> {
        let publishing = BrokerConnection::open(options, "publish").await?;
        let names = Names::new(&options.prefix);
        let (delays, missing) = (&options.delays, &options.missing);
        let ensured =
            topology::ensure(&publishing, &names, delays, options.topology, missing).await;
        ensured.map_err(|error| match error {
            TopologyError::Connection(error) => OpenError::Connection(error),
            other => OpenError::Topology(other),
        })?;
        let consuming = BrokerConnection::open(options, "consume").await?;
        let channel = consuming.create_channel().await?;
        let link = Link {
            connection: Arc::new(publishing),
            names: names.clone(),
            channels: Arc::default(),
            options: Arc::new(options.clone()),
        };
        let life = Life::default();
        let publisher = Publisher::start(link.clone(), life.clone(), options.on_publish.clone());
        let acks = Acks::start(channel.clone(), life.clone());
        Ok(Self {
            names,
            publisher,
            acks,
            channel,
            counting: Mutex::default(),
            life,
            consuming,
            link,
        })
    }

    /// Whether this is a valid AMQP URL.
    #[must_use]
    pub fn takes(url: &str) -> bool {
        address::parse(url).is_some()
    }

    /// Watches the connections until the session is lost.
    pub async fn watch(&self) {
        while !self.life.is_lost() {
            let connected = self.consuming.status().connected()
                && self.link.connection.status().connected()
                && self.channel.status().connected();
            if !connected {
                return self.life.end("a connection or channel was closed");
            }
            let blocked = self.link.connection.status().blocked();
            if self.life.blocked.swap(blocked, Ordering::Relaxed) != blocked {
                if blocked {
                    tracing::warn!(blocked, "broker blocked publishing");
                } else {
                    tracing::warn!(blocked, "broker unblocked publishing");
                }
            }
            tokio::select! {
                () = self.life.lost() => {}
                () = tokio::time::sleep(WATCH_EVERY) => {}
            }
        }
    }

    /// The names of exchanges and queues, with the prefix of this session.
    #[must_use]
    pub const fn names(&self) -> &Names {
        &self.names
    }

    /// Whether the session still works. Deliveries of a lost session must not be started.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.life.is_lost()
    }

    /// Whether the broker blocks publishing.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.life.is_blocked()
    }

    /// Returns when the session is lost.
    pub async fn lost(&self) {
        self.life.lost().await;
    }

    /// Ends the session. The broker redelivers all unacked jobs.
    pub fn end(&self, reason: &str) {
        self.life.end(reason);
    }

    /// Opens a channel on the consuming connection, to browse and count queues.
    pub(super) async fn look_channel(&self) -> lapin::Result<Channel> {
        self.consuming.create_channel().await
    }

    /// Opens a channel with publisher confirms that the publishing task does not use.
    pub(super) async fn confirm_channel(&self) -> lapin::Result<Channel> {
        let channel = self.link.connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }

    /// Starts a consumer on the queue of jobs.
    pub(super) async fn start_consumer(
        &self,
        tag: &str,
        prefetch: u16,
    ) -> Result<Consumer, OpenError> {
        let started = async {
            let qos = BasicQosOptions { global: false };
            self.channel.basic_qos(prefetch, qos).await?;
            let (queue, options) = (self.names.jobs(), BasicConsumeOptions::default());
            let queue = queue.as_str().into();
            self.channel.basic_consume(queue, tag.into(), options, FieldTable::default()).await
        };
        Ok(tokio::time::timeout(ANSWER_TIMEOUT, started)
            .await
            .map_err(|_| OpenError::TimedOut)??)
    }

    /// The options with which the session was opened.
    pub(super) fn options(&self) -> &BrokerOptions {
        &self.link.options
    }

    /// The maximum number of unacked deliveries.
    pub(super) fn prefetch(&self) -> u16 {
        self.link.options.prefetch
    }

    /// Cancels a consumer. Deliveries that it received stay unacked until they are settled.
    pub(super) async fn cancel_consumer(&self, tag: &str) -> Result<(), OpenError> {
        let cancelled = self.channel.basic_cancel(tag.into(), BasicCancelOptions::default());
        let cancelled = tokio::time::timeout(ANSWER_TIMEOUT, cancelled).await;
        Ok(cancelled.map_err(|_| OpenError::TimedOut)??)
    }

    /// Declares the topology again after a message was returned as unroutable.
    pub(super) async fn mend_topology(&self) {
        self.link.declare().await;
    }

    /// The publishing connection, and what belongs to it.
    pub(super) const fn link(&self) -> &Link {
        &self.link
    }

    /// The exchange that refuses publishes at present, with the broker's reason.
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        self.publisher.refusal().borrow().clone()
    }

    /// Treats an exchange as refusing publishes, as an earlier session found, until a publish to it
    /// is accepted.
    pub async fn suspect(&self, refusal: Refusal) {
        self.publisher.suspect(refusal).await;
    }

    /// Sends the queued acks, then closes both connections.
    pub async fn close(&self) {
        if tokio::time::timeout(CLOSE_TIMEOUT, self.acks.flush()).await.is_err() {
            tracing::debug!("acks were not sent in time: their jobs are redelivered");
        }
        self.life.lost.cancel();
        tokio::join!(self.consuming.close(), self.link.connection.close());
    }
}
