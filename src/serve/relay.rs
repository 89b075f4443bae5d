//! Between a client's channel and a guest's: bytes both ways, window sizes and signals one way, the end the other way. Neither direction
//! waits for the other.
//!
//! A guest's channel is the only one of its connection at a time: russh's client opens windows whatever we say, so that the one way not
//! to be sent more than the client takes is not to read, and that holds up all of a connection.

use russh::{Channel, ChannelMsg, ChannelWriteHalf, Sig, client::Msg as ToGuest, server::Msg as ToClient};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::ssh::flow::Intake;

/// What a client says beside data.
#[derive(Debug, Clone)]
pub enum Control {
    /// Columns, rows, and the same in pixels.
    Size([u32; 4]),
    Signal(Sig),
}

/// A client's side.
pub struct Client<'a> {
    pub input: Intake,
    pub controls: mpsc::Receiver<Control>,
    pub write: &'a ChannelWriteHalf<ToClient>,
    pub gone: CancellationToken,
}

/// How what ran in a guest has ended.
#[derive(Debug, Clone)]
pub enum Ended {
    Code(u32),
    Signal {
        name: Sig,
        core: bool,
    },
    /// The guest, or the client, hung up before it had ended.
    Lost,
}

/// Passes everything on until the guest closes its channel, or the client goes.
pub async fn relay(client: Client<'_>, guest: Channel<ToGuest>) -> Ended {
    let Client { mut input, mut controls, write, gone } = client;
    let (mut from_guest, to_guest) = guest.split();
    let feed = async {
        while let Some(bytes) = input.next().await {
            if to_guest.data_bytes(bytes).await.is_err() {
                return;
            }
        }
        // A guest that is gone needs no end of input.
        drop(to_guest.eof().await);
    };
    let steer = async {
        while let Some(control) = controls.recv().await {
            let passed = match control {
                Control::Size([columns, rows, width, height]) => to_guest.window_change(columns, rows, width, height).await,
                Control::Signal(signal) => to_guest.signal(signal).await,
            };
            if passed.is_err() {
                return;
            }
        }
    };
    let outward = async {
        let mut ended = Ended::Lost;
        // While the client takes nothing, neither do we: that is the only channel of this connection.
        while let Some(message) = from_guest.wait().await {
            let passed = match message {
                ChannelMsg::Data { data } => write.data_bytes(data).await,
                ChannelMsg::ExtendedData { data, ext: 1 } => write.extended_data_bytes(1, data).await,
                ChannelMsg::Eof => write.eof().await,
                ChannelMsg::ExitStatus { exit_status } => {
                    ended = Ended::Code(exit_status);
                    Ok(())
                }
                ChannelMsg::ExitSignal { signal_name, core_dumped, .. } => {
                    ended = Ended::Signal { name: signal_name, core: core_dumped };
                    Ok(())
                }
                ChannelMsg::Close => break,
                _ => Ok(()),
            };
            if passed.is_err() {
                return Ended::Lost;
            }
        }
        ended
    };
    let inward = async {
        tokio::join!(feed, steer);
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! {
        ended = outward => ended,
        () = inward => Ended::Lost,
        () = gone.cancelled() => Ended::Lost,
    };
    // The connection may be used again; if it is gone, so is this channel.
    drop(to_guest.close().await);
    ended
}
