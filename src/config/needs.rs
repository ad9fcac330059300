//! The errors of loading the settings, and the settings that a command requires.

use std::fmt;

use secrecy::SecretString;

use super::Settings;

/// The settings that a call to the gateway requires.
#[derive(Debug)]
pub struct GatewayAccess {
    /// The gateway's address, with an optional path.
    pub base_url: String,
    /// The merchant's client id.
    pub client_id: String,
    /// The merchant's private key.
    pub private_key: SecretString,
    /// The gateway's public keys, one per line.
    pub public_key: String,
}

/// All errors in the settings. The display form has one error per line.
#[derive(Debug)]
pub struct SettingsErrors {
    texts: Vec<String>,
    rest: Option<Box<Settings>>,
}

impl std::error::Error for SettingsErrors {}

impl fmt::Display for SettingsErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  {}", self.texts.join("\n  "))
    }
}

impl SettingsErrors {
    pub(super) fn new(texts: Vec<String>, rest: Option<Settings>) -> Self {
        Self { texts, rest: rest.map(Box::new) }
    }

    /// One text per error. No text contains a secret.
    #[must_use]
    pub fn into_texts(self) -> Vec<String> {
        self.texts
    }

    /// The settings, with defaults in place of values that can't be read. Use them only to find
    /// more errors. `None` if the settings file can't be read.
    #[must_use]
    pub fn rest(&self) -> Option<&Settings> {
        self.rest.as_deref()
    }
}

impl Settings {
    /// The settings that a call to the gateway requires. They have no defaults.
    ///
    /// # Errors
    /// Lists every key that is missing.
    pub fn require_gateway(&self) -> Result<GatewayAccess, SettingsErrors> {
        let gateway = &self.gateway;
        let missing: Vec<_> = [
            ("base_url", gateway.base_url.is_none(), ""),
            ("client_id", gateway.client_id.is_none(), ""),
            ("private_key", gateway.private_key.is_none(), " or gateway.private_key_file"),
            ("public_key", gateway.public_key.is_empty(), " or gateway.public_key_file"),
        ]
        .into_iter()
        .filter(|(key, missing, _)| *missing && !self.unusable.contains(&format!("gateway.{key}")))
        .map(|(key, _, or)| {
            let variable = format!("CAPTURE__GATEWAY__{}", key.to_uppercase());
            format!("gateway.{key} is missing: set it{or} in the settings file, or {variable}")
        })
        .collect();
        match (&gateway.base_url, &gateway.client_id, &gateway.private_key) {
            (Some(base_url), Some(client_id), Some(private_key)) if missing.is_empty() => {
                Ok(GatewayAccess {
                    base_url: base_url.clone(),
                    client_id: client_id.clone(),
                    private_key: private_key.clone(),
                    public_key: gateway.public_key.join("\n"),
                })
            }
            _ => Err(SettingsErrors::new(missing, None)),
        }
    }
}
