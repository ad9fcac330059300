//! Output to stdout, for people and for programs; errors and questions to stderr.
//!
//! A truncated document must not look complete: somebody may archive an audit that lacks its end.
//! So this module keeps the first error of stdout, writes nothing after it (later output would
//! follow a gap), and [`finish`] turns it into the exit code. A closed pipe is not a failure: the
//! reader has read what it wanted. Any other error is one. Errors are kept here instead of returned
//! by each function, because a process has one stdout, and a caller that ignored a result would
//! report a lost document as complete.

use std::{
    io::{self, ErrorKind, Write as _},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::exit::Exit;
use crate::sanitize;

static FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

fn failed() -> MutexGuard<'static, Option<io::Error>> {
    FAILED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Prints one line for people. Hidden and control characters are escaped.
pub(super) fn print_line(line: &str) {
    write(&format!("{}\n", sanitize::text(line)));
}

/// Prints a JSON document, or the end of one, and a line feed.
pub(super) fn print_json(document: &impl ToString) {
    write(&format!("{}\n", sanitize::json(&document.to_string())));
}

/// Prints a part of a JSON document, without a line feed.
pub(super) fn print_json_part(part: &str) {
    write(&sanitize::json(part));
}

/// Prints a text that has its own line feeds and needs no escapes: a script, a manual page, or a
/// table whose cells are escaped.
pub(super) fn print_verbatim(text: &str) {
    write(text);
}

fn write(text: &str) {
    let mut failed = failed();
    if failed.is_none() {
        let mut stdout = io::stdout().lock();
        *failed = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).err();
    }
}

/// Records whether output that a library printed (the help text) was written.
pub(super) fn printed(result: io::Result<()>) {
    let result = result.and_then(|()| io::stdout().flush());
    let mut failed = failed();
    if failed.is_none() {
        *failed = result.err();
    }
}

/// Whether stdout failed or its reader closed it. A command that only reads can stop then.
pub(super) fn is_lost() -> bool {
    failed().is_some()
}

/// Whether output was lost for another reason than a closed pipe, such as a full disk.
pub(super) fn has_failed() -> bool {
    failed().as_ref().is_some_and(|error| error.kind() != ErrorKind::BrokenPipe)
}

/// The exit code of a command that ended with `exit`: [`Exit::Failed`] instead of [`Exit::Done`] if
/// its output could not be written.
pub(super) fn finish(exit: Exit) -> Exit {
    if !has_failed() {
        return exit;
    }
    if let Some(error) = failed().take() {
        print_error(&format!("error: cannot write the output: {error}"));
    }
    if exit == Exit::Done { Exit::Failed } else { exit }
}

/// Prints an error, a warning or a question to stderr. Whether that works does not matter: the exit
/// code reports a failure too.
pub(super) fn print_error(line: &str) {
    let line = format!("{}\n", sanitize::lines(line));
    io::stderr().lock().write_all(line.as_bytes()).unwrap_or_default();
}
