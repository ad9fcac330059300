//! `capture-worker` processes: started as an operator starts them, observed by their output, killed
//! when dropped.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{
    guardian::{Guarded, folder},
    poll::within,
    servers::tail,
};

/// A command without inherited settings and without input.
pub fn command(program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("CAPTURE_") {
            command.env_remove(variable);
        }
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// [`command`] of the program under test: the one that `CAPTURE_WORKER` names, else the one that
/// cargo built with this executable (`target/debug/deps/it-…` tests `target/debug/capture-worker`),
/// else the one on the `PATH`.
pub fn worker_command(arguments: &[&str]) -> Command {
    const NAME: &str = "capture-worker";
    let named = std::env::var_os("CAPTURE_WORKER").map(PathBuf::from);
    let built = || {
        let this = std::env::current_exe().ok()?;
        let folders = this.ancestors().skip(1).take(2);
        folders.map(|folder| folder.join(NAME)).find(|program| program.is_file())
    };
    command(&named.or_else(built).unwrap_or_else(|| NAME.into()), arguments)
}

/// A running process whose output goes to files. If it is dropped by a panic, the end of its log is
/// printed.
#[derive(Debug)]
pub struct Process {
    /// Fields are dropped in order: the process must end before its folder is removed.
    guarded: Guarded,
    name: String,
    folder: TempDir,
}

impl Process {
    pub fn spawn(mut command: Command) -> anyhow::Result<Self> {
        let folder = folder()?;
        command
            .stdout(fs::File::create(folder.path().join("stdout"))?)
            .stderr(fs::File::create(folder.path().join("stderr"))?);
        let words = [command.get_program()].into_iter().chain(command.get_args());
        let name = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        Ok(Self { guarded: Guarded::spawn(&mut command)?, name, folder })
    }

    pub fn pid(&self) -> u32 {
        self.guarded.pid()
    }

    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        self.guarded.signal(signal)
    }

    /// Sends SIGKILL, as the kernel does when memory runs out.
    pub fn kill9(&mut self) -> ExitStatus {
        self.guarded.kill()
    }

    /// Waits for the exit status. If the process still runs after `limit`, the error has the end of
    /// its log.
    pub async fn wait(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let status = self.guarded.wait(limit).await?;
        status.ok_or_else(|| anyhow!("still running after {limit:?}: {}", self.describe()))
    }

    /// The exit status, if the process has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.guarded.ended().ok().flatten()
    }

    /// Everything that the process has written to stdout so far.
    pub fn stdout(&self) -> String {
        read(&self.folder.path().join("stdout"))
    }

    /// Everything that the process has logged to stderr so far.
    pub fn stderr(&self) -> String {
        read(&self.log())
    }

    /// Waits for the first output line that `pick` accepts. It is an error if the process ends
    /// before, or if `limit` passes.
    pub async fn line<T>(
        &mut self,
        limit: Duration,
        pick: impl Fn(&str) -> Option<T>,
    ) -> anyhow::Result<T> {
        let found = within(limit, async || {
            let ended = self.ended().is_some();
            let (stdout, stderr) = (self.stdout(), self.stderr());
            let mut lines = whole_lines(&stdout).chain(whole_lines(&stderr));
            lines.find_map(&pick).map(Some).or_else(|| ended.then_some(None))
        });
        let found = found.await.flatten();
        found.with_context(|| format!("the expected output did not come: {}", self.describe()))
    }

    /// The process id and the end of the log, for error messages.
    pub fn describe(&self) -> String {
        let stdout = tail(&self.folder.path().join("stdout"));
        format!("{} (process {})\n{stdout}\n{}", self.name, self.pid(), tail(&self.log()))
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("stderr")
    }
}

impl Drop for Process {
    #[expect(clippy::print_stderr, reason = "a failed test prints the log of its processes")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.describe());
        }
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// The complete lines, without a last one that is still being written.
fn whole_lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'))
}
