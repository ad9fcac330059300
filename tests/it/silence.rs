//! A broker address that accepts connections and never replies.
#![expect(clippy::unwrap_used, reason = "a failure fails the test and shows its place")]

use std::{fs, net::TcpListener};

use testkit::{LIMIT, poll::eventually};

use crate::env::ItEnv;

/// The number of threads with which a process reads from the broker, and of its file descriptors.
fn held_by(pid: u32) -> (usize, usize) {
    let names = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).ok();
    let entries = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().flatten();
    let loops = entries("task").filter_map(names).filter(|name| name.trim() == "lapin-io-loop");
    (loops.count(), entries("fd").count())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_broker_address_leaks_no_threads_or_descriptors() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    for scheme in ["amqp", "amqps"] {
        let url = format!("{scheme}://guest:guest@127.0.0.1:{port}/%2f?connection_timeout=200");
        let env = ItEnv::open().await.set("BROKER__URL", &url);
        let worker = env.start_worker().await;
        let log = || worker.process.stderr();
        let tries = || log().matches("broker session failed to open").count();
        eventually("Redis answers", LIMIT, async || log().contains("Redis connected")).await;
        // Between two attempts, nothing stays open.
        let between = async |after: usize| {
            let what = format!("{scheme}: nothing is open after {after} attempts");
            eventually(&what, LIMIT, async || {
                let (threads, descriptors) = held_by(worker.process.pid());
                (tries() >= after && threads == 0).then_some(descriptors)
            })
            .await
        };
        let before = between(1).await;
        let after = between(6).await;
        assert!(after <= before, "{scheme}: {before} descriptors before, {after} after");
    }
}
