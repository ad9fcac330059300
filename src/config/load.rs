//! Loads the settings from their sources. Every value is read on its own, so that all errors are
//! reported at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    path::{Path, PathBuf},
};

use config::{ConfigError, Value, ValueKind};
use secrecy::SecretString;
use serde::Deserialize as _;

use super::{
    Settings, SettingsErrors,
    shown::shown_path,
    sources::{DEFAULTS, Given, SectionTable, Sources, defaults, unknown},
};
use crate::domain::capture::class::{Class, Codes};

/// The largest secret file that is accepted, in bytes.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

impl Settings {
    /// Reads the settings: the compiled defaults, overridden by the file, overridden by these
    /// environment variables.
    ///
    /// # Errors
    /// Lists every error in all sources at once. No error text contains a secret.
    pub fn load(
        file: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, SettingsErrors> {
        let env: Vec<_> = env.into_iter().collect();
        let sources = Sources::read(file, &env);
        let (mut errors, is_partial) = (sources.errors, sources.is_partial);
        let read =
            defaults().and_then(|defaults| read_values(defaults, sources.given, &mut errors));
        let mut settings = match read {
            Ok(settings) => settings,
            Err(error) => {
                errors.push(format!("cannot read the built-in defaults: {error}"));
                return Err(SettingsErrors::new(errors, None));
            }
        };
        settings.proxy_variables = proxy_variables(&env);
        settings.read_secrets(&mut errors);
        settings.read_classes(&mut errors);
        if is_partial {
            return Err(SettingsErrors::new(errors, None));
        }
        let unusable = std::mem::take(&mut settings.unusable);
        for wrong in settings.relations() {
            // A default replaces each value that can't be read. A relation with such a default
            // proves nothing about the user's settings, so its error would mislead.
            if !wrong.keys.iter().any(|key| unusable.contains(key)) {
                errors.push(wrong.text);
            }
        }
        settings.unusable = unusable;
        if errors.is_empty() {
            Ok(settings)
        } else {
            Err(SettingsErrors::new(errors, Some(settings)))
        }
    }

    fn read_secrets(&mut self, errors: &mut Vec<String>) {
        let Self { broker, redis, gateway, unusable, .. } = self;
        let mut read = |key: &str, file: &Option<PathBuf>| {
            let file = file.as_ref()?;
            let path = shown_path(file);
            read_secret(file)
                .map_err(|error| {
                    errors.push(format!("{key}_file {path}: {error}"));
                    unusable.insert(key.to_owned());
                })
                .ok()
        };
        if let Some(url) = read("broker.url", &broker.url_file) {
            broker.url = SecretString::from(url);
        }
        if let Some(url) = read("redis.url", &redis.url_file) {
            redis.url = SecretString::from(url);
        }
        if let Some(password) = read("redis.sentinel_password", &redis.sentinel_password_file) {
            redis.sentinel_password = Some(SecretString::from(password));
        }
        if let Some(key) = read("gateway.private_key", &gateway.private_key_file) {
            gateway.private_key = Some(SecretString::from(key));
        }
        if let Some(proxy) = read("gateway.proxy", &gateway.proxy_file) {
            gateway.proxy = Some(SecretString::from(proxy));
        }
        if let Some(keys) = read("gateway.public_key", &gateway.public_key_file) {
            gateway.public_key = vec![keys];
        }
    }

    fn read_classes(&mut self, errors: &mut Vec<String>) {
        let mut classes = BTreeMap::new();
        for (code, name) in &self.class_names {
            match name.parse::<Class>() {
                Ok(class) => drop(classes.insert(code.clone(), class)),
                Err(error) => errors.push(format!("classes.{code}: {error}")),
            }
        }
        match Codes::with(classes) {
            Ok(codes) => self.classes = codes,
            Err(wrong) => {
                errors.extend(wrong.into_iter().map(|error| format!("[classes]: {error}")));
            }
        }
    }
}

/// Replaces the defaults by the given values. A value that can't be read adds an error, and its
/// default stays so that the remaining settings can be checked.
fn read_values(
    defaults: SectionTable,
    given: BTreeMap<String, Given>,
    errors: &mut Vec<String>,
) -> Result<Settings, String> {
    let known = known_keys();
    let mut unusable = BTreeSet::new();
    let mut all = defaults.clone();
    for (key, Given { value, origin }) in given {
        if !known.contains(&key) && !key.starts_with("classes.") {
            errors.push(unknown(&key, &origin));
            continue;
        }
        let mut one = defaults.clone();
        put(&mut one, &key, value.clone());
        match settings(one) {
            Ok(_) => put(&mut all, &key, value),
            Err(error) => {
                errors.push(format!("{key}: {} ({origin})", describe(&error, &value)));
                unusable.insert(key);
            }
        }
    }
    let mut settings = settings(all).map_err(|error| error.to_string())?;
    settings.unusable = unusable;
    Ok(settings)
}

/// The set environment variables by which other programs configure a proxy.
fn proxy_variables(env: &[(String, String)]) -> Vec<String> {
    let names = ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"];
    let set = env.iter().filter(|(name, value)| {
        !value.is_empty() && names.iter().any(|known| name.eq_ignore_ascii_case(known))
    });
    set.map(|(name, _)| name.clone()).collect()
}

fn settings(table: SectionTable) -> Result<Settings, ConfigError> {
    Settings::deserialize(Value::from(table))
}

fn put(table: &mut SectionTable, key: &str, value: Value) {
    let (section, name) = key.split_once('.').unwrap_or((key, ""));
    let section =
        table.entry(section.to_owned()).or_insert_with(|| Value::from(SectionTable::new()));
    if let ValueKind::Table(keys) = &mut section.kind {
        keys.insert(name.to_owned(), value);
    }
}

/// Explains why a value can't be read. The texts of the `config` crate are not used, because they
/// quote the value, which may be a secret.
fn describe(error: &ConfigError, value: &Value) -> String {
    match error {
        ConfigError::At { error, .. } => describe(error, value),
        ConfigError::Message(text) => text.clone(),
        ConfigError::Type { expected, .. } => {
            let found = match value.kind {
                ValueKind::Nil => "nothing",
                ValueKind::Boolean(_) => "true or false",
                ValueKind::String(_) => "a string",
                ValueKind::Table(_) => "a table",
                ValueKind::Array(_) => "a list",
                _ => "a number",
            };
            format!("must be {expected}, found {found}")
        }
        _ => "the value cannot be read".to_owned(),
    }
}

fn read_secret(file: &Path) -> Result<String, String> {
    let mut text = String::new();
    let opened = std::fs::File::open(file).map_err(|error| error.to_string())?;
    let read = opened.take(SECRET_BYTES_MAX + 1).read_to_string(&mut text);
    let bytes = read.map_err(|error| error.to_string())?;
    if u64::try_from(bytes).unwrap_or(u64::MAX) > SECRET_BYTES_MAX {
        return Err(format!("the file is longer than {SECRET_BYTES_MAX} bytes"));
    }
    match text.trim_start_matches('\u{feff}').trim_end_matches(['\r', '\n']) {
        "" => Err("the file is empty".into()),
        text => Ok(text.to_owned()),
    }
}

/// Every key in the file of defaults, including the keys without a default, which are in comments.
pub(super) fn known_keys() -> BTreeSet<String> {
    let mut section = "";
    let mut keys = BTreeSet::new();
    for line in DEFAULTS.lines() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name;
        } else if let Some((name, _)) = line.trim_start_matches("# ").split_once(" = ")
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        {
            keys.insert(format!("{section}.{name}"));
        }
    }
    keys
}
