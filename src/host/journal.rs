//! An instance's journal: what the guest's own journal sent over vsock, and what the host's journal has of its vm unit (the serial
//! console, and what systemd says of the unit), merged by time.

use std::{path::PathBuf, process::Stdio, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::mpsc,
    time::Instant,
};

use super::{HostError, JournalQuery};
use crate::bus::LogLine;

/// What is asked for of each entry. Without --all a field of more than 4096 bytes is left out: a guest may log what would not fit into
/// memory.
const FIELDS: &str = "--output-fields=MESSAGE,PRIORITY,SYSLOG_IDENTIFIER,_COMM,_TRANSPORT,_SYSTEMD_UNIT,_PID";

/// How long lines are held back while following, so that the two sources come out in order.
const WINDOW: Duration = Duration::from_millis(250);
/// How many entries of the audit log are looked for in the journal.
pub const CHECKPOINTS: u32 = 10_000;
/// The longest line that is shown, in characters.
const MAX_LINE: usize = 4_000;

/// Where what is said in one guest and of it is found.
pub struct Source {
    /// The folder of the guest's journal files.
    pub guest: PathBuf,
    /// The vm unit.
    pub unit: String,
    /// What is added to who said it; empty for nothing.
    pub called: String,
    /// Nothing from before this, in seconds since 1970.
    pub since: u64,
}

/// Reads both journals of all sources into `sink`. Returns at the end, or when nobody listens any more.
pub async fn read(sources: Vec<Source>, query: JournalQuery, sink: mpsc::Sender<LogLine>) -> Result<(), HostError> {
    let (lines, mut found) = mpsc::channel::<LogLine>(1024);
    let mut readers = Vec::new();
    for Source { guest, unit, called, since } in sources {
        let query = JournalQuery { since, ..query.clone() };
        // The console is not of one unit of the guest.
        if query.unit.is_empty() {
            let host = journalctl(&["--unit", &unit], &query);
            readers.push(start(host, true, called.clone(), lines.clone())?);
        }
        // The folder comes with the first line that the guest sends.
        if guest.is_dir() {
            let mut directory = std::ffi::OsString::from("--directory=");
            directory.push(guest);
            let mut command = journalctl(&[], &query);
            command.arg(directory);
            if query.follow {
                // Alone, --follow is for one boot of the guest, and says nothing of the next.
                command.arg("--merge");
            }
            if !query.unit.is_empty() {
                command.arg(format!("--unit={}", query.unit));
            }
            readers.push(start(command, false, called, lines.clone())?);
        }
    }
    drop(lines);
    if query.follow {
        follow(&mut found, &sink).await
    } else {
        all(&mut found, query.lines as usize, &sink).await
    }
    // Dropping the children ends them.
    drop(readers);
    Ok(())
}

fn journalctl(words: &[&str], query: &JournalQuery) -> Command {
    let mut command = Command::new("journalctl");
    command.args(["--quiet", "--no-pager", "--output=json", FIELDS]).args(words);
    command.arg(format!("--lines={}", query.lines));
    if query.follow {
        command.arg("--follow");
    }
    if query.since > 0 {
        command.arg(format!("--since=@{}", query.since));
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    command
}

fn start(mut command: Command, host: bool, called: String, lines: mpsc::Sender<LogLine>) -> Result<Child, HostError> {
    let failed = |error: std::io::Error| HostError::Command { command: "journalctl".to_owned(), output: error.to_string() };
    let mut child = command.spawn().map_err(failed)?;
    let output = child.stdout.take().ok_or_else(|| failed(std::io::Error::other("no output")))?;
    tokio::spawn(async move {
        let mut reader = BufReader::new(output).lines();
        // An unreadable line ends the reading; journalctl writes none.
        while let Ok(Some(text)) = reader.next_line().await {
            let Some(mut line) = parse(&text, host) else { continue };
            if !called.is_empty() {
                line.source = format!("{}@{called}", line.source);
            }
            if lines.send(line).await.is_err() {
                return;
            }
        }
    });
    Ok(child)
}

/// Everything, in order, the last `keep` of it.
async fn all(found: &mut mpsc::Receiver<LogLine>, keep: usize, sink: &mpsc::Sender<LogLine>) {
    let mut lines = Vec::new();
    while let Some(line) = found.recv().await {
        lines.push(line);
    }
    lines.sort_by_key(|line| line.at);
    for line in lines.split_off(lines.len().saturating_sub(keep)) {
        if sink.send(line).await.is_err() {
            return;
        }
    }
}

/// As it comes, each line held back for a moment.
async fn follow(found: &mut mpsc::Receiver<LogLine>, sink: &mpsc::Sender<LogLine>) {
    let mut held: Vec<LogLine> = Vec::new();
    let mut release = Instant::now();
    loop {
        tokio::select! {
            // Cancel-safe: recv loses nothing.
            line = found.recv() => {
                let Some(line) = line else { break };
                if held.is_empty() {
                    release = Instant::now() + WINDOW;
                }
                held.push(line);
            }
            () = tokio::time::sleep_until(release), if !held.is_empty() => {
                held.sort_by_key(|line| line.at);
                for line in held.drain(..) {
                    if sink.send(line).await.is_err() {
                        return;
                    }
                }
            }
            () = sink.closed() => return,
        }
    }
    held.sort_by_key(|line| line.at);
    for line in held {
        if sink.send(line).await.is_err() {
            return;
        }
    }
}

/// The newest lines that this host's agent has written into the system's journal about its audit log: the text of each.
pub async fn audited() -> Result<Vec<String>, HostError> {
    let mut command = Command::new("journalctl");
    command.args(["--quiet", "--no-pager", "--output=cat", "--unit=seed-agent.service", "--grep=^audit number=", "--reverse"]);
    command.arg(format!("--lines={CHECKPOINTS}")).stdin(Stdio::null()).kill_on_drop(true);
    let failed = |output: String| HostError::Command { command: "journalctl --grep".to_owned(), output };
    let output = command.output().await.map_err(|error| failed(error.to_string()))?;
    // It ends with 1 if no line fits, and says nothing then.
    if !output.status.success() && !output.stderr.is_empty() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

/// One line of `journalctl --output=json`. `host` says that it is of the host's journal.
fn parse(text: &str, host: bool) -> Option<LogLine> {
    let entry: Value = serde_json::from_str(text).ok()?;
    let field = |name: &str| entry.get(name).and_then(plain);
    let at = field("__REALTIME_TIMESTAMP")?.parse().ok()?;
    let said_by = field("SYSLOG_IDENTIFIER").or_else(|| field("_COMM")).unwrap_or_default();
    let source = match (host, field("_TRANSPORT").as_deref()) {
        (true, Some("stdout")) => "console".to_owned(),
        (true, _) => "host".to_owned(),
        (false, _) if said_by.is_empty() => field("_SYSTEMD_UNIT").unwrap_or_else(|| "guest".to_owned()),
        (false, _) => said_by,
    };
    let priority = field("PRIORITY").and_then(|text| text.parse().ok()).filter(|priority| *priority <= 7).unwrap_or(6);
    let text = match entry.get("MESSAGE") {
        Some(Value::Null) => "(a message of more than 4096 bytes: it is whole in the guest's own journal)".to_owned(),
        _ => field("MESSAGE")?,
    };
    // Of the console and of what the host says, both are the host's own.
    let (unit, pid) = match host {
        true => (None, None),
        false => (field("_SYSTEMD_UNIT"), field("_PID").and_then(|pid| pid.parse().ok())),
    };
    let unit = clean(&unit.unwrap_or_default(), 120);
    Some(LogLine { at, source: clean(&source, 60), priority, text: clean(&text, MAX_LINE), unit, pid })
}

/// A field is text, or a list of bytes where it is not UTF-8, or a list of either where it was given twice.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(items) => {
            let bytes: Option<Vec<u8>> = items.iter().map(|item| item.as_u64().and_then(|byte| u8::try_from(byte).ok())).collect();
            match bytes {
                Some(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
                None => items.iter().find_map(plain),
            }
        }
        _ => None,
    }
}

/// A guest may log anything: what could move a reader's cursor is taken out.
fn clean(text: &str, max: usize) -> String {
    text.chars().map(|c| if c == '\t' || c == '\n' { ' ' } else { c }).filter(|c| !c.is_control()).take(max).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_either_journal_is_read_and_cleaned() {
        let guest = r#"{"__REALTIME_TIMESTAMP":"17","MESSAGE":"a\u001b[31mb\tc","PRIORITY":"3","SYSLOG_IDENTIFIER":"nginx","_SYSTEMD_UNIT":"nginx.service","_PID":"41"}"#;
        let line = parse(guest, false).unwrap();
        assert_eq!((line.at, line.source.as_str(), line.priority, line.text.as_str()), (17, "nginx", 3, "a[31mb c"));
        assert_eq!((line.unit.as_str(), line.pid), ("nginx.service", Some(41)));
        let console = r#"{"__REALTIME_TIMESTAMP":"18","MESSAGE":[80,255,105],"_TRANSPORT":"stdout"}"#;
        let line = parse(console, true).unwrap();
        assert_eq!((line.source.as_str(), line.text.as_str()), ("console", "P\u{fffd}i"));
        let large = r#"{"__REALTIME_TIMESTAMP":"19","MESSAGE":null}"#;
        assert!(parse(large, false).unwrap().text.contains("more than 4096 bytes"));
        assert!(
            !journalctl(&[], &JournalQuery { lines: 1, ..JournalQuery::default() }).as_std().get_args().any(|word| word == "--all")
        );
        assert_eq!(parse(r#"{"MESSAGE":"no time"}"#, true), None);
        assert_eq!(parse("not json", true), None);
    }

    #[tokio::test]
    async fn the_last_lines_come_out_in_order() {
        let (lines, mut found) = mpsc::channel(16);
        let (sink, mut out) = mpsc::channel(16);
        for at in [5, 1, 4, 2, 3] {
            let line = LogLine { at, priority: 6, ..LogLine::default() };
            lines.send(line).await.unwrap();
        }
        drop(lines);
        all(&mut found, 3, &sink).await;
        drop(sink);
        let mut got = Vec::new();
        while let Some(line) = out.recv().await {
            got.push(line.at);
        }
        assert_eq!(got, [3, 4, 5]);
    }
}
