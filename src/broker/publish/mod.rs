//! Publishes messages, each confirmed by the broker, and waits out exchanges that refuse them.

mod batch;
mod connection;
mod message;
mod publisher;
mod refusals;
mod request;
mod retry;

pub use self::message::{OnPublish, PublishError, PublishRefusal};
pub(super) use self::{connection::PublishConnection, message::Message, publisher::Publisher};
