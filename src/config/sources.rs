//! What a settings file and the environment give, key by key, before any value is read.

use std::{collections::BTreeMap, path::Path};

use config::{Config, File, FileFormat, Value, ValueKind};
use toml::de::DeTable;

use super::{DEFAULTS, values::shown};

pub(super) const PREFIX: &str = "CAPTURE__";
const CLASSES: &str = "CAPTURE__CLASSES";

/// Sections with their keys, as the `config` crate holds them.
pub(super) type Table = config::Map<String, Value>;

/// A value, and the file or the variable that gave it.
pub(super) struct Given {
    pub(super) value: Value,
    pub(super) origin: String,
}

/// Everything that was given: the environment in place of the file where both give a key.
#[derive(Default)]
pub(super) struct Sources {
    pub(super) given: BTreeMap<String, Given>,
    pub(super) errors: Vec<String>,
    /// The file can't be read, so nobody knows what it would have given.
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

    /// Takes a value, or all of a table.
    fn walk(&mut self, path: &str, value: Value, origin: &str) {
        match value.kind {
            ValueKind::Table(table) if !table.is_empty() => {
                for (name, value) in table {
                    self.walk(&format!("{path}.{name}"), value, origin);
                }
            }
            // A section without keys.
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
                self.errors.push(format!("{name}: [classes] comes from a settings file only"));
                continue;
            }
            let key = key.replace("__", ".").to_lowercase();
            let value = Value::from(value.as_str());
            self.given.insert(key, Given { value, origin: name.clone() });
        }
    }
}

/// The defaults, by section.
pub(super) fn defaults() -> Result<Table, String> {
    parse(DEFAULTS).map_err(|errors| errors.join("; "))
}

/// Parses TOML. An error never quotes its line: it may be that of a private key.
fn parse(text: &str) -> Result<Table, Vec<String>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (_, errors) = DeTable::parse_recoverable(text);
    let place = |error: &toml::de::Error| {
        let before = text.get(..error.span()?.start)?;
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
        Some(format!("line {line}, column {column}: "))
    };
    if !errors.is_empty() {
        let told = |error| {
            format!("{}no valid TOML (the line is not shown)", place(error).unwrap_or_default())
        };
        return Err(errors.iter().map(told).collect());
    }
    let source = File::from_str(text, FileFormat::Toml);
    let parsed =
        Config::builder().add_source(source).build().and_then(|config| config.cache.into_table());
    parsed.map_err(|_| vec!["a number in it is too large".to_owned()])
}

/// An unknown key, as an error names it.
pub(super) fn unknown(key: &str, origin: &str) -> String {
    let is_plain = shown(key).starts_with('`');
    let key = if is_plain { key } else { "a key that is not shown" };
    format!("{key}: there is no such key ({origin})")
}
