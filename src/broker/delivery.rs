//! A job as the broker handed it over, with its history and the duty to settle it. Only here a job is acked.

use std::{sync::Arc, time::Duration};

use lapin::{BasicProperties, options::BasicNackOptions};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::{
    headers,
    publisher::{Message, PublishError},
    refusals::Refusal,
    session::Session,
    topology::Exchange,
};
use crate::domain::{
    forward::ForwardFields,
    history::History,
    job::{Job, Malformed},
    refused::{RefusedResult, ResultWait},
    schedule::delay_name,
    settle::{Letter, ResultMessage, Settlement, epoch_ms},
    trace::TraceContext,
};

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// While publishing is refused, a job is kept in hand for so long: well below the half hour after which the broker takes
/// back what is not acked, and counts it.
pub const HELD_MAX: Duration = Duration::from_secs(15 * 60);

/// What came of settling a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Everything is at the broker, and the delivery is acked.
    Acked,
    /// Nothing is acked, and no dead letter is written: the broker does not take the result.
    ResultRefused,
}

/// The session ended before the delivery was settled: the broker hands the job out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the broker's session is lost: the job comes again")]
pub struct SessionLost;

/// A job in hand.
pub struct Delivery {
    session: Arc<Session>,
    tag: u64,
    body: Arc<[u8]>,
    properties: BasicProperties,
    history: History,
    refused: RefusedResult,
    born_ms: i64,
}

impl Delivery {
    pub(super) fn new(session: Arc<Session>, delivery: lapin::message::Delivery) -> Self {
        let now_ms = epoch_ms(OffsetDateTime::now_utc());
        let mut history = headers::read(&delivery.properties, delivery.redelivered, now_ms);
        let refused = headers::refused_result(&delivery.properties);
        if refused.ended.is_some() {
            // No call is made for it unless a record says that one was: that it came back says nothing.
            history.redelivered = false;
        }
        let born_ms = headers::born_ms(&delivery.properties, &history);
        Self {
            session,
            tag: delivery.delivery_tag,
            body: delivery.data.into(),
            properties: delivery.properties,
            history,
            refused,
            born_ms,
        }
    }

    /// The job, read by the message contract.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn job(&self, forward: &ForwardFields) -> Result<Job, Box<Malformed>> {
        headers::read_job(&self.body, &self.properties, forward)
    }

    /// What it carries with it.
    #[must_use]
    pub const fn history(&self) -> &History {
        &self.history
    }

    /// How often its result was refused.
    #[must_use]
    pub const fn refused_result(&self) -> &RefusedResult {
        &self.refused
    }

    /// Whether the broker may drop it, for what stands in its `x-death`, in place of dead-lettering it.
    #[must_use]
    pub fn may_be_dropped(&self) -> bool {
        headers::names_a_death_of_ours(&self.properties, self.prefix())
    }

    /// Returns when the broker takes what is published of it, as far as is known; or when the session is lost.
    pub async fn is_publishable(&self) {
        let mut refusal = self.session.publisher.refusal();
        // An error says that the session is lost.
        drop(refusal.wait_for(Option::is_none).await);
    }

    /// The prefix of the names at its broker.
    #[must_use]
    pub fn prefix(&self) -> &str {
        self.session.names.prefix()
    }

    /// Since when it is on its way, in epoch milliseconds: since the publisher's timestamp, if that can be believed, or
    /// since a worker first had it. A replay begins anew.
    #[must_use]
    pub const fn born_ms(&self) -> i64 {
        self.born_ms
    }

    /// The trace that it belongs to.
    #[must_use]
    pub fn trace(&self) -> Option<TraceContext> {
        headers::trace(&self.properties)
    }

    /// From now on whatever is published of this job carries this trace context.
    pub fn continue_trace(&mut self, context: &TraceContext) {
        headers::put_trace(&mut self.properties, context);
    }

    /// Whether it can still be settled. If not, the broker has given the job to somebody else by now.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.session.is_alive()
    }

    /// Publishes what is to be published, waits for the broker's confirm, then acks. The result comes before the dead
    /// letter: if the broker does not take it, nothing else is done. Any other publish that the broker refuses is tried
    /// again for as long as the session lives; the job stays unacked meanwhile.
    ///
    /// # Errors
    /// The session is lost; nothing was acked.
    pub async fn settle(
        &self,
        settlement: &Settlement,
        draining: &CancellationToken,
    ) -> Result<Settled, SessionLost> {
        match settlement {
            Settlement::Captured(result) => {
                if !self.publish_result(result, draining).await? {
                    return Ok(Settled::ResultRefused);
                }
            }
            Settlement::Retry { delay, carry } => {
                self.publish(self.waiting(*delay, carry, &self.refused)).await?;
            }
            Settlement::Dead { letter, carry, result } => {
                if let Some(result) = result
                    && !self.publish_result(result, draining).await?
                {
                    return Ok(Settled::ResultRefused);
                }
                let class = letter.class.name().to_owned();
                self.publish(self.republish(Exchange::Dead, class, carry, Some(letter))).await?;
            }
            Settlement::HandBack => return self.hand_back().await.map(|()| Settled::Acked),
        }
        self.ack().map(|()| Settled::Acked)
    }

    /// Puts the job into a wait queue until its result is published again.
    ///
    /// # Errors
    /// The session is lost; nothing was acked.
    pub async fn wait_for_result(&self, wait: &ResultWait) -> Result<(), SessionLost> {
        self.publish(self.waiting(wait.delay, &wait.carry, &wait.refused)).await?;
        self.ack()
    }

    fn ack(&self) -> Result<(), SessionLost> {
        if !self.session.is_alive() {
            return Err(SessionLost);
        }
        self.session.acks.ack(self.tag);
        Ok(())
    }

    async fn hand_back(&self) -> Result<(), SessionLost> {
        let options = BasicNackOptions { requeue: true, ..Default::default() };
        let nacked = self.session.channel.basic_nack(self.tag, options).await;
        if !self.session.is_alive() {
            return Err(SessionLost);
        }
        nacked.map_err(|error| {
            self.session.end(&format!("handing back failed: {error}"));
            SessionLost
        })
    }

    /// Publishes a result, unless the broker does not take it: a queue that is bound to the exchange is full, or the
    /// exchange has been refused for too long.
    async fn publish_result(
        &self,
        result: &ResultMessage,
        draining: &CancellationToken,
    ) -> Result<bool, SessionLost> {
        let message = self.result(result);
        let published = tokio::select! {
            published = self.session.publisher.publish_patiently(message) => published,
            () = self.loses_patience(draining) => return Ok(false),
        };
        match published {
            Ok(()) => Ok(true),
            Err(PublishError::Lost) => Err(SessionLost),
            Err(PublishError::Nacked | PublishError::Forbidden(_) | PublishError::Returned) => {
                Ok(false)
            }
        }
    }

    /// Returns when results have been refused for so long that the job can't be kept in hand, or when it can't for
    /// another reason.
    async fn loses_patience(&self, draining: &CancellationToken) {
        let is_of_results = |refusal: &Option<Refusal>| {
            refusal.as_ref().is_some_and(|r| r.exchange == Exchange::Results)
        };
        let mut refusal = self.session.publisher.refusal();
        while refusal.wait_for(is_of_results).await.is_ok() {
            tokio::select! {
                () = draining.cancelled() => return,
                () = tokio::time::sleep(HELD_MAX) => return,
                _ = refusal.wait_for(|refusal| !is_of_results(refusal)) => {}
            }
        }
        // The session is lost, which whoever publishes hears.
        std::future::pending().await
    }

    async fn publish(&self, message: Message) -> Result<(), SessionLost> {
        let mut backoff = BACKOFF_MIN;
        loop {
            let published = self.session.publisher.publish_patiently(message.clone()).await;
            let error = match published {
                Ok(()) => return Ok(()),
                Err(PublishError::Lost) => return Err(SessionLost),
                Err(error) => error,
            };
            let (exchange, routing_key) = (message.exchange.name(), &*message.routing_key);
            tracing::error!(exchange, routing_key, %error, "a publish failed; the job stays unacked");
            tokio::select! {
                () = self.session.lost() => return Err(SessionLost),
                () = tokio::time::sleep(backoff) => {}
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
            if error == PublishError::Returned {
                self.session.mend_topology().await;
            }
        }
    }

    fn waiting(&self, delay: Duration, carry: &History, refused: &RefusedResult) -> Message {
        let mut message = self.republish(Exchange::Wait, delay_name(delay), carry, None);
        headers::put_refused_result(&mut message.properties, refused);
        message
    }

    fn republish(
        &self,
        exchange: Exchange,
        routing_key: String,
        carry: &History,
        letter: Option<&Letter>,
    ) -> Message {
        Message {
            exchange,
            routing_key: routing_key.into(),
            mandatory: true,
            properties: headers::carry(&self.properties, carry, letter),
            body: Arc::clone(&self.body),
        }
    }

    fn result(&self, result: &ResultMessage) -> Message {
        let now_ms = epoch_ms(OffsetDateTime::now_utc());
        Message {
            exchange: Exchange::Results,
            routing_key: result.routing_key().into(),
            mandatory: false,
            properties: headers::of_result(&self.properties, now_ms),
            body: serde_json::to_vec(result).unwrap_or_default().into(),
        }
    }
}
