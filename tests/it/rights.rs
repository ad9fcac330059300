//! The permissions that each command needs at the broker: exactly these suffice. If one is missing,
//! a worker and `check` report it. The patterns are those of `docs/OPERATIONS.md`.
#![expect(clippy::unwrap_used, reason = "a failure fails the test and shows its place")]

use capture_worker::domain::capture::class::Class;
use serde_json::json;
use testkit::servers::{PrivateRabbit, shared_rabbit};

use crate::{
    env::{ItEnv, job},
    tidy::read as read_file,
};

/// The patterns for configure, write and read, with the prefix `capture`.
type Rights<'a> = [&'a str; 3];

const DECLARES: Rights<'_> = [
    r"^capture\.(jobs|wait|dead|audit|results)(\..+)?$",
    r"^capture\.(jobs|wait|dead|audit|results)(\..+)?$",
    r"^capture\.(jobs|dead|audit|wait(\..+)?)$",
];
const CHECKS: Rights<'_> = ["", r"^capture\.(wait|dead|results)$", r"^capture\.jobs$"];
const SUBMITS: Rights<'_> = ["", r"^capture\.jobs$", ""];
const OPERATES: Rights<'_> = [
    r"^capture\.(dead\..+|audit)\.look$",
    r"^capture\.(jobs|dead|results|audit)$",
    r"^capture\.(dead\..+|audit)$",
];

/// The test environment with a user that has these permissions and no others.
async fn with(rabbit: &PrivateRabbit, env: ItEnv, topology: &str, rights: Rights<'_>) -> ItEnv {
    let name = format!("rights-{}", env.prefix);
    // An existing user only gets other permissions.
    drop(rabbit.ctl(&["add_user", &name, "secret"]).await);
    let own = rights.map(|pattern| pattern.replace("capture", &env.prefix));
    let [configure, write, read] = &own;
    rabbit.ctl(&["set_permissions", "-p", "/", &name, configure, write, read]).await.unwrap();
    let url = format!("amqp://{name}:secret@127.0.0.1:{}/%2f", rabbit.port());
    env.set("BROKER__URL", &url).set("BROKER__TOPOLOGY", topology)
}

fn code(env: &ItEnv, arguments: &[&str]) -> Option<i32> {
    env.program(arguments).output().unwrap().status.code()
}

/// Runs jobs that are captured, dead-lettered, and retried after a wait.
async fn works(env: &ItEnv) {
    let mut worker = env.worker().await;
    env.script("p-once", json!([{"answer": {"code": "UNKNOWN_EXCEPTION"}}]));
    env.publish(&job("c", "p", 100)).await;
    env.publish(&job("r", "sim-RISK_REJECT-1", 100)).await;
    env.publish(&job("again", "p-once", 100)).await;
    env.ends_as("c", "CAPTURED", None).await;
    env.ends_as("r", "FAILED", Some("risk")).await;
    env.ends_as("again", "CAPTURED", None).await;
    env.dead(Class::Risk, 1).await;
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_declares_needs_only_names_of_its_prefix() {
    let rabbit = shared_rabbit().await.unwrap();
    let env = with(rabbit, ItEnv::open().await, "declare", DECLARES).await;
    works(&env).await;
    assert_eq!(code(&env, &["check"]), Some(0));
    for (at, less) in [
        (0, r"^capture\.(jobs|wait|dead|audit)(\..+)?$"),
        (0, r"^capture\.(jobs|wait|dead|audit|results)$"),
        (1, r"^capture\.(wait|dead|audit|results)(\..+)?$"),
        (1, r"^capture\.(jobs|wait|dead|audit)(\..+)?$"),
        (1, r"^capture\.(jobs|wait|dead|audit|results)$"),
        (2, r"^capture\.(jobs|dead|audit|wait)$"),
        (2, r"^capture\.(dead|audit|wait(\..+)?)$"),
        (2, r"^capture\.(jobs|dead|wait(\..+)?)$"),
    ] {
        let mut rights = DECLARES;
        rights[at] = less;
        let env = with(rabbit, ItEnv::open().await, "declare", rights).await;
        assert_eq!(code(&env, &["check"]), Some(1), "{rights:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_declare_needs_three_exchanges_and_one_queue() {
    let rabbit = shared_rabbit().await.unwrap();
    let mut env = ItEnv::open().await.declare().await;
    for topology in ["check", "none"] {
        env = with(rabbit, env, topology, CHECKS).await;
        assert_eq!(code(&env, &["check"]), Some(0), "{topology}");
        let mut worker = env.worker().await;
        let id = format!("c-{topology}");
        env.publish(&job(&id, &id, 100)).await;
        env.ends_as(&id, "CAPTURED", None).await;
        assert_eq!(worker.drain().await, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn submit_needs_write_permission_on_the_jobs_exchange_only() {
    let rabbit = shared_rabbit().await.unwrap();
    let folder = testkit::guardian::folder().unwrap();
    let file = folder.path().join("jobs.json");
    std::fs::write(&file, job("c", "p", 100)).unwrap();
    let arguments = ["submit", file.to_str().unwrap()];
    let mut env = ItEnv::open().await.declare().await;
    for topology in ["check", "none"] {
        env = with(rabbit, env, topology, SUBMITS).await;
        assert_eq!(code(&env, &arguments), Some(0), "{topology}");
    }
    env = with(rabbit, env, "check", ["", "^$", ""]).await;
    let refused = env.program(&arguments).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("ACCESS_REFUSED"), "{said}");
    assert_eq!(env.queued().await, [("jobs".to_owned(), 2)].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_needs_the_documented_permissions_only() {
    let rabbit = shared_rabbit().await.unwrap();
    let env = ItEnv::open().await;
    let mut worker = env.worker().await;
    for n in 0..3 {
        env.publish(&job(&format!("r-{n}"), &format!("sim-RISK_REJECT-{n}"), 100)).await;
        env.ends_as(&format!("r-{n}"), "FAILED", Some("risk")).await;
    }
    assert_eq!(worker.drain().await, Some(0));
    let env = with(rabbit, env, "none", OPERATES).await;
    let acts: [&[&str]; 6] = [
        &["dead", "list"],
        &["dead", "show", "r-0"],
        &["dead", "export", "--all"],
        &["dead", "replay", "--id", "r-1", "--yes"],
        &["dead", "discard", "--id", "r-2", "--reason", "test", "--yes"],
        &["audit", "--all"],
    ];
    for arguments in acts {
        let done = env.program(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!((done.status.code(), said.contains("permission")), (Some(0), false), "{said}");
    }
    assert_eq!(env.queued().await["dead.risk"], 1);
    // Without write permission on the target of a replay, the command reports it, and the dead
    // letter stays.
    let less = [OPERATES[0], r"^capture\.(results|audit)$", OPERATES[2]];
    let env = with(rabbit, env, "none", less).await;
    let refused = env.program(&["dead", "replay", "--id", "r-0", "--yes"]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("ACCESS_REFUSED"), "{said}");
    assert_eq!(env.queued().await["dead.risk"], 1);
}

#[test]
fn the_documents_list_the_tested_permissions() {
    // A bar in a table is escaped.
    let page = read_file("docs/OPERATIONS.md").replace("\\|", "|");
    for pattern in [DECLARES, CHECKS, SUBMITS, OPERATES].concat() {
        assert!(page.contains(&format!("'{pattern}'")), "{pattern} in docs/OPERATIONS.md");
    }
    let chart = read_file("deploy/helm/capture-worker/templates/rabbitmqtopology.yaml");
    for pattern in &CHECKS[1..] {
        let rendered = pattern.replace("capture", "%s");
        assert!(chart.contains(&rendered), "{rendered} in the chart's permission");
    }
}
