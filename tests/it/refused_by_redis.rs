//! A Redis that refuses commands, and a gateway whose replies are changed on the way. `check`
//! reports the reason; `run` logs it once and is not ready. The documented access list suffices.

#![expect(clippy::unwrap_used, reason = "a failure fails the test and shows its place")]

use std::time::Duration;

use serde_json::{Value, json};
use testkit::{
    LIMIT, http,
    poll::eventually,
    servers::{Persistence, PrivateRedis, Reply, free_port, shared_rabbit},
    worker::Worker,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::{
    env::{ItEnv, job},
    tidy,
};

const PASSWORD: &str = "pa55";

/// A Redis with a user that has this access, and a test environment that connects as that user.
async fn env_as(access: &str) -> (PrivateRedis, ItEnv) {
    let rabbit = shared_rabbit().await.unwrap();
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    grant(&redis, access);
    let env = ItEnv::open_at(&rabbit.url(), &redis.url(), Duration::ZERO).await;
    let url = redis.url().replace("redis://", &format!("redis://worker:{PASSWORD}@"));
    let env = env.set("REDIS__URL", &url);
    (redis, env)
}

/// Sets the user's access to exactly this, also on open connections.
fn grant(redis: &PrivateRedis, access: &str) {
    let password = format!(">{PASSWORD}");
    let words = ["ACL", "SETUSER", "worker", "reset", "on", &password];
    let words: Vec<&str> = words.into_iter().chain(access.split_whitespace()).collect();
    redis.cmd(&words).unwrap();
}

/// The result of `check` about Redis: success, and its text.
async fn check(env: &ItEnv) -> (bool, String) {
    let (_, document) = env.run_json(&["check"]).await;
    let found: &Value = &document["checks"]["redis"];
    (found["ok"] == true, found["says"].as_str().unwrap_or_default().to_owned())
}

#[track_caller]
fn assert_refused(found: &(bool, String), reason: &str) {
    assert!(!found.0 && found.1.contains(reason), "{reason}: {}", found.1);
    assert!(!found.1.contains(PASSWORD), "{}", found.1);
}

/// `check` leaves no key of its nonexistent payment. The key of the ping expires within one second.
async fn assert_nothing_left(redis: &PrivateRedis) {
    eventually("no other key is left in Redis", LIMIT, async || {
        let Ok(Reply::List(keys)) = redis.cmd(&["KEYS", "*"]) else { panic!("no keys") };
        // The identity of the server stays.
        let is_name = |key: &Reply| matches!(key, Reply::Text(key) if key.ends_with(":server"));
        keys.iter().all(is_name)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_reports_why_redis_refuses_the_connection() {
    let (redis, env) = env_as("~* &* +@all").await;
    assert!(check(&env).await.0);
    assert_nothing_left(&redis).await;
    for (access, reason) in [
        ("~* +@all -evalsha", "NOPERM"),
        ("~* +@all -lpop", "NOPERM LPOP"),
        ("~* +@all -set", "NOPERM SET"),
        ("~* +@all -script|load", "NOPERM"),
        ("~other:* +@all", "NOPERM"),
        ("~capture:* +set +get +pttl +info +ping", "NOPERM"),
    ] {
        grant(&redis, access);
        assert_refused(&check(&env).await, reason);
    }
    assert_nothing_left(&redis).await;

    let with_url = |url: &str| {
        let mut program = env.program(&["check", "--json"]);
        program.env("CAPTURE__REDIS__URL", url);
        async move {
            let (_, output, _) = crate::commands::run(program).await;
            let document: Value = serde_json::from_str(&output).unwrap();
            let redis = &document["checks"]["redis"];
            (redis["ok"] == true, redis["says"].as_str().unwrap().to_owned())
        }
    };
    let wrong = redis.url().replace("redis://", "redis://worker:wrong-word@");
    let found = with_url(&wrong).await;
    assert_refused(&found, "WRONGPASS");
    assert!(!found.1.contains("wrong-word"));
    // The client of a Cluster connects in another way.
    assert_refused(&with_url(&format!("{wrong},{wrong}")).await, "WRONGPASS");
    let sentinel = redis.start_sentinel().await.unwrap();
    let at_sentinel = sentinel.url().replace("redis://", "redis-sentinel://worker:wrong-word@");
    // The client library only reports that the primary refused it.
    assert_refused(&with_url(&format!("{at_sentinel}#main")).await, "authentication failed");
    redis.cmd(&["CONFIG", "SET", "requirepass", "another-word"]).unwrap();
    assert_refused(&with_url(&redis.url()).await, "NOAUTH");
    let nowhere = format!("redis://127.0.0.1:{}", free_port().unwrap());
    assert_refused(&with_url(&nowhere).await, "Connection refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_reports_why_redis_refuses_writes() {
    let env = ItEnv::open().await;
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let env = env.set("REDIS__URL", &redis.url());
    redis.cmd(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
    assert_refused(&check(&env).await, "OOM");
    redis.cmd(&["CONFIG", "SET", "maxmemory", "0"]).unwrap();
    let nobody = free_port().unwrap().to_string();
    redis.cmd(&["REPLICAOF", "127.0.0.1", &nobody]).unwrap();
    assert_refused(&check(&env).await, "READONLY");
    redis.cmd(&["REPLICAOF", "NO", "ONE"]).unwrap();
    assert!(check(&env).await.0);

    // Some payments are in slots that no node serves.
    let cluster = PrivateRedis::start_cluster().await.unwrap();
    cluster.cmd(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]).unwrap();
    cluster.cmd(&["CLUSTER", "DELSLOTSRANGE", "11901", "16383"]).unwrap();
    for url in [cluster.url(), format!("{0},{0}", cluster.url())] {
        let mut program = env.program(&["check"]);
        program.env("CAPTURE__REDIS__URL", &url);
        let (code, output, _) = crate::commands::run(program).await;
        assert!(code == Some(1) && output.contains("CLUSTERDOWN"), "{url}: {output}");
    }
}

fn warnings(worker: &Worker, what: &str) -> usize {
    let log = worker.process.stderr();
    log.lines().filter(|line| line.contains("\"WARN\"") && line.contains(what)).count()
}

async fn not_ready(worker: &Worker, why: &str) {
    eventually(&format!("not ready: {why}"), LIMIT, async || {
        let answer = http::call("GET", &worker.url, "/readyz", None).await.unwrap();
        answer.status == 503 && answer.body.contains(why)
    })
    .await;
}

/// The number of refused calls of a command.
fn refused_calls(redis: &PrivateRedis, command: &str) -> u64 {
    let Ok(Reply::Text(info)) = redis.cmd(&["INFO", "commandstats"]) else { return 0 };
    let line = info.lines().find(|line| line.starts_with(&format!("cmdstat_{command}:")));
    let count = line.and_then(|line| line.split("rejected_calls=").nth(1));
    count.and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_scripts_are_refused_logs_it_once_and_is_unready() {
    let (redis, env) = env_as("~* +@all -evalsha").await;
    let env = env.declare_with_own_redis().await;
    let worker = env.start_worker().await;
    not_ready(&worker, "NOPERM").await;
    for n in 0..5 {
        env.publish(&job(&format!("c-{n}"), &format!("p-{n}"), 100)).await;
    }
    let tried = async || refused_calls(&redis, "evalsha") >= 5;
    eventually("the worker tries again", LIMIT, tried).await;
    assert_eq!(warnings(&worker, "NOPERM"), 1);
    let jobs = format!("{}.jobs", env.prefix);
    assert_eq!(env.broker.queue_depth(&jobs).await.unwrap(), Some(5), "a job was consumed");
    grant(&redis, "~* +@all");
    for n in 0..5 {
        env.ends_as(&format!("c-{n}"), "CAPTURED", None).await;
    }
    worker.becomes_ready().await.unwrap();

    // The permission is removed while the worker runs: the next outage is logged again.
    grant(&redis, "~* +@all -lpos");
    not_ready(&worker, "NOPERM LPOS").await;
    env.publish(&job("late", "late", 100)).await;
    assert_eq!(warnings(&worker, "NOPERM"), 2);
    grant(&redis, "~* +@all");
    env.ends_as("late", "CAPTURED", None).await;
    env.assert_clean_books();
}

impl ItEnv {
    /// [`ItEnv::declare`] with another Redis, if this environment's Redis can't be used yet.
    async fn declare_with_own_redis(self) -> Self {
        let own = PrivateRedis::start(Persistence::None).await.unwrap();
        let mut worker = self.worker_with(&[("REDIS__URL", &own.url())]).await;
        assert_eq!(worker.drain().await, Some(0));
        self
    }
}

/// The access list of `docs/OPERATIONS.md`: the words after `on >PASSWORD`.
fn documented() -> String {
    let guide = tidy::read("docs/OPERATIONS.md");
    let line = guide.lines().find(|line| line.starts_with("ACL SETUSER ")).expect("the ACL");
    let (_, access) = line.split_once(" >PASSWORD ").expect("the password's place");
    access.to_owned()
}

/// The documented access list with the prefix of a test environment instead of `capture`.
fn documented_for(env: &ItEnv) -> String {
    documented().replace("~capture:*", &format!("~{}:*", env.prefix))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_access_list_suffices_and_all_of_it_is_needed() {
    let (redis, env) = env_as("-@all").await;
    let access = documented_for(&env);
    grant(&redis, &access);
    let (is_ok, says) = check(&env).await;
    assert!(is_ok, "{says}");
    // Concurrent captures of one payment, one in doubt that is inquired about, and one that is
    // declined.
    let env = env.set("BROKER__PREFETCH", "4");
    let first = env.worker().await;
    let second = env.worker().await;
    env.script("doubt", json!([{"answer": "no_answer", "executes": true}]));
    env.script("poor", json!([{"answer": {"code": "RISK_REJECT"}}]));
    for n in 0..20 {
        env.publish(&job(&format!("h-{n}"), "hot", 100)).await;
    }
    env.publish(&job("doubt", "doubt", 100)).await;
    env.publish(&job("poor", "poor", 100)).await;
    env.ends_as("doubt", "CAPTURED", None).await;
    env.ends_as("poor", "FAILED", Some("risk")).await;
    for n in 0..20 {
        env.ends_as(&format!("h-{n}"), "CAPTURED", None).await;
    }
    let (exit, status) = env.run_json(&["status", "h-0", "--payment", "hot"]).await;
    assert_eq!((exit, &status["errors"]["redis"]), (Some(0), &Value::Null), "{status}");
    let (exit, done) = env.run_json(&["dead", "replay", "--class", "risk", "--yes"]).await;
    assert_eq!((exit, &done["sent"]), (Some(0), &json!(1)), "{done}");
    for worker in [&first, &second] {
        assert_eq!(warnings(worker, "Redis"), 0, "{}", worker.process.stderr());
    }
    env.assert_clean_books();

    // Behind Sentinels, and as a node of a Cluster.
    let sentinel = redis.start_sentinel().await.unwrap();
    let login = format!("redis-sentinel://worker:{PASSWORD}@");
    let at_sentinel = format!("{}#main", sentinel.url().replace("redis://", &login));
    let cluster = PrivateRedis::start_cluster().await.unwrap();
    grant(&cluster, &format!("{access} +cluster|slots"));
    let node = cluster.url().replace("redis://", &format!("redis://worker:{PASSWORD}@"));
    for url in [at_sentinel, format!("{node},{node}")] {
        let mut check = env.program(&["check"]);
        check.env("CAPTURE__REDIS__URL", &url);
        let (code, output, errors) = crate::commands::run(check).await;
        assert_eq!(code, Some(0), "{url}: {output}{errors}");
    }

    for command in access.split_whitespace().filter(|word| word.starts_with('+')) {
        // Without INFO, a worker waits at each start for calls that may be in progress.
        if command == "+info" {
            continue;
        }
        grant(&redis, &access.replace(&format!(" {command}"), ""));
        assert_refused(&check(&env).await, "NOPERM");
    }
}

/// A middlebox in front of the sandbox that rewrites the head of each reply. It serves one call per
/// connection.
async fn middlebox(env: &ItEnv, rewrite: impl Fn(&str) -> String + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let target = env.gateway.url().strip_prefix("http://").unwrap().to_owned();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = TcpStream::connect(&target).await.unwrap();
            let request = read_message(&mut client).await;
            let request = request.replacen("\r\n", "\r\nconnection: close\r\n", 1);
            server.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            server.read_to_string(&mut answer).await.unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            let answer = format!("{}\r\n\r\n{body}", rewrite(head));
            client.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    url
}

/// Reads an HTTP message with its body.
async fn read_message(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        let count = stream.read(&mut chunk).await.unwrap();
        read.extend_from_slice(&chunk[..count]);
        let text = String::from_utf8(read.clone()).unwrap();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if count == 0 || length.is_none_or(|length| body.len() >= length.parse().unwrap()) {
            return text;
        }
    }
}

fn without(head: &str, name: &str) -> String {
    head.lines().filter(|line| !line.starts_with(name)).collect::<Vec<_>>().join("\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn check_reports_how_a_reply_was_changed_on_the_way() {
    type Rewrite = fn(&str) -> String;
    let cases: [(Rewrite, &str); 6] = [
        (|head| without(head, "signature:"), "no `signature` header"),
        (|head| without(head, "response-time:"), "no `response-time` header"),
        (|head| format!("{head}\r\nsignature: x"), "`signature` header occurs twice"),
        (|head| format!("{head}\r\nresponse-time: x"), "`response-time` header occurs twice"),
        (|head| head.replace("client-id: ", "client-id: other"), "another client id than"),
        (|head| head.replace("response-time: ", "response-time: 2"), "was changed on the way"),
    ];
    let env = ItEnv::open().await;
    for (rewrite, says) in cases {
        let mut check = env.program(&["check", "--json"]);
        check.env("CAPTURE__GATEWAY__BASE_URL", middlebox(&env, rewrite).await);
        let (code, output, _) = crate::commands::run(check).await;
        let document: Value = serde_json::from_str(&output).unwrap();
        let found = document["checks"]["gateway"]["says"].as_str().unwrap();
        assert!(code == Some(1) && found.contains(says), "{says}: {found}");
        assert!(!found.contains("credentials rejected"), "{found}");
    }
    // A reply that is encoded on the way no longer matches its signature.
    let mut check = env.program(&["check"]);
    let encoded = |head: &str| {
        format!(
            "{}\r\ncontent-length: 1\r\ncontent-encoding: gzip",
            without(head, "content-length")
        )
    };
    check.env("CAPTURE__GATEWAY__BASE_URL", middlebox(&env, encoded).await);
    let (code, output, _) = crate::commands::run(check).await;
    assert!(code == Some(1) && output.contains("`content-encoding` header is gzip"), "{output}");
}
