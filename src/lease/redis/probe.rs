//! Checks that Redis can do all that leases need. A server that responds may still be a replica, be
//! out of memory, have only some of the slots, or refuse our scripts.

use std::sync::LazyLock;

use futures_util::future::try_join_all;
use redis::{
    AsyncConnectionConfig, Client, ErrorKind, RedisConnectionInfo, RedisError, RedisResult, Script,
    cmd,
};

use super::connection::RedisConnection;
use crate::lease::{Owner, claim::PaymentKeys};

static SCRIPT: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../scripts/probe.lua")));

/// How many payments are tried to check all of Redis. They fall into random slots, so a shard with
/// an eighth of the slots is missed once in 70 times, one with a quarter once in 10,000 times.
const SPREAD: usize = 32;

/// Runs the probe script at one payment that does not exist.
pub(super) async fn run(owner: &Owner, connection: &RedisConnection) -> RedisResult<()> {
    let payment = format!("capture-worker-probe-{:016x}", rand::random::<u64>());
    let mut call = SCRIPT.prepare_invoke();
    let keys = PaymentKeys::of(owner, &payment, "probe");
    for key in keys.of_payment().into_iter().chain(keys.of_id()) {
        call.key(key);
    }
    call.invoke_async(&mut connection.clone()).await
}

/// Runs the probe script at many payments, because slots may belong to different servers.
pub(super) async fn spread(owner: &Owner, connection: &RedisConnection) -> RedisResult<()> {
    // Always load the script. A user who may run scripts but not load them would otherwise fail
    // only at another server, or after a restart, where the script is not loaded yet.
    SCRIPT.prepare_invoke().load_async(&mut connection.clone()).await?;
    try_join_all((0..SPREAD).map(|_| run(owner, connection))).await.map(drop)
}

/// Checks all of Redis. The client of a Cluster repeats a call until a time-out, and reports only
/// the time-out; then `reason` gives the server's own error.
pub(super) async fn check_all(
    owner: &Owner,
    connection: &RedisConnection,
    reason: impl Future<Output = Option<RedisError>>,
) -> RedisResult<()> {
    match spread(owner, connection).await {
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
                let refused = alone(owner, &RedisConnection::Single(connection)).await;
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
async fn alone(owner: &Owner, connection: &RedisConnection) -> Option<RedisError> {
    for _ in 0..SPREAD {
        match run(owner, connection).await {
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
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lease");
        let folders = ["", "redis", "scripts"].map(|folder| fs::read_dir(root.join(folder)));
        let probed = quoted(include_str!("../scripts/probe.lua"), "try('");
        let mut used = 0;
        for entry in folders.into_iter().flat_map(Result::unwrap) {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with("probe") || path.is_dir() {
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
