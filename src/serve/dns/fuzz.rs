//! Packets at the DNS door, for a fuzzer: what `serve/fuzz.rs` says.

use std::{net::IpAddr, sync::LazyLock};

use hickory_proto::{op::Message, rr::RData};

use super::{
    Key, Names, Near, Now, Settings, Signer, Todo, answer,
    limit::{Limiter, Verdict},
    question::{self, Read},
};
use crate::bus::{Zone, ZoneEntry};

const STRANGER: [u8; 4] = [198, 51, 100, 1];
const SECONDARY: [u8; 4] = [192, 0, 2, 53];
const WEB: [u8; 4] = [10, 88, 0, 2];
/// An instance; somebody inside; an address that is nobody's.
const OTHERS: [[u8; 4]; 3] = [WEB, [127, 0, 0, 1], [10, 88, 0, 99]];
const NOW: Now = Now { millis: 7, seconds: 1_800_000_000 };

fn near() -> Near {
    let pool6 = "fd5e::/64".parse().expect("a network");
    Near { pool4: "10.88.0.0/24".parse().expect("a network"), pool6, gateways: vec![], inside: vec![] }
}

/// A host with two namespaces and a proof.
fn zone() -> Zone {
    let entry =
        |n: u8| ZoneEntry { ipv4: [10, 88, 0, n].into(), ipv6: [0xfd5e, 0, 0, 0, 0, 0, 0, n.into()].into(), beside: Vec::new() };
    let mut zone = Zone { serial: 7, domain: "seed.example".into(), host4: vec![[192, 0, 2, 1].into()], ..Zone::default() };
    zone.nameservers = vec!["ns2.example.net".into()];
    zone.caa = vec!["letsencrypt.org".into()];
    zone.namespaces.insert("s-aaaaaaaaaaaa".into(), [("web".to_owned(), entry(2)), ("api".to_owned(), entry(3))].into());
    zone.namespaces.insert("s-bbbbbbbbbbbb".into(), [("db".to_owned(), entry(4))].into());
    zone.challenges.insert("_acme-challenge.web.s-aaaaaaaaaaaa.seed.example".into(), vec!["one".into(), "x".repeat(300)]);
    zone
}

/// Its door. The zone is given to a secondary; the other is signed, which takes its time and which no configuration has together.
static NAMES: LazyLock<Names> = LazyLock::new(|| {
    let mut names = names();
    names.secondaries = Some(super::Secondaries { servers: vec![(SECONDARY, 53).into()], key: key() });
    names
});
static SECURE: LazyLock<Names> = LazyLock::new(|| {
    let mut names = names();
    names.signer = Signer::generate().and_then(|key| Signer::new(&key));
    names
});

fn names() -> Names {
    let settings = Settings { near: near(), upstream: vec![], rate: 1, zone_key: None, secondaries: vec![], transfer_key: None };
    let names = Names::new(settings).expect("no file is read");
    names.take(&zone());
    names
}

fn key() -> Key {
    Key::parse("hmac-sha256:transfer:c2VlZCBvZiBhIGtleSB0aGF0IGlzIGxvbmc=").expect("a key")
}

/// Whether a message tells an address of an instance.
fn tells_inside(message: &Message) -> bool {
    let near = near();
    let all = [&message.answers, &message.authorities, &message.additionals];
    all.into_iter().flatten().any(|record| match &record.data {
        RData::A(address) => near.pool4.contains(&address.0),
        RData::AAAA(address) => near.pool6.contains(&address.0),
        _ => false,
    })
}

/// What must be true of an answer, whoever asked.
fn check(packet: &[u8], from: IpAddr, out: &[u8], most: usize) {
    if out.is_empty() {
        return;
    }
    assert!(out.len() <= most, "{} bytes where {most} were to be had", out.len());
    assert!(packet.len() >= 12 && packet[2] & 0x80 == 0, "an answer was answered");
    assert_eq!((&out[..2], out[2] & 0x80), (&packet[..2], 0x80), "an answer to this");
    let read = Message::from_vec(out).unwrap_or_else(|error| panic!("another implementation cannot read it: {error}: {out:?}"));
    assert!(from != IpAddr::from(STRANGER) || !tells_inside(&read), "a stranger was told of the inside: {read}");
}

/// A packet from anybody, over both transports; and what it gets when his neighbourhood has had enough: never more than was sent.
pub fn question(packet: &[u8]) {
    // One of the others, and one transport more, by the id.
    let turn = packet.first().map_or(0, |byte| usize::from(*byte));
    let names = if turn.is_multiple_of(2) { &NAMES } else { &SECURE };
    let table = names.read();
    for from in [STRANGER, OTHERS[turn % 3]].map(IpAddr::from) {
        let mut out = Vec::new();
        let forward = names.over_udp(&table, packet, from, &mut Limiter::new(0), NOW, &mut out);
        assert!(!forward || from == IpAddr::from(WEB), "the world is only for instances");
        if !forward {
            check(packet, from, &out, answer::UDP_MAX);
        }
    }
    let mut spent = Limiter::new(1);
    while spent.count(STRANGER.into(), NOW.millis) == Verdict::Send {}
    for _ in 0..2 {
        let mut out = Vec::new();
        names.over_udp(&table, packet, STRANGER.into(), &mut spent, NOW, &mut out);
        check(packet, STRANGER.into(), &out, packet.len());
    }
    drop(table);
    let from = IpAddr::from([STRANGER, WEB, SECONDARY][turn / 3 % 3]);
    let mut out = Vec::new();
    match names.over_tcp(packet, from, &mut out) {
        Todo::Send => check(packet, from, &out, usize::from(u16::MAX)),
        Todo::Transfer(_) => panic!("the zone was given to somebody who has not signed"),
        Todo::Nothing | Todo::Forward => {}
    }
}

/// A packet that is signed with the key of the secondaries, of which the first three bytes then change one: what was signed is answered,
/// and what was changed is not.
pub fn signed(bytes: &[u8]) {
    let Some((&[high, low, flip], packet)) = bytes.split_first_chunk::<3>() else { return };
    if !matches!(question::read(packet), Read::Question(asked) if asked.tsig.is_none()) {
        return;
    }
    let now = super::seconds();
    let mut message = packet.to_vec();
    key().sign_first(&mut message, now);
    let mut out = Vec::new();
    match NAMES.over_tcp(&message, SECONDARY.into(), &mut out) {
        Todo::Transfer(messages) => {
            for message in messages {
                let read = Message::from_vec(&message).expect("another implementation reads it");
                assert!(!tells_inside(&read), "a secondary is the world");
            }
        }
        Todo::Send => check(&message, SECONDARY.into(), &out, usize::from(u16::MAX)),
        Todo::Nothing | Todo::Forward => panic!("it was not answered"),
    }
    let at = usize::from(u16::from_be_bytes([high, low])) % message.len();
    // The id is not signed, nor whether a letter of the key's name is a capital.
    if at < 2 || matches!(flip, 0 | 0x20) {
        return;
    }
    message[at] ^= flip;
    if let Read::Question(asked) = question::read(&message)
        && asked.tsig.is_some()
    {
        assert!(key().verify(&asked, now).is_err(), "byte {at} was changed");
    }
    assert!(!matches!(NAMES.over_tcp(&message, SECONDARY.into(), &mut out), Todo::Transfer(_)));
}

/// What a resolver answers, from its flags on: what an instance is told of it says nothing of the inside, and fits.
pub fn forwarded(bytes: &[u8]) {
    const ASKED: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03WWW\x07example\0\0\x01\0\x01";
    let Some((&[flags, code, a0, a1, u0, u1, d0, d1], rest)) = bytes.split_first_chunk::<8>() else { return };
    let Read::Question(asked) = question::read(ASKED) else { panic!("it is a question") };
    let head = [0x12, 0x34, flags, code, 0, 1, a0, a1, u0, u1, d0, d1];
    let came = [&head[..], &ASKED[12..], rest].concat();
    if let Some(told) = super::forward::told(&came, &asked, &near(), 7, answer::room(&asked, true)) {
        assert!(told.len() <= 512 && told[..2] == ASKED[..2] && told[12..asked.end] == ASKED[12..asked.end]);
        let read = Message::from_vec(&told).unwrap_or_else(|error| panic!("it cannot be read: {error}: {told:?}"));
        assert!(!tells_inside(&read), "{read}");
    }
}
