//! Tries an exchange again that refused publishes.

use super::{batch::PublishTask, refusals::RefusedExchange, request::PublishRequest};
use crate::broker::{probe, response::MethodRefusal};

impl PublishTask {
    /// Tries an exchange again whose pause is over: with one of the messages that are kept for it,
    /// or with a rolled-back transaction if there are none.
    pub(super) async fn try_again(&mut self) -> Result<(), String> {
        let Some(at) = self.refusals.first_due() else { return Ok(()) };
        if self.state.is_blocked() {
            self.refusals.postpone(at);
            return Ok(());
        }
        let mut refused = self.refusals.take(at);
        let exchange = refused.refusal.exchange;
        refused.held.retain(PublishRequest::is_awaited);
        if refused.refusal.is_missing && self.connection.declares() {
            self.connection.redeclare().await;
        }
        let refusal = if refused.held.is_empty() {
            let probed = probe::may_write(&self.connection.options, exchange).await;
            probed.map_err(|error| format!("publishing failed: {error}"))?
        } else {
            self.try_first(&mut refused).await?
        };
        if let Some(refusal) = refusal {
            self.refusals.refused_again(at, refused, refusal);
            return Ok(());
        }
        self.refusals.accepted(exchange);
        self.commit(refused.held).await
    }

    /// Publishes the first of the kept messages: the broker may have refused the messages and not
    /// the exchange.
    async fn try_first(
        &mut self,
        refused: &mut RefusedExchange,
    ) -> Result<Option<MethodRefusal>, String> {
        let first = if refused.held.is_empty() { None } else { Some(refused.held.remove(0)) };
        let (unknown, mut closed) = self.try_batch(first.into_iter().collect()).await?;
        refused.held.splice(0..0, unknown);
        Ok(closed.pop().map(|(_, refusal)| refusal))
    }
}
