//! Whether a repository has everything of a commit when it has taken a pack: what is not in the pack has to be in a commit that a ref leads
//! to, for all of that is here. Only what is quickly seen to be so counts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use gix::{ObjectId, objs::Kind};

use super::{
    Odd,
    pack::Object,
    plain::{self, Commit, Mode},
};

/// The most commits that are looked through for the parents.
const MAX_COMMITS: usize = 256;
/// The most trees of the parents that are looked through.
const MAX_TREES: usize = 4000;
/// The most parents outside of the pack.
const MAX_PARENTS: usize = 16;
/// The largest commit that is read for this, and the largest tree.
const MAX_OBJECT: u64 = 4 << 20;
const MAX_TREE: u64 = 1 << 20;
/// The most bytes of all trees that were sent, and of those they stand beside: some hundred thousand entries.
const MAX_TREES_BYTES: usize = 4 << 20;

const NO_COMMIT: Odd = Odd("something that should be a commit");

/// What is here: the objects of a pack, those of the repository, and where its refs are.
pub(super) struct Here<'a, F> {
    pub sent: &'a BTreeMap<ObjectId, Object>,
    pub tips: &'a BTreeSet<ObjectId>,
    pub read: F,
    seen: BTreeSet<ObjectId>,
    /// How many bytes of trees may still be looked at.
    left: usize,
}

impl<'a, F: FnMut(&ObjectId, u64) -> Result<Option<Object>, Odd>> Here<'a, F> {
    pub fn new(sent: &'a BTreeMap<ObjectId, Object>, tips: &'a BTreeSet<ObjectId>, read: F) -> Self {
        Self { sent, tips, read, seen: BTreeSet::new(), left: MAX_TREES_BYTES }
    }

    /// Whether everything of `new` is here, and nothing was sent that it does not need. What was sent is looked at by the way: all of it
    /// is plain.
    pub fn check(&mut self, new: ObjectId) -> Result<(), Odd> {
        if !self.sent.contains_key(&new) {
            if !self.sent.is_empty() {
                return Err(Odd("a commit that was not sent"));
            }
            return self.parents(&BTreeSet::from([new])).map(drop);
        }
        let (mut todo, mut trees, mut outside) = (vec![new], Vec::new(), BTreeSet::new());
        while let Some(id) = todo.pop() {
            let Some(object) = self.sent.get(&id) else {
                outside.insert(id);
                continue;
            };
            if object.kind != Kind::Commit {
                return Err(NO_COMMIT);
            }
            if !self.seen.insert(id) {
                continue;
            }
            let commit = plain::commit(&object.data)?;
            trees.push(commit.tree);
            todo.extend(commit.parents);
        }
        if outside.len() > MAX_PARENTS {
            return Err(Odd("a commit of many parents"));
        }
        let before = self.parents(&outside)?;
        let missing = self.trees(&trees, &before)?;
        self.find(missing, &before)?;
        if self.seen.len() == self.sent.len() { Ok(()) } else { Err(Odd("an object that nothing leads to")) }
    }

    /// A commit of the repository.
    fn commit_here(&mut self, id: &ObjectId) -> Result<Commit, Odd> {
        let object = (self.read)(id, MAX_OBJECT)?.filter(|object| object.kind == Kind::Commit);
        object.and_then(|object| plain::leads_to(&object.data).map(|(commit, _)| commit)).ok_or(NO_COMMIT)
    }

    /// The trees of commits that a ref has to lead to.
    fn parents(&mut self, outside: &BTreeSet<ObjectId>) -> Result<Vec<ObjectId>, Odd> {
        let mut trees = Vec::new();
        let mut behind: BTreeSet<ObjectId> = outside.clone();
        for id in outside.intersection(self.tips) {
            trees.push(self.commit_here(id)?.tree);
            behind.remove(id);
        }
        if behind.is_empty() {
            return Ok(trees);
        }
        let mut todo: VecDeque<ObjectId> = self.tips.iter().copied().collect();
        let mut seen = BTreeSet::new();
        while let Some(id) = todo.pop_front() {
            if !seen.insert(id) {
                continue;
            }
            if seen.len() > MAX_COMMITS {
                break;
            }
            let object = (self.read)(&id, MAX_OBJECT)?.ok_or(Odd("a commit that is not here"))?;
            // A tag is no way to anything here.
            if object.kind != Kind::Commit {
                continue;
            }
            let (commit, _) = plain::leads_to(&object.data).ok_or(NO_COMMIT)?;
            if behind.remove(&id) {
                trees.push(commit.tree);
            }
            if behind.is_empty() {
                return Ok(trees);
            }
            todo.extend(commit.parents);
        }
        Err(Odd("a commit that no ref is seen to lead to"))
    }

    /// Goes through the trees that were sent, beside the trees of before. What is neither sent nor at the same place before is returned.
    fn trees(&mut self, new: &[ObjectId], before: &[ObjectId]) -> Result<BTreeSet<(ObjectId, Mode)>, Odd> {
        let mut missing = BTreeSet::new();
        let mut todo: Vec<(ObjectId, Vec<ObjectId>)> = new.iter().map(|tree| (*tree, before.to_vec())).collect();
        while let Some((id, before)) = todo.pop() {
            let Some(object) = self.sent.get(&id) else {
                if !before.contains(&id) {
                    missing.insert((id, Mode::Tree));
                }
                continue;
            };
            // First: an object may have been seen as something else.
            if object.kind != Kind::Tree {
                return Err(Odd("something that should be a tree"));
            }
            if !self.seen.insert(id) {
                continue;
            }
            self.spend(&object.data)?;
            let entries = plain::tree(&object.data)?;
            let old: Vec<Object> = before.iter().map(|id| self.tree_here(id)).collect::<Result<_, _>>()?;
            old.iter().try_for_each(|tree| self.spend(&tree.data))?;
            // What there was of each name.
            let mut there: BTreeMap<&[u8], Vec<(ObjectId, Mode)>> = BTreeMap::new();
            for tree in &old {
                for entry in plain::entries(&tree.data).ok_or(Odd("a tree of before that cannot be read"))? {
                    there.entry(entry.name).or_default().push((entry.id, entry.mode));
                }
            }
            for entry in entries {
                let was = there.get(entry.name).map(Vec::as_slice).unwrap_or_default();
                if entry.name == plain::ATTRIBUTES && !was.contains(&(entry.id, entry.mode)) {
                    return Err(Odd("new attributes"));
                }
                match (entry.mode, self.sent.get(&entry.id)) {
                    (Mode::Tree, _) => {
                        let folders = was.iter().filter(|(_, mode)| *mode == Mode::Tree).map(|(id, _)| *id);
                        let mut folders: Vec<ObjectId> = folders.collect();
                        folders.dedup();
                        todo.push((entry.id, folders));
                    }
                    (mode, Some(object)) => {
                        let link = mode == Mode::File || plain::is_plain_link(&object.data);
                        if object.kind != Kind::Blob || !link {
                            return Err(Odd("something that should be a plain file"));
                        }
                        self.seen.insert(entry.id);
                    }
                    (mode, None) if was.contains(&(entry.id, mode)) => {}
                    (mode, None) => drop(missing.insert((entry.id, mode))),
                }
            }
        }
        Ok(missing)
    }

    /// Counts the bytes of trees that are looked at together: an entry takes more room here than there.
    fn spend(&mut self, tree: &[u8]) -> Result<(), Odd> {
        self.left = self.left.checked_sub(tree.len()).ok_or(Odd("trees of many entries"))?;
        Ok(())
    }

    fn tree_here(&mut self, id: &ObjectId) -> Result<Object, Odd> {
        let object = (self.read)(id, MAX_TREE)?.ok_or(Odd("a tree that is not here"))?;
        if object.kind == Kind::Tree { Ok(object) } else { Err(Odd("something that should be a tree")) }
    }

    /// Looks for what is missing anywhere in the trees of before: a file may have moved.
    fn find(&mut self, mut missing: BTreeSet<(ObjectId, Mode)>, before: &[ObjectId]) -> Result<(), Odd> {
        let (mut todo, mut seen) = (before.to_vec(), BTreeSet::new());
        missing.retain(|(id, mode)| *mode != Mode::Tree || !before.contains(id));
        while !missing.is_empty() {
            let id = todo.pop().ok_or(Odd("an object that was not sent"))?;
            if !seen.insert(id) {
                continue;
            }
            if seen.len() > MAX_TREES {
                return Err(Odd("an object that is not found soon"));
            }
            let tree = self.tree_here(&id)?;
            for entry in plain::entries(&tree.data).ok_or(Odd("a tree of before that cannot be read"))? {
                missing.remove(&(entry.id, entry.mode));
                if entry.mode == Mode::Tree {
                    todo.push(entry.id);
                }
            }
        }
        Ok(())
    }
}
