//! The documents say what the code does: links, files, classes, commands, options and settings.
#![expect(clippy::unwrap_used, reason = "a failure fails the test and shows its place")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use capture_worker::domain::capture::class::{Class, FINAL_CODES};

use testkit::processes::worker_command;

use crate::tidy::{read, sources};

/// Prose wraps here; tables, URLs and output of programs do not.
const COLUMNS_MAX: usize = 100;
const README_LINES_MAX: usize = 180;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every document of the repository, by its path from the root, with its text.
pub(crate) fn documents() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new(), "docs".into(), "deploy".into()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).unwrap().flatten() {
            let path = folder.join(entry.file_name());
            let is_below_root = !folder.as_os_str().is_empty();
            if is_below_root && entry.path().is_dir() && !path.ends_with("node_modules") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                let text = fs::read_to_string(entry.path()).unwrap();
                found.push((path.display().to_string(), text));
            }
        }
    }
    assert!(found.len() > 10, "only {} documents were found", found.len());
    found
}

/// What stands in a code block of a document, with the language that the block names.
fn blocks(text: &str) -> Vec<(&str, Vec<&str>)> {
    let (mut blocks, mut open): (Vec<(&str, Vec<&str>)>, bool) = (Vec::new(), false);
    for line in text.lines() {
        match line.trim_start().strip_prefix("```") {
            Some(language) if !open => {
                blocks.push((language, Vec::new()));
                open = true;
            }
            Some(_) => open = false,
            None if open => blocks.last_mut().unwrap().1.push(line),
            None => {}
        }
    }
    blocks
}

/// The lines of a document that are no part of a code block.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut open = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        open ^= is_fence;
        !open && !is_fence
    })
}

/// The anchor of a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter_map(|c| match c {
        ' ' => Some('-'),
        c if c.is_alphanumeric() || "-_".contains(c) => Some(c.to_ascii_lowercase()),
        _ => None,
    });
    kept.collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#'))).collect()
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    let mut broken = Vec::new();
    for (path, text) in documents() {
        let links = prose(&text).flat_map(|line| line.split("](").skip(1));
        let links = links.filter_map(|link| link.split_once(')').map(|(link, _)| link));
        for link in links.filter(|link| !link.contains("://")) {
            let (file, section) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => root().join(&path),
                file => root().join(&path).parent().unwrap().join(file),
            };
            let leads_somewhere = target.exists()
                && (section.is_empty()
                    || anchors(&fs::read_to_string(&target).unwrap()).contains(section));
            broken.extend((!leads_somewhere).then(|| format!("{path}: {link}")));
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere: {broken:#?}");
}

#[test]
fn the_architecture_names_only_files_that_exist() {
    let text = read("docs/ARCHITECTURE.md");
    let files: Vec<String> = ["src", "tests", "benches", "examples"]
        .into_iter()
        .flat_map(sources)
        .map(|(path, _)| format!("/{path}"))
        .collect();
    let names = text.split('`').skip(1).step_by(2).map(|name| name.split("::").next().unwrap());
    let names: BTreeSet<&str> = names.filter(|name| name.ends_with(".rs")).collect();
    assert!(names.len() > 15, "{names:?}");
    for name in names {
        let ending = format!("/{name}");
        assert!(files.iter().any(|file| file.ends_with(&ending)), "there is no {name}");
    }
}

#[test]
fn no_line_of_prose_is_longer_than_100_columns() {
    let mut long = Vec::new();
    for (path, text) in documents() {
        let too_long = prose(&text).filter(|line| {
            let is_exempt = line.starts_with('|') || line.contains("://");
            line.chars().count() > COLUMNS_MAX && !is_exempt
        });
        long.extend(too_long.map(|line| format!("{path}: {line}")));
    }
    assert!(long.is_empty(), "lines are too long: {long:#?}");
    let lines = read("README.md").lines().count();
    assert!(lines <= README_LINES_MAX, "README.md has {lines} lines");
}

#[test]
fn the_one_class_table_has_each_class_with_its_codes() {
    let outcomes = read("docs/OUTCOMES.md");
    let row = |class: Class| {
        let begins = format!("| `{class}` |");
        let mut rows = outcomes.lines().filter(|line| line.starts_with(&begins));
        let row = rows.next().unwrap_or_else(|| panic!("docs/OUTCOMES.md has no row of {class}"));
        assert_eq!(rows.next(), None, "{class} has one row");
        row
    };
    for class in Class::ALL {
        row(class);
    }
    for (code, class) in FINAL_CODES {
        let is_there = row(*class).split([' ', '|', '`']).any(|word| word == *code);
        assert!(is_there, "{code} is not in the row of {class}");
    }
    for (path, text) in documents().into_iter().filter(|(path, _)| path != "docs/OUTCOMES.md") {
        let second = text.lines().find(|line| line.starts_with("| `authorization` |"));
        assert_eq!(second, None, "{path} has another class table");
    }
}

fn help(command: &[&str]) -> String {
    let output = worker_command(command).arg("--help").output().unwrap();
    assert!(output.status.success(), "capture-worker {} --help", command.join(" "));
    String::from_utf8(output.stdout).unwrap()
}

/// The commands that a help lists.
fn commands_of(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    let lines = lines.take_while(|line| !line.is_empty());
    let names = lines.filter_map(|line| line.strip_prefix("  ").filter(|l| !l.starts_with(' ')));
    let names = names.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn every_command_is_in_the_readme_or_the_guide_and_the_changelog() {
    let commands = commands_of(&help(&[]));
    assert!(commands.len() >= 7, "{commands:?}");
    for command in &commands {
        let named = format!("capture-worker {command}");
        for document in ["README.md", "CHANGELOG.md"] {
            assert!(read(document).contains(&named), "{named} is not in {document}");
        }
    }
    for command in commands_of(&help(&["dead"])) {
        let named = format!("dead {command}");
        assert!(read("docs/DEAD_LETTERS.md").contains(&named), "{named} is not in the guide");
    }
}

/// The words of a command line in a document, without what a shell does with them.
fn words(line: &str) -> Vec<&str> {
    let line = line.split(" #").next().unwrap_or_default();
    let line = line.split(['|', '>', ';', '&']).next().unwrap_or_default();
    line.split_whitespace().collect()
}

#[test]
fn every_command_line_in_a_document_has_real_options() {
    let mut helps: BTreeMap<Vec<&str>, String> = BTreeMap::new();
    let documents = documents();
    let mut checked = 0;
    for (path, text) in documents.iter().filter(|(path, _)| path != "CHANGELOG.md") {
        let blocks = blocks(text).into_iter().flat_map(|(_, lines)| lines);
        let spans = prose(text).flat_map(|line| line.split('`').skip(1).step_by(2));
        let lines = blocks.chain(spans).filter_map(|line| line.split_once("capture-worker "));
        // At the beginning of a command line, or behind `kubectl exec … --`.
        let lines = lines.filter(|(before, _)| {
            matches!(before.trim(), "" | "$") || before.trim_end().ends_with(" --")
        });
        for (_, line) in lines {
            let words = words(line);
            let is_command =
                |word: &&&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
            let mut command: Vec<&str> =
                words.iter().take_while(is_command).copied().take(2).collect();
            let two_words = matches!(command.first(), Some(&"dead" | &"dlq"));
            command.truncate(if two_words { 2 } else { 1 });
            if command.is_empty() || command[0].starts_with('-') {
                continue;
            }
            let help = helps.entry(command.clone()).or_insert_with(|| help(&command));
            let options = words.iter().filter_map(|word| word.strip_prefix("--"));
            for option in options.filter_map(|option| option.split(['=', ',', ')']).next()) {
                let is_there = help.contains(&format!("--{option}"));
                assert!(is_there || option.is_empty(), "{path}: {line}: no option --{option}");
                checked += 1;
            }
        }
    }
    assert!(checked > 30, "only {checked} options were found");
}

/// The settings, by section and key, as `check` prints them and as a file may have them.
fn settings() -> BTreeSet<String> {
    let mut section = String::new();
    let mut keys = BTreeSet::new();
    for line in read("config/default.toml").lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        } else if let Some((key, _)) = line.trim_start_matches("# ").split_once(" = ")
            && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        {
            keys.insert(format!("{section}.{key}"));
        }
    }
    keys
}

#[test]
fn every_setting_that_a_document_names_exists() {
    let settings = settings();
    let sections: BTreeSet<&str> =
        settings.iter().filter_map(|key| key.split_once('.').map(|(section, _)| section)).collect();
    for (path, text) in documents().into_iter().filter(|(path, _)| path != "CHANGELOG.md") {
        for name in prose(&text).flat_map(|line| line.split('`').skip(1).step_by(2)) {
            let is_key =
                name.bytes().all(|byte| byte.is_ascii_lowercase() || b"_.".contains(&byte));
            let Some((section, key)) = name.split_once('.').filter(|_| is_key) else { continue };
            let is_file = matches!(key, "rs" | "toml" | "json" | "sh" | "py" | "yaml" | "lua");
            if sections.contains(section) && !is_file && !key.is_empty() {
                assert!(settings.contains(name), "{path} names {name}, which is no setting");
            }
        }
    }
}

/// Every key that `check` shows stands in the defaults, in the same order, with a comment above it.
#[test]
fn every_setting_is_documented_where_its_default_is() {
    let (mut section, mut commented, mut documented) = (String::new(), false, Vec::new());
    for line in read("config/default.toml").lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        } else if let Some((key, _)) = line.trim_start_matches("# ").split_once(" = ")
            && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        {
            assert!(commented, "{section}.{key} has no comment");
            documented.push(format!("{section}.{key}"));
            continue;
        }
        commented = line.starts_with('#');
    }
    let settings = capture_worker::config::Settings::load(None, []).expect("the defaults");
    let shown: Vec<String> = settings.describe().into_iter().map(|(key, _)| key).collect();
    // Secrets can be read from a file, too: these keys stand beside the secret itself.
    let from_files =
        ["url_file", "sentinel_password_file", "private_key_file", "public_key_file", "proxy_file"];
    documented.retain(|key| !from_files.iter().any(|suffix| key.ends_with(suffix)));
    assert_eq!(documented, shown);
}
