//! The verbs that people type: over SSH with a key, and on the host itself as the operator. Each asks the agent, and prints.
//!
//! With `--json` the documents of [`crate::bus`] are printed, one a line; errors are then `{"version":1,"error":{…}}` on standard error.
//! Exit codes: 0 done, 1 failed, 2 wrongly asked, 3 not found, 4 denied, 5 nobody answers on the bus.

mod access;
mod arguments;
mod confirm;
mod domain;
mod help;
mod history;
mod logs;
mod remote;
mod show;
mod table;

use std::time::Duration;

pub(super) use show::instant;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use self::arguments::Arguments;
use super::{
    ask,
    progress::{self, Teller, plain},
};
use crate::{
    bus::{Outcome, Planted, Refusal, SeedProxy, Status, shell as documents},
    spec::caller::Caller,
};

/// How long the id of an invite is, with which its code begins.
const INVITE_ID: usize = 6;
/// How often a status that is watched is asked for.
const WATCH: Duration = Duration::from_secs(2);

pub use super::ask::on_host;
pub use confirm::Asking;
pub use help::{Known, VerbOption, verbs};

/// What can be answered without asking anybody: help, and that there is no such verb.
pub fn alone(words: &[String], operator: bool) -> Option<Result<String, Refusal>> {
    let (verb, rest) = words.split_first()?;
    match verb.as_str() {
        "help" => Some(help::asked(rest, operator)),
        verb if !help::known(verb) => Some(Err(help::unknown(verb, operator))),
        // What stands behind an instance is for what runs there.
        "exec" if rest.first().is_none_or(|word| word != "--help" && word != "-h") => None,
        verb if rest.iter().any(|word| word == "--help" || word == "-h") => Some(help::of(verb, operator)),
        _ => None,
    }
}

/// How what is printed will be looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Look {
    /// A person is looking, at a terminal.
    pub terminal: bool,
    /// The terminal shows colours.
    pub colour: bool,
    /// Whether that person can be asked something.
    pub asking: Asking,
    /// How many letters a line of it holds; 0 if that is not known.
    pub columns: usize,
}

/// Why a verb did not end well. Whoever reads what we print may have gone away, which is nobody's error.
enum End {
    Refused(Refusal),
    Gone,
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<std::io::Error> for End {
    fn from(_: std::io::Error) -> Self {
        Self::Gone
    }
}

/// Whether a verb reads its standard input; what is sent to the others is best dropped at once. Some do only at a `terminal`.
pub fn reads(words: &[String], terminal: bool) -> bool {
    let has = |wanted: &str| words.iter().any(|word| word == wanted);
    match words.first().map(String::as_str) {
        Some("remote") => has("token"),
        Some("plant") => has("--token"),
        Some("destroy" | "unplant") => terminal,
        _ => false,
    }
}

/// Runs one verb for the holder of a key, or for the operator if `who` is `None`. Returns the exit code.
pub async fn run<I, O, E>(
    words: &[String],
    who: Option<&Caller>,
    agent: &SeedProxy<'_>,
    mut input: I,
    mut out: O,
    mut err: E,
    look: Look,
) -> u8
where
    I: AsyncRead + Unpin + Send + Sync,
    O: AsyncWrite + Unpin + Send,
    E: AsyncWrite + Unpin + Send,
{
    let mut session = Session { who, agent, input: &mut input, out: &mut out, look };
    let json = words.iter().any(|word| word == "--json");
    let code = match session.verb(words).await {
        Ok(code) => code,
        Err(End::Gone) => 1,
        Err(End::Refused(refusal)) => {
            let refusal = if who.is_none() { on_host(refusal) } else { refusal };
            // There is nobody left to tell.
            drop(err.write_all(format!("{}\n", error_line(&refusal, json)).as_bytes()).await);
            refusal.exit_code()
        }
    };
    drop((out.flush().await, err.flush().await));
    code
}

/// How a refusal is told.
pub fn error_line(refusal: &Refusal, json: bool) -> String {
    error_text(kind(refusal), &ask::words(refusal), json)
}

/// How an error of this kind is told.
pub fn error_text(kind: &str, text: &str, json: bool) -> String {
    if !json {
        return format!("error: {text}");
    }
    let error = documents::Trouble { kind: kind.to_owned(), text: text.to_owned() };
    documents::line(&documents::Failure { version: 1, error }).trim_end().to_owned()
}

/// The document of `whoami`.
fn whoami(key: &str, who: Option<&Caller>) -> String {
    documents::line(&documents::Whoami { version: 1, key: key.to_owned(), source: who.and_then(Caller::source) })
}

fn kind(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::NotFound(_) => "notFound",
        Refusal::Denied(_) => "denied",
        Refusal::Invalid(_) => "invalid",
        Refusal::Failed(_) => "failed",
        Refusal::ZBus(_) => "away",
    }
}

struct Session<'a, O> {
    who: Option<&'a Caller>,
    agent: &'a SeedProxy<'a>,
    input: &'a mut (dyn AsyncRead + Unpin + Send + Sync),
    out: &'a mut O,
    look: Look,
}

impl<O: AsyncWrite + Unpin + Send> Session<'_, O> {
    async fn verb(&mut self, words: &[String]) -> Result<u8, End> {
        let operator = self.who.is_none();
        let Some((verb, rest)) = words.split_first() else {
            return self.print(&help::all(operator)).await;
        };
        if rest.iter().any(|word| word == "--help" || word == "-h") && help::known(verb) {
            return self.print(&help::of(verb, operator)?).await;
        }
        let arguments = |flags: &[&str], valued: &[&str], at_most| Arguments::parse(verb, rest, flags, valued, at_most);
        match verb.as_str() {
            "help" | "--help" | "-h" => self.print(&help::asked(rest, operator)?).await,
            "whoami" => {
                let arguments = arguments(&[], &[], 0)?;
                let name = self.who.map_or("operator", |caller| caller.key().as_str());
                let shown = if arguments.json { whoami(name, self.who) } else { format!("{name}\n") };
                self.print(&shown).await
            }
            "status" => self.status(&arguments(&["--watch", "-w"], &[], 1)?).await,
            "logs" => self.logs(rest).await,
            "restart" => {
                let arguments = arguments(&[], &[], 1)?;
                let instance = arguments.required(0, "an instance: restart web, or restart my-app/web")?;
                let job = ask::within(self.agent.restart(self.name(), instance)).await?;
                self.follow(&job, arguments.json).await
            }
            "deploy" => {
                let arguments = arguments(&[], &[], 1)?;
                let name = arguments.required(0, "a repository: deploy my-app")?;
                let job = ask::within(self.agent.deploy(self.name(), name.strip_suffix(".git").unwrap_or(name))).await?;
                self.follow(&job, arguments.json).await
            }
            "deploys" | "rollback" | "pin" | "unpin" | "stop" | "start" | "destroy" | "unplant" => self.history(verb, rest).await,
            "plant" => self.plant(&arguments(&["--token", "--key"], &[], 2)?).await,
            "remote" => self.remote(&arguments(&[], &[], 3)?).await,
            "plan" | "invite" if !operator => {
                Err(Refusal::Denied(format!("{verb} is for the operator, on the host itself: seed {verb}")).into())
            }
            "plan" => {
                let arguments = arguments(&[], &[], 0)?;
                let document = ask::within(self.agent.plan()).await?;
                let shown = if arguments.json { format!("{document}\n") } else { show::plan(&document)? };
                self.print(&shown).await
            }
            "invite" => self.invite(rest).await,
            // Who copies and is told that it was done may remove the original.
            "cp" if !operator => {
                let how = "cp copies nothing over SSH: scp FILE HOST:INSTANCE:/PATH does, or sftp (`help cp`)";
                Err(Refusal::Invalid(how.into()).into())
            }
            // The door and the command line take these before they come here.
            "exec" | "shell" | "forward" | "cp" => self.print(&help::of(verb, operator)?).await,
            "domain" => self.domain(rest).await,
            "repo" => self.repo(rest).await,
            "quota" => self.quota(rest).await,
            "audit" => self.audit(rest).await,
            unknown => Err(help::unknown(unknown, operator).into()),
        }
    }

    /// Who asks, in the bus's words.
    fn name(&self) -> &str {
        self.who.map_or("", Caller::as_str)
    }

    async fn print(&mut self, text: &str) -> Result<u8, End> {
        self.out.write_all(text.as_bytes()).await?;
        self.out.flush().await?;
        Ok(0)
    }

    async fn status(&mut self, arguments: &Arguments) -> Result<u8, End> {
        let filter = arguments.words.first().map_or("", |word| word.strip_suffix(".git").unwrap_or(word));
        if !arguments.flag("--watch") && !arguments.flag("-w") {
            let shown = self.status_text(filter, arguments.json).await?;
            return self.print(&shown).await;
        }
        let mut last = String::new();
        loop {
            let shown = match self.status_text(filter, arguments.json).await {
                // It comes back by itself, and so does what is watched.
                Err(refusal) if ask::away(&refusal) && !last.is_empty() && !arguments.json => format!("{}\n", ask::words(&refusal)),
                answered => answered?,
            };
            if self.look.terminal && !arguments.json {
                self.print(&show::redrawn(&shown)).await?;
            } else if shown != last {
                self.print(&shown).await?;
            }
            last = shown;
            tokio::time::sleep(WATCH).await;
        }
    }

    async fn status_text(&self, filter: &str, json: bool) -> Result<String, Refusal> {
        if json {
            return Ok(format!("{}\n", ask::within(self.agent.status(self.name(), filter)).await?));
        }
        let status: Status = ask::document(self.agent.status(self.name(), filter)).await?;
        Ok(show::status(&status, show::now(), self.look, self.who.is_none()))
    }

    async fn plant(&mut self, arguments: &Arguments) -> Result<u8, End> {
        let uri = arguments.required(0, "a flake and an invite code: plant silo:my-app CODE, or plant github:user/repo CODE")?;
        let code = match arguments.words.get(1) {
            // The operator needs no leave.
            None if self.who.is_none() => "",
            _ => arguments.required(1, "an invite code: plant silo:my-app CODE")?,
        };
        if !uri.starts_with("silo:") {
            return self.plant_remote(uri, code, arguments).await;
        }
        let document = ask::within(self.agent.plant(self.name(), uri, code)).await?;
        let planted: Planted = serde_json::from_str(&document).map_err(show::unreadable)?;
        let shown = if arguments.json { format!("{document}\n") } else { show::planted(&planted) };
        self.print(&shown).await?;
        match planted.job.as_str() {
            "" => Ok(0),
            job => self.follow(job, arguments.json).await,
        }
    }

    async fn invite(&mut self, rest: &[String]) -> Result<u8, End> {
        let (deed, rest) = rest.split_first().ok_or_else(|| Refusal::Invalid("invite needs one of new, list, revoke".into()))?;
        match deed.as_str() {
            "new" => {
                let arguments = Arguments::parse("invite new", rest, &[], &["--uses", "--expires", "--note"], 0)?;
                let uses = match arguments.value("--uses") {
                    None => 1,
                    Some(text) => text
                        .parse()
                        .ok()
                        .filter(|n| *n > 0)
                        .ok_or_else(|| Refusal::Invalid(format!("--uses {text:?} is no number from 1")))?,
                };
                let expires = arguments::seconds(arguments.value("--expires").unwrap_or("7d"))?;
                let answer = ask::within(self.agent.new_invite(uses, expires, arguments.value("--note").unwrap_or(""))).await?;
                let shown = if arguments.json {
                    let until = if expires == 0 { 0 } else { show::now().saturating_add(expires) };
                    documents::line(&documents::NewInvite { version: 1, code: answer, uses_left: uses, expires: until })
                } else {
                    show::new_invite(&answer, uses, expires)
                };
                self.print(&shown).await
            }
            "list" => {
                let arguments = Arguments::parse("invite list", rest, &["--all"], &[], 0)?;
                let document = ask::within(self.agent.list_invites()).await?;
                let shown = if arguments.json {
                    format!("{document}\n")
                } else {
                    access::invites(&document, show::now(), arguments.flag("--all"), self.look)?
                };
                self.print(&shown).await
            }
            "revoke" => {
                let arguments = Arguments::parse("invite revoke", rest, &[], &[], 1)?;
                let id = arguments.required(0, "the id of an invite: invite list shows them")?;
                // Whoever has the whole code at hand gives that; it goes no further, so that the record of this has none that may still be good.
                let id = id.get(..INVITE_ID).unwrap_or(id);
                ask::within(self.agent.revoke_invite(id)).await?;
                let shown = if arguments.json {
                    documents::line(&documents::InviteRevoked { version: 1, revoked: id.to_owned() })
                } else {
                    format!("{} is revoked\n", plain(id))
                };
                self.print(&shown).await
            }
            unknown => Err(Refusal::Invalid(format!("invite {unknown:?} is unknown: there are new, list and revoke")).into()),
        }
    }

    /// Follows a job to its end.
    async fn follow(&mut self, job: &str, json: bool) -> Result<u8, End> {
        let mut following = progress::follow(self.agent, self.name(), job).await?;
        let mut teller = Teller::default();
        while let Some(word) = following.next().await {
            if json {
                let document = serde_json::to_string(&word).expect("progress has only texts and numbers");
                self.print(&format!("{document}\n")).await?;
            } else {
                for line in teller.lines(&word) {
                    let line = show::progress_line(&line, self.look);
                    self.print(&line).await?;
                }
            }
            if let Some(outcome) = word.outcome {
                return Ok(u8::from(outcome == Outcome::Failed));
            }
        }
        Err(Refusal::Failed("the agent has restarted; it goes on by itself, and status shows how".into()).into())
    }
}
