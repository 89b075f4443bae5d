//! The store against crashes: killed at many points, cut short in a checkpoint, and its syncs counted.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::Arc,
};

use super::*;
use crate::{
    spec::{address::Lease, name::SetId},
    state::{Change, Invite},
};

/// Where the child keeps its state; set only for the child.
const CHILD: &str = "SEED_CRASH_CHILD";
/// `commits,tasks,checkpoint bytes` of the child.
const SHAPE: &str = "SEED_CRASH_SHAPE";

fn instance(task: u16, n: u64) -> SetId {
    format!("s-aaaaaaaaaaaa/t{task}-{}", n % 40).parse().expect("valid")
}

/// Batch `n` of a task: three documents that say the same number.
fn batch(task: u16, n: u64) -> Batch {
    let invite = |part: &str| {
        let id = format!("{task}-{part}-{}", n % 7);
        let note = "x".repeat((n as usize * 37) % 900);
        Change::Invite(
            id.clone(),
            Some(Invite { id, hash: String::new(), uses_left: task.into(), expires: n, note, ..Invite::default() }),
        )
    };
    vec![invite("a"), Change::Lease(instance(task, n), Some(Lease((n % 1_000) as u16))), invite("b")]
}

/// Checks that no batch is half applied; returns the newest batch of each task.
fn newest(memory: &Memory) -> BTreeMap<u32, u64> {
    let mut newest = BTreeMap::new();
    for (id, invite) in &memory.invites {
        if let Some(twin) = id.contains("-a-").then(|| &memory.invites[&id.replace("-a-", "-b-")]) {
            assert_eq!(invite.expires, twin.expires, "{id} is half applied");
            let entry = newest.entry(invite.uses_left).or_insert(0);
            *entry = invite.expires.max(*entry);
        }
    }
    for (task, n) in &newest {
        let lease = memory.leases[&instance(*task as u16, *n)];
        assert_eq!(u64::from(lease.0), n % 1_000, "task {task}: batch {n} is half applied");
    }
    newest
}

async fn load(directory: &Path) -> Memory {
    SledState::open(directory).expect("opens after a crash").load().await.expect("reads after a crash")
}

/// Each test that kills a process begins with this: in the process that it starts, which is this program with the same test, it
/// commits as it was told, prints `ack task n` for each acknowledged batch, and never returns.
fn play_the_child() {
    let Some(directory) = std::env::var_os(CHILD) else { return };
    let shape: Vec<u64> = std::env::var(SHAPE).expect("set").split(',').map(|n| n.parse().expect("a number")).collect();
    let commits = async move {
        let state = Arc::new(SledState::open_with(Path::new(&directory), shape[2]).expect("opens"));
        let begin = newest(&state.load().await.expect("reads"));
        let tasks: Vec<_> = (0..shape[1] as u16)
            .map(|task| {
                let (state, commits, begin) = (state.clone(), shape[0], begin.get(&task.into()).map_or(0, |n| n + 1));
                tokio::spawn(async move {
                    for n in begin..begin + commits {
                        state.commit(batch(task, n)).await.expect("commits");
                        println!("ack {task} {n}");
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("no panic");
        }
    };
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    // Not on this thread: it may belong to a runtime already.
    let ended = thread::spawn(move || runtime().block_on(commits)).join();
    std::process::exit(i32::from(ended.is_err()));
}

fn child(directory: &Path, commits: u64, tasks: u16, checkpoint_bytes: u64, wrapper: &[String]) -> Command {
    let this = std::env::current_exe().expect("a test binary");
    let words: Vec<String> = wrapper.iter().cloned().chain([this.display().to_string()]).collect();
    let mut command = Command::new(&words[0]);
    let test = thread::current().name().expect("a test").to_owned();
    command.args(&words[1..]).args(["--exact", &test, "--nocapture", "--test-threads=1"]);
    command.env(CHILD, directory).env(SHAPE, format!("{commits},{tasks},{checkpoint_bytes}"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// The newest acknowledged batch of each task, from what the child printed. `enough` is called when so many were seen.
fn acknowledged(output: impl io::Read, many: usize, mut enough: impl FnMut()) -> BTreeMap<u32, u64> {
    let mut newest = BTreeMap::new();
    let mut seen = 0;
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        // The end of the last line may be missing, and a line may stand behind what the test harness prints.
        let [.., "ack", task, n] = words[..] else { continue };
        if let (Ok(task), Ok(n)) = (task.parse(), n.parse::<u64>()) {
            newest.insert(task, n);
            seen += 1;
            if seen == many {
                enough();
            }
        }
    }
    newest
}

fn strace() -> bool {
    let there = Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    if !there {
        eprintln!("SKIPPED: strace is not there (apt-get install strace): syncs are not counted, kills land at random places only");
    }
    there
}

#[tokio::test]
async fn killed_at_random_moments_it_loses_no_acknowledged_batch_and_applies_none_by_half() {
    play_the_child();
    let directory = tempfile::tempdir().expect("a place");
    let mut total = BTreeMap::new();
    for round in 0u32..25 {
        let mut child = child(directory.path(), 1_000_000, 3, 20_000, &[]).spawn().expect("the child starts");
        let output = child.stdout.take().expect("a pipe");
        // It is killed while it works on, a number of acknowledgements later each time: what it printed meanwhile counts too.
        let acknowledged =
            acknowledged(output, 5 + round as usize * 13 % 120, || child.kill().expect("it runs until it is killed"));
        child.wait().expect("it was killed");
        let found = newest(&load(directory.path()).await);
        for (task, n) in acknowledged {
            assert!(found.get(&task) >= Some(&n), "round {round}: task {task} was told of {n}, found {:?}", found.get(&task));
            total.insert(task, n);
        }
    }
    assert!(total.values().sum::<u64>() > 100, "the children did too little: {total:?}");
}

#[tokio::test]
async fn killed_at_every_call_that_writes_it_loses_nothing() {
    play_the_child();
    if !strace() {
        return;
    }
    let mut kills = 0;
    for call in ["write", "fdatasync", "fsync", "rename", "unlinkat", "pwrite64", "ftruncate"] {
        for n in (1..=24).filter(|n| call != "write" || *n > 2) {
            let directory = tempfile::tempdir().expect("a place");
            let inject = format!("inject={call}:signal=SIGKILL:when={n}");
            let wrapper: Vec<String> = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &inject].map(str::to_owned).into();
            let output = child(directory.path(), 12, 1, 2_000, &wrapper).output().expect("strace starts");
            let acknowledged = acknowledged(output.stdout.as_slice(), usize::MAX, || ());
            let found = newest(&load(directory.path()).await);
            for (task, n) in acknowledged {
                assert!(found.get(&task) >= Some(&n), "{inject}: was told of {n}, found {:?}", found.get(&task));
            }
            if output.status.success() {
                break;
            }
            kills += 1;
        }
    }
    eprintln!("killed at {kills} different calls");
    assert!(kills >= 30, "only {kills} kills landed");
}

/// The names of the syncing calls of a child, in order, with the file of each.
fn syncs(commits: u64, tasks: u16, checkpoint_bytes: u64) -> Vec<String> {
    let directory = tempfile::tempdir().expect("a place");
    let trace = directory.path().join("trace");
    let calls = "trace=fsync,fdatasync,sync_file_range,rename,unlink,unlinkat";
    let trace_words = ["strace", "-f", "-y", "-qq", "-o", trace.to_str().expect("text"), "-e", calls].map(str::to_owned);
    let state = directory.path().join("state");
    let status =
        child(&state, commits, tasks, checkpoint_bytes, &trace_words).stdout(Stdio::null()).status().expect("strace starts");
    assert!(status.success());
    fs::read_to_string(trace).expect("strace wrote it").lines().map(str::to_owned).collect()
}

#[test]
fn a_commit_costs_one_sync_and_waiting_commits_share_it() {
    play_the_child();
    if !strace() {
        return;
    }
    let count = |lines: &[String]| lines.iter().filter(|line| line.contains("fdatasync(") || line.contains("fsync(")).count();
    let opening = count(&syncs(0, 1, u64::MAX));
    let alone = count(&syncs(200, 1, u64::MAX)) - opening;
    assert_eq!(alone, 200, "one sync for each of 200 commits in a row");
    let together = count(&syncs(50, 20, u64::MAX)) - opening;
    eprintln!("syncs: {alone} for 200 commits in a row, {together} for 1000 commits of 20 at a time");
    assert!(together <= 500, "1000 commits of 20 at a time took {together} syncs");
}

#[test]
fn a_journal_gets_its_name_only_after_all_of_its_checkpoint_is_on_the_disk() {
    play_the_child();
    if !strace() {
        return;
    }
    let lines = syncs(60, 1, 4_000);
    let of = |what: &str| lines.iter().position(|line| line.contains(what)).unwrap_or_else(|| panic!("no {what} in {lines:#?}"));
    let named = lines.iter().position(|line| line.contains("rename(") && line.contains("journal-1")).expect("a checkpoint");
    let last_of_checkpoint =
        lines.iter().rposition(|line| line.contains("/state/sled-1/db>") && line.contains("sync(")).expect("synced");
    assert!(last_of_checkpoint < named, "sled-1/db was synced at {last_of_checkpoint}, journal-1 named at {named}");
    assert!(of("/state/sled-1/conf>") < named && of("/state/sled-1>") < named && of("/state/journal-1.new>") < named);
    assert!(
        lines[named + 1..].iter().take(2).any(|line| line.contains("fsync(") && line.contains("/state>")),
        "its name is durable"
    );
    let removed = of("unlink(\"");
    assert!(removed > named + 1 && lines[removed].contains("journal-0"), "the old journal went first: {}", lines[removed]);
}

#[tokio::test]
async fn every_state_that_a_crash_in_a_checkpoint_leaves_is_opened_again() {
    let directory = tempfile::tempdir().expect("a place");
    let at = |name: &str| directory.path().join(name);
    let state = SledState::open_with(directory.path(), u64::MAX).expect("opens");
    for n in 0..30 {
        state.commit(batch(0, n)).await.expect("commits");
    }
    let before = state.load().await.expect("reads");
    drop(state);
    // A half-written checkpoint without its journal, and a journal without its name.
    fs::create_dir_all(at("sled-1")).expect("room");
    fs::write(at("sled-1/db"), [0xff; 5_000]).expect("room");
    fs::write(at("journal-1.new"), b"SdJ1").expect("room");
    fs::create_dir_all(at("reading")).expect("room");
    assert_eq!(load(directory.path()).await, before);
    assert!(!at("sled-1").exists() && !at("journal-1.new").exists() && !at("reading").exists());
    // The checkpoint is made; leftovers of the number before it are still there.
    fs::copy(at("journal-0"), at("kept")).expect("room");
    let state = SledState::open_with(directory.path(), 1_000).expect("opens");
    assert_eq!(state.load().await.expect("reads"), before);
    drop(state);
    fs::rename(at("kept"), at("journal-0")).expect("room");
    assert!(at("journal-1").exists());
    assert_eq!(load(directory.path()).await, before);
    assert!(!at("journal-0").exists());
    // What is gone is said, not guessed.
    fs::remove_dir_all(at("sled-1")).expect("it is there");
    let error = SledState::open(directory.path()).expect("the journal is whole").load().await.expect_err("the checkpoint is gone");
    assert!(error.to_string().contains("sled-1"), "{error}");
}

#[tokio::test]
async fn a_second_agent_is_refused_and_removals_are_remembered() {
    let directory = tempfile::tempdir().expect("a place");
    let state = SledState::open(directory.path()).expect("opens");
    assert!(matches!(SledState::open(directory.path()), Err(StateError::InUse { .. })));
    state.commit(batch(1, 1)).await.expect("commits");
    state.commit(vec![Change::Lease(instance(1, 1), None)]).await.expect("commits");
    assert!(state.load().await.expect("reads").leases.is_empty());
    assert_eq!(state.load().await.expect("reads").invites.len(), 2);
}
