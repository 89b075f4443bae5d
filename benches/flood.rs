//! C-R8: what a stranger gets for questions with somebody else's address on them. In a network of its own, where strangers can be.

use std::{net::Ipv4Addr, process::Command, sync::Arc};

use seed::serve::dns::serve_udp;
use tokio::net::UdpSocket;

use crate::{
    dns,
    table::{Row, Sheet},
};

const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The victim's neighbourhood has this many addresses here, each of which is written on this many questions at a time.
const VICTIMS: u8 = 16;
const AT_ONCE: usize = 4;
const ROUNDS: usize = 300;

pub fn rows() -> Vec<Row> {
    vec![
        Row::new("dns-flood", "C-R8", "DNS: bytes answered a byte asked, past the limit", "-", "x", 1.0),
        Row::new("dns-loop", "C-R8", "DNS: answers to 2,000 answers", "-", "", 0.0),
    ]
}

fn question(turn: usize, flags: u8) -> Vec<u8> {
    // Answers of 60 addresses, of three long texts, of nothing, of everything, and the zone.
    let (name, kind): (&str, u16) = [
        ("seed.example", 1),
        ("_acme-challenge.seed.example", 16),
        ("none.seed.example", 28),
        ("seed.example", 255),
        ("seed.example", 252),
        ("seed.example", 251),
    ][turn % 6];
    let mut packet = vec![(turn >> 8) as u8, turn as u8, flags, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in name.split('.').chain([""]) {
        packet.push(label.len() as u8);
        packet.extend(label.as_bytes());
    }
    packet.extend(kind.to_be_bytes());
    packet.extend([0, 1, 0, 0, 41, 16, 0, 0, 0, 128, 0, 0, 0]);
    packet
}

/// Floods a door that gives a neighbourhood one answer a second, and prints what was asked and answered.
pub async fn flood() {
    let names = Arc::new(dns::names(1));
    let mut zone = dns::zone(10);
    zone.host4 = (1..=60).map(|n| [192, 0, 2, n].into()).collect();
    zone.challenges.insert("_acme-challenge.seed.example".into(), (0..3).map(|n| n.to_string().repeat(250)).collect());
    names.take(&zone);
    let door = UdpSocket::bind((SERVER, 53)).await.unwrap();
    nix::sys::socket::setsockopt(&door, nix::sys::socket::sockopt::RcvBufForce, &(4 << 20)).unwrap();
    tokio::spawn(serve_udp(names, door));
    // Whoever asks from the host's own address is always answered, in turn: then everything before was read.
    let host = UdpSocket::bind((SERVER, 0)).await.unwrap();
    host.connect((SERVER, 53)).await.unwrap();
    let mut victims = Vec::new();
    for n in 1..=VICTIMS {
        let victim = UdpSocket::bind((Ipv4Addr::new(198, 51, 100, n), 0)).await.unwrap();
        victim.connect((SERVER, 53)).await.unwrap();
        victims.push(victim);
    }
    let (mut asked, mut answered, mut looped, mut buffer) = (0, 0, 0, [0; 65536]);
    for round in 0..ROUNDS + 32 {
        let flags = if round < ROUNDS { 1 } else { 0x81 };
        for (n, victim) in victims.iter().enumerate() {
            for turn in 0..AT_ONCE {
                let packet = question(round * 7 + n * AT_ONCE + turn, flags);
                victim.send(&packet).await.unwrap();
                // The first round is what a neighbourhood may have.
                asked += if (1..ROUNDS).contains(&round) { packet.len() } else { 0 };
            }
        }
        host.send(&question(0, 1)).await.unwrap();
        host.recv(&mut buffer).await.unwrap();
        for victim in &victims {
            // What was sent to it is there.
            while let Ok(length) = victim.try_recv(&mut buffer) {
                match round {
                    0 => {}
                    1..ROUNDS => answered += length,
                    _ => looped += 1,
                }
            }
        }
    }
    println!("{asked} {answered} {looped}");
}

pub fn measure(sheet: &mut Sheet) {
    let program = std::env::current_exe().unwrap();
    let network = "ip link set lo up && ip address add 192.0.2.1/32 dev lo && ip address add 198.51.100.1/24 dev lo && exec \"$0\" worker dns-flood";
    let output = Command::new("unshare").args(["--net", "sh", "-c", network]).arg(program).output().expect("unshare runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let figures: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [asked, answered, looped] = figures[..] else { panic!("{}", String::from_utf8_lossy(&output.stderr)) };
    sheet.set(
        "dns-flood",
        answered / asked,
        format!("{answered} bytes for {asked}, in the name of 16 addresses of one neighbourhood, which has one answer a second"),
    );
    sheet.set("dns-loop", looped, "");
}
