//! `deploy/definitions.json` is what the program declares, and a worker with minimal permissions
//! works with it.
#![expect(clippy::unwrap_used, reason = "a failure fails the test and shows its place")]

use std::collections::BTreeMap;

use capture_worker::domain::capture::class::Class;
use lapin::types::FieldTable;
use serde_json::{Value, json};
use testkit::servers::{PrivateRabbit, shared_rabbit};

use crate::{
    env::{ItEnv, job},
    tidy::read,
};

/// The default schedule, from which the file is made.
const SCHEDULE: &str = "5s,15s,1m,5m,15m,1h,3h,6h";
const DEFER_SCHEDULE: &str = "250ms,1s,4s,15s";

/// A test environment with the default schedules.
async fn open() -> ItEnv {
    let env = ItEnv::open().await;
    env.set("RETRY__SCHEDULE", SCHEDULE).set("RETRY__DEFER_SCHEDULE", DEFER_SCHEDULE)
}

/// Everything that the broker has under a prefix, with `capture` in place of that prefix.
async fn topology(rabbit: &PrivateRabbit, prefix: &str) -> Vec<String> {
    let lists: [&[&str]; 3] = [
        &["list_exchanges", "name", "type", "durable", "auto_delete", "internal", "arguments"],
        &["list_queues", "name", "durable", "auto_delete", "exclusive", "arguments"],
        &[
            "list_bindings",
            "source_name",
            "destination_name",
            "destination_kind",
            "routing_key",
            "arguments",
        ],
    ];
    let mut found = Vec::new();
    for list in lists {
        let text = rabbit.ctl(&[list, &["--formatter", "json"]].concat()).await.unwrap();
        let items: Vec<Value> = serde_json::from_str(&text).unwrap();
        let own = format!("{prefix}.");
        let ours = items.into_iter().filter(|item| {
            let names = ["name", "source_name"].map(|key| item[key].as_str().unwrap_or_default());
            // The test's own subscription to results has a queue without the prefix.
            let is_ours = names.iter().any(|name| name.starts_with(&own));
            is_ours && item["source_name"] != format!("{prefix}.results")
        });
        found.extend(ours.map(|item| format!("{} {item}", list[0]).replace(&own, "capture.")));
    }
    found.sort();
    found
}

/// Imports the file at the broker, with the prefix of the test environment.
async fn import(rabbit: &PrivateRabbit, env: &ItEnv) {
    let folder = PrivateRabbit::files().unwrap();
    let definitions = read("deploy/definitions.json");
    let prefix = &env.prefix;
    let own = definitions
        .replace("\"capture.", &format!("\"{prefix}."))
        .replace("\"^capture\\\\.", &format!("\"^{prefix}\\\\."))
        .replace("\"capture-worker-", &format!("\"{prefix}-"));
    std::fs::write(folder.outside("definitions.json"), own).unwrap();
    let file = folder.inside("definitions.json").display().to_string();
    rabbit.ctl(&["import_definitions", &file]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_definitions_are_what_the_program_declares() {
    let rabbit = shared_rabbit().await.unwrap();
    let (imported, declared) = (open().await, open().await.declare().await);
    import(rabbit, &imported).await;
    let wanted = topology(rabbit, &declared.prefix).await;
    assert_eq!(topology(rabbit, &imported.prefix).await, wanted);
    assert_eq!(wanted.len(), 5 + 29 + 29, "{wanted:#?}");
    // A worker that declares finds everything in the right form and adds nothing.
    let imported = imported.declare().await;
    assert_eq!(topology(rabbit, &imported.prefix).await, wanted);
}

/// Only the policy of the highest priority applies to a queue.
#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_policies_override_others_on_every_queue() {
    let rabbit = shared_rabbit().await.unwrap();
    let env = open().await;
    import(rabbit, &env).await;
    let hygiene = json!({"delivery-limit": 2, "max-length": 1, "overflow": "drop-head"});
    env.hygiene_policy(rabbit, &hygiene).await;
    let list = ["list_queues", "--formatter", "json", "name", "policy"];
    let found: Vec<Value> = serde_json::from_str(&rabbit.ctl(&list).await.unwrap()).unwrap();
    let own = format!("{}.", env.prefix);
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    let ours = found.iter().filter_map(|queue| {
        Some((queue["name"].as_str()?.strip_prefix(&own)?, queue["policy"].as_str()?))
    });
    for (name, policy) in ours {
        let kind = name.split('.').next().unwrap();
        assert_eq!(policy, format!("{}-{kind}", env.prefix), "{name}");
        *counts.entry(kind).or_default() += 1;
    }
    assert_eq!(counts, [("audit", 1), ("dead", 16), ("jobs", 1), ("wait", 11)].into());
    // The declared arguments still apply: a declaration finds no difference, and nothing is
    // dropped.
    let env = env.declare().await;
    for n in 0..3 {
        env.dead_letter(Class::Risk, &job(&format!("r-{n}"), "p", 100), FieldTable::default())
            .await;
    }
    for browse in 0..8 {
        let (_, listed) = env.run_json(&["dead", "list"]).await;
        assert_eq!(listed[0]["letters"], 3, "browse {browse}");
    }
    for n in 0..3 {
        env.publish(&job(&format!("c-{n}"), "p", 100)).await;
    }
    assert_eq!(env.queued().await.get("jobs"), Some(&3), "the head is not dropped");
    let state = format!(
        "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{own}jobs\">>)), \
         {{ok, {{_, State}}, _}} = ra:local_query(amqqueue:get_pid(Q), fun(S) -> S end), \
         lists:flatten(io_lib:format(\"~p\", [State]))."
    );
    let state = rabbit.ctl(&["eval", &state]).await.unwrap();
    assert!(state.contains("at_least_once"), "{state}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_needs_only_read_on_jobs_and_write_on_its_exchanges() {
    let rabbit = shared_rabbit().await.unwrap();
    let env = open().await.set("BROKER__TOPOLOGY", "check").set("RETRY__SCHEDULE", "5s,1h");
    import(rabbit, &env).await;
    let (prefix, user) = (&env.prefix, format!("user-{}", env.prefix));
    let read = format!("^{prefix}\\.jobs$");
    let write = format!("^{prefix}\\.(wait|dead|results)$");
    rabbit.ctl(&["add_user", &user, "secret"]).await.unwrap();
    rabbit.ctl(&["set_permissions", "-p", "/", &user, "", &write, &read]).await.unwrap();
    let url = format!("amqp://{user}:secret@127.0.0.1:{}/%2f", rabbit.port());
    let env = env.set("BROKER__URL", &url);

    let mut worker = env.worker().await;
    env.script("p-risk", json!([{"answer": {"code": "RISK_REJECT"}, "times": "forever"}]));
    env.script("p-once", json!([{"answer": {"code": "UNKNOWN_EXCEPTION"}}]));
    env.publish(&job("c", "p", 100)).await;
    env.publish(&job("r", "p-risk", 100)).await;
    env.publish(&job("again", "p-once", 100)).await;
    env.ends_as("c", "CAPTURED", None).await;
    env.ends_as("r", "FAILED", Some("risk")).await;
    // This job passes through a wait queue and comes back.
    env.ends_as("again", "CAPTURED", None).await;
    assert_eq!(worker.drain().await, Some(0));
    let declares = env.set("BROKER__TOPOLOGY", "declare").program(&["check"]).output().unwrap();
    assert_eq!(declares.status.code(), Some(1), "declare needs configure permission");
}
