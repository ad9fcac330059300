//! A job as the broker handed it over, with its history and the duty to settle it. Only here a job is acked.

use std::{sync::Arc, time::Duration};

use lapin::{BasicProperties, options::BasicNackOptions};
use time::OffsetDateTime;

use super::{
    headers,
    publisher::{Message, PublishError},
    session::Session,
    topology::Exchange,
};
use crate::domain::{
    forward::ForwardFields,
    history::History,
    job::{Job, Malformed},
    schedule::delay_name,
    settle::{Letter, ResultMessage, Settlement, epoch_ms},
    trace::TraceContext,
};

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

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
    born_ms: i64,
}

impl Delivery {
    pub(super) fn new(session: Arc<Session>, delivery: lapin::message::Delivery) -> Self {
        let now_ms = epoch_ms(OffsetDateTime::now_utc());
        let history = headers::read(&delivery.properties, delivery.redelivered, now_ms);
        let born_ms = headers::born_ms(&delivery.properties, &history);
        Self {
            session,
            tag: delivery.delivery_tag,
            body: delivery.data.into(),
            properties: delivery.properties,
            history,
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

    /// Whether the broker may drop it, for what stands in its `x-death`, in place of dead-lettering it.
    #[must_use]
    pub fn may_be_dropped(&self) -> bool {
        headers::names_a_death_of_ours(&self.properties, self.prefix())
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

    /// Publishes what is to be published, waits for the broker's confirm, then acks. A publish that the broker refuses
    /// is tried again for as long as the session lives; the job stays unacked meanwhile.
    ///
    /// # Errors
    /// The session is lost; nothing was acked.
    pub async fn settle(self, settlement: Settlement) -> Result<(), SessionLost> {
        match settlement {
            Settlement::Captured(result) => self.publish(self.result(&result)).await?,
            Settlement::Retry { delay, carry } => {
                let message = self.republish(Exchange::Wait, delay_name(delay), &carry, None);
                self.publish(message).await?;
            }
            Settlement::Dead { letter, carry, result } => {
                let class = letter.class.name().to_owned();
                let letter = self.republish(Exchange::Dead, class, &carry, Some(&letter));
                let letter = self.publish(letter);
                let result = async {
                    match &result {
                        Some(result) => self.publish(self.result(result)).await,
                        None => Ok(()),
                    }
                };
                tokio::try_join!(letter, result)?;
            }
            Settlement::HandBack => return self.hand_back().await,
        }
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

    async fn publish(&self, message: Message) -> Result<(), SessionLost> {
        let mut backoff = BACKOFF_MIN;
        loop {
            let error = match self.session.publisher.publish(message.clone()).await {
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
