//! What a pusher sees under his push, line by line, until the deploy has ended or he has gone.

use std::time::{Duration, Instant};

use tokio::{io::AsyncWrite, task::JoinHandle};

use super::{
    super::{
        ask::{self, Asked},
        git::Outlet,
        pktline::{self, Update},
        progress::{self, Teller},
    },
    AGENT_AWAY, Mode, Push,
};
use crate::bus::{Opened, Outcome, Pushed, Refusal};

/// How often a client that is told nothing gets a sign of life.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// Tells the client what becomes of its push.
pub(super) struct Telling<'a, W> {
    pub push: &'a Push,
    pub out: &'a mut Outlet<W>,
    /// Bytes that fit in one side-band packet.
    pub room: usize,
    pub started: Instant,
}

impl<W: AsyncWrite + Unpin> Telling<'_, W> {
    /// Tells it of each update in turn; `told` are the agent's answers, on their way.
    pub async fn all(&mut self, opened: &Opened, told: Vec<(Update, JoinHandle<Asked<Pushed>>)>, mode: Mode) {
        for (update, telling) in told {
            self.received(&update).await;
            let pushed = match self.wait(telling).await {
                Some(Ok(pushed)) => pushed,
                Some(Err(refusal)) => {
                    self.say(&format!("error: {}", ask::words(&refusal))).await;
                    self.say("The push was accepted, but it is not deployed.").await;
                    continue;
                }
                None => return,
            };
            self.notes(opened, &pushed).await;
            if pushed.job.is_empty() {
                continue;
            }
            if mode == Mode::Async {
                let (ssh, name) = (&self.push.ssh, &self.push.name);
                self.say(&format!("Deploying in the background; `{ssh} status {name}` shows how it goes.")).await;
            } else {
                self.follow(&pushed.job).await;
            }
        }
    }

    async fn received(&mut self, update: &Update) {
        let name = update.name().map_or_else(|| update.reference.clone(), |name| name.short().to_owned());
        let took = self.started.elapsed().as_secs_f64();
        let line = if update.deletes() {
            format!("received  {name} deleted")
        } else {
            format!("received  {name} at {} in {took:.1} s", &update.new.as_str()[..10])
        };
        self.say(&line).await;
    }

    async fn notes(&mut self, opened: &Opened, pushed: &Pushed) {
        let (name, ssh) = (&self.push.name, &self.push.ssh);
        if opened.created {
            self.say(&format!("{name} is a new repository, and your key owns it. Anyone can read it; to change that:")).await;
            self.say(&format!("    {ssh} repo visibility {name} private")).await;
            self.say("List more keys in .authorized_keys at its top to let them push.").await;
        }
        // How to plant is told in our words: only the door knows how it was reached.
        let how_to_plant = |note: &&String| note.contains("plant silo:");
        for note in pushed.notes.iter().filter(|note| !how_to_plant(note)) {
            self.say(&progress::plain(note)).await;
        }
        if (opened.created && !opened.planted) || pushed.notes.iter().any(|note| how_to_plant(&note)) {
            self.say(&format!("{name} is not planted yet, so nothing runs. With an invite code:")).await;
            self.say(&format!("    {ssh} plant silo:{name} CODE")).await;
        }
    }

    /// Waits with signs of life. `None` if the client left, or has waited long enough.
    async fn wait<T>(&mut self, mut task: JoinHandle<Asked<T>>) -> Option<Asked<T>> {
        let gone = self.out.gone().clone();
        let stopping = self.push.doors.stopping.clone();
        let deadline = Instant::now() + AGENT_AWAY;
        let mut waited = false;
        loop {
            tokio::select! {
                done = &mut task => {
                    return Some(done.unwrap_or_else(|_| Err(Refusal::Failed("this host stumbled over this push: tell its operator".into()))));
                }
                () = gone.cancelled() => return None,
                () = stopping.cancelled() => break,
                () = tokio::time::sleep(SIGN_OF_LIFE) => {
                    self.out.send(pktline::KEEP_ALIVE).await;
                    if !std::mem::replace(&mut waited, true) {
                        self.say("waiting for the agent, which is restarting …").await;
                    }
                    if Instant::now() > deadline {
                        break;
                    }
                }
            }
        }
        let (ssh, name) = (&self.push.ssh, &self.push.name);
        let line = format!("The push was accepted; it is deployed as soon as the agent is back: `{ssh} status {name}` shows it.");
        self.say(&line).await;
        None
    }

    async fn follow(&mut self, job: &str) {
        let gone = self.out.gone().clone();
        let stopping = self.push.doors.stopping.clone();
        let (ssh, name) = (self.push.ssh.clone(), self.push.name.clone());
        let mut teller = Teller::default();
        let (mut heard, mut deadline) = (0_usize, Instant::now() + AGENT_AWAY);
        loop {
            let asked = progress::follow(&self.push.doors.agent, self.push.who.as_str(), job).await;
            let mut following = match asked {
                Ok(following) => following,
                Err(refusal) if ask::away(&refusal) && Instant::now() < deadline && !gone.is_cancelled() => {
                    self.out.send(pktline::KEEP_ALIVE).await;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
                Err(_) => break,
            };
            let mut index = 0;
            loop {
                tokio::select! {
                    // Cancel-safe: a line that is half read stays in the buffer.
                    word = following.next() => {
                        let Some(word) = word else { break };
                        index += 1;
                        if index <= heard {
                            continue;
                        }
                        heard = index;
                        deadline = Instant::now() + AGENT_AWAY;
                        for line in teller.lines(&word) {
                            self.say(&line).await;
                        }
                        if let Some(outcome) = word.outcome {
                            return self.ended(outcome).await;
                        }
                    }
                    () = gone.cancelled() => return,
                    () = stopping.cancelled() => {
                        return self.say(&format!("The doors of this host restart; the deploy goes on: `{ssh} status {name}`.")).await;
                    }
                    () = tokio::time::sleep(SIGN_OF_LIFE) => self.out.send(pktline::KEEP_ALIVE).await,
                }
            }
            if Instant::now() > deadline {
                break;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        self.say(&format!("The agent has restarted and goes on with this deploy by itself: `{ssh} status {name}` shows it.")).await;
    }

    async fn ended(&mut self, outcome: Outcome) {
        if outcome == Outcome::Failed {
            self.say("The push was accepted and is kept, but it is not what runs: its deploy failed, see above.").await;
            self.say("Repair it and push again.").await;
        }
    }

    async fn say(&mut self, line: &str) {
        let line = format!("{line}\n");
        self.out.send(&pktline::band(2, line.as_bytes(), self.room)).await;
    }
}
