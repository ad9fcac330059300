//! Publishes in groups: one task owns the confirm channels, issues a batch in order, awaits all its confirms, and only
//! then tells anybody. Concurrent publishes on one channel would swap each other's confirms, and a returned message
//! hangs on whichever confirm comes next: within one finished batch neither can mislead.
//!
//! A missing permission or exchange closes a channel and not the session: `refusals` says what happens then.

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

/// The most publishes that are confirmed together.
const BATCH_MAX: usize = 128;
/// Publishes that may wait for their batch.
const QUEUE_MAX: usize = 1024;
/// Between two tries to open a channel while the broker is blocked.
const BLOCKED_PAUSE: Duration = Duration::from_millis(200);
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
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No queue is bound there.
    #[error("no queue takes it")]
    Returned,
    /// The broker refused it.
    #[error("the broker refused it")]
    Nacked,
    /// The broker refuses whatever is published to this exchange.
    #[error("the broker refused it: {}", .0.reason)]
    Forbidden(Refusal),
    /// Whether it arrived is not known.
    #[error("the broker's session is lost")]
    Lost,
}

impl PublishError {
    /// The name in counters.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Returned => "returned",
            Self::Nacked | Self::Forbidden(_) => "refused",
            Self::Lost => "lost",
        }
    }
}

/// Hears of every publish: to which exchange, and what the broker said.
pub type OnPublish = Arc<dyn Fn(Exchange, &Result<(), PublishError>) + Send + Sync>;

/// A message, and who waits until it is at the broker.
pub(super) struct Request {
    pub(super) message: Message,
    answer: oneshot::Sender<Result<(), PublishError>>,
    /// Whether it waits for as long as its exchange is refused.
    pub(super) is_patient: bool,
}

impl Request {
    /// Whether anybody still waits for it.
    pub(super) fn is_awaited(&self) -> bool {
        !self.answer.is_closed()
    }

    pub(super) fn answer(self, result: Result<(), PublishError>) {
        // Nobody waits any more if the job's task is gone; the original is then still unacked.
        self.answer.send(result).unwrap_or_default();
    }
}

#[expect(clippy::large_enum_variant, reason = "suspicions are rare, a box for each publish is not")]
enum Command {
    Publish(Request),
    Suspect(Refusal),
}

/// The way to publish in one session.
#[derive(Clone)]
pub(super) struct Publisher {
    commands: mpsc::Sender<Command>,
    refusal: watch::Receiver<Option<Refusal>>,
}

impl Publisher {
    /// Starts the task that owns the channels; it ends with the session.
    pub(super) fn start(link: Link, life: Life, on_publish: Option<OnPublish>) -> Self {
        let (commands, queue) = mpsc::channel(QUEUE_MAX);
        let (refused, refusal) = watch::channel(None);
        let (refusals, channels) = (Refusals::new(refused), HashMap::new());
        tokio::spawn(Publishing { link, life, on_publish, refusals, channels }.run(queue));
        Self { commands, refusal }
    }

    /// Publishes, and waits until the broker has it.
    pub(super) async fn publish(&self, message: Message) -> Result<(), PublishError> {
        self.send(message, false).await
    }

    /// The same, and waits for as long as the broker refuses whatever is published to this exchange.
    pub(super) async fn publish_patiently(&self, message: Message) -> Result<(), PublishError> {
        self.send(message, true).await
    }

    async fn send(&self, message: Message, is_patient: bool) -> Result<(), PublishError> {
        let (answer, confirmed) = oneshot::channel();
        let request = Command::Publish(Request { message, answer, is_patient });
        self.commands.send(request).await.map_err(|_| PublishError::Lost)?;
        confirmed.await.unwrap_or(Err(PublishError::Lost))
    }

    /// Takes an exchange for refused, as an earlier session found it, until the broker proves otherwise.
    pub(super) async fn suspect(&self, refusal: Refusal) {
        let mut refused = self.refusal.clone();
        if self.commands.send(Command::Suspect(refusal)).await.is_ok() {
            // It has changed when the command was obeyed; an error says that the session is lost.
            drop(refused.changed().await);
        }
    }

    /// Which exchange is refused at present.
    pub(super) fn refusal(&self) -> watch::Receiver<Option<Refusal>> {
        self.refusal.clone()
    }
}

/// That the broker closed the channel of an exchange: its code and its text.
type Closed = (Exchange, (u16, String));

/// What became of a batch.
struct Confirmed {
    /// Of each publish; `None` where the channel was closed before the broker said anything of it.
    results: Vec<Option<Result<(), PublishError>>>,
    closed: Vec<Closed>,
}

/// The task that publishes. An error is why the session ends.
pub(super) struct Publishing {
    pub(super) link: Link,
    life: Life,
    on_publish: Option<OnPublish>,
    pub(super) refusals: Refusals,
    /// One for each exchange: the broker closes it for what is refused there, and what it still says of others on a
    /// channel that is closed is an error of the connection to the client.
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
                taken = queue.recv_many(&mut commands, BATCH_MAX) => if taken == 0 { return } else { false },
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

    /// Publishes a batch and tells everybody. What is not at the broker because it closed the channel is held.
    pub(super) async fn commit(&mut self, batch: Vec<Request>) -> Result<(), String> {
        let (unknown, closed) = self.try_batch(batch).await?;
        for request in unknown {
            let exchange = request.message.exchange;
            // The first of its exchange says so, and the others are held with it.
            let Some(request) = self.refusals.keep(request) else { continue };
            if let Some((_, (code, text))) = closed.iter().find(|(of, _)| *of == exchange) {
                let refusal = Refusal::new(exchange, *code, text.clone());
                self.tell(&request, &Err(PublishError::Forbidden(refusal.clone())));
                self.refusals.refuse(request, refusal, self.link.declares());
            }
        }
        Ok(())
    }

    /// Publishes a batch and tells those of whom the broker said something. The others come back, with the exchanges
    /// whose channels it closed.
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

    /// Whether the broker takes no messages from anybody.
    pub(super) fn is_blocked(&self) -> bool {
        self.life.is_blocked()
    }

    fn tell(&self, request: &Request, result: &Result<(), PublishError>) {
        if let Some(on_publish) = &self.on_publish {
            on_publish(request.message.exchange, result);
        }
    }

    /// A channel for an exchange. A broker that says it is blocked is waited for.
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

    /// Publishes a batch and waits for all its confirms. A broker that says it is blocked is waited for.
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
            tokio::select! {
                () = self.life.lost() => return Err("the session is lost".into()),
                confirmed = tokio::time::timeout(CONFIRM_TIMEOUT, &mut confirms) => match confirmed {
                    Ok(confirmed) => return judge(names, batch, confirmed),
                    Err(_) if self.life.is_blocked() => {}
                    Err(_) => return Err("the broker confirms nothing".into()),
                },
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

/// What became of each publish. A message came back for want of a queue at its exchange and key, so every mandatory
/// publish of the batch to that address is taken as returned, whichever confirm the return hangs on.
///
/// # Errors
/// The connection failed, or the channel for a reason that is no refusal.
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
