//! A private Redis and a minimal client for tests, and Redis servers with failover.

mod failover;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail, ensure};
use nix::sys::signal::Signal;

pub use self::failover::{RedisCluster, WatchedRedis};
use super::{Folder, Root, free_port, tail};
use crate::{guardian::Guarded, poll::within};

const ROOT: &str = "CAPTURE_TEST_REDIS_ROOT";
const START_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// The data that a Redis keeps when it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// It keeps no data.
    None,
    /// Every acknowledged write: an append-only file, synced after each write.
    Always,
}

/// A Redis that lives as long as this value.
#[derive(Debug)]
pub struct PrivateRedis {
    /// Fields are dropped in order: the server must end before its folder is removed.
    server: Option<Guarded>,
    root: Root,
    folder: Folder,
    port: u16,
    /// The port of the Cluster bus. The default, the client port plus 10,000, may exceed 65,535.
    bus_port: u16,
    persistence: Persistence,
    role: Role,
    /// Additional arguments of the command line.
    more: Vec<String>,
}

/// The role of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// A standalone server without replicas.
    Single,
    /// A node of a Cluster.
    Cluster,
    /// A Sentinel of the server on this port. `quorum` Sentinels must agree that it has failed.
    SentinelOf { port: u16, quorum: usize },
}

/// A reply of Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Nil,
    Int(i64),
    Text(String),
    List(Vec<Self>),
}

impl PrivateRedis {
    /// Starts a new server and waits until it is ready for clients. If another process took one of
    /// its ports meanwhile, tries other ports.
    pub async fn start(persistence: Persistence) -> anyhow::Result<Self> {
        Self::start_as(persistence, Role::Single, &[]).await
    }

    /// Starts a server with additional arguments.
    pub async fn start_with(more: &[String]) -> anyhow::Result<Self> {
        Self::start_as(Persistence::None, Role::Single, more).await
    }

    /// Starts a Cluster of one node.
    pub async fn start_cluster() -> anyhow::Result<Self> {
        let node = Self::start_as(Persistence::None, Role::Cluster, &[]).await?;
        node.cmd(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"])?;
        let whole = async || match node.cmd(&["CLUSTER", "INFO"]) {
            Ok(Reply::Text(info)) => info.contains("cluster_state:ok"),
            _ => false,
        };
        within(START_LIMIT, whole).await.context("the Cluster does not serve all slots")?;
        Ok(node)
    }

    /// Starts a Sentinel that monitors this server under the name `main`.
    pub async fn start_sentinel(&self) -> anyhow::Result<Self> {
        self.start_sentinel_with(&[]).await
    }

    /// [`Self::start_sentinel`] with additional arguments, such as those that require a password.
    pub async fn start_sentinel_with(&self, more: &[String]) -> anyhow::Result<Self> {
        let role = Role::SentinelOf { port: self.port, quorum: 1 };
        let sentinel = Self::start_as(Persistence::None, role, more).await?;
        if let Some(password) = self.password() {
            sentinel.cmd(&["SENTINEL", "SET", "main", "auth-pass", password])?;
        }
        Ok(sentinel)
    }

    /// The password that clients need, if the arguments set one.
    fn password(&self) -> Option<&str> {
        let at = self.more.iter().position(|word| word == "--requirepass")?;
        self.more.get(at + 1).map(String::as_str)
    }

    async fn start_as(
        persistence: Persistence,
        role: Role,
        more: &[String],
    ) -> anyhow::Result<Self> {
        let mut tries_left = 3;
        loop {
            tries_left -= 1;
            match Self::start_once(persistence, role, more).await {
                Err(err) if tries_left > 0 && format!("{err:#}").contains("already in use") => {}
                done => return done,
            }
        }
    }

    async fn start_once(
        persistence: Persistence,
        role: Role,
        more: &[String],
    ) -> anyhow::Result<Self> {
        let root = Root::from_env(ROOT);
        let folder = root.folder()?;
        let (port, bus_port) = (free_port()?, free_port()?);
        let more = more.to_vec();
        let mut started =
            Self { server: None, root, folder, port, bus_port, persistence, role, more };
        started.start_again().await?;
        Ok(started)
    }

    /// A folder that servers can read, for the files that their settings name.
    pub fn files() -> anyhow::Result<Folder> {
        Root::from_env(ROOT).folder()
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The ids of the processes that must end when this is dropped.
    pub fn pids(&self) -> Vec<u32> {
        self.server.iter().map(Guarded::pid).collect()
    }

    /// Stops the server cleanly.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        let mut server = self.server.take().context("Redis is not running")?;
        server.signal(Signal::SIGTERM)?;
        ensure!(server.wait(STOP_LIMIT).await?.is_some(), "Redis did not stop: {}", self.log());
        Ok(())
    }

    /// Sends SIGKILL, like a power failure.
    pub fn kill9(&mut self) {
        drop(self.server.take());
    }

    /// Starts the server again with the same folder and port, after [`Self::stop`] or
    /// [`Self::kill9`].
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        ensure!(self.server.is_none(), "Redis is running");
        let program = self.root.find(&["/usr/bin/redis-server", "/usr/local/bin/redis-server"])?;
        let log = self.folder.log("output.log")?;
        let append_only = match self.persistence {
            Persistence::None => ["--appendonly", "no"],
            Persistence::Always => ["--appendonly", "yes"],
        };
        let mut command = self.root.command(&program);
        match self.role {
            Role::Single => {}
            Role::Cluster => {
                let bus = self.bus_port.to_string();
                command.args(["--cluster-enabled", "yes", "--cluster-port", &bus]);
            }
            Role::SentinelOf { port, quorum } => {
                let settings = format!(
                    "sentinel monitor main 127.0.0.1 {port} {quorum}\n\
                     sentinel down-after-milliseconds main 1500\n\
                     sentinel failover-timeout main 6000\n"
                );
                fs::write(self.folder.outside("sentinel.conf"), settings)?;
                command.arg(self.folder.inside("sentinel.conf")).arg("--sentinel");
            }
        }
        command
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--appendfsync", "always"])
            .args(append_only)
            .args(&self.more)
            .arg("--dir")
            .arg(&self.folder.inside)
            .current_dir("/")
            .stdout(log.try_clone()?)
            .stderr(log);
        self.server = Some(Guarded::spawn(&mut command)?);
        let ready = within(START_LIMIT, async || match self.server.as_mut().map(Guarded::ended) {
            Some(Ok(None)) => self.cmd(&["PING"]).is_ok().then_some(true),
            _ => Some(false),
        });
        if ready.await == Some(true) {
            return Ok(());
        }
        drop(self.server.take());
        bail!("Redis did not start: {}", self.log())
    }

    /// Freezes the server with its connections open.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.server.as_ref().context("Redis is not running")?.signal(Signal::SIGSTOP)
    }

    pub fn resume(&self) -> anyhow::Result<()> {
        self.server.as_ref().context("Redis is not running")?.signal(Signal::SIGCONT)
    }

    /// Sends one command on a new connection.
    pub fn cmd(&self, words: &[&str]) -> anyhow::Result<Reply> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let login = self.password().map(|password| vec!["AUTH", password]);
        let mut last = Reply::Nil;
        let mut replies = BufReader::new(stream.try_clone()?);
        for words in login.iter().map(Vec::as_slice).chain([words]) {
            let mut request = format!("*{}\r\n", words.len());
            for word in words {
                request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
            }
            stream.write_all(request.as_bytes())?;
            last = read_reply(&mut replies)?;
        }
        Ok(last)
    }

    fn log(&self) -> String {
        tail(&self.folder.outside("output.log"))
    }
}

fn read_reply(stream: &mut BufReader<TcpStream>) -> anyhow::Result<Reply> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let line = line.trim_end();
    let (kind, rest) = line.split_at_checked(1).ok_or_else(|| anyhow!("no reply"))?;
    match kind {
        "+" => Ok(Reply::Text(rest.to_owned())),
        "-" => bail!("Redis replied {rest}"),
        ":" => Ok(Reply::Int(rest.parse()?)),
        "$" | "*" if rest == "-1" => Ok(Reply::Nil),
        "$" => {
            let mut text = vec![0; rest.parse::<usize>()? + 2];
            stream.read_exact(&mut text)?;
            text.truncate(text.len().saturating_sub(2));
            Ok(Reply::Text(String::from_utf8_lossy(&text).into_owned()))
        }
        "*" => {
            let count = rest.parse::<usize>()?;
            Ok(Reply::List((0..count).map(|_| read_reply(stream)).collect::<Result<_, _>>()?))
        }
        _ => bail!("not a reply: {line}"),
    }
}
