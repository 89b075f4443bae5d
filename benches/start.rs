//! C-P15: what Seed adds to the start of an instance: the real agent, real units, real helpers, and a VMM that does nothing.

use std::time::{Duration, Instant};

use crate::{
    meter,
    place::{Measured, Place, WORKER},
    table::{Row, Sheet},
};

/// One after the other, for the wall clock; then together, for CPU time and counts.
const SINGLE: usize = 5;
const TOGETHER: usize = 8;

pub fn rows() -> Vec<Row> {
    vec![
        Row::new("start-wall", "C-P15", "instance start: first step to the VMM's exec, wall", "-", "ms", 25.0),
        Row::new("start-cpu", "C-P15", "instance start: CPU of PID 1 and agent", "-", "ms", 15.0),
        Row::new("start-execs", "C-P15", "instance start: execs besides VMM, virtiofsd, swtpm", "-", "execs", 3.0),
    ]
}

/// Has the agent run `count` instances, and waits until they do.
pub fn run_instances(host: &Measured, count: usize, tpm: bool) {
    host.run(&["systemctl", "stop", "seed-agent.service"]);
    host.run(&[WORKER, "worker", "state", &count.to_string(), if tpm { "tpm" } else { "no" }]);
    host.run(&["systemctl", "start", "seed-agent.service"]);
    let began = Instant::now();
    loop {
        let active = host.run(&["systemctl", "list-units", "--no-legend", "--state=active", "seed-vm@*"]).lines().count();
        if active >= count {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{active} of {count} instances run: {}", host.machine.journal());
        std::thread::sleep(Duration::from_millis(200));
    }
    // The last look at the machine.
    std::thread::sleep(Duration::from_secs(1));
}

/// Microseconds since 1970 of the first line of the agent about an instance, and of its VMM's start.
fn moments(host: &Measured, number: usize) -> Option<(f64, f64)> {
    let name = format!("-i{number}.service");
    let agent = host.run(&["journalctl", "--no-pager", "-o", "json", "-u", "seed-agent.service"]);
    let at = |line: &str| {
        let entry: serde_json::Value = serde_json::from_str(line).ok()?;
        let message = entry["MESSAGE"].as_str()?;
        let ours = message.contains(&format!("/i{number} ")) && message.contains("make the tap");
        ours.then(|| entry["_SOURCE_REALTIME_TIMESTAMP"].as_str().or(entry["__REALTIME_TIMESTAMP"].as_str())?.parse().ok())?
    };
    let first = agent.lines().find_map(at)?;
    let units = host.run(&["journalctl", "--no-pager", "-o", "cat", "-u", &format!("seed-vm@*{name}")]);
    let vmm = units.lines().find_map(|line| line.strip_prefix("vmm at ")?.parse().ok())?;
    Some((first, vmm))
}

/// The programs that were started, by name.
fn execs(trace: &str) -> Vec<String> {
    let done = trace.lines().filter(|line| line.contains("execve") && line.trim_end().ends_with("= 0"));
    // `<... execve resumed>` ends a call that was begun on an earlier line: count it under its beginning's process.
    let mut names = Vec::new();
    for line in done {
        let pid = line.split_whitespace().next().unwrap_or("");
        let path = |line: &str| line.split_once("execve(\"").and_then(|(_, rest)| rest.split('"').next()).map(str::to_owned);
        let begun = || {
            let mine = trace.lines().filter(|other| other.starts_with(pid) && other.contains("unfinished"));
            mine.filter_map(path).next_back()
        };
        let path = path(line).or_else(begun).unwrap_or_else(|| "systemd-executor".to_owned());
        let name = path.rsplit('/').next().unwrap_or("");
        // systemd starts its executor by a descriptor: /proc/self/fd/9.
        let executor = name.bytes().all(|byte| byte.is_ascii_digit());
        names.push(if executor { "systemd-executor".to_owned() } else { name.to_owned() });
    }
    names
}

pub fn measure(place: &mut Place, sheet: &mut Sheet) {
    let host = place.stub();
    for count in 1..=SINGLE {
        run_instances(host, count, true);
    }
    let walls: Vec<f64> = (1..SINGLE).filter_map(|n| moments(host, n)).map(|(first, vmm)| (vmm - first) / 1e3).collect();
    assert!(!walls.is_empty(), "the journal has no start of an instance");
    let note = format!("ms each: {:?}; five units, real helpers", walls.iter().map(|wall| wall.round()).collect::<Vec<_>>());
    sheet.set("start-wall", meter::median(walls), note);

    // The agent's own start is not an instance's: what it costs with nothing to do is taken off.
    let agent = ["seed-agent.service"];
    let cpu = |count: usize| {
        let before = host.pid1_cpu();
        run_instances(host, count, true);
        (host.pid1_cpu() - before, host.cpu(&agent))
    };
    let nothing = cpu(SINGLE);
    let some = cpu(SINGLE + TOGETHER);
    let per = TOGETHER as f64 * 1e3;
    let (pid1, ours) = ((some.0 - nothing.0) / per, (some.1 - nothing.1) / per);
    sheet.set("start-cpu", pid1 + ours, format!("PID 1 {pid1:.1}, agent and what it runs {ours:.1}; {TOGETHER} together"));

    let options = ["-e", "trace=execve,execveat", "-s", "200"];
    let trace = |count: usize| execs(&meter::traced(&[host.pid1], &options, || run_instances(host, count, true)));
    let (nothing, some) = (trace(SINGLE + TOGETHER), trace(SINGLE + 2 * TOGETHER));
    let of = |name: &str, all: &[String]| all.iter().filter(|found| *found == name).count() as f64;
    let mut names = some.clone();
    names.sort();
    names.dedup();
    let each: Vec<(String, f64)> = names
        .into_iter()
        .map(|name| ((of(&name, &some) - of(&name, &nothing)) / TOGETHER as f64, name))
        .map(|(n, name)| (name, n))
        .collect();
    let spared = ["seed-bench-vmm", "virtiofsd", "swtpm"];
    // What this measuring runs on the machine is no child of PID 1, so it is not in the trace.
    let added: Vec<&(String, f64)> = each.iter().filter(|(name, n)| *n >= 0.1 && !spared.contains(&name.as_str())).collect();
    let note: Vec<String> = added.iter().map(|(name, n)| format!("{name} {n:.1}")).collect();
    sheet.set("start-execs", added.iter().map(|(_, n)| n).sum(), note.join(", "));
}
