//! Public ports: what leads to an instance, for whom, and until when.

use std::net::{IpAddr, SocketAddr};

use seed::spec::route::{PublicAddress, Route};

use super::*;

const LIMIT: Duration = Duration::from_secs(2);

fn route(family: &str, port: u16, protocol: &str, instance: &str, target: u16) -> Route {
    let text = format!(
        r#"{{"family":"{family}","name":"r{port}","port":{port},"protocol":"{protocol}","instance":"{instance}","targetPort":{target}}}"#
    );
    serde_json::from_str(&text).expect("a route")
}

/// For both families: 8025 to `web` 80; 9053 (both transports) to `db` 53; 9000/udp to `db` 9000; 7777 to `db` 7777, which is not exposed.
fn led(stage: &mut Stage) {
    for family in ["ipv4", "ipv6"] {
        let routes = &mut stage.world.desired.routes;
        routes.entry(World::id(0).instance()).or_default().push(route(family, 8025, "tcp", "web", 80));
        let db = routes.entry(World::id(1).instance()).or_default();
        db.push(route(family, 9053, "dns", "db", 53));
        db.push(route(family, 9000, "udp", "db", 9000));
        db.push(route(family, 7777, "dns", "db", 7777));
    }
    stage.world.apply();
}

fn connects(stage: &Stage, from: &str, to: IpAddr, port: u16) -> bool {
    stage.world.within(from, || TcpStream::connect_timeout(&SocketAddr::new(to, port), LIMIT).is_ok())
}

/// Who the next connection comes from, without the mapping of IPv4 into IPv6.
fn peer(listener: &TcpListener) -> IpAddr {
    listener.accept().expect("a connection").1.ip().to_canonical()
}

#[test]
fn a_public_port_leads_to_its_instance_and_shows_it_who_comes() {
    if skip() {
        return;
    }
    let mut stage = Stage::new();
    led(&mut stage);
    let world = &stage.world;
    let web = world.within("0", || TcpListener::bind(("::", 80)).expect("a port"));
    let (gateway4, gateway6) = (world.layout.addressing.gateway4(), world.layout.addressing.gateway6());
    let both: [(IpAddr, IpAddr, IpAddr); 2] =
        [(HOST4.into(), OUTSIDE4.into(), gateway4.into()), (HOST6.into(), OUTSIDE6.into(), gateway6.into())];
    for (host, outside, gateway) in both {
        assert!(connects(&stage, "out", host, 8025), "{host}");
        assert_eq!(peer(&web), outside, "the source is kept");
        // A member, the instance itself, and a neighbour come in by it; they are seen as the gateway.
        for guest in ["1", "0", "2"] {
            assert!(connects(&stage, guest, host, 8025), "{guest} to {host}");
            assert_eq!(peer(&web), gateway, "{guest}");
        }
        // What no route leads anywhere is the host's own, and the host's own connections stay with the host.
        assert!(!connects(&stage, "out", host, 80) && !connects(&stage, "2", host, 80), "not led");
        let refused = world.within("host", || TcpStream::connect_timeout(&SocketAddr::new(host, 8025), LIMIT));
        assert_eq!(refused.expect_err("nobody listens there").kind(), std::io::ErrorKind::ConnectionRefused);
    }
    assert!(!connects(&stage, "2", stage.v4(0).into(), 80), "a neighbour has no way but the public one");
    // UDP goes both ways.
    let db = world.within("1", || UdpSocket::bind(("::", 9000)).expect("a port"));
    db.set_read_timeout(Some(LIMIT)).expect("a socket");
    for (host, outside, _) in both {
        let here: IpAddr = if host.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let client = world.within("out", || UdpSocket::bind((here, 0)).expect("a port"));
        client.set_read_timeout(Some(LIMIT)).expect("a socket");
        client.send_to(b"ask", (host, 9000)).expect("sent");
        let mut buffer = [0; 16];
        let (count, from) = db.recv_from(&mut buffer).expect("it arrives");
        assert_eq!((&buffer[..count], from.ip().to_canonical()), (&b"ask"[..], outside));
        db.send_to(b"answer", from).expect("sent");
        let (count, from) = client.recv_from(&mut buffer).expect("the answer arrives");
        assert_eq!((&buffer[..count], from), (&b"answer"[..], SocketAddr::new(host, 9000)));
    }
}

#[test]
fn forged_frames_do_not_get_in_by_a_public_port() {
    if skip() {
        return;
    }
    let mut stage = Stage::new();
    led(&mut stage);
    let mut table = Table { stage: &stage, forms: Vec::new() };
    let (web, db, other) = (Place::Guest(0), Place::Guest(1), Place::Guest(2));
    let outside = Place::Outside;
    table.udp4("a public port", outside, OUTSIDE4, HOST4, 9000, Some(db));
    table.udp6("a public port, IPv6", outside, OUTSIDE6, HOST6, 9000, Some(db));
    table.udp4("a public port to another port", outside, OUTSIDE4, HOST4, 9053, Some(db));
    table.udp6("a public port to another port, IPv6", outside, OUTSIDE6, HOST6, 9053, Some(db));
    table.tcp4("a public TCP port", outside, HOST4, 8025, 2, Some(web));
    table.udp4("a public port, from a neighbour", other, stage.v4(2), HOST4, 9000, Some(db));
    table.udp6("a public port, from a neighbour, IPv6", other, stage.v6(2), HOST6, 9000, Some(db));
    // A port that is led to what is not exposed lets nobody in; members reach each other on every port anyway.
    table.udp4("not exposed", outside, OUTSIDE4, HOST4, 7777, None);
    table.udp6("not exposed, IPv6", outside, OUTSIDE6, HOST6, 7777, None);
    table.tcp4("not exposed, TCP", outside, HOST4, 7777, 2, None);
    table.udp4("not exposed, from a neighbour", other, stage.v4(2), HOST4, 7777, None);
    table.udp6("not exposed, from a neighbour, IPv6", other, stage.v6(2), HOST6, 7777, None);
    table.udp4("not exposed, from a member", web, stage.v4(0), HOST4, 7777, Some(db));
    // Another transport, another port, another address of the host.
    table.udp4("another transport", outside, OUTSIDE4, HOST4, 8025, None);
    table.tcp4("another transport, TCP", outside, HOST4, 9000, 2, None);
    table.udp4("the target's port", outside, OUTSIDE4, HOST4, 5300, None);
    table.udp4("the gateway's address", outside, OUTSIDE4, stage.world.layout.addressing.gateway4(), 9000, None);
    table.tcp4("no beginning of a connection", outside, HOST4, 8025, 0x12, None);
    // Guests that lie about who they are.
    for (what, source) in
        [("a member's", stage.v4(1)), ("another's", stage.v4(0)), ("the host's", HOST4), ("the world's", OUTSIDE4)]
    {
        table.udp4(&format!("{what} address as source"), other, source, HOST4, 9000, None);
    }
    for (what, source) in [("another's", stage.v6(0)), ("the host's", HOST6), ("the world's", OUTSIDE6)] {
        table.udp6(&format!("{what} address as source, IPv6"), other, source, HOST6, 9000, None);
    }
    table.run();
}

#[test]
fn a_port_that_is_given_back_leads_nowhere_at_once() {
    if skip() {
        return;
    }
    let mut stage = Stage::new();
    led(&mut stage);
    let db = Place::Guest(1);
    let frame = |stage: &Stage, from: Place, marker: &[u8]| {
        let source = if let Place::Guest(guest) = from { stage.v4(guest) } else { OUTSIDE4 };
        stage.ethernet(from, IP4, &ip4(source, HOST4, UDP, 0, &udp(3000, 9000, marker)))
    };
    let say = |stage: &Stage, from: Place, marker: &[u8]| {
        stage.wire(from).send(&frame(stage, from, marker));
        stage.guests[1].hears(Duration::from_millis(400), |frame| contains(frame, marker))
    };
    assert!(say(&stage, Place::Outside, b"one;") && say(&stage, Place::Guest(2), b"two;"));
    // Without the route the same flow stops, although the port is exposed as before.
    let routes = std::mem::take(&mut stage.world.desired.routes);
    stage.world.apply();
    assert!(!say(&stage, Place::Outside, b"three;") && !say(&stage, Place::Guest(2), b"four;"));
    let own = stage.ethernet(Place::Outside, IP4, &ip4(OUTSIDE4, stage.v4(1), UDP, 0, &udp(3001, 9000, b"five;")));
    let form = Form { what: "exposed".to_owned(), from: Place::Outside, frame: own, arrives: Some(db) };
    assert_eq!(stage.try_out(&form, b"five;"), [db], "what is exposed is reached at its own address");
    stage.world.desired.routes = routes;
    stage.world.apply();
    assert!(say(&stage, Place::Outside, b"six;") && say(&stage, Place::Guest(2), b"seven;"), "it leads there again");
    // The address has another owner, who exposes the same and has no public port.
    let old = stage.world.desired.instances.remove(&World::id(1)).expect("db");
    stage.world.desired.instances.insert("s-bbbbbbbbbbbb/db".parse().expect("an id"), old);
    stage.world.apply();
    assert!(!say(&stage, Place::Outside, b"eight;") && !say(&stage, Place::Guest(2), b"nine;"));
}

/// A public address that no interface has: what is sent to it arrives at another.
#[test]
fn behind_a_nat_a_public_port_leads_to_its_instance_too() {
    if skip() {
        return;
    }
    let mut stage = Stage::new();
    let public: IpAddr = Ipv4Addr::new(203, 0, 113, 7).into();
    stage.world.layout.public = vec![PublicAddress { address: public, arrives: HOST4.into() }];
    led(&mut stage);
    let web = stage.world.within("0", || TcpListener::bind(("::", 80)).expect("a port"));
    assert!(connects(&stage, "out", HOST4.into(), 8025), "as the NAT passes it on");
    assert_eq!(peer(&web), IpAddr::from(OUTSIDE4));
    assert!(connects(&stage, "2", public, 8025), "a guest uses the address that everybody knows");
    assert_eq!(peer(&web), IpAddr::from(stage.world.layout.addressing.gateway4()));
    assert!(!connects(&stage, "out", HOST6.into(), 8025), "no public address of the family, no port");
}
