//! A connection of bytes, plain or encrypted, that can end by reset.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// What a fake reads from and writes to.
pub(super) trait Wire: AsyncRead + AsyncWrite + Unpin + Send {
    /// Makes the end of the connection a reset instead of a FIN.
    fn end_by_reset(&self);
}

impl Wire for TcpStream {
    fn end_by_reset(&self) {
        // Fails only when the connection has ended already.
        let _ = self.set_zero_linger();
    }
}

impl Wire for TlsStream<TcpStream> {
    fn end_by_reset(&self) {
        self.get_ref().0.end_by_reset();
    }
}
