//! Reads keys in the forms in which people store them: PEM or base64, wrapped or on one line, with
//! line feeds written as `\n`, in quotes, after a byte order mark. Pure.

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

use super::key_error::KeyError;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// The first bytes of the object identifiers of PKCS#5 and PKCS#12, which encrypt by a password.
const ENCRYPTIONS: [&[u8]; 2] = [
    &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05],
    &[0x06, 0x0a, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c],
];
/// The last offset at which such an identifier begins: after the headers of two sequences.
const ENCRYPTION_AT_MAX: usize = 12;

/// Which kind of key a text should hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Private,
    Public,
}

impl Kind {
    const fn expected(self) -> &'static str {
        match self {
            Self::Private => "PRIVATE KEY or RSA PRIVATE KEY",
            Self::Public => "PUBLIC KEY",
        }
    }

    fn takes(self, label: &str) -> bool {
        match self {
            Self::Private => matches!(label, "PRIVATE KEY" | "RSA PRIVATE KEY"),
            Self::Public => matches!(label, "PUBLIC KEY" | "RSA PUBLIC KEY"),
        }
    }
}

/// The DER of every key in a text.
pub(super) fn der_blocks(text: &str, kind: Kind) -> Result<Vec<Vec<u8>>, KeyError> {
    let text = clean(text);
    let blocks = if text.contains("-----BEGIN") { pem(&text, kind)? } else { base64(&text)? };
    match blocks.as_slice() {
        [] => Err(KeyError::Empty),
        blocks if blocks.iter().any(|der| is_encrypted(der)) => Err(KeyError::Encrypted),
        _ => Ok(blocks),
    }
}

/// Removes what base64 and PEM never contain (byte order marks, quotes), and turns `\n` into line
/// feeds.
fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{feff}' | '"' | '\'' => {}
            '\\' => {
                // Escaped more than once: `\\n`.
                while chars.next_if_eq(&'\\').is_some() {}
                if chars.next_if(|c| matches!(c, 'n' | 'r')).is_some() {
                    clean.push('\n');
                } else {
                    clean.push(c);
                }
            }
            c => clean.push(c),
        }
    }
    clean
}

/// The blocks with an accepted label. Other blocks may stand beside them: a certificate,
/// parameters.
fn pem(text: &str, kind: Kind) -> Result<Vec<Vec<u8>>, KeyError> {
    let (mut blocks, mut other) = (Vec::new(), None);
    for block in text.split("-----BEGIN ").skip(1) {
        let (label, rest) = block.split_once("-----").ok_or(KeyError::NotBase64)?;
        let (body, _) = rest.split_once("-----END").ok_or(KeyError::NotBase64)?;
        if label == "ENCRYPTED PRIVATE KEY" || body.contains(",ENCRYPTED") {
            return Err(KeyError::Encrypted);
        }
        if kind.takes(label) {
            let body: String = body.split_whitespace().collect();
            blocks.push(BASE64.decode(body).map_err(|_| KeyError::NotBase64)?);
        } else {
            other = Some(known(label));
        }
    }
    match other {
        Some(found) if blocks.is_empty() => {
            Err(KeyError::OtherPem { expected: kind.expected(), found })
        }
        _ => Ok(blocks),
    }
}

/// A label that may be printed. Between the dashes of a damaged text, anything may stand, even a
/// part of the key.
fn known(label: &str) -> &'static str {
    const LABELS: [&str; 8] = [
        "PRIVATE KEY",
        "RSA PRIVATE KEY",
        "EC PRIVATE KEY",
        "OPENSSH PRIVATE KEY",
        "PUBLIC KEY",
        "RSA PUBLIC KEY",
        "CERTIFICATE",
        "CERTIFICATE REQUEST",
    ];
    LABELS.into_iter().find(|known| *known == label).unwrap_or("another")
}

/// Keys separated by commas or white space, each of which may itself be wrapped. DER begins with
/// its own length, so the end of a key is known.
fn base64(text: &str) -> Result<Vec<Vec<u8>>, KeyError> {
    let mut keys = Vec::new();
    for part in text.split(',') {
        let mut key = String::new();
        for word in part.split_whitespace() {
            key.push_str(word);
            let whole = der_len(&key).is_none_or(|len| key.len() >= base64_len(len));
            if whole && let Ok(der) = BASE64.decode(&key) {
                keys.push(der);
                key.clear();
            }
        }
        if !key.is_empty() {
            keys.push(BASE64.decode(&key).map_err(|_| KeyError::NotBase64)?);
        }
    }
    Ok(keys)
}

/// The length of the DER whose base64 begins like this; `None` if it does not begin like DER.
fn der_len(base64: &str) -> Option<usize> {
    let head = BASE64.decode(base64.get(..8)?).ok()?;
    match *head.as_slice() {
        [0x30, len @ 0..=0x7f, ..] => Some(2 + usize::from(len)),
        [0x30, 0x81, len, ..] => Some(3 + usize::from(len)),
        [0x30, 0x82, high, low, ..] => Some(4 + usize::from(u16::from_be_bytes([high, low]))),
        _ => None,
    }
}

/// The number of base64 characters for so many bytes, without padding.
const fn base64_len(bytes: usize) -> usize {
    (bytes * 4).div_ceil(3)
}

fn is_encrypted(der: &[u8]) -> bool {
    ENCRYPTIONS.iter().any(|oid| {
        let heads = der.windows(oid.len()).take(ENCRYPTION_AT_MAX);
        heads.into_iter().any(|bytes| bytes == *oid)
    })
}
