//! The connection that publishes.

use std::sync::{Arc, Mutex, PoisonError};

use lapin::{Channel, options::ConfirmSelectOptions};

use crate::broker::{
    connect::BrokerConnection,
    names::Names,
    options::BrokerOptions,
    response::{NoResponse, response},
    topology::{self, TopologyMode},
};

/// The connection that publishes, and what opening channels and declaring needs. It is cheap to
/// clone.
#[derive(Clone)]
pub(in crate::broker) struct PublishConnection {
    pub(in crate::broker) connection: Arc<BrokerConnection>,
    pub(in crate::broker) names: Names,
    pub(in crate::broker) options: Arc<BrokerOptions>,
    channels: Arc<Mutex<Vec<Channel>>>,
}

impl PublishConnection {
    pub(in crate::broker) fn new(
        connection: BrokerConnection,
        names: Names,
        options: &BrokerOptions,
    ) -> Self {
        Self {
            connection: Arc::new(connection),
            names,
            options: Arc::new(options.clone()),
            channels: Arc::default(),
        }
    }

    /// Opens a channel with publisher confirms, which the caller closes.
    pub(in crate::broker) async fn confirm_channel(&self) -> lapin::Result<Channel> {
        let channel = self.connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }

    /// Opens a channel with publisher confirms, and keeps it open. The error is the reason why the
    /// session ends.
    pub(super) async fn open_channel(&self) -> Result<Channel, String> {
        let channel = response(self.confirm_channel()).await.map_err(|cause| match cause {
            NoResponse::Failed(error) => format!("opening a channel to publish failed: {error}"),
            NoResponse::TimedOut => {
                "opening a channel to publish failed: the broker did not respond".to_owned()
            }
        })?;
        // Kept until the connection is closed. The last clone that is dropped closes the channel,
        // and beside a closing connection the client reports that as an error.
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.retain(|channel: &Channel| channel.status().connected());
        channels.push(channel.clone());
        drop(channels);
        Ok(channel)
    }

    /// Whether this program declares what is missing (`broker.topology` is `declare`).
    pub(super) fn declares(&self) -> bool {
        self.options.topology == TopologyMode::Declare
    }

    /// Declares the topology again, if `broker.topology` is `declare`. A failure is only logged.
    pub(in crate::broker) async fn redeclare(&self) {
        if !self.declares() {
            return;
        }
        let (delays, missing) = (&self.options.delays, &self.options.missing);
        let (connection, mode) = (&self.connection, TopologyMode::Declare);
        let declared = topology::ensure(connection, &self.names, delays, mode, missing).await;
        if let Err(error) = declared {
            tracing::error!(%error, "topology could not be declared again");
        }
    }
}
