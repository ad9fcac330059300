//! An exclusive queue as a lock, so that only one process browses a queue at a time.

use std::time::Duration;

use lapin::{
    Channel,
    options::{QueueDeclareOptions, QueueDeleteOptions},
    types::FieldTable,
};

use super::{ACCESS_REFUSED, LookError, RESOURCE_LOCKED, answered, code};
use crate::broker::session::Session;

/// How long to wait while another process browses the queue.
const LOCK_WAIT: Duration = Duration::from_secs(300);
const LOCK_EVERY: Duration = Duration::from_millis(200);

/// An exclusive queue, which only one connection can declare. The broker deletes it with the
/// connection.
pub(super) struct Lock {
    channel: Channel,
    name: String,
}

impl Lock {
    /// Waits for the lock; `waits` is called once if another process has it. `None` if our user may
    /// not declare queues: then others can browse at the same time, and each sees a part.
    pub(super) async fn take(
        session: &Session,
        queue: &str,
        waits: impl Fn(),
    ) -> Result<Option<Self>, LookError> {
        let name = format!("{queue}.look");
        let options =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        let since = tokio::time::Instant::now();
        let mut told = false;
        loop {
            // A refusal closes the channel, so each try needs a new one.
            let channel = answered(session.look_channel()).await?;
            let declared =
                channel.queue_declare(name.as_str().into(), options, FieldTable::default());
            match answered(declared).await {
                Ok(_) => return Ok(Some(Self { channel, name })),
                Err(error) => match code(&error) {
                    Some(RESOURCE_LOCKED) => {}
                    Some(ACCESS_REFUSED) => {
                        tracing::warn!(
                            queue = name,
                            "no permission to declare the lock queue: other processes may browse \
                             the same messages"
                        );
                        return Ok(None);
                    }
                    _ => return Err(error),
                },
            }
            if since.elapsed() >= LOCK_WAIT {
                return Err(LookError::Busy(queue.to_owned()));
            }
            if !std::mem::replace(&mut told, true) {
                waits();
            }
            tokio::time::sleep(LOCK_EVERY).await;
        }
    }

    pub(super) async fn give_back(self) -> Result<(), LookError> {
        let deleted =
            self.channel.queue_delete(self.name.as_str().into(), QueueDeleteOptions::default());
        answered(deleted).await.map(drop)
    }
}
