//! Publishes in groups: one task owns the confirm channel, issues a batch in order, awaits all its confirms, and only
//! then tells anybody. Concurrent publishes on one channel would swap each other's confirms, and a returned message
//! hangs on whichever confirm comes next: within one finished batch neither can mislead.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures_util::future::try_join_all;
use lapin::{BasicProperties, Channel, Confirmation, options::BasicPublishOptions};
use tokio::sync::{mpsc, oneshot};

use super::{
    session::Life,
    topology::{Exchange, Names},
};

/// The most publishes that are confirmed together.
const BATCH_MAX: usize = 128;
/// Publishes that may wait for their batch.
const QUEUE_MAX: usize = 1024;
/// A broker that confirms nothing for so long, and has not said that it is blocked, is taken for lost.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);

/// A message to publish; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) exchange: Exchange,
    pub(super) routing_key: Arc<str>,
    /// Whether it must reach a queue.
    pub(super) mandatory: bool,
    pub(super) properties: BasicProperties,
    pub(super) body: Arc<[u8]>,
}

/// Why a message is not at the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No queue is bound there.
    #[error("no queue takes it")]
    Returned,
    /// The broker refused it.
    #[error("the broker refused it")]
    Nacked,
    /// Whether it arrived is not known.
    #[error("the broker's session is lost")]
    Lost,
}

impl PublishError {
    /// The name in counters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Returned => "returned",
            Self::Nacked => "refused",
            Self::Lost => "lost",
        }
    }
}

/// Hears of every publish: to which exchange, and what the broker said.
pub type OnPublish = Arc<dyn Fn(Exchange, Result<(), PublishError>) + Send + Sync>;

struct Request {
    message: Message,
    answer: oneshot::Sender<Result<(), PublishError>>,
}

/// The way to publish in one session.
#[derive(Clone)]
pub(super) struct Publisher {
    requests: mpsc::Sender<Request>,
}

impl Publisher {
    /// Starts the task that owns the channel; it ends with the session.
    pub(super) fn start(
        channel: Channel,
        names: Names,
        life: Life,
        on_publish: Option<OnPublish>,
    ) -> Self {
        let (requests, queue) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(run(channel, names, queue, life, on_publish));
        Self { requests }
    }

    /// Publishes, and waits until the broker has it.
    pub(super) async fn publish(&self, message: Message) -> Result<(), PublishError> {
        let (answer, confirmed) = oneshot::channel();
        let request = Request { message, answer };
        self.requests.send(request).await.map_err(|_| PublishError::Lost)?;
        confirmed.await.unwrap_or(Err(PublishError::Lost))
    }
}

async fn run(
    channel: Channel,
    names: Names,
    mut queue: mpsc::Receiver<Request>,
    life: Life,
    on_publish: Option<OnPublish>,
) {
    let tell = |message: &Message, result: Result<(), PublishError>| {
        if let Some(on_publish) = &on_publish {
            on_publish(message.exchange, result);
        }
    };
    let mut batch = Vec::with_capacity(BATCH_MAX);
    loop {
        tokio::select! {
            () = life.lost() => return,
            taken = queue.recv_many(&mut batch, BATCH_MAX) => if taken == 0 { return },
        }
        match commit(&channel, &names, &batch, &life).await {
            Ok(results) => {
                for (request, result) in batch.drain(..).zip(results) {
                    tell(&request.message, result);
                    // Nobody waits any more if the job's task is gone; the original is then still unacked.
                    request.answer.send(result).unwrap_or_default();
                }
            }
            Err(reason) => {
                for request in &batch {
                    tell(&request.message, Err(PublishError::Lost));
                }
                return life.end(&reason);
            }
        }
    }
}

/// Publishes a batch and waits for all its confirms. A broker that says it is blocked is waited for.
async fn commit(
    channel: &Channel,
    names: &Names,
    batch: &[Request],
    life: &Life,
) -> Result<Vec<Result<(), PublishError>>, String> {
    let confirms = async {
        let mut confirms = Vec::with_capacity(batch.len());
        for Request { message, .. } in batch {
            let options =
                BasicPublishOptions { mandatory: message.mandatory, ..Default::default() };
            let confirm = channel
                .basic_publish(
                    names.exchange(message.exchange).as_str().into(),
                    (&*message.routing_key).into(),
                    options,
                    &message.body,
                    message.properties.clone(),
                )
                .await?;
            confirms.push(confirm);
        }
        try_join_all(confirms).await
    };
    tokio::pin!(confirms);
    loop {
        tokio::select! {
            () = life.lost() => return Err("the session is lost".into()),
            confirmed = tokio::time::timeout(CONFIRM_TIMEOUT, &mut confirms) => match confirmed {
                Ok(Ok(confirmations)) => return Ok(judge(names, batch, confirmations)),
                Ok(Err(error)) => return Err(format!("publishing failed: {error}")),
                Err(_) if life.is_blocked() => {}
                Err(_) => return Err("the broker confirms nothing".into()),
            },
        }
    }
}

/// What became of each publish. A message came back for want of a queue at its exchange and key, so every mandatory
/// publish of the batch to that address is taken as returned, whichever confirm the return hangs on.
fn judge(
    names: &Names,
    batch: &[Request],
    confirmations: Vec<Confirmation>,
) -> Vec<Result<(), PublishError>> {
    let mut returned = HashSet::new();
    let confirmed: Vec<_> = confirmations
        .into_iter()
        .map(|confirmation| {
            let is_ack = confirmation.is_ack();
            if let Some(message) = confirmation.take_message() {
                let delivery = message.delivery;
                returned.insert((delivery.exchange.to_string(), delivery.routing_key.to_string()));
            }
            is_ack
        })
        .collect();
    batch
        .iter()
        .zip(confirmed)
        .map(|(Request { message, .. }, is_ack)| {
            let address = (names.exchange(message.exchange), message.routing_key.to_string());
            if !is_ack {
                Err(PublishError::Nacked)
            } else if message.mandatory && returned.contains(&address) {
                Err(PublishError::Returned)
            } else {
                Ok(())
            }
        })
        .collect()
}
