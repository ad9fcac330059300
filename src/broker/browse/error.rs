//! Why a browse fails, and the time limit for each of its steps.

use std::time::Duration;

use futures_util::TryFutureExt;

use crate::broker::response::{AmqpError, NoResponse, response_within};

/// The time limit for a response of the broker, and for the next ready message. It is longer than
/// that of a session, because the queue may be busy with thousands of messages that were returned.
pub(super) const STEP_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a browse ended early. The broker returns all messages that are still held to their queue.
#[derive(Debug, thiserror::Error)]
pub enum BrowseError {
    /// The broker refused a request, or the connection is lost.
    #[error("browsing failed at the broker: {0}")]
    Broker(#[from] AmqpError),
    /// The broker did not respond in time.
    #[error("the broker did not respond in time")]
    TimedOut,
    /// The broker cancelled the consumer, such as when the queue is deleted.
    #[error("the broker cancelled the consumer that browses the queue")]
    Cancelled,
    /// Another process has browsed the same queue for too long.
    #[error("queue {0} has been browsed by another process for five minutes: try again later")]
    Busy(String),
}

impl BrowseError {
    /// The AMQP reply code, if the broker refused.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::Broker(error) => error.refusal().map(|refusal| refusal.code),
            _ => None,
        }
    }
}

/// The broker's response to a step of a browse, within [`STEP_TIMEOUT`].
pub(super) fn step<T>(
    method: impl Future<Output = lapin::Result<T>>,
) -> impl Future<Output = Result<T, BrowseError>> {
    response_within(STEP_TIMEOUT, method).map_err(|cause| match cause {
        NoResponse::Failed(error) => BrowseError::Broker(error),
        NoResponse::TimedOut => BrowseError::TimedOut,
    })
}
