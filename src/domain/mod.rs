//! The pure core: what a job is, what a reply proves, and what the worker does about it. It has no
//! clock, does no I/O and uses no client library. A function that can fail returns the failure as a
//! value.
//!
//! In reading order: a [`job`], its [`money`] and the fields that the worker [`forward`]s; its
//! [`history`]; the gateway's [`reply`], which [`judge`] turns into an [`outcome`]; and [`settle`],
//! which decides what is done with the delivery. A [`letter`] is a dead letter: a job that was
//! given up. [`replay`] says what an operator may do with it, given the [`evidence`] about it and
//! its [`family`] of fresh ids.

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
