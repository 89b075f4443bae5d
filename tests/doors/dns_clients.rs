//! The DNS door, and the clients of others: dig, kdig, delv, and a secondary that is told and takes the zone.

use std::{process::Command, time::Duration};

use seed::bus::{Zone, ZoneEntry};
use tokio::net::UdpSocket;

use crate::support::World;

pub const SECRET: &str = "hmac-sha256:transfer:c2VlZCBvZiBhIGtleSB0aGF0IGlzIGxvbmc=";

pub fn zone(serial: u32, instances: u32) -> Zone {
    let entry = |n: u32| ZoneEntry {
        ipv4: (0x7f58_0002 + n).into(),
        ipv6: (0xfd5e_u128 << 112 | u128::from(n)).into(),
        beside: Vec::new(),
    };
    let mut zone = Zone { serial, domain: "seed.example".into(), host4: vec![[192, 0, 2, 1].into()], ..Zone::default() };
    zone.caa = vec!["letsencrypt.org".into()];
    zone.namespaces.insert("s-aaaaaaaaaaaa".into(), (0..instances).map(|n| (format!("i{n}"), entry(n))).collect());
    zone.challenges.insert("_acme-challenge.i0.s-aaaaaaaaaaaa.seed.example".into(), vec!["proof".into()]);
    zone
}

/// What a program says.
pub fn said(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What dig says, with one space for each of its gaps.
fn dig(world: &World, words: &[&str]) -> String {
    let port = world.dns.port().to_string();
    let text = said("dig", &[&["@127.0.0.1", "-p", &port, "+tries=1", "+timeout=5"], words].concat());
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect()
}

async fn settled(world: &World) {
    for _ in 0..500 {
        if dig(world, &["+short", "i0.s-aaaaaaaaaaaa.seed.example"]).contains("127.88.0.2") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the doors took no zone");
}

pub async fn world(zone: Zone, settings: impl FnOnce(&mut seed::serve::Settings)) -> World {
    let world = World::with(settings).await;
    crate::dns::change(&world, zone).await;
    settled(&world).await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn dig_gets_what_it_asks_for() {
    let world = world(zone(2, 3), |_| {}).await;
    let has = |words: &[&str], expected: &[&str]| {
        let text = dig(&world, words);
        expected.iter().for_each(|part| assert!(text.contains(part), "{words:?}: no {part:?} in {text}"));
    };
    let name = "i0.s-aaaaaaaaaaaa.seed.example";
    has(&[name], &["status: NOERROR", "flags: qr aa rd;", "127.88.0.2", "EDNS: version: 0", "udp: 1232", "COOKIE:", "(good)"]);
    has(&["+tcp", name, "AAAA"], &["status: NOERROR", "fd5e::"]);
    has(&["seed.example", "CAA"], &["0 issue \"letsencrypt.org\""]);
    has(&["seed.example", "NS"], &["ns1.seed.example.", "ADDITIONAL: 2", "192.0.2.1"]);
    has(&["_acme-challenge.i0.s-aaaaaaaaaaaa.seed.example", "TXT"], &["\"proof\"", " 0 IN TXT"]);
    has(&["none.s-aaaaaaaaaaaa.seed.example"], &["status: NXDOMAIN", "SOA"]);
    has(&[name, "MX"], &["status: NOERROR", "ANSWER: 0, AUTHORITY: 1"]);
    has(&[name, "ANY", "+notcp"], &["HINFO", "RFC8482"]);
    has(&["example.org"], &["status: REFUSED"]);
    has(&["seed.example", "AXFR"], &["Transfer failed"]);
    has(&["+edns=1", "+noednsnegotiation", name], &["status: BADVERS"]);
    has(&["+opcode=notify", name], &["status: NOTIMP"]);
    has(&["-c", "CH", "version.bind", "TXT"], &["status: REFUSED"]);
    // Many questions on one connection.
    let many: Vec<&str> = std::iter::repeat_n(name, 50).collect();
    let text = dig(&world, &[&["+tcp", "+keepopen", "+short"], &many[..]].concat());
    assert_eq!(text.matches("127.88.0.2").count(), 50, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn kdig_gets_what_it_asks_for() {
    let world = world(zone(2, 3), |settings| settings.dns.zone_key = Some(settings.repositories.with_file_name("zone.key"))).await;
    let has = |words: &[&str], expected: &[&str]| {
        let text = said("kdig", &[&["@127.0.0.1", "-p", &world.dns.port().to_string(), "+retry=0"], words].concat());
        expected.iter().for_each(|part| assert!(text.contains(part), "{words:?}: no {part:?} in {text}"));
    };
    let name = "i0.s-aaaaaaaaaaaa.seed.example";
    has(&[name], &["status: NOERROR", "127.88.0.2", "Flags: qr aa rd"]);
    has(&["+dnssec", name, "AAAA"], &["fd5e::", "RRSIG", "AAAA 13 4 30"]);
    has(&["+tcp", "+cookie=0102030405060708", name], &["(TCP)", "127.88.0.2"]);
    has(&["+cookie=0102030405060708", name], &["COOKIE: 0102030405060708"]);
    has(&["+edns=1", name], &["BADVERS"]);
    has(&["+nocrypto", "+dnssec", "none.s-aaaaaaaaaaaa.seed.example"], &["status: NXDOMAIN", "NSEC"]);
    has(&["seed.example", "CAA"], &["0 issue \"letsencrypt.org\""]);
    has(&["seed.example", "AXFR"], &["REFUSED"]);
    has(&["seed.example", "IXFR=1"], &["REFUSED"]);
    has(&["example.org"], &["status: REFUSED"]);
    has(&["+padding=300", "+bufsize=512", name], &["127.88.0.2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn delv_believes_a_signed_zone_and_what_it_says_is_not_there() {
    let world = world(zone(2, 3), |settings| {
        let key = settings.repositories.with_file_name("zone.key");
        settings.dns.zone_key = Some(key);
    })
    .await;
    let key = world.path("zone.key");
    let signer = seed::serve::dns::Signer::load(&key).unwrap();
    let ds = signer.ds(&seed::serve::dns::wire("seed.example").unwrap());
    let [tag, algorithm, digest, value] = ds.split(' ').collect::<Vec<_>>()[..] else { panic!("{ds}") };
    let anchor = world.path("anchor");
    let text = format!("trust-anchors {{ seed.example. static-ds {tag} {algorithm} {digest} \"{value}\"; }};\n");
    std::fs::write(&anchor, text).unwrap();
    let port = world.dns.port().to_string();
    let anchor = anchor.display().to_string();
    let delv = |name: &str, kind: &str| said("delv", &["@127.0.0.1", "-p", &port, "-a", &anchor, "+root=seed.example", name, kind]);
    for (name, kind, expected) in [
        ("i0.s-aaaaaaaaaaaa.seed.example", "A", "; fully validated"),
        ("i0.s-aaaaaaaaaaaa.seed.example", "AAAA", "; fully validated"),
        ("seed.example", "NS", "; fully validated"),
        ("seed.example", "SOA", "; fully validated"),
        ("seed.example", "CAA", "; fully validated"),
        ("seed.example", "DNSKEY", "; fully validated"),
        ("_acme-challenge.i0.s-aaaaaaaaaaaa.seed.example", "TXT", "; fully validated"),
        ("i0.s-aaaaaaaaaaaa.seed.example", "MX", "ncache nxrrset"),
        ("s-aaaaaaaaaaaa.seed.example", "A", "ncache nxrrset"),
        ("none.s-aaaaaaaaaaaa.seed.example", "A", "ncache nxdomain"),
        ("a.b.c.d.seed.example", "A", "ncache nxdomain"),
        ("x.i0.s-aaaaaaaaaaaa.seed.example", "A", "ncache nxdomain"),
    ] {
        let text = delv(name, kind);
        assert!(text.contains(expected), "{name} {kind}: {text}");
        assert!(!text.contains("unsigned") && !text.contains("resolution failed: insecurity"), "{name} {kind}: {text}");
    }
    // With another key above, nothing is believed: what was seen before was worth something.
    std::fs::write(
        world.path("anchor"),
        format!("trust-anchors {{ seed.example. static-ds {tag} 13 2 \"{}\"; }};\n", "0".repeat(64)),
    )
    .unwrap();
    let text = delv("i0.s-aaaaaaaaaaaa.seed.example", "A");
    assert!(!text.contains("fully validated"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secondary_that_knows_the_key_is_told_and_takes_the_zone() {
    let secondary = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = secondary.local_addr().unwrap();
    let world = world(zone(2, 2000), |settings| {
        let key = settings.repositories.with_file_name("transfer.key");
        std::fs::write(&key, format!("# made by hand\n{SECRET}\n")).unwrap();
        settings.dns.transfer_key = Some(key);
        settings.dns.secondaries = vec![at];
    })
    .await;
    let mut told = [0; 512];
    let (length, from) =
        tokio::time::timeout(Duration::from_secs(10), secondary.recv_from(&mut told)).await.expect("news").unwrap();
    // It does not say that it has heard: it is told again, at the same serial or a later one.
    let notify = hickory_proto::op::Message::from_vec(&told[..length]).unwrap();
    assert_eq!(notify.metadata.op_code, hickory_proto::op::OpCode::Notify);
    told[2] |= 0x80;
    secondary.send_to(&told[..length], from).await.unwrap();

    let whole = dig(&world, &["-y", SECRET, "seed.example", "AXFR"]);
    assert!(whole.contains("XFR size: 2008 records"), "{}", whole.lines().rev().take(8).collect::<Vec<_>>().join("\n"));
    // As the world sees it: inside addresses stay here.
    assert!(whole.contains("i1999.s-aaaaaaaaaaaa.seed.example. 30 IN A 192.0.2.1"));
    assert!(!whole.contains("127.88.") && whole.contains("\"proof\""));
    let soa = dig(&world, &["-y", SECRET, "seed.example", "SOA"]);
    assert!(
        soa.contains("status: NOERROR") && soa.contains("TSIG PSEUDOSECTION") && !soa.contains("could not be validated"),
        "{soa}"
    );
    let other = SECRET.replace("c2Vl", "d2Vl");
    for words in [vec!["seed.example", "AXFR"], vec!["-y", other.as_str(), "seed.example", "AXFR"]] {
        let refused = dig(&world, &words);
        assert!(refused.contains("Transfer failed") && !refused.contains("192.0.2.1"), "{words:?}: {refused}");
    }
    let renamed = SECRET.replace("transfer", "other");
    assert!(dig(&world, &["-y", &renamed, "seed.example", "SOA"]).contains("BADKEY"));
    assert!(dig(&world, &["-y", &other, "seed.example", "SOA"]).contains("BADSIG"));
    // From another address even the key is not enough.
    let stranger = dig(&world, &["-b", "127.0.0.9", "-y", SECRET, "seed.example", "AXFR"]);
    assert!(stranger.contains("Transfer failed"), "{stranger}");
}
