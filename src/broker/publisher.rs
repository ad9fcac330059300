//! Publishes in batches. One task owns the confirm channels. It publishes a batch in order, awaits
//! all its confirms, and only then reports the results.
//!
//! With concurrent publishes on one channel, the client can swap their confirms, and it attaches a
//! returned message to whichever confirm comes next. Within one finished batch neither can mislead.
//!
//! A missing permission or exchange closes a channel, but does not end the session: see `refusals`.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use lapin::{
    BasicProperties, Channel, Confirmation, PublisherConfirm, options::BasicPublishOptions,
};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    refusals::{Refusal, Refusals, denial_of},
    session::{Life, Link},
    topology::{Exchange, Names},
};

/// The maximum number of publishes that are confirmed together.
const BATCH_MAX: usize = 128;
/// How many publishes may wait for their batch; more make their callers wait.
const QUEUE_MAX: usize = 1024;
/// The pause between two tries to open a channel while the broker blocks publishing.
const BLOCKED_PAUSE: Duration = Duration::from_millis(200);
/// If the broker confirms nothing within this time, and does not block publishing, the session is
/// considered lost.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);

/// A message to publish. It is cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) exchange: Exchange,
    pub(super) routing_key: Arc<str>,
    /// Whether the broker must return the message if no queue is bound for it.
    pub(super) mandatory: bool,
    pub(super) properties: BasicProperties,
    pub(super) body: Arc<[u8]>,
}

/// Why the broker does not have a message, or may not have it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No queue is bound to the exchange with the message's routing key.
    #[error("the message was returned as unroutable: no queue is bound for its routing key")]
    Returned,
    /// The broker rejected the message with a nack: a queue is full, or has no leader.
    #[error("the broker rejected the message (nack): a queue is full or unavailable")]
    Nacked,
    /// The broker refuses all publishes to this exchange.
    #[error("the broker refused the publish: {}", .0.reason)]
    Forbidden(Refusal),
    /// The session was lost before the confirm: whether the message arrived is unknown.
    #[error("broker session lost: it is unknown whether the message arrived")]
    Lost,
}

impl PublishError {
    /// The value of the metric label `result`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Returned => "returned",
            Self::Nacked | Self::Forbidden(_) => "refused",
            Self::Lost => "lost",
        }
    }
}

/// Called after every publish, with its exchange and its result.
pub type OnPublish = Arc<dyn Fn(Exchange, &Result<(), PublishError>) + Send + Sync>;

/// A message, and the channel on which its caller waits for the result.
pub(super) struct Request {
    pub(super) message: Message,
    answer: oneshot::Sender<Result<(), PublishError>>,
    /// Whether the request waits while its exchange refuses publishes, instead of failing.
    pub(super) is_patient: bool,
}

impl Request {
    /// Whether the caller still waits for the result.
    pub(super) fn is_awaited(&self) -> bool {
        !self.answer.is_closed()
    }

    pub(super) fn answer(self, result: Result<(), PublishError>) {
        // An error means that the caller was cancelled. Then the original job is still unacked.
        self.answer.send(result).unwrap_or_default();
    }
}

#[expect(clippy::large_enum_variant, reason = "suspicions are rare, a box for each publish is not")]
enum Command {
    Publish(Request),
    Suspect(Refusal),
}

/// A handle with which messages are published in one session.
#[derive(Clone)]
pub(super) struct Publisher {
    commands: mpsc::Sender<Command>,
    refusal: watch::Receiver<Option<Refusal>>,
}

impl Publisher {
    /// Starts the task that owns the channels. It ends with the session.
    pub(super) fn start(link: Link, life: Life, on_publish: Option<OnPublish>) -> Self {
        let (commands, queue) = mpsc::channel(QUEUE_MAX);
        let (refused, refusal) = watch::channel(None);
        let (refusals, channels) = (Refusals::new(refused), HashMap::new());
        tokio::spawn(Publishing { link, life, on_publish, refusals, channels }.run(queue));
        Self { commands, refusal }
    }

    /// Publishes a message, and waits for the broker's confirm.
    pub(super) async fn publish(&self, message: Message) -> Result<(), PublishError> {
        self.send(message, false).await
    }

    /// Like [`Self::publish`], but waits while the exchange refuses publishes.
    pub(super) async fn publish_patiently(&self, message: Message) -> Result<(), PublishError> {
        self.send(message, true).await
    }

    async fn send(&self, message: Message, is_patient: bool) -> Result<(), PublishError> {
        let (answer, confirmed) = oneshot::channel();
        let request = Command::Publish(Request { message, answer, is_patient });
        self.commands.send(request).await.map_err(|_| PublishError::Lost)?;
        confirmed.await.unwrap_or(Err(PublishError::Lost))
    }

    /// Treats an exchange as refusing publishes, as an earlier session found, until a publish to it
    /// is accepted.
    pub(super) async fn suspect(&self, refusal: Refusal) {
        let mut refused = self.refusal.clone();
        if self.commands.send(Command::Suspect(refusal)).await.is_ok() {
            // The value changes once the task has handled the command. An error means that the
            // session is lost.
            drop(refused.changed().await);
        }
    }

    /// The exchange that refuses publishes at present, if any.
    pub(super) fn refusal(&self) -> watch::Receiver<Option<Refusal>> {
        self.refusal.clone()
    }
}

/// An exchange whose channel the broker closed, with the broker's code and text.
type Closed = (Exchange, (u16, String));

/// The results of a batch.
struct Confirmed {
    /// One result for each publish; `None` if the channel was closed before its confirm.
    results: Vec<Option<Result<(), PublishError>>>,
    closed: Vec<Closed>,
}

/// The state of the publishing task. Its methods fail with the reason why the session ends.
pub(super) struct Publishing {
    pub(super) link: Link,
    life: Life,
    on_publish: Option<OnPublish>,
    pub(super) refusals: Refusals,
    /// One channel for each exchange. The broker closes the channel on a refusal. It may still send
    /// confirms of other publishes on the closed channel, which the client treats as an error of
    /// the whole connection.
    channels: HashMap<Exchange, Channel>,
}

impl Publishing {
    async fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        let mut commands = Vec::with_capacity(BATCH_MAX);
        let life = self.life.clone();
        loop {
            let due = self.refusals.due();
            let is_due = tokio::select! {
                () = life.lost() => return,
                taken = queue.recv_many(&mut commands, BATCH_MAX) => {
                    if taken == 0 {
                        return;
                    }
                    false
                }
                () = due => true,
            };
            let done =
                if is_due { self.try_again().await } else { self.obey(commands.drain(..)).await };
            if let Err(reason) = done {
                return life.end(&reason);
            }
        }
    }

    async fn obey(&mut self, commands: impl Iterator<Item = Command>) -> Result<(), String> {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        for command in commands {
            match command {
                Command::Publish(request) => batch.extend(self.refusals.keep(request)),
                Command::Suspect(refusal) => self.refusals.suspect(refusal),
            }
        }
        self.commit(batch).await
    }

    /// Publishes a batch and reports the results. Messages without a result, because the broker
    /// closed their channel, are kept for a later try.
    pub(super) async fn commit(&mut self, batch: Vec<Request>) -> Result<(), String> {
        let (unknown, closed) = self.try_batch(batch).await?;
        for request in unknown {
            let exchange = request.message.exchange;
            // The first request of an exchange records the refusal; the others are kept with it.
            let Some(request) = self.refusals.keep(request) else { continue };
            if let Some((_, (code, text))) = closed.iter().find(|(of, _)| *of == exchange) {
                let refusal = Refusal::new(exchange, *code, text.clone());
                self.tell(&request, &Err(PublishError::Forbidden(refusal.clone())));
                self.refusals.refuse(request, refusal, self.link.declares());
            }
        }
        Ok(())
    }

    /// Publishes a batch and reports the results. Returns the requests without a result, and the
    /// exchanges whose channels the broker closed.
    pub(super) async fn try_batch(
        &mut self,
        batch: Vec<Request>,
    ) -> Result<(Vec<Request>, Vec<Closed>), String> {
        let Confirmed { results, closed } = match self.confirm(&batch).await {
            Ok(confirmed) => confirmed,
            Err(reason) => {
                batch.iter().for_each(|request| self.tell(request, &Err(PublishError::Lost)));
                return Err(reason);
            }
        };
        let mut unknown = Vec::new();
        for (request, result) in batch.into_iter().zip(results) {
            match result {
                Some(result) => {
                    self.tell(&request, &result);
                    request.answer(result);
                }
                None => unknown.push(request),
            }
        }
        for (exchange, _) in &closed {
            self.channels.remove(exchange);
        }
        Ok((unknown, closed))
    }

    /// Whether the broker blocks publishing on this connection.
    pub(super) fn is_blocked(&self) -> bool {
        self.life.is_blocked()
    }

    fn tell(&self, request: &Request, result: &Result<(), PublishError>) {
        if let Some(on_publish) = &self.on_publish {
            on_publish(request.message.exchange, result);
        }
    }

    /// Opens a channel for an exchange. Waits while the broker blocks publishing.
    async fn open_channel(&self) -> Result<Channel, String> {
        loop {
            match self.link.confirming().await {
                Err(_) if self.life.is_blocked() && !self.life.is_lost() => {
                    tokio::time::sleep(BLOCKED_PAUSE).await;
                }
                done => return done,
            }
        }
    }

    /// Publishes a batch and waits for all its confirms. The time-out does not apply while the
    /// broker blocks publishing.
    async fn confirm(&mut self, batch: &[Request]) -> Result<Confirmed, String> {
        for Request { message, .. } in batch {
            if !self.channels.contains_key(&message.exchange) {
                let channel = self.open_channel().await?;
                self.channels.insert(message.exchange, channel);
            }
        }
        let (channels, names) = (&self.channels, &self.link.names);
        let confirms = async {
            let mut confirms = Vec::with_capacity(batch.len());
            for Request { message, .. } in batch {
                if let Some(channel) = channels.get(&message.exchange) {
                    confirms.push(issue(channel, names, message).await);
                }
            }
            join_all(confirms.into_iter().map(async |confirm| confirm?.await)).await
        };
        tokio::pin!(confirms);
        loop {
            let confirmed = tokio::select! {
                () = self.life.lost() => return Err("the session was lost".into()),
                confirmed = tokio::time::timeout(CONFIRM_TIMEOUT, &mut confirms) => confirmed,
            };
            match confirmed {
                Ok(confirmed) => return judge(names, batch, confirmed),
                Err(_) if self.life.is_blocked() => {}
                Err(_) => return Err("the broker sent no confirm in time".into()),
            }
        }
    }
}

async fn issue(
    channel: &Channel,
    names: &Names,
    message: &Message,
) -> lapin::Result<PublisherConfirm> {
    let options = BasicPublishOptions { mandatory: message.mandatory, ..Default::default() };
    channel
        .basic_publish(
            names.exchange(message.exchange).as_str().into(),
            (&*message.routing_key).into(),
            options,
            &message.body,
            message.properties.clone(),
        )
        .await
}

/// The result of each publish. A message is returned if no queue is bound for its exchange and
/// routing key. So every mandatory publish of the batch with the same exchange and key counts as
/// returned, whichever confirm the client attached the returned message to.
///
/// # Errors
/// The connection failed, or a channel failed for a reason that is not a refusal.
fn judge(
    names: &Names,
    batch: &[Request],
    confirmed: Vec<lapin::Result<Confirmation>>,
) -> Result<Confirmed, String> {
    let mut closed: Vec<Closed> = Vec::new();
    for (Request { message, .. }, done) in batch.iter().zip(&confirmed) {
        if let Some(denial) = done.as_ref().err().and_then(denial_of) {
            closed.push((message.exchange, denial));
        }
    }
    for (Request { message, .. }, done) in batch.iter().zip(&confirmed) {
        if let Err(error) = done
            && closed.iter().all(|(exchange, _)| *exchange != message.exchange)
        {
            return Err(format!("publishing failed: {error}"));
        }
    }
    let mut returned = HashSet::new();
    let mut acked = Vec::with_capacity(batch.len());
    for confirmation in confirmed {
        let Ok(confirmation) = confirmation else {
            acked.push(None);
            continue;
        };
        acked.push(Some(confirmation.is_ack()));
        if let Some(message) = confirmation.take_message() {
            let delivery = message.delivery;
            returned.insert((delivery.exchange.to_string(), delivery.routing_key.to_string()));
        }
    }
    let results = batch.iter().zip(acked).map(|(Request { message, .. }, is_ack)| {
        let address = (names.exchange(message.exchange), message.routing_key.to_string());
        is_ack.map(|is_ack| {
            if !is_ack {
                Err(PublishError::Nacked)
            } else if message.mandatory && returned.contains(&address) {
                Err(PublishError::Returned)
            } else {
                Ok(())
            }
        })
    });
    Ok(Confirmed { results: results.collect(), closed })
}
