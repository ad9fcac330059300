//! The capture worker turns shipment jobs from RabbitMQ into captures at the payment gateway. Each
//! job becomes exactly one capture, or a dead letter that an operator can act on.
//!
//! The modules in reading order:
//!
//! - [`domain`] decides. It does no IO and depends on no other module.
//! - [`broker`], [`gateway`] and [`lease`] each wrap one external service (RabbitMQ, the gateway,
//!   Redis). They do not depend on each other.
//! - [`worker`] combines them into the one pipeline that every job goes through.
//! - [`dead_letters`] lets operators list, replay and discard the jobs that the pipeline gave up.
//! - [`capture_status`] shows what Redis and the gateway know about one capture.
//! - [`config`], [`telemetry`], [`http`] and [`cli`] make a program of it.
//! - [`sandbox`] is a gateway for tests and demonstrations.
//!
//! Invariants:
//!
//! - No delivery is acked before the broker has confirmed the messages that replace it.
//! - No capture is posted without the lease of its payment.
//! - Only a signed reply of the gateway makes a job captured, or failed at the gateway.
//! - An id is replaced by a fresh one only by an operator's replay, only by its one child, and only
//!   after the gateway has shown that the id itself captured nothing.
//! - An attempt never retries inside itself: a retry is a new delivery.

// The modules are listed in reading order. rustfmt sorts them only within a group.
pub mod domain;

pub mod broker;
pub mod gateway;
pub mod lease;

pub mod worker;

pub mod capture_status;
pub mod dead_letters;

pub mod config;
pub mod telemetry;

pub mod http;
mod sanitize;

pub mod cli;
pub mod sandbox;

/// Makes aws-lc-rs the default cryptography provider of every TLS connection. Call it before
/// anything connects.
pub fn install_crypto() {
    // An error means that a provider is installed already.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
}
