//! A private Redis, and enough of its protocol to look inside; and several that stand in for each other.

mod failover;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail, ensure};
use nix::sys::signal::Signal;

pub(crate) use self::failover::{RedisCluster, WatchedRedis};
use super::{Folder, Root, free_port, tail};
use crate::support::{guardian::Guarded, poll::within};

const ROOT: &str = "CAPTURE_TEST_REDIS_ROOT";
const START_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// What a Redis still knows after it was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Persistence {
    /// Nothing.
    None,
    /// Every write that it answered (an append-only file, synced each time).
    Always,
}

/// A Redis that lives as long as this value.
#[derive(Debug)]
pub(crate) struct PrivateRedis {
    /// Before the folder: dropped in this order.
    server: Option<Guarded>,
    root: Root,
    folder: Folder,
    port: u16,
    /// Where a Cluster's node speaks with the others: by default ten thousand higher than it may be.
    bus_port: u16,
    persistence: Persistence,
    role: Role,
    /// More words for its command line.
    more: Vec<String>,
}

/// What a server is to its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// A server on its own.
    Single,
    /// A node of a Cluster.
    Cluster,
    /// A Sentinel of a server on this port; so many of them must agree that it is lost.
    SentinelOf { port: u16, quorum: usize },
}

/// An answer of Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Nil,
    Int(i64),
    Text(String),
    List(Vec<Self>),
}

impl PrivateRedis {
    /// A fresh server, ready for clients. Tries other ports if somebody was quicker to take one.
    pub(crate) async fn start(persistence: Persistence) -> anyhow::Result<Self> {
        Self::start_as(persistence, Role::Single, &[]).await
    }

    /// With more words on its command line.
    pub(crate) async fn start_with(more: &[String]) -> anyhow::Result<Self> {
        Self::start_as(Persistence::None, Role::Single, more).await
    }

    /// A Cluster of one node.
    pub(crate) async fn start_cluster() -> anyhow::Result<Self> {
        let node = Self::start_as(Persistence::None, Role::Cluster, &[]).await?;
        node.cmd(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"])?;
        let whole = async || match node.cmd(&["CLUSTER", "INFO"]) {
            Ok(Reply::Text(info)) => info.contains("cluster_state:ok"),
            _ => false,
        };
        within(START_LIMIT, whole).await.context("the Cluster did not become whole")?;
        Ok(node)
    }

    /// A Sentinel that watches this server under the name `main`.
    pub(crate) async fn start_sentinel(&self) -> anyhow::Result<Self> {
        self.start_sentinel_with(&[]).await
    }

    /// The same with more words on its command line, such as those by which it asks for a password.
    pub(crate) async fn start_sentinel_with(&self, more: &[String]) -> anyhow::Result<Self> {
        let role = Role::SentinelOf { port: self.port, quorum: 1 };
        let sentinel = Self::start_as(Persistence::None, role, more).await?;
        if let Some(password) = self.password() {
            sentinel.cmd(&["SENTINEL", "SET", "main", "auth-pass", password])?;
        }
        Ok(sentinel)
    }

    /// What clients must sign in with.
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
    pub(crate) fn files() -> anyhow::Result<Folder> {
        Root::from_env(ROOT).folder()
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The process ids that must be gone when this is.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.server.iter().map(Guarded::pid).collect()
    }

    /// In good order.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        let mut server = self.server.take().context("Redis is not running")?;
        server.signal(Signal::SIGTERM)?;
        ensure!(server.wait(STOP_LIMIT).await?.is_some(), "Redis did not stop: {}", self.log());
        Ok(())
    }

    /// At once, as if the power had failed.
    pub(crate) fn kill9(&mut self) {
        drop(self.server.take());
    }

    /// On the same folder and port, after [`Self::stop`] or [`Self::kill9`].
    pub(crate) async fn start_again(&mut self) -> anyhow::Result<()> {
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

    /// Frozen, connections stay open.
    pub(crate) fn pause(&self) -> anyhow::Result<()> {
        self.server.as_ref().context("Redis is not running")?.signal(Signal::SIGSTOP)
    }

    pub(crate) fn resume(&self) -> anyhow::Result<()> {
        self.server.as_ref().context("Redis is not running")?.signal(Signal::SIGCONT)
    }

    /// One command on a connection of its own.
    pub(crate) fn cmd(&self, words: &[&str]) -> anyhow::Result<Reply> {
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
        "-" => bail!("Redis says {rest}"),
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
