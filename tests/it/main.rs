//! The behavior of the program from outside, with a real RabbitMQ, a real Redis, and the gateway's
//! sandbox over HTTP.

mod env;

mod addresses;
mod adversary;
mod captures;
mod commands;
mod contention;
mod contract;
mod copies;
mod dashboards;
mod dead_letters;
mod definitions;
mod documents;
mod doubt;
mod families;
mod faults;
mod forgets;
mod forwarding;
mod hostile;
mod leases;
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
mod structure;
mod tidy;
mod tls;
mod traces;
mod tunnel;
mod waits;
mod words;
