//! The credentials of the sandbox.

use serde::{Deserialize, Serialize};

use crate::gateway::signing::{KeyError, SigningKey};

/// The only client id that the sandbox accepts.
pub const CLIENT_ID: &str = "5X00000000000000";

/// The credentials that a worker needs to call the sandbox. They are worth nothing elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    /// The value of the setting `gateway.client_id`.
    pub client_id: String,
    /// The value of the setting `gateway.private_key`.
    pub private_key: String,
    /// The value of the setting `gateway.public_key`.
    pub public_key: String,
    /// The private key with which the sandbox signs its replies.
    #[serde(skip_serializing)]
    pub gateway_private_key: String,
}

impl Keys {
    /// Generates new keys.
    ///
    /// # Errors
    /// The system provides no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        let (merchant, gateway) = (SigningKey::generate()?, SigningKey::generate()?);
        let not_written = KeyError::NotAKey("private key");
        Ok(Self {
            client_id: CLIENT_ID.to_owned(),
            private_key: merchant.to_base64().ok_or(not_written)?,
            public_key: gateway.public_key().ok_or(not_written)?,
            gateway_private_key: gateway.to_base64().ok_or(not_written)?,
        })
    }
}
