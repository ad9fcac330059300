//! Shipped means captured: jobs from RabbitMQ become exactly one capture each at the gateway, or a dead letter that an
//! operator can act on.

pub mod domain;
pub mod lease;
