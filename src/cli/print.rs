//! Output on stdout, for people and for programs; messages on stderr, for the person who called.
//!
//! Somebody may rely on output: a cut-off audit must not pass for the whole. So the first error of
//! stdout is kept, nothing more is written after it (what followed would have a gap before it), and
//! [`finish`] makes it the exit code: a reader that went away has read enough, any other error is a
//! failure. Errors are kept here rather than returned by each function: a process has one stdout,
//! and a caller that forgets a result would report a lost document as done.

use std::{
    io::{self, ErrorKind, Write as _},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::Exit;
use crate::sanitize;

static FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

fn failed() -> MutexGuard<'static, Option<io::Error>> {
    FAILED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Prints a line of output for people.
pub(super) fn say(line: &str) {
    write(&format!("{}\n", sanitize::text(line)));
}

/// Prints a line that is a JSON document or its end.
pub(super) fn say_json(document: &impl ToString) {
    write(&format!("{}\n", sanitize::json(&document.to_string())));
}

/// Prints a part of a JSON document.
pub(super) fn say_json_part(part: &str) {
    write(&sanitize::json(part));
}

fn write(text: &str) {
    let mut failed = failed();
    if failed.is_none() {
        let mut stdout = io::stdout().lock();
        *failed = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).err();
    }
}

/// Notes what became of output that a library printed.
pub(super) fn printed(result: io::Result<()>) {
    let result = result.and_then(|()| io::stdout().flush());
    let mut failed = failed();
    if failed.is_none() {
        *failed = result.err();
    }
}

/// Whether nobody will read what is printed from now on: there is no use in gathering more of it.
pub(super) fn is_lost() -> bool {
    failed().is_some()
}

/// Whether the output is lost, and not because its reader went away.
pub(super) fn has_failed() -> bool {
    failed().as_ref().is_some_and(|error| error.kind() != ErrorKind::BrokenPipe)
}

/// The exit code of a command that came to this: a failure if its output could not be written.
pub(super) fn finish(exit: Exit) -> Exit {
    if !has_failed() {
        return exit;
    }
    if let Some(error) = failed().take() {
        complain(&format!("error: the output could not be written: {error}"));
    }
    if exit == Exit::Done { Exit::Failed } else { exit }
}

/// Prints an error, for the person who called. If nobody reads it, the exit code still tells.
pub(super) fn complain(line: &str) {
    let line = format!("{}\n", sanitize::lines(line));
    io::stderr().lock().write_all(line.as_bytes()).unwrap_or_default();
}
