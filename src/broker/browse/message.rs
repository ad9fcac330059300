//! A message of a queue that is browsed.

use std::sync::Arc;

use lapin::BasicProperties;
use time::OffsetDateTime;

use crate::{
    broker::headers,
    domain::{
        capture::class::Class, job::forward::ForwardFields, replay::dead_letter::DeadLetter,
        time::epoch_ms,
    },
};

/// A browsed message, which stays in its queue unless it is removed.
#[derive(Clone, Debug)]
pub struct BrowsedMessage {
    pub(in crate::broker) tag: u64,
    pub(in crate::broker) properties: BasicProperties,
    /// The body, byte for byte.
    pub body: Vec<u8>,
    /// The name of the queue of jobs, by which `x-death` is read.
    pub(super) jobs_queue: Arc<str>,
}

impl BrowsedMessage {
    /// Reads the message as a dead letter of a class.
    #[must_use]
    pub fn dead_letter(&self, class: Class, forward: &ForwardFields) -> DeadLetter {
        let now_ms = epoch_ms(OffsetDateTime::now_utc());
        let (body, jobs) = (self.body.clone(), &self.jobs_queue);
        headers::read_dead_letter(class, body, &self.properties, forward, jobs, now_ms)
    }

    /// The headers, and the other properties, as two JSON objects.
    #[must_use]
    pub fn to_json(&self) -> (serde_json::Value, serde_json::Value) {
        headers::to_json(&self.properties)
    }

    /// The size of body and headers, in bytes: the parts that publishers decide on.
    pub(super) fn size(&self) -> usize {
        let headers = self.properties.headers().as_ref();
        self.body.len() + headers.map_or(0, headers::table_size)
    }
}
