//! A private `RabbitMQ` node with a private epmd, and a cluster of three nodes.

mod cluster;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Output},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::Signal;

pub use self::cluster::RabbitCluster;
use super::{Folder, Root, free_port, tail};
use crate::{guardian::Guarded, poll::within};

const ROOT: &str = "CAPTURE_TEST_RABBITMQ_ROOT";
const START_LIMIT: Duration = Duration::from_secs(90);
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// Short timeouts for fast tests; a small log and small memory limits for a laptop.
const CONFIG: &str = "\
vm_memory_high_watermark.absolute = 1GB
disk_free_limit.absolute = 10MB
raft.wal_max_size_bytes = 33554432
log.file.level = info
";

/// A `RabbitMQ` node that lives as long as this value. It has its own folders, ports, node name,
/// cookie and epmd.
#[derive(Debug)]
pub struct PrivateRabbit {
    /// Fields are dropped in order: the node must end before its epmd and its folder.
    node: Option<Guarded>,
    /// The port mapper. The nodes of a cluster share it.
    epmd: Arc<Guarded>,
    place: Place,
}

/// The cookie and the epmd that the nodes of one cluster share.
#[derive(Debug)]
struct Family {
    cookie: String,
    epmd_port: u16,
}

impl Family {
    fn fresh() -> anyhow::Result<Self> {
        Ok(Self { cookie: format!("{:032X}", rand::random::<u128>()), epmd_port: free_port()? })
    }
}

/// What a node keeps when it is stopped and started again.
#[derive(Debug)]
struct Place {
    root: Root,
    folder: Folder,
    amqp_port: u16,
    dist_port: u16,
    epmd_port: u16,
    node_name: String,
}

impl PrivateRabbit {
    /// Starts a new node and waits until it is ready for clients. If another process took one of
    /// its ports meanwhile, tries other ports.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with("listeners.ssl = none\n").await
    }

    /// [`Self::start`] with additional lines of `rabbitmq.conf`.
    pub async fn start_with(config: &str) -> anyhow::Result<Self> {
        let mut tries_left = 3;
        loop {
            tries_left -= 1;
            match Self::start_once(config).await {
                Err(err) if tries_left > 0 && format!("{err:#}").contains("eaddrinuse") => {}
                done => return done,
            }
        }
    }

    async fn start_once(config: &str) -> anyhow::Result<Self> {
        let place = Place::create(&Family::fresh()?)?;
        place.configure(config)?;
        let epmd = Arc::new(place.start_epmd().await?);
        let mut started = Self { node: None, epmd, place };
        started.start_again().await?;
        Ok(started)
    }

    /// A folder that nodes can read, for the files that their settings name.
    pub fn files() -> anyhow::Result<Folder> {
        Root::from_env(ROOT).folder()
    }

    /// The URL for clients, with the default user and virtual host.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.place.amqp_port)
    }

    pub fn port(&self) -> u16 {
        self.place.amqp_port
    }

    /// The ids of the processes that must end when this is dropped: the node and its epmd.
    pub fn pids(&self) -> Vec<u32> {
        self.node.iter().chain([&*self.epmd]).map(Guarded::pid).collect()
    }

    /// Runs `rabbitmqctl` against this node and returns its output. Takes one or two seconds.
    pub async fn ctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = self.place.command("rabbitmqctl")?;
        command.arg("-q").args(arguments);
        let Output { status, stdout, stderr } =
            tokio::task::spawn_blocking(move || command.output()).await??;
        let stdout = String::from_utf8_lossy(&stdout).into_owned();
        let stderr = String::from_utf8_lossy(&stderr);
        ensure!(status.success(), "rabbitmqctl {arguments:?}: {status}\n{stdout}{stderr}");
        Ok(stdout)
    }

    /// Stops the node cleanly, as an operator does.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        let mut node = self.node.take().context("the node is not running")?;
        node.signal(Signal::SIGTERM)?;
        ensure!(node.wait(STOP_LIMIT).await?.is_some(), "the node did not stop: {}", self.log());
        Ok(())
    }

    /// Writes the names of new quorum queues to disk, so that they survive [`Self::kill9`].
    ///
    /// Confirmed messages are on disk. But 3.10 writes the name under which it finds a queue's log
    /// only about one second after the declaration. If the node is killed before that, the queue
    /// never gets a leader again.
    pub async fn write_queue_names(&self) -> anyhow::Result<()> {
        self.ctl(&["eval", "[ok = dets:sync(Table) || Table <- dets:all()]."]).await.map(drop)
    }

    /// Sends SIGKILL, like a power failure. Call [`Self::write_queue_names`] before if queues are
    /// younger than a few seconds.
    pub fn kill9(&mut self) {
        drop(self.node.take());
    }

    /// Starts the node again with the same folders and ports, after [`Self::stop`] or
    /// [`Self::kill9`].
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        ensure!(self.node.is_none(), "the node is running");
        let log = self.place.folder.log("output.log")?;
        let mut command = self.place.command("rabbitmq-server")?;
        command.stdout(log.try_clone()?).stderr(log);
        let node = self.node.insert(Guarded::spawn(&mut command)?);
        let port = self.place.amqp_port;
        let ready = within(START_LIMIT, async || match node.ended() {
            Ok(Some(_)) | Err(_) => Some(false),
            Ok(None) => speaks_amqp(port).is_ok().then_some(true),
        });
        if ready.await == Some(true) {
            return Ok(());
        }
        drop(self.node.take());
        bail!("RabbitMQ did not start: {}", self.log())
    }

    /// Freezes the node with its connections open, like a stalled machine.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.node.as_ref().context("the node is not running")?.signal(Signal::SIGSTOP)
    }

    pub fn resume(&self) -> anyhow::Result<()> {
        self.node.as_ref().context("the node is not running")?.signal(Signal::SIGCONT)
    }

    fn log(&self) -> String {
        let node_log = format!("log/{}.log", self.place.node_name);
        let folder = &self.place.folder;
        format!("{}\n{}", tail(&folder.outside("output.log")), tail(&folder.outside(&node_log)))
    }
}

impl Place {
    fn create(family: &Family) -> anyhow::Result<Self> {
        let root = Root::from_env(ROOT);
        let folder = root.folder()?;
        let cookie = folder.outside(".erlang.cookie");
        fs::write(&cookie, &family.cookie)?;
        fs::set_permissions(&cookie, fs::Permissions::from_mode(0o400))?;
        fs::write(folder.outside("enabled_plugins"), "[].\n")?;
        let amqp_port = free_port()?;
        Ok(Self {
            root,
            folder,
            amqp_port,
            dist_port: free_port()?,
            epmd_port: family.epmd_port,
            node_name: format!("capture-{amqp_port}@localhost"),
        })
    }

    /// Writes `rabbitmq.conf` with these settings and those of every node.
    fn configure(&self, config: &str) -> anyhow::Result<()> {
        let file = self.folder.outside("rabbitmq.conf");
        fs::write(file, format!("{CONFIG}{config}")).context("a node's settings")
    }

    /// Starts epmd in the foreground, before the node. Otherwise the node starts one that survives
    /// it.
    async fn start_epmd(&self) -> anyhow::Result<Guarded> {
        let program = self.root.find(&["/usr/bin/epmd"])?;
        let log = self.folder.log("epmd.log")?;
        let mut epmd = Guarded::spawn(
            self.root
                .command(&program)
                .args(["-port", &self.epmd_port.to_string(), "-address", "127.0.0.1"])
                .stdout(log.try_clone()?)
                .stderr(log),
        )?;
        let listens = within(Duration::from_secs(20), async || match epmd.ended() {
            Ok(None) => TcpStream::connect((Ipv4Addr::LOCALHOST, self.epmd_port)).ok().map(drop),
            _ => None,
        });
        if listens.await.is_some() {
            return Ok(epmd);
        }
        bail!("epmd did not start (eaddrinuse?): {}", tail(&self.folder.outside("epmd.log")))
    }

    /// A command of `RabbitMQ`, called directly: the system's wrapper would switch to another user.
    fn command(&self, name: &str) -> anyhow::Result<Command> {
        let program = self.root.find(&[&format!("/usr/lib/rabbitmq/bin/{name}")])?;
        let mut command = self.root.command(&program);
        let paths = [
            ("HOME", "."),
            ("RABBITMQ_MNESIA_BASE", "data"),
            ("RABBITMQ_LOG_BASE", "log"),
            ("RABBITMQ_PID_FILE", "pid"),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", "enabled_plugins"),
            ("RABBITMQ_CONFIG_FILE", "rabbitmq.conf"),
            ("RABBITMQ_ADVANCED_CONFIG_FILE", "advanced.config"),
            ("RABBITMQ_CONF_ENV_FILE", "no-such-file"),
            ("RABBITMQ_GENERATED_CONFIG_DIR", "generated"),
            ("ERL_CRASH_DUMP", "erl_crash.dump"),
        ];
        command.envs(paths.map(|(variable, path)| (variable, self.inside(path))));
        command
            .env("RABBITMQ_NODENAME", &self.node_name)
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", self.amqp_port.to_string())
            .env("RABBITMQ_DIST_PORT", self.dist_port.to_string())
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            // The last three flags keep an idle node from spinning, which uses a core.
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "-kernel inet_dist_use_interface {127,0,0,1} \
                 +sbwt none +sbwtdcpu none +sbwtdio none",
            )
            // Makes the start script replace itself by the node, so that its process id is the
            // node's.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            .current_dir("/");
        Ok(command)
    }

    fn inside(&self, name: &str) -> PathBuf {
        self.folder.inside(name)
    }
}

/// Whether the listener answers the AMQP protocol header, which it does only after the boot.
fn speaks_amqp(port: u16) -> std::io::Result<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"AMQP\0\0\x09\x01")?;
    let mut connection_start = [0; 11];
    stream.read_exact(&mut connection_start)?;
    Ok(())
}
