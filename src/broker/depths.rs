//! Counts the messages in each queue with passive declares, which need no permission.

use super::{
    names::Exchange,
    response::{AmqpError, METHOD_TIMEOUT, NoResponse, ready_messages, response},
    session::Session,
};
use crate::domain::{capture::class::Class, settlement::schedule::delay_name};

/// The number of ready messages in a queue. Unacked deliveries are not counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Depth {
    /// The exchange that the queue is bound to.
    pub of: Exchange,
    /// The delay of a wait queue, the class of a dead-letter queue, or else the exchange's name. A
    /// metric label.
    pub name: String,
    /// The number of ready messages; `None` if the queue does not exist.
    pub messages: Option<u32>,
    /// Whether the queue was found missing within the last few minutes.
    pub is_missing: bool,
}

impl Session {
    /// Counts the messages in every queue. A queue that does not respond, because too few of its
    /// nodes run, is left out. A queue that does not exist is logged, and declared again if
    /// `broker.topology` is `declare`.
    ///
    /// # Errors
    /// The connection fails, or the broker does not respond in time.
    pub async fn depths(&self) -> Result<Vec<Depth>, DepthsError> {
        let mut counting = self.counting.lock().await;
        let mut depths = Vec::new();
        let mut found_missing = false;
        for (of, name, queue) in self.queues() {
            let channel = match counting.take() {
                Some(channel) if channel.status().connected() => channel,
                _ => self.open_channel().await.map_err(AmqpError::of)?,
            };
            // Stored before the next await: if the caller cancels there, the channel is kept.
            let channel = counting.insert(channel);
            let messages = match response(ready_messages(channel, &queue)).await {
                Ok(messages) => Some(messages),
                // Both refusals closed the channel, so the next queue gets a new one.
                Err(NoResponse::Failed(error)) => match error.refusal() {
                    Some(refusal) if refusal.is_no_queue() => {
                        self.options().missing.report(&queue);
                        found_missing = true;
                        None
                    }
                    Some(_) => continue,
                    None => return Err(error.into()),
                },
                Err(NoResponse::TimedOut) => return Err(DepthsError::TimedOut),
            };
            let is_missing = self.options().missing.is_missing(&queue);
            depths.push(Depth { of, name, messages, is_missing });
        }
        drop(counting);
        if found_missing {
            self.publishing().redeclare().await;
        }
        Ok(depths)
    }

    /// Each queue: its exchange, its label, and its name at the broker.
    fn queues(&self) -> Vec<(Exchange, String, String)> {
        let named = |of: Exchange, queue: String| (of, of.name().to_owned(), queue);
        let mut queues = vec![named(Exchange::Jobs, self.names.jobs())];
        for delay in &self.options().delays {
            queues.push((Exchange::Wait, delay_name(*delay), self.names.wait_queue(*delay)));
        }
        for class in Class::ALL {
            let name = class.name().to_owned();
            queues.push((Exchange::Dead, name, self.names.dead_queue(class)));
        }
        queues.push(named(Exchange::Audit, self.names.audit()));
        queues
    }
}

/// Why the messages could not be counted.
#[derive(Debug, thiserror::Error)]
pub enum DepthsError {
    /// The connection failed while the messages were counted.
    #[error("{0}")]
    Connection(#[from] AmqpError),
    /// The broker did not respond in time.
    #[error("the broker did not respond within {METHOD_TIMEOUT:?}")]
    TimedOut,
}
