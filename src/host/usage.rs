//! What guests use of the machine, and which of their units have failed: for `status`, so it has to be cheap for a thousand at once.
//!
//! Everything is read from files: the accounts of the kernel's control groups, the blocks of volumes, the stamp of the guest's journal.
//! Only a journal that has grown since it was read last is read again, by a program, a few at a time.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use serde_json::Value;
use tokio::process::Command;

use super::{HostError, files, volume::ext4};
use crate::{
    render::{Layout, credentials::NOTIFY_PORT, vm_unit},
    spec::name::{SetId, VolumeName},
};

/// Where control groups are.
const CGROUPS: &str = "/sys/fs/cgroup";
/// How many journals are read at the same time, and how long a question waits for all of them.
const AT_ONCE: usize = 8;
const PATIENCE: Duration = Duration::from_secs(2);
/// A rate is taken over at least this long, and over no more than that.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);
/// The most failed units that are told of one guest.
const MAX_FAILED: usize = 20;

/// systemd's messages: a unit has failed, was started, has ended well.
const FAILED: &str = "d9b373ed55a64feb8242e02dbe79a49c";
const STARTED: &str = "39f53479d3a045ac8e11786248231fbf";
const ENDED: &str = "7ad2d189f7e94e70a38c781354912448";

/// What one guest uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of memory of all processes of the vm unit, if the kernel accounts it.
    pub memory: Option<u64>,
    /// Thousandths of one CPU in use, since the last time it was asked or, the first time, since the guest was started.
    pub cpu_milli: Option<u32>,
    /// Bytes in use in each volume: of its file system, as the guest's `df` says it; or, if that cannot be read, those that the host has set
    /// aside for it so far.
    pub volumes: BTreeMap<VolumeName, u64>,
    /// Units of the guest that have failed and were not started again since.
    pub failed_units: Vec<String>,
}

/// A guest that is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    pub id: SetId,
    pub volumes: Vec<VolumeName>,
    /// When it entered its state, in seconds since 1970.
    pub since: u64,
    /// Whether it is up: only then its units are asked for.
    pub up: bool,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    micros: u64,
    milli: Option<u32>,
}

#[derive(Debug, Clone, Default)]
struct Heard {
    /// Of the journal and of the guest's start.
    stamp: (u64, u64, i64, i64, u64),
    failed: Vec<String>,
}

/// What was seen before.
#[derive(Debug, Default)]
pub struct Meter {
    samples: BTreeMap<SetId, Sample>,
    heard: BTreeMap<SetId, Heard>,
}

/// The control group of an instance's vm unit.
fn cgroup(id: &SetId) -> PathBuf {
    let namespace = id.namespace.as_str();
    let slice = format!("seed-{}.slice", namespace.strip_prefix("s-").unwrap_or(namespace));
    Path::new(CGROUPS).join("seed.slice").join(slice).join(vm_unit(id))
}

/// When the guest was started, in seconds since 1970. What it has used includes its boot, which was over when it entered its state. A
/// process of another user is not to be seen from here, and systemd costs a question; the socket for its notifications is made anew each time.
fn started(layout: &Layout, id: &SetId) -> Option<u64> {
    let socket = fs::symlink_metadata(layout.run_of(id).join(format!("vsock_{NOTIFY_PORT}"))).ok()?;
    u64::try_from(socket.mtime()).ok()
}

/// The value of a key in the text of `cpu.stat`.
fn stat(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
}

impl Meter {
    /// Looks at files only.
    fn look(&mut self, layout: &Layout, subject: &Subject, now: u64) -> Usage {
        let id = &subject.id;
        let group = cgroup(id);
        // A group that is gone has nothing: the guest has ended meanwhile.
        let memory = fs::read_to_string(group.join("memory.current")).ok().and_then(|text| text.trim().parse().ok());
        let micros = fs::read_to_string(group.join("cpu.stat")).ok().and_then(|text| stat(&text, "usage_usec "));
        let since = started(layout, id).unwrap_or(subject.since);
        let cpu_milli = micros.and_then(|micros| self.rate(id, micros, now.saturating_sub(since)));
        let blocks = |name: &VolumeName| {
            let path = layout.volume(id, name);
            let image = fs::symlink_metadata(&path).ok()?;
            Some((name.clone(), ext4::used(&path).unwrap_or((image.blocks() * 512).min(image.len()))))
        };
        let volumes = subject.volumes.iter().filter_map(blocks).collect();
        Usage { memory, cpu_milli, volumes, failed_units: Vec::new() }
    }

    /// Thousandths of a CPU, from time used.
    fn rate(&mut self, id: &SetId, micros: u64, age_secs: u64) -> Option<u32> {
        let at = Instant::now();
        let milli = |micros: u64, over: Duration| u32::try_from(u128::from(micros) * 1000 / over.as_micros().max(1)).ok();
        let before = self.samples.get(id).copied().filter(|before| before.micros <= micros && at - before.at < LONGEST);
        let rate = match before {
            Some(before) if at - before.at < SHORTEST => return before.milli,
            Some(before) => milli(micros - before.micros, at - before.at),
            None => milli(micros, Duration::from_secs(age_secs.max(1))),
        };
        self.samples.insert(id.clone(), Sample { at, micros, milli: rate });
        rate
    }

    /// What was heard of its units, and the stamp of what is to be read if that is old.
    fn heard(&self, journal: &Path, subject: &Subject) -> (Vec<String>, Option<(u64, u64, i64, i64, u64)>) {
        let Ok(meta) = fs::symlink_metadata(journal) else { return (Vec::new(), None) };
        let stamp = (meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec(), subject.since);
        match self.heard.get(&subject.id) {
            Some(heard) if heard.stamp == stamp => (heard.failed.clone(), None),
            // Of another run of the guest nothing holds any more.
            Some(heard) if heard.stamp.4 == stamp.4 => (heard.failed.clone(), Some(stamp)),
            _ => (Vec::new(), Some(stamp)),
        }
    }
}

/// What all of `subjects` use.
pub async fn read(meter: &Arc<Mutex<Meter>>, layout: &Layout, subjects: Vec<Subject>, now: u64) -> Result<Vec<Usage>, HostError> {
    let (shared, place) = (meter.clone(), layout.clone());
    let looked = tokio::task::spawn_blocking(move || {
        let mut meter = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::with_capacity(subjects.len());
        let mut old = Vec::new();
        for (at, subject) in subjects.iter().enumerate() {
            let mut usage = meter.look(&place, subject, now);
            if subject.up {
                let (failed, stamp) = meter.heard(&place.log_of(&subject.id).join("guest.journal"), subject);
                usage.failed_units = failed;
                old.extend(stamp.map(|stamp| (at, subject.clone(), stamp)));
            }
            found.push(usage);
        }
        (found, old)
    });
    let (mut found, old) = looked.await.map_err(HostError::Died)?;
    let readings = old.into_iter().map(|(at, subject, stamp)| {
        let folder = layout.log_of(&subject.id);
        async move { (at, subject.id, stamp, failed_units(&folder, subject.since).await) }
    });
    let mut readings = futures_util::stream::iter(readings).buffer_unordered(AT_ONCE);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    // Those that take longer are told as they were, and read again at the next question.
    while let Ok(Some((at, id, stamp, failed))) = tokio::time::timeout_at(deadline, readings.next()).await {
        let Some(failed) = failed else { continue };
        found[at].failed_units.clone_from(&failed);
        meter.lock().unwrap_or_else(PoisonError::into_inner).heard.insert(id, Heard { stamp, failed });
    }
    Ok(found)
}

/// What a guest's PID 1 said of its units since a time; `None` if its journal cannot be read now.
async fn failed_units(folder: &Path, since: u64) -> Option<Vec<String>> {
    let mut directory = std::ffi::OsString::from("--directory=");
    directory.push(folder);
    let mut command = Command::new("journalctl");
    command.args(["--quiet", "--no-pager", "--output=json", "--output-fields=UNIT,MESSAGE_ID"]).arg(directory);
    // It took a while from the start of the machine to the state that it is in, and the guest's clock is its own.
    command.arg(format!("--since=@{}", since.saturating_sub(600)));
    for (at, message) in [FAILED, STARTED, ENDED].iter().enumerate() {
        command.args(if at == 0 { &[][..] } else { &["+"][..] }).args(["_PID=1", &format!("MESSAGE_ID={message}")]);
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).output().await.ok()?;
    Some(still_failed(&String::from_utf8_lossy(&output.stdout)))
}

/// The units whose last word was that they had failed, in the last boot that there is a word of.
fn still_failed(text: &str) -> Vec<String> {
    let mut boot = String::new();
    let mut failed: BTreeMap<String, bool> = BTreeMap::new();
    for line in text.lines() {
        let Ok(entry) = serde_json::from_str::<Value>(line) else { continue };
        let field = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
        let unit = field("UNIT");
        if field("_BOOT_ID") != boot {
            boot = field("_BOOT_ID").to_owned();
            failed.clear();
        }
        // A guest may write anything there.
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.@:\\".contains(c);
        if unit.is_empty() || unit.len() > 120 || !unit.chars().all(is_name) {
            continue;
        }
        failed.insert(unit.to_owned(), field("MESSAGE_ID") == FAILED);
    }
    failed.into_iter().filter(|(_, failed)| *failed).map(|(unit, _)| unit).take(MAX_FAILED).collect()
}

impl super::Machine {
    /// See [`super::Host::usage`].
    pub(super) async fn measure(&self, subjects: Vec<Subject>) -> Result<Vec<Usage>, HostError> {
        read(&self.meter, &self.layout, subjects, files::now()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_has_failed_until_it_is_started_or_the_guest_boots_again() {
        let line = |boot: &str, unit: &str, message: &str| {
            format!("{{\"_BOOT_ID\":\"{boot}\",\"UNIT\":\"{unit}\",\"MESSAGE_ID\":\"{message}\",\"__CURSOR\":\"x\"}}\n")
        };
        let text = [
            line("a", "old.service", FAILED),
            line("b", "web.service", FAILED),
            line("b", "db.service", FAILED),
            line("b", "web.service", STARTED),
            line("b", "evil\\u001b[2J.service", FAILED),
            line("b", "once.service", STARTED),
            line("b", "fixed.service", FAILED),
            line("b", "fixed.service", ENDED),
            "nonsense\n".to_owned(),
        ]
        .concat();
        assert_eq!(still_failed(&text), ["db.service"]);
        assert!(still_failed("").is_empty());
    }

    #[test]
    fn the_rate_is_of_the_time_between_two_questions() {
        let mut meter = Meter::default();
        let id: SetId = "s-gaydazldmnsg/web".parse().unwrap();
        // 30 s of CPU in 60 s of life.
        assert_eq!(meter.rate(&id, 30_000_000, 60), Some(500));
        // Asked again at once, it says the same.
        assert_eq!(meter.rate(&id, 30_000_100, 60), Some(500));
        meter.samples.get_mut(&id).unwrap().at -= Duration::from_secs(10);
        let rate = meter.rate(&id, 50_000_000, 70).unwrap();
        assert!((1900..=2000).contains(&rate), "{rate}");
        // A smaller number is of another run.
        meter.samples.get_mut(&id).unwrap().at -= Duration::from_secs(10);
        assert_eq!(meter.rate(&id, 1_000_000, 2), Some(500));
        assert_eq!(stat("usage_usec 17\nuser_usec 3\n", "usage_usec "), Some(17));
        assert!(cgroup(&id).ends_with("seed.slice/seed-gaydazldmnsg.slice/seed-vm@s-gaydazldmnsg-web.service"));
    }

    #[test]
    fn a_guest_has_used_its_cpu_since_it_was_started() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout { run: dir.path().to_owned(), ..crate::render::samples::layout() };
        let id: SetId = "s-gaydazldmnsg/web".parse().unwrap();
        assert_eq!(started(&layout, &id), None);
        let socket = layout.run_of(&id).join("vsock_9001");
        fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let made = fs::File::create(&socket).unwrap();
        made.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1000)).unwrap();
        assert_eq!(started(&layout, &id), Some(1000));
    }

    #[test]
    fn a_volume_without_a_file_system_takes_what_was_written_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout { state: dir.path().to_owned(), ..crate::render::samples::layout() };
        let id: SetId = "s-gaydazldmnsg/web".parse().unwrap();
        let name: VolumeName = "data".parse().unwrap();
        let image = layout.volume(&id, &name);
        fs::create_dir_all(image.parent().unwrap()).unwrap();
        fs::write(&image, vec![7; 1 << 20]).unwrap();
        fs::File::options().write(true).open(&image).unwrap().set_len(64 << 20).unwrap();
        let missing: VolumeName = "wal".parse().unwrap();
        let subject = Subject { id, volumes: vec![name.clone(), missing], since: 0, up: false };
        let usage = Meter::default().look(&layout, &subject, 1);
        assert_eq!(usage.volumes.keys().collect::<Vec<_>>(), [&name]);
        assert!((1 << 20..2 << 20).contains(&usage.volumes[&name]), "{usage:?}");
    }
}
