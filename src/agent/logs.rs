//! An instance's journal and console, in order, for people and for the report of a failed boot.

use std::{
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{
    io::AsyncWriteExt,
    sync::{Semaphore, mpsc},
};

use super::{
    Shared, chain,
    job::{self, Job},
};
use crate::{
    build::Builder,
    bus::{Level, LogLine, LogQuery, Progress, Refusal},
    host::{Host, JournalQuery},
    render::Layout,
    spec::name::{InstanceId, Namespace, SetId, Slot},
};

/// How many logs may be read at once.
static READERS: Semaphore = Semaphore::const_new(256);
/// Of how many failed units a report shows what they said.
const MAX_FAILED: usize = 3;

/// A query as it came over the bus, in bounds. A unit's name goes to journalctl, which takes patterns.
pub fn checked(text: &str) -> Result<LogQuery, Refusal> {
    let mut query: LogQuery =
        serde_json::from_str(text).map_err(|error| Refusal::Invalid(format!("this is no question about a log: {error}")))?;
    query.lines = query.lines.clamp(1, 100_000);
    let known = |c: char| c.is_ascii_alphanumeric() || ":-_.@\\*?".contains(c);
    if query.unit.len() > 200 || !query.unit.chars().all(known) {
        return Err(Refusal::Invalid(format!("{:?} is no name of a unit: write one like nginx or nginx.service", query.unit)));
    }
    Ok(query)
}

/// Where what the last deploy of a namespace said is kept, a JSON [`Progress`] a line.
pub fn kept(layout: &Layout, namespace: &Namespace) -> PathBuf {
    layout.state.join("deploys").join(format!("{namespace}.jsonl"))
}

/// Keeps what a deploy said, for after the agent has started again.
pub fn keep(path: &Path, job: &Job) -> std::io::Result<()> {
    let mut text = Vec::new();
    for line in job.transcript() {
        serde_json::to_writer(&mut text, &line)?;
        text.push(b'\n');
    }
    if let Some(folder) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let new = path.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(new, path)
}

/// A pipe with what the last deploy said: `job`, if it was in this life of the agent, else what was kept of it.
pub fn of_deploy(job: Option<Job>, path: PathBuf, query: LogQuery) -> Result<std::io::Result<OwnedFd>, Refusal> {
    let mut next = 0;
    let told = match &job {
        Some(job) => {
            let (told, after, _) = job.lines_from(0, usize::MAX);
            next = after;
            told
        }
        None => {
            let text = std::fs::read_to_string(path).map_err(|_| Refusal::NotFound("nothing of it was deployed yet".to_owned()))?;
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
        }
    };
    let skip = told.len().saturating_sub(query.lines as usize);
    let under_way = job.filter(|job| query.follow && !job.ended());
    Ok(job::pipe_pair().map(|(mut sender, reader)| {
        tokio::spawn(async move {
            for line in told.iter().skip(skip) {
                if sender.write_all(&log_line(line)).await.is_err() {
                    return;
                }
            }
            if let Some(job) = under_way {
                job.tell(next, sender, log_line).await;
            }
        });
        reader
    }))
}

fn log_line(line: &Progress) -> Vec<u8> {
    let priority = if line.level == Level::Error { 3 } else { 6 };
    let source = serde_json::to_value(line.stage).ok().and_then(|stage| stage.as_str().map(str::to_owned)).unwrap_or_default();
    let line = LogLine { at: line.at * 1000, source, priority, text: line.text.clone(), ..LogLine::default() };
    let mut text = serde_json::to_vec(&line).expect("plain data is JSON");
    text.push(b'\n');
    text
}

/// A pipe with the lines that are asked for, a JSON [`LogLine`] each; with `follow` it goes on until the reader leaves.
pub fn pipe<H: Host, B: Builder>(shared: Arc<Shared<H, B>>, id: InstanceId, query: LogQuery) -> std::io::Result<OwnedFd> {
    // Each is two programs of the host's.
    let place =
        READERS.try_acquire().map_err(|_| std::io::Error::other("as many logs are being read as this host can: try again"))?;
    let (mut sender, reader) = job::pipe_pair()?;
    let (sink, mut found) = mpsc::channel::<LogLine>(256);
    let LogQuery { lines, follow, since, unit, boot, build: _ } = query;
    let query = JournalQuery { lines, follow, this_boot: boot, since, unit };
    tokio::spawn(async move {
        // Whichever serves now, each has its part of what was said.
        let sets = [id.set(Slot::A), id.set(Slot::B)];
        if let Err(error) = shared.host.journal(&sets, query, sink).await {
            tracing::error!(instance = %id, error = %chain(&error), "could not read a journal");
        }
    });
    tokio::spawn(async move {
        let _place = place;
        loop {
            let line = tokio::select! {
                // Cancel-safe: recv loses nothing.
                line = found.recv() => line,
                () = job::closed(&sender) => return,
            };
            let Some(line) = line else { return };
            let mut text = serde_json::to_vec(&line).expect("plain data is JSON");
            text.push(b'\n');
            if sender.write_all(&text).await.is_err() {
                // The reader left; dropping `found` ends the journal's reader too.
                return;
            }
        }
    });
    Ok(reader)
}

/// What a guest that did not get ready said last, as text: each unit of it that failed with what that said, then the lines that matter.
pub async fn last_words<H: Host>(host: &H, id: &SetId) -> Vec<String> {
    let lines = collect(host, id, "", 2_000).await;
    let text = |line: &LogLine| format!("{}: {}", line.source, line.text);
    let mut words = Vec::new();
    for unit in failed_in(&lines).iter().take(MAX_FAILED) {
        words.push(format!("{unit} failed in the guest. What it said last:"));
        words.extend(collect(host, id, unit, 10).await.iter().map(|line| format!("  {}", text(line))));
    }
    if !words.is_empty() {
        words.push("What the guest said last:".to_owned());
    }
    words.extend(matter(&lines).iter().map(text));
    words
}

/// The lines before a panic and the panic itself, without the registers and traces after it; else the end.
fn matter(lines: &[LogLine]) -> &[LogLine] {
    match lines.iter().position(|line| line.text.contains("Kernel panic")) {
        Some(panic) => &lines[panic.saturating_sub(20)..lines.len().min(panic + 2)],
        None => &lines[lines.len().saturating_sub(25)..],
    }
}

/// The units that the guest's systemd said had failed, in this boot.
pub async fn failed_units<H: Host>(host: &H, id: &SetId) -> Vec<String> {
    failed_in(&collect(host, id, "", 2_000).await)
}

fn failed_in(lines: &[LogLine]) -> Vec<String> {
    let mut units: Vec<String> = lines.iter().filter_map(failed_unit).collect();
    units.sort();
    units.dedup();
    units
}

/// PID 1 says `<unit>: Failed with result '<result>'.`
fn failed_unit(line: &LogLine) -> Option<String> {
    if line.source != "systemd" {
        return None;
    }
    let (unit, _) = line.text.split_once(": Failed with result ")?;
    // A guest may write anything there, and it is handed to journalctl.
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.@:\\".contains(c);
    (unit.contains('.') && unit.len() <= 120 && unit.chars().all(is_name)).then(|| unit.to_owned())
}

/// The last lines of this boot, of one unit of the guest if that is not empty.
async fn collect<H: Host>(host: &H, id: &SetId, unit: &str, lines: u32) -> Vec<LogLine> {
    let (sink, mut found) = mpsc::channel(256);
    let query = JournalQuery { lines, this_boot: true, unit: unit.to_owned(), ..JournalQuery::default() };
    let read = host.journal(std::slice::from_ref(id), query, sink);
    let gather = async {
        let mut all = Vec::new();
        while let Some(line) = found.recv().await {
            all.push(line);
        }
        all
    };
    let (result, all) = tokio::join!(read, gather);
    if let Err(error) = result {
        tracing::warn!(instance = %id, error = %chain(&error), "could not read a journal");
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_panic_the_words_before_it_matter() {
        let line = |text: String| LogLine { source: "console".into(), priority: 6, text, ..LogLine::default() };
        let mut lines: Vec<LogLine> = (0..50).map(|n| line(format!("before {n}"))).collect();
        lines.push(line("Kernel panic - not syncing: Attempted to kill init!".into()));
        lines.extend((0..50).map(|n| line(format!("trace {n}"))));
        let found = matter(&lines);
        assert_eq!((found.len(), found[19].text.as_str(), found[21].text.as_str()), (22, "before 49", "trace 0"));
        assert_eq!(matter(&lines[..50]).len(), 25);
    }

    #[test]
    fn a_failed_unit_is_known_by_what_pid_1_says() {
        let line =
            |source: &str, text: &str| LogLine { source: source.into(), priority: 3, text: text.into(), ..LogLine::default() };
        let said = line("systemd", "web.service: Failed with result 'exit-code'.");
        assert_eq!(failed_unit(&said).as_deref(), Some("web.service"));
        assert_eq!(failed_unit(&line("evil", "web.service: Failed with result 'exit-code'.")), None);
        assert_eq!(failed_unit(&line("systemd", "Started web.service.")), None);
        assert_eq!(failed_unit(&line("systemd", "--directory=/etc x.service: Failed with result 'x'.")), None);
        let said = [said.clone(), line("systemd", "db.service: Failed with result 'signal'."), said];
        assert_eq!(failed_in(&said), ["db.service", "web.service"]);
    }
}
