//! How many messages lie in each queue: by passive declares, which need no permission.

use lapin::{Channel, ErrorKind, options::QueueDeclareOptions, types::FieldTable};

use super::{
    missing::is_no_queue,
    session::{ANSWER_TIMEOUT, Session},
    topology::Exchange,
};
use crate::domain::{class::Class, schedule::delay_name};

/// What lies ready in a queue; what consumers have in hand is not counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Depth {
    /// The exchange that it is bound to.
    pub of: Exchange,
    /// The delay of a wait queue, the class of dead letters, else the exchange's name.
    pub name: String,
    /// How many messages; `None` if there is no such queue.
    pub messages: Option<u32>,
    /// There is no such queue, or there was none a few minutes ago.
    pub is_missing: bool,
}

impl Session {
    /// Looks at every queue. Those that don't answer because too few of their nodes live are left
    /// out. One that does not exist is reported in the log, and declared again where this program
    /// declares.
    ///
    /// # Errors
    /// The connection fails, or does not answer in time.
    pub async fn depths(&self) -> Result<Vec<Depth>, DepthsError> {
        let mut counting = self.counting.lock().await;
        let mut depths = Vec::new();
        let mut found_missing = false;
        for (of, name, queue) in self.queues() {
            let channel = match counting.take() {
                Some(channel) if channel.status().connected() => channel,
                _ => self.look_channel().await?,
            };
            // In its place again before anything is waited for: whoever waits may be given up.
            let channel = counting.insert(channel);
            let messages = match tokio::time::timeout(ANSWER_TIMEOUT, look(channel, &queue)).await {
                Err(_) => return Err(DepthsError::TimedOut),
                Ok(Ok(messages)) => Some(messages),
                // Either way, that closed the channel.
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

    /// With each queue's name at the broker.
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

/// Why nobody knows what lies in the queues.
#[derive(Debug, thiserror::Error)]
pub enum DepthsError {
    /// The connection fails.
    #[error("{0}")]
    Connection(#[from] lapin::Error),
    /// No answer.
    #[error("no answer within {ANSWER_TIMEOUT:?}")]
    TimedOut,
}

async fn look(channel: &Channel, queue: &str) -> lapin::Result<u32> {
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    let found = channel.queue_declare(queue.into(), options, FieldTable::default()).await?;
    Ok(found.message_count())
}
