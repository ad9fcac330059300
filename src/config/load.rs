//! Where settings come from: the compiled defaults, a file, the environment, and the files that secrets stand in.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    path::{Path, PathBuf},
};

use config::{Config, Environment, File, FileFormat, Value};
use secrecy::SecretString;

use super::{DEFAULTS, Settings, SettingsErrors};
use crate::domain::class::{Class, Codes};

/// The most that is read of a file with a secret, in bytes.
const SECRET_BYTES_MAX: u64 = 64 * 1024;
const PREFIX: &str = "CAPTURE__";
const CLASSES: &str = "CAPTURE__CLASSES";

impl Settings {
    /// Reads the settings: the compiled defaults, then the file, then these variables of the environment.
    ///
    /// # Errors
    /// Everything that is wrong with them, without any secret.
    pub fn load(
        file: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, SettingsErrors> {
        let ours: BTreeMap<String, String> = env
            .into_iter()
            .filter(|(name, value)| name.starts_with(PREFIX) && !value.is_empty())
            .collect();
        let mut errors: Vec<String> = ours
            .keys()
            .filter(|name| name.starts_with(CLASSES))
            .map(|name| format!("{name}: [classes] comes from a settings file only"))
            .collect();
        let mut builder = Config::builder().add_source(File::from_str(DEFAULTS, FileFormat::Toml));
        if let Some(file) = file {
            let text = std::fs::read_to_string(file)
                .map_err(|error| SettingsErrors(vec![format!("{}: {error}", file.display())]))?;
            builder = builder.add_source(File::from_str(&text, FileFormat::Toml));
        }
        let variables = ours
            .iter()
            .filter(|(name, _)| !name.starts_with(CLASSES))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let environment = Environment::with_prefix("CAPTURE")
            .prefix_separator("__")
            .separator("__")
            .source(Some(variables));
        let origin = file.map_or_else(|| "the settings".into(), |file| file.display().to_string());
        let config = builder
            .add_source(environment)
            .build()
            .map_err(|error| SettingsErrors(vec![format!("{origin}: {error}")]))?;
        errors.extend(unknown_keys(&config, &ours));
        let settings =
            config.try_deserialize::<Self>().map_err(|error| errors.push(error.to_string())).ok();
        let Some(mut settings) = settings else { return Err(SettingsErrors(errors)) };
        settings.read_secrets(&mut errors);
        settings.read_classes(&mut errors);
        errors.extend(settings.relations());
        if errors.is_empty() { Ok(settings) } else { Err(SettingsErrors(errors)) }
    }

    fn read_secrets(&mut self, errors: &mut Vec<String>) {
        let Self { broker, redis, gateway, .. } = self;
        let mut read = |key: &str, file: &Option<PathBuf>| {
            let file = file.as_ref()?;
            read_secret(file)
                .map_err(|error| errors.push(format!("{key} {}: {error}", file.display())))
                .ok()
        };
        if let Some(url) = read("broker.url_file", &broker.url_file) {
            broker.url = SecretString::from(url);
        }
        if let Some(url) = read("redis.url_file", &redis.url_file) {
            redis.url = SecretString::from(url);
        }
        if let Some(key) = read("gateway.private_key_file", &gateway.private_key_file) {
            gateway.private_key = Some(SecretString::from(key));
        }
        if let Some(keys) = read("gateway.public_key_file", &gateway.public_key_file) {
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

fn read_secret(file: &Path) -> Result<String, String> {
    let mut text = String::new();
    let opened = std::fs::File::open(file).map_err(|error| error.to_string())?;
    let read = opened.take(SECRET_BYTES_MAX + 1).read_to_string(&mut text);
    let bytes = read.map_err(|error| error.to_string())?;
    if u64::try_from(bytes).unwrap_or(u64::MAX) > SECRET_BYTES_MAX {
        return Err(format!("it is longer than {SECRET_BYTES_MAX} bytes"));
    }
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err("it is empty".into()),
        text => Ok(text.to_owned()),
    }
}

/// Every key that no setting has, and where it came from.
fn unknown_keys(config: &Config, env: &BTreeMap<String, String>) -> Vec<String> {
    let known = known_keys();
    let mut given = BTreeSet::new();
    for (section, value) in config.cache.clone().into_table().unwrap_or_default() {
        walk(&section, value, &mut given);
    }
    given
        .iter()
        .filter(|key| !known.contains(*key) && !key.starts_with("classes."))
        .map(|key| {
            let variable = format!("{PREFIX}{}", key.replace('.', "__").to_uppercase());
            let origin =
                if env.contains_key(&variable) { variable } else { "settings file".into() };
            format!("{key}: there is no such key ({origin})")
        })
        .collect()
}

fn walk(path: &str, value: Value, keys: &mut BTreeSet<String>) {
    match value.clone().into_table() {
        Ok(table) => {
            for (name, value) in table {
                walk(&format!("{path}.{name}"), value, keys);
            }
        }
        Err(_) => drop(keys.insert(path.to_owned())),
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
