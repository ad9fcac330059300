//! A session: two connections, their channels, and the state that says whether they all work. Any
//! error ends the session as a whole, and the caller opens the next one.
//!
//! There are two connections because the broker may block the one that publishes. It must not block
//! acks at the same time.

use std::time::Duration;

use lapin::{
    Channel, Consumer,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use tokio::sync::Mutex;

use super::{
    acks::Acks,
    connect::{BrokerConnection, CLOSE_TIMEOUT},
    names::Names,
    options::{BrokerOptions, OpenError},
    publish::{PublishConnection, PublishRefusal, Publisher},
    response::{AmqpError, response},
    session_state::SessionState,
    topology,
};

/// The time limit for opening a session, which may declare some thirty queues.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
/// How often the state of the connections is polled.
const WATCH_EVERY: Duration = Duration::from_millis(200);

/// An open session, through which jobs are consumed and acked, and messages published.
pub struct Session {
    pub(super) names: Names,
    pub(super) publisher: Publisher,
    pub(super) acks: Acks,
    pub(super) channel: Channel,
    /// The channel that counts the messages in queues, once it is open. It is kept, like those with
    /// confirms, until the connection is closed.
    pub(super) counting: Mutex<Option<Channel>>,
    pub(super) state: SessionState,
    consuming: BrokerConnection,
    publishing: PublishConnection,
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
        topology::ensure(&publishing, &names, delays, options.topology, missing).await?;
        let consuming = BrokerConnection::open(options, "consume").await?;
        let channel = consuming.create_channel().await.map_err(AmqpError::of)?;
        let publishing = PublishConnection::new(publishing, names.clone(), options);
        let state = SessionState::default();
        let on_publish = options.on_publish.clone();
        let publisher = Publisher::start(publishing.clone(), state.clone(), on_publish);
        let acks = Acks::start(channel.clone(), state.clone());
        Ok(Self {
            names,
            publisher,
            acks,
            channel,
            counting: Mutex::default(),
            state,
            consuming,
            publishing,
        })
    }

    /// Watches the connections until the session is lost.
    pub async fn watch(&self) {
        while !self.state.is_lost() {
            let connected = self.consuming.status().connected()
                && self.publishing.connection.status().connected()
                && self.channel.status().connected();
            if !connected {
                return self.state.end("a connection or channel was closed");
            }
            self.state.set_blocked(self.publishing.connection.status().blocked());
            tokio::select! {
                () = self.state.lost() => {}
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
        !self.state.is_lost()
    }

    /// Whether the broker blocks publishing.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.state.is_blocked()
    }

    /// Returns when the session is lost.
    pub async fn lost(&self) {
        self.state.lost().await;
    }

    /// Ends the session. The broker redelivers all unacked jobs.
    pub fn end(&self, reason: &str) {
        self.state.end(reason);
    }

    /// Opens a channel on the consuming connection, to browse and count queues.
    pub(super) async fn open_channel(&self) -> lapin::Result<Channel> {
        self.consuming.create_channel().await
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
        Ok(response(started).await?)
    }

    /// Cancels a consumer. Deliveries that it received stay unacked until they are settled.
    pub(super) async fn cancel_consumer(&self, tag: &str) -> Result<(), OpenError> {
        let cancelled = self.channel.basic_cancel(tag.into(), BasicCancelOptions::default());
        Ok(response(cancelled).await?)
    }

    /// The options with which the session was opened.
    pub(super) fn options(&self) -> &BrokerOptions {
        &self.publishing.options
    }

    /// The maximum number of unacked deliveries.
    pub(super) fn prefetch(&self) -> u16 {
        self.publishing.options.prefetch
    }

    /// The publishing connection, and what belongs to it.
    pub(super) const fn publishing(&self) -> &PublishConnection {
        &self.publishing
    }

    /// The exchange that refuses publishes at present, with the broker's reason.
    #[must_use]
    pub fn refusal(&self) -> Option<PublishRefusal> {
        self.publisher.refusal().borrow().clone()
    }

    /// Treats an exchange as refusing publishes, as an earlier session found, until a publish to it
    /// is accepted.
    pub async fn suspect(&self, refusal: PublishRefusal) {
        self.publisher.suspect(refusal).await;
    }

    /// Sends the queued acks, then closes both connections.
    pub async fn close(&self) {
        if tokio::time::timeout(CLOSE_TIMEOUT, self.acks.flush()).await.is_err() {
            tracing::debug!("acks were not sent in time: their jobs are redelivered");
        }
        self.state.close();
        tokio::join!(self.consuming.close(), self.publishing.connection.close());
    }
}
