//! What the tests, the benchmarks and the demo share: private servers, processes, a proxy, clients
//! of the broker.
//!
//! No process outlives its owner. A value kills what it started when it is dropped, and
//! [`guardian`] does so when the whole process ends without drops, even by `kill -9`.
#![expect(missing_docs, reason = "only this repository uses it: a plain name needs no sentence")]

pub mod balancer;
pub mod broker;
pub mod clients;
pub mod env;
pub mod gateway;
pub mod guardian;
pub mod http;
pub mod memory;
pub mod poll;
pub mod processes;
pub mod proxy;
pub mod raw_amqp;
pub mod servers;
pub mod worker;

use std::time::Duration;

/// The time limit of a wait. It is generous, because the machine may be busy.
pub const LIMIT: Duration = Duration::from_secs(120);
