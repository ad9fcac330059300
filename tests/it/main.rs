//! What the worker does, seen from outside: real brokers, real Redis, the gateway's sandbox over HTTP.

#[expect(dead_code, unused_imports, reason = "other tests use more of it")]
#[path = "../support/mod.rs"]
mod support;

mod shop;

mod adversary;
mod captures;
mod commands;
mod contention;
mod contract;
mod dashboards;
mod definitions;
mod doubt;
mod families;
mod faults;
mod forgets;
mod forwarding;
mod hostile;
mod leases;
mod letters;
mod metrics;
mod operators;
mod outages;
mod output;
mod owners;
mod probes;
mod records;
mod refusals;
mod replays;
mod scripts;
mod servers;
mod sick;
mod tidy;
mod tls;
mod traces;
mod waits;
