//! Private `RabbitMQ` and Redis servers with their own folders and their own ports on loopback.
//! They share nothing with other servers on the machine.

mod rabbit;
mod redis;

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, bail};
use tempfile::TempDir;
use tokio::sync::OnceCell;

pub use self::{
    rabbit::{PrivateRabbit, RabbitCluster},
    redis::{Persistence, PrivateRedis, RedisCluster, Reply, WatchedRedis},
};
use crate::guardian;

/// The `RabbitMQ` that the tests of this process share. Each test uses its own `broker.prefix`.
pub async fn shared_rabbit() -> anyhow::Result<&'static PrivateRabbit> {
    static SHARED: OnceCell<PrivateRabbit> = OnceCell::const_new();
    SHARED.get_or_try_init(PrivateRabbit::start).await
}

/// A port on loopback that no process listens on. This process never returns one port twice.
///
/// The port is below the kernel's ephemeral range (32768 and up). A client that reconnects to a
/// stopped server on an ephemeral port may get this port as its own. It then talks to itself, and
/// the server can't start again.
pub fn free_port() -> anyhow::Result<u16> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    for _ in 0..1000 {
        let port = rand::random_range(12_000..32_000);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
            && GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(port)
        {
            return Ok(port);
        }
    }
    bail!("no free port on loopback")
}

/// Where a server's programs are: on this system, or in a folder for `chroot` (newer brokers).
#[derive(Debug)]
struct Root(Option<PathBuf>);

impl Root {
    /// The place that the environment variable names. Unset or empty means this system.
    fn from_env(variable: &str) -> Self {
        Self(std::env::var_os(variable).filter(|root| !root.is_empty()).map(PathBuf::from))
    }

    /// The absolute path of the first candidate that exists, else its name if `PATH` has it.
    fn find(&self, candidates: &[&str]) -> anyhow::Result<PathBuf> {
        let root = self.0.as_deref().unwrap_or_else(|| Path::new("/"));
        let present =
            |program: &&&str| root.join(program.trim_start_matches('/')).symlink_metadata().is_ok();
        if let Some(program) = candidates.iter().find(present) {
            return Ok(PathBuf::from(program));
        }
        let names = candidates.iter().filter_map(|program| Path::new(program).file_name());
        let paths = std::env::var_os("PATH").unwrap_or_default();
        let mut on_path = names
            .flat_map(|name| std::env::split_paths(&paths).map(move |folder| folder.join(name)));
        match on_path.find(|program| self.0.is_none() && program.is_file()) {
            Some(program) => Ok(program),
            None => bail!("{} is not installed: run tests/run.sh", candidates.join(" or ")),
        }
    }

    /// A command with an environment of `PATH` only.
    fn command(&self, program: &Path) -> Command {
        let mut command = match &self.0 {
            None => Command::new(program),
            Some(root) => {
                let mut command = Command::new("chroot");
                command.arg(root).arg(program);
                command
            }
        };
        command.stdin(Stdio::null()).env_clear();
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("LANG", "C.UTF-8");
        command
    }

    fn folder(&self) -> anyhow::Result<Folder> {
        let outside = match &self.0 {
            None => guardian::folder()?,
            Some(root) => guardian::folder_in(&root.join("tmp"))?,
        };
        let inside = match &self.0 {
            None => outside.path().to_owned(),
            Some(root) => Path::new("/").join(outside.path().strip_prefix(root)?),
        };
        Ok(Folder { outside, inside })
    }
}

/// The folder of a server. Under `chroot`, the server knows it by another path than this process.
#[derive(Debug)]
pub struct Folder {
    outside: TempDir,
    inside: PathBuf,
}

impl Folder {
    pub fn outside(&self, name: &str) -> PathBuf {
        self.outside.path().join(name)
    }

    pub fn inside(&self, name: &str) -> PathBuf {
        self.inside.join(name)
    }

    /// Opens a file to which a server's output is appended.
    fn log(&self, name: &str) -> anyhow::Result<fs::File> {
        let path = self.outside(name);
        fs::File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))
    }
}

/// The last lines of a log, for an error message.
pub fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines.get(lines.len().saturating_sub(40)..).unwrap_or_default();
    format!("--- end of {}:\n{}\n---", log.display(), tail.join("\n"))
}
