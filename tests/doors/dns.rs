//! The DNS door, with real packets.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use seed::bus::{Zone, ZoneChange, ZoneEntry};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, UdpSocket},
};

use crate::support::World;

const STRANGER: [u8; 4] = [127, 0, 0, 1];
const WEB: [u8; 4] = [127, 0, 0, 2];

fn zone(serial: u32, instances: &[(&str, [u8; 4])]) -> Zone {
    let entry = |v4: [u8; 4]| ZoneEntry { ipv4: v4.into(), ipv6: "fd5e::2".parse().unwrap(), beside: Vec::new() };
    let instances = instances.iter().map(|(name, v4)| ((*name).to_owned(), entry(*v4))).collect();
    let mut zone = Zone { serial, domain: "seed.example".into(), host4: vec![[192, 0, 2, 1].into()], ..Zone::default() };
    zone.namespaces.insert("s-aaaaaaaaaaaa".into(), instances);
    zone
}

fn question(name: &str) -> Message {
    let mut message = Message::query();
    message.queries.push(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message.metadata.recursion_desired = true;
    message
}

async fn ask_udp(from: [u8; 4], server: SocketAddr, asked: &Message) -> Message {
    let socket = UdpSocket::bind((Ipv4Addr::from(from), 0)).await.unwrap();
    socket.send_to(&asked.to_vec().unwrap(), server).await.unwrap();
    let mut buffer = [0; 4096];
    let received = tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer)).await.expect("an answer").unwrap();
    let answer = Message::from_vec(&buffer[..received]).unwrap();
    assert_eq!(answer.metadata.id, asked.metadata.id);
    answer
}

async fn ask_tcp(from: [u8; 4], server: SocketAddr, asked: &Message) -> Message {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::from(from), 0).into()).unwrap();
    let mut stream = socket.connect(server).await.unwrap();
    let bytes = asked.to_vec().unwrap();
    // Two questions on one connection.
    for _ in 0..2 {
        stream.write_u16(bytes.len() as u16).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
    }
    let mut answer = Vec::new();
    for _ in 0..2 {
        answer = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut answer).await.unwrap();
    }
    Message::from_vec(&answer).unwrap()
}

fn addresses(answer: &Message) -> Vec<String> {
    answer.answers.iter().map(|record| record.data.to_string()).collect()
}

/// Until the doors have taken the zone.
async fn settled(world: &World, name: &str, expected: ResponseCode) {
    for _ in 0..500 {
        if ask_udp(STRANGER, world.dns, &question(name)).await.metadata.response_code == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{name} never became {expected}");
}

pub async fn change(world: &World, zone: Zone) {
    let serial = zone.serial;
    world.agent.told().zone = zone;
    let emitter = world.agent_bus.object_server().interface::<_, crate::support::Agent>(seed::bus::PATH).await.unwrap();
    crate::support::Agent::zone_changed(emitter.signal_emitter(), serial, "").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_zone_is_served_over_both_transports_and_follows_the_agent() {
    let world = World::new().await;
    let name = "web.s-aaaaaaaaaaaa.seed.example.";
    settled(&world, name, ResponseCode::NXDomain).await;
    change(&world, zone(2, &[("web", [10, 88, 0, 2])])).await;
    settled(&world, name, ResponseCode::NoError).await;
    assert_eq!(addresses(&ask_udp(STRANGER, world.dns, &question(name)).await), ["10.88.0.2"]);
    assert_eq!(addresses(&ask_tcp(STRANGER, world.dns, &question(name)).await), ["10.88.0.2"]);
    // While the agent is away, the last zone goes on; when it is back, so is its word, signal or not.
    world.agent_leaves().await;
    assert_eq!(addresses(&ask_udp(STRANGER, world.dns, &question(name)).await), ["10.88.0.2"]);
    world.agent.told().zone = zone(3, &[]);
    world.agent_returns().await;
    settled(&world, name, ResponseCode::NXDomain).await;
    assert_eq!(ask_udp(STRANGER, world.dns, &question("example.org.")).await.metadata.response_code, ResponseCode::Refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_taken_as_it_is_said_and_the_zone_is_not_asked_for_again() {
    let world = World::new().await;
    let (web, api) = ("web.s-aaaaaaaaaaaa.seed.example.", "api.s-aaaaaaaaaaaa.seed.example.");
    change(&world, zone(2, &[("web", [10, 88, 0, 2])])).await;
    settled(&world, web, ResponseCode::NoError).await;
    // Whoever asked for the whole would find neither.
    world.agent.told().zone = zone(3, &[]);
    let entry = zone(0, &[("api", [10, 88, 0, 3])]).namespaces["s-aaaaaaaaaaaa"]["api"].clone();
    let instances = [("s-aaaaaaaaaaaa/api".to_owned(), Some(entry)), ("s-aaaaaaaaaaaa/web".to_owned(), None)].into();
    let said = ZoneChange { from: 2, serial: 3, instances, challenges: Default::default() };
    let emitter = world.agent_bus.object_server().interface::<_, crate::support::Agent>(seed::bus::PATH).await.unwrap();
    let said = serde_json::to_string(&said).unwrap();
    crate::support::Agent::zone_changed(emitter.signal_emitter(), 3, &said).await.unwrap();
    settled(&world, api, ResponseCode::NoError).await;
    assert_eq!(addresses(&ask_udp(STRANGER, world.dns, &question(api)).await), ["10.88.0.3"]);
    assert_eq!(ask_udp(STRANGER, world.dns, &question(web)).await.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_instances_are_answered_for_the_world() {
    // A resolver that first lies (another id, then another question), then answers.
    let resolver = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = resolver.local_addr().unwrap();
    let asked_of_it = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked_of_it);
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (length, peer) = resolver.recv_from(&mut buffer).await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            let asked = Message::from_vec(&buffer[..length]).unwrap();
            let mut answer = Message::response(asked.metadata.id, asked.metadata.op_code);
            answer.queries.clone_from(&asked.queries);
            let name = asked.queries[0].name().clone();
            for (id, name, last) in [
                (asked.metadata.id.wrapping_add(1), name.clone(), 66),
                (asked.metadata.id, Name::from_ascii("other.example.").unwrap(), 67),
                (asked.metadata.id, name, 1),
            ] {
                answer.metadata.id = id;
                answer.queries[0].set_name(name.clone());
                answer.answers = vec![Record::from_rdata(name, 60, RData::A(A(Ipv4Addr::new(203, 0, 113, last))))];
                resolver.send_to(&answer.to_vec().unwrap(), peer).await.unwrap();
            }
        }
    });
    let world = World::with(|settings| settings.dns.upstream = vec![at]).await;
    change(&world, zone(2, &[("web", WEB), ("api", [10, 88, 0, 3])])).await;
    settled(&world, "web.s-aaaaaaaaaaaa.seed.example.", ResponseCode::NoError).await;
    assert_eq!(addresses(&ask_udp(WEB, world.dns, &question("api.")).await), ["10.88.0.3"]);
    assert_eq!(addresses(&ask_tcp(WEB, world.dns, &question("api.")).await), ["10.88.0.3"]);
    for _ in 0..3 {
        assert_eq!(addresses(&ask_udp(WEB, world.dns, &question("Example.org.")).await), ["203.0.113.1"]);
    }
    assert_eq!(asked_of_it.load(Ordering::Relaxed), 1, "an answer is kept");
    // Many questions in one piece, some of which are asked elsewhere: each gets its answer, in whatever order.
    let names = ["api.", "example.net.", "web.s-aaaaaaaaaaaa.seed.example.", "nothing."];
    let numbered = |n: u16| {
        let mut asked = question(names[usize::from(n) % names.len()]);
        asked.metadata.id = n;
        asked
    };
    let asked: Vec<Message> = (0..20).map(numbered).collect();
    let stream = TcpSocket::new_v4().unwrap();
    stream.bind((Ipv4Addr::from(WEB), 0).into()).unwrap();
    let mut stream = stream.connect(world.dns).await.unwrap();
    let mut piece = Vec::new();
    for message in &asked {
        let bytes = message.to_vec().unwrap();
        piece.extend((bytes.len() as u16).to_be_bytes());
        piece.extend(bytes);
    }
    stream.write_all(&piece).await.unwrap();
    let mut open: std::collections::BTreeMap<u16, String> =
        asked.iter().map(|message| (message.metadata.id, message.queries[0].name().to_string())).collect();
    for _ in 0..asked.len() {
        let mut answer = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut answer).await.unwrap();
        let answer = Message::from_vec(&answer).unwrap();
        let name = open.remove(&answer.metadata.id).expect("one answer each");
        assert_eq!(answer.queries[0].name().to_string(), name);
        let expected: &[&str] = match name.as_str() {
            "api." => &["10.88.0.3"],
            "example.net." => &["203.0.113.1"],
            "nothing." => continue,
            _ => &["127.0.0.2"],
        };
        assert_eq!(addresses(&answer), expected, "{name}");
    }
    assert_eq!(ask_udp(STRANGER, world.dns, &question("example.org.")).await.metadata.response_code, ResponseCode::Refused);
    assert_eq!(ask_udp(STRANGER, world.dns, &question("api.")).await.metadata.response_code, ResponseCode::Refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_resolver_that_answers_an_instance_is_told() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = silent.local_addr().unwrap();
    drop(silent);
    let world = World::with(|settings| settings.dns.upstream = vec![at]).await;
    change(&world, zone(2, &[("web", WEB)])).await;
    settled(&world, "web.s-aaaaaaaaaaaa.seed.example.", ResponseCode::NoError).await;
    assert_eq!(ask_udp(WEB, world.dns, &question("example.org.")).await.metadata.response_code, ResponseCode::ServFail);
}
