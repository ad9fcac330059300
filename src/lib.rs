//! Shipped means captured: jobs from RabbitMQ become exactly one capture each at the gateway, or a dead letter that an
//! operator can act on.
//!
//! In reading order: [`domain`] decides and knows nobody; [`gateway`], [`lease`] and [`broker`] each hold one outside
//! service and do not know each other; [`worker`] joins them into the one pipeline of a job, and [`dead_letters`] gives
//! operators what that pipeline gave up.
//!
//! What never happens here: nothing is acked before what replaces it is confirmed. No capture is posted without the
//! lease of its payment. No reply but a signed one makes a job captured or failed. No id is replaced by a fresh one but by an
//! operator's replay, and then only by its one child, after the gateway has shown that the id itself captured nothing.
//! Nothing is retried inside an attempt: a retry is a new delivery.

pub mod broker;
pub mod cli;
pub mod config;
pub mod dead_letters;

pub mod domain;
pub mod gateway;
pub mod http;
pub mod lease;

pub mod sandbox;
mod sanitize;
pub mod telemetry;
pub mod worker;

/// Makes the one provider of cryptography the default of every TLS connection. Call it first.
pub fn install_crypto() {
    // An error says that a provider is there already.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
}
