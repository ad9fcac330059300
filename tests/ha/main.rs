//! High availability: what is lost here has someone who takes over. A node of three brokers, a primary of Redis, workers:
//! each is killed while jobs are published without pause, the work goes on without it, and at the end all books agree.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test, and says where")]
#![expect(clippy::print_stdout, reason = "what a run came to, for people")]

#[expect(dead_code, unused_imports, reason = "other tests use more of it")]
#[path = "../support/mod.rs"]
mod support;

mod load;
mod shop;

mod brokers;
mod redis;
mod workers;

use tokio::sync::{Mutex, MutexGuard};

/// One load at a time: each of these tests has the whole machine once its servers run.
async fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}
