//! One question, read from the bytes of a packet without copying more than its name. What cannot be a question is told apart from what
//! is a broken one: the first gets no answer, the second a code.

/// Types of records, and of questions, by their numbers.
pub mod kind {
    pub const A: u16 = 1;
    pub const NS: u16 = 2;
    pub const SOA: u16 = 6;
    pub const HINFO: u16 = 13;
    pub const TXT: u16 = 16;
    pub const AAAA: u16 = 28;
    pub const OPT: u16 = 41;
    pub const RRSIG: u16 = 46;
    pub const NSEC: u16 = 47;
    pub const DNSKEY: u16 = 48;
    pub const TSIG: u16 = 250;
    pub const IXFR: u16 = 251;
    pub const AXFR: u16 = 252;
    pub const MAILB: u16 = 253;
    pub const MAILA: u16 = 254;
    pub const ANY: u16 = 255;
    pub const CAA: u16 = 257;
}

/// Response codes. Those above 15 need EDNS.
pub mod code {
    pub const NO_ERROR: u16 = 0;
    pub const FORM_ERR: u16 = 1;
    pub const SERV_FAIL: u16 = 2;
    pub const NX_DOMAIN: u16 = 3;
    pub const NOT_IMP: u16 = 4;
    pub const REFUSED: u16 = 5;
    pub const NOT_AUTH: u16 = 9;
    pub const BAD_VERS: u16 = 16;
}

pub const IN: u16 = 1;
const ANY_CLASS: u16 = 255;
/// The longest name on the wire.
const NAME: usize = 255;
/// More records than a question has any use for.
const RECORDS: usize = 8;
/// Of the options of EDNS, the only one that is looked at.
const COOKIE: u16 = 10;

/// A name in lower case as it is on the wire, with its final zero.
#[derive(Clone)]
pub struct Name {
    bytes: [u8; NAME],
    length: u8,
    /// Where labels begin.
    starts: [u8; 128],
    labels: u8,
}

impl Name {
    pub fn wire(&self) -> &[u8] {
        &self.bytes[..self.length.into()]
    }

    pub fn labels(&self) -> usize {
        self.labels.into()
    }

    /// A label, the leftmost first.
    pub fn label(&self, n: usize) -> &[u8] {
        let start = usize::from(self.starts[n]);
        &self.bytes[start + 1..start + 1 + usize::from(self.bytes[start])]
    }

    /// This name without its first `n` labels.
    pub fn parent(&self, n: usize) -> &[u8] {
        let start = if n < self.labels() { self.starts[n].into() } else { self.wire().len() - 1 };
        &self.wire()[start..]
    }

    /// How many labels stand before `zone`; `None` if this name is not in it.
    pub fn below(&self, zone: &[u8]) -> Option<usize> {
        let start = self.wire().len().checked_sub(zone.len())?;
        if self.wire()[start..] != *zone {
            return None;
        }
        if start + 1 == self.wire().len() {
            return Some(self.labels());
        }
        self.starts[..self.labels()].iter().position(|at| usize::from(*at) == start)
    }

    /// Reads a name that is not compressed. Returns where it ends.
    fn read(packet: &[u8], at: usize) -> Option<(Self, usize)> {
        let mut name = Self { bytes: [0; NAME], length: 0, starts: [0; 128], labels: 0 };
        let mut end = at;
        loop {
            let length = usize::from(*packet.get(end)?);
            if length == 0 {
                break;
            }
            if length > 63 || end + 1 + length - at >= NAME {
                return None;
            }
            name.starts[usize::from(name.labels)] = u8::try_from(end - at).ok()?;
            name.labels += 1;
            end += 1 + length;
        }
        end += 1;
        name.length = u8::try_from(end - at).ok()?;
        // Lengths are below 64, letters above.
        name.bytes[..end - at].copy_from_slice(&packet[at..end]);
        name.bytes[..end - at].make_ascii_lowercase();
        Some((name, end))
    }
}

/// What EDNS says.
#[derive(Debug, Clone, Copy)]
pub struct Edns<'a> {
    pub payload: u16,
    pub version: u8,
    /// Whether signatures are wanted.
    pub secure: bool,
    pub cookie: Option<&'a [u8]>,
}

/// A question.
#[derive(Clone)]
pub struct Question<'a> {
    pub packet: &'a [u8],
    pub name: Name,
    /// Where the question ends in the packet.
    pub end: usize,
    pub kind: u16,
    pub class: u16,
    pub edns: Option<Edns<'a>>,
    /// Where the record begins that signs the packet.
    pub tsig: Option<usize>,
}

impl Question<'_> {
    pub fn is_internet(&self) -> bool {
        matches!(self.class, IN | ANY_CLASS)
    }
}

/// What a packet was.
#[expect(clippy::large_enum_variant, reason = "it lives on the stack, once for each packet")]
pub enum Read<'a> {
    /// Nothing to be answered.
    Nothing,
    /// Something that deserves a code.
    Broken(u16),
    Question(Question<'a>),
}

fn two(packet: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?))
}

/// Where a name ends that may be compressed.
pub fn skip_name(packet: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *packet.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            192..=255 => return (at + 2 <= packet.len()).then_some(at + 2),
            _ => return None,
        }
    }
}

/// A record as it stands in a packet: type, class, TTL, where its TTL and its data begin, and where it ends.
#[derive(Debug, Clone, Copy)]
pub struct Placed {
    pub kind: u16,
    pub class: u16,
    pub ttl: u32,
    pub ttl_at: usize,
    pub data: usize,
    pub end: usize,
}

/// The record that begins at `at`.
pub fn record(packet: &[u8], at: usize) -> Option<Placed> {
    let ttl_at = skip_name(packet, at)? + 4;
    let (kind, class) = (two(packet, ttl_at - 4)?, two(packet, ttl_at - 2)?);
    let ttl = u32::from_be_bytes(packet.get(ttl_at..ttl_at + 4)?.try_into().ok()?);
    let data = ttl_at + 6;
    let end = data + usize::from(two(packet, ttl_at + 4)?);
    (end <= packet.len()).then_some(Placed { kind, class, ttl, ttl_at, data, end })
}

/// Reads a packet.
pub fn read(packet: &[u8]) -> Read<'_> {
    // Never answer an answer: two servers could keep each other busy for ever.
    if packet.len() < 12 || packet[2] & 0x80 != 0 {
        return Read::Nothing;
    }
    if packet[2] & 0x78 != 0 {
        return Read::Broken(code::NOT_IMP);
    }
    question(packet).map_or(Read::Broken(code::FORM_ERR), Read::Question)
}

fn question(packet: &[u8]) -> Option<Question<'_>> {
    let counts = [two(packet, 4)?, two(packet, 6)?, two(packet, 8)?, two(packet, 10)?].map(usize::from);
    // An IXFR has the serial of the asker in its authority section.
    if counts[0] != 1 || counts[1] != 0 || counts[2] > 1 || counts[3] > RECORDS {
        return None;
    }
    let (name, at) = Name::read(packet, 12)?;
    let mut question =
        Question { packet, name, end: at + 4, kind: two(packet, at)?, class: two(packet, at + 2)?, edns: None, tsig: None };
    let mut at = question.end;
    for n in 0..counts[2] + counts[3] {
        let placed = record(packet, at)?;
        match placed.kind {
            // Twice, under a name, or not among the additional records: it means nothing.
            kind::OPT if question.edns.is_some() || packet[at] != 0 || n < counts[2] => return None,
            kind::OPT => question.edns = Some(edns(&packet[placed.data..placed.end], placed)?),
            // It signs what stands before it.
            kind::TSIG if n + 1 != counts[2] + counts[3] => return None,
            kind::TSIG => question.tsig = Some(at),
            _ => {}
        }
        at = placed.end;
    }
    (at == packet.len()).then_some(question)
}

fn edns(mut options: &[u8], placed: Placed) -> Option<Edns<'_>> {
    let [_, version, flags, _] = placed.ttl.to_be_bytes();
    let mut edns = Edns { payload: placed.class, version, secure: flags & 0x80 != 0, cookie: None };
    while !options.is_empty() {
        let (option, length) = (two(options, 0)?, usize::from(two(options, 2)?));
        let value = options.get(4..4 + length)?;
        if option == COOKIE && edns.cookie.is_none() {
            // The client's half, alone or with a server's.
            if !(length == 8 || (16..=40).contains(&length)) {
                return None;
            }
            edns.cookie = Some(value);
        }
        options = &options[4 + length..];
    }
    Some(edns)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(name: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        packet.extend(name);
        packet.extend([0, 1, 0, 1]);
        packet
    }

    fn ask(packet: &[u8]) -> Option<Question<'_>> {
        match read(packet) {
            Read::Question(question) => Some(question),
            _ => None,
        }
    }

    #[test]
    fn a_name_is_taken_apart() {
        let bytes = packet(b"\x03WeB\x04seed\x07example\0");
        let asked = ask(&bytes).unwrap();
        assert_eq!((asked.name.labels(), asked.name.label(0), asked.name.label(2)), (3, &b"web"[..], &b"example"[..]));
        assert_eq!(asked.name.parent(1), b"\x04seed\x07example\0");
        assert_eq!(asked.name.parent(3), b"\0");
        let below = |zone: &[u8]| asked.name.below(zone);
        assert_eq!((below(b"\x04seed\x07example\0"), below(b"\x07example\0"), below(b"\0")), (Some(1), Some(2), Some(3)));
        assert_eq!((below(b"\x02ed\x07example\0"), below(b"\x03org\0")), (None, None));
        // The bytes of a label that look like the zone are not the zone.
        let tricky = packet(b"\x06x\x04seed\x02le\0");
        assert!(ask(&tricky).is_some_and(|asked| asked.name.below(b"\x04seed\x02le\0").is_none()));
    }

    #[test]
    fn what_is_no_question_is_refused() {
        let longest = [&[63u8; 1][..], &[b'a'; 63]].concat();
        let name = |labels: usize, last: usize| {
            let mut name = longest.repeat(labels);
            name.push(u8::try_from(last).unwrap());
            name.extend(vec![b'a'; last]);
            name.push(0);
            name
        };
        assert!(ask(&packet(&name(3, 61))).is_some(), "255 bytes");
        assert!(ask(&packet(&name(3, 62))).is_none(), "256 bytes");
        assert!(ask(&packet(b"\0")).is_some(), "the root");
        assert!(ask(&packet(b"\xc0\x0c")).is_none(), "it points at itself");
        let good = packet(b"\x01a\0");
        for (at, byte) in [(5, 0), (5, 2), (7, 1), (9, 2), (11, 9), (11, 1)] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert!(matches!(read(&bad), Read::Broken(code::FORM_ERR)), "{at} {byte}");
        }
        assert!(matches!(read(&[good.clone(), vec![0]].concat()), Read::Broken(code::FORM_ERR)), "something behind it");
        let mut notify = good.clone();
        notify[2] = 0x20;
        assert!(matches!(read(&notify), Read::Broken(code::NOT_IMP)));
        let mut answer = good.clone();
        answer[2] |= 0x80;
        assert!(matches!(read(&answer), Read::Nothing));
        assert!(matches!(read(&good[..11]), Read::Nothing));
    }

    #[test]
    fn edns_is_read_once() {
        let option = |cookie: &[u8]| {
            let mut opt = vec![0, 0, 41, 0x10, 0, 0, 0, 0x80, 0, 0, u8::try_from(4 + cookie.len()).unwrap(), 0, 10, 0];
            opt.push(u8::try_from(cookie.len()).unwrap());
            opt.extend(cookie);
            opt
        };
        let with = |count: u8, records: &[Vec<u8>]| {
            let mut bytes = packet(b"\x01a\0");
            bytes[11] = count;
            bytes.extend(records.concat());
            bytes
        };
        let bytes = with(1, &[option(&[7; 8])]);
        let edns = ask(&bytes).unwrap().edns.unwrap();
        assert_eq!((edns.payload, edns.version, edns.secure, edns.cookie), (4096, 0, true, Some(&[7u8; 8][..])));
        assert!(ask(&with(1, &[option(&[7; 9])])).is_none(), "half a cookie");
        assert!(ask(&with(2, &[option(&[7; 8]), option(&[7; 8])])).is_none(), "twice");
        let tsig = [&b"\x01k\0"[..], &[0, 250, 0, 255, 0, 0, 0, 0, 0, 0]].concat();
        assert!(ask(&with(2, &[option(&[7; 8]), tsig.clone()])).unwrap().tsig.is_some());
        assert!(ask(&with(2, &[tsig, option(&[7; 8])])).is_none(), "a signature in the middle");
    }

    proptest! {
        #[test]
        fn no_packet_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            if let Read::Question(asked) = read(&bytes) {
                for n in 0..asked.name.labels() {
                    asked.name.label(n);
                    asked.name.parent(n);
                }
                prop_assert_eq!(asked.name.below(asked.name.wire()), Some(0));
            }
        }
    }
}
