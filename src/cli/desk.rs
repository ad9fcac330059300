//! What operators' commands share: who acts, the connection to Redis, confirmation, and how ages and rows are written.

use std::{
    io::{BufRead as _, IsTerminal as _},
    time::Duration,
};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{complain, say};
use crate::{dead_letters::Who, lease::Leases, sanitize};

/// How long Redis may take to be connected to before work begins without it.
const REDIS_TIMEOUT: Duration = Duration::from_secs(3);

/// Who acts: the user of the operating system and the host, and in whose name.
pub(super) fn who(as_: Option<String>) -> Who {
    let user = whoami::username().unwrap_or_else(|_| "unknown".into());
    let host = whoami::hostname().unwrap_or_else(|_| "unknown".into());
    Who { user: format!("{user}@{host}"), as_ }
}

/// Connects to Redis, in the background if that takes long.
pub(super) async fn connect_redis(leases: &Leases) -> JoinHandle<()> {
    let keeper = tokio::spawn({
        let leases = leases.clone();
        async move { leases.keep_connected(CancellationToken::new()).await }
    });
    let mut up = leases.up();
    // Whoever needs it says that it is away.
    drop(tokio::time::timeout(REDIS_TIMEOUT, up.wait_for(|up| *up)).await);
    keeper
}

/// Whether there is somebody to ask.
pub(super) fn can_ask() -> bool {
    std::io::stdin().is_terminal()
}

/// Asks, unless Ctrl-C comes first: whether the answer is yes.
pub(super) async fn confirm(question: &str, stop: &CancellationToken) -> bool {
    complain(&format!("{question} [y/N]"));
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

/// An age in one unit, as `--older-than` reads it: `3d`, `47h`, `119m`, `5s`. Below two of a unit
/// the next smaller one tells more.
pub(super) fn age(ms: i64) -> String {
    let seconds = ms.max(0) / 1000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Rows of a table that are kept until the widths of its columns are known.
const ROWS_MEASURED: usize = 1000;

/// A table whose columns are as wide as the widest cell of its first rows; the last one is as long as it is.
pub(super) struct Table<const N: usize> {
    widths: [usize; N],
    rows: Vec<[String; N]>,
    is_measured: bool,
}

impl<const N: usize> Table<N> {
    /// A table with this head.
    pub(super) fn new(head: [&str; N]) -> Self {
        let mut table = Self { widths: [0; N], rows: Vec::new(), is_measured: false };
        table.add(head.map(str::to_owned));
        table
    }

    /// Adds a row.
    pub(super) fn add(&mut self, row: [String; N]) {
        if self.is_measured {
            return say(&self.line(&row));
        }
        for (width, cell) in self.widths.iter_mut().zip(&row) {
            *width = (*width).max(cell.chars().count());
        }
        self.rows.push(row);
        if self.rows.len() >= ROWS_MEASURED {
            self.flush();
        }
    }

    /// Prints what was not printed yet.
    pub(super) fn flush(&mut self) {
        self.is_measured = true;
        for row in std::mem::take(&mut self.rows) {
            say(&self.line(&row));
        }
    }

    fn line(&self, row: &[String; N]) -> String {
        let mut line = String::new();
        for (width, cell) in self.widths.into_iter().zip(row) {
            let pad = width.saturating_sub(cell.chars().count()) + 2;
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', pad));
        }
        line.trim_end().to_owned()
    }
}

/// What others wrote, on one line, with every hidden character written out.
pub(super) fn plain(text: &str) -> String {
    sanitize::text(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::duration;

    #[test]
    fn ages_are_durations_that_the_command_line_reads() {
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

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_no_row_ends_in_blanks() {
        let mut table = Table::new(["A", "B"]);
        table.add(["long".into(), "b".into()]);
        let lines: Vec<_> = table.rows.iter().map(|row| table.line(row)).collect();
        assert_eq!(lines, ["A     B", "long  b"]);
        assert_eq!(plain("a\u{1b}[31mb"), "a\\u{1b}[31mb");
    }
}
