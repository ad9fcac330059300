//! Checks that Redis can do all that leases need. A server that responds may still be a replica, be
//! out of memory, have only some of the slots, or refuse our scripts.

use std::sync::LazyLock;

use futures_util::future::try_join_all;
use redis::{
    AsyncConnectionConfig, Client, ErrorKind, RedisConnectionInfo, RedisError, RedisResult, Script,
    cmd,
};

use super::{
    Acquired, Away, Claim, Leases, Released, Renewed,
    claim::{Keys, Owner},
    link::Wire,
    outage::describe,
};
use crate::domain::{capture::outcome::Release, job::Job};

static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("probe.lua")));

/// How many payments are tried to check all of Redis. They fall into random slots, so a shard with
/// an eighth of the slots is missed once in 70 times, one with a quarter once in 10,000 times.
const SPREAD: usize = 32;

/// Runs the probe script at one payment that does not exist.
pub(super) async fn run(owner: &Owner, wire: &Wire) -> RedisResult<()> {
    let payment = format!("capture-worker-probe-{:016x}", rand::random::<u64>());
    let mut call = SCRIPT.prepare_invoke();
    let keys = Keys::of(owner, &payment, "probe");
    for key in keys.of_payment().into_iter().chain(keys.of_id()) {
        call.key(key);
    }
    call.invoke_async(&mut wire.clone()).await
}

/// Runs the probe script at many payments, because slots may belong to different servers.
pub(super) async fn spread(owner: &Owner, wire: &Wire) -> RedisResult<()> {
    // Always load the script. A user who may run scripts but not load them would otherwise fail
    // only at another server, or after a restart, where the script is not loaded yet.
    SCRIPT.prepare_invoke().load_async(&mut wire.clone()).await?;
    try_join_all((0..SPREAD).map(|_| run(owner, wire))).await.map(drop)
}

/// Checks all of Redis. The client of a Cluster repeats a call until a time-out, and reports only
/// the time-out; then `reason` gives the server's own error.
pub(super) async fn whole(
    owner: &Owner,
    wire: &Wire,
    reason: impl Future<Output = Option<RedisError>>,
) -> RedisResult<()> {
    match spread(owner, wire).await {
        Err(error) if error.code().is_none() => Err(reason.await.unwrap_or(error)),
        tried => tried,
    }
}

/// The maximum number of servers that are asked why connecting failed.
const ASKED_MAX: usize = 3;

/// Why connecting failed, as the servers themselves report it. The client of a Cluster wraps their
/// errors, and every client drops the server's text when a password is refused.
pub(super) async fn refusal(
    owner: &Owner,
    servers: &[Client],
    config: &AsyncConnectionConfig,
) -> Option<RedisError> {
    let mut found = None;
    for server in servers.iter().take(ASKED_MAX) {
        match server.get_multiplexed_async_connection_with_config(config).await {
            Ok(connection) => {
                let refused = alone(owner, &Wire::Single(connection)).await;
                if refused.is_some() {
                    return refused;
                }
            }
            Err(error) if error.kind() == ErrorKind::AuthenticationFailed => {
                return Some(auth(server, config).await.unwrap_or(error));
            }
            Err(error) => found = Some(error),
        }
    }
    found
}

/// The error with which one node of a Cluster refuses the probe. Slots of other nodes don't count.
async fn alone(owner: &Owner, wire: &Wire) -> Option<RedisError> {
    for _ in 0..SPREAD {
        match run(owner, wire).await {
            Err(error) if !matches!(error.code(), Some("MOVED" | "ASK")) => return Some(error),
            _ => {}
        }
    }
    None
}

/// The error with which a server refuses our credentials.
async fn auth(server: &Client, config: &AsyncConnectionConfig) -> Option<RedisError> {
    let info = server.get_connection_info();
    let ours = info.redis_settings();
    let mut auth = cmd("AUTH");
    for word in [ours.username(), ours.password()].into_iter().flatten() {
        auth.arg(word);
    }
    let nobody = info.clone().set_redis_settings(RedisConnectionInfo::default());
    let mut connection = Client::open(nobody)
        .ok()?
        .get_multiplexed_async_connection_with_config(config)
        .await
        .ok()?;
    auth.exec_async(&mut connection).await.err()
}

impl Leases {
    /// Connects, and runs each script once at a payment that does not exist. Nothing is left
    /// behind.
    ///
    /// # Errors
    /// The command that Redis refused, with its own error text.
    pub async fn try_out(&self) -> Result<(), Away> {
        self.link.borrow_connection().await.map_err(|error| Away(describe(&error)))?;
        let tried = self.take_and_give_back().await;
        self.link.drop_connection();
        tried
    }

    async fn take_and_give_back(&self) -> Result<(), Away> {
        let [first, second] = self.scratch().map_err(Away)?;
        let tried = self.take_and_hand_over(&first, &second).await;
        if tried.is_err() {
            // If the connection is lost, the lease expires after its time to live.
            for claim in [first, second] {
                drop(self.forget(&claim).await);
            }
        }
        tried
    }

    async fn take_and_hand_over(&self, first: &Claim, second: &Claim) -> Result<(), Away> {
        let Acquired::Taken(mut lease) = self.acquire(first, true).await? else {
            return Err(Away("acquire.lua returned no lease of an unused payment".into()));
        };
        if self.renew(&mut lease, true, None).await? != Renewed::Kept {
            return Err(Away("renew.lua returned that a new lease is lost".into()));
        }
        let handed = self.hand_over(&lease, &Release::TakeBack, second, true).await?;
        let (Released { kept: true, .. }, Acquired::Taken(lease)) = handed else {
            return Err(Away("hand_over.lua returned that a new lease is lost".into()));
        };
        if !self.release(&lease, &Release::TakeBack).await?.kept {
            return Err(Away("release.lua returned that a new lease is lost".into()));
        }
        Ok(())
    }

    /// The claims of two captures of one payment that does not exist.
    fn scratch(&self) -> Result<[Claim; 2], String> {
        let payment = format!("capture-worker-check-{:016x}", rand::random::<u64>());
        let claim = |id: &str| {
            let amount = r#"{"currency":"HKD","value":"1"}"#;
            let job = format!(
                r#"{{"captureRequestId":"{id}","paymentId":"{payment}","captureAmount":{amount}}}"#
            );
            let job =
                Job::parse(job.as_bytes()).map_err(|malformed| malformed.reason.to_string())?;
            Ok::<_, String>(self.claim(&job, true))
        };
        Ok([claim("first")?, claim("second")?])
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    /// The upper-case words in quotation marks that follow each `before`.
    fn quoted<'t>(text: &'t str, before: &str) -> BTreeSet<&'t str> {
        let quoted = text.split(before).skip(1).filter_map(|rest| rest.split(['\'', '"']).next());
        quoted.filter(|word| word.chars().all(|c| c.is_ascii_uppercase())).collect()
    }

    #[test]
    fn the_probe_tries_every_command_that_the_leases_use() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lease");
        let probed = quoted(include_str!("probe.lua"), "try('");
        let mut used = 0;
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with("probe") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            for before in ["call('", "cmd(\"", "read(\"", ">(\""] {
                for command in quoted(&text, before) {
                    // Commands of the set-up are run before any lease, not by the scripts.
                    let of_set_up = ["AUTH", "CLUSTER", "INFO", "ROLE"].contains(&command);
                    let is_tried = probed.contains(command) || of_set_up;
                    assert!(is_tried, "{name} uses {command}: probe.lua must try it");
                    used += 1;
                }
            }
        }
        assert!(used > 20, "only {used} commands were found");
    }
}
