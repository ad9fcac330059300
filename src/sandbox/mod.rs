//! A simulated gateway for tests, demonstrations and experiments. It verifies and makes signatures,
//! keeps authorizations and captures in a ledger, and produces faults on request. It moves no
//! money.
//!
//! It answers any path that ends in `/v1/payments/capture` or `/v1/payments/inquiryPayment`. The
//! control API is under `/sandbox`, and `/` is a web page.

mod answer;
mod control;
mod draft;
mod gate;
mod keys;
mod ledger;
mod page;
mod peer;
mod recorder;
mod script;
mod server;
mod simulation;
mod state;

pub use self::{
    keys::{CLIENT_ID, Keys},
    script::{Forever, Interface, Repeat, Step, Way},
    server::serve,
    state::{Sandbox, SandboxOptions},
};
