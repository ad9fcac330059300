//! Publishes in batches. One task owns the confirm channels. It publishes a batch in order, awaits
//! all its confirms, and only then reports the results.
//!
//! With concurrent publishes on one channel, the client can swap their confirms, and it attaches a
//! returned message to whichever confirm comes next. Within one finished batch neither can mislead.
//!
//! A missing permission or exchange closes a channel, but does not end the session: see `refusals`.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use futures_util::future::join_all;
use lapin::{Channel, Confirmation, PublisherConfirm, options::BasicPublishOptions};

use super::{
    connection::PublishConnection,
    message::{Message, OnPublish, PublishError, PublishRefusal},
    refusals::PublishRefusals,
    request::PublishRequest,
};
use crate::broker::{
    names::{Exchange, Names},
    response::MethodRefusal,
    session_state::SessionState,
};

/// The maximum number of publishes that are confirmed together.
pub(super) const BATCH_MAX: usize = 128;
/// The pause between two tries to open a channel while the broker blocks publishing.
const BLOCKED_PAUSE: Duration = Duration::from_millis(200);
/// If the broker confirms nothing within this time, and does not block publishing, the session is
/// considered lost.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);

/// An exchange whose channel the broker closed, and why.
type ClosedChannel = (Exchange, MethodRefusal);

/// The results of a batch.
struct ConfirmedBatch {
    /// One result for each publish; `None` if the channel was closed before its confirm.
    results: Vec<Option<Result<(), PublishError>>>,
    closed: Vec<ClosedChannel>,
}

/// The state of the publishing task. Its methods fail with the reason why the session ends.
pub(super) struct PublishTask {
    pub(super) connection: PublishConnection,
    pub(super) state: SessionState,
    pub(super) on_publish: Option<OnPublish>,
    pub(super) refusals: PublishRefusals,
    /// One channel for each exchange. The broker closes the channel on a refusal. It may still send
    /// confirms of other publishes on the closed channel, which the client treats as an error of
    /// the whole connection.
    pub(super) channels: HashMap<Exchange, Channel>,
}

impl PublishTask {
    /// Publishes a batch and reports the results. Messages without a result, because the broker
    /// closed their channel, are kept for a later try.
    pub(super) async fn commit(&mut self, batch: Vec<PublishRequest>) -> Result<(), String> {
        let (unknown, closed) = self.try_batch(batch).await?;
        for request in unknown {
            let exchange = request.message.exchange;
            // The first request of an exchange records the refusal; the others are kept with it.
            let Some(request) = self.refusals.keep(request) else { continue };
            if let Some((_, refusal)) = closed.iter().find(|(of, _)| *of == exchange) {
                let refusal = PublishRefusal::new(exchange, refusal.clone());
                self.report(&request, &Err(PublishError::Forbidden(refusal.clone())));
                self.refusals.refuse(request, refusal, self.connection.declares());
            }
        }
        Ok(())
    }

    /// Publishes a batch and reports the results. Returns the requests without a result, and the
    /// exchanges whose channels the broker closed.
    pub(super) async fn try_batch(
        &mut self,
        batch: Vec<PublishRequest>,
    ) -> Result<(Vec<PublishRequest>, Vec<ClosedChannel>), String> {
        let ConfirmedBatch { results, closed } = match self.confirm(&batch).await {
            Ok(confirmed) => confirmed,
            Err(reason) => {
                batch.iter().for_each(|request| self.report(request, &Err(PublishError::Lost)));
                return Err(reason);
            }
        };
        let mut unknown = Vec::new();
        for (request, result) in batch.into_iter().zip(results) {
            match result {
                Some(result) => {
                    self.report(&request, &result);
                    request.respond(result);
                }
                None => unknown.push(request),
            }
        }
        for (exchange, _) in &closed {
            self.channels.remove(exchange);
        }
        Ok((unknown, closed))
    }

    fn report(&self, request: &PublishRequest, result: &Result<(), PublishError>) {
        if let Some(on_publish) = &self.on_publish {
            on_publish(request.message.exchange, result);
        }
    }

    /// Opens a channel for an exchange. Waits while the broker blocks publishing.
    async fn open_channel(&self) -> Result<Channel, String> {
        loop {
            match self.connection.open_channel().await {
                Err(_) if self.state.is_blocked() && !self.state.is_lost() => {
                    tokio::time::sleep(BLOCKED_PAUSE).await;
                }
                done => return done,
            }
        }
    }

    /// Publishes a batch and waits for all its confirms. The time-out does not apply while the
    /// broker blocks publishing.
    async fn confirm(&mut self, batch: &[PublishRequest]) -> Result<ConfirmedBatch, String> {
        for PublishRequest { message, .. } in batch {
            if !self.channels.contains_key(&message.exchange) {
                let channel = self.open_channel().await?;
                self.channels.insert(message.exchange, channel);
            }
        }
        let (channels, names) = (&self.channels, &self.connection.names);
        let confirms = async {
            let mut confirms = Vec::with_capacity(batch.len());
            for PublishRequest { message, .. } in batch {
                if let Some(channel) = channels.get(&message.exchange) {
                    confirms.push(issue(channel, names, message).await);
                }
            }
            join_all(confirms.into_iter().map(async |confirm| confirm?.await)).await
        };
        tokio::pin!(confirms);
        loop {
            let confirmed = tokio::select! {
                () = self.state.lost() => return Err("the session was lost".into()),
                confirmed = tokio::time::timeout(CONFIRM_TIMEOUT, &mut confirms) => confirmed,
            };
            match confirmed {
                Ok(confirmed) => return results_of(names, batch, confirmed),
                Err(_) if self.state.is_blocked() => {}
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
fn results_of(
    names: &Names,
    batch: &[PublishRequest],
    confirmed: Vec<lapin::Result<Confirmation>>,
) -> Result<ConfirmedBatch, String> {
    let mut closed: Vec<ClosedChannel> = Vec::new();
    for (PublishRequest { message, .. }, done) in batch.iter().zip(&confirmed) {
        if let Some(refusal) = done.as_ref().err().and_then(MethodRefusal::lasting) {
            closed.push((message.exchange, refusal));
        }
    }
    for (PublishRequest { message, .. }, done) in batch.iter().zip(&confirmed) {
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
    let results = batch.iter().zip(acked).map(|(PublishRequest { message, .. }, is_ack)| {
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
    Ok(ConfirmedBatch { results: results.collect(), closed })
}
