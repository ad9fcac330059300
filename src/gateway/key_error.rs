//! Why a text is not a usable RSA key.

/// Why a key can't be used. It never contains any part of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text holds no key.
    #[error("it is empty")]
    Empty,
    /// The text is neither base64 nor PEM.
    #[error("it is neither base64 nor PEM")]
    NotBase64,
    /// The text is PEM with another label.
    #[error("it must be PEM with the label {expected}, found {found}")]
    OtherPem {
        /// The labels that are accepted.
        expected: &'static str,
        /// The label that was found.
        found: &'static str,
    },
    /// The key is encrypted, and no setting gives its password.
    #[error(
        "it is encrypted: decrypt it with `openssl pkey -in encrypted.pem -out key.pem` \
         and use key.pem"
    )]
    Encrypted,
    /// The key is not RSA, has an unsupported size, or is damaged.
    #[error("it is not an RSA {0} with 2048 to 8192 bits")]
    NotAKey(&'static str),
}
