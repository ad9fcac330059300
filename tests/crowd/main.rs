//! A hundred thousand dead letters: a look takes bounded memory, shows its progress on a terminal, and is interrupted cleanly.
//! A program of its own, so that it runs alone.

#[expect(dead_code, unused_imports, reason = "other tests use more of it")]
#[path = "../support/mod.rs"]
mod support;

use std::{
    fs::File,
    io::Read as _,
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use lapin::{
    BasicProperties, Channel,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable},
};
use nix::{
    pty::openpty,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::support::{
    broker::TestBroker,
    poll::{eventually, within},
    processes::{Process, command},
    servers::PrivateRabbit,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_capture-worker");
const LETTERS: u32 = 100_000;
const LIMIT: Duration = Duration::from_secs(180);
/// A letter of these takes some 400 bytes; all of them at once, forty megabytes and what holds them.
const MEMORY_MIB_MAX: u64 = 64;

fn program(url: &str, arguments: &[&str]) -> Command {
    let mut program = command(Path::new(PROGRAM), arguments);
    program.env("CAPTURE__BROKER__URL", url);
    program
}

async fn bury(channel: &Channel) {
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    let mut confirms = Vec::new();
    for n in 0..LETTERS {
        let mut headers = FieldTable::default();
        headers.insert("x-capture-code".into(), AMQPValue::LongString("PROCESS_FAIL".into()));
        headers.insert("x-capture-signed".into(), AMQPValue::Boolean(true));
        headers.insert("x-capture-dead-at".into(), AMQPValue::LongLongInt(1_790_000_000_000));
        let properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
        let body = format!(
            r#"{{"captureRequestId":"c-{n}","paymentId":"p-{n}","captureAmount":{{"currency":"HKD","value":"100"}}}}"#
        );
        let (exchange, key) = ("capture.dead".into(), "provider".into());
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let confirm = channel.basic_publish(exchange, key, options, body.as_bytes(), properties);
        confirms.push(confirm.await.expect("published"));
        if confirms.len() == 1000 {
            for confirm in confirms.drain(..) {
                assert!(confirm.await.expect("a confirm").is_ack());
            }
        }
    }
}

/// The most memory that a process ever had, in MiB.
fn peak_mib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib / 1024)
}

/// Whatever is written to a terminal.
fn screen(terminal: File) -> Arc<Mutex<String>> {
    let shown = Arc::<Mutex<String>>::default();
    let sink = Arc::clone(&shown);
    std::thread::spawn(move || {
        let (mut terminal, mut bytes) = (terminal, [0; 4096]);
        // The terminal is gone when the last program on it is.
        while let Ok(count @ 1..) = terminal.read(&mut bytes) {
            let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
            sink.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
        }
    });
    shown
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_at_a_hundred_thousand_letters_is_bounded_shown_and_interrupted_cleanly() {
    let rabbit = PrivateRabbit::start().await.expect("a broker");
    let url = rabbit.url();
    let broker = TestBroker::connect(&url).await.expect("a connection");
    // An act declares what is missing; it has nothing to act on.
    let mut nothing = program(&url, &["dead", "discard", "--all", "--reason", "none", "--yes"]);
    assert!(nothing.output().expect("it runs").status.success());
    bury(&broker.channel().await.expect("a channel")).await;
    let all_lie = async || {
        broker.queue_depth("capture.dead.provider").await.expect("a look") == Some(LETTERS)
    };
    eventually("all letters lie there", LIMIT, all_lie).await;

    // On a terminal: the bar moves, and Ctrl-C ends it.
    let terminal = openpty(None, None).expect("a terminal");
    let shown = screen(File::from(terminal.master));
    let stderr = Stdio::from(terminal.slave);
    let mut look = program(&url, &["dead", "list"]);
    let mut look = look.stdout(Stdio::null()).stderr(stderr).spawn().expect("it starts");
    let text = || shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
    eventually("a bar is shown", LIMIT, async || text().contains("/100000")).await;
    let pid = Pid::from_raw(i32::try_from(look.id()).expect("a process id"));
    kill(pid, Signal::SIGINT).expect("a signal");
    let ended = within(LIMIT, async || look.try_wait().expect("a status")).await.expect("it ends");
    assert_eq!(ended.code(), Some(1));
    assert!(text().contains("interrupted"), "{}", text());
    eventually("all letters are back", LIMIT, all_lie).await;

    // To its end: everything is counted, in little memory.
    let mut look = Process::spawn(program(&url, &["dead", "list", "--json"])).expect("it starts");
    let mut peak = 0;
    let ended = within(LIMIT, async || {
        peak = peak.max(peak_mib(look.pid()).unwrap_or_default());
        look.ended()
    })
    .await;
    assert_eq!(ended.and_then(|status| status.code()), Some(0), "{}", look.describe());
    let listed: Value = serde_json::from_str(&look.stdout()).expect("JSON");
    assert_eq!(listed[0]["letters"], LETTERS);
    assert_eq!(listed[0]["money"]["HKD"], (u64::from(LETTERS) * 100).to_string());
    assert!((1..=MEMORY_MIB_MAX).contains(&peak), "{peak} MiB");
    eventually("all letters are back", LIMIT, all_lie).await;
    let first = program(&url, &["dead", "list", "--class", "provider", "--limit", "1", "--json"])
        .output()
        .expect("it runs");
    let first: Value = serde_json::from_slice(&first.stdout).expect("JSON");
    assert_eq!(first[0]["captureRequestId"], "c-0");
}
