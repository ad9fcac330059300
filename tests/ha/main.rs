//! High availability. A node of three brokers, a primary of Redis, or workers are killed while jobs
//! are published without pause. The work must continue without them, and at the end the ledger and
//! the results must agree with the jobs.

#![expect(clippy::unwrap_used, reason = "a failure fails the test and shows its place")]
#![expect(clippy::print_stdout, reason = "prints the outcome of a run for people")]

mod env;
mod load;

mod brokers;
mod redis;
mod workers;

use tokio::sync::{Mutex, MutexGuard};

/// Only one test runs its load at a time, so that it has the whole machine.
async fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}
