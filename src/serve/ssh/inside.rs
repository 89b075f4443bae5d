//! Commands, shells and copies inside of a guest, for a client of the SSH door.

use russh::{ChannelWriteHalf, server::Msg};
use tokio::io::AsyncWriteExt;

use super::{
    super::{
        Doors, ask,
        command::Inside,
        guest::{self, Terminal},
        relay::{self, Client, Ended},
        sftp,
    },
    lines::Lines,
};
use crate::{bus::Refusal, spec::caller::Caller};

/// The exit code when what ran was lost, as OpenSSH has it.
const LOST: u32 = 255;

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
        tokio::select! {
            () = complain(write, shown, &text) => Ended::Code(code),
            () = gone.cancelled() => Ended::Lost,
        }
    }

    async fn visit(&self, client: Client<'_>) -> Result<Ended, Refusal> {
        let (agent, who, terminal) = (&self.doors.agent, self.who.as_str(), self.terminal.as_ref());
        let (guest, channel) = guest::visit(agent, who, &self.instance, &self.inside, terminal).await?;
        let ended = relay::relay(client, channel).await;
        // A port has no exit code: that it was closed is all there is to know.
        let port_closed = matches!((&self.inside, &ended), (Inside::Port(_), Ended::Lost)) && !guest.is_closed();
        Ok(if port_closed { Ended::Code(0) } else { ended })
    }
}

/// Copies files for a client that speaks SFTP: the paths say with which instance.
pub async fn copy(doors: &Doors, who: &Caller, client: Client<'_>) -> Ended {
    let (write, gone) = (client.write, client.gone.clone());
    tokio::select! {
        ended = sftp::serve(doors, who, client) => ended,
        () = gone.cancelled() => Ended::Lost,
        () = doors.stopping.cancelled() => {
            tokio::select! {
                () = complain(write, false, "this host's doors are closing: try again in a moment") => Ended::Code(LOST),
                () = gone.cancelled() => Ended::Lost,
            }
        }
    }
}

/// Says why something was not done.
pub async fn complain(write: &ChannelWriteHalf<Msg>, terminal: bool, text: &str) {
    let mut errors = Lines::new(write.make_writer_ext(Some(1)), terminal);
    // There may be nobody left to tell.
    drop(errors.write_all(format!("error: {text}\n").as_bytes()).await);
}
