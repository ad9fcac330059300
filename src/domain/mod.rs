//! The pure core: what a job is, what a reply proves, and what is done about it. No clock, no I/O, no client; nothing
//! here can fail but by saying so in a value.
//!
//! In reading order: a [`job`], its [`money`] and the fields that it has the worker [`forward`];
//! its [`history`]; the gateway's [`reply`], which [`judge`] turns into an [`outcome`]; and
//! [`settle`], which turns that into what the broker does. A [`letter`] is a job that was given up,
//! and [`replay`] what may be done with it, if there is the [`evidence`] about it and its [`family`].

pub mod class;
pub mod duration;
pub mod evidence;
pub mod family;
mod fields;
pub mod forward;
pub mod health;
pub mod history;
pub mod job;
pub mod judge;
pub mod letter;
pub mod money;
pub mod outcome;
pub mod refused;
pub mod replay;
pub mod reply;
mod rewrite;
pub mod schedule;
pub mod settle;
pub mod time;
pub mod trace;
mod transactions;

#[cfg(test)]
pub(crate) mod tests;
