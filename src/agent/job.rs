//! Jobs: what a deploy or a restart says while it goes on, kept so that anybody may follow it from its beginning.

use std::{
    collections::{BTreeMap, VecDeque},
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
};

use tokio::{io::AsyncWriteExt, net::unix::pipe, sync::watch};

use crate::{
    bus::{Level, Outcome, Progress, Stage},
    spec::name::{InstanceId, InstanceName, KeyId, Namespace},
};

/// How many lines one job keeps. A build that says more loses its oldest `detail` lines.
const MAX_LINES: usize = 2_000;
/// How many bytes of text one job keeps, and how long one text may be.
const MAX_BYTES: usize = 512 << 10;
const MAX_TEXT: usize = 4 << 10;
/// How many lines are handed to a follower at a time, who may not be reading.
const AT_ONCE: usize = 16;
/// How many ended jobs can still be followed.
const MAX_ENDED: usize = 200;

/// One job. Cloning shares it.
#[derive(Clone)]
pub struct Job {
    pub name: String,
    pub namespace: Namespace,
    /// The one instance that it is about, if it is about no other.
    pub instance: Option<InstanceName>,
    /// Who may follow it, whatever else they may see by then.
    pub by: Option<KeyId>,
    lines: Arc<Mutex<Lines>>,
    /// Bumped at every line.
    turn: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
struct Lines {
    kept: VecDeque<Progress>,
    /// Bytes of text in them.
    bytes: usize,
    /// How many lines were dropped from the front.
    dropped: usize,
    ended: bool,
    /// When each stage said something first and last.
    stages: Vec<(Stage, u64, u64)>,
    /// What it said of its plan.
    plan: Vec<String>,
}

/// What remains of a job.
pub struct Summary {
    /// The stages that it went through, and the milliseconds that each took.
    pub stages: Vec<(Stage, u64)>,
    /// What it said of its plan, a line each.
    pub plan: Vec<String>,
}

/// How many lines of a plan are kept for longer than the job.
const MAX_PLAN: usize = 100;

impl Job {
    /// A job that has said nothing yet.
    pub fn new(name: String, namespace: Namespace) -> Self {
        Self { name, namespace, instance: None, by: None, lines: Arc::default(), turn: Arc::new(watch::Sender::new(0)) }
    }

    /// Adds a line.
    pub fn say(&self, stage: Stage, level: Level, text: impl Into<String>) {
        self.push(Progress { at: now_ms(), stage, level, text: text.into(), outcome: None });
    }

    /// Adds the last line; whatever comes later is dropped.
    pub fn end(&self, stage: Stage, outcome: Outcome, text: impl Into<String>) {
        let level = if outcome == Outcome::Failed { Level::Error } else { Level::Info };
        self.push(Progress { at: now_ms(), stage, level, text: text.into(), outcome: Some(outcome) });
    }

    /// Whether it has ended.
    pub fn ended(&self) -> bool {
        self.lines.lock().expect("no panic while held").ended
    }

    fn push(&self, mut progress: Progress) {
        if progress.text.len() > MAX_TEXT {
            let end = (0..=MAX_TEXT).rev().find(|at| progress.text.is_char_boundary(*at)).unwrap_or(0);
            progress.text.truncate(end);
            progress.text.push('…');
        }
        let mut lines = self.lines.lock().expect("no panic while held");
        if lines.ended {
            return;
        }
        lines.ended = progress.outcome.is_some();
        match lines.stages.iter_mut().find(|(stage, _, _)| *stage == progress.stage) {
            Some((_, _, last)) => *last = progress.at,
            None => lines.stages.push((progress.stage, progress.at, progress.at)),
        }
        if progress.stage == Stage::Plan && progress.level == Level::Info && lines.plan.len() < MAX_PLAN {
            lines.plan.push(progress.text.clone());
        }
        lines.bytes += progress.text.len();
        lines.kept.push_back(progress);
        while lines.kept.len() > MAX_LINES || lines.bytes > MAX_BYTES {
            let Some(oldest) = lines.kept.pop_front() else { break };
            lines.bytes -= oldest.text.len();
            lines.dropped += 1;
        }
        drop(lines);
        self.turn.send_modify(|turn| *turn += 1);
    }

    /// Up to `most` lines from number `from` on, the number after the last of them, and whether there will be none after it.
    pub(super) fn lines_from(&self, from: usize, most: usize) -> (Vec<Progress>, usize, bool) {
        let lines = self.lines.lock().expect("no panic while held");
        let from = from.max(lines.dropped);
        let found: Vec<Progress> = lines.kept.iter().skip(from - lines.dropped).take(most).cloned().collect();
        let next = from + found.len();
        (found, next, lines.ended && next == lines.dropped + lines.kept.len())
    }

    /// A pipe that carries the job from its beginning, a JSON line each, and is closed after the last.
    pub fn follow(&self) -> std::io::Result<OwnedFd> {
        let (sender, reader) = pipe_pair()?;
        let job = self.clone();
        let whole = |line: &Progress| {
            let mut text = serde_json::to_vec(line).expect("plain data is JSON");
            text.push(b'\n');
            text
        };
        tokio::spawn(async move { job.tell(0, sender, whole).await });
        Ok(reader)
    }

    /// Writes all lines from number `from` on, as `words` puts them, until the job has ended or the reader leaves.
    pub async fn tell(&self, mut from: usize, mut sender: pipe::Sender, words: impl Fn(&Progress) -> Vec<u8>) {
        let mut turn = self.turn.subscribe();
        loop {
            turn.mark_unchanged();
            let (lines, next, ended) = self.lines_from(from, AT_ONCE);
            from = next;
            let more = lines.len() == AT_ONCE;
            for line in lines {
                if sender.write_all(&words(&line)).await.is_err() {
                    return;
                }
            }
            if ended {
                return;
            }
            let heard = async { if more { Ok(()) } else { turn.changed().await } };
            tokio::select! {
                // Cancel-safe: the turn is compared, not consumed.
                heard = heard => if heard.is_err() {
                    return;
                },
                () = closed(&sender) => return,
            }
        }
    }

    /// Waits until it has ended and returns how.
    pub async fn outcome(&self) -> Outcome {
        let mut turn = self.turn.subscribe();
        loop {
            turn.mark_unchanged();
            let (lines, _, _) = self.lines_from(0, usize::MAX);
            if let Some(outcome) = lines.last().and_then(|line| line.outcome) {
                return outcome;
            }
            if turn.changed().await.is_err() {
                return Outcome::Failed;
            }
        }
    }

    /// What remains of it: a stage lasts until the next one says something.
    pub fn summary(&self) -> Summary {
        let lines = self.lines.lock().expect("no panic while held");
        let ends = lines.stages.iter().skip(1).map(|(_, first, _)| *first).chain([now_ms()]);
        let stages =
            lines.stages.iter().zip(ends).map(|((stage, first, last), end)| (*stage, end.max(*last).saturating_sub(*first)));
        Summary { stages: stages.collect(), plan: lines.plan.clone() }
    }

    /// Everything said so far, for tests and for what remains of an ended job.
    pub fn transcript(&self) -> Vec<Progress> {
        self.lines_from(0, usize::MAX).0
    }
}

/// A pipe: the end that is written here, and the end that goes over the bus.
pub fn pipe_pair() -> std::io::Result<(pipe::Sender, OwnedFd)> {
    let (sender, receiver) = pipe::pipe()?;
    // The reader is another process with its own ideas about blocking.
    Ok((sender, receiver.into_blocking_fd()?))
}

/// Resolves when nobody can read from the pipe any more.
pub async fn closed(sender: &pipe::Sender) {
    // An error of the waiting itself says the same: nothing more can be written.
    drop(sender.ready(tokio::io::Interest::ERROR).await);
}

fn now_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The jobs that can be followed, and the names of new ones.
pub struct Jobs {
    /// Part of each name, so that names of an earlier life of the agent are not used again.
    epoch: u64,
    count: u64,
    jobs: BTreeMap<String, Job>,
    order: VecDeque<String>,
}

impl Jobs {
    /// No jobs. `epoch` differs between lives of the agent: seconds since 1970.
    pub fn new(epoch: u64) -> Self {
        Self { epoch, count: 0, jobs: BTreeMap::new(), order: VecDeque::new() }
    }

    /// A new job; the oldest ended ones are forgotten.
    pub fn create(&mut self, namespace: Namespace) -> Job {
        self.add(namespace, None, None)
    }

    /// A new job about one instance.
    pub fn about(&mut self, id: &InstanceId) -> Job {
        self.add(id.namespace.clone(), Some(id.name.clone()), None)
    }

    /// A new job that takes away what `by` has a say in.
    pub fn create_by(&mut self, namespace: Namespace, by: Option<KeyId>) -> Job {
        self.add(namespace, None, by)
    }

    fn add(&mut self, namespace: Namespace, instance: Option<InstanceName>, by: Option<KeyId>) -> Job {
        self.count += 1;
        let job = Job { instance, by, ..Job::new(format!("{:x}-{}", self.epoch, self.count), namespace) };
        self.jobs.insert(job.name.clone(), job.clone());
        self.order.push_back(job.name.clone());
        while self.order.len() > MAX_ENDED {
            let oldest = self.order.pop_front().unwrap_or_default();
            if self.jobs.get(&oldest).is_some_and(|job| !job.ended()) {
                self.order.push_back(oldest);
                break;
            }
            self.jobs.remove(&oldest);
        }
        job
    }

    /// The job of that name, if it is still known.
    pub fn get(&self, name: &str) -> Option<&Job> {
        self.jobs.get(name)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::spec::name::FlakeUri;

    #[tokio::test]
    async fn a_job_keeps_so_much_and_its_end() {
        let job = Job::new("x".into(), "silo:x".parse::<FlakeUri>().unwrap().namespace());
        for n in 0..3000 {
            job.say(Stage::Build, Level::Detail, format!("{n} {}", "é".repeat(1 << 20)));
        }
        job.end(Stage::Run, Outcome::Done, "the end");
        let kept = job.transcript();
        assert!(kept.iter().map(|line| line.text.len()).sum::<usize>() <= MAX_BYTES);
        assert!(kept[0].text.starts_with("2") && kept.last().unwrap().text == "the end");
        let fd = job.follow().unwrap();
        let text = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            std::fs::File::from(fd).read_to_string(&mut text).unwrap();
            text
        });
        assert_eq!(text.await.unwrap().lines().count(), kept.len());
    }

    #[tokio::test]
    async fn a_reader_that_leaves_is_noticed_although_nothing_is_said() {
        let (sender, reader) = pipe_pair().unwrap();
        let left = tokio::spawn(async move { closed(&sender).await });
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        assert!(!left.is_finished());
        drop(reader);
        tokio::time::timeout(std::time::Duration::from_secs(1), left).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_follower_gets_every_line_from_the_beginning_and_then_the_end() {
        let namespace = "silo:x".parse::<FlakeUri>().unwrap().namespace();
        let mut jobs = Jobs::new(7);
        let job = jobs.create(namespace);
        job.say(Stage::Eval, Level::Info, "one");
        let fd = job.follow().unwrap();
        job.say(Stage::Build, Level::Detail, "two");
        job.end(Stage::Run, Outcome::Done, "three");
        job.say(Stage::Run, Level::Info, "never");
        let text = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            std::fs::File::from(fd).read_to_string(&mut text).unwrap();
            text
        })
        .await
        .unwrap();
        let said: Vec<Progress> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(said.iter().map(|line| line.text.as_str()).collect::<Vec<_>>(), ["one", "two", "three"]);
        assert_eq!(said[2].outcome, Some(Outcome::Done));
        assert_eq!(job.outcome().await, Outcome::Done);
        assert_eq!(jobs.get(&job.name).map(|job| job.transcript().len()), Some(3));
    }
}
