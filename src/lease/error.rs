//! The one error of this module.

/// Redis did not respond, refused a command, or gives no leases at present; with the reason.
#[derive(Debug, thiserror::Error)]
#[error("Redis unavailable: {0}")]
pub struct Unavailable(String);

impl Unavailable {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }

    /// The reason alone, such as for a line that already names Redis.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.0
    }
}
