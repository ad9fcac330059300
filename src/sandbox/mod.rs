//! The gateway's double: it verifies signatures and signs answers, keeps authorizations and captures in a ledger, and
//! does what it is told to do wrong. For tests, demonstrations, and to play with; it moves no money.
//!
//! It answers any path that ends in `/v1/payments/capture` or `/v1/payments/inquiryPayment`. Everything under `/sandbox`
//! is for whoever watches it and tells it what to do; `/` is a page for people.

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

/// The client id that the sandbox knows.
pub const CLIENT_ID: &str = "5X00000000000000";

/// What a worker needs to speak with the sandbox. These keys are worth nothing elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    /// `gateway.client_id`
    pub client_id: String,
    /// `gateway.private_key`
    pub private_key: String,
    /// `gateway.public_key`
    pub public_key: String,
    /// What the sandbox itself signs with.
    #[serde(skip_serializing)]
    pub gateway_private_key: String,
}

impl Keys {
    /// Fresh keys.
    ///
    /// # Errors
    /// The system gives no randomness.
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

/// How the sandbox behaves towards everyone.
#[derive(Clone, Copy, Debug, Default)]
pub struct SandboxOptions {
    /// Payments must be authorized (`PUT /sandbox/payments/{paymentId}`) before they are captured; otherwise any payment
    /// is good for any sum. And a capture without `captureType` is the last one of its payment, as at
    /// the gateway.
    pub strict: bool,
    /// How long every call takes.
    pub latency: Duration,
}

/// The gateway's double.
pub struct Sandbox {
    options: SandboxOptions,
    keys: Keys,
    signing_key: SigningKey,
    merchant_keys: VerifyingKeys,
    books: Mutex<Books>,
    watch: Watch,
}

/// What is written down.
#[derive(Default)]
struct Books {
    ledger: Ledger,
    /// For every call.
    script: Script,
    /// For the calls of one payment.
    scripts: HashMap<String, Script>,
    /// What a payment's id asks for, for each of its captures.
    simulations: HashMap<String, Script>,
}

impl Sandbox {
    /// A sandbox with an empty ledger.
    ///
    /// # Errors
    /// A key that can't be read.
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

    /// What a worker needs to call it.
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
    /// The step for a call: of its payment's script, of the script for every call, or of the simulation that its
    /// payment's id asks for.
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

/// Serves until `stop` is cancelled; connections that are open then end with the runtime.
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

/// A listener whose connections can be closed without an answer.
struct Cuttable(TcpListener);

/// The other end of a connection.
#[derive(Clone, Debug)]
struct Peer {
    address: SocketAddr,
    socket: Option<Arc<std::net::TcpStream>>,
}

impl Peer {
    /// Closes the connection.
    fn cut(&self) {
        if let Some(socket) = &self.socket {
            // An error says that it is closed already.
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

/// The time as the gateway writes it: ISO 8601 with an offset.
fn now() -> String {
    let utc = OffsetDateTime::now_utc();
    let zone = UtcOffset::from_hms(8, 0, 0).unwrap_or(UtcOffset::UTC);
    let now = utc.replace_nanosecond(0).unwrap_or(utc).to_offset(zone);
    now.format(&Rfc3339).unwrap_or_default()
}
