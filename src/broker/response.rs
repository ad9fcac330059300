//! The border to the AMQP client: its errors become [`AmqpError`] here, and every wait for a
//! response of the broker has a time limit.

use std::time::Duration;

use futures_util::FutureExt;
use lapin::{Channel, ErrorKind, options::QueueDeclareOptions, types::FieldTable};

/// The time limit for the broker's response to a method. It notices a dead broker long before two
/// heartbeats are missed.
pub(super) const METHOD_TIMEOUT: Duration = Duration::from_secs(5);

/// Our user lacks a permission.
pub(super) const ACCESS_REFUSED: u16 = 403;
/// The exchange or queue does not exist, or does not respond.
pub(super) const NOT_FOUND: u16 = 404;
/// Another connection holds the exclusive queue.
pub(super) const RESOURCE_LOCKED: u16 = 405;
/// The broker does not accept such an argument or message.
pub(super) const PRECONDITION_FAILED: u16 = 406;

/// The reply code and the text with which the broker refused a method and closed the channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MethodRefusal {
    pub(super) code: u16,
    pub(super) text: String,
}

impl MethodRefusal {
    /// The refusal in an error of the client; `None` if the connection failed instead.
    pub(super) fn of(error: &lapin::Error) -> Option<Self> {
        let ErrorKind::ProtocolError(protocol) = error.kind() else { return None };
        Some(Self { code: protocol.get_id(), text: protocol.get_message().to_string() })
    }

    /// Like [`Self::of`], but only if the cause lasts until somebody fixes it.
    pub(super) fn lasting(error: &lapin::Error) -> Option<Self> {
        let lasts = [ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED];
        Self::of(error).filter(|refusal| lasts.contains(&refusal.code))
    }

    /// Whether a passive declare was refused because the queue does not exist. The broker also
    /// responds with 404 for a queue whose members don't respond, and only the text tells the two
    /// apart.
    pub(super) fn is_no_queue(&self) -> bool {
        self.text.contains("no queue '")
    }
}

/// A failure that the AMQP client reported: the broker refused a method, or the connection failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub struct AmqpError {
    text: String,
    refusal: Option<MethodRefusal>,
}

impl AmqpError {
    pub(super) fn of(error: lapin::Error) -> Self {
        Self { text: error.to_string(), refusal: MethodRefusal::of(&error) }
    }

    /// The broker's refusal; `None` if the connection failed instead.
    pub(super) const fn refusal(&self) -> Option<&MethodRefusal> {
        self.refusal.as_ref()
    }
}

/// Why the broker gave no successful response to a method.
#[derive(Debug)]
pub(super) enum NoResponse {
    Failed(AmqpError),
    TimedOut,
}

/// The broker's response to a method, within [`METHOD_TIMEOUT`].
pub(super) fn response<T>(
    method: impl Future<Output = lapin::Result<T>>,
) -> impl Future<Output = Result<T, NoResponse>> {
    response_within(METHOD_TIMEOUT, method)
}

/// The broker's response to a method, within a time limit.
pub(super) fn response_within<T>(
    limit: Duration,
    method: impl Future<Output = lapin::Result<T>>,
) -> impl Future<Output = Result<T, NoResponse>> {
    // Not an async function, because it would store the method's future twice.
    tokio::time::timeout(limit, method).map(|response| match response {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(NoResponse::Failed(AmqpError::of(error))),
        Err(_) => Err(NoResponse::TimedOut),
    })
}

/// The number of ready messages in a queue, by a passive declare, which needs no permission. If the
/// queue does not exist or does not respond, the broker closes the channel.
pub(super) async fn ready_messages(channel: &Channel, queue: &str) -> lapin::Result<u32> {
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    let declared = channel.queue_declare(queue.into(), options, FieldTable::default()).await?;
    Ok(declared.message_count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_does_not_respond_is_not_missing() {
        for (text, is_missing) in [
            ("NOT_FOUND - no queue 'capture.jobs' in vhost '/'", true),
            ("NOT_FOUND - queue 'capture.jobs' in vhost '/' process is stopped", false),
            ("NOT_FOUND - failed to perform operation on queue 'q' in vhost '/'", false),
        ] {
            let refusal = MethodRefusal { code: NOT_FOUND, text: text.to_owned() };
            assert_eq!(refusal.is_no_queue(), is_missing, "{text}");
        }
    }
}
