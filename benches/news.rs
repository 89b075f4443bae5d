//! C-P2 with the agent in it: from asking the real agent for a change to the answer of the real doors, on a machine of its own. The change
//! is a proof for a certificate of the host, which is on the disk before it is told to anybody.

use std::{
    collections::BTreeSet,
    net::UdpSocket,
    time::{Duration, Instant},
};

use seed::bus::acme::{AcmeProxy, Asked, Own, Problem, Report};

use crate::{
    place::{Place, WORKER},
    table::{Row, Sheet},
};

const TURNS: usize = 500;

pub fn rows() -> Vec<Row> {
    vec![
        Row::new("news-agent", "C-P2", "DNS: change asked of the agent to correct answer, median", "-", "ms", 2.0),
        Row::known("news-p99", "C-P2", "DNS: change asked of the agent to correct answer, p99", "-", "ms"),
    ]
}

/// The data of the last TXT record of a proof for the host, of which there is one at a time.
fn proof(socket: &UdpSocket, id: u16) -> Option<[u8; 43]> {
    let mut packet = vec![(id >> 8) as u8, id as u8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ["_acme-challenge", "seed", "example", ""] {
        packet.push(label.len() as u8);
        packet.extend(label.as_bytes());
    }
    packet.extend([0, 16, 0, 1]);
    socket.send_to(&packet, ("127.0.0.1", 53)).unwrap();
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).ok()?;
    (answer[7] == 1 && answer[..2] == packet[..2]).then(|| answer[length - 43..length].try_into().unwrap())
}

/// On the machine: prints how long each change took, in microseconds.
pub async fn ask(turns: usize) {
    let bus = zbus::Connection::system().await.unwrap();
    let agent = AcmeProxy::new(&bus).await.unwrap();
    let names = BTreeSet::from(["seed.example".to_owned(), "silo.seed.example".to_owned()]);
    let asked = Asked { csr: "csr".to_owned(), key: "key".to_owned(), names };
    let own: Own = serde_json::from_str(&agent.own(&serde_json::to_string(&asked).unwrap()).await.unwrap()).unwrap();
    let order = own.order.expect("an order").id;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    for turn in 0..turns {
        let report = async |report: Report| agent.report(&serde_json::to_string(&report).unwrap()).await.unwrap();
        // It forgets the proof before.
        report(Report::Begun { order: order.clone(), upstream: "https://ca.example/order".to_owned() }).await;
        while proof(&socket, turn as u16).is_some() {}
        let value = format!("{turn:0>43}");
        let challenge =
            Report::Challenge { order: order.clone(), name: "_acme-challenge.seed.example".to_owned(), value: value.clone() };
        let began = Instant::now();
        report(challenge).await;
        while proof(&socket, turn as u16).is_none_or(|shown| shown != *value.as_bytes()) {}
        println!("{}", began.elapsed().as_micros());
    }
    let problem = Problem::new(403, "unauthorized", "it was measured");
    agent.report(&serde_json::to_string(&Report::Failed { order, problem }).unwrap()).await.unwrap();
}

pub fn measure(place: &mut Place, sheet: &mut Sheet) {
    let host = place.plain();
    let said = host.run(&[WORKER, "worker", "news", &TURNS.to_string()]);
    let mut times: Vec<f64> = said.lines().map(|line| line.parse::<f64>().unwrap() / 1e3).collect();
    assert_eq!(times.len(), TURNS);
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times[((TURNS - 1) as f64 * part) as usize];
    let disk = host.run(&[WORKER, "worker", "commits", "/var/lib/seed/measured", "200", "1"]);
    let disk = disk.trim().parse::<f64>().unwrap() / 1e3;
    sheet.set("news-agent", at(0.5), format!("{TURNS} changes; a commit alone is {disk:.2} ms"));
    sheet.set("news-p99", at(0.99), "");
}
