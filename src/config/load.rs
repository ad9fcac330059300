//! From what is given to the settings: every value is read by itself, so that all errors are told
//! at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    path::{Path, PathBuf},
};

use config::{ConfigError, Value, ValueKind};
use secrecy::SecretString;
use serde::Deserialize as _;

use super::{
    DEFAULTS, Settings, SettingsErrors,
    sources::{Given, Sources, Table, defaults, unknown},
};
use crate::domain::class::{Class, Codes};

/// The most that is read of a file with a secret, in bytes.
const SECRET_BYTES_MAX: u64 = 64 * 1024;
/// The longest path that errors show, in bytes.
const PATH_BYTES_MAX: usize = 255;

impl Settings {
    /// Reads the settings: the compiled defaults, then the file, then these variables of the environment.
    ///
    /// # Errors
    /// Everything that is wrong with them, without any secret.
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
                errors.push(format!("the built-in defaults can't be read: {error}"));
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
            // A default that stands in for a value that can't be read proves nothing.
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

/// Reads each value in the place of its default. One that can't be read leaves the default there.
fn read_values(
    defaults: Table,
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

/// The variables by which other programs are told of a proxy.
fn proxy_variables(env: &[(String, String)]) -> Vec<String> {
    let names = ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"];
    let set = env.iter().filter(|(name, value)| {
        !value.is_empty() && names.iter().any(|known| name.eq_ignore_ascii_case(known))
    });
    set.map(|(name, _)| name.clone()).collect()
}

fn settings(table: Table) -> Result<Settings, ConfigError> {
    Settings::deserialize(Value::from(table))
}

fn put(table: &mut Table, key: &str, value: Value) {
    let (section, name) = key.split_once('.').unwrap_or((key, ""));
    let section = table.entry(section.to_owned()).or_insert_with(|| Value::from(Table::new()));
    if let ValueKind::Table(keys) = &mut section.kind {
        keys.insert(name.to_owned(), value);
    }
}

/// Why a value can't be read. Errors of the `config` crate quote the value, which may be a secret.
fn describe(error: &ConfigError, value: &Value) -> String {
    match error {
        ConfigError::At { error, .. } => describe(error, value),
        ConfigError::Message(text) => text.clone(),
        ConfigError::Type { expected, .. } => {
            let found = match value.kind {
                ValueKind::Nil => "nothing",
                ValueKind::Boolean(_) => "true or false",
                ValueKind::String(_) => "a text",
                ValueKind::Table(_) => "a table",
                ValueKind::Array(_) => "a list",
                _ => "a number",
            };
            format!("must be {expected}, found {found}")
        }
        _ => "it can't be read".to_owned(),
    }
}

/// A path, unless it may be the secret itself in place of the name of its file.
pub(crate) fn shown_path(path: &Path) -> String {
    let text = path.display().to_string();
    let is_path = text.starts_with(['/', '.'])
        && text.len() <= PATH_BYTES_MAX
        && !["://", "@", "-----"].iter().any(|part| text.contains(part));
    if is_path { text } else { "(the path is not shown)".into() }
}

fn read_secret(file: &Path) -> Result<String, String> {
    let mut text = String::new();
    let opened = std::fs::File::open(file).map_err(|error| error.to_string())?;
    let read = opened.take(SECRET_BYTES_MAX + 1).read_to_string(&mut text);
    let bytes = read.map_err(|error| error.to_string())?;
    if u64::try_from(bytes).unwrap_or(u64::MAX) > SECRET_BYTES_MAX {
        return Err(format!("it is longer than {SECRET_BYTES_MAX} bytes"));
    }
    match text.trim_start_matches('\u{feff}').trim_end_matches(['\r', '\n']) {
        "" => Err("it is empty".into()),
        text => Ok(text.to_owned()),
    }
}

/// Every key that the defaults' file documents, in a comment or not.
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
