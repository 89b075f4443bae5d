//! An instance's journal and console, in order, for people and for the report of a failed boot.

use std::{os::fd::OwnedFd, sync::Arc};

use tokio::{
    io::AsyncWriteExt,
    sync::{Semaphore, mpsc},
};

use super::{Shared, chain, job};
use crate::{
    build::Builder,
    bus::LogLine,
    host::{Host, JournalQuery},
    spec::name::InstanceId,
};

/// How many logs may be read at once.
static READERS: Semaphore = Semaphore::const_new(256);

/// A pipe with the last `lines` lines, a JSON [`LogLine`] each; with `follow` it goes on until the reader leaves.
pub fn pipe<H: Host, B: Builder>(shared: Arc<Shared<H, B>>, id: InstanceId, lines: u32, follow: bool) -> std::io::Result<OwnedFd> {
    // Each is two programs of the host's.
    let place =
        READERS.try_acquire().map_err(|_| std::io::Error::other("as many logs are being read as this host can: try again"))?;
    let (mut sender, reader) = job::pipe_pair()?;
    let (sink, mut found) = mpsc::channel::<LogLine>(256);
    let query = JournalQuery { lines, follow, this_boot: false };
    tokio::spawn(async move {
        if let Err(error) = shared.host.journal(&id, query, sink).await {
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

/// What a guest that did not get ready said last: as text, the lines that matter.
pub async fn last_words<H: Host>(host: &H, id: &InstanceId) -> Vec<String> {
    let lines = collect(host, id, 200).await;
    matter(&lines).iter().map(|line| format!("{}: {}", line.source, line.text)).collect()
}

/// The lines before a panic and the panic itself, without the registers and traces after it; else the end.
fn matter(lines: &[LogLine]) -> &[LogLine] {
    match lines.iter().position(|line| line.text.contains("Kernel panic")) {
        Some(panic) => &lines[panic.saturating_sub(20)..lines.len().min(panic + 2)],
        None => &lines[lines.len().saturating_sub(25)..],
    }
}

/// The units that the guest's systemd said had failed, in this boot.
pub async fn failed_units<H: Host>(host: &H, id: &InstanceId) -> Vec<String> {
    let mut units: Vec<String> = collect(host, id, 2_000).await.into_iter().filter_map(|line| failed_unit(&line)).collect();
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
    (unit.contains('.') && !unit.contains(' ')).then(|| unit.to_owned())
}

async fn collect<H: Host>(host: &H, id: &InstanceId, lines: u32) -> Vec<LogLine> {
    let (sink, mut found) = mpsc::channel(256);
    let query = JournalQuery { lines, follow: false, this_boot: true };
    let read = host.journal(id, query, sink);
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
        let line = |text: String| LogLine { at: 0, source: "console".into(), priority: 6, text };
        let mut lines: Vec<LogLine> = (0..50).map(|n| line(format!("before {n}"))).collect();
        lines.push(line("Kernel panic - not syncing: Attempted to kill init!".into()));
        lines.extend((0..50).map(|n| line(format!("trace {n}"))));
        let found = matter(&lines);
        assert_eq!((found.len(), found[19].text.as_str(), found[21].text.as_str()), (22, "before 49", "trace 0"));
        assert_eq!(matter(&lines[..50]).len(), 25);
    }

    #[test]
    fn a_failed_unit_is_known_by_what_pid_1_says() {
        let line = |source: &str, text: &str| LogLine { at: 0, source: source.into(), priority: 3, text: text.into() };
        let said = line("systemd", "web.service: Failed with result 'exit-code'.");
        assert_eq!(failed_unit(&said).as_deref(), Some("web.service"));
        assert_eq!(failed_unit(&line("evil", "web.service: Failed with result 'exit-code'.")), None);
        assert_eq!(failed_unit(&line("systemd", "Started web.service.")), None);
    }
}
