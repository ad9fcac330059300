//! The listener of probes and metrics: other clients neither exhaust the process's file descriptors
//! nor block probes.

#![expect(clippy::unwrap_used, reason = "a failure fails the test and shows its place")]

use std::time::Duration;

use testkit::{LIMIT, http, poll::eventually, worker::Worker};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::env::ItEnv;

/// The maximum number of connections.
const CONNECTIONS_MAX: usize = 64;

async fn connect(worker: &Worker, text: &str) -> TcpStream {
    let address = worker.url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may have closed the connection; some of these tests check that.
    stream.write_all(text.as_bytes()).await.unwrap_or_default();
    stream
}

/// The number of sockets of the process.
fn sockets(worker: &Worker) -> usize {
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", worker.process.pid())).unwrap();
    let is_socket = |descriptor: std::io::Result<std::fs::DirEntry>| {
        let target = std::fs::read_link(descriptor.unwrap().path()).unwrap_or_default();
        target.to_string_lossy().starts_with("socket:")
    };
    descriptors.map(is_socket).filter(|is_socket| *is_socket).count()
}

/// Reads until the connection is closed, and returns what was received.
async fn rest_of(mut stream: TcpStream) -> String {
    let mut said = Vec::new();
    let read = tokio::time::timeout(LIMIT, stream.read_to_end(&mut said)).await;
    // A reset closes it too.
    drop(read.expect("the connection is closed"));
    String::from_utf8_lossy(&said).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn incomplete_requests_use_few_descriptors_and_block_no_probe() {
    let env = ItEnv::open().await;
    let worker = env.worker().await;
    let before = sockets(&worker);
    let mut half_open = Vec::new();
    for _ in 0..300 {
        half_open.push(connect(&worker, "GET /livez HTTP/1.1\r\nHost: w\r\n").await);
        assert!(sockets(&worker) <= before + CONNECTIONS_MAX + 2, "{}", sockets(&worker));
    }
    for path in ["/livez", "/readyz", "/metrics"] {
        http::get(&worker.url, path).await.unwrap();
    }
    for stream in half_open {
        rest_of(stream).await;
    }
    let closed = async || sockets(&worker) <= before + 1;
    eventually("all incomplete requests are closed", LIMIT, closed).await;
}

/// Prometheus keeps its connections open between two scrapes.
#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_make_room_for_probes() {
    let env = ItEnv::open().await;
    let worker = env.worker().await;
    let request = "GET /livez HTTP/1.1\r\nHost: w\r\n\r\n";
    let mut idle = Vec::new();
    for _ in 0..2 * CONNECTIONS_MAX {
        let mut stream = connect(&worker, request).await;
        let mut answer = [0; 15];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        idle.push(stream);
    }
    http::get(&worker.url, "/metrics").await.unwrap();
    // The connection that was used last still serves requests.
    let mut last = idle.pop().unwrap();
    last.write_all(request.as_bytes()).await.unwrap();
    let said = rest_of(last).await;
    assert!(said.contains("HTTP/1.1 200 OK"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_listener_does_not_speak_http_2() {
    let env = ItEnv::open().await;
    let worker = env.worker().await;
    let stream = connect(&worker, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    let said = rest_of(stream).await;
    assert!(!said.contains("200"), "{said}");
    // A client that sends no body after its headers gets a response.
    let post = "GET /livez HTTP/1.1\r\nHost: w\r\nContent-Length: 100000\r\n\r\n";
    let mut stream = connect(&worker, post).await;
    let mut answer = [0; 15];
    let read = tokio::time::timeout(Duration::from_secs(30), stream.read_exact(&mut answer));
    read.await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
}
