//! How a connection to the HTTPS door begins. Whom a client wants is looked at before anything is negotiated: a name that is none of this
//! host's gets the alert `unrecognized_name`. Names of instances that cannot be reached come here too, when something in front of the
//! doors passes on by name.

use std::{collections::BTreeSet, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::watch,
    time::timeout,
};
use tokio_rustls::{LazyConfigAcceptor, rustls::server::Acceptor, server::TlsStream};

use super::acme::own::Tls;

/// Alerts (RFC 8446, section 6), as records of their own before anything is encrypted.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];
const HANDSHAKE_FAILURE: [u8; 7] = [21, 3, 3, 0, 2, 2, 40];

/// What is needed to begin.
pub(super) struct Hello {
    /// The names that are answered.
    pub names: BTreeSet<String>,
    pub tls: watch::Receiver<Tls>,
}

impl Hello {
    /// Shakes hands; `None` if that came to nothing, and the client was told.
    pub async fn begin<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> Option<TlsStream<S>> {
        // What is no ClientHello is answered with an alert there.
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await.ok()?;
        let wanted = start.client_hello().server_name().map(str::to_ascii_lowercase);
        if !wanted.is_some_and(|name| self.names.contains(&name)) {
            refuse(start.io, UNRECOGNIZED_NAME).await;
            return None;
        }
        let tls = self.tls.borrow().clone();
        match tls {
            Some(tls) => start.into_stream(tls).await.ok(),
            None => {
                refuse(start.io, HANDSHAKE_FAILURE).await;
                None
            }
        }
    }
}

/// Sends an alert, and waits for the client to hang up: what it has sent and nobody read would have the alert thrown away.
async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, alert: [u8; 7]) {
    let said = async {
        stream.write_all(&alert).await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(16 << 10), &mut tokio::io::sink()).await
    };
    // Who is gone needs no alert.
    drop(timeout(Duration::from_secs(2), said).await);
}
