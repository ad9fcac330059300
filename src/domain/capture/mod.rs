//! A capture: which call is made, what the reply proves, and what the attempt came to.
//!
//! In reading order: the gateway's [`reply`] and its [`class`]; `transactions` and [`family`] for
//! what an inquiry shows; [`judge`], which turns a reply into an [`outcome`]; and [`health`], which
//! reads from the same reply how the gateway is.

pub mod class;
pub mod family;
pub mod health;
pub mod judge;
pub mod outcome;
pub mod reply;
mod transactions;
