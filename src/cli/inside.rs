//! Inside of guests, for the operator on this host: `seed exec`, `shell`, `cp` and `forward`. What `ssh HOST` does with these verbs,
//! with this process as the client: the agent hands it a stream into the guest, as it does to the doors.

mod copy;
mod forward;
mod terminal;

use std::{io::Read, process::ExitCode};

use russh::Sig;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};
use tokio_util::{bytes::Bytes, sync::CancellationToken};

use crate::{
    bus::{Refusal, SeedProxy},
    serve::{
        command::{self, Command, Inside},
        guest::{self, Terminal},
        relay::{self, Control, Ended, Here},
    },
};

/// The exit code when what ran was lost, as OpenSSH has it.
const LOST: u8 = 255;

/// What is wanted.
#[derive(Debug, PartialEq, Eq)]
pub enum Visit {
    /// A command, a shell or a port as standard streams; at a terminal of its own if that is asked for.
    Run {
        instance: String,
        inside: Inside,
        terminal: bool,
    },
    Copy(copy::Copy),
    Forward(forward::Forward),
}

/// How many letters a line of the terminal holds; 0 if that is not known.
pub fn columns() -> usize {
    terminal::size().map_or(0, |[columns, ..]| usize::try_from(columns).unwrap_or(0))
}

impl Visit {
    /// Whether words are one of these verbs.
    pub fn is(words: &[String]) -> bool {
        words.first().is_some_and(|verb| matches!(verb.as_str(), "exec" | "shell" | "cp" | "forward"))
    }

    /// Reads the words.
    pub fn parse(words: &[String]) -> Result<Self, Refusal> {
        let (verb, rest) = words.split_first().map_or(("", words), |(verb, rest)| (verb.as_str(), rest));
        match verb {
            "cp" => return copy::Copy::parse(rest).map(Self::Copy),
            "forward" => return forward::Forward::parse(rest).map(Self::Forward),
            _ => {}
        }
        let terminal = verb == "shell" || rest.first().is_some_and(|word| word == "-t" || word == "--tty");
        let rest = if verb == "exec" && terminal { &rest[1..] } else { rest };
        // The words are put together with blanks, as ssh does, and read as the door reads them.
        let line = std::iter::once(verb).chain(rest.iter().map(String::as_str)).collect::<Vec<_>>().join(" ");
        match command::parse(line.as_bytes()).map_err(|error| Refusal::Invalid(error.to_string()))? {
            Command::Enter(instance, inside) => Ok(Self::Run { instance, inside, terminal }),
            _ => Err(Refusal::Invalid(format!("{verb} needs one instance: {verb} web"))),
        }
    }

    /// Does it.
    pub async fn run(self, agent: &SeedProxy<'_>, json: bool) -> Result<ExitCode, Refusal> {
        match self {
            Self::Run { instance, inside, terminal } => enter(agent, &instance, &inside, terminal).await.map(ExitCode::from),
            Self::Copy(copy) => copy.run(agent, json).await,
            Self::Forward(forward) => forward.run(agent, json).await,
        }
    }
}

async fn enter(agent: &SeedProxy<'_>, instance: &str, inside: &Inside, terminal: bool) -> Result<u8, Refusal> {
    let screen = if terminal { terminal::size() } else { None };
    let shown =
        screen.map(|size| Terminal { name: std::env::var("TERM").unwrap_or_else(|_| "dumb".to_owned()), size, modes: Vec::new() });
    let (_guest, channel) = guest::visit(agent, "", instance, inside, shown.as_ref()).await?;
    let failed = |error: std::io::Error| Refusal::Failed(format!("could not listen for signals: {error}"));
    let controls = Controls::listen().map_err(failed)?;
    // What is typed from here on is the guest's to show and to make sense of.
    let raw = if shown.is_some() { terminal::Raw::enter() } else { None };
    let (steer, controlled) = mpsc::channel(64);
    let gone = CancellationToken::new();
    let here = Here { input: stdin(), controls: controlled, gone: gone.clone() };
    let ended = tokio::select! {
        ended = relay::here(here, channel) => ended,
        () = controls.pass_on(&steer, &gone) => Ended::Lost,
    };
    drop(raw);
    match ended {
        Ended::Code(code) => Ok(u8::try_from(code).unwrap_or(LOST)),
        Ended::Signal { name, .. } => Ok(128 + number(&name)),
        Ended::Lost if gone.is_cancelled() => Ok(128 + number(&Sig::INT)),
        Ended::Lost => {
            eprintln!("error: the connection with {instance} ended (status says why)");
            Ok(LOST)
        }
    }
}

/// The number that a signal has on this system.
fn number(name: &Sig) -> u8 {
    let number = match name {
        Sig::ABRT => libc::SIGABRT,
        Sig::ALRM => libc::SIGALRM,
        Sig::FPE => libc::SIGFPE,
        Sig::HUP => libc::SIGHUP,
        Sig::ILL => libc::SIGILL,
        Sig::INT => libc::SIGINT,
        Sig::KILL => libc::SIGKILL,
        Sig::PIPE => libc::SIGPIPE,
        Sig::QUIT => libc::SIGQUIT,
        Sig::SEGV => libc::SIGSEGV,
        Sig::TERM => libc::SIGTERM,
        Sig::USR1 => libc::SIGUSR1,
        Sig::Custom(_) => 0,
    };
    u8::try_from(number).unwrap_or_default()
}

/// Standard input, read by a thread that ends with the process: nothing can take back a read that waits for a person.
fn stdin() -> mpsc::Receiver<Bytes> {
    let (to, from) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 32 << 10];
        loop {
            match std::io::stdin().lock().read(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(count) if count > 0 => {
                    if to.blocking_send(Bytes::copy_from_slice(&buffer[..count])).is_err() {
                        return;
                    }
                }
                _ => return,
            }
        }
    });
    from
}

/// What this process is told beside its standard input.
struct Controls {
    size: Signal,
    signals: [(Sig, Signal); 4],
}

impl Controls {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            size: signal(SignalKind::window_change())?,
            signals: [
                (Sig::INT, signal(SignalKind::interrupt())?),
                (Sig::TERM, signal(SignalKind::terminate())?),
                (Sig::HUP, signal(SignalKind::hangup())?),
                (Sig::QUIT, signal(SignalKind::quit())?),
            ],
        })
    }

    /// Passes it on for ever. A signal is for the program there; a second one, if that does not end it, is for us.
    async fn pass_on(mut self, steer: &mpsc::Sender<Control>, gone: &CancellationToken) {
        let mut told = 0;
        let [(int, a), (term, b), (hup, c), (quit, d)] = &mut self.signals;
        loop {
            let control = tokio::select! {
                _ = self.size.recv() => match terminal::size() {
                    Some(size) => Control::Size(size),
                    None => continue,
                },
                _ = a.recv() => Control::Signal(int.clone()),
                _ = b.recv() => Control::Signal(term.clone()),
                _ = c.recv() => Control::Signal(hup.clone()),
                _ = d.recv() => Control::Signal(quit.clone()),
            };
            told += u32::from(matches!(control, Control::Signal(_)));
            if told > 1 {
                gone.cancel();
                return;
            }
            // Who is told more of this than the guest takes does without the rest.
            drop(steer.try_send(control));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Visit, String> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        assert!(Visit::is(&words));
        Visit::parse(&words).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn words_are_read_as_the_door_reads_them() {
        let run = |inside, terminal| Ok(Visit::Run { instance: "app/web".to_owned(), inside, terminal });
        let exec = |line: &str| Inside::Exec(line.as_bytes().to_vec());
        assert_eq!(parse("exec app/web -- ls -t /srv"), run(exec("ls -t /srv"), false));
        assert_eq!(parse("exec -t app/web top"), run(exec("top"), true));
        assert_eq!(parse("exec app/web -- sh -c 'a  b'"), run(exec("sh -c 'a  b'"), false));
        assert_eq!(parse("shell app/web"), run(Inside::Shell, true));
        for (line, why) in [
            ("exec web", "exec web -- ls -l"),
            ("exec -t", "exec web -- ls -l"),
            ("exec --what web ls", "exec web -- ls -l"),
            ("shell", "shell needs one instance"),
            ("shell web api", "shell needs one instance"),
        ] {
            assert!(parse(line).is_err_and(|error| error.contains(why)), "{line}: {:?}", parse(line));
        }
    }
}
