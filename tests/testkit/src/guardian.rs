//! Kills the processes that this process started, even if this process is killed itself.
//!
//! A small shell, the guardian, holds the read end of a pipe. Only this process holds the write
//! end, and writes the id of each process group that it starts. When this process ends in any way,
//! the pipe closes. Then the guardian kills the remaining groups and removes their folders.

use std::{
    io::Write as _,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use tempfile::TempDir;

const SCRIPT: &str = r#"
trap '' HUP INT TERM QUIT
groups=' '
while read -r verb what; do
    case $verb in
        group) groups="$groups$what " ;;
        ended) groups="${groups%% $what *} ${groups#* $what }" ;;
        folder) set -- "$@" "$what" ;;
    esac
done
for group in $groups; do kill -s KILL -- "-$group"; done
rm -rf -- "$@" || { sleep 1; rm -rf -- "$@"; }
"#;

static GUARDIAN: OnceLock<Result<Mutex<ChildStdin>, String>> = OnceLock::new();

fn report(verb: &str, what: &str) -> anyhow::Result<()> {
    let pipe = GUARDIAN.get_or_init(|| start().map_err(|err| format!("the guardian: {err}")));
    let pipe = pipe.as_ref().map_err(|err| anyhow!("{err}"))?;
    let mut pipe = pipe.lock().unwrap_or_else(PoisonError::into_inner);
    writeln!(pipe, "{verb} {what}").context("the guardian has ended")
}

fn start() -> std::io::Result<Mutex<ChildStdin>> {
    let mut shell = Command::new("/bin/sh")
        .args(["-c", SCRIPT, "guardian"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .process_group(0)
        .spawn()?;
    let pipe = shell.stdin.take().ok_or_else(|| std::io::Error::other("no pipe"))?;
    Ok(Mutex::new(pipe))
}

/// A temporary folder that is removed even if this process is killed.
pub fn folder_in(parent: &Path) -> anyhow::Result<TempDir> {
    let folder = tempfile::Builder::new()
        .prefix("capture-")
        .tempdir_in(parent)
        .with_context(|| format!("create a folder in {}", parent.display()))?;
    report("folder", &folder.path().display().to_string())?;
    Ok(folder)
}

/// [`folder_in`] in the system's folder for temporary files.
pub fn folder() -> anyhow::Result<TempDir> {
    folder_in(&std::env::temp_dir())
}

/// A process that leads its own process group. The whole group is killed when this is dropped.
#[derive(Debug)]
pub struct Guarded {
    child: Child,
    pid: Pid,
    /// Set after the leader was reaped. From then on another process may have its id.
    ended: Option<ExitStatus>,
}

impl Guarded {
    pub fn spawn(command: &mut Command) -> anyhow::Result<Self> {
        // First check that the guardian runs: without it, no process is started.
        report("", "")?;
        let program = command.get_program().display().to_string();
        let child = command.process_group(0).spawn().with_context(|| format!("start {program}"))?;
        let pid = Pid::from_raw(i32::try_from(child.id()).context("convert a process id")?);
        let started = Self { child, pid, ended: None };
        report("group", &pid.to_string())?;
        Ok(started)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the process only, not to its children, as an operator or Kubernetes does.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        anyhow::ensure!(self.ended.is_none(), "process {} has ended", self.pid);
        kill(self.pid, signal).with_context(|| format!("{signal} to process {}", self.pid))
    }

    /// The exit status, if the process has ended.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().context("read the status of a process")?;
            if self.ended.is_some() {
                self.end_group();
            }
        }
        Ok(self.ended)
    }

    /// Waits until the process ends. Returns `None` if it still runs after `limit`.
    pub async fn wait(&mut self, limit: Duration) -> anyhow::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Sends SIGKILL to the whole group, and reaps the leader.
    pub fn kill(&mut self) -> ExitStatus {
        if let Some(status) = self.ended {
            return status;
        }
        // An error means that the group has already ended.
        killpg(self.pid, Signal::SIGKILL).ok();
        let status = self.child.wait().unwrap_or_else(|_| ExitStatus::from_raw(9));
        self.ended = Some(status);
        self.end_group();
        status
    }

    /// Kills the processes that the leader left in its group.
    fn end_group(&self) {
        killpg(self.pid, Signal::SIGKILL).ok();
        drop(report("ended", &self.pid.to_string()));
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.kill();
    }
}
