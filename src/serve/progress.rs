//! The progress of a job, followed over the bus and told in lines: under `git push` and under `restart` and `plant` alike.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::net::unix::pipe;
use tokio_util::codec::{FramedRead, LinesCodec};

use super::ask::{self, Asked};
use crate::bus::{Level, Outcome, Progress, Refusal, SeedProxy, Stage};

/// A job that is being followed. Dropping it stops nothing but the following.
#[derive(Debug)]
pub struct Following {
    lines: FramedRead<pipe::Receiver, LinesCodec>,
}

/// Starts to follow a job, from its beginning.
pub async fn follow(agent: &SeedProxy<'_>, who: &str, job: &str) -> Asked<Following> {
    let pipe = ask::within(agent.follow(who, job)).await?;
    Ok(Following { lines: lines_of(pipe)? })
}

/// The lines that come out of a pipe of the agent's, at most 64 KiB each.
pub fn lines_of(pipe: zbus::OwnedFd) -> Asked<FramedRead<pipe::Receiver, LinesCodec>> {
    let pipe = pipe::Receiver::from_owned_fd(std::os::fd::OwnedFd::from(pipe))
        .map_err(|error| Refusal::Failed(format!("the agent gave something else than a pipe: {error}")))?;
    Ok(FramedRead::new(pipe, LinesCodec::new_with_max_length(64 << 10)))
}

impl Following {
    /// The next word; `None` when there is no more. Cancel-safe.
    pub async fn next(&mut self) -> Option<Progress> {
        loop {
            match self.lines.next().await? {
                Ok(line) => match serde_json::from_str(&line) {
                    Ok(progress) => return Some(progress),
                    Err(error) => tracing::warn!(%error, "the agent wrote a line of progress that is none"),
                },
                Err(error) => {
                    tracing::warn!(%error, "could not read the progress of a job");
                    return None;
                }
            }
        }
    }
}

/// Tells progress in lines: with the time since the start, and the stage where it changes.
#[derive(Debug, Default)]
pub struct Teller {
    start: Option<u64>,
    stage: Option<Stage>,
}

impl Teller {
    /// The lines, without line ends, for one word of progress.
    pub fn lines(&mut self, progress: &Progress) -> Vec<String> {
        let start = *self.start.get_or_insert(progress.at);
        let elapsed = Duration::from_millis(progress.at.saturating_sub(start));
        let mut lines = Vec::new();
        // A stage is named once, on its first line.
        let named = if self.stage.replace(progress.stage) == Some(progress.stage) { "" } else { name(progress.stage) };
        for (index, text) in progress.text.lines().map(plain).enumerate() {
            match (progress.level, index) {
                (Level::Info, 0) => lines.push(format!("{:>8}  {named:<5}  {text}", seconds(elapsed))),
                (Level::Info, _) => lines.push(format!("{:17}{text}", "")),
                (Level::Detail, _) => lines.push(format!("{:17}| {text}", "")),
                (Level::Error, 0) => lines.push(format!("error: {text}")),
                (Level::Error, _) => lines.push(format!("       {text}")),
            }
        }
        match progress.outcome {
            None => {}
            Some(Outcome::Done) => lines.push(format!("{:>8}  done", seconds(elapsed))),
            Some(Outcome::Failed) => lines.push(format!("{:>8}  failed at {}", seconds(elapsed), name(progress.stage))),
            Some(Outcome::Superseded) => lines.push(format!("{:>8}  a newer push took its place", seconds(elapsed))),
        }
        lines
    }
}

fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::Queue => "queue",
        Stage::Fetch => "fetch",
        Stage::Eval => "eval",
        Stage::Build => "build",
        Stage::Plan => "plan",
        Stage::Boot => "boot",
        Stage::Run => "run",
    }
}

/// `4.2 s`, `61 s`
fn seconds(elapsed: Duration) -> String {
    if elapsed.as_secs() < 60 { format!("{:.1} s", elapsed.as_secs_f64()) } else { format!("{} s", elapsed.as_secs()) }
}

/// Text that came from a tenant, harmless on a terminal: without control characters, and without those that reorder text.
pub fn plain(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\t' => shown.push_str("    "),
            // A colour or a cursor movement: passed over whole.
            '\x1b' if chars.peek() == Some(&'[') => {
                chars.next();
                while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
            }
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' => {}
            c if c.is_control() => {}
            c => shown.push(c),
        }
        if shown.len() > 4000 {
            shown.push('…');
            break;
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(at: u64, stage: Stage, level: Level, text: &str, outcome: Option<Outcome>) -> Progress {
        Progress { at, stage, level, text: text.into(), outcome }
    }

    #[test]
    fn a_stage_is_named_once_and_time_runs_from_the_start() {
        let mut teller = Teller::default();
        let words = [
            progress(1000, Stage::Eval, Level::Info, "evaluated: web", None),
            progress(1500, Stage::Build, Level::Info, "building web", None),
            progress(1600, Stage::Build, Level::Detail, "\x1b[31mcc\x1b[0m -o\tx\r", None),
            progress(3000, Stage::Build, Level::Error, "no rule\nsee above", Some(Outcome::Failed)),
        ];
        let told: Vec<String> = words.iter().flat_map(|word| teller.lines(word)).collect();
        assert_eq!(
            told,
            [
                "   0.0 s  eval   evaluated: web",
                "   0.5 s  build  building web",
                "                 | cc -o    x",
                "error: no rule",
                "       see above",
                "   2.0 s  failed at build",
            ]
        );
    }

    #[test]
    fn no_control_character_reaches_a_terminal() {
        for text in ["\x1b]0;title\x07", "a\u{9b}31m", "a\u{202e}b", "\x00\x08\x7f", "\x1b[", "\x1b[12", "a\nb\r"] {
            assert!(!plain(text).chars().any(|c| c.is_control() || c == '\u{202e}'), "{text:?}");
        }
    }
}
