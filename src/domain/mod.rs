//! The pure core: what a job is, what a reply means, and what is done about it. No clock, no I/O, no client.

pub mod class;
