//! The words of the code: identifiers, comments and documents use the words of `docs/GLOSSARY.md`.
//! Strings are exempt, because they can be names that other systems know.
#![expect(clippy::unwrap_used, reason = "a failure fails the test and shows its place")]

use crate::{documents::documents, tidy::sources};

/// Words that were replaced, and what to write instead.
const REPLACED: &[(&[&str], &str)] = &[
    (&["letter", "letters"], "dead letter; alphanumeric"),
    (&["fate", "fates"], "final outcome"),
    (&["away"], "unavailable"),
    (&["crew"], "supervisor"),
    (&["intake"], "consumer"),
    (&["pace", "paces"], "rate limiter; call rate"),
    (&["heard"], "record the reply"),
    (&["announce", "announced", "announces"], "record the intent"),
    (&["bury", "buries", "buried"], "dead-letter"),
    (&["pursue", "pursues", "pursued"], "execute; retry"),
    (&["mend", "mends", "mended"], "fix; correct"),
    (&["whoever"], "say who"),
];

/// Rust code without its string literals, or a document without its code.
fn prose(path: &str, text: &str) -> String {
    if path.ends_with(".md") { without_code(text) } else { without_strings(text) }
}

fn without_code(text: &str) -> String {
    let (mut kept, mut is_block) = (String::new(), false);
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_block = !is_block;
        } else if !is_block {
            kept.extend(line.split('`').step_by(2).flat_map(|part| [part, " "]));
        }
        kept.push('\n');
    }
    kept
}

fn without_strings(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['"', '\'', '/']) {
        kept.push_str(&rest[..at]);
        rest = &rest[at..];
        let taken = if rest.starts_with("//") {
            // A comment is prose: names in code spans are not.
            let end = rest.find('\n').unwrap_or(rest.len());
            kept.push_str(&without_code(&rest[..end]).replace('\n', ""));
            end
        } else if rest.starts_with('"') && kept.ends_with("r#") {
            rest.find("\"#").map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with('"') {
            end_of_string(rest)
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\\"'") || rest.starts_with("'/'")
        {
            rest[1..].find('\'').unwrap() + 2
        } else {
            kept.push_str(&rest[..1]);
            1
        };
        // The lines keep their numbers.
        kept.extend(rest[..taken].matches('\n'));
        rest = &rest[taken..];
    }
    kept + rest
}

fn end_of_string(text: &str) -> usize {
    let mut is_escaped = true;
    for (at, character) in text.char_indices() {
        match character {
            '"' if !is_escaped => return at + 1,
            '\\' => is_escaped = !is_escaped,
            _ => is_escaped = false,
        }
    }
    text.len()
}

/// The words of a text with their line numbers: `DeadLetter` and `dead_letter` are two words each.
fn words(text: &str) -> Vec<(usize, String)> {
    let mut words: Vec<(usize, String)> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let mut is_new = true;
        for character in line.chars() {
            let is_letter = character.is_ascii_alphabetic();
            if is_letter && (is_new || character.is_ascii_uppercase()) {
                words.push((number + 1, String::new()));
            }
            if is_letter {
                words.last_mut().unwrap().1.push(character.to_ascii_lowercase());
            }
            is_new = !is_letter;
        }
    }
    words
}

#[test]
fn identifiers_comments_and_documents_use_the_words_of_the_glossary() {
    let mut found = Vec::new();
    let code = ["src", "tests", "benches", "examples"].into_iter().flat_map(sources);
    let texts = code.chain(documents()).filter(|(path, _)| !path.ends_with("words.rs"));
    for (path, text) in texts {
        let words = words(&prose(&path, &text));
        for (at, (line, word)) in words.iter().enumerate() {
            let before = at.checked_sub(1).map_or("", |before| words[before].1.as_str());
            let is_allowed = before == "dead" && word.starts_with("letter")
                // The name of an alert.
                || before == "redis" && word == "away";
            let replaced = REPLACED.iter().find(|(words, _)| words.contains(&word.as_str()));
            if let (Some((_, instead)), false) = (replaced, is_allowed) {
                found.push(format!("{path}:{line}: {word} (write: {instead})"));
            }
        }
    }
    assert!(found.is_empty(), "words that were replaced: {found:#?}");
}

#[test]
fn strings_and_code_spans_are_exempt_and_nothing_else() {
    let rust =
        "let letter = \"fate \\\" away\"; // a mend, not `pace`\nlet c = '\"'; crew(r#\"bury\"#)";
    let found: Vec<String> =
        words(&prose("a.rs", rust)).into_iter().map(|(_, word)| word).collect();
    for (word, is_there) in
        [("letter", true), ("fate", false), ("away", false), ("mend", true), ("crew", true)]
    {
        assert_eq!(found.iter().any(|found| found == word), is_there, "{word} in {found:?}");
    }
    assert!(!found.iter().any(|word| word == "bury" || word == "pace"), "{found:?}");
    let document = words(&prose("a.md", "DeadLetter\n```\nfate\n```\nan `away` letter"));
    let document: Vec<&str> = document.iter().map(|(_, word)| word.as_str()).collect();
    assert_eq!(document, ["dead", "letter", "an", "letter"]);
}
