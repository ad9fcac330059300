//! The reason why Redis gives no leases. It is kept for `/readyz` and errors, and logged once for
//! each kind of reason until Redis gives leases again.

use std::sync::{Mutex, MutexGuard, PoisonError};

use redis::{ErrorKind, RedisError};

/// How many kinds of reasons are logged in one outage, because servers choose their error codes.
const KINDS_MAX: usize = 16;
/// The maximum length of a server's error text, in characters.
const DETAIL_CHARS_MAX: usize = 300;

/// The present outage of Redis, if there is one.
#[derive(Default)]
pub(super) struct Outage(Mutex<OutageState>);

#[derive(Default)]
struct OutageState {
    reason: Option<String>,
    logged: Vec<String>,
}

impl Outage {
    /// Records why no connection works. Returns whether the reason must be logged.
    pub(super) fn begins(&self, error: &RedisError) -> bool {
        let mut state = self.lock();
        state.reason = Some(reason(error));
        state.is_new(kind(error))
    }

    /// Records why a call failed. Returns whether the reason must be logged: an I/O error ends the
    /// connection, and is logged as the end of the connection.
    pub(super) fn call_failed(&self, error: &RedisError) -> bool {
        !error.is_io_error() && self.lock().is_new(format!("call {}", kind(error)))
    }

    /// Ends the outage: Redis gives leases again.
    pub(super) fn ends(&self) {
        *self.lock() = OutageState::default();
    }

    /// Why no connection works, if that is known.
    pub(super) fn reason(&self) -> Option<String> {
        self.lock().reason.clone()
    }

    fn lock(&self) -> MutexGuard<'_, OutageState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OutageState {
    fn is_new(&mut self, kind: String) -> bool {
        let is_new = self.logged.len() < KINDS_MAX && !self.logged.contains(&kind);
        if is_new {
            self.logged.push(kind);
        }
        is_new
    }
}

/// The kind of an error, without details that differ each time, such as an address.
fn kind(error: &RedisError) -> String {
    error.code().unwrap_or_else(|| error.category()).to_owned()
}

fn reason(error: &RedisError) -> String {
    let text = describe(error);
    if error.code().is_some() || error.kind() == ErrorKind::AuthenticationFailed {
        format!("refused by the server: {text}")
    } else if error.is_io_error() {
        format!("connection failed: {text}")
    } else {
        text
    }
}

/// The text of an error, without the address, which may include a password.
pub(super) fn describe(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => {
            // After these words, Redis repeats the arguments of the command, such as a password.
            let detail = detail.split("with args beginning with").next().unwrap_or_default();
            let detail: String = detail.chars().take(DETAIL_CHARS_MAX).collect();
            format!("{code} {}", detail.trim_end_matches([',', ' ']))
        }
        (Some(code), None) => code.to_owned(),
        (None, Some(detail)) if error.is_io_error() => format!("{}: {detail}", error.category()),
        (None, _) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use redis::{ServerErrorKind, make_extension_error};

    use super::*;

    fn error(code: &str, detail: &str) -> RedisError {
        make_extension_error(code.to_owned(), Some(detail.to_owned()))
    }

    #[test]
    fn a_reason_is_logged_once_for_each_kind_and_outage() {
        let outage = Outage::default();
        let moved = |slot: u16| {
            RedisError::from((ServerErrorKind::Moved.into(), "moved", format!("{slot} host:1")))
        };
        assert!(outage.begins(&moved(1)));
        assert!(!outage.begins(&moved(2)));
        assert!(outage.begins(&error("WRONGPASS", "no")));
        assert!(!outage.begins(&moved(3)));
        assert!(outage.call_failed(&error("WRONGTYPE", "no")), "of a call, not of the connection");
        assert_eq!(outage.reason().as_deref(), Some("refused by the server: MOVED 3 host:1"));
        outage.ends();
        assert_eq!(outage.reason(), None);
        assert!(outage.begins(&moved(4)));
        assert!((0..100).filter(|n| outage.begins(&error(&format!("E{n}"), ""))).count() < 16);
    }

    #[test]
    fn an_error_text_never_shows_a_password() {
        let echo = "unknown command 'AUTH', with args beginning with: 'secret' ";
        assert_eq!(describe(&error("ERR", echo)), "ERR unknown command 'AUTH'");
    }
}
