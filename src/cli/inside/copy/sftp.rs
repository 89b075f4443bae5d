//! A client of a guest's sftp server. Reads and writes are asked for ahead of their answers, so that the way there costs nothing.

use std::{collections::VecDeque, fs::File, io::Read, os::unix::fs::FileExt, path::Path};

use russh::{Channel, ChannelMsg, client::Msg};
use tokio_util::bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    bus::{Refusal, SeedProxy, guest::Act},
    serve::{
        guest::{self, Guest},
        progress::plain,
        sftp::{
            self,
            wire::{
                ATTRS, CLOSE, DATA, EOF, HANDLE, MKDIR, NAME, NO_SUCH_FILE, OK, OPEN, OPENDIR, Packets, READ, READDIR, STAT,
                STATUS, WRITE, packet, string, take,
            },
        },
    },
};

/// How much of a file is asked for at a time: what every server gives.
const PART: usize = 32 << 10;
/// Questions that wait for their answers. Those have to fit into what the guest may send unasked.
const AHEAD: usize = 32;
/// Names in one folder at most.
const MAX_NAMES: usize = 1 << 20;
/// For writing, to be made, to be emptied first.
const TO_WRITE: u32 = 0x02 | 0x08 | 0x10;
const TO_READ: u32 = 0x01;

/// What a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Folder,
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    pub kind: Kind,
    pub mode: u32,
}

/// A conversation with one server.
pub struct Sftp {
    instance: String,
    channel: Channel<Msg>,
    packets: Packets,
    last: u32,
    _guest: Guest,
}

/// Takes attributes off the front.
fn attributes(from: &mut &[u8]) -> Option<Attributes> {
    let number = |from: &mut &[u8]| from.try_get_u32().ok();
    let flags = number(from)?;
    if flags & 1 != 0 {
        from.try_get_u64().ok()?;
    }
    if flags & 2 != 0 {
        from.try_get_u64().ok()?;
    }
    // A server that does not say what it is has nothing that can be copied.
    let mode = if flags & 4 != 0 { number(from)? } else { 0 };
    if flags & 8 != 0 {
        from.try_get_u64().ok()?;
    }
    if flags & 0x8000_0000 != 0 {
        for _ in 0..number(from)? {
            take(from)?;
            take(from)?;
        }
    }
    let kind = match mode & 0o170_000 {
        0o100_000 => Kind::File,
        0o040_000 => Kind::Folder,
        _ => Kind::Other,
    };
    Some(Attributes { kind, mode: mode & 0o7777 })
}

/// Whether a name that a guest gives is that of something in a folder.
fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && name.len() <= 255 && !name.contains(&b'/') && !name.contains(&0)
}

impl Sftp {
    /// Gets into an instance and starts its server.
    pub async fn start(agent: &SeedProxy<'_>, instance: &str, what: &str) -> Result<Self, Refusal> {
        let guest = guest::enter(agent, "", instance, Act::Copy, what).await?;
        let (channel, packets) = sftp::open(&guest)
            .await
            .ok_or_else(|| Refusal::Failed(format!("{instance} has no sftp server: its sshd needs Subsystem sftp")))?;
        Ok(Self { instance: instance.to_owned(), channel, packets, last: 0, _guest: guest })
    }

    fn lost(&self) -> Refusal {
        Refusal::Failed(format!("the connection with {} ended (status says why)", self.instance))
    }

    fn nonsense(&self) -> Refusal {
        Refusal::Failed(format!("the sftp server of {} did not answer as it should", self.instance))
    }

    fn said(&self, path: &[u8], mut status: &[u8]) -> Refusal {
        let code = status.try_get_u32().unwrap_or(4);
        let words = take(&mut status).map(|text| plain(&String::from_utf8_lossy(text))).unwrap_or_default();
        let words = if words.is_empty() { format!("error {code}") } else { words };
        let text = format!("{}: {} in {}", plain(&String::from_utf8_lossy(path)), words, self.instance);
        if code == NO_SUCH_FILE { Refusal::NotFound(text) } else { Refusal::Failed(text) }
    }

    /// Sends a question; returns its number.
    async fn ask(&mut self, kind: u8, body: impl FnOnce(&mut BytesMut)) -> Result<u32, Refusal> {
        self.last = self.last.wrapping_add(1);
        let mut bytes = BytesMut::new();
        bytes.put_u32(self.last);
        body(&mut bytes);
        self.channel.data_bytes(packet(kind, &bytes)).await.map_err(|_| self.lost())?;
        Ok(self.last)
    }

    /// The answer to a question, the oldest of those that wait: its kind, and what is in it.
    async fn answer(&mut self, id: u32) -> Result<(u8, Bytes), Refusal> {
        loop {
            if let Some(mut found) = self.packets.next().map_err(|()| self.nonsense())? {
                if found.len() < 5 {
                    return Err(self.nonsense());
                }
                let (kind, of) = (found.get_u8(), found.get_u32());
                return if of == id { Ok((kind, found)) } else { Err(self.nonsense()) };
            }
            match self.channel.wait().await {
                Some(ChannelMsg::Data { data }) => self.packets.put(&data),
                Some(ChannelMsg::Close | ChannelMsg::Eof) | None => return Err(self.lost()),
                Some(_) => {}
            }
        }
    }

    /// Waits for a question to be done with.
    async fn done(&mut self, id: u32, path: &[u8]) -> Result<(), Refusal> {
        match self.answer(id).await? {
            (STATUS, status) if status.starts_with(&OK.to_be_bytes()) => Ok(()),
            (STATUS, status) => Err(self.said(path, &status)),
            _ => Err(self.nonsense()),
        }
    }

    /// What a path is; nothing if it is not there.
    pub async fn stat(&mut self, path: &[u8]) -> Result<Option<Attributes>, Refusal> {
        let id = self.ask(STAT, |body| string(body, path)).await?;
        match self.answer(id).await? {
            (ATTRS, found) => attributes(&mut &found[..]).map(Some).ok_or_else(|| self.nonsense()),
            (STATUS, status) if status.starts_with(&NO_SUCH_FILE.to_be_bytes()) => Ok(None),
            (STATUS, status) => Err(self.said(path, &status)),
            _ => Err(self.nonsense()),
        }
    }

    /// Makes a folder, unless it is there.
    pub async fn make_folder(&mut self, path: &[u8], mode: u32) -> Result<(), Refusal> {
        let id = self.ask(MKDIR, |body| {
            string(body, path);
            body.put_u32(4);
            body.put_u32(mode & 0o777 | 0o700);
        });
        let id = id.await?;
        let Err(refusal) = self.done(id, path).await else { return Ok(()) };
        match self.stat(path).await? {
            Some(Attributes { kind: Kind::Folder, .. }) => Ok(()),
            _ => Err(refusal),
        }
    }

    async fn handle(&mut self, kind: u8, path: &[u8], rest: &[u8]) -> Result<Bytes, Refusal> {
        let id = self.ask(kind, |body| {
            string(body, path);
            body.put_slice(rest);
        });
        let id = id.await?;
        match self.answer(id).await? {
            (HANDLE, found) => {
                let handle = take(&mut &found[..]).filter(|handle| handle.len() <= 256).map(Bytes::copy_from_slice);
                handle.ok_or_else(|| self.nonsense())
            }
            (STATUS, status) => Err(self.said(path, &status)),
            _ => Err(self.nonsense()),
        }
    }

    async fn close(&mut self, handle: &[u8], path: &[u8]) -> Result<(), Refusal> {
        let id = self.ask(CLOSE, |body| string(body, handle)).await?;
        self.done(id, path).await
    }

    /// What is in a folder, but for itself and the one above.
    pub async fn list(&mut self, path: &[u8]) -> Result<Vec<(Vec<u8>, Attributes)>, Refusal> {
        let handle = self.handle(OPENDIR, path, b"").await?;
        let mut found = Vec::new();
        loop {
            let id = self.ask(READDIR, |body| string(body, &handle)).await?;
            let names = match self.answer(id).await? {
                (NAME, names) => names,
                (STATUS, status) if status.starts_with(&EOF.to_be_bytes()) => break,
                (STATUS, status) => return Err(self.said(path, &status)),
                _ => return Err(self.nonsense()),
            };
            let mut rest = &names[..];
            for _ in 0..rest.try_get_u32().map_err(|_| self.nonsense())? {
                let (name, _long, what) = (take(&mut rest), take(&mut rest), attributes(&mut rest));
                let (Some(name), Some(what)) = (name, what) else { return Err(self.nonsense()) };
                match name {
                    b"." | b".." => {}
                    name if is_name(name) && found.len() < MAX_NAMES => found.push((name.to_vec(), what)),
                    _ => return Err(self.nonsense()),
                }
            }
        }
        self.close(&handle, path).await?;
        Ok(found)
    }

    /// Writes all of a file; returns how much that was.
    pub async fn write(&mut self, path: &[u8], mut from: File, mode: u32) -> Result<u64, Refusal> {
        let handle = self.handle(OPEN, path, &[TO_WRITE, 4, mode & 0o777].map(u32::to_be_bytes).concat()).await?;
        let (mut waiting, mut offset, mut part) = (VecDeque::new(), 0, vec![0; PART]);
        loop {
            let count = match from.read(&mut part) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                read => read.map_err(|error| Refusal::Failed(format!("could not read what goes to {}: {error}", self.instance)))?,
            };
            if count > 0 {
                let id = self.ask(WRITE, |body| {
                    string(body, &handle);
                    body.put_u64(offset);
                    string(body, &part[..count]);
                });
                waiting.push_back(id.await?);
                offset += count as u64;
            }
            while waiting.len() > if count > 0 { AHEAD } else { 0 } {
                let Some(id) = waiting.pop_front() else { break };
                self.done(id, path).await?;
            }
            if count == 0 {
                break;
            }
        }
        self.close(&handle, path).await?;
        Ok(offset)
    }

    /// Reads all of a file into another, which is called `here`; returns how much that was.
    pub async fn read(&mut self, path: &[u8], into: &File, here: &Path) -> Result<u64, Refusal> {
        let handle = self.handle(OPEN, path, &[TO_READ, 0].map(u32::to_be_bytes).concat()).await?;
        let (mut waiting, mut offset, mut end, mut size): (VecDeque<(u32, u64, usize)>, u64, bool, u64) = Default::default();
        loop {
            while !end && waiting.len() < AHEAD {
                let id = self.read_at(&handle, offset, PART).await?;
                waiting.push_back((id, offset, PART));
                offset += PART as u64;
            }
            let Some((id, at, wanted)) = waiting.pop_front() else { break };
            match self.answer(id).await? {
                (DATA, data) => {
                    let data =
                        take(&mut &data[..]).filter(|data| (1..=wanted).contains(&data.len())).ok_or_else(|| self.nonsense())?;
                    into.write_all_at(data, at).map_err(|error| super::failed(here, &error))?;
                    let next = at + data.len() as u64;
                    size = size.max(next);
                    // A server may give less than was asked for.
                    if data.len() < wanted {
                        let rest = wanted - data.len();
                        let id = self.read_at(&handle, next, rest).await?;
                        waiting.push_back((id, next, rest));
                    }
                }
                (STATUS, status) if status.starts_with(&EOF.to_be_bytes()) => end = true,
                (STATUS, status) => return Err(self.said(path, &status)),
                _ => return Err(self.nonsense()),
            }
        }
        self.close(&handle, path).await?;
        Ok(size)
    }

    async fn read_at(&mut self, handle: &[u8], offset: u64, count: usize) -> Result<u32, Refusal> {
        let ask = self.ask(READ, |body| {
            string(body, handle);
            body.put_u64(offset);
            body.put_u32(count as u32);
        });
        ask.await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_name_what_is_in_no_folder() {
        for name in [&b""[..], b".", b"..", b"a/b", b"/etc", b"../x", b"a\0b", &[b'x'; 256]] {
            assert!(!is_name(name), "{name:?}");
        }
        for name in [&b"a"[..], b"...", b".hidden", b"-rf", b"a\nb", "é".as_bytes()] {
            assert!(is_name(name), "{name:?}");
        }
    }

    #[test]
    fn attributes_say_what_something_is() {
        let read = |words: &[u32]| attributes(&mut &words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>()[..]);
        assert_eq!(read(&[4, 0o100_644]), Some(Attributes { kind: Kind::File, mode: 0o644 }));
        assert_eq!(read(&[0xf, 0, 7, 1, 2, 0o40_755, 3, 4]), Some(Attributes { kind: Kind::Folder, mode: 0o755 }));
        assert_eq!(read(&[4, 0o120_777]).map(|found| found.kind), Some(Kind::Other));
        assert_eq!(read(&[0]).map(|found| found.kind), Some(Kind::Other));
        assert_eq!(read(&[0x8000_0000, 1, 0, 0]).map(|found| found.kind), Some(Kind::Other));
        for cut in [&[][..], &[4], &[1, 0], &[0x8000_0000, 9, 0, 0], &[0x8000_0000, u32::MAX]] {
            assert_eq!(read(cut), None, "{cut:?}");
        }
    }
}
