//! C-P9 and C-P10: a host that is full. A thousand instances with four units each, which systemd holds active without a process; see
//! `worker::crowd` for how. Everything else is real: systemd, the bus, the agent, its state, the files and the taps.

use std::{process::Command, time::Duration};

use crate::{
    meter,
    place::{Measured, Place, WORKER},
    start,
    table::{Row, Sheet},
};

const INSTANCES: usize = 1000;
const STARTS: usize = 10;
const PASSES: usize = 5;
const STATUSES: usize = 10;
const MORE: usize = 5;

pub fn rows() -> Vec<Row> {
    vec![
        Row::new("units-calls", "C-P9", "start over systemd: D-Bus calls an instance", "-", "calls", 6.0),
        Row::new("units-reloads", "C-P9", "start over systemd: daemon-reloads", "-", "", 0.0),
        Row::new(
            "units-growth",
            "C-P9",
            "start over systemd: PID 1 CPU with 4,000 units loaded",
            "the same on the empty host",
            "x",
            1.5,
        ),
        Row::new(
            "units-reload",
            "C-P9",
            "start over systemd: PID 1 CPU with 4,000 units loaded",
            "daemon-reload and systemctl start",
            "x",
            1.0 / 300.0,
        ),
        Row::known("units-agent", "C-P9", "start by the agent beside 1,000 others: CPU of PID 1 and agent", "-", "ms"),
        Row::new("pass-calls", "C-P10", "no-op pass, 1,000 instances: system calls an instance", "-", "calls", 12.0),
        Row::new("pass-execs", "C-P10", "no-op pass, 1,000 instances: programs started", "-", "execs", 0.0),
        Row::new("pass-syncs", "C-P10", "no-op pass, 1,000 instances: waits for the disk", "-", "fsync", 0.0),
        Row::known("pass-bytes", "C-P10", "no-op pass, 1,000 instances: bytes on D-Bus, an instance", "-", "B"),
        // 12.2 ms for a list of 70.
        Row::new(
            "pass-wall",
            "C-P10",
            "no-op pass, 1,000 instances: wall an instance",
            "0.1 of `incus list` (174 µs, recorded)",
            "µs",
            17.4,
        ),
        Row::new("status-cpu", "tenants", "status of 1,000 instances: CPU of the agent", "-", "ms", 50.0),
        Row::known("status-first", "tenants", "the first status after the agent's start: CPU of the agent", "-", "ms"),
        Row::new("pass-memory", "C-P12", "memory (PSS) of the agent, an instance", "-", "KiB", 16.0),
    ]
}

/// Starts cheap instances as a deploy does, and returns PID 1's CPU for each, in milliseconds.
fn starts(host: &Measured, prefix: &str) -> f64 {
    let before = host.pid1_cpu();
    host.run(&[WORKER, "worker", "starts", prefix, &STARTS.to_string()]);
    std::thread::sleep(Duration::from_secs(1));
    (host.pid1_cpu() - before) / STARTS as f64 / 1e3
}

/// The other way: write the files, reload, start.
fn start_with_reload(host: &Measured, prefix: &str, count: usize) -> f64 {
    let namespace = host.run(&[WORKER, "worker", "namespace"]);
    let namespace = namespace.trim();
    let before = host.pid1_cpu();
    for n in 0..count {
        host.run(&[WORKER, "worker", "cheap", &format!("{namespace}/{prefix}{n}")]);
        host.run(&["systemctl", "daemon-reload"]);
        host.run(&["systemctl", "start", &format!("seed-vm@{namespace}-{prefix}{n}.service")]);
    }
    std::thread::sleep(Duration::from_secs(1));
    (host.pid1_cpu() - before) / count as f64 / 1e3
}

/// Messages that a worker sends: its method calls.
fn sent(host: &Measured, prefix: &str, count: usize) -> f64 {
    let out = tempfile::NamedTempFile::new().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/host/host");
    let mut command = Command::new("strace");
    command.args(["-f", "-c", "-e", "trace=sendmsg", "-o"]).arg(out.path());
    command.args([script, "run", host.machine.name(), WORKER, "worker", "starts", prefix, &count.to_string()]);
    assert!(command.status().unwrap().success());
    meter::summary(&std::fs::read_to_string(out.path()).unwrap()).done(&["sendmsg"])
}

fn loaded(host: &Measured) -> usize {
    host.run(&["systemctl", "list-units", "--all", "--no-legend"]).lines().count()
}

fn reloads(host: &Measured) -> f64 {
    host.script("journalctl -b --no-pager -o cat _PID=1 | grep -c '^Reloading' || true").trim().parse().unwrap()
}

fn sweep(host: &Measured, prefix: &str) {
    host.script(&format!("systemctl stop 'seed-*-{prefix}*'; rm -f /run/systemd/system/seed-*-{prefix}*"));
}

pub fn measure(place: &mut Place, sheet: &mut Sheet) {
    let host = place.crowd();
    host.run(&["systemctl", "stop", "seed-agent.service"]);
    let (few, before) = (loaded(host), reloads(host));
    sheet.set("units-calls", (sent(host, "x", 12) - sent(host, "y", 2)) / 10.0, "five units an instance");
    sweep(host, "x");
    sweep(host, "y");
    let small = starts(host, "a");
    sheet.set("units-reloads", reloads(host) - before, "lines of PID 1 in the journal");
    sweep(host, "a");

    host.run(&[WORKER, "worker", "state", "0", "no"]);
    host.run(&["systemctl", "start", "seed-agent.service"]);
    std::thread::sleep(Duration::from_secs(4));
    let empty = meter::pss(host.pids("seed-agent.service")[0]);
    host.run(&["systemctl", "stop", "seed-agent.service"]);
    host.run(&[WORKER, "worker", "state", &INSTANCES.to_string(), "no"]);
    host.run(&[WORKER, "worker", "crowd", &INSTANCES.to_string()]);
    let many = loaded(host);
    let large = starts(host, "b");
    sheet.set("units-growth", large / small, format!("{large:.1} ms with {many} units, {small:.1} ms with {few}"));
    let reloading = start_with_reload(host, "c", 2);
    sheet.set(
        "units-reload",
        large / reloading,
        format!("{large:.1} ms against {reloading:.0} ms: {:.0} times cheaper", reloading / large),
    );
    sweep(host, "b");
    sweep(host, "c");

    host.run(&["systemctl", "start", "seed-agent.service"]);
    converge(host, sheet, empty);
    let nothing = until_running(host, INSTANCES);
    let more = until_running(host, INSTANCES + MORE);
    let each = |more: f64, nothing: f64| (more - nothing) / MORE as f64;
    let (pid1, agent) = (each(more.0, nothing.0), each(more.1, nothing.1));
    sheet.set(
        "units-agent",
        pid1 + agent,
        format!("PID 1 {pid1:.0}, agent and what it runs {agent:.0}; {MORE} together, real units and helpers"),
    );
}

/// Passes: the agent looks, renders and plans, and finds nothing to do. Returns the median time of one, in microseconds.
fn passes(host: &Measured) -> f64 {
    host.run(&[WORKER, "worker", "plans", &PASSES.to_string()]).trim().parse().expect("microseconds")
}

/// CPU of PID 1 and of the agent, in milliseconds, from the agent's start until it runs `count` instances.
fn until_running(host: &Measured, count: usize) -> (f64, f64) {
    let before = host.pid1_cpu();
    start::run_instances(host, count, false);
    ((host.pid1_cpu() - before) / 1e3, host.cpu(&["seed-agent.service"]) / 1e3)
}

/// Status as the operator asks for it: everything. What systemd told once is not asked again until it changes.
fn statuses(host: &Measured, sheet: &mut Sheet) {
    let cpu = |count: usize| {
        let before = host.cpu(&["seed-agent.service"]);
        let wall = host.run(&[WORKER, "worker", "statuses", &count.to_string(), &INSTANCES.to_string()]);
        let wall: f64 = wall.trim().parse().expect("microseconds");
        ((host.cpu(&["seed-agent.service"]) - before) / count as f64 / 1e3, wall / 1e3)
    };
    let (first, wall) = cpu(1);
    sheet.set("status-first", first, format!("{wall:.0} ms until the answer"));
    let (each, wall) = cpu(STATUSES);
    sheet.set("status-cpu", each, format!("{STATUSES} in a row; {wall:.0} ms until the answer"));
}

fn converge(host: &Measured, sheet: &mut Sheet, empty: u64) {
    // The first look reads every file, the second those that were younger than two seconds.
    std::thread::sleep(Duration::from_secs(8));
    passes(host);
    let agent = host.pids("seed-agent.service");
    let per = (PASSES * INSTANCES) as f64;
    let calls = meter::counted(&agent, || {
        passes(host);
    });
    sheet.set("pass-calls", calls.all() / per, format!("an instance: {}", calls.top(per)));
    sheet.set("pass-execs", calls.execs() / PASSES as f64, "");
    sheet.set("pass-syncs", calls.syncs() / PASSES as f64, "");
    let trace = meter::traced(&agent, &["-e", "trace=recvmsg,sendmsg"], || {
        passes(host);
    });
    let bytes = |line: &str| line.rsplit_once(" = ")?.1.split_whitespace().next()?.parse::<f64>().ok().filter(|count| *count > 0.0);
    let bytes: f64 = trace.lines().filter_map(bytes).sum();
    sheet.set(
        "pass-bytes",
        bytes / per,
        format!("{:.0} KiB a pass, the question and its answer included", bytes / PASSES as f64 / 1024.0),
    );
    statuses(host, sheet);
    let (cpu, pid1) = (host.cpu(&["seed-agent.service"]), host.pid1_cpu());
    let wall = passes(host);
    let ms = |micros: f64| micros / PASSES as f64 / 1e3;
    let (cpu, pid1) = (ms(host.cpu(&["seed-agent.service"]) - cpu), ms(host.pid1_cpu() - pid1));
    let note = format!("a pass: {:.0} ms; CPU of the agent {cpu:.0} ms, of PID 1 {pid1:.0} ms", wall / 1e3);
    sheet.set("pass-wall", wall / INSTANCES as f64, note);
    let full = meter::pss(host.pids("seed-agent.service")[0]);
    let note = format!("{:.1} MiB with {INSTANCES}, {:.1} MiB with none", full as f64 / 1024.0, empty as f64 / 1024.0);
    sheet.set("pass-memory", (full as f64 - empty as f64) / INSTANCES as f64, note);
}
