//! What a client may send as a small pack, for the fuzzer. Its bytes are a recipe: compressed and named as they should be, so that what it
//! tries gets behind the checksums.

use std::collections::{BTreeMap, BTreeSet};

use gix::{
    ObjectId,
    hash::Kind::Sha1,
    objs::{CommitRefIter, Kind, TreeRefIter},
    odb::pack::index,
};

use super::{
    Files, Odd,
    connected::Here,
    pack::{Found, Object, Pack, Scan, name, sha1, unfold, write_entry},
    plain::{self, Mode},
};

const WHO: &str = "author a <b> 1 +0000\ncommitter a <b> 1 +0000\n\n";

/// What the repository has: a file in a folder, and a commit of it.
pub(super) fn repository() -> (BTreeMap<ObjectId, Object>, ObjectId) {
    let mut objects = BTreeMap::new();
    let mut put = |kind, data: Vec<u8>| {
        let object = Object { kind, data };
        let id = name(&object).expect("it is no collision");
        objects.insert(id, object);
        id
    };
    let file = put(Kind::Blob, b"what is here\n".repeat(8));
    let inner = put(Kind::Tree, [b"100644 file\0", file.as_slice()].concat());
    let outer = put(Kind::Tree, [b"100644 a\0", file.as_slice(), b"40000 b\0", inner.as_slice()].concat());
    let commit = put(Kind::Commit, format!("tree {outer}\n{WHO}").into_bytes());
    (objects, commit)
}

/// A pack by a recipe: for each entry what it is, how long its text is, and the text, in which 0xfe and 0xfd with a number stand for the
/// name of an object, as it is and as text.
pub(super) fn cooked(mut recipe: &[u8]) -> Vec<u8> {
    let mut names: Vec<ObjectId> = repository().0.into_keys().collect();
    let mut pack = b"PACK\0\0\0\x02\0\0\0\0".to_vec();
    let (mut count, mut starts) = (0_u32, Vec::new());
    while let Some((&[what, length], rest)) = recipe.split_first_chunk::<2>() {
        let (text, rest) = rest.split_at(rest.len().min(length.into()));
        recipe = rest;
        let mut data = Vec::new();
        let mut bytes = text.iter();
        while let Some(&byte) = bytes.next() {
            match (byte, bytes.len()) {
                (0xfd | 0xfe, 1..) => {
                    let number = bytes.next().map_or(0, |number| usize::from(*number));
                    let id = names[number % names.len()];
                    data.extend_from_slice(if byte == 0xfe { id.as_slice() } else { &[] });
                    data.extend_from_slice(if byte == 0xfd { id.to_string() } else { String::new() }.as_bytes());
                }
                _ => data.push(byte),
            }
        }
        let start = pack.len();
        let kind = [Kind::Commit, Kind::Tree, Kind::Blob, Kind::Tag][usize::from(what & 3)];
        let object = Object { kind, data };
        write_entry(&mut pack, &object).expect("memory takes it");
        if what & 4 != 0 {
            // A delta: the same compressed bytes behind another head.
            let head = pack[start..].iter().position(|byte| byte & 0x80 == 0).expect("a size ends") + 1;
            let kind: u8 = if what & 8 != 0 { 6 } else { 7 };
            pack[start] = pack[start] & 0x8f | kind << 4;
            let base = match (kind, starts.get(usize::from(what >> 4) % starts.len().max(1))) {
                (6, Some(base)) => {
                    let distance: usize = start - base;
                    let low = (distance & 0x7f) as u8;
                    if distance < 0x80 { vec![low] } else { vec![0x80 | (((distance >> 7) - 1_usize) & 0x7f) as u8, low] }
                }
                (6, None) => vec![0],
                _ => names[usize::from(what >> 4) % names.len()].as_slice().to_vec(),
            };
            pack.splice(start + head..start + head, base);
        } else if let Ok(id) = name(&object) {
            names.push(id);
        }
        starts.push(start);
        count += 1;
    }
    pack[8..12].copy_from_slice(&count.to_be_bytes());
    sealed(pack)
}

/// A pack with the checksum that it should have.
pub(super) fn sealed(mut pack: Vec<u8>) -> Vec<u8> {
    let sum = sha1(&[&pack]).expect("it is no collision");
    pack.extend_from_slice(sum.as_slice());
    pack
}

/// Reads a pack as it comes in: in two parts, cut at `cut`.
pub(super) fn read(bytes: &[u8], cut: usize, here: &BTreeMap<ObjectId, Object>) -> Result<Pack, Odd> {
    let mut scan = Scan::default();
    let mut found = scan.go_on(&bytes[..cut.min(bytes.len())])?;
    if cut < bytes.len() {
        if found == Found::End {
            return Err(Odd("something behind it"));
        }
        found = scan.go_on(bytes)?;
    }
    if found == Found::More {
        return Err(Odd("it goes on"));
    }
    unfold(bytes, &scan.entries(), |id, most| Ok(here.get(id).filter(|object| object.data.len() as u64 <= most).cloned()))
}

/// A pack that is taken is what it says, has a bound, and becomes one that needs nothing else; what is plain is so for others, too; and a
/// commit of which everything is said to be here leads to nothing that is not.
pub(in crate::serve) fn pack(bytes: &[u8]) {
    let Some((&first, rest)) = bytes.split_first() else { return };
    let sent = if first & 1 == 0 { cooked(rest) } else { sealed([b"PACK\0\0\0\x02\0\0\0", rest].concat()) };
    let (here, tip) = repository();
    let (whole, parts) = (read(&sent, sent.len(), &here), read(&sent, usize::from(first), &here));
    assert_eq!(whole.is_ok(), parts.is_ok(), "however it comes in");
    let Ok(taken) = whole else { return };
    assert!(taken.objects.values().map(|object| object.data.len()).sum::<usize>() <= 16 << 20);
    for (id, object) in &taken.objects {
        assert_eq!(gix::objs::compute_hash(Sha1, object.kind, &object.data).as_ref().ok(), Some(id));
        match object.kind {
            Kind::Tree => {
                if let Ok(entries) = plain::tree(&object.data) {
                    let theirs: Vec<_> = TreeRefIter::from_bytes(&object.data, Sha1).map(|entry| entry.expect("a tree")).collect();
                    assert_eq!(entries.len(), theirs.len());
                    assert!(entries.iter().zip(theirs).all(|(ours, theirs)| theirs.filename == ours.name && ours.id == theirs.oid));
                }
            }
            Kind::Commit => {
                if let Ok(commit) = plain::commit(&object.data) {
                    let mut theirs = CommitRefIter::from_bytes(&object.data, Sha1);
                    assert_eq!(theirs.tree_id().ok(), Some(commit.tree));
                    assert!(CommitRefIter::from_bytes(&object.data, Sha1).parent_ids().eq(commit.parents));
                    assert!(CommitRefIter::from_bytes(&object.data, Sha1).all(|token| token.is_ok()));
                }
            }
            Kind::Blob | Kind::Tag => {}
        }
        let tips = BTreeSet::from([tip]);
        if Here::new(&taken.objects, &tips, |id, _| Ok(here.get(id).cloned())).check(*id).is_ok() {
            let needed = closure(*id, &taken.objects, &here);
            assert!(taken.objects.keys().all(|sent| needed.contains(sent)), "something of no use");
        }
    }
    let (count, names): (usize, Vec<ObjectId>) = (
        taken.objects.len() + taken.borrowed.len(),
        taken.objects.keys().chain(taken.borrowed.iter().map(|(id, _)| id)).copied().collect(),
    );
    let Ok(Files { pack: kept, index: listed, sum }) = taken.files(&sent) else { return };
    assert!(kept.ends_with(sum.as_slice()));
    let again = read(&kept, kept.len(), &BTreeMap::new()).expect("it needs nothing else");
    assert_eq!((again.objects.len(), again.borrowed.len()), (count, 0));
    let index = index::File::from_data(listed, "index".into(), Sha1).expect("an index");
    for id in names {
        assert!(again.objects.contains_key(&id) && index.lookup(id).is_some());
    }
}

/// All that a commit leads to; panics if something is nowhere, or is not what it should be.
fn closure(commit: ObjectId, sent: &BTreeMap<ObjectId, Object>, here: &BTreeMap<ObjectId, Object>) -> BTreeSet<ObjectId> {
    let (mut todo, mut seen) = (vec![(commit, Kind::Commit)], BTreeSet::new());
    while let Some((id, kind)) = todo.pop() {
        let object = sent.get(&id).or_else(|| here.get(&id)).expect("it is here");
        assert_eq!(object.kind, kind);
        if !seen.insert(id) {
            continue;
        }
        if kind == Kind::Commit {
            let (found, _) = plain::leads_to(&object.data).expect("a commit");
            todo.extend(found.parents.into_iter().map(|parent| (parent, Kind::Commit)));
            todo.push((found.tree, Kind::Tree));
        } else if kind == Kind::Tree {
            let entries = plain::entries(&object.data).expect("a tree");
            todo.extend(entries.iter().map(|entry| (entry.id, if entry.mode == Mode::Tree { Kind::Tree } else { Kind::Blob })));
        }
    }
    seen
}
