//! `capture-worker sandbox`: serves the simulated gateway and manages its keys.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use serde_json::json;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use super::{Exit, has_failed, print_error, print_json, print_line};
use crate::{
    domain::duration,
    sandbox::{self, CLIENT_ID, Keys, Sandbox, SandboxOptions},
    telemetry,
};

#[derive(clap::Args)]
pub(super) struct SandboxArgs {
    /// Address to listen on. Port 0 takes a free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Keep the keys in this folder, which is created if it is absent: `private_key` and
    /// `public_key`, for the worker's settings `gateway.private_key_file` and
    /// `gateway.public_key_file`, and `gateway_private_key`. Without this option, each start makes
    /// new keys
    #[arg(long, value_name = "FOLDER")]
    keys: Option<PathBuf>,
    /// Capture only payments that were authorized with `PUT /sandbox/payments/{paymentId}`, and
    /// treat a capture without captureType as FINAL, as the gateway does
    #[arg(long)]
    strict: bool,
    /// How long the sandbox takes to reply to each call
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration::parse)]
    latency: Duration,
    /// Print its address and keys as one line of JSON
    #[arg(long)]
    json: bool,
}

impl SandboxArgs {
    pub(super) async fn run(self) -> Exit {
        match self.serve().await {
            Ok(()) => Exit::Done,
            Err(error) => {
                print_error(&format!("error: {error:#}"));
                Exit::Failed
            }
        }
    }

    async fn serve(self) -> anyhow::Result<()> {
        drop(telemetry::start(None, "info", None).map_err(anyhow::Error::msg)?);
        let keys = match &self.keys {
            Some(folder) => keys_in(folder)?,
            None => Keys::generate()?,
        };
        let options = SandboxOptions { strict: self.strict, latency: self.latency };
        let sandbox = Arc::new(Sandbox::new(keys, options)?);
        let listener = TcpListener::bind(self.listen)
            .await
            .with_context(|| format!("cannot listen on {}", self.listen))?;
        let stop = CancellationToken::new();
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        self.tell(listener.local_addr()?, sandbox.keys());
        if has_failed() {
            // The address and the keys were not printed, so no worker can call it.
            return Ok(());
        }
        let told = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            told.cancel();
        });
        Ok(sandbox::serve(listener, sandbox, stop).await?)
    }

    /// Prints the address, and the settings that a worker needs to call the sandbox.
    fn tell(&self, address: SocketAddr, keys: &Keys) {
        if self.json {
            print_json(&json!({
                "listen": address,
                "client_id": keys.client_id,
                "private_key": keys.private_key,
                "public_key": keys.public_key,
            }));
        } else {
            print_line(&format!(
                "# The sandbox is listening. Open http://{address}/ in a browser."
            ));
            print_line("# Settings for a worker (these keys work only with this sandbox):");
            print_line(&format!("export CAPTURE__GATEWAY__BASE_URL=http://{address}"));
            print_line(&format!("export CAPTURE__GATEWAY__CLIENT_ID={}", keys.client_id));
            print_line(&format!("export CAPTURE__GATEWAY__PRIVATE_KEY={}", keys.private_key));
            print_line(&format!("export CAPTURE__GATEWAY__PUBLIC_KEY={}", keys.public_key));
        }
    }
}

/// Reads the keys in a folder. If there are none, makes new ones and writes them first.
fn keys_in(folder: &Path) -> anyhow::Result<Keys> {
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    if !folder.join("gateway_private_key").exists() {
        let keys = Keys::generate()?;
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        // The next start takes this last file as proof that all of them were written.
        for (name, text) in [
            ("private_key", &keys.private_key),
            ("public_key", &keys.public_key),
            ("gateway_private_key", &keys.gateway_private_key),
        ] {
            write_secret(&folder.join(name), text)?;
        }
        return Ok(keys);
    }
    Ok(Keys {
        client_id: CLIENT_ID.to_owned(),
        private_key: read("private_key")?,
        public_key: read("public_key")?,
        gateway_private_key: read("gateway_private_key")?,
    })
}

fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}
