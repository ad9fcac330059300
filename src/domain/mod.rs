//! The pure core: what a job is, what a reply proves, and what the worker does about it. It has no
//! clock, does no I/O and uses no client library. A function that can fail returns the failure as a
//! value.
//!
//! In reading order: a [`job`] and its [`money`]; a [`capture`], from the gateway's reply to the
//! outcome of an attempt; its [`settlement`], which decides what is done with the delivery; and a
//! [`replay`], which decides what an operator may do with a dead letter.

pub mod capture;
pub mod duration;
pub mod job;
pub mod money;
pub mod replay;
pub mod settlement;
pub mod time;

#[cfg(test)]
pub(crate) mod tests;
