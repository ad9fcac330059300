//! Connections that the sandbox can close without a reply.

use std::{
    io,
    net::{Shutdown, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use tokio::net::{TcpListener, TcpStream};

/// A listener whose connections can be closed without a reply.
pub(super) struct CuttableListener(pub(super) TcpListener);

/// The client of a connection, with a handle that can close it.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    socket: Option<Arc<std::net::TcpStream>>,
}

impl Peer {
    /// Closes the connection in both directions.
    pub(super) fn cut(&self) {
        if let Some(socket) = &self.socket {
            // An error means that the connection is already closed.
            socket.shutdown(Shutdown::Both).unwrap_or_default();
        }
    }
}

impl Listener for CuttableListener {
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

impl Connected<IncomingStream<'_, CuttableListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, CuttableListener>) -> Self {
        stream.remote_addr().clone()
    }
}

fn with_handle(stream: TcpStream) -> io::Result<(TcpStream, std::net::TcpStream)> {
    let stream = stream.into_std()?;
    stream.set_nodelay(true)?;
    let handle = stream.try_clone()?;
    Ok((TcpStream::from_std(stream)?, handle))
}
