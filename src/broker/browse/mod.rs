//! Browses a queue: hands out each message once, without acking it, and returns all messages in
//! their order when the browse is closed. The caller may remove single messages meanwhile.
//!
//! Other consumers don't see messages that are being browsed. So only one process browses a queue
//! at a time: it holds the exclusive queue `<queue>.look`, which the broker deletes with its
//! connection. The client buffers all that it receives, so messages come in bounded windows, each
//! by a consumer of its own that is cancelled once it has delivered its window.
//!
//! Closing a browse keeps the order. If the process is killed, the broker returns the messages:
//! none is lost, but RabbitMQ 3.10 keeps the order of only some thirty of a window.
//!
//! The broker counts every return, and a policy with a delivery limit would drop messages in the
//! end. So a browse may republish the whole queue once the count is high: see
//! [`Browser::may_republish`].

mod browser;
mod close;
mod error;
mod lock;
mod message;
mod queue;
mod republish;
mod republisher;

pub use self::{
    browser::Browser, error::BrowseError, message::BrowsedMessage, queue::BrowsedQueue,
};
