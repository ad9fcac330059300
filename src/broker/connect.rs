//! A broker connection whose socket this program can close. The client runs a thread for each
//! connection, which reads until the socket is closed. A peer that accepts and then stays silent
//! would leak a thread and a descriptor with every attempt that times out.

use std::{
    io,
    net::{Shutdown, TcpStream},
    ops::Deref,
    os::fd::AsFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lapin::{
    Connection, ConnectionProperties,
    tcp::{AsyncTcpStream, OwnedIdentity, OwnedTLSConfig},
    uri::AMQPScheme,
};
use tokio_util::sync::CancellationToken;

use super::{
    address,
    options::{BrokerOptions, OpenError},
    response::{AmqpError, response_within},
};

/// The time limit for connecting, unless the URL sets another one (`connection_timeout`, in
/// milliseconds).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may take to close cleanly before its socket is closed.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The heartbeat interval, in seconds, unless the URL sets another one. A dead broker is noticed
/// after two intervals.
const HEARTBEAT_S: u16 = 10;

/// A connection to the broker. After it is closed or dropped, its socket is closed within
/// [`CLOSE_TIMEOUT`], whatever the peer does.
pub(super) struct BrokerConnection {
    connection: Connection,
    socket: ClosableSocket,
}

impl BrokerConnection {
    /// Connects. An attempt that times out or is cancelled leaves neither a thread nor a descriptor
    /// behind.
    pub(super) async fn open(options: &BrokerOptions, purpose: &str) -> Result<Self, OpenError> {
        let mut uri = address::parse(&options.url).ok_or(OpenError::Url)?;
        uri.query.heartbeat.get_or_insert(HEARTBEAT_S);
        let limit = uri.query.connection_timeout.map_or(CONNECT_TIMEOUT, Duration::from_millis);
        let name = format!("capture-worker {} {purpose}", env!("CARGO_PKG_VERSION"));
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let tls = OwnedTLSConfig {
            identity: options.client.clone().map(|(pem, key)| OwnedIdentity::PKCS8 { pem, key }),
            cert_chain: options.ca.clone(),
        };
        let attempt = ConnectAttempt(ClosableSocket::default());
        let socket = attempt.0.clone();
        let connecting = Connection::connector(
            uri,
            lapin::runtime::default_runtime().map_err(AmqpError::of)?,
            async move |uri, runtime| {
                let connect = async {
                    let authority = &uri.authority;
                    let address = (authority.host.clone(), authority.port);
                    let addresses = runtime.to_socket_addrs(address);
                    let stream = AsyncTcpStream::connect(&runtime, addresses).await?;
                    if let AsyncTcpStream::Plain(plain) = &stream {
                        socket.keep(plain.get_ref())?;
                    }
                    match uri.scheme {
                        AMQPScheme::AMQP => Ok(stream),
                        AMQPScheme::AMQPS => stream.into_tls(&authority.host, tls.as_ref()).await,
                    }
                };
                tokio::select! {
                    () = socket.shut.cancelled() => Err(io::ErrorKind::TimedOut.into()),
                    connected = connect => connected,
                }
                .map_err(lapin::Error::from)
            },
            properties,
        );
        let connection = response_within(limit, connecting).await?;
        Ok(Self { connection, socket: attempt.succeeded() })
    }

    /// Closes the connection cleanly if the peer lets it, then closes the socket.
    pub(super) async fn close(&self) {
        let closing = self.connection.close(200, "done".into());
        match tokio::time::timeout(CLOSE_TIMEOUT, closing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "broker connection was already closed"),
            Err(_) => tracing::debug!("broker connection did not close in time"),
        }
        self.socket.shut();
    }
}

impl Deref for BrokerConnection {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl Drop for BrokerConnection {
    fn drop(&mut self) {
        let socket = self.socket.clone();
        if socket.shut.is_cancelled() {
            return;
        }
        // Dropping the client's connection asks the broker to close it. It may never respond.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move {
                tokio::time::sleep(CLOSE_TIMEOUT).await;
                socket.shut();
            })),
            Err(_) => socket.shut(),
        }
    }
}

/// An attempt to connect. If it is dropped before it succeeds, its socket is closed.
struct ConnectAttempt(ClosableSocket);

impl ConnectAttempt {
    fn succeeded(mut self) -> ClosableSocket {
        std::mem::take(&mut self.0)
    }
}

impl Drop for ConnectAttempt {
    fn drop(&mut self) {
        self.0.shut();
    }
}

/// A second handle of the socket that the client reads from.
#[derive(Clone, Default)]
struct ClosableSocket {
    stream: Arc<Mutex<Option<TcpStream>>>,
    shut: CancellationToken,
}

impl ClosableSocket {
    fn keep(&self, socket: &impl AsFd) -> io::Result<()> {
        let twin = TcpStream::from(socket.as_fd().try_clone_to_owned()?);
        let mut stream = self.stream();
        if self.shut.is_cancelled() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        *stream = Some(twin);
        Ok(())
    }

    /// Shuts the socket down for both handles, which ends the client's thread.
    fn shut(&self) {
        let mut stream = self.stream();
        self.shut.cancel();
        if let Some(stream) = stream.take()
            && let Err(error) = stream.shutdown(Shutdown::Both)
        {
            tracing::debug!(%error, "broker socket was already closed");
        }
    }

    fn stream(&self) -> MutexGuard<'_, Option<TcpStream>> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
