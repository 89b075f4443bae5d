//! Git's pkt-line framing, side-band packets, and the two lists that travel in it when a client pushes: what the client wants
//! changed (read before a byte of its pack) and what receive-pack reports. Nothing here decides; nothing here trusts.

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::spec::name::{Commit, RefName};

/// The packet that ends a list.
pub const FLUSH: &[u8] = b"0000";
/// An empty packet of band 1: clients take it as a sign of life.
pub const KEEP_ALIVE: &[u8] = b"0005\x01";
/// More changes than this in one push are refused.
const MAX_UPDATES: usize = 1000;
/// More bytes than this before the pack are refused.
const MAX_REQUEST: usize = 1 << 20;
/// More push options than this are refused.
const MAX_OPTIONS: usize = 16;

/// One packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// `0000`
    Flush,
    /// `0001` or `0002`; nobody sends them while pushing.
    Separator,
    Data(Vec<u8>),
}

/// Why a stream of packets could not be read.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    #[error("what was sent is not git's protocol: {0}")]
    Malformed(&'static str),
    #[error("the stream ended in the middle of a packet")]
    Cut,
    #[error("could not read")]
    Read(#[from] std::io::Error),
}

/// Reads one packet; `None` if the stream ended before it.
pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> Result<Option<Packet>, PacketError> {
    let mut head = [0; 4];
    let mut had = 0;
    while had < 4 {
        match from.read(&mut head[had..]).await? {
            0 if had == 0 => return Ok(None),
            0 => return Err(PacketError::Cut),
            n => had += n,
        }
    }
    let length = std::str::from_utf8(&head)
        .ok()
        .filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()))
        .and_then(|text| usize::from_str_radix(text, 16).ok())
        .ok_or(PacketError::Malformed("a packet's length is not four hexadecimal digits"))?;
    match length {
        0 => Ok(Some(Packet::Flush)),
        1 | 2 => Ok(Some(Packet::Separator)),
        3 => Err(PacketError::Malformed("a packet of length 3")),
        65521.. => Err(PacketError::Malformed("a packet longer than 65520 bytes")),
        _ => {
            let mut data = vec![0; length - 4];
            from.read_exact(&mut data).await.map_err(|error| match error.kind() {
                std::io::ErrorKind::UnexpectedEof => PacketError::Cut,
                _ => PacketError::Read(error),
            })?;
            Ok(Some(Packet::Data(data)))
        }
    }
}

/// One packet around `payload`, which has at most 65516 bytes.
pub fn data(payload: &[u8]) -> Vec<u8> {
    let mut packet = format!("{:04x}", payload.len() + 4).into_bytes();
    packet.extend_from_slice(payload);
    packet
}

/// `payload` in side-band packets of at most `room` bytes each. Bands: 1 the report, 2 what the client prints, 3 a fatal error.
pub fn band(number: u8, payload: &[u8], room: usize) -> Vec<u8> {
    let mut packets = Vec::with_capacity(payload.len() + 5);
    for chunk in payload.chunks(room) {
        packets.extend_from_slice(format!("{:04x}", chunk.len() + 5).as_bytes());
        packets.push(number);
        packets.extend_from_slice(chunk);
    }
    packets
}

/// The packet that makes any git client print `fatal: remote error: <text>` and stop.
pub fn error(text: &str) -> Vec<u8> {
    let text: String = text.chars().take(4000).collect();
    data(format!("ERR {text}").as_bytes())
}

/// One change that a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    pub old: Commit,
    pub new: Commit,
    /// As sent: it may not be a [`RefName`].
    pub reference: String,
}

impl Update {
    /// Whether the ref is to be deleted.
    pub fn deletes(&self) -> bool {
        self.new.as_str().bytes().all(|b| b == b'0')
    }
    /// Whether the ref is not there yet.
    pub fn creates(&self) -> bool {
        self.old.as_str().bytes().all(|b| b == b'0')
    }
    /// The name of the ref if it may be pushed.
    pub fn name(&self) -> Option<RefName> {
        self.reference.parse().ok()
    }
}

/// All that a client sends before its pack.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    pub updates: Vec<Update>,
    pub options: Vec<String>,
    pub capabilities: Vec<String>,
    /// Whether the client has only a part of the history.
    pub shallow: bool,
    /// The bytes as they came, for receive-pack.
    pub raw: Vec<u8>,
}

impl Request {
    /// Whether the client said `capability`, or `capability=…`.
    pub fn can(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|had| had.split('=').next() == Some(capability))
    }
    /// Bytes of payload that fit in one side-band packet; 0 if the client cannot take any.
    pub fn side_band_room(&self) -> usize {
        if self.can("side-band-64k") {
            65515
        } else if self.can("side-band") {
            995
        } else {
            0
        }
    }
}

/// Reads what a client sends before its pack; `None` if it left without sending anything.
pub async fn read_request(from: &mut (impl AsyncRead + Unpin)) -> Result<Option<Request>, PacketError> {
    let mut request = Request::default();
    loop {
        match read(from).await? {
            None if request.raw.is_empty() => return Ok(None),
            None => return Err(PacketError::Cut),
            Some(Packet::Separator) => return Err(PacketError::Malformed("a separator in the list of changes")),
            Some(Packet::Flush) => break,
            Some(Packet::Data(payload)) => {
                request.raw.extend_from_slice(&data(&payload));
                take_update(&mut request, &payload)?;
            }
        }
        if request.raw.len() > MAX_REQUEST || request.updates.len() > MAX_UPDATES {
            return Err(PacketError::Malformed("more than 1000 changes in one push: push fewer refs at once"));
        }
    }
    request.raw.extend_from_slice(FLUSH);
    if !request.updates.is_empty() && request.can("push-options") {
        loop {
            match read(from).await? {
                None => return Err(PacketError::Cut),
                Some(Packet::Separator) => return Err(PacketError::Malformed("a separator in the list of push options")),
                Some(Packet::Flush) => break,
                Some(Packet::Data(payload)) => {
                    request.raw.extend_from_slice(&data(&payload));
                    request.options.push(line_of(&payload)?.to_owned());
                }
            }
            if request.options.len() > MAX_OPTIONS {
                return Err(PacketError::Malformed("more than 16 push options"));
            }
        }
        request.raw.extend_from_slice(FLUSH);
    }
    Ok(Some(request))
}

fn line_of(payload: &[u8]) -> Result<&str, PacketError> {
    let line = payload.strip_suffix(b"\n").unwrap_or(payload);
    std::str::from_utf8(line).map_err(|_| PacketError::Malformed("a line that is not UTF-8"))
}

fn take_update(request: &mut Request, payload: &[u8]) -> Result<(), PacketError> {
    let (line, capabilities) = match payload.iter().position(|b| *b == 0) {
        Some(at) if request.updates.is_empty() => (&payload[..at], line_of(&payload[at + 1..])?),
        Some(_) => return Err(PacketError::Malformed("a NUL in the list of changes")),
        None => (payload, ""),
    };
    request.capabilities.extend(capabilities.split_ascii_whitespace().map(str::to_owned));
    let line = line_of(line)?;
    if line.starts_with("push-cert") {
        return Err(PacketError::Malformed("signed pushes are not taken here: push without --signed"));
    }
    let malformed = PacketError::Malformed("a change that is not `old new ref`");
    if let Some(boundary) = line.strip_prefix("shallow ") {
        request.shallow = true;
        return boundary.parse::<Commit>().map(drop).map_err(|_| malformed);
    }
    let mut words = line.splitn(3, ' ');
    let (Some(old), Some(new), Some(reference)) = (words.next(), words.next(), words.next()) else { return Err(malformed) };
    let (Ok(old), Ok(new)) = (old.parse(), new.parse()) else { return Err(malformed) };
    request.updates.push(Update { old, new, reference: reference.to_owned() });
    Ok(())
}

/// What receive-pack reports of a push.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Refs that were changed.
    pub accepted: Vec<String>,
    /// Whether it was read to its end.
    pub complete: bool,
}

/// Reads the packets of a report.
pub async fn read_report(mut from: &[u8]) -> Report {
    let mut report = Report::default();
    loop {
        match read(&mut from).await {
            Ok(Some(Packet::Data(payload))) => {
                if let Ok(Some(reference)) = line_of(&payload).map(|line| line.strip_prefix("ok ")) {
                    report.accepted.push(reference.to_owned());
                }
            }
            Ok(Some(Packet::Flush)) => {
                report.complete = true;
                return report;
            }
            Ok(Some(Packet::Separator) | None) | Err(_) => return report,
        }
    }
}

/// The report that refuses each of `updates`, with its reason.
pub fn refusal(updates: &[(String, String)]) -> Vec<u8> {
    let mut packets = data(b"unpack ok\n");
    for (reference, reason) in updates {
        packets.extend_from_slice(&data(format!("ng {reference} {reason}\n").as_bytes()));
    }
    packets.extend_from_slice(FLUSH);
    packets
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "1111111111111111111111111111111111111111";
    const Z: &str = "0000000000000000000000000000000000000000";

    fn block<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn a_request_is_read_to_the_byte_before_the_pack() {
        let mut sent = data(format!("{Z} {A} refs/heads/main\0 report-status side-band-64k push-options agent=git/2").as_bytes());
        sent.extend(data(format!("{A} {Z} refs/heads/-x\n").as_bytes()));
        sent.extend(FLUSH);
        sent.extend(data(b"async\n"));
        sent.extend(FLUSH);
        let before = sent.len();
        sent.extend(b"PACK....");
        let mut rest = &sent[..];
        let request = block(read_request(&mut rest)).unwrap().unwrap();
        assert_eq!(rest, b"PACK....");
        assert_eq!(request.raw, sent[..before]);
        assert_eq!(request.options, ["async"]);
        assert_eq!(request.side_band_room(), 65515);
        assert!(request.can("agent") && !request.can("atomic"));
        assert_eq!(request.updates[0].name().unwrap().short(), "main");
        assert!(request.updates[1].deletes() && request.updates[1].name().is_none());
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let table: [&[u8]; 7] = [b"zzzz", b"0003", b"fff9", b"0009abc", b"000ahello\n0000", b"0012push-cert\0 x\n0000", b"0001"];
        for sent in table {
            assert!(block(read_request(&mut &sent[..])).is_err(), "{:?}", String::from_utf8_lossy(sent));
        }
        assert_eq!(block(read_request(&mut &b""[..])).unwrap(), None);
        assert!(block(read_request(&mut &b"0000"[..])).unwrap().unwrap().updates.is_empty());
    }

    #[test]
    fn a_report_lists_what_was_accepted() {
        let mut sent = data(b"unpack ok\n");
        sent.extend(data(b"ok refs/heads/main\n"));
        sent.extend(data(b"ng refs/heads/x no\n"));
        assert!(!block(read_report(&sent)).complete);
        sent.extend(FLUSH);
        assert_eq!(block(read_report(&sent)), Report { accepted: vec!["refs/heads/main".into()], complete: true });
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 4usize..40) {
            let framed = [&data(&bytes)[..], FLUSH].concat();
            for sent in [&bytes[..], &framed[..], &framed[..cut.min(framed.len())]] {
                drop(block(read_request(&mut &sent[..])));
                block(read_report(sent));
            }
        }

        #[test]
        fn side_band_packets_are_packets(bytes in proptest::collection::vec(any::<u8>(), 1..3000), room in 1usize..1000) {
            let packets = band(2, &bytes, room);
            let mut rest = &packets[..];
            let mut got = Vec::new();
            while let Some(Packet::Data(payload)) = block(read(&mut rest)).unwrap() {
                prop_assert_eq!(payload[0], 2);
                prop_assert!(payload.len() <= room + 1);
                got.extend_from_slice(&payload[1..]);
            }
            prop_assert_eq!(got, bytes);
        }
    }
}
