//! The project's own rules: which module may use which crate and which other module.

use std::{fs, path::Path};

/// Where each outside crate may be named; everything under a folder belongs to it.
const ROOMS: &[(&str, &[&str])] = &[
    ("lapin", &["src/broker"]),
    ("redis", &["src/lease/redis"]),
    ("reqwest", &["src/gateway"]),
    ("axum", &["src/http", "src/sandbox"]),
    ("hyper", &["src/http"]),
    ("hyper_util", &["src/http"]),
    ("clap", &["src/cli"]),
    ("clap_complete", &["src/cli/completions.rs"]),
    ("clap_mangen", &["src/cli/manpage.rs"]),
    ("comfy_table", &["src/cli/table.rs"]),
    ("indicatif", &["src/cli"]),
    ("whoami", &["src/cli"]),
    ("sha2", &["src/domain/capture/family.rs", "src/dead_letters/record.rs"]),
    ("prometheus_client", &["src/telemetry"]),
    ("tracing_subscriber", &["src/telemetry"]),
    ("tracing_opentelemetry", &["src/telemetry"]),
    ("opentelemetry", &["src/telemetry"]),
    ("opentelemetry_sdk", &["src/telemetry"]),
    ("opentelemetry_otlp", &["src/telemetry"]),
    ("aws_lc_rs", &["src/gateway/signing.rs"]),
    ("toml", &["src/config/sources.rs"]),
    ("url", &["src/broker/address.rs", "src/lease/redis/address.rs", "src/config/relations.rs"]),
    ("rust_decimal", &["src/domain/money.rs"]),
    ("iso_currency", &["src/domain/money.rs"]),
    ("anyhow", &["src/main.rs", "src/cli"]),
    ("icu_properties", &["src/sanitize.rs"]),
    ("promql_parser", &["tests/it/dashboards.rs"]),
];

/// Which parts of the program a room must not know.
const STRANGERS: &[(&str, &[&str])] = &[
    (
        "src/domain",
        &[
            "dead_letters",
            "gateway",
            "lease",
            "broker",
            "worker",
            "sandbox",
            "config",
            "telemetry",
            "cli",
            "http",
        ],
    ),
    (
        "src/gateway",
        &[
            "dead_letters",
            "lease",
            "broker",
            "worker",
            "sandbox",
            "config",
            "telemetry",
            "cli",
            "http",
        ],
    ),
    (
        "src/lease",
        &[
            "dead_letters",
            "gateway",
            "broker",
            "worker",
            "sandbox",
            "config",
            "telemetry",
            "cli",
            "http",
        ],
    ),
    (
        "src/broker",
        &[
            "dead_letters",
            "gateway",
            "lease",
            "worker",
            "sandbox",
            "config",
            "telemetry",
            "cli",
            "http",
        ],
    ),
    ("src/sandbox", &["lease", "broker", "worker", "config", "telemetry", "cli", "http"]),
    ("src/worker", &["dead_letters", "sandbox", "config", "cli", "http"]),
    ("src/dead_letters", &["worker", "sandbox", "config", "telemetry", "cli", "http"]),
    (
        "src/capture_status.rs",
        &["worker", "broker", "dead_letters", "sandbox", "config", "telemetry", "cli", "http"],
    ),
];

const LINES_MAX: usize = 420;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_default()
}

/// Every Rust file under a folder, by its path from the root, with its text.
pub(crate) fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push((from_root(&path), fs::read_to_string(&path).unwrap_or_default()));
            }
        }
    }
    assert!(!found.is_empty(), "nothing in {folder}");
    found
}

fn from_root(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// The lines that name a path such as `lapin::…`, but not `crate::lapin::…` or `my_lapin::…`.
fn names<'t>(text: &'t str, name: &'t str) -> impl Iterator<Item = &'t str> {
    text.lines().filter(move |line| {
        let code = line.split("//").next().unwrap_or_default();
        code.match_indices(name).any(|(at, _)| {
            let before = code[..at].chars().next_back();
            let after = code[at + name.len()..].chars().next();
            let starts = !before.is_some_and(|c| c.is_alphanumeric() || "_:.\"".contains(c));
            starts && after == Some(':') && code[at + name.len()..].starts_with("::")
        })
    })
}

#[test]
fn each_outside_crate_has_one_place() {
    for (path, text) in sources("src") {
        for (name, rooms) in ROOMS {
            let at_home = rooms.iter().any(|room| path.starts_with(room));
            let found = names(&text, name).next();
            assert!(
                at_home || found.is_none(),
                "{path} names {name}: {}",
                found.unwrap_or_default()
            );
        }
    }
}

/// The parts of this program that a file names: `crate::broker::…`, and those in `use crate::{…}`.
fn parts_named(text: &str) -> Vec<&str> {
    let mut parts: Vec<&str> = text.split("crate::").skip(1).map(first_word).collect();
    for block in text.split("use crate::{\n").skip(1) {
        let lines = block.lines().take_while(|line| *line != "};");
        let items = lines.filter_map(|line| line.strip_prefix("    "));
        parts.extend(items.map(first_word).filter(|word| !word.is_empty()));
    }
    parts
}

fn first_word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

#[test]
fn rooms_know_only_those_they_may() {
    for (path, text) in sources("src") {
        let strangers = STRANGERS.iter().find(|(room, _)| path.starts_with(room));
        for stranger in strangers.map(|(_, strangers)| *strangers).unwrap_or_default() {
            assert!(!parts_named(&text).contains(stranger), "{path} knows {stranger}");
        }
    }
}

#[test]
fn the_core_has_no_clock_and_does_no_io() {
    for (path, text) in sources("src/domain") {
        for word in [
            "async ",
            ".await",
            "Instant",
            "SystemTime",
            "now_utc",
            "std::fs",
            "std::net",
            "tokio",
            "tracing",
        ] {
            let found =
                text.lines().find(|line| line.contains(word) && !line.trim().starts_with("//"));
            assert!(found.is_none(), "{path}: {}", found.unwrap_or_default());
        }
    }
}

#[test]
fn files_are_short_and_nothing_is_put_off() {
    for (path, text) in ["src", "tests", "benches", "examples"].into_iter().flat_map(sources) {
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{path} has {lines} lines");
        if path.ends_with("tidy.rs") {
            continue;
        }
        for word in
            ["FIXME", "TODO", "todo!(", "unimplemented!(", "#[ignore", "#[allow", "#![allow"]
        {
            assert!(!text.contains(word), "{path} has {word}");
        }
    }
}
