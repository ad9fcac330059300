//! Browses one hundred thousand dead letters. A browse uses bounded memory, shows its progress on a
//! terminal, and can be interrupted cleanly. It is a separate test binary, so that it runs alone.

use std::{
    fs::File,
    io::Read as _,
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
use testkit::{
    broker::TestBroker,
    poll::{eventually, within},
    processes::{Process, worker_command},
    servers::PrivateRabbit,
};

const DEAD_LETTERS: u32 = 100_000;
const LIMIT: Duration = Duration::from_secs(180);
/// The limit of memory, in MiB. One dead letter takes about 400 bytes, so all of them at once would
/// take 40 MB and the overhead of their structures.
const MEMORY_MIB_MAX: u64 = 64;

fn program(url: &str, arguments: &[&str]) -> Command {
    let mut program = worker_command(arguments);
    program.env("CAPTURE__BROKER__URL", url);
    program
}

async fn publish_dead_letters(channel: &Channel) {
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    let mut confirms = Vec::new();
    for n in 0..DEAD_LETTERS {
        let mut headers = FieldTable::default();
        headers.insert("x-capture-code".into(), AMQPValue::LongString("PROCESS_FAIL".into()));
        headers.insert("x-capture-signed".into(), AMQPValue::Boolean(true));
        headers.insert("x-capture-dead-at".into(), AMQPValue::LongLongInt(1_790_000_000_000));
        let properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
        let body = format!(
            r#"{{"captureRequestId":"c-{n}","paymentId":"p-{n}",
                "captureAmount":{{"currency":"HKD","value":"100"}}}}"#
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

/// The peak memory of a process, in MiB.
fn peak_mib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib / 1024)
}

/// Collects everything that is written to a terminal.
fn screen(terminal: File) -> Arc<Mutex<String>> {
    let shown = Arc::<Mutex<String>>::default();
    let sink = Arc::clone(&shown);
    std::thread::spawn(move || {
        let (mut terminal, mut bytes) = (terminal, [0; 4096]);
        // The read fails when the last program on the terminal has ended.
        while let Ok(count @ 1..) = terminal.read(&mut bytes) {
            let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
            sink.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
        }
    });
    shown
}

#[tokio::test(flavor = "multi_thread")]
async fn browsing_100000_dead_letters_is_bounded_and_interruptible() {
    let rabbit = PrivateRabbit::start().await.expect("a broker");
    let url = rabbit.url();
    let broker = TestBroker::connect(&url).await.expect("a connection");
    // The command declares the missing queues. There is no dead letter to discard.
    let mut nothing = program(&url, &["dead", "discard", "--all", "--reason", "none", "--yes"]);
    assert!(nothing.output().expect("an exit").status.success());
    publish_dead_letters(&broker.channel().await.expect("a channel")).await;
    let all_are_there = async || {
        broker.queue_depth("capture.dead.provider").await.expect("a size") == Some(DEAD_LETTERS)
    };
    eventually("all dead letters are in the queue", LIMIT, all_are_there).await;

    // On a terminal, the progress bar moves, and Ctrl-C ends the command.
    let terminal = openpty(None, None).expect("a terminal");
    let shown = screen(File::from(terminal.master));
    let stderr = Stdio::from(terminal.slave);
    let mut list = program(&url, &["dead", "list"]);
    let mut list = list.stdout(Stdio::null()).stderr(stderr).spawn().expect("a process");
    let text = || shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
    eventually("a progress bar is shown", LIMIT, async || text().contains("/100000")).await;
    let pid = Pid::from_raw(i32::try_from(list.id()).expect("a process id"));
    kill(pid, Signal::SIGINT).expect("a signal");
    let ended = within(LIMIT, async || list.try_wait().expect("a status")).await.expect("an exit");
    assert_eq!(ended.code(), Some(1));
    assert!(text().contains("interrupted"), "{}", text());
    eventually("all dead letters are back", LIMIT, all_are_there).await;

    // Without an interrupt, the command counts every dead letter in bounded memory.
    let mut list = Process::spawn(program(&url, &["dead", "list", "--json"])).expect("a process");
    let mut peak = 0;
    let ended = within(LIMIT, async || {
        peak = peak.max(peak_mib(list.pid()).unwrap_or_default());
        list.ended()
    })
    .await;
    assert_eq!(ended.and_then(|status| status.code()), Some(0), "{}", list.describe());
    let listed: Value = serde_json::from_str(&list.stdout()).expect("JSON");
    assert_eq!(listed[0]["letters"], DEAD_LETTERS);
    assert_eq!(listed[0]["money"]["HKD"], (u64::from(DEAD_LETTERS) * 100).to_string());
    assert!((1..=MEMORY_MIB_MAX).contains(&peak), "{peak} MiB");
    eventually("all dead letters are back", LIMIT, all_are_there).await;
    let first = program(&url, &["dead", "list", "--class", "provider", "--limit", "1", "--json"])
        .output()
        .expect("an exit");
    let first: Value = serde_json::from_slice(&first.stdout).expect("JSON");
    assert_eq!(first[0]["captureRequestId"], "c-0");
}
