//! C-P18: a change that the agent acknowledges: instructions, and waits for the disk. On this machine, without a host.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use crate::{
    meter,
    place::Place,
    table::{Row, Sheet},
};

pub fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "commit-syncs",
            "C-P18",
            "state commit: waits for the disk, one after the other",
            "etcd 1.07 (recorded)",
            "fsync",
            1.0,
        ),
        Row::new("commit-crowd", "C-P11", "state commit: waits for the disk, 50 at once", "-", "fsync", 3.0),
        Row::new(
            "commit-code",
            "C-P18",
            "state commit: instructions (callgrind)",
            "redb 145k, sqlite 28k (recorded)",
            "",
            60_000.0,
        ),
        Row::known("commit-time", "C-P18", "state commit: wall, median", "etcd over HTTP 650 µs (recorded)", "µs"),
    ]
}

/// This program as `worker commits`: `count` commits, `at_once` of them waiting at the same time.
fn words(directory: &Path, count: usize, at_once: usize) -> Vec<String> {
    let program = std::env::current_exe().unwrap().display().to_string();
    [&program, "worker", "commits", &directory.display().to_string(), &count.to_string(), &at_once.to_string()]
        .map(str::to_owned)
        .into()
}

/// Waits for the disk of so many commits, those of opening the store included.
fn syncs(count: usize, at_once: usize) -> f64 {
    let place = tempfile::tempdir().unwrap();
    let mut command = Command::new("strace");
    let out = place.path().join("strace");
    command.args(["-f", "-c", "-o"]).arg(&out).args(words(&place.path().join("state"), count, at_once));
    assert!(command.stdout(Stdio::null()).status().expect("strace runs").success());
    meter::summary(&std::fs::read_to_string(out).unwrap()).syncs()
}

fn instructions(count: usize) -> f64 {
    let place = tempfile::tempdir().unwrap();
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).args(words(&place.path().join("state"), count, 1));
    let output = command.output().expect("valgrind runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let total = text.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
    total.unwrap_or_else(|| panic!("callgrind: {}", text.lines().last().unwrap_or_default()))
}

pub fn measure(_: &mut Place, sheet: &mut Sheet) {
    let base = syncs(0, 1);
    sheet.set("commit-syncs", (syncs(200, 1) - base) / 200.0, "200 commits");
    let all = syncs(50, 50) - base;
    sheet.set("commit-crowd", all, "50 tasks that commit at the same time; system calls traced, so slower than they are");
    sheet.set("commit-code", (instructions(250) - instructions(50)) / 200.0, "250 commits less 50");
    let place = tempfile::tempdir().unwrap();
    let words = words(&place.path().join("state"), 400, 1);
    let output = Command::new(&words[0]).args(&words[1..]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    sheet.set("commit-time", text.trim().parse().expect("microseconds"), "depends on this disk; etcd is not run here");
}
