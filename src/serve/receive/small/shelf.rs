//! Reads of the objects that a repository has, with an end: what a tenant has put there may unfold to anything.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use gix::{
    ObjectId,
    hash::Kind::Sha1,
    odb::{
        loose,
        pack::{
            self,
            data::{decode::entry::ResolvedBase, entry::Header},
        },
    },
    zlib::Inflate,
};

use super::{Odd, pack::Object};

/// The most that one read may take of memory, with all that it is unfolded from.
const MOST_AT_ONCE: usize = 16 << 20;
/// The most bytes of all that is read for one push.
const MOST: u64 = 32 << 20;
/// The longest row of deltas that is followed; git makes none of more than 50.
const DEEPEST: usize = 64;
/// How long reading for one push may take. Each step of a row can make megabytes of a few bytes, and there may be many such rows.
const PATIENCE: Duration = Duration::from_secs(3);

/// The objects of one repository.
pub(super) struct Shelf {
    loose: loose::Store,
    /// The last that was made is the first that is asked.
    packs: Vec<Pack>,
    left: u64,
    opened: Instant,
}

/// A pack, opened when it is needed.
struct Pack {
    path: PathBuf,
    index: Option<pack::index::File>,
    data: Option<pack::data::File>,
}

const UNREADABLE: Odd = Odd("a repository that cannot be read");

impl Shelf {
    /// The objects of the repository at `path`.
    pub fn open(path: &Path) -> Result<Self, Odd> {
        let objects = path.join("objects");
        if objects.join("info/alternates").exists() {
            return Err(Odd("a repository that leans on another"));
        }
        let mut packs: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(objects.join("pack")).map_err(|_| UNREADABLE)?.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "idx") {
                let made = entry.metadata().and_then(|found| found.modified()).map_err(|_| UNREADABLE)?;
                packs.push((made, path));
            }
        }
        packs.sort();
        let packs = packs.into_iter().rev().map(|(_, path)| Pack { path, index: None, data: None }).collect();
        let options = loose::Options { alloc_limit_bytes: Some(MOST_AT_ONCE), ..loose::Options::default() };
        Ok(Self { loose: loose::Store::at_opts(objects, Sha1, options), packs, left: MOST, opened: Instant::now() })
    }

    /// The object of that name, of at most so many bytes.
    pub fn read(&mut self, id: &ObjectId, most: u64) -> Result<Option<Object>, Odd> {
        if self.opened.elapsed() > PATIENCE {
            return Err(Odd("a repository that is slow to read"));
        }
        let most = most.min(self.left);
        let found = match self.packed(id)? {
            Some(found) => Some(found),
            None => self.loose(id, most)?,
        };
        let Some(object) = found else { return Ok(None) };
        let size = object.data.len() as u64;
        if size > most {
            return Err(Odd("an object that is too large"));
        }
        self.left -= size;
        Ok(Some(object))
    }

    fn packed(&mut self, id: &ObjectId) -> Result<Option<Object>, Odd> {
        for pack in &mut self.packs {
            let index = match &mut pack.index {
                Some(index) => index,
                none => none.insert(pack::index::File::at(&pack.path, Sha1).map_err(|_| UNREADABLE)?),
            };
            let Some(number) = index.lookup(id) else { continue };
            let data = match &mut pack.data {
                Some(data) => data,
                none => {
                    let opened = pack::data::File::at(pack.path.with_extension("pack"), Sha1).map_err(|_| UNREADABLE)?;
                    none.insert(opened.with_alloc_limit_bytes(Some(MOST_AT_ONCE)))
                }
            };
            let entry = data.entry(index.pack_offset_at_index(number)).map_err(|_| UNREADABLE)?;
            let place = |base: &gix::oid| index.lookup(base).map(|number| index.pack_offset_at_index(number));
            let (mut below, mut deep) = (entry.clone(), 0);
            loop {
                let offset = match below.header {
                    Header::OfsDelta { base_distance } => below.checked_base_pack_offset(base_distance),
                    Header::RefDelta { base_id } => place(&base_id),
                    _ => break,
                };
                deep += 1;
                if deep > DEEPEST {
                    return Err(Odd("an object of many deltas"));
                }
                below = data.entry(offset.ok_or(UNREADABLE)?).map_err(|_| UNREADABLE)?;
            }
            let base = |base: &gix::oid, _: &mut Vec<u8>| {
                place(base).map(|offset| data.entry(offset).map(ResolvedBase::InPack)).transpose()
            };
            let mut bytes = Vec::new();
            let decoded = data.decode_entry(entry, &mut bytes, &mut Inflate::default(), &base, &mut pack::cache::Never);
            let kind = decoded.map_err(|_| UNREADABLE)?.kind;
            return Ok(Some(Object { kind, data: bytes }));
        }
        Ok(None)
    }

    fn loose(&self, id: &ObjectId, most: u64) -> Result<Option<Object>, Odd> {
        match self.loose.try_header(id).map_err(|_| UNREADABLE)? {
            None => return Ok(None),
            Some((size, _)) if size > most => return Err(Odd("an object that is too large")),
            Some(_) => {}
        }
        let mut bytes = Vec::new();
        let found = self.loose.try_find(id, &mut bytes).map_err(|_| UNREADABLE)?;
        Ok(found.map(|found| Object { kind: found.kind, data: found.data.to_vec() }))
    }
}
