//! Connections of real sockets, and connections that outlive the rules they began under.

use super::*;

/// Real sockets: masquerade towards the world, answers back, TCP ports of the gateway.
#[test]
fn real_connections_work() {
    if skip() {
        return;
    }
    let stage = Stage::new();
    let world = &stage.world;
    let gateway4 = world.layout.addressing.gateway4();
    let limit = Duration::from_secs(2);
    let outside = world.within("out", || TcpListener::bind((OUTSIDE4, 80)).expect("a port"));
    let gateway: Vec<TcpListener> =
        world.within("host", || [53, 9876, 9877, 22].map(|port| TcpListener::bind(("::", port)).expect("a port")).into());
    let connect =
        |from: &str, to: Ipv4Addr, port: u16| world.within(from, || TcpStream::connect_timeout(&(to, port).into(), limit).is_ok());
    for guest in ["0", "2"] {
        assert!(connect(guest, OUTSIDE4, 80));
        let (_, peer) = outside.accept().expect("a connection");
        assert_eq!(peer.ip(), HOST4, "it leaves under the host's address");
        for port in [53, 9876, 9877] {
            assert!(connect(guest, gateway4, port), "port {port} of the gateway");
        }
        assert!(!connect(guest, gateway4, 22) && !connect(guest, HOST4, 53));
    }
    drop(gateway);
    let web = world.within("0", || [80, 8080].map(|port| TcpListener::bind(("::", port)).expect("a port")));
    let web4 = stage.v4(0);
    assert!(connect("out", web4, 80) && !connect("out", web4, 8080), "exposed, and not");
    assert!(connect("1", web4, 8080), "a member");
    assert!(!connect("2", web4, 80) && !connect("2", web4, 8080), "another namespace");
    // A program on the host is nobody's member: what a build of a tenant's could reach from here would be everybody's.
    assert!(connect("host", web4, 80) && !connect("host", web4, 8080), "the host itself");
    drop(web);
}

/// What was allowed once is not allowed for ever: connections that were begun under other rules.
#[test]
fn an_old_connection_gives_no_right_to_who_comes_after() {
    if skip() {
        return;
    }
    let mut stage = Stage::new();
    let (web, db) = (Place::Guest(0), Place::Guest(1));
    let form = |what: &str, from: Place, arrives, frame| Form { what: what.to_owned(), from, frame, arrives };
    let say = |stage: &Stage, from: Place, source: Ipv4Addr, target: Ipv4Addr, ports: (u16, u16), marker: &[u8]| {
        stage.ethernet(from, IP4, &ip4(source, target, UDP, 0, &udp(ports.0, ports.1, marker)))
    };
    let (a, b) = (stage.v4(0), stage.v4(1));
    // Both directions between members, and from outside to an exposed port, and back.
    for (marker, from, source, target, ports, arrives) in [
        (&b"one;"[..], web, a, b, (1000, 2000), db),
        (b"two;", db, b, a, (2000, 1000), web),
        (b"three;", Place::Outside, OUTSIDE4, b, (3000, 9000), db),
        (b"four;", db, b, OUTSIDE4, (9000, 3000), Place::Outside),
        (b"five;", db, b, OUTSIDE4, (5353, 53), Place::Outside),
        (b"six;", db, b, a, (5354, 53), web),
    ] {
        let frame = say(&stage, from, source, target, ports, marker);
        assert_eq!(
            stage.try_out(&form("before", from, Some(arrives), frame), marker),
            [arrives],
            "{}",
            String::from_utf8_lossy(marker)
        );
    }
    // Now `db` has another owner and exposes nothing.
    let old = stage.world.desired.instances.remove(&World::id(1)).expect("db");
    let mut new = stage.world.desired.instances[&World::id(2)].clone();
    new.lease = old.lease;
    new.instance.ports.clear();
    stage.world.desired.instances.insert("s-bbbbbbbbbbbb/db".parse().expect("an id"), new);
    stage.world.apply();
    for (marker, from, source, target, ports) in [
        (&b"seven;"[..], web, a, b, (1000, 2000)),
        (b"eight;", Place::Outside, OUTSIDE4, b, (3000, 9000)),
        (b"nine;", web, a, b, (53, 5354)),
    ] {
        let frame = say(&stage, from, source, target, ports, marker);
        stage.wire(from).send(&frame);
        assert!(
            !stage.guests[1].hears(Duration::from_millis(200), |frame| contains(frame, marker)),
            "{}",
            String::from_utf8_lossy(marker)
        );
    }
}

#[test]
fn the_host_answers_only_for_its_gateway() {
    if skip() {
        return;
    }
    let stage = Stage::new();
    let wire = &stage.guests[0];
    let (mac, v4, v6) = (stage.world.mac(0), stage.v4(0), stage.v6(0));
    let gateway4 = stage.world.layout.addressing.gateway4();
    let asks4 = |from: (Mac, Ipv4Addr), about: Ipv4Addr, limit: u64| {
        wire.send(&ethernet([0xff; 6], mac, ARP, &arp(1, from, about)));
        wire.hears(Duration::from_millis(limit), |frame| {
            frame[12..14] == ARP.to_be_bytes() && frame[21] == 2 && frame[28..32] == about.octets()
        })
    };
    assert!(asks4((mac, v4), gateway4, 1000), "the gateway is there");
    for about in [HOST4, stage.v4(1), stage.v4(2), OUTSIDE4, Ipv4Addr::LOCALHOST] {
        assert!(!asks4((mac, v4), about, 100), "an answer about {about}");
    }
    for pretends in [stage.v4(1), OUTSIDE4, Ipv4Addr::new(10, 88, 0, 77)] {
        assert!(!asks4((mac, pretends), gateway4, 100), "an answer to one who says he is {pretends}");
    }
    let own = link_local(mac);
    let asks6 = |source: Ipv6Addr, about: Ipv6Addr, limit: u64| {
        let body = [&[0; 4][..], &about.octets(), &[1, 1], &mac].concat();
        let [.., x, y, z] = about.octets();
        let group: Ipv6Addr = format!("ff02::1:ff{x:02x}:{y:02x}{z:02x}").parse().expect("an address");
        let to = [0x33, 0x33, 0xff, x, y, z];
        let packet = ip6(source, group, ICMP6, 255, &icmp6(source, group, 135, &body));
        wire.send(&ethernet(to, mac, IP6, &packet));
        let answer = |frame: &[u8]| {
            frame[12..14] == IP6.to_be_bytes() && frame.len() >= 78 && frame[54] == 136 && frame[62..78] == about.octets()
        };
        wire.hears(Duration::from_millis(limit), answer)
    };
    let gateway = "fe80::1".parse().expect("an address");
    assert!(asks6(own, gateway, 1000) && asks6(v6, gateway, 1000), "the gateway is there");
    for about in [HOST6, stage.v6(1), stage.v6(2), OUTSIDE6] {
        assert!(!asks6(own, about, 100), "an answer about {about}");
    }
    // Who may call himself anything could fill the host's table of neighbours, which all guests share.
    for n in 0..2000u32 {
        let source: Ipv6Addr = format!("fe80::dead:{n:x}").parse().expect("an address");
        let packet = ip6(
            source,
            gateway,
            ICMP6,
            255,
            &icmp6(source, gateway, 135, &[&[0; 4][..], &gateway.octets(), &[1, 1], &mac].concat()),
        );
        wire.send(&ethernet(tap_mac(0), mac, IP6, &packet));
        wire.send(&ethernet([0xff; 6], mac, ARP, &arp(1, (mac, Ipv4Addr::from(0x0a58_0100 + n)), gateway4)));
    }
    std::thread::sleep(Duration::from_millis(200));
    let listed = stage.world.listed("neigh");
    let known = listed.lines().filter(|line| line.contains("seed0")).count();
    assert!(known <= 8, "the host knows {known} neighbours at one tap");
}
