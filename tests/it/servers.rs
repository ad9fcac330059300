//! Tests of the private servers, processes and proxies that all other tests use.

use std::{fs, path::Path, time::Duration};

use lapin::{
    BasicProperties,
    options::QueueDeclareOptions,
    types::{AMQPValue, FieldTable},
};
use nix::sys::signal::Signal;
use testkit::{
    broker::TestBroker,
    poll::eventually,
    processes::{Process, command},
    proxy::Proxy,
    servers::{Persistence, PrivateRabbit, PrivateRedis, Reply, shared_rabbit},
};

const SOON: Duration = Duration::from_secs(20);

/// Whether no process has this id, or only one that waits to be reaped.
fn is_gone(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']))
}

async fn declare_quorum_queue(broker: &TestBroker, name: &str) {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let channel = broker.channel().await.expect("a channel");
    channel.queue_declare(name.into(), durable, arguments).await.expect("a quorum queue");
}

async fn publish_persistent(broker: &TestBroker, queue: &str, body: &str) {
    let persistent = BasicProperties::default().with_delivery_mode(2);
    broker.publish("", queue, body.as_bytes(), persistent).await.expect("a confirm");
}

async fn bodies(broker: &TestBroker, queue: &str) -> Vec<String> {
    // Directly after a start, the queue may have no leader yet.
    let ready = async || broker.queue_depth(queue).await.ok().flatten();
    eventually("the queue exists", SOON, ready).await;
    let messages = broker.drain_queue(queue).await.expect("the queue's messages");
    messages
        .into_iter()
        .map(|message| String::from_utf8_lossy(&message.body).into_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_keeps_confirmed_messages_and_leaves_no_process() {
    let mut rabbit = PrivateRabbit::start().await.unwrap();
    let broker = TestBroker::connect(&rabbit.url()).await.unwrap();
    declare_quorum_queue(&broker, "kept").await;
    publish_persistent(&broker, "kept", "before the kill").await;

    rabbit.write_queue_names().await.unwrap();
    rabbit.kill9();
    assert!(TestBroker::connect(&rabbit.url()).await.is_err());
    rabbit.start_again().await.unwrap();
    let broker = TestBroker::connect(&rabbit.url()).await.unwrap();
    assert_eq!(bodies(&broker, "kept").await, ["before the kill"]);

    publish_persistent(&broker, "kept", "before the stop").await;
    rabbit.stop().await.unwrap();
    rabbit.start_again().await.unwrap();
    let broker = TestBroker::connect(&rabbit.url()).await.unwrap();
    assert_eq!(bodies(&broker, "kept").await, ["before the stop"]);

    let pids = rabbit.pids();
    assert_eq!(pids.len(), 2);
    drop(rabbit);
    assert!(pids.into_iter().all(is_gone));
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_keeps_data_by_its_persistence_and_leaves_no_process() {
    for (persistence, kept) in
        [(Persistence::None, Reply::Nil), (Persistence::Always, Reply::Text("held".into()))]
    {
        let mut redis = PrivateRedis::start(persistence).await.unwrap();
        redis.cmd(&["SET", "lease", "held"]).unwrap();
        redis.kill9();
        assert!(redis.cmd(&["PING"]).is_err());
        redis.start_again().await.unwrap();
        assert_eq!(redis.cmd(&["GET", "lease"]).unwrap(), kept);
        redis.stop().await.unwrap();
        redis.start_again().await.unwrap();

        let pids = redis.pids();
        drop(redis);
        assert!(pids.into_iter().all(is_gone));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_server_replies_again_when_it_is_resumed() {
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    assert_eq!(
        redis.cmd(&["EVAL", "return {1, 'two', false}", "0"]).unwrap(),
        Reply::List(vec![Reply::Int(1), Reply::Text("two".into()), Reply::Nil])
    );
    redis.pause().unwrap();
    let port = redis.port();
    let answer = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_millis(300)))?;
        std::io::Write::write_all(&mut stream, b"PING\r\n")?;
        std::io::Read::read(&mut stream, &mut [0; 8])
    });
    assert!(answer.await.unwrap().is_err());
    redis.resume().unwrap();
    assert_eq!(redis.cmd(&["PING"]).unwrap(), Reply::Text("PONG".into()));

    let mut rabbit = PrivateRabbit::start().await.unwrap();
    rabbit.pause().unwrap();
    let url = rabbit.url();
    let connect = TestBroker::connect(&url);
    assert!(tokio::time::timeout(Duration::from_millis(500), connect).await.is_err());
    rabbit.resume().unwrap();
    TestBroker::connect(&url).await.unwrap();
    // A paused server can be killed too.
    rabbit.pause().unwrap();
    rabbit.kill9();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shared_broker_serves_tests_by_prefix() {
    let rabbit = shared_rabbit().await.unwrap();
    let broker = TestBroker::connect(&rabbit.url()).await.unwrap();
    let results = broker.subscribe_results("harness").await.unwrap();
    let result = BasicProperties::default().with_headers({
        let mut headers = FieldTable::default();
        headers.insert("x-capture-attempt".into(), AMQPValue::LongLongInt(1));
        headers
    });
    broker
        .publish("harness.results", "captured", br#"{"status":"CAPTURED"}"#, result)
        .await
        .unwrap();
    let all = results.wait_for(1, SOON).await.unwrap();
    assert_eq!(all[0].routing_key, "captured");
    assert_eq!(all[0].json().unwrap()["status"], "CAPTURED");
    assert_eq!(all[0].header("x-capture-attempt").as_deref(), Some("1"));

    declare_quorum_queue(&broker, "harness.dead.order").await;
    publish_persistent(&broker, "harness.dead.order", "a message").await;
    let peeked = broker.peek_queue("harness.dead.order").await.unwrap();
    assert_eq!((peeked.len(), peeked[0].redelivered), (1, false));
    let depth = async || broker.queue_depth("harness.dead.order").await.unwrap() == Some(1);
    eventually("the message is back", SOON, depth).await;

    assert_eq!(broker.queue_depth("harness.dead.none").await.unwrap(), None);
    // Without the worker's topology, no queue accepts a job.
    assert!(broker.publish_job("harness", b"{}").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmqctl_reaches_the_private_node_only() {
    let rabbit = shared_rabbit().await.unwrap();
    let listeners = rabbit.ctl(&["status", "--formatter", "json"]).await.unwrap();
    assert!(listeners.contains(&format!("\"port\":{}", rabbit.port())), "{listeners}");
    assert!(rabbit.ctl(&["no_such_command"]).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_cuts_refuses_and_freezes() {
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let proxy = Proxy::to(redis.port()).await.unwrap();
    assert_eq!(proxy.url(&redis.url()), format!("redis://127.0.0.1:{}", proxy.port()));
    let connect = async || tokio::net::TcpStream::connect(("127.0.0.1", proxy.port())).await;

    let mut client = connect().await.unwrap();
    assert_eq!(ping(&mut client).await.as_deref(), Some("+PONG\r\n"));
    proxy.freeze();
    assert_eq!(ping(&mut client).await, None);
    proxy.thaw();
    eventually("the bytes that were held back pass", SOON, async || {
        ping(&mut client).await.is_some_and(|answer| answer.starts_with("+PONG"))
    })
    .await;

    proxy.refuse().await;
    assert!(connect().await.is_err());
    proxy.accept().await.unwrap();
    let mut client = connect().await.unwrap();
    assert_eq!(ping(&mut client).await.as_deref(), Some("+PONG\r\n"));
    proxy.cut();
    assert_eq!(ping(&mut client).await.as_deref(), Some(""));

    let mut client = connect().await.unwrap();
    proxy.freeze_replies();
    let sent = tokio::io::AsyncWriteExt::write_all(&mut client, b"SET proxy arrived\r\n");
    sent.await.unwrap();
    let arrives = async || redis.cmd(&["GET", "proxy"]).unwrap() == Reply::Text("arrived".into());
    eventually("the request passes", SOON, arrives).await;
    assert_eq!(ping(&mut client).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_throttles_connections_until_the_limit_is_removed() {
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let proxy = Proxy::to(redis.port()).await.unwrap();
    let mut client = tokio::net::TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
    // At one byte per second, even the first word of the request has not arrived after a moment.
    proxy.throttle(Some(1));
    assert_eq!(ping(&mut client).await, None);
    proxy.throttle(None);
    eventually("the throttled bytes pass", SOON, async || {
        ping(&mut client).await.is_some_and(|answer| answer.starts_with("+PONG"))
    })
    .await;
}

/// The reply within a short time: `Some("")` from a closed connection, `None` from a silent one.
async fn ping(client: &mut tokio::net::TcpStream) -> Option<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut answer = [0; 64];
    let exchange = async {
        client.write_all(b"PING\r\n").await?;
        client.read(&mut answer).await
    };
    let count = match tokio::time::timeout(Duration::from_millis(300), exchange).await {
        Ok(count) => count.unwrap_or(0),
        Err(_) => return None,
    };
    Some(String::from_utf8_lossy(&answer[..count]).into_owned())
}

#[tokio::test]
async fn a_process_is_watched_signaled_and_killed_with_its_children() {
    let script = "echo ready $$; echo log line >&2; sleep 1000 & echo child $!; \
                  trap 'exit 7' TERM; while :; do sleep 0.05; done";
    let mut process = Process::spawn(command(Path::new("/bin/sh"), &["-c", script])).unwrap();
    let number = |line: &str, word| line.strip_prefix(word)?.trim().parse::<u32>().ok();
    let pid = process.line(SOON, |line| number(line, "ready ")).await.unwrap();
    assert_eq!(pid, process.pid());
    let child = process.line(SOON, |line| number(line, "child ")).await.unwrap();
    process.line(SOON, |line| (line == "log line").then_some(())).await.unwrap();
    assert!(process.wait(Duration::from_millis(10)).await.is_err());
    process.signal(Signal::SIGTERM).unwrap();
    assert_eq!(process.wait(SOON).await.unwrap().code(), Some(7));
    eventually("the child process has ended", SOON, async || is_gone(child)).await;
    assert!(process.line(SOON, |line| (line == "never").then_some(())).await.is_err());

    let mut killed = Process::spawn(command(Path::new("/bin/sleep"), &["1000"])).unwrap();
    assert_eq!(killed.kill9().code(), None);
}

/// Not a separate rule. The next test runs this one as the owner of servers and kills it: it starts
/// servers, reports them, and waits.
#[tokio::test]
async fn as_an_owner_of_servers() {
    let Ok(report) = std::env::var("HARNESS_OWNER_REPORT") else { return };
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let rabbit = PrivateRabbit::start().await.unwrap();
    let pids: Vec<_> = redis.pids().into_iter().chain(rabbit.pids()).collect();
    fs::write(format!("{report}.new"), serde_json::to_vec(&pids).unwrap()).unwrap();
    fs::rename(format!("{report}.new"), report).unwrap();
    std::future::pending().await
}

#[tokio::test]
async fn servers_and_their_folders_end_when_their_owner_is_killed() {
    let folder = testkit::guardian::folder().unwrap();
    let report = folder.path().join("pids.json");
    let itself = std::env::current_exe().unwrap();
    let mut owner = command(&itself, &["--exact", "servers::as_an_owner_of_servers"]);
    // The owner creates its folders here, so that the test can count them.
    owner.env("HARNESS_OWNER_REPORT", &report).env("TMPDIR", folder.path());
    let mut owner = Process::spawn(owner).unwrap();
    let started = eventually("the servers run", Duration::from_secs(90), async || {
        assert_eq!(owner.ended(), None, "{}", owner.describe());
        serde_json::from_slice::<Vec<u32>>(&fs::read(&report).ok()?).ok()
    });
    let pids = started.await;
    assert_eq!(pids.len(), 3);
    assert!(!pids.iter().copied().any(is_gone));

    owner.kill9();
    let all_gone = async || pids.iter().copied().all(is_gone);
    eventually("all servers have ended", SOON, all_gone).await;
    let no_folder = async || fs::read_dir(folder.path()).unwrap().count() == 1;
    eventually("their folders are removed", SOON, no_folder).await;
}
