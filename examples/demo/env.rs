//! Where the day is processed: everything is started here and ends with it, or runs already.

use std::time::Duration;

use anyhow::Context as _;
use capture_worker::sandbox::Keys;
use serde_json::Value;
use testkit::{
    env::TestEnv,
    processes::{Process, worker_command},
    servers::{Persistence, PrivateRabbit, PrivateRedis},
};

/// The schedules of production, shortened so that a day takes seconds.
pub(crate) const RETRY_SCHEDULE: &str = "500ms,1s,2s,4s";
pub(crate) const DEFER_SCHEDULE: &str = "100ms,250ms,1s";

const WORKERS: usize = 2;
const READY_LIMIT: Duration = Duration::from_secs(60);

/// The addresses that the demo itself uses.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    pub(crate) broker_url: String,
    pub(crate) sandbox_url: String,
}

impl Addresses {
    /// Reads the settings that the demo and the workers share.
    pub(crate) fn from_env() -> anyhow::Result<Self> {
        let get = |name: &str| std::env::var(name).with_context(|| format!("{name} is not set"));
        Ok(Self {
            broker_url: get("CAPTURE__BROKER__URL")?,
            sandbox_url: get("CAPTURE__GATEWAY__BASE_URL")?,
        })
    }
}

/// Private servers, a sandbox and workers. Fields are dropped in order: clients before servers.
#[derive(Debug)]
pub(crate) struct DemoEnv {
    pub(crate) base: TestEnv,
    _sandbox: Process,
    _redis: PrivateRedis,
    _rabbit: PrivateRabbit,
    pub(crate) addresses: Addresses,
}

impl DemoEnv {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let (rabbit, redis, sandbox) = tokio::try_join!(
            PrivateRabbit::start(),
            PrivateRedis::start(Persistence::None),
            start_sandbox(),
        )?;
        let (sandbox, sandbox_url, keys) = sandbox;
        let addresses = Addresses { broker_url: rabbit.url(), sandbox_url };
        let base = TestEnv::new(&rabbit.url(), &redis.url(), &addresses.sandbox_url, &keys);
        let mut base = base.set_all([
            ("BROKER__PREFETCH", "32"),
            ("RETRY__SCHEDULE", RETRY_SCHEDULE),
            ("RETRY__DEFER_SCHEDULE", DEFER_SCHEDULE),
        ]);
        base.scale_up(WORKERS).await?;
        Ok(Self { base, _sandbox: sandbox, _redis: redis, _rabbit: rabbit, addresses })
    }

    /// The settings of everything that runs, as lines for a shell.
    pub(crate) fn exports(&self) -> String {
        let settings = self.base.settings.iter();
        settings.map(|(key, value)| format!("export CAPTURE__{key}={value}\n")).collect()
    }
}

/// Starts the sandbox as an operator does. Returns its URL and the keys that it prints.
async fn start_sandbox() -> anyhow::Result<(Process, String, Keys)> {
    let arguments = ["sandbox", "--listen", "127.0.0.1:0", "--json", "--latency", "20ms"];
    let mut sandbox = Process::spawn(worker_command(&arguments))?;
    let ready = |line: &str| {
        let printed: Value = serde_json::from_str(line).ok()?;
        let text = |name: &str| printed.get(name)?.as_str().map(str::to_owned);
        let keys = Keys {
            client_id: text("client_id")?,
            private_key: text("private_key")?,
            public_key: text("public_key")?,
            // The sandbox keeps its own key to itself, and workers need none.
            gateway_private_key: String::new(),
        };
        Some((format!("http://{}", text("listen")?), keys))
    };
    let (url, keys) = sandbox.line(READY_LIMIT, ready).await.context("start the sandbox")?;
    Ok((sandbox, url, keys))
}
