//! Counts the messages in each queue with passive declares, which need no permission.

use lapin::{Channel, ErrorKind, options::QueueDeclareOptions, types::FieldTable};

use super::{
    missing::is_no_queue,
    session::{ANSWER_TIMEOUT, Session},
    topology::Exchange,
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
                _ => self.look_channel().await?,
            };
            // Stored before the next await: if the caller cancels there, the channel is kept.
            let channel = counting.insert(channel);
            let messages = match tokio::time::timeout(ANSWER_TIMEOUT, look(channel, &queue)).await {
                Err(_) => return Err(DepthsError::TimedOut),
                Ok(Ok(messages)) => Some(messages),
                // Both refusals closed the channel, so the next queue gets a new one.
                Ok(Err(error)) => match error.kind() {
                    ErrorKind::ProtocolError(refusal)
                        if is_no_queue(refusal.get_message().as_str()) =>
                    {
                        self.options().missing.report(&queue);
                        found_missing = true;
                        None
                    }
                    ErrorKind::ProtocolError(_) => continue,
                    _ => return Err(error.into()),
                },
            };
            let is_missing = self.options().missing.is_missing(&queue);
            depths.push(Depth { of, name, messages, is_missing });
        }
        drop(counting);
        if found_missing {
            self.mend_topology().await;
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
    Connection(#[from] lapin::Error),
    /// The broker did not respond in time.
    #[error("the broker did not respond within {ANSWER_TIMEOUT:?}")]
    TimedOut,
}

async fn look(channel: &Channel, queue: &str) -> lapin::Result<u32> {
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    let found = channel.queue_declare(queue.into(), options, FieldTable::default()).await?;
    Ok(found.message_count())
}
