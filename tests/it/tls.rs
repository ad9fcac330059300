//! Broker and Redis behind TLS. Each has its own private certificate authority and requires a
//! client certificate.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::{
    ServerConfig, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::Acceptor,
};
use serde_json::Value;
use testkit::{
    processes::worker_command,
    servers::{Folder, PrivateRabbit, PrivateRedis, free_port},
};

use crate::{
    commands::run,
    env::{ItEnv, job},
};

/// A certificate authority with the files of a server certificate and of a client certificate.
struct Authority {
    folder: Folder,
}

impl Authority {
    fn new(folder: Folder, name: &str) -> Self {
        let write =
            |name: &str, pem: String| fs::write(folder.outside(name), pem).expect("written");
        let mut authority = CertificateParams::default();
        authority.distinguished_name.push(DnType::CommonName, format!("the authority of {name}"));
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let own = authority.self_signed(&key).expect("a certificate");
        write("ca.pem", own.pem());
        let issuer = Issuer::new(authority, key);
        for (name, usage) in [
            ("server", ExtendedKeyUsagePurpose::ServerAuth),
            ("client", ExtendedKeyUsagePurpose::ClientAuth),
        ] {
            let hosts = ["localhost".to_owned(), "127.0.0.1".to_owned()];
            let mut params = CertificateParams::new(hosts).expect("hosts");
            params.distinguished_name.push(DnType::CommonName, name);
            params.extended_key_usages = vec![usage];
            let key = KeyPair::generate().expect("a key");
            let signed = params.signed_by(&key, &issuer).expect("a certificate");
            write(&format!("{name}.pem"), signed.pem());
            write(&format!("{name}.key"), key.serialize_pem());
        }
        Self { folder }
    }

    /// The path of a file for this process.
    fn ours(&self, name: &str) -> String {
        self.folder.outside(name).display().to_string()
    }

    /// The path of a file for the server, which may run under `chroot`.
    fn theirs(&self, name: &str) -> String {
        self.folder.inside(name).display().to_string()
    }
}

/// Sets the certificate files of one section.
fn trusting(mut env: ItEnv, section: &str, authority: &Authority) -> ItEnv {
    for (key, file) in [
        ("CA_FILE", "ca.pem"),
        ("CLIENT_CERT_FILE", "client.pem"),
        ("CLIENT_KEY_FILE", "client.key"),
    ] {
        env = env.set(&format!("{section}__{key}"), &authority.ours(file));
    }
    env
}

/// A handshake with a gateway that offers HTTP/2, and the request after it.
struct Handshake {
    offered: Vec<String>,
    agreed: Option<String>,
    request_line: String,
}

/// A gateway that prefers HTTP/2, for one connection. It replies with HTTP 503.
fn gateway_with_http2(authority: &Authority) -> (u16, JoinHandle<Handshake>) {
    let key = PrivateKeyDer::from_pem_file(authority.ours("server.key")).expect("a key");
    let certificate = CertificateDer::from_pem_file(authority.ours("server.pem")).expect("a chain");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("a certificate");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let served = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut acceptor = Acceptor::default();
        let accepted = loop {
            acceptor.read_tls(&mut stream).expect("a hello");
            if let Some(accepted) = acceptor.accept().expect("a handshake") {
                break accepted;
            }
        };
        let hello = accepted.client_hello();
        let offered = hello.alpn().into_iter().flatten().map(text).collect();
        let connection = accepted.into_connection(Arc::new(config)).expect("a handshake");
        let mut tls = StreamOwned::new(connection, stream);
        let mut request_line = String::new();
        BufReader::new(&mut tls).read_line(&mut request_line).expect("a request");
        tls.write_all(b"HTTP/1.1 503 Busy\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            .expect("a reply");
        Handshake { offered, agreed: tls.conn.alpn_protocol().map(text), request_line }
    });
    (port, served)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_uses_http_1_1_even_if_the_gateway_offers_http_2() {
    let authority = Authority::new(PrivateRedis::files().expect("a folder"), "the gateway");
    let (port, served) = gateway_with_http2(&authority);
    let env = ItEnv::open().await.set("GATEWAY__BASE_URL", &format!("https://localhost:{port}"));
    let mut program = env.program(&["check", "--json"]);
    program.env("SSL_CERT_FILE", authority.ours("ca.pem"));
    let output = tokio::task::spawn_blocking(move || program.output()).await.expect("a task");
    let document: Value =
        serde_json::from_slice(&output.expect("output").stdout).expect("a document");
    let says = document["checks"]["gateway"]["says"].as_str().unwrap_or_default();
    assert!(says.contains("503"), "{document}");
    let handshake = served.join().expect("served");
    assert_eq!(handshake.offered, ["http/1.1"]);
    assert_eq!(handshake.agreed.as_deref(), Some("http/1.1"));
    let request_line = handshake.request_line.trim_end();
    assert_eq!(request_line, "POST /ams/api/v1/payments/inquiryPayment HTTP/1.1");
}

/// The result of one part of `check`: success, and its text.
async fn check(env: &ItEnv, what: &str) -> (bool, String) {
    let (_, document) = env.run_json(&["check"]).await;
    let found: &Value = &document["checks"][what];
    (found["ok"] == true, found["says"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn private_authorities_and_client_certificates_are_supported() {
    let of_broker = Authority::new(PrivateRabbit::files().expect("a folder"), "broker");
    let of_redis = Authority::new(PrivateRedis::files().expect("a folder"), "redis");
    let of_nobody = Authority::new(PrivateRedis::files().expect("a folder"), "nobody");
    let (amqps, rediss) = (free_port().expect("a port"), free_port().expect("a port"));
    let config = format!(
        "listeners.ssl.1 = 127.0.0.1:{amqps}\n\
         ssl_options.cacertfile = {}\nssl_options.certfile = {}\nssl_options.keyfile = {}\n\
         ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n",
        of_broker.theirs("ca.pem"),
        of_broker.theirs("server.pem"),
        of_broker.theirs("server.key"),
    );
    let words = [
        ("--tls-port", rediss.to_string()),
        ("--tls-ca-cert-file", of_redis.theirs("ca.pem")),
        ("--tls-cert-file", of_redis.theirs("server.pem")),
        ("--tls-key-file", of_redis.theirs("server.key")),
        ("--tls-auth-clients", "yes".to_owned()),
    ];
    let words: Vec<String> =
        words.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
    let (rabbit, redis) =
        tokio::try_join!(PrivateRabbit::start_with(&config), PrivateRedis::start_with(&words))
            .expect("servers");
    let env = ItEnv::open_at(&rabbit.url(), &redis.url(), Duration::ZERO).await;
    let env = env.set("BROKER__URL", &format!("amqps://guest:guest@127.0.0.1:{amqps}/%2f"));
    let env = env.set("REDIS__URL", &format!("rediss://127.0.0.1:{rediss}"));

    for what in ["broker", "redis"] {
        let (is_ok, says) = check(&env, what).await;
        assert!(!is_ok, "{what}: unknown authority accepted");
        assert!(says.contains("certificate"), "{what}: {says}");
    }
    let env = trusting(trusting(env, "BROKER", &of_nobody), "REDIS", &of_nobody);
    for what in ["broker", "redis"] {
        assert!(!check(&env, what).await.0, "{what}: authority of another server accepted");
    }
    let env = trusting(trusting(env, "BROKER", &of_broker), "REDIS", &of_redis);
    for what in ["broker", "redis"] {
        let (is_ok, says) = check(&env, what).await;
        assert!(is_ok, "{what}: {says}");
    }
    let mut worker = env.worker().await;
    env.publish(&job("c", "p", 100)).await;
    env.ends_as("c", "CAPTURED", None).await;
    assert_eq!(worker.drain().await, Some(0));

    // Without a client certificate.
    let mut env = env;
    for section in ["BROKER", "REDIS"] {
        for key in ["CLIENT_CERT_FILE", "CLIENT_KEY_FILE"] {
            env.base.settings.remove(&format!("{section}__{key}"));
        }
    }
    for what in ["broker", "redis"] {
        assert!(!check(&env, what).await.0, "{what}: accepted without a client certificate");
    }
}

/// Client keys that can never work must be reported at start, because a timeout or retry would not
/// name the cause.
#[tokio::test(flavor = "multi_thread")]
async fn unusable_client_keys_are_reported_by_name_at_start() {
    let authority = Authority::new(PrivateRedis::files().expect("a folder"), "broker");
    let other = Authority::new(PrivateRedis::files().expect("a folder"), "other");
    let vectors: Value =
        serde_json::from_str(include_str!("../vectors/encrypted_keys.json")).expect("keys");
    let write = |name: &str, text: &str| {
        fs::write(authority.folder.outside(name), text).expect("written");
        authority.ours(name)
    };
    let (ca, cert, key) =
        (authority.ours("ca.pem"), authority.ours("client.pem"), authority.ours("client.key"));
    let mut wrong = vec![
        (cert.clone(), write("empty.key", ""), "client_key_file", "holds no private key"),
        (cert.clone(), cert.clone(), "client_key_file", "holds no private key"),
        (
            cert.clone(),
            other.ours("client.key"),
            "client_key_file",
            "does not belong to the certificate",
        ),
        (key.clone(), key.clone(), "client_cert_file", "holds no certificate"),
        (cert.clone(), "/nowhere/k".to_owned(), "client_key_file", "No such file"),
    ];
    for (name, text) in vectors.as_object().expect("keys") {
        let file = write(&format!("{name}.key"), text.as_str().expect("PEM"));
        wrong.push((
            cert.clone(),
            file,
            "client_key_file",
            "the key is encrypted: decrypt it with `openssl pkey",
        ));
    }
    for section in ["BROKER", "REDIS"] {
        for (cert, key, name, why) in &wrong {
            let (code, said) = run_with(section, &ca, cert, key).await;
            assert_eq!(code, Some(64), "{section} {why}: {said}");
            let named = format!("{}.{name}", section.to_lowercase());
            let line = said.lines().find(|line| line.contains(why));
            assert!(line.is_some_and(|line| line.contains(&named)), "{named}, {why} in {said}");
        }
        let (_, said) = run_with(section, &key, &cert, &key).await;
        assert!(said.contains("ca_file") && said.contains("holds no certificate"), "{said}");
        // A byte order mark before the first line, as some editors write it.
        let marked = |name: &str, file: &str| {
            write(name, &format!("\u{feff}{}", fs::read_to_string(file).expect("PEM")))
        };
        let (cert, key) = (marked("marked.pem", &cert), marked("marked.key", &key));
        let (_, said) = run_with(section, &marked("marked-ca.pem", &ca), &cert, &key).await;
        let is_reported =
            ["ca_file", "client_cert", "client_key"].iter().any(|key| said.contains(key));
        assert!(!is_reported && said.contains("gateway.base_url is missing"), "{said}");
    }
}

/// Runs `run` with these files and without a gateway, and returns exit code and output.
async fn run_with(section: &str, ca: &str, cert: &str, key: &str) -> (Option<i32>, String) {
    let mut program = worker_command(&["run"]);
    for (name, file) in [("CA_FILE", ca), ("CLIENT_CERT_FILE", cert), ("CLIENT_KEY_FILE", key)] {
        program.env(format!("CAPTURE__{section}__{name}"), file);
    }
    let (code, _, errors) = run(program).await;
    (code, errors)
}
