//! Power cuts: only what was waited for is on the disk, and of everything else any part. git says whether what is there then is whole.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use gix::ObjectId;

use super::{Files, Journals, Mark, entry::Tell, recover::Found};
use crate::{
    serve::{
        git::{self, Place},
        pktline::Update,
        receive::{
            lasting,
            small::{
                kill_tests,
                refs::{self, Lock, Now},
            },
        },
    },
    spec::{access::fingerprint, caller::Caller, name::RefName},
};

fn run(at: &Path, words: &[&str], input: &[u8]) -> String {
    String::from_utf8_lossy(&kill_tests::run(at, words, input)).trim().to_owned()
}

fn main() -> RefName {
    "refs/heads/main".parse().unwrap()
}

fn who(name: &str) -> Caller {
    Caller::new(fingerprint(name.as_bytes()), "192.0.2.7".parse().unwrap())
}

/// A work tree, and the bare repository that it is pushed to.
struct World {
    top: tempfile::TempDir,
    commits: Vec<String>,
}

impl World {
    /// With so many commits, of which none was pushed.
    fn new(commits: usize) -> Self {
        let top = tempfile::tempdir().unwrap();
        let mut world = Self { top, commits: vec!["0".repeat(40)] };
        fs::create_dir_all(world.bare()).unwrap();
        run(&world.bare(), &["init", "-q", "--bare", "--template="], b"");
        run(world.top.path(), &["init", "-q", "work"], b"");
        let work = world.top.path().join("work");
        for n in 1..=commits {
            fs::write(work.join("file"), format!("{n}\n").repeat(100)).unwrap();
            run(&work, &["add", "-A"], b"");
            run(&work, &["commit", "-q", "-m", &n.to_string()], b"");
            world.commits.push(run(&work, &["rev-parse", "HEAD"], b""));
        }
        world
    }

    fn bare(&self) -> PathBuf {
        self.top.path().join("repos/app.git")
    }

    fn journals(&self) -> Journals {
        Journals::new(self.top.path().join("repos"))
    }

    /// What a push of the n-th commit brings.
    fn files(&self, n: usize) -> Files {
        let at = self.top.path().join("packed");
        fs::create_dir_all(&at).unwrap();
        let wanted = match n {
            1 => format!("{}\n", self.commits[1]),
            n => format!("{}\n^{}\n", self.commits[n], self.commits[n - 1]),
        };
        let base = at.join("pack");
        let sum = run(&self.top.path().join("work"), &["pack-objects", "--revs", "-q", base.to_str().unwrap()], wanted.as_bytes());
        let read = |name: &str| fs::read(at.join(format!("pack-{sum}.{name}"))).unwrap();
        let pack = read("pack");
        // Newer gits name a pack otherwise.
        let sum = ObjectId::try_from(&pack[pack.len() - 20..]).unwrap();
        Files { index: read("idx"), pack, sum }
    }

    /// From the commit before to the n-th.
    fn update(&self, n: usize, name: &RefName) -> Update {
        let [old, new] = [n - 1, n].map(|n| self.commits[n].parse().unwrap());
        Update { old, new, reference: name.to_string() }
    }

    /// Pushes the n-th commit to a branch that is at the one before, as the doors do it.
    fn push(&self, journals: &Journals, n: usize, name: &RefName, by: &str) -> Option<Mark> {
        let update = self.update(n, name);
        let (bare, files) = (self.bare(), self.files(n));
        let done = || {
            files.write(&bare)?.name()?;
            let mut lock = Lock::take(bare.join(name.as_str()))?;
            lock.write(update.new.as_str())?;
            lock.put()?;
            lasting::give_default(&bare, std::slice::from_ref(&update));
            Ok(())
        };
        let place = Place::of(&bare).unwrap();
        journals.push(&bare, place, (name, &update), Some(&files), Some(&who(by)), done).unwrap()
    }

    /// Writes pushes down that are of this size and change nothing, as many as it takes for a journal of more than `bytes`.
    fn fill(&self, journals: &Journals, size: usize, bytes: u64) -> Vec<Mark> {
        let (bare, large) = (self.bare(), Files { pack: vec![7; size], ..self.files(1) });
        let [old, new] = [0, 1].map(|n| self.commits[n].parse().unwrap());
        let update = Update { old, new, reference: main().to_string() };
        let place = Place::of(&bare).unwrap();
        let mut marks = Vec::new();
        while marks.is_empty() || fs::metadata(self.journal()).unwrap().len() <= bytes {
            let taken = journals.push(&bare, place, (&main(), &update), Some(&large), Some(&who("ann")), || Ok(()));
            marks.push(taken.unwrap().unwrap());
        }
        marks
    }

    /// The next start.
    fn start(&self) -> (Journals, Vec<Found>) {
        git::sweep(&self.top.path().join("repos"));
        let journals = self.journals();
        let found = journals.recover();
        (journals, found)
    }

    /// Which commit `main` is at; the repository is whole.
    fn at(&self) -> usize {
        run(&self.bare(), &["fsck", "--strict", "--full"], b"");
        let now = match refs::now(&self.bare(), &main()).unwrap() {
            Now::At(id) => id.to_string(),
            other => panic!("{other:?}"),
        };
        self.commits.iter().position(|known| *known == now).unwrap()
    }

    fn journal(&self) -> PathBuf {
        super::book::newest(&self.bare()).unwrap().unwrap().1
    }
}

/// What may be left of a file that nobody waited for.
fn remains(whole: &[u8]) -> Vec<Option<Vec<u8>>> {
    let half = whole[..whole.len() / 2].to_vec();
    vec![None, Some(Vec::new()), Some(vec![0; whole.len()]), Some(half), Some(whole.to_vec())]
}

fn put(path: &Path, bytes: Option<&Vec<u8>>) {
    drop(fs::remove_file(path));
    if let Some(bytes) = bytes {
        fs::write(path, bytes).unwrap();
    }
}

#[test]
fn after_a_power_cut_a_push_is_there_whatever_of_its_files_was_not() {
    // The first push makes its ref and sets HEAD, the second moves it.
    for n in [1, 2] {
        let world = World::new(2);
        let (bare, journals) = (world.bare(), world.journals());
        if n == 2 {
            world.push(&journals, 1, &main(), "bob").unwrap().expect(0);
            journals.settle();
        }
        let head = if n == 1 { b"ref: refs/heads/nowhere\n".to_vec() } else { fs::read(bare.join("HEAD")).unwrap() };
        world.push(&journals, n, &main(), "ann");
        drop(journals);
        let (journal, pushed) = (fs::read(world.journal()).unwrap(), world.files(n));
        let path = |name: &str| bare.join(format!("objects/pack/pack-{}.{name}", pushed.sum));
        let reference = bare.join(main().as_str());
        let new = fs::read(&reference).unwrap();
        let mut refs = remains(&new);
        if n == 2 {
            refs[0] = Some(format!("{}\n", world.commits[1]).into_bytes());
        }
        let mut tried = 0;
        for pack in remains(&pushed.pack) {
            for index in remains(&pushed.index) {
                for at in &refs {
                    put(&path("pack"), pack.as_ref());
                    put(&path("idx"), index.as_ref());
                    put(&reference, at.as_ref());
                    put(&bare.join("HEAD"), Some(&head));
                    put(&world.journal(), Some(&journal));
                    let (_journals, found) = world.start();
                    assert_eq!((world.at(), found.len()), (n, 1), "push {n}");
                    let tell = Tell { who: who("ann"), commit: world.commits[n].parse().unwrap() };
                    assert_eq!((found[0].name.as_str(), &found[0].tell), ("app", &Some(tell)));
                    assert_eq!(run(&bare, &["symbolic-ref", "HEAD"], b""), "refs/heads/main");
                    tried += 1;
                }
            }
        }
        assert_eq!(tried, 125);
    }
}

#[test]
fn of_a_push_that_was_not_written_down_whole_there_is_nothing() {
    let world = World::new(2);
    let (bare, journals) = (world.bare(), world.journals());
    world.push(&journals, 1, &main(), "bob").unwrap().expect(0);
    journals.settle();
    let before = fs::read(world.journal()).unwrap();
    world.push(&journals, 2, &main(), "ann");
    drop(journals);
    let (after, pushed) = (fs::read(world.journal()).unwrap(), world.files(2));
    for end in (before.len()..=after.len()).rev().step_by(17) {
        for name in ["pack", "idx"] {
            put(&bare.join(format!("objects/pack/pack-{}.{name}", pushed.sum)), None);
        }
        put(&bare.join(main().as_str()), Some(&format!("{}\n", world.commits[1]).into_bytes()));
        put(&world.journal(), Some(&after[..end].to_vec()));
        let (_journals, found) = world.start();
        let whole = end == after.len();
        assert_eq!((world.at(), found.len()), if whole { (2, 1) } else { (1, 0) }, "{end} bytes");
    }
}

#[test]
fn a_row_of_pushes_ends_at_the_last_wherever_the_ref_was_left() {
    let world = World::new(4);
    let journals = world.journals();
    let marks: Vec<_> = (1..=4).map(|n| world.push(&journals, n, &main(), if n < 4 { "bob" } else { "ann" })).collect();
    drop((journals, marks));
    let journal = fs::read(world.journal()).unwrap();
    for left in 0..=4 {
        let at = (left > 0).then(|| format!("{}\n", world.commits[left]).into_bytes());
        put(&world.bare().join(main().as_str()), at.as_ref());
        for n in left + 1..=4 {
            put(&world.bare().join(format!("objects/pack/pack-{}.pack", world.files(n).sum)), None);
        }
        put(&world.journal(), Some(&journal));
        let (_journals, found) = world.start();
        assert_eq!((world.at(), &found[0].tell.as_ref().unwrap().who), (4, &who("ann")), "{left}");
    }
}

#[test]
fn what_git_has_done_since_is_not_undone() {
    let world = World::new(2);
    let (bare, journals) = (world.bare(), world.journals());
    let other: RefName = "refs/heads/other".parse().unwrap();
    world.push(&journals, 1, &main(), "bob");
    world.push(&journals, 1, &other, "bob");
    let mark = journals.git(&bare, Place::of(&bare).unwrap(), Some(&who("ann"))).unwrap().unwrap();
    run(&bare, &["update-ref", "-d", other.as_str()], b"");
    drop(journals);
    let (journals, found) = world.start();
    assert_eq!(refs::now(&bare, &other).unwrap(), Now::Nowhere);
    let tell = Tell { who: who("bob"), commit: world.commits[1].parse().unwrap() };
    assert_eq!((world.at(), found[0].marks.len(), &found[0].tell), (1, 3, &Some(tell)));
    drop(mark);
    // Told once, nothing is left for the start after the next.
    found[0].marks.iter().for_each(Mark::answered);
    drop(journals);
    assert!(world.start().1.is_empty());
}

#[test]
fn what_was_settled_is_not_needed_and_a_long_journal_is_begun_anew() {
    let world = World::new(2);
    let (bare, journals) = (world.bare(), world.journals());
    world.push(&journals, 1, &main(), "ann").unwrap().answered();
    journals.settle();
    assert!(super::locked(&journals.open).is_empty(), "nothing is kept open");
    put(&bare.join(main().as_str()), None);
    // Not even a lost ref is brought back: it was on the disk, so somebody took it away.
    assert!(world.start().1.is_empty());
    assert_eq!(refs::now(&bare, &main()).unwrap(), Now::Nowhere);
    let first = world.journal();
    let large = Files { pack: vec![7; 100_000], ..world.files(1) };
    let update = world.update(1, &main());
    let place = Place::of(&bare).unwrap();
    let mark = journals.push(&bare, place, (&main(), &update), Some(&large), Some(&who("ann")), || Ok(())).unwrap().unwrap();
    journals.settle();
    assert_eq!(world.journal(), first, "the agent has not heard of it");
    mark.answered();
    journals.push(&bare, place, (&main(), &update), None, None, || Ok(())).unwrap();
    journals.settle();
    assert_ne!(world.journal(), first);
    assert!(!first.exists() && fs::metadata(world.journal()).unwrap().len() < 100);
    drop(journals);
    assert!(world.start().1.is_empty());
}

#[test]
fn a_push_that_failed_is_taken_back_and_another_repository_of_the_same_name_is_let_alone() {
    let world = World::new(2);
    let (bare, journals) = (world.bare(), world.journals());
    let place = Place::of(&bare).unwrap();
    world.push(&journals, 1, &main(), "ann").unwrap().expect(0);
    let update = world.update(2, &main());
    let files = world.files(2);
    let push = |journals: &Journals| {
        journals.push(&bare, place, (&main(), &update), Some(&files), None, || Err(std::io::ErrorKind::StorageFull.into()))
    };
    assert!(push(&journals).is_err());
    drop(journals);
    let (journals, _) = world.start();
    assert_eq!(world.at(), 1);
    // Somebody else's by now.
    journals.settle();
    fs::rename(&bare, bare.with_file_name("old.git")).unwrap();
    fs::create_dir(&bare).unwrap();
    assert!(push(&journals).is_err() && journals.git(&bare, place, None).is_err());
    assert_eq!(fs::read_dir(&bare).unwrap().count(), 0);
}

#[test]
fn a_damaged_journal_is_set_aside_and_the_next_one_serves() {
    let world = World::new(2);
    let journals = world.journals();
    world.push(&journals, 1, &main(), "ann").unwrap().expect(0);
    world.push(&journals, 2, &main(), "ann").unwrap().expect(0);
    journals.settle();
    drop(journals);
    let mut bytes = fs::read(world.journal()).unwrap();
    bytes[40] ^= 1;
    put(&world.journal(), Some(&bytes));
    let (journals, found) = world.start();
    assert!(found.is_empty() && world.bare().join("damaged-pushes-1").exists());
    journals.git(&world.bare(), Place::of(&world.bare()).unwrap(), None).unwrap();
    assert_eq!(world.at(), 2);
}

#[test]
fn the_agent_is_told_of_the_last_push_that_is_to_be_deployed_and_of_none_that_it_knows() {
    let world = World::new(3);
    let (bare, journals) = (world.bare(), world.journals());
    let told = |world: &World| {
        let (_journals, found) = world.start();
        found.into_iter().next().and_then(|found| found.tell).map(|tell| tell.commit.to_string())
    };
    let marks: Vec<_> = [1, 2].map(|n| world.push(&journals, n, &main(), "ann").unwrap()).into();
    // Only planned.
    let update = world.update(3, &main());
    journals.push(&bare, Place::of(&bare).unwrap(), (&main(), &update), Some(&world.files(3)), None, || Ok(())).unwrap();
    assert_eq!(told(&world), Some(world.commits[2].clone()));
    marks[1].answered();
    assert_eq!(told(&world), None, "what came before is not told any more");
    assert_eq!(world.at(), 3);
}

#[test]
fn two_processes_do_not_have_the_journals_at_once() {
    let world = World::new(0);
    let alone = world.journals().alone(Duration::ZERO).unwrap();
    assert_eq!(world.journals().alone(Duration::from_millis(150)).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    drop(alone);
    world.journals().alone(Duration::ZERO).unwrap();
}

#[test]
fn what_is_pushed_while_all_is_settled_is_not_taken_for_settled() {
    let world = World::new(2);
    let journals = world.journals();
    world.fill(&journals, 100_000, 0)[0].answered();
    let shared = super::locked(&journals.open).values().next().unwrap().clone();
    // A look before the sync; meanwhile the journal is begun anew, and gets as many entries as it had.
    let then = super::locked(&shared).reached();
    super::locked(&shared).settled(then).unwrap();
    assert!(world.journal().ends_with("pushes-1"));
    for n in 1..=2 {
        world.push(&journals, n, &main(), "ann");
        super::locked(&shared).settled(then).unwrap();
    }
    drop(journals);
    put(&world.bare().join(main().as_str()), None);
    drop(world.start());
    assert_eq!(world.at(), 2);
}

#[test]
fn a_push_after_what_is_settled_stays_in_the_journal() {
    let world = World::new(2);
    let journals = world.journals();
    world.push(&journals, 1, &main(), "ann");
    let shared = super::locked(&journals.open).values().next().unwrap().clone();
    let then = super::locked(&shared).reached();
    world.push(&journals, 2, &main(), "ann");
    super::locked(&shared).settled(then).unwrap();
    assert!(super::locked(&shared).needed);
    drop(journals);
    put(&world.bare().join(main().as_str()), Some(&format!("{}\n", world.commits[1]).into_bytes()));
    drop(world.start());
    assert_eq!(world.at(), 2);
}

#[test]
fn a_branch_that_somebody_took_away_by_hand_is_not_brought_back_by_a_push_that_had_moved_it() {
    let world = World::new(2);
    let journals = world.journals();
    world.push(&journals, 1, &main(), "ann");
    journals.settle();
    world.push(&journals, 2, &main(), "ann");
    drop(journals);
    put(&world.bare().join(main().as_str()), None);
    drop(world.start());
    assert_eq!(refs::now(&world.bare(), &main()).unwrap(), Now::Nowhere);
}

#[test]
fn a_full_journal_takes_pushes_again_when_the_agent_has_heard_of_them() {
    let world = World::new(1);
    let journals = world.journals();
    let marks = world.fill(&journals, 2 << 20, super::MOST);
    let place = Place::of(&world.bare()).unwrap();
    let update = world.update(1, &main());
    let push = || journals.push(&world.bare(), place, (&main(), &update), None, None, || Ok(()));
    assert!(push().is_err(), "it is full");
    // git is asked then, which settles.
    journals.git(&world.bare(), place, None).unwrap();
    marks.iter().for_each(Mark::answered);
    push().unwrap();
    assert!(fs::metadata(world.journal()).unwrap().len() < 1000);
    // And when nobody pushes any more.
    let marks = world.fill(&journals, 100_000, 0);
    journals.settle();
    marks[0].answered();
    journals.settle();
    assert!(fs::metadata(world.journal()).unwrap().len() < 100);
}

#[tokio::test]
async fn what_only_git_was_asked_for_is_not_kept_open() {
    let world = World::new(1);
    let journals = std::sync::Arc::new(world.journals());
    let mark = journals.git(&world.bare(), Place::of(&world.bare()).unwrap(), Some(&who("ann"))).unwrap().unwrap();
    let keeping = tokio::spawn(std::sync::Arc::clone(&journals).keep_settled(Duration::from_millis(10)));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(super::locked(&journals.open).len(), 1, "the agent has not heard of it");
    mark.answered();
    for _ in 0..200 {
        if super::locked(&journals.open).is_empty() {
            return keeping.abort();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it is still open");
}

#[test]
fn a_journal_that_cannot_be_used_any_more_is_opened_by_one_only() {
    let world = World::new(1);
    let journals = world.journals();
    let (bare, place) = (world.bare(), Place::of(&world.bare()).unwrap());
    journals.git(&bare, place, None).unwrap();
    let [closed, again] = [(); 2].map(|()| {
        let shared = super::locked(&journals.open).values().next().unwrap().clone();
        super::locked(&shared).closed = true;
        journals.git(&bare, place, None).unwrap();
        shared
    });
    // Who closed the first comes back late.
    journals.forget(&closed);
    journals.forget(&again);
    assert_eq!(super::locked(&journals.open).len(), 1);
    drop(journals);
    let (_, read) = crate::journal::Journal::open(&world.journal(), 0).unwrap();
    assert_eq!(read.len(), 3, "none was written over another");
}

#[test]
fn a_push_is_whose_it_was_also_if_somebody_else_pushed_another_branch_since() {
    let world = World::new(1);
    let (bare, journals) = (world.bare(), world.journals());
    world.push(&journals, 1, &main(), "ann");
    journals.git(&bare, Place::of(&bare).unwrap(), Some(&who("bob"))).unwrap();
    run(&bare, &["update-ref", "refs/heads/other", &world.commits[1]], b"");
    drop(journals);
    assert_eq!(world.start().1[0].tell.as_ref().unwrap().who, who("ann"));
    // By git, as no small push brought it there.
    let journals = world.journals();
    journals.git(&bare, Place::of(&bare).unwrap(), Some(&who("bob"))).unwrap();
    let other = run(&world.top.path().join("work"), &["commit-tree", "-m", "x", "HEAD^{tree}"], b"");
    run(&world.top.path().join("work"), &["push", "-q", "-f", bare.to_str().unwrap(), &format!("{other}:refs/heads/main")], b"");
    drop(journals);
    assert_eq!(world.start().1[0].tell.as_ref().unwrap().who, who("bob"));
}

#[test]
fn when_a_sync_has_failed_nothing_is_called_settled_and_no_small_push_is_taken() {
    let world = World::new(2);
    let journals = world.journals();
    world.push(&journals, 1, &main(), "ann").unwrap().answered();
    journals.failed.store(true, super::Ordering::Relaxed);
    journals.settle();
    let (place, update) = (Place::of(&world.bare()).unwrap(), world.update(2, &main()));
    let error = journals.push(&world.bare(), place, (&main(), &update), None, None, || Ok(())).unwrap_err();
    assert!(error.to_string().contains("restart seed-serve") && journals.git(&world.bare(), place, None).is_err());
    drop(journals);
    put(&world.bare().join(main().as_str()), None);
    assert_eq!((world.start().1.len(), world.at()), (0, 1));
}
