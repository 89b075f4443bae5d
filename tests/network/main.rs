//! Who may talk to whom, proved with frames on wires: the rules that are rendered, loaded into a host made of network namespaces, and
//! guests that lie. What is legal arrives; of what is forged or forbidden nothing arrives anywhere.
#![allow(clippy::disallowed_methods, reason = "tests touch the machine")]
#![allow(clippy::print_stderr, reason = "a test says what it skips")]

mod connections;
mod frame;
mod routes;
mod world;

use std::{
    net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use frame::{ICMP, ICMP6, Mac, TCP, UDP, arp, ethernet, fragment6, icmp, icmp6, ip4, ip6, tagged, tcp, udp, udp6};
use world::{
    HOST_PORTS, HOST4, HOST6, METADATA4, METADATA6, OUTSIDE4, OUTSIDE6, Wire, World, contains, outside_mac, tap_mac, uplink_mac,
};

const IP4: u16 = 0x0800;
const IP6: u16 = 0x86dd;
const ARP: u16 = 0x0806;

/// Where a frame may be heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Guest(usize),
    Outside,
    /// A socket of the host's, at this port.
    Host(u16),
}

/// One frame, and where its payload must arrive; `None`: nowhere.
struct Form {
    what: String,
    from: Place,
    frame: Vec<u8>,
    arrives: Option<Place>,
}

struct Stage {
    world: World,
    guests: [Wire; 3],
    outside: Wire,
}

impl Stage {
    fn new() -> Self {
        let world = World::new();
        let guests = ["0", "1", "2"].map(|name| world.tap(name));
        let outside = world.tap("out");
        let stage = Self { world, guests, outside };
        stage.warm_up();
        stage
    }

    /// Everybody learns everybody's MAC, so that no frame waits for that later.
    fn warm_up(&self) {
        for guest in 0..3 {
            let (v4, v6) = (self.v4(guest), self.v6(guest));
            self.world.within("host", || {
                let socket = UdpSocket::bind("[::]:0").expect("a socket");
                drop((socket.send_to(b"x", (v4.to_ipv6_mapped(), 9)), socket.send_to(b"x", (v6, 9))));
                drop((socket.send_to(b"x", (OUTSIDE4.to_ipv6_mapped(), 9)), socket.send_to(b"x", (OUTSIDE6, 9))));
            });
            self.world.within(&guest.to_string(), || {
                let socket = UdpSocket::bind("[::]:0").expect("a socket");
                drop((socket.send_to(b"x", (OUTSIDE4.to_ipv6_mapped(), 9)), socket.send_to(b"x", (OUTSIDE6, 9))));
            });
        }
        std::thread::sleep(Duration::from_millis(300));
    }

    fn v4(&self, guest: usize) -> Ipv4Addr {
        self.world.address(guest).v4
    }

    fn v6(&self, guest: usize) -> Ipv6Addr {
        self.world.address(guest).v6
    }

    fn wire(&self, place: Place) -> &Wire {
        match place {
            Place::Guest(guest) => &self.guests[guest],
            Place::Outside => &self.outside,
            Place::Host(_) => panic!("the host sends nothing here"),
        }
    }

    /// From a guest's own MAC to the host's end of its wire; from outside to the host.
    fn ethernet(&self, from: Place, kind: u16, payload: &[u8]) -> Vec<u8> {
        match from {
            Place::Guest(guest) => ethernet(tap_mac(guest), self.world.mac(guest), kind, payload),
            Place::Outside | Place::Host(_) => ethernet(uplink_mac(), outside_mac(), kind, payload),
        }
    }

    /// Which of some markers came where since the last time.
    fn heard(&self, sender: Place, markers: &[&[u8]]) -> Vec<(usize, Place)> {
        let mut heard = Vec::new();
        for place in [Place::Guest(0), Place::Guest(1), Place::Guest(2), Place::Outside] {
            let wire = self.wire(place);
            while let Some(frame) = wire.next() {
                // A refusal quotes what it refuses, to whoever sent it.
                if place != sender {
                    heard.extend(
                        markers
                            .iter()
                            .enumerate()
                            .filter(|(_, marker)| contains(&frame, marker))
                            .map(|(which, _)| which)
                            .map(|which| (which, place)),
                    );
                }
            }
        }
        for (port, listener) in HOST_PORTS.into_iter().zip(&self.world.listeners) {
            let mut buffer = [0; 2048];
            while let Ok((count, _)) = listener.recv_from(&mut buffer) {
                heard.extend(
                    markers
                        .iter()
                        .enumerate()
                        .filter(|(_, marker)| contains(&buffer[..count], marker))
                        .map(|(which, _)| which)
                        .map(|which| (which, Place::Host(port))),
                );
            }
        }
        heard
    }

    /// Sends a form and says where it was heard. What goes nowhere is waited for as long as a frame that is known to arrive takes.
    fn try_out(&self, form: &Form, marker: &[u8]) -> Vec<Place> {
        drop(self.heard(form.from, &[marker]));
        self.wire(form.from).send(&form.frame);
        if form.arrives.is_none() {
            self.wire(form.from).send(&self.sentinel(form.from));
        }
        let (mut heard, mut passed) = (Vec::new(), false);
        for _ in 0..400 {
            for place in self.heard(form.from, &[marker, b"sentinel"]) {
                match place {
                    (0, place) if !heard.contains(&place) => heard.push(place),
                    (0, _) => {}
                    _ => passed = true,
                }
            }
            if passed || form.arrives.is_some() && !heard.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(passed || form.arrives.is_some(), "{}: what is legal does not arrive any more", form.what);
        std::thread::sleep(Duration::from_millis(10));
        let late = self.heard(form.from, &[marker]).into_iter().map(|(_, place)| place);
        heard.extend(late);
        heard.dedup();
        heard
    }

    /// A frame that arrives outside, or from there at `db`.
    fn sentinel(&self, from: Place) -> Vec<u8> {
        let (source, target, port) = match from {
            Place::Guest(guest) => (self.v4(guest), OUTSIDE4, 4000),
            Place::Outside | Place::Host(_) => (OUTSIDE4, self.v4(1), 9000),
        };
        self.ethernet(from, IP4, &ip4(source, target, UDP, 0, &udp(4001, port, b"sentinel")))
    }
}

/// EUI-64, as the guest's kernel makes it.
fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// A table of forms under one `marker`, which every payload holds.
struct Table<'a> {
    stage: &'a Stage,
    forms: Vec<(Form, Vec<u8>)>,
}

impl Table<'_> {
    fn add(&mut self, what: &str, from: Place, arrives: Option<Place>, frame: impl FnOnce(&[u8]) -> Vec<u8>) {
        let marker = format!("form-{:03};", self.forms.len()).into_bytes();
        let form = Form { what: what.to_owned(), from, frame: frame(&marker), arrives };
        self.forms.push((form, marker));
    }

    /// A UDP datagram over IPv4 as its source would send it.
    fn udp4(&mut self, what: &str, from: Place, source: Ipv4Addr, target: Ipv4Addr, port: u16, arrives: Option<Place>) {
        let stage = self.stage;
        self.add(what, from, arrives, |marker| stage.ethernet(from, IP4, &ip4(source, target, UDP, 0, &udp(4001, port, marker))));
    }

    fn udp6(&mut self, what: &str, from: Place, source: Ipv6Addr, target: Ipv6Addr, port: u16, arrives: Option<Place>) {
        let stage = self.stage;
        self.add(what, from, arrives, |marker| {
            stage.ethernet(from, IP6, &ip6(source, target, UDP, 64, &udp6(source, target, 4001, port, marker)))
        });
    }

    fn tcp4(&mut self, what: &str, from: Place, target: Ipv4Addr, port: u16, flags: u8, arrives: Option<Place>) {
        let (stage, source) = (self.stage, if let Place::Guest(guest) = from { self.stage.v4(guest) } else { OUTSIDE4 });
        self.add(what, from, arrives, |marker| {
            stage.ethernet(from, IP4, &ip4(source, target, TCP, 0, &tcp(source, target, 4002, port, flags, marker)))
        });
    }

    fn icmp6(&mut self, what: &str, from: Place, source: Ipv6Addr, target: Ipv6Addr, kind: u8, arrives: Option<Place>) {
        let stage = self.stage;
        self.add(what, from, arrives, |marker| {
            let body = [&[0; 4], marker].concat();
            stage.ethernet(from, IP6, &ip6(source, target, ICMP6, 255, &icmp6(source, target, kind, &body)))
        });
    }

    fn run(self) {
        let mut wrong = Vec::new();
        let (legal, forged) = (self.forms.iter().filter(|(form, _)| form.arrives.is_some()).count(), self.forms.len());
        for (form, marker) in &self.forms {
            let heard = self.stage.try_out(form, marker);
            if heard != Vec::from_iter(form.arrives) {
                wrong.push(format!("{}: arrived at {heard:?}, and should at {:?}", form.what, form.arrives));
            }
        }
        eprintln!("{legal} legal forms, {} forged or forbidden ones", forged - legal);
        assert!(wrong.is_empty(), "{} forms went wrong:\n{}", wrong.len(), wrong.join("\n"));
    }
}

fn legal(table: &mut Table) {
    let stage = table.stage;
    let (gateway4, gateway6) = (stage.world.layout.addressing.gateway4(), stage.world.layout.addressing.gateway6());
    let (web, db, other) = (Place::Guest(0), Place::Guest(1), Place::Guest(2));
    let (v4, v6) = (|guest| stage.v4(guest), |guest| stage.v6(guest));
    table.udp4("DNS at the gateway", web, v4(0), gateway4, 53, Some(Place::Host(53)));
    table.udp6("DNS at the gateway, IPv6", web, v6(0), gateway6, 53, Some(Place::Host(53)));
    table.udp4("the world", web, v4(0), OUTSIDE4, 7, Some(Place::Outside));
    table.udp6("the world, IPv6", web, v6(0), OUTSIDE6, 7, Some(Place::Outside));
    table.tcp4("the world, TCP", other, OUTSIDE4, 443, 2, Some(Place::Outside));
    table.udp4("a member of the namespace, any port", web, v4(0), v4(1), 7777, Some(db));
    table.udp6("a member of the namespace, any port, IPv6", db, v6(1), v6(0), 7777, Some(web));
    table.udp4("another's exposed port", other, v4(2), v4(1), 9000, None);
    table.udp6("another's exposed port, IPv6", other, v6(2), v6(1), 53, None);
    table.udp4("an exposed port, from outside", Place::Outside, OUTSIDE4, v4(1), 9000, Some(db));
    table.udp6("an exposed port, from outside, IPv6", Place::Outside, OUTSIDE6, v6(1), 53, Some(db));
    table.tcp4("an exposed TCP port, from outside", Place::Outside, v4(0), 80, 2, Some(web));
    table.add("a ping from outside", Place::Outside, Some(web), |marker| {
        stage.ethernet(Place::Outside, IP4, &ip4(OUTSIDE4, stage.v4(0), ICMP, 0, &icmp(8, 0, &[&[0, 1, 0, 1], marker].concat())))
    });
    table.add("a ping of another's", other, None, |marker| {
        stage.ethernet(
            Place::Guest(2),
            IP4,
            &ip4(stage.v4(2), stage.v4(0), ICMP, 0, &icmp(8, 0, &[&[0, 1, 0, 1], marker].concat())),
        )
    });
    table.icmp6("a ping from outside, IPv6", Place::Outside, OUTSIDE6, v6(0), 128, Some(web));
    table.add("a frame with a priority and no VLAN", web, Some(Place::Outside), |marker| {
        tagged(&stage.ethernet(Place::Guest(0), IP4, &ip4(stage.v4(0), OUTSIDE4, UDP, 0, &udp(4001, 7, marker))), 0x6000)
    });
}

fn forged_sources(table: &mut Table) {
    let stage = table.stage;
    let web = Place::Guest(0);
    let (v4, v6) = (|guest| stage.v4(guest), |guest| stage.v6(guest));
    let gateway4 = stage.world.layout.addressing.gateway4();
    let free = Ipv4Addr::new(10, 88, 0, 77);
    for (what, source) in [
        ("a member's address", v4(1)),
        ("another's address", v4(2)),
        ("the gateway's address", gateway4),
        ("the host's address", HOST4),
        ("an address that nobody has", free),
        ("an address of the world", Ipv4Addr::new(8, 8, 8, 8)),
        ("no address", Ipv4Addr::UNSPECIFIED),
        ("loopback", Ipv4Addr::LOCALHOST),
        ("broadcast", Ipv4Addr::BROADCAST),
    ] {
        table.udp4(&format!("{what} as source, to the world"), web, source, OUTSIDE4, 7, None);
        table.udp4(&format!("{what} as source, to a member"), web, source, v4(1), 7777, None);
        table.udp4(&format!("{what} as source, to DNS"), web, source, gateway4, 53, None);
    }
    let gateway6 = stage.world.layout.addressing.gateway6();
    let random = "fe80::1234".parse().expect("an address");
    let own = link_local(stage.world.mac(0));
    for (what, source) in [
        ("a member's address", v6(1)),
        ("another's address", v6(2)),
        ("the gateway's address", gateway6),
        ("the host's address", HOST6),
        ("no address", Ipv6Addr::UNSPECIFIED),
        ("loopback", Ipv6Addr::LOCALHOST),
        ("its link-local address", own),
        ("the gateway's link-local address", "fe80::1".parse().expect("an address")),
        ("a made-up link-local address", random),
        ("an IPv4 address in IPv6", v4(0).to_ipv6_mapped()),
    ] {
        table.udp6(&format!("{what} as source, to the world, IPv6"), web, source, OUTSIDE6, 7, None);
        table.udp6(&format!("{what} as source, to a member, IPv6"), web, source, v6(1), 7777, None);
        table.udp6(&format!("{what} as source, to DNS, IPv6"), web, source, gateway6, 53, None);
    }
    table.udp6("link-local to link-local", web, own, "fe80::1".parse().expect("an address"), 53, None);
    for (what, mac) in
        [("a member's MAC", stage.world.mac(1)), ("the host's MAC", tap_mac(0)), ("a made-up MAC", [2, 9, 9, 9, 9, 9])]
    {
        table.add(&format!("{what} as source"), web, None, |marker| {
            ethernet(tap_mac(0), mac, IP4, &ip4(stage.v4(0), OUTSIDE4, UDP, 0, &udp(4001, 7, marker)))
        });
        table.add(&format!("{what} as source, IPv6"), web, None, |marker| {
            let (source, target) = (stage.v6(0), OUTSIDE6);
            ethernet(tap_mac(0), mac, IP6, &ip6(source, target, UDP, 64, &udp6(source, target, 4001, 7, marker)))
        });
    }
    for vlan in [1, 2, 0x0fff] {
        table.add(&format!("VLAN {vlan}"), web, None, |marker| {
            tagged(&stage.ethernet(web, IP4, &ip4(stage.v4(0), OUTSIDE4, UDP, 0, &udp(4001, 7, marker))), vlan)
        });
    }
    table.add("a VLAN in a VLAN", web, None, |marker| {
        tagged(&tagged(&stage.ethernet(web, IP4, &ip4(stage.v4(0), OUTSIDE4, UDP, 0, &udp(4001, 7, marker))), 5), 6)
    });
    table.add("a priority tag around a forged source", web, None, |marker| {
        tagged(&stage.ethernet(web, IP4, &ip4(stage.v4(1), OUTSIDE4, UDP, 0, &udp(4001, 7, marker))), 0x2000)
    });
}

fn forbidden(table: &mut Table) {
    let stage = table.stage;
    let (gateway4, gateway6) = (stage.world.layout.addressing.gateway4(), stage.world.layout.addressing.gateway6());
    let (web, other) = (Place::Guest(0), Place::Guest(2));
    let (v4, v6) = (|guest| stage.v4(guest), |guest| stage.v6(guest));
    // Namespaces, and ports that are not exposed.
    table.udp4("another namespace's unexposed port", other, v4(2), v4(0), 7777, None);
    table.udp4("another namespace's port, exposed for TCP only", other, v4(2), v4(0), 80, None);
    table.udp6("another namespace's unexposed port, IPv6", other, v6(2), v6(1), 7777, None);
    table.tcp4("another namespace's unexposed TCP port", other, v4(0), 22, 2, None);
    table.tcp4("a late ACK to another namespace", other, v4(0), 22, 0x10, None);
    table.tcp4("a SYN-ACK out of nowhere to another namespace", other, v4(0), 22, 0x12, None);
    table.tcp4("a RST out of nowhere to another namespace", other, v4(0), 22, 4, None);
    table.udp4("an unexposed port, from outside", Place::Outside, OUTSIDE4, v4(0), 7777, None);
    table.udp6("an unexposed port, from outside, IPv6", Place::Outside, OUTSIDE6, v6(0), 7777, None);
    table.tcp4("an unexposed TCP port, from outside", Place::Outside, v4(0), 22, 2, None);
    table.tcp4("an ACK out of nowhere, from outside", Place::Outside, v4(0), 22, 0x10, None);
    table.udp4("a member's address as source, from outside", Place::Outside, v4(1), v4(0), 7777, None);
    table.udp6("a member's address as source, from outside, IPv6", Place::Outside, v6(1), v6(0), 7777, None);
    // The host.
    for port in [22, 5000, 9876, 9877] {
        table.udp4(&format!("UDP port {port} of the gateway"), web, v4(0), gateway4, port, None);
        table.udp6(&format!("UDP port {port} of the gateway, IPv6"), web, v6(0), gateway6, port, None);
    }
    for port in [22, 53, 5000] {
        table.udp4(&format!("port {port} of the host's other address"), web, v4(0), HOST4, port, None);
        table.udp6(&format!("port {port} of the host's other address, IPv6"), web, v6(0), HOST6, port, None);
    }
    table.udp6("DNS at the link-local gateway", web, v6(0), "fe80::1".parse().expect("an address"), 53, None);
    table.udp6("all nodes", web, v6(0), "ff02::1".parse().expect("an address"), 53, None);
    table.udp4("broadcast", web, v4(0), Ipv4Addr::BROADCAST, 53, None);
    table.udp4("multicast", web, v4(0), Ipv4Addr::new(224, 0, 0, 251), 53, None);
    table.udp4("loopback of the host", web, v4(0), Ipv4Addr::LOCALHOST, 53, None);
    // What clouds know about their host.
    for address in METADATA4 {
        table.tcp4(&format!("{address}"), web, address, 80, 2, None);
    }
    for address in METADATA6 {
        table.udp6(address, web, v6(0), address.parse().expect("an address"), 80, None);
    }
    // Neighbours and routers.
    let (all, own) = ("ff02::1".parse().expect("an address"), link_local(stage.world.mac(0)));
    table.icmp6("a router advertisement", web, own, all, 134, None);
    table.icmp6("a router advertisement from its own address", web, v6(0), all, 134, None);
    table.icmp6("a router advertisement to a member", web, v6(0), v6(1), 134, None);
    table.icmp6("a router advertisement from outside", Place::Outside, OUTSIDE6, v6(0), 134, None);
    table.icmp6("a redirect", web, own, all, 137, None);
    table.icmp6("a redirect to another namespace", web, v6(0), v6(2), 137, None);
    table.icmp6("a neighbour advertisement to another namespace", other, v6(2), v6(0), 136, None);
    table.icmp6("a multicast listener report", web, own, all, 143, None);
    // Fragments: judged whole, or not at all.
    table.add("the first fragment of something", other, None, |marker| {
        let data = udp(4001, 7777, &[marker, &[0; 24]].concat());
        stage.ethernet(other, IP4, &ip4(stage.v4(2), stage.v4(0), UDP, 0x2000, &data[..24]))
    });
    table.add("a late fragment of nothing", other, None, |marker| {
        stage.ethernet(other, IP4, &ip4(stage.v4(2), stage.v4(0), UDP, 4, &[marker, &[0; 7]].concat()))
    });
    table.add("a first fragment too small for its ports", other, None, |marker| {
        stage.ethernet(other, IP4, &ip4(stage.v4(2), stage.v4(0), TCP, 0x2000, &marker[..8]))
    });
    table.add("a late fragment of nothing, IPv6", other, None, |marker| {
        let data = fragment6(UDP, 64, &[marker, &[0; 7]].concat());
        stage.ethernet(other, IP6, &ip6(stage.v6(2), stage.v6(0), 44, 64, &data))
    });
    table.add("a lone fragment that is whole, to an unexposed port, IPv6", other, None, |marker| {
        let data = udp6(stage.v6(2), stage.v6(0), 4001, 7777, marker);
        stage.ethernet(other, IP6, &ip6(stage.v6(2), stage.v6(0), 44, 64, &fragment6(UDP, 0, &data)))
    });
    table.add("an exposed port behind a header that hides another", other, None, |marker| {
        // A destination options header, padded, before a datagram to an unexposed port.
        let data = [&[UDP, 0, 1, 4, 0, 0, 0, 0][..], &udp6(stage.v6(2), stage.v6(1), 4001, 7777, marker)].concat();
        stage.ethernet(other, IP6, &ip6(stage.v6(2), stage.v6(1), 60, 64, &data))
    });
    // Other protocols, and tunnels.
    for (what, protocol) in [("IPv4 in IPv4", 4), ("IPv6 in IPv4", 41), ("GRE", 47), ("SCTP", 132), ("IGMP", 2)] {
        table.add(&format!("{what} to another namespace"), other, None, |marker| {
            let inner = ip4(stage.v4(1), stage.v4(0), UDP, 0, &udp(4001, 7777, marker));
            stage.ethernet(other, IP4, &ip4(stage.v4(2), stage.v4(0), protocol, 0, &inner))
        });
    }
    table.add("a source route", other, None, |marker| {
        let inner = udp(4001, 9000, marker);
        let mut packet = ip4(stage.v4(2), stage.v4(1), UDP, 0, &inner);
        // Loose source routing by way of the other guest: 131, 7, 4, address, end.
        packet[0] = 0x47;
        let option = [&[131, 7, 4][..], &stage.v4(0).octets(), &[0]].concat();
        packet.splice(20..20, option);
        let length = packet.len() as u16;
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        stage.ethernet(other, IP4, &packet)
    });
    for kind in [5, 13, 17] {
        table.add(&format!("ICMP {kind} to another namespace"), other, None, |marker| {
            let body = [&[0; 4], marker].concat();
            stage.ethernet(other, IP4, &ip4(stage.v4(2), stage.v4(0), ICMP, 0, &icmp(kind, 0, &body)))
        });
    }
    table.add("an error about what was never sent", other, None, |marker| {
        let quoted = ip4(stage.v4(0), stage.v4(2), UDP, 0, &udp(7777, 4001, marker));
        stage.ethernet(other, IP4, &ip4(stage.v4(2), stage.v4(0), ICMP, 0, &icmp(3, 3, &[&[0; 4], &quoted[..]].concat())))
    });
}

fn skip() -> bool {
    match world::missing() {
        None => false,
        Some(why) => {
            eprintln!("SKIPPED: the network's rules are not proved: {why}");
            true
        }
    }
}

#[test]
fn what_is_legal_arrives_and_nothing_else() {
    if skip() {
        return;
    }
    let stage = Stage::new();
    let mut table = Table { stage: &stage, forms: Vec::new() };
    legal(&mut table);
    forged_sources(&mut table);
    forbidden(&mut table);
    assert!(table.forms.len() >= 100);
    table.run();
}
