//! The exit codes of the process.

use std::process::ExitCode;

/// The exit codes that the documents promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0: the command did everything that it was asked to do.
    Done,
    /// 1: something failed or was refused.
    Failed,
    /// 64: the arguments or the settings are wrong. No connection was opened.
    Usage,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Done => Self::from(0),
            Exit::Failed => Self::from(1),
            Exit::Usage => Self::from(64),
        }
    }
}
