//! How many messages lie in each queue: by passive declares, which need no permission.

use lapin::{Channel, ErrorKind, options::QueueDeclareOptions, types::FieldTable};

use super::session::{ANSWER_TIMEOUT, Session};
use crate::domain::{class::Class, schedule::delay_name};

/// What lies ready in a queue; what consumers have in hand is not counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Depth {
    /// `jobs`, `wait`, `dead` or `audit`.
    pub kind: &'static str,
    /// The delay of a wait queue, the class of dead letters, else the kind.
    pub name: String,
    /// How many messages.
    pub messages: u32,
}

impl Session {
    /// Looks at every queue. Those that don't exist, or don't answer because too few of their nodes live, are left out.
    ///
    /// # Errors
    /// The connection fails, or does not answer in time.
    pub async fn depths(&self) -> Result<Vec<Depth>, DepthsError> {
        let mut channel = self.look_channel().await?;
        let mut depths = Vec::new();
        for (kind, name, queue) in self.queues() {
            match tokio::time::timeout(ANSWER_TIMEOUT, look(&channel, &queue)).await {
                Err(_) => return Err(DepthsError::TimedOut),
                Ok(Ok(messages)) => depths.push(Depth { kind, name, messages }),
                Ok(Err(error)) if matches!(error.kind(), ErrorKind::ProtocolError(_)) => {
                    // It closed its channel.
                    channel = self.look_channel().await?;
                }
                Ok(Err(error)) => return Err(error.into()),
            }
        }
        channel.close(200, "done".into()).await?;
        Ok(depths)
    }

    /// Kind, name, and name at the broker.
    fn queues(&self) -> Vec<(&'static str, String, String)> {
        let mut queues = vec![("jobs", "jobs".to_owned(), self.names.jobs())];
        for delay in &self.options().delays {
            queues.push(("wait", delay_name(*delay), self.names.wait_queue(*delay)));
        }
        for class in Class::ALL {
            queues.push(("dead", class.name().to_owned(), self.names.dead_queue(class)));
        }
        queues.push(("audit", "audit".to_owned(), self.names.audit()));
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
