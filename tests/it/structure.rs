//! The form of the code: short lines, and doc comments that say something.
#![expect(clippy::unwrap_used, reason = "a failure fails the test and shows its place")]

use crate::tidy::{read, sources};

/// Code, comments and the prose of documents wrap here.
const COLUMNS_MAX: usize = 100;
/// A doc comment with as few words as this repeats the name below it.
const WORDS_TOO_FEW: usize = 3;

/// Lines that can't be wrapped: a URL, or a literal of raw data.
fn may_be_long(line: &str) -> bool {
    let is_one_literal = line.trim_start().starts_with(['"', '\'']) || line.contains("r#\"");
    line.contains("://") || is_one_literal
}

#[test]
fn no_line_of_code_is_longer_than_100_columns() {
    let mut long = Vec::new();
    for (path, text) in ["src", "tests", "benches", "examples"].into_iter().flat_map(sources) {
        let lines = text.lines().enumerate();
        let too_long =
            lines.filter(|(_, line)| line.chars().count() > COLUMNS_MAX && !may_be_long(line));
        long.extend(too_long.map(|(at, _)| format!("{path}:{}", at + 1)));
    }
    for path in ["Cargo.toml", "config/default.toml"] {
        let text = read(path);
        let is_long =
            text.lines().any(|line| line.chars().count() > COLUMNS_MAX && line.starts_with('#'));
        long.extend(is_long.then(|| path.to_owned()));
    }
    assert!(long.is_empty(), "{} lines are too long: {long:#?}", long.len());
}

/// The doc comments of a file: consecutive lines are one comment.
fn doc_comments(text: &str) -> Vec<String> {
    let mut comments = vec![String::new()];
    for line in text.lines().map(str::trim_start) {
        match line.strip_prefix("///").or_else(|| line.strip_prefix("//!")) {
            Some(words) => comments.last_mut().unwrap().push_str(words),
            None => comments.push(String::new()),
        }
    }
    comments.retain(|comment| !comment.is_empty());
    comments
}

#[test]
fn doc_comments_say_more_than_the_name_below_them() {
    let mut empty = Vec::new();
    for (path, text) in sources("src") {
        let comments = doc_comments(&text).into_iter();
        let short = comments.filter(|text| text.split_whitespace().count() <= WORDS_TOO_FEW);
        empty.extend(short.map(|text| format!("{path}:{text}")));
    }
    assert!(empty.is_empty(), "{} doc comments say nothing: {empty:#?}", empty.len());
}
