//! Output that programs rely on, and text of others in it: a full disk, a closed pipe, and
//! characters that are invisible or that a terminal acts on.

#![expect(clippy::unwrap_used, reason = "a failure fails the test and shows its place")]

use std::{
    fs::File,
    process::{Command, Stdio},
    time::Duration,
};

use capture_worker::domain::capture::class::Class;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testkit::{
    LIMIT,
    guardian::{Guarded, folder},
    processes::{Process, worker_command},
};

use crate::{
    dead_letters::written,
    env::{ItEnv, job, text},
};

/// A color sequence, a bell, DEL, a C1 control, a line feed, a direction mark, invisible
/// characters, Unicode's line ends, and an invisible character above U+FFFF.
const HOSTILE: &str = "a\u{1b}[31m\u{7}\u{7f}\u{9b}\nb\u{202e}\u{200b}\u{2028}\u{2029}\u{ad}\
                       \u{feff}\u{e0041}\u{3164}z";
/// The characters of [`HOSTILE`] that an id may contain.
const ID: &str = "b\u{202e}\u{200b}\u{2028}\u{2029}\u{ad}\u{feff}\u{e0041}\u{3164}z";
const ID_IN_TEXT: &str =
    "b\\u{202e}\\u{200b}\\u{2028}\\u{2029}\\u{ad}\\u{feff}\\u{e0041}\\u{3164}z";

/// Whether every character is visible on a terminal. Line feeds are allowed.
fn is_visible(text: &str) -> bool {
    let hidden = HOSTILE.chars().filter(|c| !c.is_ascii() || c.is_control());
    hidden.filter(|c| *c != '\n').all(|c| !text.contains(c))
}

/// Runs a command to its end with this stdout, and returns exit code and stderr.
async fn run_to(mut command: Command, stdout: impl Into<Stdio>) -> (Option<i32>, String) {
    command.stdout(stdout).stderr(Stdio::piped());
    let ended = tokio::task::spawn_blocking(move || command.output());
    let output = tokio::time::timeout(LIMIT, ended).await.expect("an exit").unwrap().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn full_disk() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

/// The write end of a pipe whose read end is closed.
fn closed_pipe() -> std::io::PipeWriter {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer
}

/// Two dead letters, one job that ends as captured, and a record in the audit.
async fn env_with_dead_letters() -> ItEnv {
    let env = ItEnv::open().await.declare().await;
    for id in ["c-1", "c-2", "c-3"] {
        env.dead_letter(
            Class::Risk,
            &job(id, id, 100),
            written("RISK_REJECT", true, Duration::ZERO),
        )
        .await;
    }
    let discard = ["dead", "discard", "--id", "c-3", "--reason", "a test", "--yes"];
    assert_eq!(env.run(&discard).await.0, Some(0));
    env
}

/// Every command that only prints. The tests run each with and without `--json`.
const READING: &[&[&str]] = &[
    &["dead", "list"],
    &["dead", "list", "--class", "risk"],
    &["dead", "show", "c-1"],
    &["dead", "show", "c-1", "--inquire"],
    &["dead", "export"],
    &["dead", "replay", "--class", "risk", "--dry-run"],
    &["dead", "discard", "--class", "risk", "--reason", "a test", "--dry-run"],
    &["audit", "--all"],
    &["status", "c-1", "--payment", "c-1"],
    &["check"],
];

fn with_and_without_json(words: &[&'static str]) -> [Vec<&'static str>; 2] {
    [words.to_vec(), [words, &["--json"]].concat()]
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_cannot_be_written_is_exit_1() {
    let env = env_with_dead_letters().await;
    for words in READING.iter().flat_map(|words| with_and_without_json(words)) {
        let (code, errors) = run_to(env.program(&words), full_disk()).await;
        assert_eq!(code, Some(1), "{words:?}: {errors}");
        assert!(errors.contains("No space left on device"), "{words:?}: {errors}");
    }
    let folder = folder().unwrap();
    let file = folder.path().join("job.json");
    std::fs::write(&file, job("s", "s", 100)).unwrap();
    for words in with_and_without_json(&["submit"]) {
        let mut submit = env.program(&words);
        submit.arg(&file);
        assert_eq!(run_to(submit, full_disk()).await.0, Some(1), "{words:?}");
    }
    let sandbox = ["sandbox", "--listen", "127.0.0.1:0"];
    for words in [&["--help"], &["--version"], sandbox.as_slice()] {
        let (code, errors) = run_to(worker_command(words), full_disk()).await;
        assert_eq!(code, Some(1), "{words:?}: {errors}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_pipe_is_exit_0_without_output() {
    let env = env_with_dead_letters().await;
    for words in READING.iter().flat_map(|words| with_and_without_json(words)) {
        let ended = run_to(env.program(&words), closed_pipe()).await;
        assert_eq!(ended, (Some(0), String::new()), "{words:?}");
    }
    let help = run_to(worker_command(&["--help"]), closed_pipe()).await;
    assert_eq!(help, (Some(0), String::new()));
}

/// A replay or discard is completed although its output is lost, and the audit records it.
#[tokio::test(flavor = "multi_thread")]
async fn acts_are_completed_when_their_output_is_lost() {
    let env = env_with_dead_letters().await;
    for n in 0..5 {
        let id = format!("u-{n}");
        let written = written("", false, Duration::ZERO);
        env.dead_letter(Class::Unreachable, &job(&id, &id, 100), written).await;
    }
    let replay = ["dead", "replay", "--class", "unreachable", "--limit", "2", "--yes"];
    let ended = run_to(env.program(&replay), closed_pipe()).await;
    assert_eq!(ended, (Some(0), String::new()));
    let replay = ["dead", "replay", "--class", "unreachable", "--yes", "--json"];
    let (code, errors) = run_to(env.program(&replay), full_disk()).await;
    assert_eq!(code, Some(1));
    assert!(errors.contains("capture-worker audit"), "no reference to the audit: {errors}");
    assert_eq!(env.queued().await, [("dead.risk".into(), 2), ("jobs".into(), 5)].into());
    let discard = ["dead", "discard", "--class", "risk", "--reason", "a test", "--yes"];
    let (code, errors) = run_to(env.program(&discard), full_disk()).await;
    assert_eq!(code, Some(1));
    assert!(errors.contains("capture-worker audit"), "no reference to the audit: {errors}");
    assert_eq!(env.queued().await, [("jobs".into(), 5)].into());
    let (_, records) = env.run_json(&["audit", "--all"]).await;
    assert_eq!(records.as_array().unwrap().len(), 8, "{records}");
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_to_a_closed_pipe_keep_their_exit_code() {
    let mut check = worker_command(&["check"]);
    check.env("CAPTURE__BROKER__PREFETCH", "0");
    check.stdout(Stdio::null()).stderr(closed_pipe());
    let status = tokio::task::spawn_blocking(move || check.status()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(64));
}

/// A dead letter with hostile characters in ids, code and message, and a name with them in the
/// audit.
async fn hostile_env() -> ItEnv {
    let env = ItEnv::open().await.declare().await;
    let mut written = written("RISK_REJECT", true, Duration::ZERO);
    written.insert("x-capture-code".into(), text(HOSTILE));
    written.insert("x-capture-message".into(), text(HOSTILE));
    written.insert("theirs".into(), text(HOSTILE));
    for _ in 0..2 {
        env.dead_letter(Class::Risk, &job(ID, ID, 100), written.clone()).await;
    }
    let discard =
        ["dead", "discard", "--all", "--limit", "1", "--reason", HOSTILE, "--as", HOSTILE, "--yes"];
    assert_eq!(env.run(&discard).await.0, Some(0));
    env
}

#[tokio::test(flavor = "multi_thread")]
async fn invisible_characters_in_text_of_others_are_escaped() {
    let env = hostile_env().await;
    let commands: [&[&str]; 8] = [
        &["dead", "list"],
        &["dead", "list", "--class", "risk"],
        &["dead", "show", ID],
        &["dead", "show", "--inquire", ID],
        &["dead", "replay", "--class", "risk", "--dry-run"],
        &["dead", "discard", "--class", "risk", "--reason", "a test", "--dry-run"],
        &["audit"],
        &["status", ID, "--payment", ID],
    ];
    for words in commands {
        let (_, shown, errors) = env.run(words).await;
        assert!(shown.contains("\\u{202e}"), "{words:?}: {shown}{errors}");
        assert!(is_visible(&shown) && is_visible(&errors), "{words:?}: {shown:?}{errors:?}");
        let (_, output, errors) = env.run(&[words, &["--json"]].concat()).await;
        let document: Value = serde_json::from_str(&output).unwrap();
        assert!(document.is_array() || document.is_object());
        for escape in ["\\u202e", "\\u200b", "\\u2028", "\\u3164", "\\udb40\\udc41"] {
            assert!(output.contains(escape), "{words:?}: {escape} in {output}");
        }
        assert!(is_visible(&output) && is_visible(&errors), "{words:?}: {output:?}{errors:?}");
    }
    let (_, output, _) = env.run(&["dead", "export"]).await;
    assert!(is_visible(&output), "{output:?}");
    let exported: Value = serde_json::from_str(&output).unwrap();
    let whole = (&exported["captureRequestId"], &exported["headers"]["theirs"]);
    assert_eq!(whole, (&json!(ID), &json!(HOSTILE)), "a program reads the very text");
    // A printed shell command contains the exact id.
    let (_, shown, _) = env.run(&["dead", "show", ID]).await;
    assert!(shown.contains("--id=$'b\\u202e\\u200b"), "{shown}");
    let all = "message           a\\u{1b}[31m\\u{7}\\u{7f}\\u{9b}\\u{a}b\\u{202e}";
    assert!(shown.contains(all), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_escape_the_text_of_others() {
    let env = ItEnv::open().await.declare().await;
    let folder = folder().unwrap();
    let file = folder.path().join("job.json");
    let wrong = json!({"captureRequestId": ID, "paymentId": "p"});
    std::fs::write(&file, wrong.to_string()).unwrap();
    let mut submit = env.program(&["submit"]);
    submit.arg(&file);
    let (code, _, errors) = crate::commands::run(submit).await;
    assert_eq!(code, Some(1));
    assert!(errors.contains(ID_IN_TEXT) && is_visible(&errors), "{errors:?}");
    let (code, _, errors) = env.run(&["dead", "show", ID]).await;
    assert_eq!(code, Some(1));
    assert!(errors.contains(ID_IN_TEXT) && is_visible(&errors), "{errors:?}");
}

/// Text logs and JSON logs are escaped in files as on terminals. Only terminals get colors.
#[tokio::test(flavor = "multi_thread")]
async fn logs_in_files_have_no_color_and_escape_the_text_of_others() {
    for format in ["text", "json"] {
        let env = ItEnv::open().await.declare().await.set("LOG__FORMAT", format);
        env.script(ID, json!([{"answer": {"code": "RISK_REJECT"}}]));
        let mut worker = Process::spawn(env.program(&["run"])).unwrap();
        env.publish(&job(ID, ID, 100)).await;
        env.ends_as(ID, "FAILED", Some("risk")).await;
        worker.signal(Signal::SIGTERM).unwrap();
        assert_eq!(worker.wait(LIMIT).await.unwrap().code(), Some(0));
        let log = worker.stderr();
        assert!(is_visible(&log), "{log:?}");
        let shown = if format == "text" { "\\u{202e}" } else { "\\u202e" };
        let settled = log.lines().find(|line| line.contains(shown)).expect("the line of the job");
        if format == "json" {
            let line: Value = serde_json::from_str(settled).unwrap();
            assert_eq!(line["captureRequestId"], ID, "{settled}");
        }
    }
}

/// With `run 2>&1 | head -1`, the worker continues, and only the log is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_continues_when_its_log_pipe_is_closed() {
    for format in ["text", "json"] {
        let env = ItEnv::open().await.declare().await;
        let env = env.set("LOG__FORMAT", format).set("LOG__FILTER", "debug");
        let mut run = env.program(&["run"]);
        run.stdout(Stdio::null()).stderr(closed_pipe());
        let mut worker = Guarded::spawn(&mut run).unwrap();
        drop(run);
        for n in 0..12 {
            env.publish(&job(&format!("c-{n}"), &format!("p-{n}"), 100)).await;
        }
        for n in 0..12 {
            env.ends_as(&format!("c-{n}"), "CAPTURED", None).await;
        }
        worker.signal(Signal::SIGTERM).unwrap();
        assert_eq!(worker.wait(LIMIT).await.unwrap().and_then(|status| status.code()), Some(0));
    }
}
