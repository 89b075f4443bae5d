//! Commands, shells and copies inside of a guest, for a client of the SSH door.

use russh::{Channel, ChannelWriteHalf, Pty, client, server::Msg};
use tokio::io::AsyncWriteExt;

use super::{
    super::{
        Doors, ask,
        command::Inside,
        guest::{self, Guest},
        relay::{self, Client, Ended},
        sftp,
    },
    lines::Lines,
};
use crate::{
    bus::{Refusal, guest::Act},
    spec::caller::Caller,
};

/// The exit code when what ran was lost, as OpenSSH has it.
const LOST: u32 = 255;

/// A terminal that a client has.
#[derive(Debug, Clone)]
pub struct Terminal {
    /// `xterm-256color`
    pub name: String,
    /// Columns, rows, and the same in pixels.
    pub size: [u32; 4],
    pub modes: Vec<(Pty, u32)>,
}

/// What a client asks for inside of an instance.
pub struct Visit<'a> {
    pub doors: &'a Doors,
    pub who: &'a Caller,
    pub instance: String,
    pub inside: Inside,
    pub terminal: Option<Terminal>,
}

impl Visit<'_> {
    /// Does it, and says how it ended.
    pub async fn run(self, client: Client<'_>) -> Ended {
        let (write, gone, shown) = (client.write, client.gone.clone(), self.terminal.is_some());
        let ended = tokio::select! {
            ended = self.visit(client) => ended,
            () = gone.cancelled() => Ok(Ended::Lost),
            () = self.doors.stopping.cancelled() => Err(Refusal::Failed("this host's doors are closing: try again in a moment".into())),
        };
        let (text, code) = match ended {
            Ok(Ended::Lost) if gone.is_cancelled() => return Ended::Lost,
            Ok(Ended::Lost) => (format!("the connection with {} ended (status says why)", self.instance), LOST),
            Ok(ended) => return ended,
            Err(refusal) => (ask::words(&refusal), refusal.exit_code().into()),
        };
        complain(write, shown, &text).await;
        Ended::Code(code)
    }

    async fn visit(&self, client: Client<'_>) -> Result<Ended, Refusal> {
        let (act, what) = match &self.inside {
            Inside::Exec(line) => (Act::Exec, String::from_utf8_lossy(line).into_owned()),
            Inside::Shell => (Act::Exec, "a shell".to_owned()),
            Inside::Scp(line) => (Act::Copy, format!("scp {line}")),
            Inside::Port(port) => (Act::Forward, format!("port {port}")),
        };
        let guest = guest::enter(&self.doors.agent, self.who.as_str(), &self.instance, act, &what).await?;
        let channel = self.open(&guest).await.map_err(|error| self.lost(&error))?;
        let ended = relay::relay(client, channel).await;
        // A port has no exit code: that it was closed is all there is to know.
        let port_closed = matches!((&self.inside, &ended), (Inside::Port(_), Ended::Lost)) && !guest.is_closed();
        Ok(if port_closed { Ended::Code(0) } else { ended })
    }

    async fn open(&self, guest: &Guest) -> Result<Channel<client::Msg>, russh::Error> {
        if let Inside::Port(port) = self.inside {
            return guest.port(port).await;
        }
        let channel = guest.session().await?;
        if let Some(Terminal { name, size: [columns, rows, width, height], modes }) = &self.terminal {
            channel.request_pty(false, name, *columns, *rows, *width, *height, modes).await?;
        }
        match &self.inside {
            Inside::Exec(line) => channel.exec(true, line.clone()).await?,
            Inside::Scp(line) => channel.exec(true, format!("scp {line}")).await?,
            Inside::Shell | Inside::Port(_) => channel.request_shell(true).await?,
        }
        Ok(channel)
    }

    fn lost(&self, error: &russh::Error) -> Refusal {
        Refusal::Failed(match (error, &self.inside) {
            (russh::Error::ChannelOpenFailure(_), Inside::Port(port)) => {
                format!("nothing in {} listens on port {port}", self.instance)
            }
            (error, _) => format!("{} did not do it: {error}", self.instance),
        })
    }
}

/// Copies files for a client that speaks SFTP: the paths say with which instance.
pub async fn copy(doors: &Doors, who: &Caller, client: Client<'_>) -> Ended {
    let (write, gone) = (client.write, client.gone.clone());
    tokio::select! {
        ended = sftp::serve(doors, who, client) => ended,
        () = gone.cancelled() => Ended::Lost,
        () = doors.stopping.cancelled() => {
            complain(write, false, "this host's doors are closing: try again in a moment").await;
            Ended::Code(LOST)
        }
    }
}

/// Says why something was not done.
pub async fn complain(write: &ChannelWriteHalf<Msg>, terminal: bool, text: &str) {
    let mut errors = Lines::new(write.make_writer_ext(Some(1)), terminal);
    // There may be nobody left to tell.
    drop(errors.write_all(format!("error: {text}\n").as_bytes()).await);
}
