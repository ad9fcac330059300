//! Compares the metrics in the dashboard and in docs/METRICS.md with those that a worker exports.
#![expect(clippy::unwrap_used, reason = "a failure fails the test and shows its place")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use promql_parser::{
    label::MatchOp,
    parser::{self, Expr, LabelModifier, VectorSelector},
    util::{ExprVisitor, walk_expr},
};
use serde_json::{Value, json};
use testkit::{LIMIT, http, poll::eventually};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::sync::OnceCell;

use crate::{
    env::{ItEnv, job},
    tidy::{read, sources},
};

const DASHBOARD: &str = "deploy/helm/capture-worker/dashboards/capture-worker.json";
/// The labels that Prometheus and Kubernetes add to scraped samples.
const OF_THE_SCRAPE: [&str; 3] = ["namespace", "job", "pod"];

/// The samples of one worker: the values of each label, by the metric's name without its prefix.
type Samples = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

/// What a worker exports that has captured, given up, retried and deferred. It is also written to
/// a file, for promtool.
async fn scrape() -> &'static str {
    static SCRAPE: OnceCell<String> = OnceCell::const_new();
    SCRAPE.get_or_init(scrape_a_busy_worker).await
}

async fn scrape_a_busy_worker() -> String {
    let env = ItEnv::open().await.set("RETRY__SCHEDULE", "30m").set("RETRY__DEFER_SCHEDULE", "1h");
    let worker = env.worker().await;
    env.script("p-risk", json!([{"answer": {"code": "RISK_REJECT"}, "times": "forever"}]));
    env.script("p-u", json!([{"answer": {"code": "UNKNOWN_EXCEPTION"}, "times": "forever"}]));
    env.publish(&job("c", "p", 100)).await;
    env.publish(&job("r", "p-risk", 100)).await;
    let mut expiring: Value = serde_json::from_slice(&job("u", "p-u", 100)).unwrap();
    let soon = (OffsetDateTime::now_utc() + Duration::minutes(35)).format(&Rfc3339).unwrap();
    expiring["expiresAt"] = soon.into();
    env.publish(expiring.to_string().as_bytes()).await;
    let scrape = async |wanted: &'static [&'static str]| {
        eventually("all is counted", LIMIT, async || {
            let scrape = http::get(&worker.url, "/metrics").await.ok()?;
            wanted.iter().all(|sample| scrape.contains(sample)).then_some(scrape)
        })
        .await
    };
    // From now on the payment has an in-doubt block: its next job is deferred.
    scrape(&["settlements_total{settlement=\"retry\""]).await;
    env.publish(&job("d", "p-u", 100)).await;
    let scrape = scrape(&[
        "settlements_total{settlement=\"captured\"",
        "settlements_total{settlement=\"dead\"",
        "settlements_total{settlement=\"deferred\"",
        "queue_messages{kind=\"dead\"",
        "result=\"confirmed\"",
    ])
    .await;
    fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join("metrics.txt"), &scrape).unwrap();
    scrape
}

fn samples(scrape: &str) -> Samples {
    let mut samples = Samples::new();
    let lines = scrape.lines().filter_map(|line| line.strip_prefix("capture_worker_"));
    for line in lines {
        let end = line.find(['{', ' ']).unwrap();
        let labels = samples.entry(line[..end].to_owned()).or_default();
        let pairs = line[end..].strip_prefix('{').and_then(|rest| rest.split_once('}'));
        for pair in pairs.iter().flat_map(|(pairs, _)| pairs.split(',')) {
            let (label, value) = pair.split_once('=').unwrap();
            let values = labels.entry(label.to_owned()).or_default();
            values.insert(value.trim_matches('"').to_owned());
        }
    }
    samples
}

/// The metrics by the names that people know, with their labels: histograms without the suffixes of
/// their samples.
fn metrics(scrape: &str) -> BTreeMap<String, BTreeSet<String>> {
    let samples = samples(scrape);
    let types = scrape.lines().filter_map(|line| line.strip_prefix("# TYPE capture_worker_"));
    let named = types.map(|line| {
        let (family, kind) = line.split_once(' ').unwrap();
        let (name, sample) = match kind {
            "counter" => (format!("{family}_total"), format!("{family}_total")),
            "info" => (format!("{family}_info"), format!("{family}_info")),
            "histogram" => (family.to_owned(), format!("{family}_count")),
            _ => (family.to_owned(), family.to_owned()),
        };
        let labels = samples.get(&sample);
        let labels = labels.unwrap_or_else(|| panic!("{sample} has no sample"));
        (name, labels.keys().cloned().collect())
    });
    named.collect()
}

/// The words between backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_md_names_every_metric_with_its_labels_and_no_other() {
    let document = read("docs/METRICS.md");
    let table = document.lines().skip_while(|line| !line.starts_with("| metric `capture_worker_"));
    let mut documented = BTreeMap::new();
    for row in table.skip(2).take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.split('|').collect();
        let labels: BTreeSet<String> = quoted(cells[2]).map(str::to_owned).collect();
        for name in quoted(cells[1]) {
            assert_eq!(documented.insert(name.to_owned(), labels.clone()), None, "{name} twice");
        }
    }
    assert_eq!(documented, metrics(scrape().await));
}

/// The selectors and groupings of an expression.
#[derive(Default)]
struct Asked {
    selectors: Vec<VectorSelector>,
    grouped_by: BTreeSet<String>,
}

impl ExprVisitor for Asked {
    type Error = std::convert::Infallible;

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, Self::Error> {
        match expr {
            Expr::VectorSelector(selector) => self.selectors.push(selector.clone()),
            Expr::MatrixSelector(matrix) => self.selectors.push(matrix.vs.clone()),
            Expr::Aggregate(aggregate) => {
                if let Some(LabelModifier::Include(by)) = &aggregate.modifier {
                    self.grouped_by.extend(by.labels.iter().cloned());
                }
            }
            _ => {}
        }
        Ok(true)
    }
}

/// Each expression of the dashboard, with the labels in its legend.
fn expressions(dashboard: &Value) -> Vec<(String, BTreeSet<String>)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let legend = text(&target["legendFormat"]);
            let labels = legend.split("{{").skip(1).map(|rest| rest.split("}}").next().unwrap());
            found.push((text(&target["expr"]), labels.map(str::to_owned).collect()));
        }
    }
    let annotations = dashboard["annotations"]["list"].as_array().unwrap();
    found.extend(annotations.iter().map(|list| (text(&list["expr"]), BTreeSet::new())));
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let query = text(&variable["definition"]);
        if let Some((selector, label)) =
            query.strip_prefix("label_values(").and_then(|rest| rest.rsplit_once(", "))
        {
            let label = label.trim_end_matches(')').to_owned();
            assert!(OF_THE_SCRAPE.contains(&label.as_str()), "{query}");
            found.push((selector.to_owned(), BTreeSet::new()));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn every_dashboard_expression_selects_exported_metrics() {
    let samples = samples(scrape().await);
    let program: String = sources("src").into_iter().map(|(_, text)| text).collect();
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let expressions = expressions(&dashboard);
    let mut shown = BTreeSet::new();
    for (expression, legend) in &expressions {
        // Grafana replaces these variables by durations.
        let filled = expression.replace("$__rate_interval", "5m").replace("$__range", "6h");
        let parsed = parser::parse(&filled).unwrap_or_else(|why| panic!("{expression}: {why}"));
        let mut asked = Asked::default();
        walk_expr(&mut asked, &parsed).unwrap();
        let mut known: BTreeSet<&str> = OF_THE_SCRAPE.into();
        for selector in &asked.selectors {
            let name = selector.name.as_deref().unwrap().strip_prefix("capture_worker_").unwrap();
            let labels = samples.get(name).unwrap_or_else(|| panic!("{name} is not exported"));
            known.extend(labels.keys().map(String::as_str));
            shown.insert(name.to_owned());
            for matcher in &selector.matchers.matchers {
                if OF_THE_SCRAPE.contains(&matcher.name.as_str()) {
                    assert!(matches!(matcher.op, MatchOp::Re(_)), "several values possible");
                    continue;
                }
                let values = labels.get(&matcher.name);
                let values = values.unwrap_or_else(|| panic!("{name} has no {}", matcher.name));
                for value in matcher.value.split('|') {
                    // A value that this worker did not export must at least occur in the source.
                    let exists =
                        values.contains(value) || program.contains(&format!("\"{value}\""));
                    assert!(exists, "{expression}: no {} is {value}", matcher.name);
                }
            }
        }
        assert!(!asked.selectors.is_empty(), "{expression} selects no metric");
        for label in &asked.grouped_by {
            assert!(known.contains(label.as_str()), "{expression}: no label {label}");
        }
        assert!(legend.is_subset(&asked.grouped_by), "{expression}: the legend names {legend:?}");
    }
    // The dashboard shows every metric that a worker exports.
    for name in samples.keys().filter(|name| !name.ends_with("_sum")) {
        let bucket = name.strip_suffix("_count").map(|family| format!("{family}_bucket"));
        let is_shown = shown.contains(name) || bucket.is_some_and(|name| shown.contains(&name));
        assert!(is_shown, "the dashboard shows no {name}");
    }
}
