//! An exclusive queue as a lock, so that only one process browses a queue at a time.

use std::time::Duration;

use lapin::{
    Channel,
    options::{QueueDeclareOptions, QueueDeleteOptions},
    types::FieldTable,
};

use super::error::{BrowseError, step};
use crate::broker::{
    response::{ACCESS_REFUSED, RESOURCE_LOCKED},
    session::Session,
};

/// How long to wait while another process browses the queue.
const LOCK_WAIT: Duration = Duration::from_secs(300);
const LOCK_EVERY: Duration = Duration::from_millis(200);

/// An exclusive queue, which only one connection can declare. The broker deletes it with the
/// connection.
pub(super) struct BrowseLock {
    channel: Channel,
    name: String,
}

impl BrowseLock {
    /// Waits for the lock; `waits` is called once if another process has it. `None` if our user may
    /// not declare queues: then others can browse at the same time, and each sees a part.
    pub(super) async fn take(
        session: &Session,
        queue: &str,
        waits: impl Fn(),
    ) -> Result<Option<Self>, BrowseError> {
        let name = format!("{queue}.look");
        let options =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        let since = tokio::time::Instant::now();
        let mut has_waited = false;
        loop {
            // A refusal closes the channel, so each try needs a new one.
            let channel = step(session.open_channel()).await?;
            let declared =
                channel.queue_declare(name.as_str().into(), options, FieldTable::default());
            match step(declared).await {
                Ok(_) => return Ok(Some(Self { channel, name })),
                Err(error) => match error.code() {
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
                return Err(BrowseError::Busy(queue.to_owned()));
            }
            if !std::mem::replace(&mut has_waited, true) {
                waits();
            }
            tokio::time::sleep(LOCK_EVERY).await;
        }
    }

    /// Lets other processes browse the queue.
    pub(super) async fn release(self) -> Result<(), BrowseError> {
        let deleted =
            self.channel.queue_delete(self.name.as_str().into(), QueueDeleteOptions::default());
        step(deleted).await.map(drop)
    }
}
