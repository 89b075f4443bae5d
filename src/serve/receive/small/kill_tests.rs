//! A push whose process is killed at each of its steps, by strace: the repository is whole, the ref is where it was or where it was to be,
//! and in the second case the agent will hear of it.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use super::{Place, Taken, pack::Scan, push};
use crate::{
    serve::{git, journal::Journals, pktline::Update},
    spec::{access::fingerprint, caller::Caller},
};

/// Tells the process that it is to push, and where.
const CHILD: &str = "SEED_SMALL_PUSH";
/// It has pushed.
const DONE: i32 = 42;

pub(in crate::serve) fn run(at: &Path, words: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command = Command::new("git");
    command.arg("-C").arg(at).args(["-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main"]).args(words);
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "git {words:?}: {output:?}");
    output.stdout
}

fn text(at: &Path, words: &[&str]) -> String {
    String::from_utf8(run(at, words, b"")).unwrap().trim().to_owned()
}

/// Pushes what lies ready below `at`.
fn push_below(at: &Path) -> bool {
    push_with(&Journals::new(at.join("repos")), at)
}

fn push_with(journals: &Journals, at: &Path) -> bool {
    let [old, new] = ["old", "new"].map(|name| fs::read_to_string(at.join(name)).unwrap().parse().unwrap());
    let update = Update { old, new, reference: "refs/heads/main".to_owned() };
    let bytes = fs::read(at.join("pack")).unwrap();
    let mut scan = Scan::default();
    scan.go_on(&bytes).unwrap();
    let taken = Taken { bytes, entries: Some(scan.entries()) };
    let who = Caller::new(fingerprint(b"ann"), "192.0.2.7".parse().unwrap());
    let path = at.join("repos/app.git");
    Place::of(&path).is_ok_and(|place| push(journals, (&path, place), &update, &taken, Some(&who)).is_ok())
}

/// A repository of one commit, and a second one with its thin pack beside it.
fn begun(at: &Path) {
    let (work, bare) = (at.join("work"), at.join("repos/app.git"));
    fs::create_dir_all(&bare).unwrap();
    run(at, &["init", "-q", "work"], b"");
    run(&bare, &["init", "-q", "--bare", "--template="], b"");
    let commit = |name: &str| {
        run(&work, &["add", "-A"], b"");
        run(&work, &["commit", "-q", "-m", name], b"");
        let id = text(&work, &["rev-parse", "HEAD"]);
        fs::write(at.join(name), &id).unwrap();
        id
    };
    (0..50).for_each(|n| fs::write(work.join(format!("file{n}")), format!("{n}\n").repeat(50)).unwrap());
    let old = commit("old");
    // As every repository has it that was pushed to before.
    Journals::new(at.join("repos")).git(&bare, Place::of(&bare).unwrap(), None).unwrap();
    run(&work, &["-c", "receive.unpackLimit=1", "push", "-q", bare.to_str().unwrap(), "main"], b"");
    fs::write(work.join("file7"), "another").unwrap();
    let new = commit("new");
    let wanted = format!("{new}\n^{old}\n");
    let pack = run(&work, &["pack-objects", "--thin", "--revs", "--stdout", "--delta-base-offset", "-q"], wanted.as_bytes());
    fs::write(at.join("pack"), pack).unwrap();
}

/// What is to fail, and how.
const CALLS: [(&str, &str); 6] =
    [("fdatasync", "EIO"), ("rename", "ENOSPC"), ("write", "ENOSPC"), ("openat", "EMFILE"), ("mkdir", "EROFS"), ("unlink", "EIO")];

#[test]
fn whatever_fails_a_push_is_there_or_it_is_not() {
    let Some(template) = pushed_or_begun() else { return };
    let (mut failed, mut done) = (0, 0);
    for (call, error) in CALLS {
        let place = fresh(&template);
        let log = place.path().join("log");
        let trace = format!("trace={call}");
        child(place.path(), &["-e", &trace, "-o", log.to_str().unwrap()]);
        let calls = fs::read_to_string(&log).unwrap().lines().filter(|line| line.contains(&format!("{call}("))).count();
        for number in 1..=calls {
            let place = fresh(&template);
            let inject = format!("inject={call}:error={error}:when={number}");
            let ended = child(place.path(), &["-o", "/dev/null", "-e", &trace, "-e", &inject]);
            let bare = place.path().join("repos/app.git");
            git::sweep(&place.path().join("repos"));
            let heard = Journals::new(place.path().join("repos")).recover();
            run(&bare, &["fsck", "--strict", "--full"], b"");
            let [old, new] = ["old", "new"].map(|name| fs::read_to_string(place.path().join(name)).unwrap());
            let now = text(&bare, &["rev-parse", "refs/heads/main"]);
            if ended == Some(DONE) {
                done += 1;
                assert_eq!((now, heard.len()), (new, 1), "{call} {number}");
            } else {
                failed += 1;
                assert_eq!((now, heard.len()), (old, 0), "{call} {number}");
                assert!(push_below(place.path()), "{call} {number}: it can be pushed again");
                assert_eq!(text(&bare, &["rev-parse", "refs/heads/main"]), new);
            }
        }
    }
    assert!(failed > 10 && done > 0, "{failed} failed, {done} did not");
}

/// This test in a process of its own, under strace with these options; its exit code, if it was not killed.
fn child(at: &Path, options: &[&str]) -> Option<i32> {
    let mut command = Command::new("strace");
    command.arg("-f").args(options).arg(std::env::current_exe().unwrap());
    command.args(["--exact", std::thread::current().name().unwrap(), "--nocapture", "--test-threads=1"]).env(CHILD, at);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().code()
}

#[test]
fn the_disk_is_waited_for_before_anything_relies_on_it() {
    if let Some(at) = std::env::var_os(CHILD) {
        let at = Path::new(&at);
        let (journals, bare) = (Journals::new(at.join("repos")), at.join("repos/app.git"));
        let place = Place::of(&bare).unwrap();
        let done = push_with(&journals, at);
        journals.git(&bare, place, None).unwrap();
        let new = fs::read_to_string(at.join("new")).unwrap().parse().unwrap();
        let update = Update { old: "0".repeat(40).parse().unwrap(), new, reference: "refs/heads/other".to_owned() };
        let not_yet = || journals.push(&bare, place, (&update.name().unwrap(), &update), None, None, || Ok(())).unwrap();
        not_yet();
        journals.settle();
        journals.git(&bare, place, None).unwrap();
        not_yet();
        Journals::new(at.join("repos")).recover();
        std::process::exit(if done { DONE } else { 1 });
    }
    if !strace_is_there() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    begun(place.path());
    let log = place.path().join("log");
    let trace = ["-e", "trace=/^(rename.*|fdatasync|syncfs)$", "-o", log.to_str().unwrap()];
    assert_eq!(child(place.path(), &trace), Some(DONE));
    let calls = fs::read_to_string(&log).unwrap();
    let calls = calls.lines().filter_map(|line| line.split_once('(')?.0.split_whitespace().last());
    let calls: Vec<_> = calls.map(|call| if call.starts_with("rename") { "rename" } else { call }).collect();
    // The push: its record, then its names. git: what there is so far, then that it begins. The other push, all that there is, and git.
    let push = ["fdatasync", "rename", "rename", "rename"];
    let first = [&push[..], &["syncfs", "fdatasync"], &["fdatasync"], &["syncfs"], &["fdatasync"]].concat();
    // The other push once more; the next start, which cannot know whether what it finds and reads is on the disk, and what it does then.
    assert_eq!(calls, [&first[..], &["fdatasync"], &["syncfs", "fdatasync", "rename"]].concat());
}

/// As the child: pushes, and ends. As the test: what the child is to have a copy of, if there is a strace to run it.
fn pushed_or_begun() -> Option<tempfile::TempDir> {
    if let Some(at) = std::env::var_os(CHILD) {
        let done = push_below(Path::new(&at));
        std::process::exit(if done { DONE } else { 1 });
    }
    strace_is_there().then(|| {
        let template = tempfile::tempdir().unwrap();
        begun(template.path());
        template
    })
}

fn strace_is_there() -> bool {
    let there = Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    if !there {
        eprintln!("SKIPPED: strace is not there (apt-get install strace): nothing is killed, and nothing fails");
    }
    there
}

fn fresh(template: &tempfile::TempDir) -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let from = template.path().join(".");
    assert!(Command::new("cp").arg("-a").arg(from).arg(place.path()).status().unwrap().success());
    place
}

#[test]
fn whatever_it_was_doing_when_it_was_killed_the_repository_is_whole() {
    let Some(template) = pushed_or_begun() else { return };
    let fresh = || fresh(&template);
    // How many waits for the disk it takes.
    let place = fresh();
    let log = place.path().join("log");
    let traced =
        child(place.path(), &["-e", "trace=fsync,fdatasync,sync,syncfs,sync_file_range,msync", "-o", log.to_str().unwrap()]);
    assert_eq!(traced, Some(DONE));
    let waits = |log: &Path| {
        let calls = fs::read_to_string(log).unwrap();
        calls.lines().filter(|line| line.contains("sync(") && !line.contains("resumed")).count()
    };
    assert_eq!(waits(&log), 1);
    // A journal in which nothing is may have been made by somebody who was killed before its name was on the disk.
    let journal = place.path().join("repos/app.git/pushes-0");
    let again = fresh();
    let empty = again.path().join("repos/app.git/pushes-0");
    fs::write(&empty, &fs::read(&journal).unwrap()[..24]).unwrap();
    let log = again.path().join("log");
    let trace = ["-e", "trace=fsync,fdatasync", "-o", log.to_str().unwrap()];
    assert_eq!((child(again.path(), &trace), waits(&log)), (Some(DONE), 2));
    let (mut before, mut after) = (0, 0);
    for call in ["fdatasync", "rename", "openat", "write", "unlink"] {
        for number in 1.. {
            let place = fresh();
            let options = [format!("trace={call}"), format!("inject={call}:signal=KILL:when={number}")];
            let ended = child(place.path(), &["-o", "/dev/null", "-e", &options[0], "-e", &options[1]]);
            let (repositories, bare) = (place.path().join("repos"), place.path().join("repos/app.git"));
            git::sweep(&repositories);
            let heard = Journals::new(repositories.clone()).recover();
            run(&bare, &["fsck", "--strict", "--full"], b"");
            let [old, new] = ["old", "new"].map(|name| fs::read_to_string(place.path().join(name)).unwrap());
            let now = text(&bare, &["rev-parse", "refs/heads/main"]);
            if now == new {
                after += 1;
                assert_eq!(heard.len(), 1, "{call} {number}: the agent is told");
            } else {
                before += 1;
                assert_eq!(now, old, "{call} {number}");
                assert!(push_below(place.path()), "{call} {number}: it can be pushed again");
                assert_eq!(text(&bare, &["rev-parse", "refs/heads/main"]), new);
                run(&bare, &["fsck", "--strict", "--full"], b"");
            }
            if ended == Some(DONE) {
                assert_eq!(now, new);
                break;
            }
        }
    }
    assert!(before > 10 && after > 3, "killed {before} times before it was done, {after} times after");
}
