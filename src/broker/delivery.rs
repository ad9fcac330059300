//! A job as the broker delivered it, with its history. It must be settled, and only here is it
//! acked.

use std::{sync::Arc, time::Duration};

use lapin::{BasicProperties, options::BasicNackOptions};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::{
    headers,
    names::Exchange,
    publish::{Message, PublishError, PublishRefusal},
    session::Session,
};
use crate::domain::{
    job::{Job, Malformed, forward::ForwardFields, history::History, trace::TraceContext},
    settlement::{
        DeadLetterReason, ResultMessage, Settlement,
        refused::{RefusedResult, ResultWait},
        schedule::delay_name,
    },
    time::epoch_ms,
};

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// How long a job may stay unacked while publishing is refused. It is well below the half hour
/// (`consumer_timeout`) after which the broker takes unacked deliveries back and counts a return.
pub const HELD_MAX: Duration = Duration::from_secs(15 * 60);

/// The result of settling a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettleResult {
    /// The broker confirmed every message, and the delivery is acked.
    Acked,
    /// The broker refused the result: no dead letter was published, and nothing is acked.
    ResultRefused,
}

/// The session was lost before the delivery was settled: the broker redelivers the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("broker session lost: the broker redelivers the job")]
pub struct SessionLost;

/// An unacked job, with everything that its headers say about it.
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
        let mut history = headers::read_history(&delivery.properties, delivery.redelivered, now_ms);
        let refused = headers::refused_result(&delivery.properties);
        if refused.ended.is_some() {
            // Such a job ended without a call. Only a sent marker or a recorded outcome can prove
            // that a call was made; a redelivery proves nothing.
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

    /// Parses the body as a job.
    ///
    /// # Errors
    /// The first rule of the message contract that the body breaks.
    pub fn job(&self, forward: &ForwardFields) -> Result<Job, Box<Malformed>> {
        headers::read_job(&self.body, &self.properties, forward)
    }

    /// The job's history, from its headers.
    #[must_use]
    pub const fn history(&self) -> &History {
        &self.history
    }

    /// How often in a row the job's result was refused.
    #[must_use]
    pub const fn refused_result(&self) -> &RefusedResult {
        &self.refused
    }

    /// Whether the broker may drop the job instead of dead-lettering it, because of its `x-death`.
    #[must_use]
    pub fn may_be_dropped(&self) -> bool {
        headers::names_a_death_of_ours(&self.properties, self.prefix())
    }

    /// Returns when no exchange is known to refuse publishes, or when the session is lost.
    pub async fn is_publishable(&self) {
        let mut refusal = self.session.publisher.refusal();
        // An error means that the session is lost.
        drop(refusal.wait_for(Option::is_none).await);
    }

    /// The prefix of the broker's exchanges and queues (`broker.prefix`).
    #[must_use]
    pub fn prefix(&self) -> &str {
        self.session.names.prefix()
    }

    /// When the job was published, in epoch milliseconds: the publisher's timestamp if it is
    /// plausible, or else the time when a worker first received the job. For a replay, this starts
    /// anew.
    #[must_use]
    pub const fn born_ms(&self) -> i64 {
        self.born_ms
    }

    /// The W3C trace context in the job's headers.
    #[must_use]
    pub fn trace(&self) -> Option<TraceContext> {
        headers::trace(&self.properties)
    }

    /// Sets the trace context of every message that is published for this job from now on.
    pub fn continue_trace(&mut self, context: &TraceContext) {
        headers::put_trace(&mut self.properties, context);
    }

    /// Whether the delivery can still be settled. If not, the broker has redelivered the job, or
    /// soon will.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.session.is_alive()
    }

    /// Publishes the messages of the settlement, waits for the broker's confirms, then acks. The
    /// result comes before the dead letter: if the broker refuses it, nothing else is done. Any
    /// other refused publish is tried again until the session is lost, and the job stays unacked
    /// meanwhile.
    ///
    /// # Errors
    /// The session is lost, and nothing was acked.
    pub async fn settle(
        &self,
        settlement: &Settlement,
        draining: &CancellationToken,
    ) -> Result<SettleResult, SessionLost> {
        match settlement {
            Settlement::Captured(result) => {
                if !self.publish_result(result, draining).await? {
                    return Ok(SettleResult::ResultRefused);
                }
            }
            Settlement::Retry { delay, carry } => {
                self.publish(self.waiting(*delay, carry, &self.refused)).await?;
            }
            Settlement::Dead { reason, carry, result } => {
                if let Some(result) = result
                    && !self.publish_result(result, draining).await?
                {
                    return Ok(SettleResult::ResultRefused);
                }
                let class = reason.class.name().to_owned();
                self.publish(self.republish(Exchange::Dead, class, carry, Some(reason))).await?;
            }
            Settlement::HandBack => return self.hand_back().await.map(|()| SettleResult::Acked),
        }
        self.ack().map(|()| SettleResult::Acked)
    }

    /// Publishes the job to a wait queue, after which its result is published again, and acks.
    ///
    /// # Errors
    /// The session is lost, and nothing was acked.
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
            self.session.end(&format!("handing a job back failed: {error}"));
            SessionLost
        })
    }

    /// Publishes a result. Returns false if the broker does not accept it: a queue that is bound to
    /// the exchange is full, or the exchange has refused publishes for too long.
    async fn publish_result(
        &self,
        result: &ResultMessage,
        draining: &CancellationToken,
    ) -> Result<bool, SessionLost> {
        let message = Message::of_result(&self.properties, result);
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

    /// Returns when a refusal of results has lasted so long that the job can't stay unacked, or
    /// when the worker drains during one.
    async fn loses_patience(&self, draining: &CancellationToken) {
        let is_of_results = |refusal: &Option<PublishRefusal>| {
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
        // The session is lost, which the publish itself reports.
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
            tracing::error!(
                exchange, routing_key, %error,
                "publish failed: the job stays unacked until it succeeds"
            );
            tokio::select! {
                () = self.session.lost() => return Err(SessionLost),
                () = tokio::time::sleep(backoff) => {}
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
            if error == PublishError::Returned {
                self.session.publishing().redeclare().await;
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
        reason: Option<&DeadLetterReason>,
    ) -> Message {
        Message {
            exchange,
            routing_key: routing_key.into(),
            mandatory: true,
            properties: headers::carry(&self.properties, carry, reason),
            body: Arc::clone(&self.body),
        }
    }
}
