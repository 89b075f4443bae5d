//! A pack as it is sent, and as it is kept. Nothing that it declares is believed: a size is checked before there is room for it, and
//! what it all unfolds to has a bound.
//!
//! A pack is a list of entries, each an object or a delta: what to do with another object, its base, to get this one. The base may be
//! one that the sender knows to be here, and not in the pack; such a pack is kept with its bases behind it, as git keeps it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
};

use flate2::{Compression, Crc, Decompress, FlushDecompress, Status, write::ZlibEncoder};
use gix::{
    ObjectId,
    hash::Kind::Sha1,
    objs::Kind,
    odb::pack::data::{
        self, Version,
        entry::Header::{self, OfsDelta, RefDelta},
    },
};

use super::{Files, Odd};

/// The most objects of a small pack.
const MAX_OBJECTS: u32 = 1000;
/// The most bytes of everything that is unfolded for one pack.
const MAX_UNFOLDED: u64 = 16 << 20;
/// The head of a pack: `PACK`, a version, a count.
const HEAD: usize = 12;
/// The checksum behind it.
const TAIL: usize = 20;
/// No head of an entry is longer: a size, and a distance or a name.
const ENTRY_HEAD: usize = 40;

/// One entry of a pack: where it begins, where its compressed bytes do, and where it ends.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    start: usize,
    data: usize,
    end: usize,
    header: Header,
    size: usize,
}

/// Finds the end of a pack while it comes in.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// How many objects it declares, once that is known.
    count: Option<u32>,
    /// How far it was looked at.
    at: usize,
    /// What all entries declare to have.
    unfolded: u64,
    entries: Vec<Entry>,
    /// The entry whose compressed bytes are being looked at.
    open: Option<(Entry, Decompress)>,
}

/// What a scan found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It goes on.
    More,
    /// It ends just here.
    End,
}

impl Scan {
    /// Goes on through `bytes`, which are all that have come so far.
    pub fn go_on(&mut self, bytes: &[u8]) -> Result<Found, Odd> {
        let count = match self.count {
            Some(count) => count,
            None => {
                let Some(head) = bytes.first_chunk::<HEAD>() else { return Ok(Found::More) };
                let (version, count) = data::header::decode(head).map_err(|_| Odd("no pack"))?;
                if version != Version::V2 || count > MAX_OBJECTS {
                    return Err(Odd("a pack of many objects"));
                }
                self.at = HEAD;
                *self.count.insert(count)
            }
        };
        loop {
            if let Some((mut entry, mut inflate)) = self.open.take() {
                if !self.pass(bytes, &entry, &mut inflate)? {
                    self.open = Some((entry, inflate));
                    return Ok(Found::More);
                }
                entry.end = self.at;
                self.entries.push(entry);
            }
            if self.entries.len() == count as usize {
                return match bytes.len().cmp(&(self.at + TAIL)) {
                    std::cmp::Ordering::Less => Ok(Found::More),
                    std::cmp::Ordering::Equal => Ok(Found::End),
                    std::cmp::Ordering::Greater => Err(Odd("something behind the pack")),
                };
            }
            let rest = &bytes[self.at..];
            let entry = match data::Entry::from_bytes(rest, self.at as u64, Sha1) {
                Ok(entry) => entry,
                // It may be all there is of it yet.
                Err(_) if rest.len() < ENTRY_HEAD => return Ok(Found::More),
                Err(_) => return Err(Odd("an entry that cannot be read")),
            };
            self.unfolded = self.unfolded.saturating_add(entry.decompressed_size);
            if self.unfolded > MAX_UNFOLDED {
                return Err(Odd("a pack that unfolds to much"));
            }
            let (start, data) = (self.at, self.at + entry.header_size());
            // Numbers can be written in several ways, of which git does not read all that are read here; kept is what was sent.
            let mut written = Vec::with_capacity(ENTRY_HEAD);
            let plain = entry.header.write_to(entry.decompressed_size, &mut written).is_ok();
            if !plain || bytes.get(start..data) != Some(&written) {
                return Err(Odd("an entry that is written in another way"));
            }
            let size = usize::try_from(entry.decompressed_size).map_err(|_| Odd("a size out of reach"))?;
            self.at = data;
            self.open = Some((Entry { start, data, end: data, header: entry.header, size }, Decompress::new(true)));
        }
    }

    /// Passes over compressed bytes; whether it got to their end.
    fn pass(&mut self, bytes: &[u8], entry: &Entry, inflate: &mut Decompress) -> Result<bool, Odd> {
        let mut nowhere = [0; 8 << 10];
        loop {
            let (read, written) = (inflate.total_in(), inflate.total_out());
            let rest = bytes.get(self.at..).unwrap_or_default();
            let status = inflate.decompress(rest, &mut nowhere, FlushDecompress::None).map_err(|_| Odd("no zlib"))?;
            let (read, written) = (inflate.total_in() - read, inflate.total_out() - written);
            self.at += usize::try_from(read).map_err(|_| Odd("a size out of reach"))?;
            if inflate.total_out() > entry.size as u64 {
                return Err(Odd("an entry larger than it says"));
            }
            match status {
                Status::StreamEnd if inflate.total_out() == entry.size as u64 => return Ok(true),
                Status::StreamEnd => return Err(Odd("an entry smaller than it says")),
                Status::Ok | Status::BufError if read == 0 && written == 0 => return Ok(false),
                Status::Ok | Status::BufError => {}
            }
        }
    }

    /// The entries; to be asked once the end was found.
    pub fn entries(self) -> Vec<Entry> {
        self.entries
    }
}

/// An object.
#[derive(Debug, Clone)]
pub(super) struct Object {
    pub kind: Kind,
    pub data: Vec<u8>,
}

/// All objects of a pack, and those that it needed of the repository.
#[derive(Debug)]
pub(super) struct Pack {
    pub objects: BTreeMap<ObjectId, Object>,
    /// How many entries were deltas.
    pub deltas: usize,
    /// Bases that were not in it.
    pub borrowed: Vec<(ObjectId, Object)>,
    /// Each entry's name, checksum and place.
    index: Vec<(ObjectId, u32, u32)>,
}

/// Counts what is unfolded.
struct Budget(u64);

impl Budget {
    fn spend(&mut self, bytes: usize) -> Result<(), Odd> {
        self.0 = self.0.checked_sub(bytes as u64).ok_or(Odd("a pack that unfolds to much"))?;
        Ok(())
    }
}

/// Unfolds a whole pack. `bytes` are what a scan found the end of; `read` finds an object of the repository that has at most so many bytes.
pub(super) fn unfold(
    bytes: &[u8],
    entries: &[Entry],
    mut read: impl FnMut(&ObjectId, u64) -> Result<Option<Object>, Odd>,
) -> Result<Pack, Odd> {
    let (body, tail) = bytes.split_last_chunk::<TAIL>().ok_or(Odd("no pack"))?;
    if sha1(&[body])?.as_slice() != tail {
        return Err(Odd("a pack whose checksum is another"));
    }
    let mut budget = Budget(MAX_UNFOLDED);
    let mut pack = Pack { objects: BTreeMap::new(), deltas: 0, borrowed: Vec::new(), index: Vec::new() };
    // The names of the entries by their place, as they become known; and the deltas that wait for their base.
    let mut known: BTreeMap<usize, ObjectId> = BTreeMap::new();
    let mut waiting: Vec<(&Entry, Vec<u8>)> = Vec::new();
    for entry in entries {
        budget.spend(entry.size)?;
        let data = inflate(&bytes[entry.data..entry.end], entry.size)?;
        match entry.header.as_kind() {
            Some(kind) => pack.take(bytes, entry, Object { kind, data }, &mut known)?,
            None => waiting.push((entry, data)),
        }
    }
    pack.deltas = waiting.len();
    let mut borrowed: BTreeMap<ObjectId, Object> = BTreeMap::new();
    while !waiting.is_empty() {
        let before = waiting.len();
        let mut later = Vec::new();
        for (entry, delta) in waiting {
            let base = match entry.header {
                OfsDelta { base_distance } => {
                    let distance = usize::try_from(base_distance).map_err(|_| Odd("a base out of reach"))?;
                    let at = entry.start.checked_sub(distance).ok_or(Odd("a base out of reach"))?;
                    known.get(&at).and_then(|id| pack.objects.get(id))
                }
                RefDelta { base_id } => pack.objects.get(&base_id).or_else(|| borrowed.get(&base_id)),
                _ => return Err(Odd("no delta")),
            };
            match base {
                Some(base) => {
                    let object = Object { kind: base.kind, data: apply(&base.data, &delta, &mut budget)? };
                    pack.take(bytes, entry, object, &mut known)?;
                }
                None => later.push((entry, delta)),
            }
        }
        // What is left needs one another, or something that is not in the pack.
        if later.len() == before {
            let wanted = later.iter().find_map(|(entry, _)| match entry.header {
                RefDelta { base_id } => Some(base_id),
                _ => None,
            });
            let id = wanted.ok_or(Odd("a delta without a base"))?;
            let base = read(&id, budget.0)?.ok_or(Odd("a delta without a base"))?;
            if name(&base)? != id {
                return Err(Odd("a base that is not what it is called"));
            }
            budget.spend(base.data.len())?;
            borrowed.insert(id, base);
        }
        waiting = later;
    }
    pack.borrowed = borrowed.into_iter().collect();
    Ok(pack)
}

impl Pack {
    fn take(&mut self, bytes: &[u8], entry: &Entry, object: Object, known: &mut BTreeMap<usize, ObjectId>) -> Result<(), Odd> {
        let id = name(&object)?;
        let mut crc = Crc::new();
        crc.update(&bytes[entry.start..entry.end]);
        self.index.push((id, crc.sum(), u32::try_from(entry.start).map_err(|_| Odd("a large pack"))?));
        known.insert(entry.start, id);
        match self.objects.insert(id, object) {
            Some(_) => Err(Odd("an object twice")),
            None => Ok(()),
        }
    }

    /// The pack to keep, which needs nothing but itself; its index; and the name of both.
    pub fn files(mut self, bytes: &[u8]) -> Result<Files, Odd> {
        let body = bytes.len().checked_sub(TAIL).ok_or(Odd("no pack"))?;
        let names: BTreeSet<ObjectId> = self.objects.keys().copied().collect();
        let mut pack = bytes.to_vec();
        if !self.borrowed.is_empty() {
            pack.truncate(body);
            for (id, object) in std::mem::take(&mut self.borrowed) {
                // It came to be in the pack after all.
                if names.contains(&id) {
                    return Err(Odd("a base that is here and there"));
                }
                let start = pack.len();
                write_entry(&mut pack, &object).map_err(|_| Odd("a base that cannot be written"))?;
                let mut crc = Crc::new();
                crc.update(&pack[start..]);
                self.index.push((id, crc.sum(), u32::try_from(start).map_err(|_| Odd("a large pack"))?));
            }
            let count = u32::try_from(self.index.len()).map_err(|_| Odd("a pack of many objects"))?;
            pack[8..HEAD].copy_from_slice(&count.to_be_bytes());
            let sum = sha1(&[&pack])?;
            pack.extend_from_slice(sum.as_slice());
        }
        let sum = pack.split_at(pack.len() - TAIL).1.to_vec();
        self.index.sort_unstable();
        let index = index(&self.index, &sum)?;
        Ok(Files { pack, index, sum: ObjectId::try_from(&sum[..]).map_err(|_| Odd("no checksum"))? })
    }
}

/// An index of version 2: where each object is in its pack.
fn index(entries: &[(ObjectId, u32, u32)], sum: &[u8]) -> Result<Vec<u8>, Odd> {
    let mut index = b"\xfftOc\0\0\0\x02".to_vec();
    for first in 0..=u8::MAX {
        let up_to = entries.partition_point(|(id, ..)| id.as_slice()[0] <= first);
        index.extend_from_slice(&u32::try_from(up_to).map_err(|_| Odd("a pack of many objects"))?.to_be_bytes());
    }
    entries.iter().for_each(|(id, ..)| index.extend_from_slice(id.as_slice()));
    entries.iter().for_each(|(_, crc, _)| index.extend_from_slice(&crc.to_be_bytes()));
    entries.iter().for_each(|(.., at)| index.extend_from_slice(&at.to_be_bytes()));
    index.extend_from_slice(sum);
    let own = sha1(&[&index])?;
    index.extend_from_slice(own.as_slice());
    Ok(index)
}

pub(super) fn write_entry(pack: &mut Vec<u8>, object: &Object) -> std::io::Result<()> {
    let mut size = object.data.len() as u64;
    let number: u8 = match object.kind {
        Kind::Commit => 1,
        Kind::Tree => 2,
        Kind::Blob => 3,
        Kind::Tag => 4,
    };
    let mut byte = number << 4 | (size & 15) as u8;
    size >>= 4;
    while size > 0 {
        pack.push(byte | 0x80);
        byte = (size & 0x7f) as u8;
        size >>= 7;
    }
    pack.push(byte);
    let mut compressed = ZlibEncoder::new(pack, Compression::default());
    compressed.write_all(&object.data)?;
    compressed.finish().map(drop)
}

/// The SHA-1 of some bytes; none if they were made to have that of others.
pub(super) fn sha1(parts: &[&[u8]]) -> Result<ObjectId, Odd> {
    let mut hash = gix::hash::hasher(Sha1);
    parts.iter().for_each(|part| hash.update(part));
    hash.try_finalize().map_err(|_| Odd("a checksum that was made up"))
}

pub(super) fn name(object: &Object) -> Result<ObjectId, Odd> {
    sha1(&[format!("{} {}\0", object.kind, object.data.len()).as_bytes(), &object.data])
}

/// What just `size` bytes were compressed to.
fn inflate(compressed: &[u8], size: usize) -> Result<Vec<u8>, Odd> {
    // One more, so that what goes on behind them is seen.
    let mut data = Vec::with_capacity(size + 1);
    let status =
        Decompress::new(true).decompress_vec(compressed, &mut data, FlushDecompress::Finish).map_err(|_| Odd("no zlib"))?;
    if status != Status::StreamEnd || data.len() != size {
        return Err(Odd("an entry of another size"));
    }
    Ok(data)
}

/// Does what a delta says: two sizes, and something to do, or git takes it for none.
fn apply(base: &[u8], mut delta: &[u8], budget: &mut Budget) -> Result<Vec<u8>, Odd> {
    const BROKEN: Odd = Odd("a delta that cannot be applied");
    if delta.len() < 4 {
        return Err(BROKEN);
    }
    let (from, to) = (size(&mut delta).ok_or(BROKEN)?, size(&mut delta).ok_or(BROKEN)?);
    if from != base.len() {
        return Err(BROKEN);
    }
    budget.spend(to)?;
    let mut made = Vec::with_capacity(to);
    while let Some((&command, rest)) = delta.split_first() {
        delta = rest;
        let part = if command & 0x80 != 0 {
            // Which bytes of a place and a length follow.
            let mut number = |bits: std::ops::Range<u32>| {
                let mut value = 0_usize;
                for (place, bit) in bits.enumerate() {
                    if command & (1 << bit) != 0 {
                        let (&byte, rest) = delta.split_first()?;
                        delta = rest;
                        value |= usize::from(byte) << (8 * place);
                    }
                }
                Some(value)
            };
            let (at, length) = (number(0..4).ok_or(BROKEN)?, number(4..7).ok_or(BROKEN)?);
            let length = if length == 0 { 0x10000 } else { length };
            at.checked_add(length).and_then(|end| base.get(at..end))
        } else if command == 0 {
            None
        } else {
            delta.split_at_checked(usize::from(command)).map(|(part, rest)| {
                delta = rest;
                part
            })
        };
        let part = part.ok_or(BROKEN)?;
        if part.len() > to - made.len() {
            return Err(BROKEN);
        }
        made.extend_from_slice(part);
    }
    if made.len() == to { Ok(made) } else { Err(BROKEN) }
}

/// A size at the head of a delta.
fn size(delta: &mut &[u8]) -> Option<usize> {
    let mut value = 0_u64;
    for shift in (0..=49).step_by(7) {
        let (&byte, rest) = delta.split_first()?;
        *delta = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return usize::try_from(value).ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{
        super::fuzz::{cooked, read, repository, sealed},
        *,
    };

    /// A recipe of a text that is sent as it is.
    fn entry(what: u8, text: &[u8]) -> Vec<u8> {
        [&[what, u8::try_from(text.len()).unwrap()], text].concat()
    }

    /// A recipe with each kind of entry: three objects, a delta to the first, and one to something that is not in the pack.
    fn mixed() -> Vec<u8> {
        let (here, _) = repository();
        let (number, base) = here.values().enumerate().find(|(_, object)| object.kind == Kind::Blob).unwrap();
        let to_first = [&[11, 5, 0x91, 6, 5][..]].concat();
        let to_base = [&[u8::try_from(base.data.len()).unwrap(), 7, 0x90, 4, 3][..], b"new"].concat();
        let recipe = [
            entry(2, b"hello world"),
            entry(1, b"100644 a\0\xfe\x04"),
            entry(0, b"no commit"),
            entry(4 | 8, &to_first),
            entry(4 | u8::try_from(number).unwrap() << 4, &to_base),
        ];
        recipe.concat()
    }

    #[test]
    fn objects_and_deltas_are_unfolded_and_what_was_borrowed_is_kept_with_them() {
        let (here, _) = repository();
        let sent = cooked(&mixed());
        for cut in 0..=sent.len() {
            let pack = read(&sent, cut, &here).unwrap();
            assert_eq!((pack.objects.len(), pack.deltas, pack.borrowed.len()), (5, 2, 1));
            assert!(pack.objects.values().any(|object| object.data == b"world"));
            assert!(pack.objects.values().any(|object| object.data == b"whatnew"));
        }
        assert!(read(&sent, sent.len(), &BTreeMap::new()).is_err(), "the base is nowhere");
        let kept = read(&sent, sent.len(), &here).unwrap().files(&sent).unwrap().pack;
        assert_eq!(read(&kept, kept.len(), &BTreeMap::new()).unwrap().objects.len(), 6);
    }

    #[test]
    fn no_bit_can_be_another_and_no_byte_less_or_more() {
        let (here, _) = repository();
        let sent = cooked(&mixed());
        for place in 0..sent.len() * 8 {
            let mut bytes = sent.clone();
            bytes[place / 8] ^= 1 << (place % 8);
            assert!(read(&bytes, bytes.len(), &here).is_err(), "bit {place}");
            // Even if somebody makes the checksum fit, it is the pack that was sent, or none.
            bytes.truncate(sent.len() - TAIL);
            let bytes = sealed(bytes);
            drop(read(&bytes, bytes.len(), &here).and_then(|pack| pack.files(&bytes)));
        }
        for end in 0..sent.len() {
            assert!(read(&sent[..end], end, &here).is_err(), "{end}");
        }
        assert!(read(&[&sent[..], b"x"].concat(), sent.len() + 1, &here).is_err());
    }

    #[test]
    fn what_unfolds_to_much_is_not_unfolded() {
        let (here, _) = repository();
        let head = |count: u8| [b"PACK\0\0\0\x02\0\0\0", &[count][..]].concat();
        // 64 MiB of zeros in an entry that says so, and in one that does not.
        let mut zeros = Vec::new();
        write_entry(&mut zeros, &Object { kind: Kind::Blob, data: vec![0; 64 << 20] }).unwrap();
        let bytes = sealed([&head(1)[..], &zeros].concat());
        assert_eq!(read(&bytes, bytes.len(), &here).unwrap_err(), Odd("a pack that unfolds to much"));
        let body = zeros.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
        let bytes = sealed([&head(1)[..], &[0x3f], &zeros[body..]].concat());
        assert_eq!(read(&bytes, bytes.len(), &here).unwrap_err(), Odd("an entry larger than it says"));
        // Deltas that declare a gigabyte, and many that double what there is.
        let big = cooked(&[entry(2, b"hello world"), entry(4 | 8, &[11, 0x80, 0x80, 0x80, 0x80, 4, 0x90, 11])].concat());
        assert_eq!(read(&big, big.len(), &here).unwrap_err(), Odd("a pack that unfolds to much"));
        let mut grown = vec![entry(2, &[b'x'; 128])];
        for power in 7..14_u32 {
            let sizes = |size: u32| [0x80 | (size & 0x7f) as u8, 0x80 | (size >> 7 & 0x7f) as u8, (size >> 14) as u8];
            let (from, to) = (1 << power, 2 << power);
            let copy = [0xb0, (from & 0xff) as u8, (from >> 8) as u8];
            grown
                .push(entry(4 | 8 | u8::try_from(power - 7).unwrap() << 4, &[&sizes(from)[..], &sizes(to), &copy, &copy].concat()));
        }
        let fine = cooked(&grown.concat());
        assert_eq!(read(&fine, fine.len(), &here).unwrap().objects.len(), 8);
        let many = sealed([b"PACK\0\0\0\x02\0\0\x04\0".to_vec(), vec![0; 100]].concat());
        assert_eq!(read(&many, many.len(), &here).unwrap_err(), Odd("a pack of many objects"));
    }
}
