//! Copies of one capture among the dead letters, whose money counts once; and what the command line
//! prints on a terminal, into a file, and about itself.
#![expect(clippy::unwrap_used, reason = "a failure fails the test and shows its place")]

use std::{
    fs::File,
    io::Read as _,
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use capture_worker::domain::capture::class::Class;
use nix::{
    pty::{Winsize, openpty},
    sys::signal::Signal,
};
use serde_json::{Value, json};
use testkit::{LIMIT, guardian::Guarded, poll::eventually, processes::worker_command};

use crate::{
    commands::run,
    dead_letters::written,
    env::{ItEnv, job},
    replays::NOW,
};

/// HKD 738.88 twice: two copies of one dead letter, and nothing else.
async fn env_with_copies() -> ItEnv {
    let env = ItEnv::open().await.declare().await;
    for _ in 0..2 {
        let copy = job("ship-7", "pay-7", 73_888);
        env.dead_letter(Class::Unreachable, &copy, written("", false, NOW)).await;
    }
    env
}

/// The cells of the line that begins with this one.
fn row<'t>(output: &'t str, first: &str) -> Vec<&'t str> {
    let mut rows = output.lines().map(|line| {
        line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect::<Vec<_>>()
    });
    rows.find(|cells| cells.first() == Some(&first)).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_money_of_two_copies_is_counted_once() {
    let env = env_with_copies().await;
    let (_, listed, _) = env.run(&["dead", "list"]).await;
    let cells = row(&listed, "unreachable");
    assert_eq!(cells[1..3], ["2", "1"], "{listed}");
    assert!(cells.contains(&"HKD 738.88"), "{listed}");
    let (_, listed) = env.run_json(&["dead", "list"]).await;
    let class = &listed[0];
    assert_eq!((&class["letters"], &class["distinctCaptures"]), (&json!(2), &json!(1)));
    assert_eq!(class["money"], json!({"HKD": "73888"}));

    let replay = ["dead", "replay", "--all", "--dry-run"];
    let (_, plan, _) = env.run(&replay).await;
    let end = plan.lines().last().unwrap_or_default();
    assert!(end.starts_with("would send 2 (1 distinct capture, HKD 738.88)"), "{plan}");
    let (_, plan) = env.run_json(&replay).await;
    assert_eq!((&plan["sent"], &plan["distinctCaptures"]), (&json!(2), &json!(1)), "{plan}");
    let discard = ["dead", "discard", "--all", "--reason", "none", "--dry-run"];
    let (_, plan, _) = env.run(&discard).await;
    let end = plan.lines().last().unwrap_or_default();
    assert!(end.starts_with("would discard 2 (1 distinct capture, HKD 738.88)"), "{plan}");
    let (_, plan) = env.run_json(&discard).await;
    assert_eq!((&plan["discarded"], &plan["distinctCaptures"]), (&json!(2), &json!(1)), "{plan}");

    // One more copy in another class, with a larger amount, and a dead letter without an id.
    env.dead_letter(Class::InDoubt, &job("ship-7", "pay-7", 80_000), written("", false, NOW)).await;
    env.dead_letter(Class::Malformed, b"{", written("", false, NOW)).await;
    let (_, listed, _) = env.run(&["dead", "list"]).await;
    for (first, dead_letters, distinct, money) in [
        ("unreachable", "2", "1", "HKD 738.88"),
        ("in_doubt", "1", "1", "HKD 800.00"),
        ("malformed", "1", "1", "1 without amount"),
        ("total", "4", "2", "HKD 800.00, 1 without amount"),
    ] {
        let cells = row(&listed, first);
        assert_eq!(cells[1..3], [dead_letters, distinct], "{listed}");
        assert!(cells.contains(&money), "{money}: {listed}");
    }
    let (_, listed) = env.run_json(&["dead", "list"]).await;
    assert_eq!(listed.as_array().unwrap().len(), 3, "the total is not a class");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_copies_of_one_parent_are_one_capture_in_a_plan() {
    let env = ItEnv::open().await.declare().await;
    env.sandbox_has_seen("pay-8").await;
    for _ in 0..2 {
        let parent = job("ship-8", "pay-8", 100);
        env.dead_letter(Class::Risk, &parent, written("RISK_REJECT", true, NOW)).await;
    }
    let (exit, plan) = env.run_json(&["dead", "replay", "--all", "--dry-run"]).await;
    assert_eq!((exit, &plan["sent"], &plan["distinctCaptures"]), (Some(0), &json!(2), &json!(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_on_money_lets_the_second_copy_through() {
    let env = env_with_copies().await;
    env.dead_letter(Class::Unreachable, &job("ship-9", "pay-9", 1), written("", false, NOW)).await;
    let limited = |max: &'static str, dry_run: &'static [&'static str]| {
        let words = [&["dead", "replay", "--all", "--max-money", max], dry_run].concat();
        let env = &env;
        async move { env.run_json(&words).await }
    };
    for (max, sent, refused, distinct) in
        [("HKD=73887", 1, 2, 1), ("HKD=73888", 2, 1, 1), ("HKD=73889", 3, 0, 2)]
    {
        let (_, plan) = limited(max, &["--dry-run"]).await;
        assert_eq!((&plan["sent"], &plan["refused"]), (&json!(sent), &json!(refused)), "{max}");
        assert_eq!(plan["distinctCaptures"], distinct, "{max}");
    }
    let (exit, done) = limited("HKD=73888", &[]).await;
    assert_eq!((exit, &done["sent"], &done["refused"]), (Some(1), &json!(2), &json!(1)), "{done}");
    assert_eq!(done["distinctCaptures"], 1);
    assert_eq!(env.dead_count(Class::Unreachable).await, 1);
}

/// A command whose settings could not be loaded.
fn with_broken_settings(arguments: &[&str]) -> Command {
    let arguments = [&["--config", "/nonexistent/worker.toml"], arguments].concat();
    let mut program = worker_command(&arguments);
    program.env("CAPTURE__BROKER__PREFETCH", "none").env("CAPTURE__NO__SUCH_KEY", "1");
    program
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_and_manual_pages_need_no_settings() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let (code, script, errors) = run(with_broken_settings(&["completions", shell])).await;
        assert_eq!((code, errors.as_str()), (Some(0), ""), "{shell}");
        assert!(script.contains("dead") && script.contains("max-money"), "{shell}: {script}");
    }
    for (arguments, title) in [
        (&["manpage"][..], ".TH capture-worker 1 "),
        (&["manpage", "dead", "replay"], ".TH capture-worker-dead-replay 1 "),
        (&["manpage", "dlq"], ".TH capture-worker-dead 1 "),
    ] {
        let (code, page, errors) = run(with_broken_settings(arguments)).await;
        assert_eq!((code, errors.as_str()), (Some(0), ""), "{arguments:?}");
        let mut lines = page
            .lines()
            .skip_while(|line| line.starts_with([' ', '.']) && !line.starts_with(".TH"));
        assert!(lines.next().is_some_and(|line| line.starts_with(title)), "{page}");
        assert!(page.contains(".SH EXAMPLES\n"), "{page}");
    }
    for arguments in [
        &["completions", "tcsh"][..],
        &["completions"],
        &["manpage", "fly"],
        &["manpage", "dead", "replay", "fly"],
    ] {
        let (code, output, errors) = run(with_broken_settings(arguments)).await;
        assert_eq!((code, output.as_str()), (Some(64), ""), "{arguments:?}");
        assert!(errors.starts_with("error: "), "{arguments:?}: {errors}");
    }
}

/// A terminal of this width, and what is written to it.
fn terminal(columns: u16) -> (Stdio, Arc<Mutex<String>>) {
    let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = openpty(&size, None).unwrap();
    let shown = Arc::<Mutex<String>>::default();
    let sink = Arc::clone(&shown);
    std::thread::spawn(move || {
        let (mut terminal, mut bytes) = (File::from(terminal.master), [0; 4096]);
        // The read fails when the last program on the terminal has ended.
        while let Ok(count @ 1..) = terminal.read(&mut bytes) {
            let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
            sink.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
        }
    });
    (Stdio::from(terminal.slave), shown)
}

fn text_of(shown: &Mutex<String>) -> String {
    shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

impl ItEnv {
    /// What a command prints to a terminal of this width.
    async fn shown(&self, columns: u16, no_color: &str, arguments: &[&str]) -> String {
        let program = self.program(arguments);
        // A session of its own, so that the terminal of the person who runs the test is not asked
        // for its width.
        let mut command = Command::new("setsid");
        command.arg("--wait").arg(program.get_program()).args(program.get_args());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let (stdout, shown) = terminal(columns);
        command.env("TERM", "xterm").env("NO_COLOR", no_color);
        command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::null());
        let status = tokio::task::spawn_blocking(move || command.status());
        let status = tokio::time::timeout(LIMIT, status).await.expect("it ends").unwrap().unwrap();
        assert!(status.success(), "{arguments:?}: {status}");
        eventually("the output is on the terminal", LIMIT, async || {
            text_of(&shown).ends_with('\n')
        })
        .await;
        text_of(&shown)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_fit_a_terminal_and_are_plain_elsewhere() {
    let env = env_with_copies().await;
    let long = format!("ship-{}", "0123456789".repeat(5));
    env.dead_letter(Class::InDoubt, &job(&long, "pay-1", 100), written("", false, NOW)).await;
    let discard = ["dead", "discard", "--id", "ship-7", "--limit", "1", "--reason", "a", "--yes"];
    assert_eq!(env.run(&discard).await.0, Some(0));
    for (arguments, rows) in [
        (&["dead", "list"][..], 4),
        (&["dead", "list", "--class", "in_doubt,unreachable"], 4),
        (&["audit"], 2),
        (&["status", &long, "--payment", "pay-1"], 6),
    ] {
        let (code, output, _) = env.run(arguments).await;
        assert_eq!((code, output.lines().count()), (Some(0), rows), "one line per row: {output}");
        assert!(!output.contains('\u{1b}') && !output.contains('…'), "{output:?}");
        assert!(output.lines().all(|line| line == line.trim_end()), "{output:?}");
        let styled = env.shown(60, "", arguments).await;
        let has_titles = arguments[0] != "status";
        assert_eq!(styled.contains("\u{1b}[1m"), has_titles, "{arguments:?}: {styled:?}");
        let plain = env.shown(60, "1", arguments).await;
        assert!(!plain.contains('\u{1b}') && !plain.contains('…'), "{arguments:?}: {plain:?}");
        let widest = plain.lines().map(|line| line.trim_end().chars().count()).max();
        assert!(widest.is_some_and(|width| (40..=60).contains(&width)), "{arguments:?}: {plain}");
        assert!(plain.lines().count() > rows, "cells are wrapped: {plain}");
    }
    // The id is wrapped within its column, and nothing of it is lost.
    let shown = env.shown(60, "1", &["status", &long, "--payment", "pay-1"]).await;
    let id: String = shown.lines().take(2).map(|line| line.get(18..).unwrap_or_default()).collect();
    assert_eq!(id.replace('\r', ""), long, "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_on_a_terminal_have_color_unless_no_color_is_set() {
    for (no_color, is_colored) in [("", true), ("1", false)] {
        let env = ItEnv::open().await;
        let (stderr, shown) = terminal(100);
        let mut run = env.program(&["run"]);
        run.env("TERM", "xterm").env("NO_COLOR", no_color).stdout(Stdio::null()).stderr(stderr);
        let mut worker = Guarded::spawn(&mut run).unwrap();
        drop(run);
        let starts = async || text_of(&shown).contains("probes and metrics are served");
        eventually("it logs to the terminal", LIMIT, starts).await;
        worker.signal(Signal::SIGTERM).unwrap();
        assert_eq!(worker.wait(LIMIT).await.unwrap().and_then(|status| status.code()), Some(0));
        let log = text_of(&shown);
        assert_eq!(log.contains('\u{1b}'), is_colored, "NO_COLOR={no_color}: {log:?}");
        let is_json = |line: &str| serde_json::from_str::<Value>(line.trim()).is_ok();
        assert!(!log.lines().any(is_json), "a terminal shows text: {log}");
    }
}
