//! A JSON array that is printed entry by entry, so that a long one needs little memory.

use serde_json::Value;

use super::{print_json, print_json_part};

/// An array whose beginning is printed already.
pub(super) struct Array {
    is_empty: bool,
}

impl Array {
    /// Prints the opening bracket.
    pub(super) fn begin() -> Self {
        print_json_part("[");
        Self { is_empty: true }
    }

    /// Prints one more entry, on a line of its own.
    pub(super) fn add(&mut self, entry: &Value) {
        let before = if std::mem::replace(&mut self.is_empty, false) { "\n" } else { ",\n" };
        print_json_part(&format!("{before}{entry}"));
    }

    /// Prints the closing bracket. Without it, the document is not valid JSON.
    pub(super) fn end(self) {
        print_json(if self.is_empty { &"]" } else { &"\n]" });
    }
}
