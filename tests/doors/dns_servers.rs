//! The DNS door, and the servers of others: Knot as a secondary that is told and takes the zone, unbound as a resolver that believes nothing
//! that is not signed.

use std::{
    fs,
    net::UdpSocket,
    process::{Child, Command, Stdio},
    time::Duration,
};

use seed::serve::dns::{Signer, wire};

use crate::{
    dns_clients::{SECRET, said, world, zone},
    support::World,
};

/// A server, ended when dropped.
struct Server {
    child: Child,
    port: u16,
    log: std::path::PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A UDP port that nothing has.
fn free() -> u16 {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Server {
    fn start(world: &World, program: &str, words: &[&str], port: u16, configuration: &str) -> Self {
        let (file, log) = (world.path(&format!("{program}.conf")), world.path(&format!("{program}.log")));
        fs::write(&file, configuration).unwrap();
        let out = fs::File::create(&log).unwrap();
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
        let mut command = Command::new("env");
        command.env("PATH", path).arg(program).args(words).arg("-c").arg(&file).stdin(Stdio::null());
        let child = command.stdout(out.try_clone().unwrap()).stderr(out).spawn().unwrap();
        Self { child, port, log }
    }

    fn dig(&self, words: &[&str]) -> String {
        said("dig", &[&["@127.0.0.1", "-p", &self.port.to_string(), "+tries=1", "+timeout=5"], words].concat())
    }

    /// Asks until the answer has this.
    async fn says(&self, words: &[&str], expected: &str) -> String {
        let mut text = String::new();
        for _ in 0..300 {
            text = self.dig(words);
            if text.contains(expected) {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{words:?}: no {expected:?} in {text}\n{}", fs::read_to_string(&self.log).unwrap_or_default())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn knot_is_told_takes_the_zone_and_stays_in_step() {
    let port = free();
    let world = world(zone(2, 1500), |settings| {
        let key = settings.repositories.with_file_name("transfer.key");
        fs::write(&key, format!("{SECRET}\n")).unwrap();
        settings.dns.transfer_key = Some(key);
        settings.dns.secondaries = vec![([127, 0, 0, 1], port).into()];
    })
    .await;
    let (at, secret) = (world.path("knot"), SECRET.rsplit(':').next().unwrap());
    fs::create_dir(&at).unwrap();
    let at = at.display();
    let knot = Server::start(
        &world,
        "knotd",
        &[],
        port,
        &format!(
            "server:\n  rundir: {at}\n  listen: 127.0.0.1@{port}\nlog:\n- target: stderr\n  any: info\ndatabase:\n  storage: {at}\n\
             key:\n- id: transfer\n  algorithm: hmac-sha256\n  secret: {secret}\n\
             remote:\n- id: seed\n  address: 127.0.0.1@{}\n  key: transfer\n\
             acl:\n- id: seed\n  address: 127.0.0.1\n  key: transfer\n  action: notify\n\
             zone:\n- domain: seed.example\n  storage: {at}\n  master: seed\n  acl: seed\n",
            world.dns.port()
        ),
    );
    // It has all of it, as the world sees it.
    let last = "i1499.s-aaaaaaaaaaaa.seed.example";
    knot.says(&[last], "192.0.2.1").await;
    let soa = knot.dig(&["+short", "seed.example", "SOA"]);
    assert!(soa.contains(" 2 "), "{soa}");
    assert!(knot.dig(&["seed.example", "CAA"]).contains("letsencrypt.org"));
    assert!(knot.dig(&["_acme-challenge.i0.s-aaaaaaaaaaaa.seed.example", "TXT"]).contains("\"proof\""));
    assert!(knot.dig(&["none.s-aaaaaaaaaaaa.seed.example"]).contains("NXDOMAIN"));
    // Nothing but our word makes it ask again this soon: the zone says that an hour is early enough.
    crate::dns::change(&world, zone(3, 1501)).await;
    knot.says(&["i1500.s-aaaaaaaaaaaa.seed.example"], "192.0.2.1").await;
    crate::dns::change(&world, zone(4, 1)).await;
    knot.says(&[last], "NXDOMAIN").await;
    let soa = knot.dig(&["+short", "seed.example", "SOA"]);
    assert!(soa.contains(" 4 "), "{soa}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unbound_resolves_and_believes_the_zone() {
    let mut zone = zone(2, 3);
    // Proofs of more than fits into a datagram: it asks again over TCP.
    let long = (0..9).map(|n| n.to_string().repeat(200)).collect();
    zone.challenges.insert("_acme-challenge.i1.s-aaaaaaaaaaaa.seed.example".into(), long);
    let world = world(zone, |settings| settings.dns.zone_key = Some(settings.repositories.with_file_name("zone.key"))).await;
    let ds = Signer::load(&world.path("zone.key")).unwrap().ds(&wire("seed.example").unwrap());
    let port = free();
    let unbound = |ds: &str| {
        let configuration = format!(
            "server:\n  directory: {at:?}\n  pidfile: \"\"\n  username: \"\"\n  chroot: \"\"\n  use-syslog: no\n  verbosity: 2\n  \
             do-daemonize: no\n  interface: 127.0.0.1\n  port: {port}\n  do-not-query-localhost: no\n  trust-anchor-signaling: no\n  \
             use-caps-for-id: yes\n  qname-minimisation: yes\n  qname-minimisation-strict: yes\n  aggressive-nsec: yes\n  val-log-level: 2\n  \
             trust-anchor: \"seed.example. DS {ds}\"\nstub-zone:\n  name: seed.example\n  stub-addr: 127.0.0.1@{}\n\
             remote-control:\n  control-enable: no\n",
            world.dns.port(),
            at = world.directory.path(),
        );
        Server::start(&world, "unbound", &["-d"], port, &configuration)
    };
    let believing = unbound(&ds);
    let (name, nobody) = ("i0.s-aaaaaaaaaaaa.seed.example", "none.s-aaaaaaaaaaaa.seed.example");
    let text = believing.says(&["+dnssec", name], "127.88.0.2").await;
    assert!(text.contains(" ad;") && text.contains("RRSIG"), "{text}");
    for (words, status, expected) in [
        ([name, "AAAA"], "NOERROR", "fd5e::"),
        ([name, "MX"], "NOERROR", "SOA"),
        ([nobody, "A"], "NXDOMAIN", "SOA"),
        // What was just denied says nothing of its neighbours, though it may be concluded from.
        (["i1.s-aaaaaaaaaaaa.seed.example", "A"], "NOERROR", "127.88.0.3"),
        (["i2.s-aaaaaaaaaaaa.seed.example", "A"], "NOERROR", "127.88.0.4"),
        (["s-aaaaaaaaaaaa.seed.example", "A"], "NOERROR", "SOA"),
        (["a.b.c.seed.example", "A"], "NXDOMAIN", "SOA"),
        (["seed.example", "CAA"], "NOERROR", "letsencrypt.org"),
        (["seed.example", "DNSKEY"], "NOERROR", "257 3 13"),
        (["_acme-challenge.i1.s-aaaaaaaaaaaa.seed.example", "TXT"], "NOERROR", "8888888888"),
    ] {
        let text = believing.dig(&[&["+adflag"], &words[..]].concat());
        let log = || fs::read_to_string(&believing.log).unwrap_or_default();
        assert!(text.contains(&format!("status: {status}")) && text.contains(expected), "{words:?}: {text}\n{}", log());
        assert!(text.contains(" ad;"), "{words:?} is not believed: {text}\n{}", log());
    }
    drop(believing);
    // With another key above, the same answers are worth nothing.
    let doubting = unbound(&format!("{} 13 2 {}", ds.split(' ').next().unwrap(), "0".repeat(64)));
    let text = doubting.says(&[name], "status: SERVFAIL").await;
    assert!(!text.contains("127.88.0.2"), "{text}");
}
