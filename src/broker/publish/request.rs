//! A message that waits to be published, and its caller.

use tokio::sync::oneshot;

use super::message::{Message, PublishError};

/// A message, and the channel on which its caller waits for the result.
pub(super) struct PublishRequest {
    pub(super) message: Message,
    pub(super) respond: oneshot::Sender<Result<(), PublishError>>,
    /// Whether the request waits while its exchange refuses publishes, instead of failing.
    pub(super) is_patient: bool,
}

impl PublishRequest {
    /// Whether the caller still waits for the result.
    pub(super) fn is_awaited(&self) -> bool {
        !self.respond.is_closed()
    }

    pub(super) fn respond(self, result: Result<(), PublishError>) {
        // An error means that the caller was cancelled. Then the original job is still unacked.
        self.respond.send(result).unwrap_or_default();
    }
}
