//! Shared by the tests and the demo: private servers, processes, a proxy, a client of the broker.
//!
//! No process outlives its owner. A value kills what it started when it is dropped, and
//! [`guardian`] does so when the whole process ends without drops, even by `kill -9`.

pub(crate) mod balancer;
pub(crate) mod broker;
pub(crate) mod customers;
pub(crate) mod guardian;
pub(crate) mod http;
pub(crate) mod memory;
pub(crate) mod poll;
pub(crate) mod processes;
pub(crate) mod proxy;
pub(crate) mod raw_amqp;
pub(crate) mod servers;
