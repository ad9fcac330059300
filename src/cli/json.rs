//! One JSON document that is printed as it grows.

use serde_json::Value;

use super::{say_json, say_json_part};

/// An array.
pub(super) struct Array {
    is_empty: bool,
}

impl Array {
    /// Begins to print it.
    pub(super) fn begin() -> Self {
        say_json_part("[");
        Self { is_empty: true }
    }

    /// Prints one more entry.
    pub(super) fn add(&mut self, entry: &Value) {
        let before = if std::mem::replace(&mut self.is_empty, false) { "\n" } else { ",\n" };
        say_json_part(&format!("{before}{entry}"));
    }

    /// Ends it.
    pub(super) fn end(self) {
        say_json(if self.is_empty { &"]" } else { &"\n]" });
    }
}
