//! The permissions that each command needs at the broker: exactly these suffice. If one is missing,
//! a worker and `check` report it. The patterns are those of `docs/OPERATIONS.md`.
#![expect(clippy::unwrap_used, reason = "a failure fails the test and shows its place")]

use capture_worker::domain::capture::class::Class;
use serde_json::json;

use crate::{
    shop::{Shop, job},
    support::servers::{PrivateRabbit, shared_rabbit},
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
async fn with(rabbit: &PrivateRabbit, shop: Shop, topology: &str, rights: Rights<'_>) -> Shop {
    let name = format!("rights-{}", shop.prefix);
    // An existing user only gets other permissions.
    drop(rabbit.ctl(&["add_user", &name, "secret"]).await);
    let own = rights.map(|pattern| pattern.replace("capture", &shop.prefix));
    let [configure, write, read] = &own;
    rabbit.ctl(&["set_permissions", "-p", "/", &name, configure, write, read]).await.unwrap();
    let url = format!("amqp://{name}:secret@127.0.0.1:{}/%2f", rabbit.port());
    shop.set("BROKER__URL", &url).set("BROKER__TOPOLOGY", topology)
}

fn code(shop: &Shop, arguments: &[&str]) -> Option<i32> {
    shop.program(arguments).output().unwrap().status.code()
}

/// Runs jobs that are captured, dead-lettered, and retried after a wait.
async fn works(shop: &Shop) {
    let mut worker = shop.worker().await;
    shop.script("p-once", json!([{"answer": {"code": "UNKNOWN_EXCEPTION"}}]));
    shop.publish(&job("c", "p", 100)).await;
    shop.publish(&job("r", "sim-RISK_REJECT-1", 100)).await;
    shop.publish(&job("again", "p-once", 100)).await;
    shop.ends_as("c", "CAPTURED", None).await;
    shop.ends_as("r", "FAILED", Some("risk")).await;
    shop.ends_as("again", "CAPTURED", None).await;
    shop.dead(Class::Risk, 1).await;
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_declares_needs_only_names_of_its_prefix() {
    let rabbit = shared_rabbit().await.unwrap();
    let shop = with(rabbit, Shop::open().await, "declare", DECLARES).await;
    works(&shop).await;
    assert_eq!(code(&shop, &["check"]), Some(0));
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
        let shop = with(rabbit, Shop::open().await, "declare", rights).await;
        assert_eq!(code(&shop, &["check"]), Some(1), "{rights:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_declare_needs_three_exchanges_and_one_queue() {
    let rabbit = shared_rabbit().await.unwrap();
    let mut shop = Shop::open().await.declare().await;
    for topology in ["check", "none"] {
        shop = with(rabbit, shop, topology, CHECKS).await;
        assert_eq!(code(&shop, &["check"]), Some(0), "{topology}");
        let mut worker = shop.worker().await;
        let id = format!("c-{topology}");
        shop.publish(&job(&id, &id, 100)).await;
        shop.ends_as(&id, "CAPTURED", None).await;
        assert_eq!(worker.drain().await, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn submit_needs_write_permission_on_the_jobs_exchange_only() {
    let rabbit = shared_rabbit().await.unwrap();
    let folder = crate::support::guardian::folder().unwrap();
    let file = folder.path().join("jobs.json");
    std::fs::write(&file, job("c", "p", 100)).unwrap();
    let arguments = ["submit", file.to_str().unwrap()];
    let mut shop = Shop::open().await.declare().await;
    for topology in ["check", "none"] {
        shop = with(rabbit, shop, topology, SUBMITS).await;
        assert_eq!(code(&shop, &arguments), Some(0), "{topology}");
    }
    shop = with(rabbit, shop, "check", ["", "^$", ""]).await;
    let refused = shop.program(&arguments).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("ACCESS_REFUSED"), "{said}");
    assert_eq!(shop.queued().await, [("jobs".to_owned(), 2)].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_needs_the_documented_permissions_only() {
    let rabbit = shared_rabbit().await.unwrap();
    let shop = Shop::open().await;
    let mut worker = shop.worker().await;
    for n in 0..3 {
        shop.publish(&job(&format!("r-{n}"), &format!("sim-RISK_REJECT-{n}"), 100)).await;
        shop.ends_as(&format!("r-{n}"), "FAILED", Some("risk")).await;
    }
    assert_eq!(worker.drain().await, Some(0));
    let shop = with(rabbit, shop, "none", OPERATES).await;
    let acts: [&[&str]; 6] = [
        &["dead", "list"],
        &["dead", "show", "r-0"],
        &["dead", "export", "--all"],
        &["dead", "replay", "--id", "r-1", "--yes"],
        &["dead", "discard", "--id", "r-2", "--reason", "test", "--yes"],
        &["audit", "--all"],
    ];
    for arguments in acts {
        let done = shop.program(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!((done.status.code(), said.contains("permission")), (Some(0), false), "{said}");
    }
    assert_eq!(shop.queued().await["dead.risk"], 1);
    // Without write permission on the target of a replay, the command reports it, and the dead
    // letter stays.
    let less = [OPERATES[0], r"^capture\.(results|audit)$", OPERATES[2]];
    let shop = with(rabbit, shop, "none", less).await;
    let refused = shop.program(&["dead", "replay", "--id", "r-0", "--yes"]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("ACCESS_REFUSED"), "{said}");
    assert_eq!(shop.queued().await["dead.risk"], 1);
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
