//! A session: two connections (the broker may block the one that publishes, and must not block acks with it), their
//! channels, and the one fact that it lives. Any error ends the session as a whole; the caller opens the next one.

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

/// Opening a session, with some thirty queues to declare, takes at most this long.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
/// A broker that answers no method for so long is taken for lost: long before its heartbeats are missed.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the connections are looked at.
const WATCH_EVERY: Duration = Duration::from_millis(200);

/// Where the broker is, and how it is used.
#[derive(Clone)]
pub struct BrokerOptions {
    /// `amqp://` or `amqps://`.
    pub url: String,
    /// The prefix of all names.
    pub prefix: String,
    /// How many deliveries may be unacked.
    pub prefetch: u16,
    /// What is done about the topology.
    pub topology: Topology,
    /// The delays that have a queue.
    pub delays: Vec<Duration>,
    /// The PEM text of a private certificate authority.
    pub ca: Option<String>,
    /// The PEM files of our certificate and its key.
    pub client: Option<(Vec<u8>, Vec<u8>)>,
    /// Told of every publish.
    pub on_publish: Option<OnPublish>,
    /// What is known of queues that are gone.
    pub missing: Missing,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL is none of the broker's.
    #[error("broker.url is no AMQP URL")]
    Url,
    /// The broker can't be reached, or refuses.
    #[error("{0}")]
    Connection(#[from] lapin::Error),
    /// It takes too long.
    #[error("the broker did not answer in time")]
    TimedOut,
    /// No later try would end otherwise.
    #[error(transparent)]
    Topology(TopologyError),
}

/// Whether the session lives, and whether its broker takes messages.
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

    /// Ends the session.
    pub(super) fn end(&self, reason: &str) {
        if !self.is_lost() {
            tracing::warn!(reason, "the broker's session is lost; what is unacked comes again");
            self.lost.cancel();
        }
    }
}

/// What publishing needs of a session: its connection.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) connection: Arc<BrokerConnection>,
    pub(super) names: Names,
    channels: Arc<std::sync::Mutex<Vec<Channel>>>,
    pub(super) options: Arc<BrokerOptions>,
}

impl Link {
    /// A channel with confirms. An error is why the session ends.
    pub(super) async fn confirming(&self) -> Result<Channel, String> {
        let opened = async {
            let channel = self.connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            // Kept until the connection is closed: a channel that closes itself beside it is reported as an error.
            let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
            channels.retain(|channel: &Channel| channel.status().connected());
            channels.push(channel.clone());
            drop(channels);
            Ok::<_, lapin::Error>(channel)
        };
        match tokio::time::timeout(ANSWER_TIMEOUT, opened).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(format!("no channel to publish on: {error}")),
            Err(_) => Err("no channel to publish on: the broker does not answer".into()),
        }
    }

    /// Whether what is missing is declared by us.
    pub(super) fn declares(&self) -> bool {
        self.options.topology == Topology::Declare
    }

    /// Makes the topology whole again, if it is ours to declare.
    pub(super) async fn declare(&self) {
        if self.declares() {
            let (delays, missing) = (&self.options.delays, &self.options.missing);
            let (connection, declare) = (&self.connection, Topology::Declare);
            let declared =
                topology::ensure(connection, &self.names, delays, declare, missing).await;
            if let Err(error) = declared {
                tracing::error!(%error, "the topology can't be made whole");
            }
        }
    }
}

/// An open session.
pub struct Session {
    pub(super) names: Names,
    pub(super) publisher: Publisher,
    pub(super) acks: Acks,
    pub(super) channel: Channel,
    /// That by which queues are counted, once there is one. Kept, as those with confirms, until the connections are closed.
    pub(super) counting: Mutex<Option<Channel>>,
    pub(super) life: Life,
    consuming: BrokerConnection,
    link: Link,
}

impl Session {
    /// Connects, declares the topology, and readies the channels.
    ///
    /// # Errors
    /// The broker can't be reached (try again), or the topology is not as it must be (don't).
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

    /// Whether this is a URL that can be connected to.
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
                tracing::warn!(blocked, "the broker's word on publishing changed");
            }
            tokio::select! {
                () = self.life.lost() => {}
                () = tokio::time::sleep(WATCH_EVERY) => {}
            }
        }
    }

    /// The names at the broker.
    #[must_use]
    pub const fn names(&self) -> &Names {
        &self.names
    }

    /// Whether deliveries of this session are still worth a start.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.life.is_lost()
    }

    /// Whether the broker has stopped taking messages.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.life.is_blocked()
    }

    /// Returns when the session is lost.
    pub async fn lost(&self) {
        self.life.lost().await;
    }

    /// Ends the session: what is unacked comes again.
    pub fn end(&self, reason: &str) {
        self.life.end(reason);
    }

    /// A channel to look into queues with.
    pub(super) async fn look_channel(&self) -> lapin::Result<Channel> {
        self.consuming.create_channel().await
    }

    /// A channel of its own that publishes and is told what the broker has.
    pub(super) async fn confirm_channel(&self) -> lapin::Result<Channel> {
        let channel = self.link.connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }

    /// Begins to consume jobs.
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

    /// How the broker is used.
    pub(super) fn options(&self) -> &BrokerOptions {
        &self.link.options
    }

    /// How many deliveries may be unacked.
    pub(super) fn prefetch(&self) -> u16 {
        self.link.options.prefetch
    }

    /// Ceases to consume; what was handed out already stays with us.
    pub(super) async fn cancel_consumer(&self, tag: &str) -> Result<(), OpenError> {
        let cancelled = self.channel.basic_cancel(tag.into(), BasicCancelOptions::default());
        let cancelled = tokio::time::timeout(ANSWER_TIMEOUT, cancelled).await;
        Ok(cancelled.map_err(|_| OpenError::TimedOut)??)
    }

    /// Makes the topology whole again after a message found no queue.
    pub(super) async fn mend_topology(&self) {
        self.link.declare().await;
    }

    /// What publishing needs of it.
    pub(super) const fn link(&self) -> &Link {
        &self.link
    }

    /// The exchange for which the broker takes nothing from us at present.
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        self.publisher.refusal().borrow().clone()
    }

    /// Takes an exchange for refused, as an earlier session found it, until the broker proves otherwise.
    pub async fn suspect(&self, refusal: Refusal) {
        self.publisher.suspect(refusal).await;
    }

    /// Closes both connections, if they still are, once everything is acked.
    pub async fn close(&self) {
        if tokio::time::timeout(CLOSE_TIMEOUT, self.acks.flush()).await.is_err() {
            tracing::debug!("not everything was acked in time");
        }
        self.life.lost.cancel();
        tokio::join!(self.consuming.close(), self.link.connection.close());
    }
}
