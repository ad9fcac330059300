//! A simulated gateway for tests, demonstrations and experiments. It verifies and makes signatures,
//! keeps authorizations and captures in a ledger, and produces faults on request. It moves no
//! money.
//!
//! It answers any path that ends in `/v1/payments/capture` or `/v1/payments/inquiryPayment`. The
//! control API is under `/sandbox`, and `/` is a web page.

mod answer;
mod control;
mod gate;
mod ledger;
mod page;
mod script;
mod simulation;
mod watch;

use std::{
    collections::HashMap,
    io,
    net::{Shutdown, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

pub use self::script::{Call, Forever, Step, Times, Way};
use self::{ledger::Ledger, script::Script, simulation::simulation_of, watch::Watch};
use crate::gateway::signing::{KeyError, SigningKey, VerifyingKeys};

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

/// Options that apply to all calls.
#[derive(Clone, Copy, Debug, Default)]
pub struct SandboxOptions {
    /// Whether payments must be authorized (`PUT /sandbox/payments/{paymentId}`) before they are
    /// captured. Otherwise any payment may be captured for any sum. In strict mode, a capture
    /// without `captureType` is the last one of its payment, as at the gateway.
    pub strict: bool,
    /// The time that every call takes.
    pub latency: Duration,
}

/// The simulated gateway, with its keys, its ledger and its scripts.
pub struct Sandbox {
    options: SandboxOptions,
    keys: Keys,
    signing_key: SigningKey,
    merchant_keys: VerifyingKeys,
    books: Mutex<Books>,
    watch: Watch,
}

/// The mutable state: the ledger and the scripts.
#[derive(Default)]
struct Books {
    ledger: Ledger,
    /// The steps for all calls.
    script: Script,
    /// The steps for the calls of single payments, by payment id.
    scripts: HashMap<String, Script>,
    /// The simulations that payment ids request, by `captureRequestId`.
    simulations: HashMap<String, Script>,
}

impl Sandbox {
    /// Creates a sandbox with an empty ledger.
    ///
    /// # Errors
    /// A key can't be read.
    pub fn new(keys: Keys, options: SandboxOptions) -> Result<Self, KeyError> {
        let merchant = SigningKey::parse(&keys.private_key)?;
        let public_key = merchant.public_key().ok_or(KeyError::NotAKey("private key"))?;
        let sandbox = Self {
            signing_key: SigningKey::parse(&keys.gateway_private_key)?,
            merchant_keys: VerifyingKeys::parse(&public_key)?,
            options,
            keys,
            books: Mutex::default(),
            watch: Watch::default(),
        };
        sandbox.clear();
        Ok(sandbox)
    }

    /// The credentials that a worker needs to call this sandbox.
    #[must_use]
    pub const fn keys(&self) -> &Keys {
        &self.keys
    }

    fn books<T>(&self, look: impl FnOnce(&mut Books) -> T) -> T {
        look(&mut self.books.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Empties the ledger, the scripts and the list of calls.
    fn clear(&self) {
        let ledger = Ledger { strict: self.options.strict, ..Ledger::default() };
        self.books(|books| *books = Books { ledger, ..Books::default() });
        self.watch.forget();
    }
}

impl Books {
    /// The step for a call: from its payment's script, else from the script for all calls, else
    /// from the simulation that the payment id requests.
    fn next_step(&mut self, call: Call, payment_id: &str, id: Option<&str>) -> Step {
        let scripted = self.scripts.get_mut(payment_id).and_then(|script| script.next(call, id));
        scripted
            .or_else(|| self.script.next(call, id))
            .or_else(|| {
                let script = simulation_of(payment_id)?;
                let key = id.unwrap_or_default().to_owned();
                self.simulations.entry(key).or_insert(script).next(call, id)
            })
            .unwrap_or_default()
    }
}

/// Serves until `stop` is cancelled. Connections that are open then end with the runtime.
///
/// # Errors
/// The listener fails.
pub async fn serve(
    listener: TcpListener,
    sandbox: Arc<Sandbox>,
    stop: CancellationToken,
) -> io::Result<()> {
    let app = control::router(sandbox).into_make_service_with_connect_info::<Peer>();
    tokio::select! {
        ended = axum::serve(Cuttable(listener), app).into_future() => ended,
        () = stop.cancelled() => Ok(()),
    }
}

/// A listener whose connections can be closed without a reply.
struct Cuttable(TcpListener);

/// The client of a connection, with a handle that can close it.
#[derive(Clone, Debug)]
struct Peer {
    address: SocketAddr,
    socket: Option<Arc<std::net::TcpStream>>,
}

impl Peer {
    /// Closes the connection in both directions.
    fn cut(&self) {
        if let Some(socket) = &self.socket {
            // An error means that the connection is already closed.
            socket.shutdown(Shutdown::Both).unwrap_or_default();
        }
    }
}

impl Listener for Cuttable {
    type Io = TcpStream;
    type Addr = Peer;

    async fn accept(&mut self) -> (TcpStream, Peer) {
        loop {
            let (stream, address) = Listener::accept(&mut self.0).await;
            if let Ok((stream, socket)) = with_handle(stream) {
                return (stream, Peer { address, socket: Some(Arc::new(socket)) });
            }
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Ok(Peer { address: self.0.local_addr()?, socket: None })
    }
}

impl Connected<IncomingStream<'_, Cuttable>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Cuttable>) -> Self {
        stream.remote_addr().clone()
    }
}

fn with_handle(stream: TcpStream) -> io::Result<(TcpStream, std::net::TcpStream)> {
    let stream = stream.into_std()?;
    stream.set_nodelay(true)?;
    let handle = stream.try_clone()?;
    Ok((TcpStream::from_std(stream)?, handle))
}

/// The current time in the gateway's form: ISO 8601 with the offset +08:00.
fn now() -> String {
    let utc = OffsetDateTime::now_utc();
    let zone = UtcOffset::from_hms(8, 0, 0).unwrap_or(UtcOffset::UTC);
    let now = utc.replace_nanosecond(0).unwrap_or(utc).to_offset(zone);
    now.format(&Rfc3339).unwrap_or_default()
}
