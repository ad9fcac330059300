//! Collects the keys and values of a settings file and of the environment, before any value is
//! read.

use std::{collections::BTreeMap, path::Path};

use config::{Config, File, FileFormat, Value, ValueKind};
use toml::de::DeTable;

use super::shown::shown;

/// The defaults, with the documentation of every key.
pub const DEFAULTS: &str = include_str!("../../config/default.toml");

pub(super) const PREFIX: &str = "CAPTURE__";
const CLASSES: &str = "CAPTURE__CLASSES";

/// Sections with their keys, in the form of the `config` crate.
pub(super) type SectionTable = config::Map<String, Value>;

/// A value, and the file or the environment variable that it comes from.
pub(super) struct Given {
    pub(super) value: Value,
    pub(super) origin: String,
}

/// All given values. Where file and environment both set a key, the environment's value is here.
#[derive(Default)]
pub(super) struct Sources {
    pub(super) given: BTreeMap<String, Given>,
    pub(super) errors: Vec<String>,
    /// The file can't be read. Errors about missing or related keys would mislead then, because the
    /// file may set them.
    pub(super) is_partial: bool,
}

impl Sources {
    pub(super) fn read(file: Option<&Path>, env: &[(String, String)]) -> Self {
        let mut sources = Self::default();
        if let Some(file) = file {
            sources.read_file(file);
        }
        sources.read_env(env);
        sources
    }

    fn read_file(&mut self, file: &Path) {
        let name = file.display().to_string();
        let table = match std::fs::read_to_string(file) {
            Ok(text) => parse(&text),
            Err(error) => Err(vec![error.to_string()]),
        };
        match table {
            Ok(table) => {
                for (section, value) in table {
                    self.walk(&section, value, &name);
                }
            }
            Err(errors) => {
                self.is_partial = true;
                self.errors.extend(errors.iter().map(|error| format!("{name}: {error}")));
            }
        }
    }

    /// Adds a value, or every value of a table.
    fn walk(&mut self, path: &str, value: Value, origin: &str) {
        match value.kind {
            ValueKind::Table(table) if !table.is_empty() => {
                for (name, value) in table {
                    self.walk(&format!("{path}.{name}"), value, origin);
                }
            }
            // A section without keys is valid and sets nothing.
            ValueKind::Table(_) if !path.contains('.') => {}
            _ => drop(self.given.insert(path.to_owned(), Given { value, origin: origin.into() })),
        }
    }

    fn read_env(&mut self, env: &[(String, String)]) {
        for (name, value) in env {
            let Some(key) = name.strip_prefix(PREFIX).filter(|_| !value.is_empty()) else {
                continue;
            };
            if name.starts_with(CLASSES) {
                self.errors.push(format!("{name}: [classes] can be set in a settings file only"));
                continue;
            }
            let key = key.replace("__", ".").to_lowercase();
            let value = Value::from(value.as_str());
            self.given.insert(key, Given { value, origin: name.clone() });
        }
    }
}

/// The built-in defaults, by section.
pub(super) fn defaults() -> Result<SectionTable, String> {
    parse(DEFAULTS).map_err(|errors| errors.join("; "))
}

/// Parses TOML. An error never quotes its line, which may contain a private key.
fn parse(text: &str) -> Result<SectionTable, Vec<String>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (_, errors) = DeTable::parse_recoverable(text);
    let place = |error: &toml::de::Error| {
        let before = text.get(..error.span()?.start)?;
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
        Some(format!("line {line}, column {column}: "))
    };
    if !errors.is_empty() {
        let describe = |error| {
            format!("{}invalid TOML (the line is not shown)", place(error).unwrap_or_default())
        };
        return Err(errors.iter().map(describe).collect());
    }
    let source = File::from_str(text, FileFormat::Toml);
    let parsed =
        Config::builder().add_source(source).build().and_then(|config| config.cache.into_table());
    parsed.map_err(|_| vec!["a number is too large".to_owned()])
}

/// The error about an unknown key. A key that may be a secret is not shown.
pub(super) fn unknown(key: &str, origin: &str) -> String {
    let is_plain = shown(key).starts_with('`');
    let key = if is_plain { key } else { "a key that is not shown" };
    format!("{key}: there is no such key ({origin})")
}
