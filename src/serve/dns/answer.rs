//! One answer to one question, from the zone as it is. Pure. Whatever is in the zone is written here, byte by byte; what is not is
//! refused, or left to the host's resolvers if an instance asks.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    deny,
    question::{IN, Name, Question, code, kind},
    sign::Signer,
    table::{Asker, Found, HOST_TTL, TTL, Table, child, label},
};

/// The most that travels in one UDP packet without being cut on its way.
pub const UDP_MAX: usize = 1232;
/// The data of the answer to "everything" (RFC 8482): it is the longest answer that a name could give to a stranger's address.
const ANYTHING: &[u8] = b"\x07RFC8482\0";

/// What became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// The answer is written.
    Written,
    /// Ask the host's resolvers.
    Forward,
    /// The whole zone is asked for.
    Transfer,
}

/// What an answer is made from.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub table: &'a Table,
    pub asker: &'a Asker,
    pub signer: Option<&'a Signer>,
    /// Seconds since 1970, for signatures.
    pub now: u64,
}

/// The data of records.
#[derive(Debug, Clone, Copy)]
pub enum Data<'a> {
    V4(&'a [Ipv4Addr]),
    V6(&'a [Ipv6Addr]),
    Many(&'a [Box<[u8]>]),
    One(&'a [u8]),
}

impl Data<'_> {
    pub fn is_empty(&self) -> bool {
        match self {
            Self::V4(all) => all.is_empty(),
            Self::V6(all) => all.is_empty(),
            Self::Many(all) => all.is_empty(),
            Self::One(_) => false,
        }
    }

    pub fn each(&self, mut take: impl FnMut(&[u8])) {
        match self {
            Self::V4(all) => all.iter().for_each(|address| take(&address.octets())),
            Self::V6(all) => all.iter().for_each(|address| take(&address.octets())),
            Self::Many(all) => all.iter().for_each(|data| take(data)),
            Self::One(data) => take(data),
        }
    }
}

/// All records of one type under one name.
#[derive(Debug, Clone, Copy)]
pub struct Set<'a> {
    pub owner: &'a [u8],
    pub kind: u16,
    /// The TTL that is signed, and that which is sent.
    pub signed_ttl: u32,
    pub ttl: u32,
    pub data: Data<'a>,
}

impl<'a> Set<'a> {
    pub fn new(owner: &'a [u8], kind: u16, ttl: u32, data: Data<'a>) -> Self {
        Self { owner, kind, signed_ttl: ttl, ttl, data }
    }
}

#[derive(Clone, Copy)]
enum Section {
    Answer,
    Authority,
    Additional,
}

/// An answer that is being written.
struct Page<'a> {
    out: &'a mut Vec<u8>,
    name: &'a Name,
    counts: [u16; 3],
    /// Signatures are wanted and can be made.
    signer: Option<(&'a Signer, u64, &'a [u8])>,
}

impl Page<'_> {
    fn add(&mut self, section: Section, set: Set<'_>) {
        let (out, name, mut count) = (&mut *self.out, self.name, 0);
        set.data.each(|data| {
            record(out, Some(name), set.owner, set.kind, set.ttl, data);
            count += 1;
        });
        if let Some((signer, now, domain)) = self.signer.filter(|_| count > 0) {
            let signature = signer.signature(&set, domain, now);
            record(self.out, Some(self.name), set.owner, kind::RRSIG, set.ttl, &signature);
            count += 1;
        }
        self.counts[section as usize] += count;
    }

    fn soa(&mut self, table: &Table) {
        let mut set = Set::new(&table.domain, kind::SOA, HOST_TTL, Data::One(&table.soa));
        set.ttl = TTL;
        self.add(Section::Authority, set);
    }
}

/// Writes a record. Its owner is given by a pointer into the name of the question as far as that goes.
pub fn record(out: &mut Vec<u8>, name: Option<&Name>, owner: &[u8], kind: u16, ttl: u32, data: &[u8]) {
    let mut at = 0;
    loop {
        if owner[at] == 0 {
            out.push(0);
            break;
        }
        if let Some(name) = name.filter(|name| name.below(&owner[at..]).is_some()) {
            let offset = 12 + name.wire().len() - (owner.len() - at);
            #[expect(clippy::cast_possible_truncation, reason = "a name has 255 bytes at most")]
            out.extend((0xc000 | offset as u16).to_be_bytes());
            break;
        }
        let end = at + 1 + usize::from(owner[at]);
        out.extend_from_slice(&owner[at..end]);
        at = end;
    }
    let length = u16::try_from(data.len()).unwrap_or(u16::MAX);
    let [k0, k1] = kind.to_be_bytes();
    let [t0, t1, t2, t3] = ttl.to_be_bytes();
    let [l0, l1] = length.to_be_bytes();
    out.extend_from_slice(&[k0, k1, 0, 1, t0, t1, t2, t3, l0, l1]);
    out.extend_from_slice(&data[..length.into()]);
}

/// Writes the header of an answer to a packet; its counts are still zero.
pub fn header(packet: &[u8], authoritative: bool, recursion: bool, code: u16, out: &mut Vec<u8>) {
    out.clear();
    // It is an answer; the kind of the question, and whether recursion was wished for, are its own.
    let first = 0x80 | packet[2] & 0x79 | if authoritative { 4 } else { 0 };
    let second = if recursion { 0x80 } else { 0 } | packet[3] & 0x10 | (code & 0xf) as u8;
    out.extend_from_slice(&[packet[0], packet[1], first, second, 0, 0, 0, 0, 0, 0, 0, 0]);
}

/// The answer to a packet that is no question.
pub fn broken(packet: &[u8], code: u16, out: &mut Vec<u8>) {
    header(packet, false, false, code, out);
}

/// The answer to a question that is only a code.
pub fn only(asked: &Question<'_>, recursion: bool, code: u16, room: usize, cookie: Option<&[u8]>, out: &mut Vec<u8>) {
    header(asked.packet, false, recursion, code, out);
    close(asked, [0; 3], code, room, cookie, out);
}

/// How many bytes of an answer a client can take.
pub fn room(asked: &Question<'_>, udp: bool) -> usize {
    match asked.edns {
        _ if !udp => usize::from(u16::MAX),
        Some(edns) => usize::from(edns.payload).clamp(512, UDP_MAX),
        None => 512,
    }
}

/// Answers a question in at most `room` bytes.
pub fn answer(at: Context<'_>, asked: &Question<'_>, room: usize, cookie: Option<&[u8]>, out: &mut Vec<u8>) -> Reply {
    if asked.edns.is_some_and(|edns| edns.version > 0) {
        only(asked, false, code::BAD_VERS, room, cookie, out);
        return Reply::Written;
    }
    let recursion = matches!(at.asker, Asker::Guest(_));
    let code = match place(at, asked) {
        Ok(below) => {
            header(asked.packet, true, recursion, code::NO_ERROR, out);
            out.extend_from_slice(&asked.packet[12..asked.end]);
            let secure = asked.edns.is_some_and(|edns| edns.secure);
            let signer = at.signer.filter(|_| secure && below.is_some()).map(|signer| (signer, at.now, &*at.table.domain));
            let mut page = Page { out, name: &asked.name, counts: [0; 3], signer };
            let code = match below {
                Some(below) => in_zone(at, asked, below, &mut page),
                None => bare(at, asked, &mut page),
            };
            let counts = page.counts;
            out[3] |= (code & 0xf) as u8;
            close(asked, counts, code, room, cookie, out);
            return Reply::Written;
        }
        Err(Ok(reply)) => return reply,
        Err(Err(code)) => code,
    };
    only(asked, recursion, code, room, cookie, out);
    Reply::Written
}

/// Whether a name is ours to answer for: how many of its labels stand before the domain, or none if it is a bare name.
fn place(at: Context<'_>, asked: &Question<'_>) -> Result<Option<usize>, Result<Reply, u16>> {
    let refused = Err(Err(code::REFUSED));
    if !asked.is_internet() || matches!(at.asker, Asker::Nobody) {
        return refused;
    }
    if at.table.domain.is_empty() {
        return Err(Err(code::SERV_FAIL));
    }
    let guest = matches!(at.asker, Asker::Guest(_));
    match asked.kind {
        kind::AXFR | kind::IXFR if !guest && asked.name.wire() == &*at.table.domain => return Err(Ok(Reply::Transfer)),
        // Signatures are given beside what they sign.
        kind::AXFR | kind::IXFR | kind::RRSIG => return refused,
        kind::MAILA | kind::MAILB | kind::OPT | kind::TSIG => return Err(Err(code::NOT_IMP)),
        _ => {}
    }
    match asked.name.below(&at.table.domain) {
        Some(below) => Ok(Some(below)),
        None if guest && asked.name.labels() == 1 => Ok(None),
        None if guest => Err(Ok(Reply::Forward)),
        None => refused,
    }
}

/// A bare name means the asker's own namespace, wherever the zone is.
fn bare(at: Context<'_>, asked: &Question<'_>, page: &mut Page<'_>) -> u16 {
    let Asker::Guest(namespace) = at.asker else { return code::REFUSED };
    match at.table.find_in(namespace, asked.name.label(0)) {
        Some(entry) => {
            let (v4, v6) = at.table.addresses(at.asker, namespace, entry);
            if let Some((ttl, data)) = addresses(asked.kind, v4, v6, TTL) {
                page.add(Section::Answer, Set::new(asked.name.wire(), asked.kind, ttl, data));
            }
            code::NO_ERROR
        }
        None => code::NX_DOMAIN,
    }
}

/// What is asked for of some addresses.
fn addresses<'a>(kind: u16, v4: &'a [Ipv4Addr], v6: &'a [Ipv6Addr], ttl: u32) -> Option<(u32, Data<'a>)> {
    match kind {
        kind::A => Some((ttl, Data::V4(v4))),
        kind::AAAA => Some((ttl, Data::V6(v6))),
        _ => None,
    }
}

/// The records of one type that there are under a name, and how long they may be remembered.
fn given<'a>(at: Context<'a>, found: Found<'a>, kind: u16) -> Option<(u32, Data<'a>)> {
    let table = at.table;
    match (found, kind) {
        (Found::Instance(namespace, entry), _) => {
            let (v4, v6) = table.addresses(at.asker, namespace, entry);
            addresses(kind, v4, v6, TTL)
        }
        (Found::Apex | Found::Host, kind::A | kind::AAAA) => addresses(kind, &table.host4, &table.host6, HOST_TTL),
        (Found::Apex, kind::SOA) => Some((HOST_TTL, Data::One(&table.soa))),
        (Found::Apex, kind::NS) => Some((HOST_TTL, Data::Many(&table.servers))),
        (Found::Apex, kind::CAA) => Some((HOST_TTL, Data::Many(&table.authorities))),
        (Found::Apex, kind::DNSKEY) => Some((HOST_TTL, Data::One(at.signer?.key()))),
        // It looks again and again until it sees the new one: nobody on the way is to remember the old.
        (Found::Texts(texts), kind::TXT) => Some((0, Data::Many(texts))),
        _ => None,
    }
}

fn in_zone(at: Context<'_>, asked: &Question<'_>, below: usize, page: &mut Page<'_>) -> u16 {
    let (table, name) = (at.table, asked.name.wire());
    let found = table.find(name, below);
    match (found, asked.kind) {
        (Found::Nothing | Found::Empty, _) => {}
        (_, kind::ANY) => page.add(Section::Answer, Set::new(name, kind::HINFO, HOST_TTL, Data::One(ANYTHING))),
        (found, kind) => {
            if let Some((ttl, data)) = given(at, found, kind) {
                page.add(Section::Answer, Set::new(name, kind, ttl, data));
            }
        }
    }
    if (found, asked.kind) == (Found::Apex, kind::NS) {
        let glue = child(b"ns1", &table.domain);
        page.add(Section::Additional, Set::new(&glue, kind::A, HOST_TTL, Data::V4(&table.host4)));
        page.add(Section::Additional, Set::new(&glue, kind::AAAA, HOST_TTL, Data::V6(&table.host6)));
    }
    if page.counts[0] == 0 {
        page.soa(table);
        if page.signer.is_some() {
            deny(at, asked, found, below, page);
        }
    }
    if found == Found::Nothing { code::NX_DOMAIN } else { code::NO_ERROR }
}

/// Proves that there is nothing: the name has other types, or there is neither it nor a wildcard in its place. Made for this question
/// alone, so that nobody learns another name from it (RFC 4470).
fn deny(at: Context<'_>, asked: &Question<'_>, found: Found<'_>, below: usize, page: &mut Page<'_>) {
    let mut nsec = |owner: &[u8], next: &[u8], types: &[u16]| {
        let data = deny::data(next, types);
        page.add(Section::Authority, Set::new(owner, kind::NSEC, TTL, Data::One(&data)));
    };
    let types = |found: Found<'_>| types(at, found);
    if found != Found::Nothing {
        return nsec(asked.name.wire(), &deny::first_below(asked.name.wire()), &types(found));
    }
    // The name that exists, nearest above.
    let nearest = (1..=below).find(|n| at.table.find(asked.name.parent(*n), below - n) != Found::Nothing).unwrap_or(below);
    let encloser = asked.name.parent(nearest);
    let missing = asked.name.parent(nearest - 1);
    let wildcard = child(b"*", encloser);
    for name in [missing, &wildcard] {
        match deny::before(name, encloser) {
            Some(before) => nsec(&before, &deny::after(name), &[]),
            // Nothing can stand between the two.
            None => nsec(encloser, &deny::after(name), &types(at.table.find(encloser, below - nearest))),
        }
        if label(name) == b"*" {
            break;
        }
    }
}

/// The types that there are under a name, but for those that every name has.
fn types(at: Context<'_>, found: Found<'_>) -> Vec<u16> {
    let table = at.table;
    let addresses = |v4: &[Ipv4Addr], v6: &[Ipv6Addr]| {
        let types = [(kind::A, v4.is_empty()), (kind::AAAA, v6.is_empty())];
        types.into_iter().filter(|(_, none)| !none).map(|(kind, _)| kind).collect::<Vec<u16>>()
    };
    match found {
        Found::Apex => {
            let mut types = addresses(&table.host4, &table.host6);
            types.extend([kind::NS, kind::SOA, kind::DNSKEY]);
            types.extend((!table.authorities.is_empty()).then_some(kind::CAA));
            types
        }
        Found::Host => addresses(&table.host4, &table.host6),
        Found::Instance(namespace, entry) => {
            let (v4, v6) = table.addresses(at.asker, namespace, entry);
            addresses(v4, v6)
        }
        Found::Texts(_) => vec![kind::TXT],
        Found::Empty | Found::Nothing => Vec::new(),
    }
}

/// Ends an answer: cuts it if it is too long, adds EDNS if the question had it, and sets the counts.
fn close(asked: &Question<'_>, counts: [u16; 3], code: u16, room: usize, cookie: Option<&[u8]>, out: &mut Vec<u8>) {
    let questions = out.len() > 12;
    let mut counts = counts;
    if !questions {
        out.extend_from_slice(&asked.packet[12..asked.end]);
    }
    let edns = asked.edns.map_or(0, |_| 11 + cookie.map_or(0, |cookie| 4 + cookie.len()));
    if out.len() + edns > room {
        out.truncate(asked.end);
        out[2] |= 2;
        counts = [0; 3];
    }
    if let Some(edns) = asked.edns {
        #[expect(clippy::cast_possible_truncation, reason = "it is split into its parts")]
        out.extend_from_slice(&[
            0,
            0,
            41,
            (UDP_MAX >> 8) as u8,
            UDP_MAX as u8,
            (code >> 4) as u8,
            0,
            u8::from(edns.secure) << 7,
            0,
        ]);
        let option = cookie.unwrap_or_default();
        #[expect(clippy::cast_possible_truncation, reason = "a cookie has 40 bytes at most")]
        let length = option.len() as u8;
        if length == 0 {
            out.extend_from_slice(&[0, 0]);
        } else {
            out.extend_from_slice(&[0, 4 + length, 0, 10, 0, length]);
            out.extend_from_slice(option);
        }
        counts[2] += 1;
    }
    set_counts(out, counts);
}

/// Sets the counts of an answer to one question.
pub fn set_counts(out: &mut [u8], counts: [u16; 3]) {
    out[5] = 1;
    for (place, count) in out[6..12].chunks_exact_mut(2).zip(counts) {
        place.copy_from_slice(&count.to_be_bytes());
    }
}

/// The shortest answer: ask again over TCP. It is no longer than its question.
pub fn cut(asked: &Question<'_>, out: &mut Vec<u8>) {
    header(asked.packet, false, false, code::NO_ERROR, out);
    out[2] |= 2;
    // Of EDNS only what every question that has it has.
    let bare = Question { edns: asked.edns.map(|edns| super::question::Edns { cookie: None, ..edns }), ..asked.clone() };
    close(&bare, [0; 3], code::NO_ERROR, UDP_MAX, None, out);
}

const _: () = assert!(IN == 1, "records are written with this class");

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
