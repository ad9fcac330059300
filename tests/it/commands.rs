//! The command line, the probes and the sandbox's control API, used as people and programs use
//! them.

use std::{fs, time::Duration};

use lapin::options::QueueDeleteOptions;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testkit::{
    LIMIT,
    guardian::folder,
    http,
    processes::{Process, worker_command},
    servers::{Persistence, PrivateRedis, free_port, shared_rabbit},
};

use crate::env::{ItEnv, job};

/// Runs a command to its end, and returns exit code, stdout and stderr.
pub(crate) async fn run(command: std::process::Command) -> (Option<i32>, String, String) {
    let mut process = Process::spawn(command).expect("a process");
    let status = process.wait(LIMIT).await.expect("an exit");
    (status.code(), process.stdout(), process.stderr())
}

#[tokio::test(flavor = "multi_thread")]
async fn submit_publishes_all_jobs_or_none() {
    let env = ItEnv::open().await;
    let folder = folder().unwrap();
    let file = folder.path().join("jobs.json");
    let text = |id: &str| String::from_utf8(job(id, "p", 100)).unwrap();

    fs::write(&file, format!("{}\n{{\"captureRequestId\":\"bad\"}}\n", text("a"))).unwrap();
    let mut submit = env.program(&["submit"]);
    submit.arg(&file);
    let (code, _, errors) = run(submit).await;
    assert_eq!(code, Some(1));
    assert!(errors.contains("job 2 (bad): `paymentId` is missing"), "{errors}");

    fs::write(&file, format!("[{}, {}]", text("a"), text("b"))).unwrap();
    let mut submit = env.program(&["submit", "--json"]);
    submit.arg(&file);
    let (code, output, _) = run(submit).await;
    assert_eq!(code, Some(0));
    assert_eq!(serde_json::from_str::<Value>(&output).unwrap(), json!({"jobs": 2, "confirmed": 2}));

    fs::write(&file, format!("{}\n{}\n", text("c"), text("d"))).unwrap();
    let mut submit = env.program(&["submit", "-"]);
    submit.stdin(fs::File::open(&file).unwrap());
    assert_eq!(run(submit).await.0, Some(0));
    assert_eq!(env.queued().await, [("jobs".to_owned(), 4)].into());

    let _worker = env.worker().await;
    for id in ["a", "b", "c", "d"] {
        env.ends_as(id, "CAPTURED", None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn submit_reports_that_the_broker_is_unavailable() {
    let url = format!("amqp://guest:secret-word@127.0.0.1:{}/%2f", free_port().unwrap());
    let folder = folder().unwrap();
    let file = folder.path().join("job.json");
    fs::write(&file, job("c", "p", 1)).unwrap();
    let mut submit = worker_command(&["submit"]);
    submit.arg(&file).env("CAPTURE__BROKER__URL", url);
    let (code, _, errors) = run(submit).await;
    assert_eq!(code, Some(1));
    assert!(errors.contains("nothing was published"), "{errors}");
    assert!(!errors.contains("secret-word"));
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tests_keys_and_connections_and_reports_all_errors() {
    let env = ItEnv::open().await;
    let (code, output, errors) = run(env.program(&["check"])).await;
    assert_eq!(code, Some(0), "{output}{errors}");
    for line in ["broker: ok", "redis: ok", "gateway: ok", "retry.max_age = "] {
        assert!(output.contains(line), "{line} in {output}");
    }
    let private_key = &env.base.settings["GATEWAY__PRIVATE_KEY"];
    assert!(!output.contains(private_key.as_str()) && !output.contains("guest:guest"), "{output}");

    // Another merchant's key, another gateway's key, and no Redis at the address.
    let other = capture_worker::sandbox::Keys::generate().unwrap();
    let mut check = env.program(&["check", "--json"]);
    check.env("CAPTURE__GATEWAY__PRIVATE_KEY", &other.private_key);
    check.env("CAPTURE__REDIS__URL", format!("redis://127.0.0.1:{}", free_port().unwrap()));
    let (code, output, _) = run(check).await;
    assert_eq!(code, Some(1));
    let document: Value = serde_json::from_str(&output).unwrap();
    assert_eq!(document["checks"]["broker"]["ok"], true);
    assert_eq!(document["checks"]["redis"]["ok"], false);
    let gateway = &document["checks"]["gateway"];
    assert!(gateway["says"].as_str().unwrap().contains("INVALID_SIGNATURE"), "{gateway}");

    let mut check = env.program(&["check"]);
    check.env("CAPTURE__GATEWAY__PUBLIC_KEY", &other.public_key);
    let (code, output, _) = run(check).await;
    assert_eq!(code, Some(1));
    assert!(output.contains("another key than gateway.public_key"), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_usage_and_bad_settings_exit_64_before_any_connection() {
    let program = |arguments: &[&str]| worker_command(arguments);
    assert_eq!(run(program(&["fly"])).await.0, Some(64));
    let (code, _, errors) = run(program(&["run"])).await;
    assert_eq!(code, Some(64));
    for key in
        ["gateway.base_url", "gateway.client_id", "gateway.private_key", "gateway.public_key"]
    {
        assert!(errors.contains(key), "{key} in {errors}");
    }
    let mut unknown = program(&["run"]);
    unknown.env("CAPTURE__BROKER__PREFTECH", "5").env("CAPTURE__LEASE__TTL", "1s");
    let (code, _, errors) = run(unknown).await;
    assert_eq!(code, Some(64));
    assert!(errors.contains("preftech"), "{errors}");
    let (code, output, _) = run(program(&["--help"])).await;
    assert_eq!(code, Some(0));
    for word in ["run", "submit", "sandbox", "check", "--config"] {
        assert!(output.contains(word), "{word} in {output}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_waits_for_missing_servers_and_is_not_ready() {
    let rabbit = shared_rabbit().await.unwrap();
    let mut redis = PrivateRedis::start(Persistence::None).await.unwrap();
    redis.stop().await.unwrap();
    let env = ItEnv::open_at(&rabbit.url(), &redis.url(), Duration::ZERO).await;
    let worker = env.start_worker().await;
    assert_eq!(http::call("GET", &worker.url, "/livez", None).await.unwrap().status, 200);
    let readyz = http::call("GET", &worker.url, "/readyz", None).await.unwrap();
    assert_eq!(readyz.status, 503, "{readyz:?}");
    let mut nowhere = env.program(&["run"]);
    nowhere.env("CAPTURE__BROKER__URL", format!("amqp://127.0.0.1:{}/%2f", free_port().unwrap()));
    let mut nowhere = Process::spawn(nowhere).unwrap();
    let waits = |line: &str| line.contains("broker session failed to open").then_some(());
    nowhere.line(LIMIT, waits).await.unwrap();
    nowhere.signal(Signal::SIGTERM).unwrap();
    assert_eq!(nowhere.wait(LIMIT).await.unwrap().code(), Some(0));
    redis.start_again().await.unwrap();
    worker.becomes_ready().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_attempts_outcomes_settlements_and_times() {
    let env = ItEnv::open().await;
    let worker = env.worker().await;
    for (id, payment) in [
        ("a", "p"),
        ("b", "sim-unknown-exception-1"),
        ("c", "sim-RISK_REJECT-1"),
        ("d", "sim-other-id-1"),
        ("e", "sim-traffic-limit-1"),
    ] {
        env.publish(&job(id, payment, 100)).await;
    }
    env.results.wait_for(5, LIMIT).await.unwrap();
    let scrape = http::get(&worker.url, "/metrics").await.unwrap();
    for line in [
        "capture_worker_attempts_total 7",
        r#"capture_worker_outcomes_total{outcome="captured"} 4"#,
        r#"capture_worker_outcomes_total{outcome="in_doubt"} 2"#,
        r#"capture_worker_outcomes_total{outcome="throttled"} 2"#,
        r#"capture_worker_doubts_total{reason="contradiction"} 1"#,
        r#"capture_worker_settlements_total{settlement="dead",class="risk"} 1"#,
        "capture_worker_settled_money_total\
         {settlement=\"captured\",class=\"none\",currency=\"HKD\"} 400",
        r#"capture_worker_settled_money_total{settlement="dead",class="risk",currency="HKD"} 100"#,
        r#"capture_worker_gateway_seconds_count{call="capture"} 9"#,
        r#"capture_worker_lease_seconds_count{call="acquire"} 9"#,
        "capture_worker_jobs_in_flight 0",
    ] {
        assert!(scrape.contains(line), "{line} in\n{scrape}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_log_line_holds_a_key_or_a_body() {
    let env = ItEnv::open().await.set("LOG__FILTER", "trace");
    let mut worker = env.worker().await;
    // This includes a dead letter that is returned because its queue does not exist.
    let channel = env.broker.channel().await.unwrap();
    let queue = format!("{}.dead.malformed", env.prefix);
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let mut body: Value = serde_json::from_slice(&job("c", "p", 100)).unwrap();
    body["metadata"] = json!({"note": "a-private-remark"});
    env.publish(body.to_string().as_bytes()).await;
    env.publish(br#"{"captureRequestId":"bad","secretNote":"a-private-remark"}"#).await;
    env.ends_as("c", "CAPTURED", None).await;
    env.ends_as("bad", "FAILED", Some("malformed")).await;
    assert_eq!(worker.drain().await, Some(0));
    let log = worker.process.stderr();
    let private_key = &env.base.settings["GATEWAY__PRIVATE_KEY"][..40];
    assert!(log.contains("returned as unroutable"), "{log}");
    for secret in
        [private_key, "guest:guest", "guest\\u0000guest", "a-private-remark", "signature="]
    {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
}

/// The sandbox runs as a separate process, controlled over HTTP as the documents show.
#[tokio::test(flavor = "multi_thread")]
async fn the_sandbox_is_controlled_over_http() {
    let rabbit = shared_rabbit().await.unwrap();
    let redis = PrivateRedis::start(Persistence::None).await.unwrap();
    let folder = folder().unwrap();
    let mut sandbox =
        worker_command(&["sandbox", "--listen", "127.0.0.1:0", "--strict", "--json", "--keys"]);
    sandbox.arg(folder.path());
    let mut sandbox = Process::spawn(sandbox).unwrap();
    let said = |line: &str| {
        serde_json::from_str::<Value>(line).ok().filter(|said| said["listen"].is_string())
    };
    let said = sandbox.line(LIMIT, said).await.unwrap();
    let url = format!("http://{}", said["listen"].as_str().unwrap());
    let env = ItEnv::open_at(&rabbit.url(), &redis.url(), Duration::ZERO).await;
    let mut run = env.program(&["run"]);
    run.env("CAPTURE__GATEWAY__BASE_URL", &url)
        .env("CAPTURE__GATEWAY__CLIENT_ID", said["client_id"].as_str().unwrap())
        .env_remove("CAPTURE__GATEWAY__PRIVATE_KEY")
        .env_remove("CAPTURE__GATEWAY__PUBLIC_KEY")
        .env("CAPTURE__GATEWAY__PRIVATE_KEY_FILE", folder.path().join("private_key"))
        .env("CAPTURE__GATEWAY__PUBLIC_KEY_FILE", folder.path().join("public_key"));
    let _worker = ItEnv::worker_from(run).await;

    let authorized = json!({"authorized": {"currency": "HKD", "value": "150"}});
    let tell = async |method: &str, path: &str, body: Value| {
        let answer = http::call(method, &url, path, Some(&body)).await.unwrap();
        assert!([200, 204].contains(&answer.status), "{method} {path}: {answer:?}");
        serde_json::from_str::<Value>(&answer.body).unwrap_or_default()
    };
    tell("PUT", "/sandbox/payments/a%2Fb", authorized).await;
    let steps = json!([{"answer": "no_answer", "executes": true}]);
    tell("POST", "/sandbox/payments/a%2Fb/script", steps).await;
    // A strict sandbox treats a capture without captureType as the last one.
    let partial = String::from_utf8(job("first", "a/b", 100)).unwrap();
    let partial = partial.replacen('{', "{\"captureType\":\"NON_FINAL\",", 1);
    env.publish(partial.as_bytes()).await;
    env.ends_as("first", "CAPTURED", None).await;
    env.publish(&job("second", "a/b", 100)).await;
    env.ends_as("second", "FAILED", Some("limit")).await;
    env.publish(&job("third", "unknown", 100)).await;
    env.ends_as("third", "FAILED", Some("authorization")).await;
    tell("POST", "/sandbox/script", json!([{"answer": {"code": "RISK_REJECT"}}])).await;
    env.publish(&job("fourth", "a/b", 50)).await;
    env.ends_as("fourth", "FAILED", Some("risk")).await;

    let payment = tell("GET", "/sandbox/payments/a%2Fb", Value::Null).await;
    assert_eq!(
        (&payment["captured"], &payment["requests"][0]["posts"]),
        (&json!("100"), &json!(2))
    );
    let ledger = tell("GET", "/sandbox/ledger", Value::Null).await;
    assert_eq!((&ledger["captured"], &ledger["overlaps"]), (&json!({"HKD": "100"}), &json!(0)));
    assert!(http::get(&url, "/").await.unwrap().contains("RISK_REJECT"));
    let typo = json!([{"anwser": "hang"}]);
    let refused = http::call("POST", &url, "/sandbox/script", Some(&typo)).await.unwrap();
    assert_eq!(refused.status, 422);
    assert!(refused.body.contains("anwser"), "{refused:?}");
    http::call("DELETE", &url, "/sandbox", None).await.unwrap();
    assert_eq!(tell("GET", "/sandbox/ledger", Value::Null).await["captures"], json!([]));
    sandbox.signal(Signal::SIGTERM).unwrap();
    assert_eq!(sandbox.wait(LIMIT).await.unwrap().code(), Some(0));
}
