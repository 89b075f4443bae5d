//! A host with more than a thousand instances, whose agent and doors are killed and started again.

use std::{collections::BTreeMap, net::UdpSocket, time::Duration};

use crate::{
    client::Client,
    tenants,
    world::{World, until},
};

/// Asks for the address of a name, as somebody on this host; or the code of an answer without one. The last bytes of an answer are its data.
fn address(world: &World, socket: &UdpSocket, name: &str) -> Result<[u8; 4], u8> {
    let mut packet = vec![0x12, 0x34, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').chain([""]) {
        packet.push(label.len() as u8);
        packet.extend(label.as_bytes());
    }
    packet.extend([0, 1, 0, 1]);
    socket.send_to(&packet, world.dns()).unwrap();
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).expect("an answer");
    assert!(length > 12 && answer[..2] == packet[..2], "an answer to this");
    match answer[3] & 0xf {
        0 if answer[7] == 1 => Ok(answer[length - 4..length].try_into().unwrap()),
        code => Err(code),
    }
}

#[test]
fn eleven_hundred_names_are_answered_after_agent_and_doors_were_killed() {
    let repositories = (0..55).map(|n| (format!("tenant{n}"), (0..20).map(|n| format!("i{n}")).collect()));
    let (memory, ids) = tenants::memory(repositories);
    let mut world = World::with(memory);
    // Not one that an instance has: this is somebody on the host.
    let socket = UdpSocket::bind("127.200.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let full = |n: usize| format!("{}.{}.seed.example", ids[n].name, ids[n].namespace);
    let all = |world: &World| -> BTreeMap<String, [u8; 4]> {
        until("the last of them", || address(world, &socket, &full(ids.len() - 1)).is_ok());
        ids.iter().enumerate().map(|(n, _)| (full(n), address(world, &socket, &full(n)).expect("each has an address"))).collect()
    };
    let before = all(&world);
    assert_eq!(before.len(), 1100);
    let mut addresses: Vec<[u8; 4]> = before.values().copied().collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), 1100, "each has its own");
    assert_eq!(address(&world, &socket, &format!("i20.{}.seed.example", ids[0].namespace)), Err(3));

    world.kill_doors();
    world.kill_agent();
    world.start_agent();
    world.open_doors();
    assert!(all(&world) == before, "another answer than before");

    // Each is known by its address still, and gets its own name and no other's.
    for n in [0, 555, 1099] {
        let client = Client::registered(&world, before[&full(n)]);
        client.order(&[&full(n)]).ok(201);
        assert_eq!(client.order(&[&full((n + 20) % 1100)]).problem(), "rejectedIdentifier");
    }
}
