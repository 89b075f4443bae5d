//! Between a client's channel and a guest's: bytes both ways, window sizes and signals one way, the end the other way. Neither direction
//! waits for the other.
//!
//! A guest's channel is the only one of its connection at a time: russh's client opens windows whatever we say, so that the one way not
//! to be sent more than the client takes is not to read, and that holds up all of a connection.

use std::time::Duration;

use russh::{Channel, ChannelMsg, ChannelWriteHalf, Sig, client::Msg as ToGuest, server::Msg as ToClient};
use tokio::{
    io::{AsyncWriteExt, Stderr, Stdout},
    sync::mpsc,
};
use tokio_util::{bytes::Bytes, sync::CancellationToken};

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
    /// How long it may take nothing once it has ended its input. OpenSSH keeps a channel whose reader here was killed until the server
    /// closes it, does not open its window again, and says why only to servers of its own kind: for all others that is an orphan.
    pub stalled: Duration,
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

/// Somebody on this host itself.
pub struct Here {
    /// Standard input.
    pub input: mpsc::Receiver<Bytes>,
    pub controls: mpsc::Receiver<Control>,
    pub gone: CancellationToken,
}

/// What somebody sends.
enum Input {
    Client(Intake),
    Here(mpsc::Receiver<Bytes>),
}

impl Input {
    async fn next(&mut self) -> Option<Bytes> {
        match self {
            Self::Client(intake) => intake.next().await,
            Self::Here(input) => input.recv().await,
        }
    }
}

/// Where what a guest says goes.
enum Output<'a> {
    Client(&'a ChannelWriteHalf<ToClient>),
    Here(Stdout, Stderr),
}

/// Whoever is there takes nothing any more.
struct Deaf;

impl From<russh::Error> for Deaf {
    fn from(_: russh::Error) -> Self {
        Self
    }
}

impl From<std::io::Error> for Deaf {
    fn from(_: std::io::Error) -> Self {
        Self
    }
}

impl Output<'_> {
    async fn data(&mut self, bytes: Bytes) -> Result<(), Deaf> {
        match self {
            Self::Client(write) => write.data_bytes(bytes).await?,
            Self::Here(out, _) => {
                out.write_all(&bytes).await?;
                out.flush().await?;
            }
        }
        Ok(())
    }

    async fn errors(&mut self, bytes: Bytes) -> Result<(), Deaf> {
        match self {
            Self::Client(write) => write.extended_data_bytes(1, bytes).await?,
            Self::Here(_, errors) => {
                errors.write_all(&bytes).await?;
                errors.flush().await?;
            }
        }
        Ok(())
    }

    async fn eof(&mut self) -> Result<(), Deaf> {
        match self {
            Self::Client(write) => Ok(write.eof().await?),
            // Standard output ends with the process.
            Self::Here(..) => Ok(()),
        }
    }
}

/// Passes everything on until the guest closes its channel, or the client goes.
pub async fn relay(client: Client<'_>, guest: Channel<ToGuest>) -> Ended {
    let Client { input, controls, write, gone, stalled } = client;
    pass(Input::Client(input), controls, Output::Client(write), (gone, stalled), guest).await
}

/// The same between a guest and the standard streams of this process.
pub async fn here(here: Here, guest: Channel<ToGuest>) -> Ended {
    let Here { input, controls, gone } = here;
    let output = Output::Here(tokio::io::stdout(), tokio::io::stderr());
    // Whoever reads here breaks the pipe when they leave.
    pass(Input::Here(input), controls, output, (gone, Duration::MAX), guest).await
}

async fn pass(
    mut input: Input,
    mut controls: mpsc::Receiver<Control>,
    mut output: Output<'_>,
    (gone, stalled): (CancellationToken, Duration),
    guest: Channel<ToGuest>,
) -> Ended {
    let silent = CancellationToken::new();
    let (mut from_guest, to_guest) = guest.split();
    let feed = async {
        while let Some(bytes) = input.next().await {
            if to_guest.data_bytes(bytes).await.is_err() {
                return;
            }
        }
        silent.cancel();
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
            if matches!(message, ChannelMsg::Close) {
                break;
            }
            let pass = async {
                match message {
                    ChannelMsg::Data { data } => output.data(data).await,
                    ChannelMsg::ExtendedData { data, ext: 1 } => output.errors(data).await,
                    ChannelMsg::Eof => output.eof().await,
                    ChannelMsg::ExitStatus { exit_status } => {
                        ended = Ended::Code(exit_status);
                        Ok(())
                    }
                    ChannelMsg::ExitSignal { signal_name, core_dumped, .. } => {
                        ended = Ended::Signal { name: signal_name, core: core_dumped };
                        Ok(())
                    }
                    _ => Ok(()),
                }
            };
            let orphaned = async {
                silent.cancelled().await;
                tokio::time::sleep(stalled).await;
            };
            let passed = tokio::select! {
                biased;
                passed = pass => passed,
                () = orphaned => {
                    // Nor does it take any words about it.
                    gone.cancel();
                    Err(Deaf)
                }
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
