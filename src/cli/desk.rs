//! What the commands for operators share: who acts, the connection to Redis, confirmation, and
//! ages.

use std::{
    io::{BufRead as _, IsTerminal as _},
    time::Duration,
};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::print_error;
use crate::{dead_letters::Who, lease::Leases, sanitize};

/// How long a command waits for Redis before it starts without it.
const REDIS_TIMEOUT: Duration = Duration::from_secs(3);

/// Who acts, for the audit: `user@host` of the operating system and, with `as_`, on whose behalf.
pub(super) fn who(as_: Option<String>) -> Who {
    let user = whoami::username().unwrap_or_else(|_| "unknown".into());
    let host = whoami::hostname().unwrap_or_else(|_| "unknown".into());
    Who { user: format!("{user}@{host}"), as_ }
}

/// Connects to Redis. After [`REDIS_TIMEOUT`] the task that is returned goes on trying.
pub(super) async fn connect_redis(leases: &Leases) -> JoinHandle<()> {
    let keeper = tokio::spawn({
        let leases = leases.clone();
        async move { leases.keep_connected(CancellationToken::new()).await }
    });
    let mut up = leases.up();
    // A time-out is not an error here: the first call that needs Redis reports it.
    drop(tokio::time::timeout(REDIS_TIMEOUT, up.wait_for(|up| *up)).await);
    keeper
}

/// Whether stdin is a terminal, so that a question can be answered.
pub(super) fn can_ask() -> bool {
    std::io::stdin().is_terminal()
}

/// Asks a question on the terminal. True only if the answer is yes; Ctrl-C means no.
pub(super) async fn confirm(question: &str, stop: &CancellationToken) -> bool {
    print_error(&format!("{question} [y/N]"));
    let answer = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer).map(|_| answer)
    });
    let answer = tokio::select! {
        () = stop.cancelled() => return false,
        answer = answer => answer,
    };
    matches!(answer, Ok(Ok(answer)) if matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// An age in one unit, as `--older-than` reads it: `3d`, `47h`, `119m`, `5s`. Less than two of a
/// unit is written in the next smaller unit: `1h` could be anything up to two hours.
pub(super) fn age(ms: i64) -> String {
    let seconds = ms.max(0) / 1000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Text that somebody else wrote, on one line, with every hidden and control character escaped: it
/// must not change what a terminal shows.
pub(super) fn plain(text: &str) -> String {
    sanitize::text(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::duration;

    #[test]
    fn ages_can_be_read_as_durations_by_the_command_line() {
        for (seconds, text) in [
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (7199, "119m"),
            (7260, "2h"),
            (172_799, "47h"),
            (262_800, "3d"),
        ] {
            assert_eq!(age(seconds * 1000), text);
            assert!(duration::parse(text).is_ok(), "{text}");
        }
    }
}
