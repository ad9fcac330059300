//! The gateway's sandbox, served over HTTP by this process, so that a test can read its ledger.

use std::sync::Arc;

use capture_worker::sandbox::{self, Keys, Sandbox, SandboxOptions};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A sandbox that is served until this is dropped.
pub struct Gateway {
    pub sandbox: Arc<Sandbox>,
    pub port: u16,
    _serving: DropGuard,
}

impl Gateway {
    /// Serves a sandbox with new keys on a free port.
    pub async fn start(options: SandboxOptions) -> anyhow::Result<Self> {
        let sandbox = Arc::new(Sandbox::new(Keys::generate()?, options)?);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let stop = CancellationToken::new();
        tokio::spawn(sandbox::serve(listener, Arc::clone(&sandbox), stop.clone()));
        Ok(Self { sandbox, port, _serving: stop.drop_guard() })
    }

    /// The value of the setting `gateway.base_url`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}
