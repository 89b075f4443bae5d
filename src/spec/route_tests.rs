//! What is taken of the outputs `ipv4` and `ipv6`, and what is said of the rest.

use serde_json::json;

use super::*;

fn public() -> Vec<PublicAddress> {
    let one = |text: &str| PublicAddress { address: text.parse().unwrap(), arrives: text.parse().unwrap() };
    vec![one("192.0.2.7"), one("192.0.2.8"), one("2001:db8::7")]
}

fn instances() -> Instances {
    let port = Port::new;
    let mail = BTreeMap::from([
        ("smtp".parse().unwrap(), port(25, Protocol::Tcp)),
        ("dns".parse().unwrap(), port(5353, Protocol::Dns)),
        ("quic".parse().unwrap(), port(8443, Protocol::Udp)),
    ]);
    let web = BTreeMap::from([("http".parse().unwrap(), port(8080, Protocol::Http))]);
    BTreeMap::from([("mail".parse().unwrap(), Some(mail)), ("web".parse().unwrap(), Some(web)), ("new".parse().unwrap(), None)])
}

fn other() -> Vec<Route> {
    let output = json!({ "routes": { "x": { "port": 6667, "instance": "new" } } });
    read(Some(&output), None, &instances(), Ground { public: &public(), reserved: &[], taken: &[] }).unwrap()
}

fn tried(ipv4: Value, ipv6: Option<Value>) -> Result<Vec<Route>, String> {
    let (public, taken) = (public(), other());
    let ground = Ground { public: &public, reserved: &[Reserved::tcp(22), Reserved::both(53)], taken: &taken };
    let said = |problems: Vec<Problem>| problems.iter().map(|problem| format!("{problem}\n")).collect();
    read(Some(&ipv4), ipv6.as_ref(), &instances(), ground).map_err(said)
}

fn routes(routes: Value) -> Result<Vec<Route>, String> {
    tried(json!({ "routes": routes }), None)
}

#[test]
fn a_route_says_as_little_as_it_must() {
    let made = routes(json!({ "smtp": { "port": 25, "instance": "mail" } })).unwrap();
    let [route] = made.as_slice() else { panic!("{made:?}") };
    assert_eq!((route.port, route.target_port, route.protocol, route.host), (25, 25, Protocol::Tcp, None));
    assert_eq!(route.to_string(), "25/tcp of every IPv4 address");
    let all = json!({ "smtp": { "port": 2525, "protocol": "tcp", "instance": "mail", "targetPort": 25, "host": "192.0.2.8" },
                      "dns": { "port": 5353, "protocol": "dns", "instance": "mail" },
                      "web": { "port": 8080, "protocol": "grpc", "instance": "web", "targetPort": null, "host": null } });
    let made = routes(all).unwrap();
    let said: Vec<String> = made.iter().map(ToString::to_string).collect();
    assert_eq!(said, ["5353/tcp+udp of every IPv4 address", "2525/tcp of 192.0.2.8", "8080/tcp of every IPv4 address"]);
    for route in &made {
        let text = serde_json::to_string(route).unwrap();
        assert_eq!(serde_json::from_str::<Route>(&text).unwrap(), *route);
    }
}

#[test]
fn both_families_stand_side_by_side_and_what_is_off_claims_nothing() {
    let one = json!({ "smtp": { "port": 25, "instance": "mail" } });
    let both = tried(json!({ "enable": true, "routes": one }), Some(json!({ "routes": one }))).unwrap();
    assert_eq!(both.iter().map(Route::place).collect::<Vec<_>>(), ["ipv4.routes.smtp", "ipv6.routes.smtp"]);
    assert_eq!(tried(json!({ "enable": false, "routes": one }), None).unwrap(), []);
    assert_eq!(tried(json!({}), Some(json!({ "enable": true }))).unwrap(), []);
    // What is off is read all the same.
    let off = json!({ "enable": false, "routes": { "x": { "port": 0, "instance": "mail" } } });
    assert!(tried(off, None).unwrap_err().contains("ipv4.routes.x.port: 0 is no port"));
}

#[test]
fn every_problem_is_said_with_its_place_and_what_to_write() {
    let one = |fields: Value| {
        let mut whole = json!({ "port": 25, "instance": "mail" });
        for (key, value) in fields.as_object().unwrap() {
            whole[key] = value.clone();
        }
        whole
    };
    let table = [
        (json!({ "port": 0 }), "ipv4.routes.a.port: 0 is no port: write a number from 1 to 65535"),
        (json!({ "port": 65536 }), "ipv4.routes.a.port: 65536 is no port"),
        (json!({ "port": -1 }), "ipv4.routes.a.port: -1 is no port"),
        (json!({ "port": 25.5 }), "ipv4.routes.a.port: 25.5 is no port"),
        (json!({ "port": "25" }), "ipv4.routes.a.port: \"25\" is no port"),
        (json!({ "targetPort": 70000 }), "ipv4.routes.a.targetPort: 70000 is no port"),
        (json!({ "protocol": "sctp" }), "a.protocol: \"sctp\" is no protocol: write one of tcp, udp, dns, http, grpc"),
        (json!({ "protocol": 6 }), "a.protocol: 6 is no protocol"),
        (json!({ "instance": "db" }), "a.instance: \"db\" is no instance of this flake: write one of mail, new, web"),
        (json!({ "instance": ["mail"] }), "a.instance: a list is no instance of this flake"),
        (json!({ "host": "mail.example" }), "a.host: \"mail.example\" is no IPv4 address: write one, as in \"192.0.2.7\""),
        (json!({ "host": "2001:db8::7" }), "a.host: \"2001:db8::7\" is no IPv4 address"),
        (
            json!({ "host": "198.51.100.1" }),
            "a.host: 198.51.100.1 is no public address of this host: write one of 192.0.2.7, 192.0.2.8",
        ),
        (
            json!({ "hosts": "192.0.2.7" }),
            "ipv4.routes.a: has no field \"hosts\": there are port, protocol, instance, targetPort, host",
        ),
        (
            json!({ "targetPort": 26 }),
            "a: mail does not expose 26/tcp (it exposes 5353/tcp+udp, 8443/udp, 25/tcp): add seed.expose.<name> = { port = 26; protocol = \"tcp\"; } to it",
        ),
        (json!({ "protocol": "dns" }), "a: mail does not expose 25/tcp+udp"),
        (json!({ "protocol": "udp" }), "a: mail does not expose 25/udp"),
        (
            json!({ "port": 22, "targetPort": 25 }),
            "a: public port 22/tcp of every IPv4 address is one that this host uses itself: choose another port",
        ),
        (
            json!({ "port": 53, "protocol": "dns", "targetPort": 5353 }),
            "a: public port 53/tcp+udp of every IPv4 address is one that this host uses",
        ),
        (
            json!({ "port": 6667, "targetPort": 25 }),
            "a: public port 6667/tcp of every IPv4 address is taken by another repository of this host: choose another",
        ),
        (json!({ "port": 6667, "targetPort": 25, "host": "192.0.2.8" }), "a: public port 6667/tcp of 192.0.2.8 is taken"),
    ];
    for (fields, expected) in table {
        let said = routes(json!({ "a": one(fields.clone()) })).expect_err("refused");
        assert!(said.contains(expected), "{fields}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    // Of another transport, or of another family, it is free.
    routes(json!({ "a": { "port": 6667, "protocol": "udp", "instance": "mail", "targetPort": 8443 } })).unwrap();
    tried(json!({}), Some(json!({ "routes": { "a": { "port": 6667, "instance": "mail", "targetPort": 25 } } }))).unwrap();
}

#[test]
fn what_has_another_shape_is_said_too_and_all_at_once() {
    for (output, expected) in [
        (json!([]), "ipv4: is a list: write ipv4.routes.<name> = { port = 25; instance = \"mail\"; }"),
        (json!({ "route": {} }), "ipv4: has no field \"route\": there are enable, routes"),
        (json!({ "enable": "yes" }), "ipv4.enable: is a text: write true or false"),
        (json!({ "routes": [] }), "ipv4.routes: is a list: write"),
        (json!({ "routes": { "a": 25 } }), "ipv4.routes.a: is a number: write { port = 25;"),
        (json!({ "routes": { "A b": {} } }), "ipv4.routes: route name \"A b\" is no DNS label"),
        (
            json!({ "routes": { "a": { "instance": "mail" } } }),
            "ipv4.routes.a.port: is missing: write the public port, as in port = 25",
        ),
        (
            json!({ "routes": { "a": { "port": 25 } } }),
            "ipv4.routes.a.instance: is missing: write the instance that it leads to, one of mail",
        ),
    ] {
        let said = tried(output, None).expect_err("refused");
        assert!(said.contains(expected), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    let twice = json!({ "a": { "port": 25, "instance": "mail" }, "b": { "port": 25, "instance": "web", "targetPort": 8080, "host": "192.0.2.7" } });
    assert!(routes(twice).unwrap_err().contains("ipv4.routes.b: public port 25/tcp of 192.0.2.7 is that of ipv4.routes.a already"));
    let said = tried(
        json!({ "enable": 1, "more": 1, "routes": { "a": { "port": 0, "protocol": "x", "instance": "y", "host": 7, "z": 1 } } }),
        Some(json!(1)),
    )
    .unwrap_err();
    assert_eq!(said.lines().count(), 8, "{said}");
    // However much is given.
    let many: Map<String, Value> = (0..300).map(|n| (format!("r{n}"), json!({ "port": 0 }))).collect();
    assert!(routes(Value::Object(many)).unwrap_err().contains("has 300 entries: one flake may have 256"));
    let many: Map<String, Value> = (0..200).map(|n| (format!("r{n}"), json!({ "port": 0 }))).collect();
    assert_eq!(routes(Value::Object(many)).unwrap_err().lines().count(), MAX_PROBLEMS);
}

#[test]
fn a_host_without_public_addresses_has_no_ports_to_claim() {
    let output = json!({ "routes": { "a": { "port": 25, "instance": "mail", "host": "192.0.2.7" } } });
    let ground = Ground { public: &[], reserved: &[], taken: &[] };
    let said = read(Some(&output), None, &instances(), ground).unwrap_err();
    assert_eq!(said.len(), 1);
    assert!(said[0].to_string().contains("ipv4: this host has no public IPv4 address: leave it out"), "{}", said[0]);
}

#[test]
fn reserved_ports_are_written_with_their_transport() {
    assert_eq!("2200/tcp".parse(), Ok(Reserved::tcp(2200)));
    assert_eq!("8080".parse(), Ok(Reserved::both(8080)));
    assert_eq!("51820/udp".parse(), Ok(Reserved { port: 51820, tcp: false, udp: true }));
    for bad in ["", "0", "0/tcp", "65536/tcp", "80/", "80/sctp", "80/tcp/udp", "/tcp", "http"] {
        assert!(bad.parse::<Reserved>().is_err(), "{bad}");
    }
}

#[test]
fn the_routes_of_one_instance_are_exchanged() {
    let now =
        routes(json!({ "a": { "port": 25, "instance": "mail" }, "b": { "port": 80, "instance": "web", "targetPort": 8080 } }))
            .unwrap();
    let past = routes(json!({ "c": { "port": 26, "instance": "mail", "targetPort": 25 }, "d": { "port": 81, "instance": "web", "targetPort": 8080 } })).unwrap();
    let mixed = with_those_of(&"mail".parse().unwrap(), &now, &past);
    assert_eq!(mixed.iter().map(|route| route.port).collect::<Vec<_>>(), [80, 26]);
}
