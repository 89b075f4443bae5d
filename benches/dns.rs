//! C-P1 to C-P3, C-R8: names. Knot and hickory serve the same zone to the same questions, by turns. On this machine, on loopback.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, Ipv6Addr, UdpSocket},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_server::{
    net::runtime::TokioRuntimeProvider,
    proto::rr::{self, LowerName, Record, rdata},
    server::Server,
    store::in_memory::InMemoryZoneHandler,
    zone_handler::{AxfrPolicy, Catalog, ZoneType},
};
use seed::{
    bus::{Zone, ZoneChange, ZoneEntry},
    serve::dns::{Names, Near, Settings, serve_udp},
};

use crate::{
    flood, meter,
    place::Place,
    table::{Row, Sheet},
};

/// Names in the zone, each with an A and an AAAA record.
const NAMES: usize = 10_000;
const ROUNDS: usize = 5;
const SECONDS: &str = "4";
const OURS: u16 = 5401;
const KNOT: u16 = 5402;
const HICKORY: u16 = 5403;

pub fn rows() -> Vec<Row> {
    let mut rows = vec![
        Row::new("dns-knot", "C-P1", "DNS: server CPU of a query", "Knot, one worker", "x", 1.1),
        Row::new("dns-hickory", "C-P1", "DNS: server CPU of a query", "hickory, catalog and memory", "x", 0.3),
        Row::new("dns-lost", "C-P1", "DNS: queries lost", "-", "", 0.0),
        Row::known("dns-cpu", "C-P1", "DNS: server CPU of a query", "NSD 3.9 µs (recorded)", "µs"),
        Row::known("dns-calls", "C-P1", "DNS: system calls of a query, one at a time", "Knot 2.5 (recorded)", ""),
        Row::new("dns-news", "C-P2", "DNS: change to correct answer, over the bus, p99", "-", "ms", 2.0),
        Row::new("dns-knotc", "C-P2", "DNS: change to correct answer, median", "knotc begin, set, commit", "x", 0.1),
        Row::new("dns-size", "C-P2", "DNS: instructions of a change, 10000 names over 10", "-", "x", 1.1),
        Row::new("dns-memory", "C-P3", "DNS: memory (PSS) of 20,000 records", "Knot", "x", 1.0),
    ];
    rows.extend(flood::rows());
    rows
}

fn namespace(n: usize) -> String {
    format!("s-{:0>12}", n / 10)
}

fn entry(n: usize) -> ZoneEntry {
    ZoneEntry {
        ipv4: Ipv4Addr::from(0x0a53_0000 + n as u32),
        ipv6: Ipv6Addr::from((0xfd5e << 112) + n as u128),
        beside: Vec::new(),
    }
}

pub fn zone(names: usize) -> Zone {
    let mut namespaces: BTreeMap<String, BTreeMap<String, ZoneEntry>> = BTreeMap::new();
    for n in 0..names {
        namespaces.entry(namespace(n)).or_default().insert(format!("i{n}"), entry(n));
    }
    Zone { serial: 1, domain: "seed.example".into(), host4: vec![[192, 0, 2, 1].into()], namespaces, ..Zone::default() }
}

/// A door that gives a neighbourhood so many answers a second.
pub fn names(rate: u32) -> Names {
    Names::new(Settings {
        near: Near {
            pool4: "10.83.0.0/16".parse().unwrap(),
            pool6: "fd5e::/64".parse().unwrap(),
            gateways: vec![],
            inside: vec![],
        },
        upstream: vec![],
        rate,
        zone_key: None,
        secondaries: vec![],
        transfer_key: None,
    })
    .unwrap()
}

// --- what the worker does -----------------------------------------------------------------------------------------------------

/// Seed's DNS door, with a zone of so many names.
pub async fn door(port: u16, count: usize) {
    let names_of = Arc::new(names(200));
    names_of.take(&zone(count));
    let socket = tokio::net::UdpSocket::bind(("127.0.0.1", port)).await.unwrap();
    // As seed-serve-dns-udp.socket has it.
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(4 << 20)).unwrap();
    serve_udp(names_of, socket).await;
}

/// hickory as it comes, with the same zone.
pub async fn hickory(port: u16, count: usize) {
    let origin = rr::Name::from_ascii("seed.example.").unwrap();
    let handler = InMemoryZoneHandler::<TokioRuntimeProvider>::empty(origin.clone(), ZoneType::Primary, AxfrPolicy::Deny);
    let soa = rdata::SOA::new(origin.clone(), origin.clone(), 1, 3600, 600, 604_800, 30);
    handler.upsert(Record::from_rdata(origin.clone(), 3600, rr::RData::SOA(soa)), 1).await;
    handler.upsert(Record::from_rdata(origin.clone(), 3600, rr::RData::NS(rdata::NS(origin.clone()))), 1).await;
    for n in 0..count {
        let name = rr::Name::from_ascii(format!("i{n}.{}.seed.example.", namespace(n))).unwrap();
        let ZoneEntry { ipv4, ipv6, .. } = entry(n);
        handler.upsert(Record::from_rdata(name.clone(), 30, rr::RData::A(rdata::A(ipv4))), 1).await;
        handler.upsert(Record::from_rdata(name, 30, rr::RData::AAAA(rdata::AAAA(ipv6))), 1).await;
    }
    let mut catalog = Catalog::new();
    catalog.upsert(LowerName::new(&origin), vec![Arc::new(handler)]);
    let mut server = Server::new(catalog);
    server.register_socket(tokio::net::UdpSocket::bind(("127.0.0.1", port)).await.unwrap());
    server.block_until_done().await.unwrap();
}

fn change(serial: u32, turn: usize) -> ZoneChange {
    let address = ZoneEntry { ipv4: Ipv4Addr::from(0x0a54_0000 + turn as u32), ..entry(0) };
    ZoneChange {
        from: serial,
        serial: serial + 1,
        instances: [(format!("{}/new", namespace(0)), Some(address))].into(),
        challenges: BTreeMap::new(),
    }
}

/// So many changes of a zone of so many names.
pub fn changes(count: usize, turns: usize) {
    let names = names(200);
    names.take(&zone(count));
    for turn in 0..turns {
        assert!(names.change(&change(1 + turn as u32, turn)));
    }
}

// --- measuring ----------------------------------------------------------------------------------------------------------------

/// A server on CPU 0, ended when dropped.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Serving {
    fn start(program: &str, words: &[&str], port: u16) -> Self {
        let mut command = Command::new("taskset");
        command.args(["-c", "0", program]).args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let serving = Self(command.spawn().unwrap());
        let probe = UdpSocket::bind("127.0.0.1:0").unwrap();
        probe.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let began = Instant::now();
        while address(&probe, port, "i0", 0).is_none() {
            assert!(began.elapsed() < Duration::from_secs(60), "{program} does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        serving
    }

    fn worker(role: &str, port: u16) -> Self {
        let program = std::env::current_exe().unwrap().display().to_string();
        Self::start(&program, &["worker", role, &port.to_string(), &NAMES.to_string()], port)
    }

    fn knot(place: &Path) -> Self {
        let mut text =
            "$ORIGIN seed.example.\n@ 3600 SOA ns1 hostmaster 1 3600 600 604800 30\n@ 3600 NS ns1\nns1 A 192.0.2.1\n".to_owned();
        for n in 0..NAMES {
            let (name, ZoneEntry { ipv4, ipv6, .. }) = (format!("i{n}.{}", namespace(n)), entry(n));
            writeln!(text, "{name} 30 A {ipv4}\n{name} 30 AAAA {ipv6}").unwrap();
        }
        fs::write(place.join("seed.example.zone"), text).unwrap();
        let at = place.display();
        let config = format!(
            "server:\n  rundir: {at}\n  listen: 127.0.0.1@{KNOT}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n\
             log:\n- target: stderr\n  any: error\ndatabase:\n  storage: {at}\nzone:\n- domain: seed.example\n  storage: {at}\n"
        );
        let file = place.join("knot.conf");
        fs::write(&file, config).unwrap();
        Self::start("knotd", &["-c", &file.display().to_string()], KNOT)
    }

    /// CPU time of all its threads, in microseconds.
    fn cpu(&self) -> f64 {
        let threads = fs::read_dir(format!("/proc/{}/task", self.0.id())).unwrap();
        let of = |thread: fs::DirEntry| {
            let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            text.split_whitespace().next().and_then(|word| word.parse::<f64>().ok()).unwrap_or(0.0)
        };
        threads.map(|thread| of(thread.unwrap())).sum::<f64>() / 1e3
    }

    /// CPU time of one query in microseconds, and how many were lost.
    fn asked(&self, port: u16, questions: &Path) -> (f64, f64) {
        let before = self.cpu();
        let mut command = Command::new("taskset");
        command.args([
            "-c",
            "1",
            "dnsperf",
            "-s",
            "127.0.0.1",
            "-p",
            &port.to_string(),
            "-l",
            SECONDS,
            "-c",
            "8",
            "-T",
            "1",
            "-q",
            "200",
        ]);
        let output = command.arg("-d").arg(questions).output().expect("dnsperf runs");
        let used = self.cpu() - before;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let figure = |label: &str| -> f64 {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(label)).unwrap_or_else(|| panic!("dnsperf: {text}"));
            line.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number")
        };
        (used / figure("Queries completed:"), figure("Queries lost:"))
    }
}

/// Asks for a name of the first namespace, and reads the last byte of the address that it has.
fn address(socket: &UdpSocket, port: u16, name: &str, id: u16) -> Option<u8> {
    let mut packet = vec![(id >> 8) as u8, id as u8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in [name, &namespace(0), "seed", "example", ""] {
        packet.push(label.len() as u8);
        packet.extend(label.as_bytes());
    }
    packet.extend([0, 1, 0, 1]);
    socket.send_to(&packet, ("127.0.0.1", port)).unwrap();
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).ok()?;
    // With one answer, its data is the last of the message.
    (length > 12 && answer[7] == 1 && answer[..2] == packet[..2]).then(|| answer[length - 1])
}

/// Four in five have an answer, one in ten has none of this type, one in ten has no such name. Or all have an answer: hickory walks its
/// whole zone for what is not there, and that would say nothing of the rest.
fn questions(place: &Path, all: bool) -> std::path::PathBuf {
    let mut text = String::new();
    for turn in 0..200_000usize {
        let n = turn.wrapping_mul(2_654_435_761) % NAMES;
        let (name, kind) = match turn % 10 {
            0 if !all => (format!("i{n}.{}", namespace(n)), "TXT"),
            1 if !all => (format!("none{n}.{}", namespace(n)), "A"),
            turn => (format!("i{n}.{}", namespace(n)), if turn % 2 == 0 { "A" } else { "AAAA" }),
        };
        writeln!(text, "{name}.seed.example {kind}").unwrap();
    }
    let path = place.join(if all { "hits" } else { "questions" });
    fs::write(&path, text).unwrap();
    path
}

fn instructions(count: usize, turns: usize) -> f64 {
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(program);
    let output = command.args(["worker", "dns-changes", &count.to_string(), &turns.to_string()]).output().expect("valgrind runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let total = text.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
    total.unwrap_or_else(|| panic!("callgrind: {}", text.lines().last().unwrap_or_default()))
}

pub fn measure(_: &mut Place, sheet: &mut Sheet) {
    flood::measure(sheet);
    let place = tempfile::tempdir().unwrap();
    let (mixed, hits) = (questions(place.path(), false), questions(place.path(), true));
    let (knot, ours) = (Serving::knot(place.path()), Serving::worker("dns", OURS));
    let hickory = Serving::worker("dns-hickory", HICKORY);
    let mut all: [Vec<f64>; 4] = Default::default();
    let mut lost = 0.0;
    for round in 0..ROUNDS {
        let (mine, gone) = ours.asked(OURS, &mixed);
        lost += gone;
        all[0].push(mine);
        all[1].push(knot.asked(KNOT, &mixed).0);
        if round % 2 == 0 {
            all[2].push(ours.asked(OURS, &hits).0);
            all[3].push(hickory.asked(HICKORY, &hits).0);
        }
    }
    let knots = format!("µs each round: Seed {:.2?}, Knot {:.2?}", all[0], all[1]);
    let hickorys = format!("names that are there; µs each round: Seed {:.2?}, hickory {:.2?}", all[2], all[3]);
    // Of each round by itself: what the machine does meanwhile is the same to both.
    let ratio = |ours: usize, theirs: usize| {
        meter::median(all[ours].iter().zip(&all[theirs]).map(|(ours, theirs)| ours / theirs).collect())
    };
    sheet.set("dns-knot", ratio(0, 1), knots);
    sheet.set("dns-hickory", ratio(2, 3), hickorys);
    sheet.set("dns-cpu", meter::median(all[0].clone()), "");
    sheet.set("dns-lost", lost, "");
    let (seed_pss, knot_pss) = (meter::pss(ours.0.id()), meter::pss(knot.0.id()));
    let note = format!("{seed_pss} KiB against {knot_pss} KiB; Seed's door alone, in this program");
    sheet.set("dns-memory", seed_pss as f64 / knot_pss as f64, note);

    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let calls = meter::counted(&[ours.0.id()], || {
        for id in 0..2000 {
            assert!(address(&socket, OURS, "i0", id).is_some(), "an answer");
        }
    });
    sheet.set("dns-calls", calls.all() / 2000.0, calls.top(2000.0));
    drop((ours, hickory));

    let small = instructions(10, 2000) - instructions(10, 1000);
    let large = instructions(NAMES, 2000) - instructions(NAMES, 1000);
    sheet.set("dns-size", large / small, format!("{:.0} and {:.0} instructions", large / 1000.0, small / 1000.0));

    let news = news();
    let at = |part: f64| news[((news.len() - 1) as f64 * part) as usize];
    sheet.set("dns-news", at(0.99), format!("{} changes, median {:.2} ms; a bus of its own", news.len(), at(0.5)));
    let mut times = Vec::new();
    for turn in 1..=20u8 {
        let began = Instant::now();
        let new = format!("new.{} 30 A 10.84.0.{turn}", namespace(0));
        let name = format!("new.{}", namespace(0));
        let told = |words: &[&str]| {
            let file = place.path().join("knot.conf").display().to_string();
            let mut command = Command::new("knotc");
            command.args(["-c", &file]).args(words).stdout(Stdio::null()).stderr(Stdio::null()).status().expect("knotc runs")
        };
        told(&["zone-begin", "seed.example"]);
        told(&["zone-unset", "seed.example", &name, "A"]);
        told(&[&["zone-set", "seed.example"][..], &new.split(' ').collect::<Vec<_>>()].concat());
        assert!(told(&["zone-commit", "seed.example"]).success(), "knotc");
        while address(&socket, KNOT, "new", turn.into()) != Some(turn) {}
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let theirs = meter::median(times);
    sheet.set("dns-knotc", at(0.5) / theirs, format!("{:.2} ms against {theirs:.2} ms", at(0.5)));
}

/// Milliseconds from a change, as the agent says it on a bus, to the answer that has it; in order.
fn news() -> Vec<f64> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(bus::news(zone(NAMES)))
}

/// A bus with a stand-in for the agent, as in `tests/doors`.
mod bus {
    use std::{
        net::{SocketAddr, UdpSocket},
        process::{Command, Stdio},
        sync::Arc,
        time::{Duration, Instant},
    };

    use seed::{
        bus::{NAME, PATH, SeedProxy, Zone},
        serve::dns::{keep_zone, serve_udp},
    };
    use zbus::object_server::SignalEmitter;

    struct Agent(Zone);

    #[zbus::interface(name = "farm.loom.Seed1")]
    impl Agent {
        fn zone(&self) -> String {
            serde_json::to_string(&self.0).unwrap()
        }
        #[zbus(signal)]
        async fn zone_changed(emitter: &SignalEmitter<'_>, serial: u32, change: &str) -> zbus::Result<()>;
    }

    pub async fn news(zone: Zone) -> Vec<f64> {
        let place = tempfile::tempdir().unwrap();
        let address = format!("unix:path={}", place.path().join("bus").display());
        let mut bus = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--nopidfile", "--address", &address])
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("dbus-daemon runs");
        while !place.path().join("bus").exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let connect = || zbus::connection::Builder::address(address.as_str());
        let agent = connect().serve_at(PATH, Agent(zone)).name(NAME).build().await.unwrap();
        let emitter = SignalEmitter::new(&agent, PATH).unwrap();
        let names = Arc::new(super::names(200));
        let doors = connect().build().await.unwrap();
        tokio::spawn(keep_zone(SeedProxy::new(&doors).await.unwrap(), Arc::clone(&names)));
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let SocketAddr::V4(at) = socket.local_addr().unwrap() else { panic!("loopback") };
        tokio::spawn(serve_udp(names, socket));
        let times = tokio::task::spawn_blocking(move || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            while super::address(&socket, at.port(), "i0", 0).is_none() {
                std::thread::sleep(Duration::from_millis(10));
            }
            let mut times = Vec::new();
            for turn in 0..1000u16 {
                let change = serde_json::to_string(&super::change(1 + u32::from(turn), turn.into())).unwrap();
                let began = Instant::now();
                tokio::runtime::Handle::current().block_on(Agent::zone_changed(&emitter, 2 + u32::from(turn), &change)).unwrap();
                while super::address(&socket, at.port(), "new", turn) != Some(turn as u8) {}
                times.push(began.elapsed().as_secs_f64() * 1e3);
            }
            times.sort_by(f64::total_cmp);
            times
        });
        let times = times.await.unwrap();
        bus.kill().unwrap();
        bus.wait().unwrap();
        times
    }
}
