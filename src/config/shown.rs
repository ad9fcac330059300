//! How errors and `check` show values, paths and delays. Texts that may be secrets are not shown.

use std::{path::Path, time::Duration};

use crate::domain::duration::show as time;

/// Errors don't show values that are longer than this: they may be keys.
const SHOWN_CHARS_MAX: usize = 60;
/// The longest path that errors show, in bytes. A longer one may be a key instead of a path.
const PATH_BYTES_MAX: usize = 255;

/// A value as errors show it. A value that may be a secret under the wrong key is not shown.
pub(super) fn shown(text: &str) -> String {
    let may_be_secret = text.chars().count() > SHOWN_CHARS_MAX
        || text.contains(char::is_control)
        || ["://", "@", "-----"].iter().any(|part| text.contains(part));
    if may_be_secret { "a value that is not shown".into() } else { format!("`{text}`") }
}

/// The path as errors and `check` show it. A text that may be the secret itself, set where the name
/// of its file belongs, is not shown.
pub(crate) fn shown_path(path: &Path) -> String {
    let text = path.display().to_string();
    let is_path = text.starts_with(['/', '.'])
        && text.len() <= PATH_BYTES_MAX
        && !["://", "@", "-----"].iter().any(|part| text.contains(part));
    if is_path { text } else { "(the path is not shown)".into() }
}

/// Delays in the form of the settings, separated by commas.
pub(super) fn times(durations: &[Duration]) -> String {
    durations.iter().copied().map(time).collect::<Vec<_>>().join(", ")
}
