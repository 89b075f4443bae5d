//! What Cloud Hypervisor reports of its machine, in JSON, to the named pipe that its `--event-monitor` names.
//!
//! It is listened to for one reason: Cloud Hypervisor cannot be told to exit when its guest reboots or panics. It would start the
//! guest again by itself, without the helpers that ended when it let go of them, and wait a minute for each.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
};

use nix::{fcntl::OFlag, sys::stat::Mode};
use serde::Deserialize;

/// The most that is kept of an event which is not complete. They are some hundred bytes.
const EVENT_MAX: usize = 16 << 10;

/// Where the events of the VMM arrive whose API is at `control`: `<control>.events`.
pub fn path(control: &Path) -> PathBuf {
    let mut path = control.as_os_str().to_owned();
    path.push(OsStr::new(".events"));
    path.into()
}

/// Something that ends a run of the guest, although the VMM would go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The guest asked for a reboot.
    Reboot,
    /// The guest's kernel panicked.
    Panic,
}

/// The reading end of the pipe.
#[derive(Debug)]
pub struct Events {
    pipe: File,
    unread: Vec<u8>,
}

impl Events {
    /// Makes the pipe. Nothing may be at `path`.
    pub fn listen(path: &Path) -> io::Result<Self> {
        nix::unistd::mkfifo(path, Mode::from_bits_truncate(0o600))?;
        // Open for writing too: the VMM does not wait for a reader, and an end of the stream does not come.
        let pipe = OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
        Ok(Self { pipe, unread: Vec::new() })
    }

    /// Reads what has arrived, without waiting. Says the first end of the run among it.
    pub fn hear(&mut self) -> Option<End> {
        let mut buffer = [0; 4096];
        // An error here means that there is no more for now: the pipe cannot break while this process holds both ends.
        let count = self.pipe.read(&mut buffer).unwrap_or(0);
        take(&mut self.unread, &buffer[..count])
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

#[derive(Deserialize)]
struct Event {
    source: String,
    event: String,
    properties: Option<Properties>,
}

#[derive(Deserialize)]
struct Properties {
    /// What the guest told its pvpanic device: `panic`, or `crash_loaded` when it goes on to write a dump of itself.
    event: Option<String>,
}

impl Event {
    fn end(&self) -> Option<End> {
        let told = || self.properties.as_ref()?.event.as_deref();
        match (self.source.as_str(), self.event.as_str()) {
            ("vm", "rebooting") => Some(End::Reboot),
            ("guest", "panic") if told() == Some("panic") => Some(End::Panic),
            _ => None,
        }
    }
}

/// Adds `more` to what is `unread` and takes the complete events out of it.
fn take(unread: &mut Vec<u8>, more: &[u8]) -> Option<End> {
    unread.extend_from_slice(more);
    let mut events = serde_json::Deserializer::from_slice(unread).into_iter::<Event>();
    let mut end = None;
    let taken = loop {
        match events.next() {
            Some(Ok(event)) => end = end.or(event.end()),
            Some(Err(error)) if error.is_eof() => break events.byte_offset(),
            // What is no event is thrown away.
            Some(Err(_)) => break unread.len(),
            None => break events.byte_offset(),
        }
    };
    unread.drain(..taken);
    if unread.len() > EVENT_MAX {
        unread.clear();
    }
    end
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn event(source: &str, event: &str) -> String {
        let timestamp = "\"timestamp\": {\n    \"secs\": 0,\n    \"nanos\": 57983\n  }";
        let properties = if source == "guest" { "{\n    \"event\": \"panic\"\n  }" } else { "null" };
        format!(
            "{{\n  {timestamp},\n  \"source\": \"{source}\",\n  \"event\": \"{event}\",\n  \"properties\": {properties}\n}}\n\n"
        )
    }

    #[test]
    fn a_reboot_is_heard_wherever_the_stream_is_cut() {
        let text = event("vm", "booted") + &event("vm", "rebooting") + &event("guest", "panic");
        for cut in 0..text.len() {
            let mut unread = Vec::new();
            let first = take(&mut unread, &text.as_bytes()[..cut]);
            let second = take(&mut unread, &text.as_bytes()[cut..]);
            assert_eq!(first.or(second), Some(End::Reboot), "{cut}");
            assert!(unread.trim_ascii().is_empty());
        }
    }

    #[test]
    fn nothing_else_ends_a_run() {
        let ends = |text: &str| take(&mut Vec::new(), text.as_bytes());
        assert_eq!(ends(&event("guest", "panic")), Some(End::Panic));
        let dumping = event("guest", "panic").replace("\"event\": \"panic\"\n  }", "\"event\": \"crash_loaded\"\n  }");
        for text in
            [dumping, event("vm", "booted"), event("vm", "rebooted"), event("rebooting", "vm"), "rebooting\n".into(), "{}".into()]
        {
            assert_eq!(ends(&text), None, "{text}");
        }
        // Neither nonsense nor an event without an end keeps the next from being heard, or fills the memory.
        let mut unread = Vec::new();
        assert_eq!(take(&mut unread, b"\xff\xfe nonsense"), None);
        assert_eq!(take(&mut unread, event("vm", "rebooting").as_bytes()), Some(End::Reboot));
        assert_eq!(take(&mut unread, &[b"{\"source\":\"".as_slice(), &[b'x'; EVENT_MAX]].concat()), None);
        assert!(unread.is_empty());
    }

    #[test]
    fn a_writer_does_not_wait_and_neither_does_the_reader() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = path(&dir.path().join("api"));
        assert_eq!(pipe, dir.path().join("api.events"));
        let mut events = Events::listen(&pipe).unwrap();
        assert_eq!(events.hear(), None);
        // As Cloud Hypervisor opens it.
        let mut vmm = OpenOptions::new().write(true).create(true).truncate(true).open(&pipe).unwrap();
        vmm.write_all(event("vm", "rebooting").as_bytes()).unwrap();
        assert_eq!(events.hear(), Some(End::Reboot));
        drop(vmm);
        assert_eq!(events.hear(), None);
    }
}
