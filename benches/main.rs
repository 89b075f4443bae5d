//! `make bench`: what Seed costs, against goals and against peers on the same machine in the same run. Prints a table and writes
//! `target/bench.json`.
//!
//!   cargo bench                      everything
//!   cargo bench -- ssh git           some groups; `--list` names them
//!   cargo bench -- --json            the JSON instead of the table
//!
//! A row is a count or a ratio, so that it means the same on a slow and on a busy machine; no row fails the run. A row that could not
//! be measured stays in the table and says why. Machines are those of `tests/host`: real systemd, nix, git, ssh.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it measures a machine"
)]

mod acme;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/acme/world.rs"]
mod acme_world;
mod commit;
mod crowd;
mod dns;
mod flood;
mod git;
mod guest;
mod idle;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/host/machine.rs"]
mod machine;
mod meter;
mod news;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/acme/outside.rs"]
mod outside;
mod place;
mod ssh;
mod start;
mod table;
#[path = "../tests/acme/tenants.rs"]
mod tenants;
mod worker;

use std::{panic::AssertUnwindSafe, process::ExitCode};

use place::Place;
use table::{Row, Sheet};

/// Rows that are measured together.
struct Group {
    name: &'static str,
    /// Programs of this machine that it cannot do without.
    needs: &'static [&'static str],
    rows: fn() -> Vec<Row>,
    measure: fn(&mut Place, &mut Sheet),
}

/// In this order: the idle machine first, the full one last.
const GROUPS: &[Group] = &[
    Group { name: "commit", needs: &["strace", "valgrind"], rows: commit::rows, measure: commit::measure },
    Group {
        name: "dns",
        needs: &["dnsperf", "knotd", "knotc", "valgrind", "strace", "taskset", "dbus-daemon", "unshare", "ip"],
        rows: dns::rows,
        measure: dns::measure,
    },
    Group { name: "idle", needs: &[], rows: idle::rows, measure: idle::measure },
    Group { name: "news", needs: &[], rows: news::rows, measure: news::measure },
    Group { name: "ssh", needs: &["strace"], rows: ssh::rows, measure: ssh::measure },
    Group { name: "git", needs: &["strace"], rows: git::rows, measure: git::measure },
    Group { name: "acme", needs: &["pebble", "lego", "openssl", "curl"], rows: acme::rows, measure: acme::measure },
    Group { name: "guest", needs: &[], rows: guest::rows, measure: guest::measure },
    Group { name: "start", needs: &["strace"], rows: start::rows, measure: start::measure },
    Group { name: "crowd", needs: &["strace"], rows: crowd::rows, measure: crowd::measure },
    Group { name: "demo", needs: &[], rows: guest::demo_rows, measure: guest::measure_demo },
];

fn main() -> ExitCode {
    let mut words: Vec<String> = std::env::args().collect();
    if let Some(code) = worker::run(&words) {
        return code;
    }
    words.remove(0);
    let (flags, chosen): (Vec<String>, Vec<String>) = words.into_iter().partition(|word| word.starts_with("--"));
    if flags.iter().any(|flag| flag == "--list") {
        GROUPS.iter().for_each(|group| println!("{}", group.name));
        return ExitCode::SUCCESS;
    }
    if let Some(unknown) = chosen.iter().find(|word| !GROUPS.iter().any(|group| group.name == *word)) {
        eprintln!("there is no group {unknown}: --list names them");
        return ExitCode::from(2);
    }
    let mut place = Place::default();
    let mut sheet = Sheet::default();
    for group in GROUPS.iter().filter(|group| chosen.is_empty() || chosen.iter().any(|word| word == group.name)) {
        let began = std::time::Instant::now();
        eprintln!("==> {}", group.name);
        sheet.begin((group.rows)());
        if let Some(missing) = group.needs.iter().find(|name| meter::program(name).is_none()) {
            sheet.give_up(&format!("there is no {missing} on this machine: install it"));
        } else if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| (group.measure)(&mut place, &mut sheet))) {
            let text =
                panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            sheet.give_up(text.unwrap_or_default().lines().next().unwrap_or("it panicked"));
        }
        sheet.give_up("it gave no value");
        eprintln!("    {:.0} s", began.elapsed().as_secs_f64());
    }
    drop(place);
    sheet.publish(flags.iter().any(|flag| flag == "--json"));
    ExitCode::SUCCESS
}
