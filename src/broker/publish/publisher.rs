//! The task that publishes, and its handle.

use std::collections::HashMap;

use tokio::sync::{mpsc, oneshot, watch};

use super::{
    batch::{BATCH_MAX, PublishTask},
    connection::PublishConnection,
    message::{Message, OnPublish, PublishError, PublishRefusal},
    refusals::PublishRefusals,
    request::PublishRequest,
};
use crate::broker::session_state::SessionState;

/// How many publishes may wait for their batch; more make their callers wait.
const QUEUE_MAX: usize = 1024;

#[expect(clippy::large_enum_variant, reason = "suspicions are rare, a box for each publish is not")]
enum PublisherCommand {
    Publish(PublishRequest),
    Suspect(PublishRefusal),
}

/// A handle with which messages are published in one session.
#[derive(Clone)]
pub(in crate::broker) struct Publisher {
    commands: mpsc::Sender<PublisherCommand>,
    refusal: watch::Receiver<Option<PublishRefusal>>,
}

impl Publisher {
    /// Starts the task that owns the channels. It ends with the session.
    pub(in crate::broker) fn start(
        connection: PublishConnection,
        state: SessionState,
        on_publish: Option<OnPublish>,
    ) -> Self {
        let (commands, queue) = mpsc::channel(QUEUE_MAX);
        let (refused, refusal) = watch::channel(None);
        let (refusals, channels) = (PublishRefusals::new(refused), HashMap::new());
        tokio::spawn(PublishTask { connection, state, on_publish, refusals, channels }.run(queue));
        Self { commands, refusal }
    }

    /// Publishes a message, and waits for the broker's confirm.
    pub(in crate::broker) async fn publish(&self, message: Message) -> Result<(), PublishError> {
        self.send(message, false).await
    }

    /// Like [`Self::publish`], but waits while the exchange refuses publishes.
    pub(in crate::broker) async fn publish_patiently(
        &self,
        message: Message,
    ) -> Result<(), PublishError> {
        self.send(message, true).await
    }

    async fn send(&self, message: Message, is_patient: bool) -> Result<(), PublishError> {
        let (respond, confirmed) = oneshot::channel();
        let request = PublisherCommand::Publish(PublishRequest { message, respond, is_patient });
        self.commands.send(request).await.map_err(|_| PublishError::Lost)?;
        confirmed.await.unwrap_or(Err(PublishError::Lost))
    }

    /// Treats an exchange as refusing publishes, as an earlier session found, until a publish to it
    /// is accepted.
    pub(in crate::broker) async fn suspect(&self, refusal: PublishRefusal) {
        let mut refused = self.refusal.clone();
        if self.commands.send(PublisherCommand::Suspect(refusal)).await.is_ok() {
            // The value changes once the task has handled the command. An error means that the
            // session is lost.
            drop(refused.changed().await);
        }
    }

    /// The exchange that refuses publishes at present, if any.
    pub(in crate::broker) fn refusal(&self) -> watch::Receiver<Option<PublishRefusal>> {
        self.refusal.clone()
    }
}

impl PublishTask {
    async fn run(mut self, mut queue: mpsc::Receiver<PublisherCommand>) {
        let mut commands = Vec::with_capacity(BATCH_MAX);
        let state = self.state.clone();
        loop {
            let due = self.refusals.due();
            let is_due = tokio::select! {
                () = state.lost() => return,
                taken = queue.recv_many(&mut commands, BATCH_MAX) => {
                    if taken == 0 {
                        return;
                    }
                    false
                }
                () = due => true,
            };
            let done =
                if is_due { self.try_again().await } else { self.handle(commands.drain(..)).await };
            if let Err(reason) = done {
                return state.end(&reason);
            }
        }
    }

    async fn handle(
        &mut self,
        commands: impl Iterator<Item = PublisherCommand>,
    ) -> Result<(), String> {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        for command in commands {
            match command {
                PublisherCommand::Publish(request) => batch.extend(self.refusals.keep(request)),
                PublisherCommand::Suspect(refusal) => self.refusals.suspect(refusal),
            }
        }
        self.commit(batch).await
    }
}
