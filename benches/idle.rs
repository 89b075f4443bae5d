//! C-P12: what Seed costs while nobody asks anything of it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{
    meter,
    place::Place,
    table::{Row, Sheet},
};

const UNITS: [&str; 2] = ["seed-agent.service", "seed-serve.service"];
const WINDOW: Duration = Duration::from_secs(30);

pub fn rows() -> Vec<Row> {
    vec![
        // A quarter of incusd's 58 MB.
        Row::new("idle-pss", "C-P12", "idle: memory (PSS) of agent and serve", "0.25 of incusd (58 MB, recorded)", "MiB", 14.0),
        Row::new("idle-wakeups", "C-P12", "idle: wakeups of both, over 30 s", "-", "/s", 0.0),
        Row::known("idle-cpu", "C-P12", "idle: CPU of both, over 30 s", "-", "ms/s"),
    ]
}

pub fn measure(place: &mut Place, sheet: &mut Sheet) {
    let host = place.plain();
    // The start is over when the agent has looked at the machine for the last time, and the threads that did it have ended.
    std::thread::sleep(Duration::from_secs(15));
    let pids = host.all_pids(&UNITS);
    let switches = || pids.iter().flat_map(|pid| meter::switches(*pid)).collect::<BTreeMap<_, _>>();
    let (before, used, began) = (switches(), host.cpu(&UNITS), Instant::now());
    std::thread::sleep(WINDOW);
    let seconds = began.elapsed().as_secs_f64();
    let woken: u64 = switches().iter().map(|(thread, count)| count - before.get(thread).unwrap_or(&0)).sum();
    sheet.set("idle-wakeups", woken as f64 / seconds, format!("{woken} wakeups in {seconds:.0} s"));
    sheet.set("idle-cpu", (host.cpu(&UNITS) - used) / 1e3 / seconds, "");
    let each: Vec<u64> = pids.iter().map(|pid| meter::pss(*pid)).collect();
    sheet.set("idle-pss", each.iter().sum::<u64>() as f64 / 1024.0, format!("KiB each: {each:?}"));
}
