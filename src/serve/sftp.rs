//! SFTP for `scp`, `sftp` and what else copies files: `scp page.html HOST:web:/srv/www/`. The first path that names an instance decides
//! with whose sftp server the client speaks from then on; paths lose the instance's name on their way there, and get it back.
//!
//! Of the protocol (version 3, what everybody speaks) only the heads of packets and the paths in them are read. No extension is
//! announced, so that no path hides in one.

pub mod wire;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, client, server};
use tokio::sync::{Mutex, mpsc};
use tokio_util::bytes::{BufMut, Bytes, BytesMut};

use self::wire::{
    ATTRS, EXTENDED, FAILURE, INIT, LSTAT, MKDIR, NAME, NO_SUCH_FILE, OPEN, OPENDIR, PERMISSION_DENIED, Packets, READLINK,
    REALPATH, REMOVE, RENAME, RMDIR, SETSTAT, STAT, STATUS, SYMLINK, UNSUPPORTED, VERSION, packet, string, take,
};
use super::{
    Doors, ask,
    command::place,
    guest::{self, Guest},
    relay::{Client, Ended},
    ssh::flow::Intake,
};
use crate::{
    bus::{Refusal, guest::Act},
    spec::caller::Caller,
};

/// How long a guest's sftp server may take to start.
const PATIENCE: Duration = Duration::from_secs(30);

fn status(id: u32, code: u32, text: &str) -> Bytes {
    let mut body = BytesMut::new();
    body.put_u32(id);
    body.put_u32(code);
    string(&mut body, text.as_bytes());
    string(&mut body, b"");
    packet(STATUS, &body)
}

/// One name, without attributes: the answer to REALPATH.
fn name(id: u32, path: &[u8]) -> Bytes {
    let mut body = BytesMut::new();
    body.put_u32(id);
    body.put_u32(1);
    string(&mut body, path);
    string(&mut body, path);
    body.put_u32(0);
    packet(NAME, &body)
}

/// What a packet of a client's means.
#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    /// For the sftp server as it is.
    Pass(Bytes),
    /// For that of this instance, in these words.
    In {
        instance: String,
        id: u32,
        resolves: bool,
        packet: Bytes,
    },
    /// About the place that has all instances in it.
    Root {
        id: u32,
        kind: u8,
    },
    /// A path that names no instance.
    Nowhere {
        id: u32,
    },
    Unsupported {
        id: u32,
    },
    /// No packet of the protocol.
    Nonsense,
}

/// Reads a packet of a client's.
fn meaning(packet_: &Bytes) -> Meaning {
    let Some((&kind, rest)) = packet_.split_first() else { return Meaning::Nonsense };
    let Some((id, mut rest)) = rest.split_first_chunk::<4>() else { return Meaning::Nonsense };
    let id = u32::from_be_bytes(*id);
    // How many strings at the front are paths. Of a symlink the first is only a text.
    let (texts, paths) = match kind {
        OPEN | LSTAT | SETSTAT | OPENDIR | REMOVE | MKDIR | RMDIR | REALPATH | STAT | READLINK => (0, 1),
        RENAME => (0, 2),
        SYMLINK => (1, 1),
        EXTENDED => return Meaning::Unsupported { id },
        INIT | VERSION => return Meaning::Nonsense,
        _ => return Meaning::Pass(with_length(packet_)),
    };
    let mut body = BytesMut::new();
    body.put_u32(id);
    let mut chosen: Option<&str> = None;
    for index in 0..texts + paths {
        let Some(text) = take(&mut rest) else { return Meaning::Nonsense };
        if index < texts {
            string(&mut body, text);
            continue;
        }
        if matches!(text, b"" | b"." | b"/" | b"/.") {
            return Meaning::Root { id, kind };
        }
        match (place(text), chosen) {
            (Some((instance, path)), None) => {
                chosen = Some(instance);
                string(&mut body, path);
            }
            (Some((instance, path)), Some(before)) if instance == before => string(&mut body, path),
            _ => return Meaning::Nowhere { id },
        }
    }
    body.put_slice(rest);
    match chosen {
        Some(instance) => {
            Meaning::In { instance: instance.to_owned(), id, resolves: kind == REALPATH, packet: packet(kind, &body) }
        }
        None => Meaning::Nonsense,
    }
}

fn with_length(packet_: &Bytes) -> Bytes {
    packet(packet_[0], &packet_[1..])
}

/// A NAME of a guest's, as the client knows the place. `None` if it is none.
fn named_for_client(packet_: &[u8], instance: &str) -> Option<Bytes> {
    let (&kind, rest) = packet_.split_first()?;
    let (id, mut rest) = rest.split_first_chunk::<4>()?;
    let (count, _) = rest.split_first_chunk::<4>()?;
    if kind != NAME || u32::from_be_bytes(*count) != 1 {
        return None;
    }
    rest = &rest[4..];
    let path = take(&mut rest)?;
    Some(name(u32::from_be_bytes(*id), &[b"/", instance.as_bytes(), b":", path].concat()))
}

/// The client's end of the channel. Both we and the guest write whole packets to it.
struct Out<'a>(Mutex<&'a ChannelWriteHalf<server::Msg>>);

impl Out<'_> {
    /// False if the client has left.
    async fn put(&self, bytes: Bytes) -> bool {
        self.0.lock().await.data_bytes(bytes).await.is_ok()
    }
    async fn say(&self, text: &str) {
        // ssh shows it; who has left does not care.
        drop(self.0.lock().await.extended_data_bytes(1, format!("seed: {text}\n")).await);
    }
}

/// The guest whose sftp server is spoken with, as the client's side of us sees it.
struct Chosen {
    instance: String,
    to_guest: ChannelWriteHalf<client::Msg>,
    /// Requests whose answer is a path.
    resolving: Arc<Mutex<BTreeSet<u32>>>,
}

/// The same, as the guest's side of us sees it.
struct Answers {
    instance: String,
    from_guest: ChannelReadHalf,
    packets: Packets,
    resolving: Arc<Mutex<BTreeSet<u32>>>,
    /// Stays open as long as this.
    _guest: Guest,
}

/// Serves one client to its end.
pub async fn serve(doors: &Doors, who: &Caller, client: Client<'_>) -> Ended {
    let Client { mut input, write, .. } = client;
    let out = Out(Mutex::new(write));
    let mut packets = Packets::default();
    match next(&mut input, &mut packets).await {
        Some(first) if first[0] == INIT && out.put(packet(VERSION, &3u32.to_be_bytes())).await => {}
        _ => return Ended::Code(1),
    }
    let (tell, mut told) = mpsc::channel(1);
    let asks = async {
        let mut asking = Asking { doors, who, out: &out, tell, chosen: None, hinted: false };
        while let Some(packet) = next(&mut input, &mut packets).await {
            if let Err(ended) = asking.ask(&packet).await {
                return ended;
            }
        }
        Ended::Code(0)
    };
    let answers = async {
        let Some(answers): Option<Answers> = told.recv().await else { return std::future::pending().await };
        let instance = answers.instance.clone();
        pass_answers(answers, &out).await;
        out.say(&format!("the connection with {instance} ended")).await;
        Ended::Code(1)
    };
    tokio::select! {
        ended = asks => ended,
        ended = answers => ended,
    }
}

/// The client's side.
struct Asking<'a> {
    doors: &'a Doors,
    who: &'a Caller,
    out: &'a Out<'a>,
    tell: mpsc::Sender<Answers>,
    chosen: Option<Chosen>,
    hinted: bool,
}

impl Asking<'_> {
    /// Deals with one packet of the client's. `Err` if there is no more to be done.
    async fn ask(&mut self, packet: &Bytes) -> Result<(), Ended> {
        let answer = match meaning(packet) {
            // A handle of a server that there is not yet is a mistake of the client's.
            Meaning::Nonsense => return Err(Ended::Code(1)),
            Meaning::Pass(packet) => match &self.chosen {
                Some(chosen) => return chosen.to_guest.data_bytes(packet).await.map_err(|_| Ended::Lost),
                None => return Err(Ended::Code(1)),
            },
            Meaning::In { instance, id, resolves, packet } => match self.choose(&instance).await {
                Ok(chosen) => {
                    if resolves {
                        chosen.resolving.lock().await.insert(id);
                    }
                    return chosen.to_guest.data_bytes(packet).await.map_err(|_| Ended::Lost);
                }
                Err(refusal) => {
                    let text = ask::words(&refusal);
                    self.out.say(&text).await;
                    let code = match refusal {
                        Refusal::NotFound(_) => NO_SUCH_FILE,
                        Refusal::Denied(_) => PERMISSION_DENIED,
                        _ => FAILURE,
                    };
                    status(id, code, &text)
                }
            },
            Meaning::Unsupported { id } => status(id, UNSUPPORTED, "no extension is known here"),
            Meaning::Root { id, kind: REALPATH } => name(id, b"/"),
            // Its permissions say that it is a folder.
            Meaning::Root { id, kind: STAT | LSTAT } => wire::packet(ATTRS, &[id, 4, 0o40555].map(u32::to_be_bytes).concat()),
            Meaning::Root { id, .. } | Meaning::Nowhere { id } => {
                if !self.hinted {
                    let hint = "a path here is INSTANCE:/PATH, as in web:/etc/hosts (ssh HOST status lists your instances)";
                    self.out.say(hint).await;
                    self.hinted = true;
                }
                status(id, NO_SUCH_FILE, "a path here is INSTANCE:/PATH")
            }
        };
        if self.out.put(answer).await { Ok(()) } else { Err(Ended::Lost) }
    }

    /// The guest that is spoken with, which is this instance's from now on if there was none.
    async fn choose(&mut self, instance: &str) -> Result<&Chosen, Refusal> {
        if self.chosen.is_none() {
            let guest = guest::enter(&self.doors.agent, self.who.as_str(), instance, Act::Copy, "files, by SFTP").await?;
            let opened = tokio::time::timeout(PATIENCE, open(&guest)).await.ok().flatten();
            let (channel, packets) = opened.ok_or_else(|| {
                Refusal::Failed(format!("{instance} has no sftp server: its sshd needs Subsystem sftp (scp -O may do without)"))
            })?;
            let (from_guest, to_guest) = channel.split();
            let resolving = Arc::<Mutex<BTreeSet<u32>>>::default();
            let answers =
                Answers { instance: instance.to_owned(), from_guest, packets, resolving: Arc::clone(&resolving), _guest: guest };
            // Whoever waits for it ends only with us.
            drop(self.tell.send(answers).await);
            self.chosen = Some(Chosen { instance: instance.to_owned(), to_guest, resolving });
        }
        match &self.chosen {
            Some(chosen) if chosen.instance == instance => Ok(chosen),
            Some(chosen) => Err(Refusal::Failed(format!("this copy is with {}: start another for {instance}", chosen.instance))),
            None => Err(Refusal::Failed(format!("{instance} is gone"))),
        }
    }
}

/// Starts an sftp server in a guest and greets it. `None` if there is none.
pub async fn open(guest: &Guest) -> Option<(Channel<client::Msg>, Packets)> {
    let mut channel = guest.session().await.ok()?;
    channel.request_subsystem(true, "sftp").await.ok()?;
    let mut packets = Packets::default();
    loop {
        match channel.wait().await? {
            // Before, sshd takes nothing.
            ChannelMsg::Success => channel.data_bytes(packet(INIT, &3u32.to_be_bytes())).await.ok()?,
            ChannelMsg::Data { data } => packets.put(&data),
            ChannelMsg::Failure | ChannelMsg::Close | ChannelMsg::Eof => return None,
            _ => {}
        }
        if let Some(greeting) = packets.next().ok()? {
            return (greeting[0] == VERSION).then_some((channel, packets));
        }
    }
}

/// Passes on what the guest's sftp server says, until it or the client is gone.
async fn pass_answers(mut answers: Answers, out: &Out<'_>) {
    loop {
        while let Ok(Some(packet)) = answers.packets.next() {
            let id = packet.get(1..5).and_then(|id| id.try_into().ok()).map(u32::from_be_bytes);
            let resolved = match id {
                Some(id) => answers.resolving.lock().await.remove(&id),
                None => false,
            };
            let named = if resolved { named_for_client(&packet, &answers.instance) } else { None };
            if !out.put(named.unwrap_or_else(|| with_length(&packet))).await {
                return;
            }
        }
        match answers.from_guest.wait().await {
            Some(ChannelMsg::Data { data }) => answers.packets.put(&data),
            Some(ChannelMsg::Close) | None => return,
            Some(_) => {}
        }
    }
}

/// The client's next packet; `None` at the end, or if what comes is none.
async fn next(input: &mut Intake, packets: &mut Packets) -> Option<Bytes> {
    loop {
        if let Some(packet) = packets.next().ok()? {
            return Some(packet);
        }
        packets.put(&input.next().await?);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A request with these strings after its id, and `rest` after them.
    fn request(kind: u8, id: u32, texts: &[&[u8]], rest: &[u8]) -> Bytes {
        let mut body = BytesMut::new();
        body.put_u8(kind);
        body.put_u32(id);
        texts.iter().for_each(|text| string(&mut body, text));
        body.put_slice(rest);
        body.freeze()
    }

    #[test]
    fn the_instance_is_taken_off_every_path_and_nothing_else() {
        let into = |kind, texts: &[&[u8]], rest: &[u8]| Meaning::In {
            instance: "web".into(),
            id: 7,
            resolves: kind == REALPATH,
            packet: with_length(&request(kind, 7, texts, rest)),
        };
        for kind in [OPEN, LSTAT, SETSTAT, OPENDIR, REMOVE, MKDIR, RMDIR, REALPATH, STAT, READLINK] {
            assert_eq!(meaning(&request(kind, 7, &[b"web:/etc:x"], b"flags")), into(kind, &[b"/etc:x"], b"flags"), "{kind}");
            assert_eq!(meaning(&request(kind, 7, &[b"/etc/shadow"], b"")), Meaning::Nowhere { id: 7 }, "{kind}");
            assert_eq!(meaning(&request(kind, 7, &[b"/"], b"")), Meaning::Root { id: 7, kind }, "{kind}");
            assert_eq!(meaning(&request(kind, 7, &[], b"\0\0\0\xffx")), Meaning::Nonsense, "{kind}");
        }
        assert_eq!(meaning(&request(RENAME, 7, &[b"web:/a", b"/web:/b"], b"")), into(RENAME, &[b"/a", b"/b"], b""));
        assert_eq!(meaning(&request(RENAME, 7, &[b"web:/a", b"api:/b"], b"")), Meaning::Nowhere { id: 7 });
        assert_eq!(meaning(&request(SYMLINK, 7, &[b"../a", b"web:/b"], b"")), into(SYMLINK, &[b"../a", b"/b"], b""));
        assert_eq!(meaning(&request(EXTENDED, 7, &[b"posix-rename@openssh.com"], b"")), Meaning::Unsupported { id: 7 });
        let write = request(6, 7, &[b"handle"], b"web:/x");
        assert_eq!(meaning(&write), Meaning::Pass(with_length(&write)));
    }

    #[test]
    fn a_resolved_path_gets_its_instance_back() {
        let guest = &name(9, b"/root")[4..];
        assert_eq!(named_for_client(guest, "app/web"), Some(name(9, b"/app/web:/root")));
        assert_eq!(named_for_client(&status(9, 2, "no")[4..], "web"), None);
        assert_eq!(named_for_client(&guest[..12], "web"), None);
    }

    #[test]
    fn packets_come_out_whole_however_they_come_in() {
        let stream = [status(1, 2, "no"), name(2, b"/x")].concat();
        for size in [1, 3, 7, stream.len()] {
            let (mut packets, mut found) = (Packets::default(), Vec::new());
            for part in stream.chunks(size) {
                packets.put(part);
                while let Ok(Some(packet)) = packets.next() {
                    found.extend_from_slice(&with_length(&packet));
                }
            }
            assert_eq!(found, stream, "{size}");
        }
        for head in [[0; 4], [0xff; 4]] {
            let mut packets = Packets::default();
            packets.put(&head);
            assert!(packets.next().is_err());
        }
    }

    proptest! {
        #[test]
        fn no_packet_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 1..60)) {
            drop(meaning(&Bytes::from(bytes.clone())));
            drop(named_for_client(&bytes, "web"));
        }
    }
}
