//! What the worker does, seen from outside: real brokers, real Redis, the gateway's sandbox over HTTP.

#[expect(dead_code, unused_imports, reason = "other tests use more of it")]
#[path = "../support/mod.rs"]
mod support;

mod shop;

mod addresses;
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
mod policies;
mod probes;
mod records;
mod refusals;
mod refused_by_redis;
mod replays;
mod rights;
mod scripts;
mod servers;
mod settings;
mod sick;
mod silence;
mod tidy;
mod tls;
mod traces;
mod tunnel;
mod waits;
