//! A push, from the first byte to the last line under it.
//!
//! ```text
//! client ── what is to change ──► checked here, before the pack ──► small, or git receive-pack ── report ──► held
//!                                                                                                             │
//! client ◄── flush ◄── progress of the job, as `remote:` lines ◄── agent.Push ◄───────── refs are synced ◄────┘
//! ```
//! What is small and plain is taken here (`small.rs`), everything else by git (`program.rs`), and the client sees no difference. From the
//! moment that a ref has moved, the agent is told of it, whether or not the client is still there. A deploy that fails does not undo the push.

pub(super) mod lasting;
mod program;
pub(super) mod small;
mod telling;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    process::ChildStdin,
    time::timeout,
};

use self::{program::Program, small::Taken, telling::Telling};
use super::{
    Doors,
    ask::{self, Asked},
    git::{self, Outlet, Place},
    journal::Mark,
    pktline::{self, Request, Update},
    progress,
};
use crate::{
    bus::{PushRead, Pushed},
    spec::{
        caller::Caller,
        name::{RefName, RepoName},
        quantity::Bytes,
    },
};

/// How long a client may take to say what it wants to change.
const DECIDE: Duration = Duration::from_secs(300);
/// How long a client may send nothing in the middle of its pack.
const IDLE: Duration = Duration::from_secs(600);
/// How long a client that was told everything may take to leave.
const HANG_UP: Duration = Duration::from_secs(60);
/// How many bytes of a pack that nobody wants are taken, so that the client lives to read why.
const UNWANTED: u64 = 64 << 20;
/// How long a pusher waits for an agent that restarts.
const AGENT_AWAY: Duration = Duration::from_secs(120);
/// A repository of more packs than this is packed together.
const PACKS: usize = 50;

/// What is said of a repository that went away under a push.
const GONE: &str = "this repository was renamed or deleted while you pushed to it: nothing was kept";

/// One push, as it is served.
#[derive(Debug)]
pub struct Push {
    pub doors: Arc<Doors>,
    pub who: Caller,
    pub name: RepoName,
    /// How the client reaches our shell: `ssh -p 2222 seed.example`.
    pub ssh: String,
}

/// What to do about an accepted push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Deploy,
    Plan,
    Async,
}

impl Push {
    /// Serves it, and returns the exit code.
    pub async fn serve<R, W>(self, mut input: R, mut out: Outlet<W>) -> u8
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send,
    {
        let opened = match git::open(&self.doors, self.who.as_str(), &self.name, "write").await {
            Ok(opened) => opened,
            Err(refusal) => {
                out.send(&pktline::error(&ask::words(&refusal))).await;
                return refusal.exit_code();
            }
        };
        if !git::has_room(&self.doors) {
            out.send(&pktline::error("this host has no room left for a push: its operator has to make some")).await;
            return 1;
        }
        let path = match git::create(&self.doors, &self.name).await {
            Ok(path) => path,
            Err(refusal) => {
                out.send(&pktline::error(&ask::words(&refusal))).await;
                return refusal.exit_code();
            }
        };
        let _slot = match self.doors.push_slots.take(self.who.source()).await {
            Ok(slot) => slot,
            Err(full) => {
                out.send(&pktline::error(&full.to_string())).await;
                return 1;
            }
        };
        let most = self.doors.settings.max_pack.min(Bytes(opened.room));
        // The leave is for what is there now.
        let Ok(place) = Place::of(&path) else {
            out.send(&pktline::error(GONE)).await;
            return 3;
        };
        // Most pushes need no program. Those that do, and repositories that are not as we make them, are git's.
        let mut program = None;
        match small::refs(path.clone()).await {
            Some(refs) => out.send(&refs.advertisement()).await,
            None => match Program::start(&self, &path, most, Some(&mut out)).await {
                Ok(started) => program = Some(started),
                Err(code) => return code,
            },
        }

        let request = match timeout(DECIDE, pktline::read_request(&mut input)).await {
            Ok(Ok(Some(request))) => request,
            // It only wanted to see the refs, or left: git ends when its input does.
            Ok(Ok(None) | Err(pktline::PacketError::Cut)) | Err(_) => {
                return match program {
                    Some(program) => program.end(&self.name).await,
                    None => 1,
                };
            }
            Ok(Err(error)) => {
                out.send(&pktline::error(&error.to_string())).await;
                return 2;
            }
        };
        let mode = match self.check(&request, &path) {
            Ok(mode) => mode,
            Err(reasons) => {
                drop(program);
                refuse(&request, &reasons, &mut out).await;
                // The client is still sending; it reads why when it has finished.
                drop(timeout(IDLE, pump(input, None, Arc::default())).await);
                return 1;
            }
        };
        if request.updates.is_empty() && program.is_none() {
            drop(timeout(HANG_UP, pump(input, None, Arc::default())).await);
            return 0;
        }

        // A stop waits for pushes from here on; a kill leaves the mark.
        let token = self.doors.pushes.token();
        let started = Instant::now();
        let sent = Arc::new(AtomicU64::new(0));
        let room = request.side_band_room();
        let heard = (mode != Mode::Plan && !request.updates.is_empty()).then(|| self.who.clone());
        let is_gone = || Place::of(&path).ok() != Some(place);
        // A small pack is taken as a whole before anybody else has to wait for it.
        let taken = match (&program, &request.updates[..]) {
            (None, [update]) if small::may_be(&request) => {
                let taken = small::take(&mut input, most.0, &sent).await;
                let turn = self.doors.turns.take(&self.name).await;
                let kept = small::keep(&self.doors.journals, (path.clone(), place), update.clone(), taken, heard.clone()).await;
                kept.map(|kept| (kept, turn))
            }
            _ => Err(Taken::default()),
        };
        let mut read = None;
        let (report, code, accepted, mark, turn, pumping) = match taken {
            Ok((kept, turn)) => {
                if let Some(said) = kept.said.filter(|_| room > 0 && !request.can("quiet")) {
                    out.send(&pktline::band(2, said.as_bytes(), room)).await;
                }
                read = kept.read;
                let pumping = tokio::spawn(pump(input, None, Arc::clone(&sent)));
                (kept.report, 0, request.updates.clone(), kept.mark.map(Arc::new), turn, pumping)
            }
            Err(_) if is_gone() => return gone(input, &mut out, room).await,
            Err(taken) => {
                let turn = self.doors.turns.take(&self.name).await;
                let mark = match self.note(&path, place, heard).await {
                    Ok(mark) => mark.map(Arc::new),
                    Err(_) if is_gone() => return gone(input, &mut out, room).await,
                    Err(error) => {
                        tracing::error!(name = %self.name, %error, "could not write into a journal");
                        out.send(&pktline::error("this host cannot write to its disk: tell its operator")).await;
                        return 1;
                    }
                };
                let mut program = match program {
                    Some(program) => program,
                    None => match Program::start(&self, &path, most, None::<&mut Outlet<W>>).await {
                        Ok(started) => started,
                        Err(code) => {
                            expect(mark.as_ref(), 0).await;
                            out.send(&pktline::error("this host could not start git: tell its operator")).await;
                            return code;
                        }
                    },
                };
                // git stands in the folder that it is to change by now, and all that was waited for lies behind.
                if is_gone() {
                    expect(mark.as_ref(), 0).await;
                    return gone(input, &mut out, room).await;
                }
                if program.tell(&request.raw).await.is_err() {
                    expect(mark.as_ref(), 0).await;
                    out.send(&pktline::error("git ended before the push began: try again")).await;
                    return program.end(&self.name).await.max(1);
                }
                // What was taken is counted again.
                sent.store(0, Ordering::Relaxed);
                let pumping = tokio::spawn(pump(
                    AsyncReadExt::chain(std::io::Cursor::new(taken.bytes), input),
                    program.stdin.take(),
                    Arc::clone(&sent),
                ));
                let report = program.relay(&mut out, room).await;
                let code = program.end(&self.name).await;
                let accepted = self.accepted(&request, &report).await;
                if !accepted.is_empty() {
                    let (path, accepted) = (path.clone(), accepted.clone());
                    if tokio::task::spawn_blocking(move || lasting::settle(&path, &accepted)).await.is_err() {
                        tracing::error!(name = %self.name, "syncing stopped short");
                    }
                }
                (report, code, accepted, mark, turn, pumping)
            }
        };
        drop(turn);
        // From here on the push is a fact: the agent hears of it even if the client is gone.
        let branches: Vec<&Update> = accepted.iter().filter(|update| update.reference.starts_with("refs/heads/")).collect();
        expect(mark.as_ref(), branches.len()).await;
        let told: Vec<_> =
            branches.iter().map(|update| ((*update).clone(), self.tell_agent(update, mode, mark.clone(), read.take()))).collect();
        drop(token);
        if room > 0 && accepted.is_empty() && sent.load(Ordering::Relaxed) > most.0 {
            for line in self.too_large(most) {
                out.send(&pktline::band(2, format!("{line}\n").as_bytes(), room)).await;
            }
        }
        if room == 0 {
            out.send(&report).await;
        } else if report.is_empty() && code != 0 {
            out.send(&pktline::band(3, b"git stopped before it had reported: nothing of this push was kept\n", room)).await;
        } else {
            out.send(&pktline::band(1, &report, room)).await;
            let mut telling = Telling { push: &self, out: &mut out, room, started };
            telling.all(&opened, told, mode).await;
        }
        if room > 0 && !request.updates.is_empty() {
            out.send(pktline::FLUSH).await;
        }
        // Wait for the client to hang up first: what it still sends would otherwise be answered with a broken pipe.
        let abort = pumping.abort_handle();
        if timeout(HANG_UP, pumping).await.is_err() {
            abort.abort();
        }
        self.tidy(path);
        code
    }

    /// Notes that git begins.
    async fn note(&self, path: &std::path::Path, place: Place, who: Option<Caller>) -> std::io::Result<Option<Mark>> {
        let (journals, path) = (Arc::clone(&self.doors.journals), path.to_owned());
        let noted = tokio::task::spawn_blocking(move || journals.git(&path, place, who.as_ref())).await?;
        noted.map_err(std::io::Error::other)
    }

    /// What to say of a push of more than `most`.
    fn too_large(&self, most: Bytes) -> Vec<String> {
        let (name, ssh) = (&self.name, &self.ssh);
        if most < self.doors.settings.max_pack {
            return vec![
                format!(
                    "error: this push is larger than {most}, which is all that {name} may still grow by: `{ssh} quota {name}`."
                ),
                "Keep large files out of git, or ask the operator for a larger quota.".to_owned(),
            ];
        }
        vec![
            format!("error: this push is larger than {most}, the most that this host takes at once."),
            format!("Push it in parts (git push HOST:{name} COMMIT:refs/heads/main for older commits first),"),
            "or keep large files out of git.".to_owned(),
        ]
    }

    /// What is wrong with a push, for each of its refs; or what to do with it.
    fn check(&self, request: &Request, path: &std::path::Path) -> Result<Mode, Vec<(String, String)>> {
        let mut reasons: Vec<Option<String>> = request.updates.iter().map(|update| check_update(update, path)).collect();
        let mut mode = Mode::Deploy;
        for option in &request.options {
            mode = match (option.as_str(), mode) {
                ("plan", Mode::Deploy | Mode::Plan) => Mode::Plan,
                ("async", Mode::Deploy | Mode::Async) => Mode::Async,
                ("plan" | "async", _) => {
                    reasons.fill(Some("the push options plan and async exclude each other".into()));
                    break;
                }
                (unknown, _) => {
                    let shown: String = progress::plain(unknown).chars().take(60).collect();
                    reasons.fill(Some(format!("unknown push option \"{shown}\": there are plan and async")));
                    break;
                }
            };
        }
        if request.capabilities.iter().any(|had| had.starts_with("object-format=") && had != "object-format=sha1") {
            reasons.fill(Some("this repository uses SHA-1 object names".into()));
        }
        if !request.updates.is_empty() && !request.can("report-status") && !request.can("report-status-v2") {
            reasons.fill(Some("this git client cannot read a report: use git 1.6.6 or newer".into()));
        }
        if reasons.iter().all(Option::is_none) {
            return Ok(mode);
        }
        let others = || "not pushed, because another ref of this push was refused".to_owned();
        Err(request
            .updates
            .iter()
            .zip(reasons)
            .map(|(update, why)| (update.reference.clone(), why.unwrap_or_else(others)))
            .collect())
    }

    /// The updates that receive-pack reports as done.
    async fn accepted(&self, request: &Request, report: &[u8]) -> Vec<Update> {
        let report = pktline::read_report(report).await;
        if !report.complete && !request.updates.is_empty() {
            tracing::warn!(name = %self.name, "git ended without a whole report");
        }
        request.updates.iter().filter(|update| report.accepted.contains(&update.reference)).cloned().collect()
    }

    /// Tells the agent, and goes on trying while it is away. Not bound to the client's stay.
    fn tell_agent(
        &self,
        update: &Update,
        mode: Mode,
        mark: Option<Arc<Mark>>,
        read: Option<PushRead>,
    ) -> tokio::task::JoinHandle<Asked<Pushed>> {
        let (doors, who, name, update) = (Arc::clone(&self.doors), self.who.clone(), self.name.clone(), update.clone());
        let mode = if mode == Mode::Plan { "plan" } else { "deploy" };
        let mut read = read.and_then(|read| serde_json::to_string(&read).ok());
        let tracked = self.doors.pushes.clone();
        tracked.spawn(async move {
            let _turn = doors.tellings.wait(&name).await;
            loop {
                let (reference, old, new) = (&update.reference, update.old.as_str(), update.new.as_str());
                let (who, name) = (who.as_str(), name.as_str());
                let answer = match &read {
                    Some(read) => ask::document(doors.agent.push_read(who, name, reference, old, new, mode, read)).await,
                    None => ask::document(doors.agent.push(who, name, reference, old, new, mode)).await,
                };
                match &answer {
                    Err(refusal) if ask::away(refusal) => {
                        tokio::time::sleep(Duration::from_millis(500)).await;
                        continue;
                    }
                    // An older agent, while both are being replaced, reads for itself.
                    Err(refusal) if read.is_some() && ask::unknown(refusal) => {
                        read = None;
                        continue;
                    }
                    Err(refusal) => tracing::error!(%name, reference, %refusal, "the agent did not take a push"),
                    Ok(_) => {}
                }
                if let Some(mark) = mark
                    && tokio::task::spawn_blocking(move || mark.answered()).await.is_err()
                {
                    tracing::error!(%name, "stumbled over the journal");
                }
                return answer;
            }
        })
    }

    /// Packs the repository together when it has become many packs; one repository at a time, after the push.
    fn tidy(&self, path: PathBuf) {
        let (doors, name) = (Arc::clone(&self.doors), self.name.clone());
        tokio::spawn(async move {
            let Ok(_slot) = doors.tidy_slot.acquire().await else { return };
            // git would start, count the same, and end: most pushes need no program for that.
            if packs(&path) <= PACKS {
                return;
            }
            let limit = format!("gc.autoPackLimit={PACKS}");
            let mut command = git::git(&doors, &path, &["core.fsync=all", &limit]);
            command.arg("--git-dir").arg(&path).args(["gc", "--auto", "--quiet"]);
            if let Err(why) = git::run(command).await {
                tracing::warn!(%name, why, "could not pack a repository together");
            }
        });
    }
}

/// How many packs a repository has.
fn packs(path: &std::path::Path) -> usize {
    let Ok(listed) = std::fs::read_dir(path.join("objects/pack")) else { return 0 };
    listed.flatten().filter(|entry| entry.path().extension().is_some_and(|extension| extension == "pack")).count()
}

/// Why one change may not be made.
fn check_update(update: &Update, path: &std::path::Path) -> Option<String> {
    let name = match update.reference.parse::<RefName>() {
        Ok(name) => name,
        Err(error) => return Some(error.to_string()),
    };
    if update.deletes() && git::default_branch(path).as_ref() == Some(&name) && git::exists(path, &name) {
        return Some(format!("{} is the default branch, which is deployed: it cannot be deleted", name.short()));
    }
    None
}

/// Takes all that the client sends, and hands it to git as long as git wants it.
async fn pump<R: AsyncRead + Unpin>(mut input: R, mut stdin: Option<ChildStdin>, sent: Arc<AtomicU64>) {
    let mut buffer = vec![0; 64 << 10];
    let mut unwanted = 0;
    while let Ok(Ok(n @ 1..)) = timeout(IDLE, input.read(&mut buffer)).await {
        sent.fetch_add(n as u64, Ordering::Relaxed);
        if let Some(git) = &mut stdin
            && git.write_all(&buffer[..n]).await.is_err()
        {
            stdin = None;
        }
        if stdin.is_none() {
            unwanted += n as u64;
            if unwanted > UNWANTED {
                return;
            }
        }
    }
}

/// Answers a push into a repository that is another one now.
async fn gone<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(input: R, out: &mut Outlet<W>, room: usize) -> u8 {
    let words = format!("{GONE}\n");
    let answer = if room == 0 { pktline::error(GONE) } else { pktline::band(3, words.as_bytes(), room) };
    out.send(&answer).await;
    drop(timeout(IDLE, pump(input, None, Arc::default())).await);
    3
}

/// Says how many answers of the agent a push waits for. That there are none is written down, and whoever has the journal may be waiting for
/// the disk.
async fn expect(mark: Option<&Arc<Mark>>, answers: usize) {
    let Some(mark) = mark.cloned() else { return };
    if tokio::task::spawn_blocking(move || mark.expect(answers)).await.is_err() {
        tracing::error!("stumbled over a journal");
    }
}

/// Answers a push that never reached git.
async fn refuse<W: AsyncWrite + Unpin>(request: &Request, reasons: &[(String, String)], out: &mut Outlet<W>) {
    let room = request.side_band_room();
    let showable = reasons.iter().all(|(reference, _)| reference.bytes().all(|b| b.is_ascii_graphic()));
    if !showable || !(request.can("report-status") || request.can("report-status-v2")) {
        let why = reasons.iter().map(|(_, reason)| reason.as_str()).next().unwrap_or("this push cannot be taken");
        let answer = if room == 0 { pktline::error(why) } else { pktline::band(3, format!("{why}\n").as_bytes(), room) };
        return out.send(&answer).await;
    }
    let report = pktline::refusal(reasons);
    if room == 0 {
        return out.send(&report).await;
    }
    out.send(&pktline::band(1, &report, room)).await;
    out.send(pktline::FLUSH).await;
}
