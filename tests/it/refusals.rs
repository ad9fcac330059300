//! Refusals of the broker: a missing permission, a missing exchange, a full queue of a subscriber.
//! None of them uses attempts or returns of jobs.
#![expect(clippy::unwrap_used, reason = "a failure fails the test and shows its place")]

use std::net::TcpListener;

use capture_worker::domain::capture::class::Class;
use lapin::{
    BasicProperties,
    options::{ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldArray, FieldTable},
};
use serde_json::json;
use testkit::{
    LIMIT,
    broker::Message,
    http,
    poll::eventually,
    servers::{PrivateRabbit, shared_rabbit},
    worker::Worker,
};

use crate::env::{ItEnv, headers, job, text};

/// A test environment with a user without configure permission and with these patterns.
async fn user(rabbit: &PrivateRabbit, env: ItEnv, write: &str, read: &str) -> ItEnv {
    let name = format!("user-{}", env.prefix);
    rabbit.ctl(&["add_user", &name, "secret"]).await.unwrap();
    let url = format!("amqp://{name}:secret@127.0.0.1:{}/%2f", rabbit.port());
    let env = env.set("BROKER__URL", &url).set("BROKER__TOPOLOGY", "check");
    allow(rabbit, &env, write, read).await;
    env
}

async fn allow(rabbit: &PrivateRabbit, env: &ItEnv, write: &str, read: &str) {
    let name = format!("user-{}", env.prefix);
    let ours = |pattern: &str| format!("^{}\\.({pattern})$", env.prefix);
    let (write, read) = (ours(write), ours(read));
    rabbit.ctl(&["set_permissions", "-p", "/", &name, "", &write, &read]).await.unwrap();
}

fn check(env: &ItEnv) -> (Option<i32>, String) {
    let done = env.program(&["check", "--json"]).output().unwrap();
    let said: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    (done.status.code(), said["checks"]["broker"].to_string())
}

async fn says_not_ready(worker: &Worker, why: &str) {
    eventually(&format!("readyz shows {why}"), LIMIT, async || {
        http::get(&worker.url, "/readyz")
            .await
            .err()
            .is_some_and(|said| format!("{said:#}").contains(why))
    })
    .await;
}

/// The counts of returns of the jobs in the queue.
async fn returns(env: &ItEnv) -> Vec<String> {
    let jobs = env.broker.peek_queue(&format!("{}.jobs", env.prefix)).await.unwrap();
    let count = |job: &Message| job.header("x-delivery-count").unwrap_or_else(|| "0".into());
    jobs.iter().map(count).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_permission_on_results_pauses_consumption() {
    let rabbit = shared_rabbit().await.unwrap();
    let env = ItEnv::open().await.declare().await.set("BROKER__PREFETCH", "3");
    let env = user(rabbit, env, "wait|dead", "jobs").await;
    for n in 0..8 {
        env.publish(&job(&format!("c-{n}"), &format!("p-{n}"), 100)).await;
    }
    let worker = env.start_worker().await;
    let exchange = format!("{}.results", env.prefix);
    says_not_ready(&worker, &exchange).await;
    // The jobs delivered before the pause are in hand. The others stay in the queue unchanged.
    eventually("consumption has paused", LIMIT, async || {
        worker.process.stderr().contains("consumption paused")
    })
    .await;
    let untouched = returns(&env).await;
    assert!(untouched.len() >= 5 && untouched.iter().all(|count| count == "0"), "{untouched:?}");
    let captured_before = env.sandbox.ledger()["captures"].as_array().unwrap().len();
    let lines = |of: &str| worker.process.stderr().matches(of).count();
    // The client library logs this line at each attempt.
    eventually("the worker tries again", LIMIT, async || lines("Channel closed") >= 4).await;
    assert_eq!(lines("publishing refused"), 1, "the reason is logged once");
    assert_eq!(env.results.all().len(), 0);
    assert_eq!(env.sandbox.ledger()["captures"].as_array().unwrap().len(), captured_before);
    allow(rabbit, &env, "wait|dead|results", "jobs").await;
    worker.becomes_ready().await.unwrap();
    for n in 0..8 {
        env.ends_as(&format!("c-{n}"), "CAPTURED", None).await;
        assert_eq!(env.posts(&format!("p-{n}"), &format!("c-{n}")), 1);
    }
    let log = worker.process.stderr();
    assert_eq!(log.matches("broker session opened").count(), 1, "no session was lost");
    eventually("all queues are empty", LIMIT, async || env.queued().await.is_empty()).await;
    env.assert_clean_books();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_permission_on_dead_or_wait_the_job_stays_in_hand() {
    let rabbit = shared_rabbit().await.unwrap();
    for (missing, kept, payment) in
        [("dead", "wait|results", "sim-RISK_REJECT-1"), ("wait", "dead|results", "sim-http-500-1")]
    {
        let env = ItEnv::open().await.declare().await;
        let env = user(rabbit, env, kept, "jobs").await;
        let worker = env.worker().await;
        env.publish(&job("c", payment, 100)).await;
        says_not_ready(&worker, &format!("{}.{missing}", env.prefix)).await;
        allow(rabbit, &env, "wait|dead|results", "jobs").await;
        worker.becomes_ready().await.unwrap();
        if missing == "dead" {
            env.dead(Class::Risk, 1).await;
        } else {
            env.ends_as("c", "CAPTURED", None).await;
        }
        let log = worker.process.stderr();
        assert_eq!(log.matches("broker session opened").count(), 1, "{missing}: {log}");
    }
}

/// A refused publish does not affect the other publishes of its batch and its channel.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_exchange_does_not_affect_the_others() {
    let rabbit = shared_rabbit().await.unwrap();
    let env = ItEnv::open().await.declare().await.set("BROKER__PREFETCH", "200");
    let env = user(rabbit, env, "wait|results", "jobs").await;
    for n in 0..60 {
        env.publish(&job(&format!("c-{n}"), &format!("p-{n}"), 100)).await;
        env.publish(&job(&format!("r-{n}"), &format!("sim-RISK_REJECT-{n}"), 100)).await;
    }
    let worker = env.start_worker().await;
    says_not_ready(&worker, &format!("{}.dead", env.prefix)).await;
    // Jobs in hand that were captured have their results.
    eventually("the captures have results", LIMIT, async || {
        let ledger = env.sandbox.ledger()["captures"].as_array().unwrap().len();
        let results = env.results.all();
        results.iter().filter(|result| result.routing_key == "captured").count() == ledger
    })
    .await;
    allow(rabbit, &env, "wait|dead|results", "jobs").await;
    worker.becomes_ready().await.unwrap();
    for n in 0..60 {
        env.ends_as(&format!("c-{n}"), "CAPTURED", None).await;
        env.ends_as(&format!("r-{n}"), "FAILED", Some("risk")).await;
    }
    assert_eq!(env.dead(Class::Risk, 60).await.len(), 60, "each dead letter once");
    eventually("all queues are empty", LIMIT, async || env.queued().await.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_exchange_is_declared_again_or_waited_for() {
    let delete = async |env: &ItEnv| {
        let channel = env.broker.channel().await.unwrap();
        let results = format!("{}.results", env.prefix);
        let options = ExchangeDeleteOptions::default();
        channel.exchange_delete(results.as_str().into(), options).await.unwrap();
    };
    let env = ItEnv::open().await;
    let worker = env.worker().await;
    delete(&env).await;
    env.publish(&job("c", "p", 100)).await;
    eventually("the job is acked", LIMIT, async || {
        let log = worker.process.stderr();
        log.contains("publishing accepted again") && env.queued().await.is_empty()
    })
    .await;
    assert_eq!(worker.process.stderr().matches("broker session opened").count(), 1);

    let env = ItEnv::open().await.declare().await.set("BROKER__TOPOLOGY", "none");
    let worker = env.worker().await;
    delete(&env).await;
    env.publish(&job("c", "p", 100)).await;
    says_not_ready(&worker, &format!("{}.results", env.prefix)).await;
    let results = env.broker.subscribe_results(&env.prefix).await.unwrap();
    assert_eq!(results.wait_for(1, LIMIT).await.unwrap()[0].routing_key, "captured");
    worker.becomes_ready().await.unwrap();
}

/// A worker that drains meanwhile publishes its jobs to the wait queues, so that no return is
/// counted.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_while_results_are_refused_returns_no_job() {
    let rabbit = shared_rabbit().await.unwrap();
    let env = ItEnv::open().await.declare().await.set("RETRY__SCHEDULE", "100ms,200ms");
    let env = user(rabbit, env, "wait|dead", "jobs").await;
    let mut worker = env.worker().await;
    env.publish(&job("c", "p", 100)).await;
    says_not_ready(&worker, &format!("{}.results", env.prefix)).await;
    assert_eq!(worker.drain().await, Some(0));
    eventually("the job is back", LIMIT, async || {
        env.queued().await == [("jobs".to_owned(), 1)].into()
    })
    .await;
    let jobs = env.broker.peek_queue(&format!("{}.jobs", env.prefix)).await.unwrap();
    assert_eq!(jobs[0].header("x-capture-sent").as_deref(), Some("true"));
    assert_eq!((jobs[0].header("x-capture-returns"), jobs[0].redelivered), (None, false));
    allow(rabbit, &env, "wait|dead|results", "jobs").await;
    let _next = env.worker().await;
    env.ends_as("c", "CAPTURED", None).await;
    assert_eq!(env.posts("p", "c"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_verifies_each_permission_and_leaves_no_message() {
    let rabbit = shared_rabbit().await.unwrap();
    let env = ItEnv::open().await.declare().await;
    env.publish(&job("c", "p", 100)).await;
    let env = user(rabbit, env, "wait|dead|results", "jobs").await;
    let (code, said) = check(&env);
    assert_eq!((code, said.contains("\"ok\":true")), (Some(0), true), "{said}");
    for (write, read, missing) in [
        ("dead|results", "jobs", "wait"),
        ("wait|results", "jobs", "dead"),
        ("wait|dead", "jobs", "results"),
        ("wait|dead|results", "nothing", "jobs"),
    ] {
        allow(rabbit, &env, write, read).await;
        let (code, said) = check(&env);
        let named = said.contains(&format!("{}.{missing}", env.prefix));
        assert!(code == Some(1) && named && said.contains("ACCESS_REFUSED"), "{missing}: {said}");
    }
    assert_eq!(env.queued().await, [("jobs".to_owned(), 1)].into());
    assert_eq!(env.results.all().len(), 0);
    assert_eq!(returns(&env).await, ["0"], "check consumes no message");
}

/// A subscriber's queue that accepts this many results and refuses the others.
async fn bounded_subscriber(env: &ItEnv, length: i32) -> String {
    let channel = env.broker.channel().await.unwrap();
    let queue = format!("{}.reports", env.prefix);
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let bounded = headers([
        ("x-max-length", AMQPValue::LongInt(length)),
        ("x-overflow", text("reject-publish")),
    ]);
    channel.queue_declare(queue.as_str().into(), durable, bounded).await.unwrap();
    let (exchange, bind) = (format!("{}.results", env.prefix), QueueBindOptions::default());
    let none = FieldTable::default();
    channel
        .queue_bind(queue.as_str().into(), exchange.as_str().into(), "#".into(), bind, none)
        .await
        .unwrap();
    queue
}

async fn delete_queue(env: &ItEnv, queue: &str) {
    let channel = env.broker.channel().await.unwrap();
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_of_one_subscriber_stops_no_capture() {
    let env = ItEnv::open().await.declare().await.set("BROKER__PREFETCH", "8");
    // Jobs whose results are refused are older than this when the results can be published.
    let env = env.set("RETRY__MAX_AGE", "1s").set("RETRY__SCHEDULE", "500ms,2s");
    let queue = bounded_subscriber(&env, 2).await;
    let _worker = env.worker().await;
    for n in 0..40 {
        env.publish(&job(&format!("c-{n}"), &format!("p-{n}"), 100)).await;
        if n % 4 == 0 {
            env.publish(&job(&format!("r-{n}"), &format!("sim-RISK_REJECT-{n}"), 100)).await;
        }
    }
    eventually("all jobs are captured", LIMIT, async || {
        env.sandbox.ledger()["captures"].as_array().unwrap().len() == 40
    })
    .await;
    let waiting = async || {
        let queued = env.queued().await;
        (queued.get("wait.2s").copied().unwrap_or_default() > 30).then_some(queued)
    };
    let queued = eventually("jobs wait to publish their results", LIMIT, waiting).await;
    assert!(queued.get("dead.risk").copied().unwrap_or_default() <= 2, "{queued:?}");
    let peeked = env.broker.peek_queue(&format!("{}.wait.2s", env.prefix)).await.unwrap();
    for job in &peeked {
        assert_eq!(job.header("x-capture-sent").as_deref(), Some("true"));
        assert_eq!(job.header("x-capture-attempt").as_deref(), Some("0"), "no attempt is used");
    }
    delete_queue(&env, &queue).await;
    let has_ended = |id: String, status: &str| {
        let results = env.results_now(&id);
        results.last().is_some_and(|result| result["status"] == status)
    };
    eventually("all jobs have results and are acked", LIMIT, async || {
        let all = (0..40).all(|n| has_ended(format!("c-{n}"), "CAPTURED"));
        all && env.queued().await == [("dead.risk".to_owned(), 10)].into()
    })
    .await;
    for n in 0..40 {
        let results = env.results_now(&format!("c-{n}"));
        assert!(results.iter().all(|result| result["status"] == "CAPTURED"), "{results:?}");
        assert_eq!(env.posts(&format!("p-{n}"), &format!("c-{n}")), 1);
    }
    env.assert_clean_books();
}

/// Other subscribers may have received the failure, and the publisher may have sent a new id
/// meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_job_whose_result_was_refused_never_captures() {
    let env = ItEnv::open().await.declare().await.set("RETRY__SCHEDULE", "300ms,600ms");
    let real = env.base.settings["GATEWAY__BASE_URL"].clone();
    let queue = bounded_subscriber(&env, 0).await;
    let nowhere = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", nowhere.local_addr().unwrap());
    drop(nowhere);
    let env = env.set("GATEWAY__BASE_URL", &address).set("BREAKER__FAILURES", "1000");
    let mut worker = env.worker().await;
    env.publish(&job("c", "p", 100)).await;
    let refused = || worker.process.stderr().contains("result refused by the broker: job waits");
    eventually("the result was refused", LIMIT, async || refused()).await;
    assert_eq!(worker.drain().await, Some(0));
    // The network works again, and the job comes back.
    let env = env.set("GATEWAY__BASE_URL", &real);
    let _next = env.worker().await;
    let settled = async || env.queued().await.keys().any(|queue| queue.starts_with("wait"));
    eventually("the job waits again", LIMIT, settled).await;
    delete_queue(&env, &queue).await;
    env.dead(Class::Unreachable, 1).await;
    let results = env.results_now("c");
    assert!(results.iter().all(|result| result["class"] == "unreachable"), "{results:?}");
    assert_eq!((env.posts("p", "c"), env.captures_of("c")), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_priority_is_kept_in_a_header_while_the_job_waits() {
    let env = ItEnv::open().await.set("RETRY__SCHEDULE", "1s,1500ms,2s");
    let _worker = env.worker().await;
    env.script("p", json!([{"answer": {"code": "UNKNOWN_EXCEPTION"}, "times": 2}]));
    env.script(
        "r",
        json!([{"answer": {"code": "UNKNOWN_EXCEPTION"}}, {"answer": {"code": "RISK_REJECT"}}]),
    );
    let urgent = BasicProperties::default().with_delivery_mode(2).with_priority(9);
    let exchange = format!("{}.jobs", env.prefix);
    for (id, payment) in [("c", "p"), ("d", "r")] {
        env.broker.publish(&exchange, "job", &job(id, payment, 100), urgent.clone()).await.unwrap();
    }
    for delay in ["1s", "1500ms"] {
        let queue = format!("{}.wait.{delay}", env.prefix);
        let waiting = eventually(&format!("the job waits in {queue}"), LIMIT, async || {
            let waiting = env.broker.peek_queue(&queue).await.unwrap();
            (!waiting.is_empty()).then_some(waiting)
        })
        .await;
        for job in waiting {
            assert_eq!(job.properties.priority(), &None);
            assert_eq!(job.header("x-capture-priority").as_deref(), Some("9"));
        }
    }
    env.ends_as("c", "CAPTURED", None).await;
    env.ends_as("d", "FAILED", Some("risk")).await;
    for result in env.results.all() {
        assert_eq!(result.properties.priority(), &Some(9));
    }
    let dead = env.dead(Class::Risk, 1).await;
    assert_eq!(dead[0].header("x-capture-priority").as_deref(), Some("9"));
}

/// RabbitMQ 3.x trusts a publisher's `x-death`, and drops a message that seems to be in a cycle.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_with_a_forged_x_death_is_never_dropped() {
    let env = ItEnv::open().await.set("RETRY__DEFER_SCHEDULE", "100ms,30s");
    let env = env.set("GATEWAY__TIMEOUT", "15s");
    let mut worker = env.worker().await;
    let death = headers([
        ("queue", text(&format!("{}.dead.poison", env.prefix))),
        ("reason", text("delivery_limit")),
        ("count", AMQPValue::LongLongInt(1)),
        ("exchange", text("")),
        ("routing-keys", AMQPValue::FieldArray(FieldArray::from(vec![text("poison")]))),
    ]);
    let deaths = FieldArray::from(vec![AMQPValue::FieldTable(death)]);
    env.script("p", json!([{"answer": "hang", "executes": false, "times": "forever"}]));
    env.publish_with(&job("c", "p", 100), headers([("x-death", AMQPValue::FieldArray(deaths))]))
        .await;
    eventually("the capture hangs", LIMIT, async || env.posts("p", "c") == 1).await;
    worker.process.kill9();
    let jobs = format!("{}.jobs", env.prefix);
    let poison = format!("{}.dead.poison", env.prefix);
    // The job kills its consumers until the broker dead-letters it.
    eventually("the broker dead-letters the job", LIMIT, async || {
        env.broker.peek_queue(&jobs).await.unwrap();
        env.broker.queue_depth(&poison).await.unwrap() == Some(1)
    })
    .await;
    assert_eq!(env.dead(Class::Poison, 1).await[0].body, job("c", "p", 100));
}
