//! What a journal of pushes says, as bytes, and what is left to be done after it. Pure.
//!
//! A payload is the length of a JSON text (4 bytes, little-endian), that text, and behind it the files of a push: its pack, then its index.

use std::collections::BTreeSet;

use gix::ObjectId;
use serde::{Deserialize, Serialize};

use super::files::Files;
use crate::spec::{
    caller::Caller,
    name::{Commit, RefName},
};

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub(super) enum Entry {
    /// One ref is to move, and its pack to be there. With `who`, the agent is to hear of it.
    Push { who: Option<Caller>, reference: RefName, old: Commit, new: Commit, pack: Option<Pack> },
    /// git may move any refs from here on, and syncs them itself. What is before this is on the disk. With `who`, the agent is to hear of
    /// it.
    Git { who: Option<Caller> },
    /// The agent has heard of that entry, or has not to; entries are counted from 0.
    Heard { entry: u64 },
    /// What came before that entry is on the disk.
    Settled { before: u64 },
}

/// What lies behind the text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Pack {
    /// What it is called, without `pack-`.
    pub sum: String,
    /// Its bytes; the others are its index.
    pub size: u64,
}

impl Entry {
    /// A push as it is written down.
    pub fn push(who: Option<&Caller>, reference: &RefName, old: &Commit, new: &Commit, files: Option<&Files>) -> Self {
        Self::Push {
            who: who.cloned(),
            reference: reference.clone(),
            old: old.clone(),
            new: new.clone(),
            pack: files.map(|files| Pack { sum: files.sum.to_string(), size: files.pack.len() as u64 }),
        }
    }

    /// As a payload, with the files that belong to it.
    pub fn payload(&self, files: Option<&Files>) -> Vec<u8> {
        let text = serde_json::to_vec(self).expect("plain texts and numbers");
        let length = u32::try_from(text.len()).expect("names are short");
        let (pack, index) = files.map_or((&[][..], &[][..]), |files| (&files.pack, &files.index));
        [&length.to_le_bytes()[..], &text, pack, index].concat()
    }

    /// What a payload says; `None` if it is none of ours.
    pub fn read(payload: &[u8]) -> Option<(Self, Option<Files>)> {
        let (length, rest) = payload.split_first_chunk()?;
        let (text, behind) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        let entry: Self = serde_json::from_slice(text).ok()?;
        let files = match &entry {
            Self::Push { pack: Some(Pack { sum, size }), .. } => {
                let (pack, index) = behind.split_at_checked(usize::try_from(*size).ok()?)?;
                let sum = ObjectId::from_hex(sum.as_bytes()).ok()?;
                Some(Files { pack: pack.to_vec(), index: index.to_vec(), sum })
            }
            _ => None,
        };
        Some((entry, files))
    }
}

/// What is left to be done after these entries.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Left {
    /// Pushes that may not be on the disk but here, in order.
    pub redo: Vec<u64>,
    /// Entries that the agent has not heard of, in order.
    pub unheard: BTreeSet<u64>,
}

impl Left {
    /// Looks through all entries of a journal.
    pub fn after<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Self {
        let mut left = Self::default();
        for (entry, number) in entries.into_iter().zip(0..) {
            match entry {
                Entry::Push { who, .. } => {
                    left.redo.push(number);
                    if who.is_some() {
                        left.unheard.insert(number);
                    }
                }
                Entry::Git { who } => {
                    left.redo.clear();
                    if who.is_some() {
                        left.unheard.insert(number);
                    }
                }
                Entry::Heard { entry } => drop(left.unheard.remove(entry)),
                Entry::Settled { before } => left.redo.retain(|known| known >= before),
            }
        }
        left
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.redo.is_empty() && self.unheard.is_empty()
    }
}

/// What the agent is to be told of a default branch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tell {
    /// Who pushed it.
    pub who: Caller,
    pub commit: Commit,
}

/// The last push of `branch` that was to be deployed, if it is one of the unheard: if it is not, the agent has nothing to hear of those
/// before. `now` is where the branch is. What git did is known by that: by where the next push found the branch, or by where it is now.
pub(super) fn untold<'a>(
    entries: impl IntoIterator<Item = &'a Entry>,
    unheard: &BTreeSet<u64>,
    branch: &RefName,
    now: &Commit,
) -> Option<Tell> {
    let pushes: Vec<_> = entries
        .into_iter()
        .zip(0..)
        .filter_map(|(entry, number)| match entry {
            Entry::Push { who, reference, old, new, .. } if reference == branch => Some((number, who, Some((old, new)))),
            Entry::Git { who } => Some((number, who, None)),
            _ => None,
        })
        .collect();
    let (mut last, mut at) = (None, None);
    for (index, (number, who, moved)) in pushes.iter().enumerate() {
        let later = || pushes[index + 1..].iter().find_map(|(_, _, moved)| moved.map(|(old, _)| old));
        let found = moved.map_or_else(|| later().unwrap_or(now), |(_, new)| new);
        // A git that left the branch where it was, or nowhere, has pushed another.
        if (moved.is_some() || at != Some(found)) && found.as_str().bytes().any(|digit| digit != b'0') {
            last = who.as_ref().map(|who| (*number, who, found)).or(last);
        }
        at = Some(found);
    }
    let (_, who, commit) = last.filter(|(number, ..)| unheard.contains(number))?;
    Some(Tell { who: who.clone(), commit: commit.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who() -> Caller {
        Caller::new(crate::spec::access::fingerprint(b"ann"), "192.0.2.7".parse().unwrap())
    }

    fn push(who: Option<&Caller>, files: Option<&Files>) -> Entry {
        let [old, new] = ["1", "2"].map(|digit| digit.repeat(40).parse().unwrap());
        Entry::push(who, &"refs/heads/main".parse().unwrap(), &old, &new, files)
    }

    #[test]
    fn an_entry_is_read_as_it_was_written_and_nothing_else_is_one() {
        let files =
            Files { pack: b"PACK and more".to_vec(), index: b"\xfftOc".to_vec(), sum: ObjectId::null(gix::hash::Kind::Sha1) };
        let all = [
            (push(Some(&who()), Some(&files)), Some(files)),
            (push(None, None), None),
            (Entry::Git { who: Some(who()) }, None),
            (Entry::Heard { entry: 7 }, None),
            (Entry::Settled { before: 9 }, None),
        ];
        for (entry, files) in all {
            let payload = entry.payload(files.as_ref());
            assert_eq!(Entry::read(&payload), Some((entry, files.clone())));
            // Cut anywhere it is none, but that an index may be shorter: the check of the record is what keeps it whole.
            let least = payload.len() - files.map_or(0, |files| files.index.len());
            assert!((0..least).all(|end| Entry::read(&payload[..end]).is_none()));
        }
        assert_eq!(Entry::read(b"\xff\xff\xff\xff{}"), None);
    }

    #[test]
    fn what_is_left_is_what_nobody_said_is_done() {
        let (told, untold, git) = (push(Some(&who()), None), push(None, None), Entry::Git { who: Some(who()) });
        let left = |entries: &[&Entry]| {
            let left = Left::after(entries.iter().copied());
            (left.redo, left.unheard.into_iter().collect::<Vec<_>>())
        };
        assert_eq!(left(&[]), (vec![], vec![]));
        assert_eq!(left(&[&told, &untold, &told]), (vec![0, 1, 2], vec![0, 2]));
        assert_eq!(left(&[&told, &told, &Entry::Heard { entry: 0 }]), (vec![0, 1], vec![1]));
        assert_eq!(left(&[&told, &told, &Entry::Settled { before: 1 }]), (vec![1], vec![0, 1]));
        // git may have moved the same ref since.
        assert_eq!(left(&[&told, &git, &untold]), (vec![2], vec![0, 1]));
        let done = left(&[&told, &git, &Entry::Heard { entry: 1 }, &Entry::Heard { entry: 0 }, &Entry::Heard { entry: 0 }]);
        assert_eq!(done, (vec![], vec![]));
    }

    #[test]
    fn the_agent_is_told_of_the_last_push_of_the_branch_and_whose_it_was() {
        let commit = |digit: &str| -> Commit { digit.repeat(40).parse().unwrap() };
        let named = |name: &str| Caller::new(crate::spec::access::fingerprint(name.as_bytes()), "192.0.2.7".parse().unwrap());
        let push = |who: &str, branch: &str, [old, new]: [&str; 2]| {
            let who = (!who.is_empty()).then(|| named(who));
            Entry::push(who.as_ref(), &branch.parse().unwrap(), &commit(old), &commit(new), None)
        };
        let (main, other) = ("refs/heads/main", "refs/heads/other");
        let git = |who: &str| Entry::Git { who: (!who.is_empty()).then(|| named(who)) };
        let told = |entries: &[Entry], heard: &[u64], now: &str| {
            let unheard = (0..9).filter(|number| !heard.contains(number)).collect();
            untold(entries, &unheard, &main.parse().unwrap(), &commit(now)).map(|tell| (tell.who, tell.commit))
        };
        let is = |who: &str, digit: &str| Some((named(who), commit(digit)));
        let two = [push("ann", main, ["0", "1"]), push("bob", main, ["1", "2"])];
        assert_eq!((told(&[], &[], "1"), told(&two, &[], "2"), told(&two, &[1], "2")), (None, is("bob", "2"), None));
        // What was only planned is not deployed, also if it is where the branch is.
        assert_eq!(told(&[two[0].clone(), push("", main, ["1", "2"])], &[], "2"), is("ann", "1"));
        assert_eq!(told(&[git("ann"), push("", main, ["1", "2"])], &[], "2"), is("ann", "1"));
        assert_eq!(told(&[two[0].clone(), git("")], &[], "2"), is("ann", "1"));
        // Other branches.
        assert_eq!(told(&[two[0].clone(), push("bob", other, ["0", "2"])], &[], "1"), is("ann", "1"));
        assert_eq!(told(&[two[0].clone(), git("bob")], &[], "1"), is("ann", "1"));
        assert_eq!(told(&[git("bob"), push("ann", main, ["0", "1"])], &[1], "1"), None);
        // git has moved it.
        assert_eq!(told(&[two[0].clone(), git("bob")], &[], "2"), is("bob", "2"));
        assert_eq!(told(&[two[0].clone(), git("bob"), git("ann")], &[], "2"), is("bob", "2"));
        assert_eq!(told(&[git("bob"), push("ann", main, ["2", "3"])], &[], "3"), is("ann", "3"));
    }
}
