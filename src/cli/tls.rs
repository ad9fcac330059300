//! The TLS files of the broker and of Redis, read and tested at start. A file that cannot work is a
//! bad setting: a worker that retried with it would never connect.

use std::path::{Path, PathBuf};

use rustls::{
    RootCertStore,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};

use crate::config::{TlsSettings, shown_path};

type Pem = Vec<u8>;

/// The certificates of a private authority, and the client certificate with its key; all of them
/// PEM.
pub(super) type TlsFiles = (Option<Pem>, Option<(Pem, Pem)>);

/// Reads and tests the files of a section. Each error names the setting that is wrong.
pub(super) fn read(section: &str, tls: &TlsSettings) -> Result<TlsFiles, Vec<String>> {
    let mut errors = Vec::new();
    let mut read = |key: &str, file: &Option<PathBuf>, check: fn(&[u8]) -> Result<(), String>| {
        let file = file.as_ref()?;
        read_pem(file)
            .and_then(|pem| check(&pem).map(|()| pem))
            .map_err(|error| errors.push(format!("{section}.{key} {}: {error}", shown_path(file))))
            .ok()
    };
    let ca = read("ca_file", &tls.ca_file, authority);
    let certificate =
        read("client_cert_file", &tls.client_cert_file, |pem| certificates(pem).map(drop));
    let key = read("client_key_file", &tls.client_key_file, |pem| private_key(pem).map(drop));
    let client = certificate.zip(key);
    if let Some(error) = client.as_ref().and_then(|(certificate, key)| pair(certificate, key).err())
    {
        errors.push(format!("{section}.client_key_file: {error}"));
    }
    if errors.is_empty() { Ok((ca, client)) } else { Err(errors) }
}

/// The content of a file without a byte order mark: a PEM parser would not recognize the first
/// line.
fn read_pem(file: &Path) -> Result<Pem, String> {
    let mut pem = std::fs::read(file).map_err(|error| error.to_string())?;
    if pem.starts_with("\u{feff}".as_bytes()) {
        pem.drain(.."\u{feff}".len());
    }
    Ok(pem)
}

fn authority(pem: &[u8]) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    certificates(pem)?.into_iter().try_for_each(|certificate| {
        roots
            .add(certificate)
            .map_err(|error| format!("the file holds a certificate that cannot be used: {error}"))
    })
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| "the file holds a damaged certificate".to_owned())?;
    if certificates.is_empty() {
        return Err("the file holds no certificate (PEM with the label CERTIFICATE)".into());
    }
    Ok(certificates)
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    let text = String::from_utf8_lossy(pem);
    if text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains(",ENCRYPTED") {
        return Err(
            "the key is encrypted: decrypt it with `openssl pkey -in encrypted.pem -out key.pem` \
             and use key.pem"
                .into(),
        );
    }
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| {
        "the file holds no private key (PEM with the label PRIVATE KEY, RSA PRIVATE KEY or \
         EC PRIVATE KEY)"
            .into()
    })
}

/// Tests that the key can sign and belongs to the certificate.
fn pair(certificate: &[u8], key: &[u8]) -> Result<(), String> {
    match CertifiedKey::from_der(certificates(certificate)?, private_key(key)?, &default_provider())
    {
        Ok(_) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err("the key does not belong to the certificate in client_cert_file".into())
        }
        Err(error) => Err(format!("the key cannot be used: {error}")),
    }
}
