//! Signatures as the gateway makes and checks them: RSASSA-PKCS1-v1_5 with SHA-256 over
//! `POST <path>\n<client-id>.<time>.<body>`, as percent-encoded base64. Pure.

use std::fmt;

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der},
    rand::SystemRandom,
    rsa::{KeyPair, KeySize},
    signature::{KeyPair as _, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

pub use super::key_error::KeyError;
use super::key_text::{Kind, der_blocks};

/// The characters of base64 that the gateway percent-encodes.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'+').add(b'/').add(b'=');

/// The merchant's private key.
pub struct SigningKey(KeyPair);

/// One public key that verifies signatures.
pub struct VerifyingKey(ParsedPublicKey);

/// The public keys that verify signatures. There are several while the gateway changes its key.
#[derive(Debug)]
pub struct VerifyingKeys(Vec<VerifyingKey>);

impl SigningKey {
    /// Reads a private key: PKCS#8 DER as base64, or PEM (`PRIVATE KEY`, `RSA PRIVATE KEY`). Line
    /// feeds may be written as `\n`.
    ///
    /// # Errors
    /// Why the text is not a usable private key.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let not_a_key = KeyError::NotAKey("PKCS#8 private key");
        let blocks = der_blocks(text, Kind::Private)?;
        let [der] = blocks.as_slice() else { return Err(not_a_key) };
        KeyPair::from_pkcs8(der)
            .or_else(|_| KeyPair::from_der(der))
            .map(Self)
            .map_err(|_| not_a_key)
    }

    /// Generates a key of 2048 bits.
    ///
    /// # Errors
    /// The system provides no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        KeyPair::generate(KeySize::Rsa2048).map(Self).map_err(|_| KeyError::NotAKey("private key"))
    }

    /// The private key in the form of the settings: PKCS#8 DER as base64 on one line. It is a
    /// secret.
    #[must_use]
    pub fn to_base64(&self) -> Option<String> {
        let der: Pkcs8V1Der<'_> = self.0.as_der().ok()?;
        Some(STANDARD.encode(der.as_ref()))
    }

    /// The matching public key: SubjectPublicKeyInfo DER as base64 on one line.
    #[must_use]
    pub fn public_key(&self) -> Option<String> {
        let der: PublicKeyX509Der<'_> = self.0.public_key().as_der().ok()?;
        Some(STANDARD.encode(der.as_ref()))
    }

    /// Signs a call or a reply.
    #[must_use]
    pub fn sign(&self, path: &str, client_id: &str, time: &str, body: &[u8]) -> String {
        self.sign_text(&signing_text(path, client_id, time, body))
    }

    /// Signs the bytes of a [`signing_text`].
    pub(super) fn sign_text(&self, text: &[u8]) -> String {
        let mut signature = vec![0; self.0.public_modulus_len()];
        // Signing fails only for a buffer of the wrong length. Verification then refuses the empty
        // signature.
        let signed = self.0.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text, &mut signature);
        if signed.is_err() {
            return String::new();
        }
        utf8_percent_encode(&STANDARD.encode(signature), ESCAPED).to_string()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(secret)")
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VerifyingKey")
    }
}

impl VerifyingKeys {
    /// Reads one or several public keys: SubjectPublicKeyInfo DER as base64, separated by commas or
    /// white space; or PEM blocks (`PUBLIC KEY`).
    ///
    /// # Errors
    /// Why the first unusable key can't be used.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let blocks = der_blocks(text, Kind::Public)?;
        blocks
            .iter()
            .map(|der| {
                ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, der)
                    .map(VerifyingKey)
                    .map_err(|_| KeyError::NotAKey("public key"))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether one of the keys made this signature. `header` is the whole `signature` header.
    #[must_use]
    pub fn verify(
        &self,
        path: &str,
        client_id: &str,
        time: &str,
        body: &[u8],
        header: &str,
    ) -> bool {
        let Some(signature) = parse_signature_header(header) else { return false };
        // Only percent-encoding is decoded: a `+` stays a `+`.
        let base64: Vec<u8> = percent_decode_str(signature).collect();
        let Ok(signature) = STANDARD.decode(base64) else { return false };
        let text = signing_text(path, client_id, time, body);
        self.0.iter().any(|key| key.0.verify_sig(&text, &signature).is_ok())
    }
}

/// The text that is signed.
#[must_use]
pub fn signing_text(path: &str, client_id: &str, time: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("POST {path}\n{client_id}.{time}.");
    [head.as_bytes(), body].concat()
}

/// The value of the `signature` header.
#[must_use]
pub fn signature_header(key_version: u32, signature: &str) -> String {
    format!("algorithm=RSA256, keyVersion={key_version}, signature={signature}")
}

/// The signature in a `signature` header, with its parts in any order and with any spaces; `None`
/// if it names another algorithm.
fn parse_signature_header(header: &str) -> Option<&str> {
    let mut signature = None;
    for part in header.split(',') {
        let (name, value) = part.split_once('=')?;
        match name.trim() {
            "signature" => signature = Some(value.trim()),
            "algorithm" if !value.trim().eq_ignore_ascii_case("RSA256") => return None,
            _ => {}
        }
    }
    signature.filter(|signature| !signature.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../tests/vectors/signing.json")).unwrap()
    }

    fn text<'v>(value: &'v Value, name: &str) -> &'v str {
        value[name].as_str().unwrap()
    }

    fn keys(vectors: &Value, of: &str) -> (SigningKey, VerifyingKeys) {
        let private = text(vectors, &format!("{of}_private_key_pkcs8"));
        let public = text(vectors, &format!("{of}_public_key_spki"));
        (SigningKey::parse(private).unwrap(), VerifyingKeys::parse(public).unwrap())
    }

    fn pem(label: &str, base64: &str) -> String {
        let lines: Vec<&str> =
            base64.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    }

    #[test]
    fn every_vector_is_reproduced_and_verified() {
        let vectors = vectors();
        for vector in vectors["vectors"].as_array().unwrap() {
            let (signing, verifying) = keys(&vectors, text(vector, "signed_by"));
            let (path, id, time) =
                (text(vector, "path"), text(vector, "client_id"), text(vector, "time"));
            let (body, signature) = (text(vector, "body").as_bytes(), text(vector, "signature"));
            assert_eq!(signing.sign(path, id, time, body), signature, "{}", vector["name"]);
            let header = signature_header(1, signature);
            assert!(verifying.verify(path, id, time, body, &header));
            let tight = format!("algorithm=RSA256,keyVersion=2,signature={signature}");
            assert!(verifying.verify(path, id, time, body, &tight));
            assert!(!verifying.verify("/other", id, time, body, &header));
            assert!(!verifying.verify(path, "other", time, body, &header));
            assert!(!verifying.verify(path, id, "1", body, &header));
            assert!(!verifying.verify(path, id, time, b"{}", &header));
        }
    }

    #[test]
    fn a_plus_stays_a_plus() {
        let vectors = vectors();
        let vector = &vectors["vectors"][2];
        let (_, verifying) = keys(&vectors, "gateway");
        let decoded = percent_decode_str(text(vector, "signature")).decode_utf8().unwrap();
        assert!(decoded.contains('+'));
        let header = format!("algorithm=RSA256, keyVersion=1, signature={decoded}");
        let (path, id, time) =
            (text(vector, "path"), text(vector, "client_id"), text(vector, "time"));
        assert!(verifying.verify(path, id, time, text(vector, "body").as_bytes(), &header));
    }

    #[test]
    fn pem_files_and_several_keys_are_read() {
        let vectors = vectors();
        let private = text(&vectors, "merchant_private_key_pkcs8");
        let merchant = text(&vectors, "merchant_public_key_spki");
        let gateway = text(&vectors, "gateway_public_key_spki");
        let signing = SigningKey::parse(&pem("PRIVATE KEY", private)).unwrap();
        assert_eq!(signing.public_key().as_deref(), Some(merchant));
        assert_eq!(signing.to_base64().as_deref(), Some(private));
        let header = signature_header(1, &signing.sign("/p", "c", "1", b"{}"));
        let blocks = pem("PUBLIC KEY", gateway) + &pem("PUBLIC KEY", merchant);
        for text in [format!("{gateway},{merchant}"), format!("{gateway}\n{merchant}\n"), blocks] {
            let keys = VerifyingKeys::parse(&text).unwrap();
            assert!(keys.verify("/p", "c", "1", b"{}", &header));
        }
    }

    /// In the forms in which variables, secret stores and `.env` files hold them.
    #[test]
    fn keys_are_read_in_the_forms_in_which_people_store_them() {
        let vectors = vectors();
        let private = text(&vectors, "merchant_private_key_pkcs8");
        let merchant = text(&vectors, "merchant_public_key_spki");
        let gateway = text(&vectors, "gateway_public_key_spki");
        let wrap = |base64: &str, columns: usize, end: &str| {
            let lines =
                base64.as_bytes().chunks(columns).map(|line| std::str::from_utf8(line).unwrap());
            lines.collect::<Vec<_>>().join(end)
        };
        let forms = |label: &str, base64: &str| {
            let pem = pem(label, base64);
            let mut forms = vec![
                pem.replace('\n', "\\n"),
                pem.replace('\n', "\\r\\n"),
                pem.replace('\n', "\\\\n"),
                pem.replace('\n', "\r\n"),
                pem.replace('\n', " "),
                format!("\u{feff}{pem}"),
                format!("\"{}\"", pem.replace('\n', "\\n")),
                format!("'{pem}'"),
                format!("Bag Attributes\n    localKeyID: 01\n{pem}"),
                format!("\u{feff}{base64}"),
                format!("\"{base64}\"\n"),
                format!(" '{base64}' "),
                base64.trim_end_matches('=').to_owned(),
            ];
            forms.extend([64, 65, 76, 1000].map(|columns| wrap(base64, columns, "\n")));
            forms.extend([76, 77].map(|columns| wrap(base64, columns, "\\n")));
            forms
        };
        for form in forms("PRIVATE KEY", private) {
            let key = SigningKey::parse(&form).unwrap_or_else(|error| panic!("{error}: {form}"));
            assert_eq!(key.public_key().as_deref(), Some(merchant), "{form}");
        }
        let beside = pem("CERTIFICATE", "AAAA") + &pem("PRIVATE KEY", private);
        assert!(SigningKey::parse(&beside).is_ok());
        let signing = SigningKey::parse(private).unwrap();
        let header = signature_header(1, &signing.sign("/p", "c", "1", b"{}"));
        for (ours, theirs) in forms("PUBLIC KEY", merchant).iter().zip(forms("PUBLIC KEY", gateway))
        {
            let mut texts = vec![ours.clone(), format!("{theirs},{ours}")];
            texts.extend((!theirs.ends_with('"')).then(|| format!("{theirs}\n{ours}")));
            for text in texts {
                let keys =
                    VerifyingKeys::parse(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
                assert!(keys.verify("/p", "c", "1", b"{}", &header), "{text}");
            }
        }
    }

    /// Made by `openssl pkcs8 -topk8`, `openssl rsa -traditional -aes256` and `openssl pkcs8 -topk8
    /// -v1 PBE-SHA1-3DES`.
    #[test]
    fn an_encrypted_key_is_named_as_such() {
        let vectors: Value =
            serde_json::from_str(include_str!("../../tests/vectors/encrypted_keys.json")).unwrap();
        for (name, key) in vectors.as_object().unwrap() {
            let pem = key.as_str().unwrap();
            let base64: String = pem.lines().filter(|line| !line.contains("-----")).collect();
            let mut forms =
                vec![pem.to_owned(), pem.replace('\n', "\\n"), format!("\u{feff}{pem}")];
            forms.extend((!pem.contains("Proc-Type")).then_some(base64));
            for form in forms {
                let error = SigningKey::parse(&form).unwrap_err();
                assert_eq!(error, KeyError::Encrypted, "{name}");
                assert!(error.to_string().contains("openssl pkey"), "{error}");
            }
        }
    }

    #[test]
    fn an_unusable_key_is_refused_with_its_reason() {
        let vectors = vectors();
        let public = text(&vectors, "gateway_public_key_spki");
        assert_eq!(SigningKey::parse(" ").unwrap_err(), KeyError::Empty);
        assert_eq!(SigningKey::parse("$$$").unwrap_err(), KeyError::NotBase64);
        assert!(matches!(SigningKey::parse(public).unwrap_err(), KeyError::NotAKey(_)));
        let armoured = pem("PUBLIC KEY", public);
        assert!(matches!(SigningKey::parse(&armoured).unwrap_err(), KeyError::OtherPem { .. }));
        assert!(matches!(VerifyingKeys::parse("AAAA").unwrap_err(), KeyError::NotAKey(_)));
    }

    #[test]
    fn a_broken_signature_header_verifies_nothing() {
        let (signing, verifying) = keys(&vectors(), "merchant");
        let signature = signing.sign("/p", "c", "1", b"{}");
        for header in [
            "",
            "signature",
            "signature=",
            "algorithm=RSA256, keyVersion=1, signature=%zz",
            &format!("algorithm=HMAC, keyVersion=1, signature={signature}"),
        ] {
            assert!(!verifying.verify("/p", "c", "1", b"{}", header), "{header}");
        }
        assert!(verifying.verify("/p", "c", "1", b"{}", &signature_header(3, &signature)));
    }
}
