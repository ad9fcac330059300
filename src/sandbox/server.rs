//! The HTTP server of the sandbox.

use std::{io, sync::Arc};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    Sandbox, control,
    peer::{CuttableListener, Peer},
};

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
        ended = axum::serve(CuttableListener(listener), app).into_future() => ended,
        () = stop.cancelled() => Ok(()),
    }
}
