//! A gateway behind TLS that only a proxy can reach.
#![expect(clippy::unwrap_used, reason = "a failure fails the test and shows its place")]

use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use rcgen::{CertificateParams, KeyPair};
use testkit::{guardian::folder, servers::free_port};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer},
    },
};

use crate::env::{ItEnv, job};

/// The credentials of `user` with the password `p@ss/w0rd`.
const LOGIN: &str = "Basic dXNlcjpwQHNzL3cwcmQ=";

/// The behavior of the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proxying {
    Tunnels,
    Forbids,
    AsksForPassword,
    Closes,
    StaysSilent,
    /// It opens the tunnel to a server that does not speak TLS.
    LeadsAstray,
}

const FAILURES: [Proxying; 5] = [
    Proxying::Forbids,
    Proxying::AsksForPassword,
    Proxying::Closes,
    Proxying::StaysSilent,
    Proxying::LeadsAstray,
];

/// A proxy that accepts CONNECT only.
#[derive(Clone)]
struct Proxy {
    port: u16,
    does: Arc<Mutex<Proxying>>,
    tunnels: Arc<AtomicUsize>,
    strangers: Arc<AtomicUsize>,
}

impl Proxy {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            port: listener.local_addr().unwrap().port(),
            does: Arc::new(Mutex::new(Proxying::Tunnels)),
            tunnels: Arc::default(),
            strangers: Arc::default(),
        };
        let serving = proxy.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let proxy = serving.clone();
                tokio::spawn(async move { proxy.serve(stream).await.unwrap_or_default() });
            }
        });
        proxy
    }

    fn set(&self, proxying: Proxying) {
        *self.does.lock().unwrap() = proxying;
    }

    async fn serve(&self, mut client: TcpStream) -> std::io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let login =
            head.to_ascii_lowercase().contains("proxy-authorization: ") && head.contains(LOGIN);
        let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
        let (true, Some(target)) = (login, target) else {
            self.strangers.fetch_add(1, Ordering::SeqCst);
            return client.write_all(b"HTTP/1.1 407 Who are you\r\n\r\n").await;
        };
        let does = *self.does.lock().unwrap();
        let mut server = match does {
            Proxying::Tunnels => {
                TcpStream::connect(target.replace("localhost", "127.0.0.1")).await?
            }
            Proxying::Forbids => {
                let answer = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n";
                return client.write_all(answer).await;
            }
            Proxying::AsksForPassword => {
                return client.write_all(b"HTTP/1.1 407 Another one\r\n\r\n").await;
            }
            Proxying::Closes => return Ok(()),
            // Stays silent until the client closes the connection.
            Proxying::StaysSilent => return client.read_u8().await.map(drop),
            Proxying::LeadsAstray => TcpStream::connect(("127.0.0.1", self.port)).await?,
        };
        self.tunnels.fetch_add(1, Ordering::SeqCst);
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
        copy_bidirectional(&mut client, &mut server).await.map(drop)
    }
}

/// A TLS server for `localhost` in front of a port. Returns its certificate and its port.
async fn behind_tls(port: u16) -> (String, u16) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let certificate = certificate.self_signed(&key).unwrap();
    let chain = vec![CertificateDer::from(certificate.der().to_vec())];
    let secret = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own_port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let (Ok(mut client), Ok(mut server)) =
                    (acceptor.accept(stream).await, TcpStream::connect(("127.0.0.1", port)).await)
                else {
                    return;
                };
                // A connection that ends without close_notify is no error here.
                copy_bidirectional(&mut client, &mut server).await.map(drop).unwrap_or_default();
            });
        }
    });
    (certificate.pem(), own_port)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_tunnels_and_a_failed_tunnel_counts_as_not_sent() {
    let proxy = Proxy::start().await;
    let env = ItEnv::open().await;
    let (certificate, port) = behind_tls(env.gateway.port).await;
    let folder = folder().unwrap();
    let roots = folder.path().join("roots.pem");
    let (of_proxy, proxy_port) = behind_tls(proxy.port).await;
    fs::write(&roots, certificate + &of_proxy).unwrap();
    let env = env
        .set("GATEWAY__BASE_URL", &format!("https://localhost:{port}"))
        .set("GATEWAY__PROXY", &format!("http://user:p%40ss%2Fw0rd@127.0.0.1:{}", proxy.port))
        .set("RETRY__SCHEDULE", "100ms,200ms")
        .set("BREAKER__FAILURES", "1000");
    let mut program = env.program(&["run"]);
    program.env("SSL_CERT_FILE", &roots);
    let mut worker = ItEnv::worker_from(program).await;

    for failure in FAILURES {
        proxy.set(failure);
        let id = format!("{failure:?}");
        env.publish(&job(&id, &id, 100)).await;
        env.ends_as(&id, "FAILED", Some("unreachable")).await;
    }
    assert_eq!(env.sandbox.calls(None).as_array().unwrap().len(), 0, "something was sent");

    proxy.set(Proxying::Tunnels);
    let before = proxy.tunnels.load(Ordering::SeqCst);
    env.publish(&job("c", "p", 100)).await;
    env.ends_as("c", "CAPTURED", None).await;
    assert!(proxy.tunnels.load(Ordering::SeqCst) > before, "the call did not use the proxy");
    assert_eq!(worker.drain().await, Some(0));

    // A proxy behind TLS.
    let env =
        env.set("GATEWAY__PROXY", &format!("https://user:p%40ss%2Fw0rd@localhost:{proxy_port}"));
    let mut program = env.program(&["run"]);
    program.env("SSL_CERT_FILE", &roots);
    let mut second = ItEnv::worker_from(program).await;
    let before = proxy.tunnels.load(Ordering::SeqCst);
    env.publish(&job("d", "p", 100)).await;
    env.ends_as("d", "CAPTURED", None).await;
    assert!(proxy.tunnels.load(Ordering::SeqCst) > before, "the call did not use the proxy");
    assert_eq!(second.drain().await, Some(0));

    assert_eq!(proxy.strangers.load(Ordering::SeqCst), 0, "calls without credentials");
    let said = worker.process.stderr() + &second.process.stderr();
    for secret in ["p%40ss", "p@ss", "dXNlcjpwQHNz"] {
        assert!(!said.contains(secret), "{secret} in {said}");
    }
    env.assert_clean_books();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_setting_selects_a_proxy_and_variables_are_ignored() {
    let env = ItEnv::open().await;
    let nowhere = format!("http://127.0.0.1:{}", free_port().unwrap());
    let check = async |settings: &[(&str, &str)]| {
        let mut check = env.program(&["check"]);
        check.envs(settings.iter().copied());
        let (code, output, errors) = crate::commands::run(check).await;
        (code, output + &errors)
    };
    // A gateway on this machine needs no proxy. For others, a warning names the variables.
    let (code, said) = check(&[("HTTPS_PROXY", &nowhere), ("all_proxy", &nowhere)]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("is set and not used"), "{said}");
    let elsewhere = ("CAPTURE__GATEWAY__BASE_URL", "https://gateway.invalid");
    let (_, said) = check(&[elsewhere, ("HTTPS_PROXY", &nowhere), ("all_proxy", &nowhere)]).await;
    assert!(said.contains("HTTPS_PROXY") && said.contains("all_proxy"), "{said}");
    assert!(said.contains("is set and not used"), "{said}");
    let (_, said) =
        check(&[elsewhere, ("CAPTURE__GATEWAY__PROXY", &nowhere), ("HTTPS_PROXY", &nowhere)]).await;
    assert!(!said.contains("is set and not used"), "{said}");
    assert!(said.contains("gateway.proxy = set") && !said.contains(&nowhere), "{said}");

    let proxy = ("CAPTURE__GATEWAY__PROXY", "http://user:hush@proxy:3128");
    let (code, said) = check(&[proxy]).await;
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("gateway.proxy requires an https:// gateway.base_url"), "{said}");
    for url in [
        "socks5://user:hush@proxy",
        "proxy:3128",
        "hush",
        "http://user:hu/hush@proxy",
        "http://user:1/hush@proxy",
        "http://user:hush#@proxy",
        "http://hush@proxy",
        "http://user:hush@proxy/path",
    ] {
        let (code, said) = check(&[elsewhere, ("CAPTURE__GATEWAY__PROXY", url)]).await;
        assert_eq!(code, Some(64), "{url}: {said}");
        assert!(said.contains("gateway.proxy must be") && !said.contains("hush"), "{url}: {said}");
    }
}
