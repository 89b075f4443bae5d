//! What nobody gets: another's names, accounts, orders and certificates, and requests that are not as the RFC has them.

use rcgen::KeyPair;
use serde_json::{Value, json};

use crate::{
    client::{Client, encode},
    world::{World, instance, name},
};

#[test]
fn a_tenant_gets_its_own_name_and_no_other() {
    let world = World::without_ca();
    let client = Client::registered(&world, [127, 0, 0, 1]);
    let own = name("first");
    let namespace = format!("{}.seed.example", instance("first").namespace);
    for wrong in [
        name("second"),
        "seed.example".into(),
        "ns1.seed.example".into(),
        "silo.seed.example".into(),
        namespace.clone(),
        format!("other.{namespace}"),
        format!("*.{namespace}"),
        format!("*.{own}"),
        format!("www.{own}"),
        format!("{own}."),
        "www.example.com".into(),
    ] {
        let answer = client.order(&[&own, &wrong]);
        assert_eq!((answer.status, answer.problem().as_str()), (403, "rejectedIdentifier"), "{wrong}");
        assert_eq!(answer.json()["subproblems"][0]["identifier"]["value"], wrong, "it says which");
    }
    assert_eq!(client.order(&[]).problem(), "malformed");
    let address = json!({ "identifiers": [{ "type": "ip", "value": "127.0.0.1" }] }).to_string();
    assert_eq!(client.post(&client.at("new-order"), &address).problem(), "unsupportedIdentifier");
    client.order(&[&own.to_uppercase()]).ok(201);
}

#[test]
fn a_tenant_sees_nothing_of_another() {
    let world = World::new();
    let (first, second) = (Client::registered(&world, [127, 0, 0, 1]), Client::registered(&world, [127, 0, 0, 2]));
    let host = name("first");
    let order = first.order(&[&host]).ok(201).header("location").unwrap().to_owned();
    let key = KeyPair::generate().unwrap();
    first.finalize(&order, &[&host], &key).ok(200);
    let valid = first.finish(&order);
    let certificate = valid["certificate"].as_str().unwrap();
    // With its own account, at the other's resources.
    for url in [&order, &format!("{order}/finalize"), valid["authorizations"][0].as_str().unwrap(), certificate] {
        let answer = if url.ends_with("finalize") { second.finalize(&order, &[&host], &key) } else { second.post(url, "") };
        assert_eq!((answer.status, answer.problem().as_str()), (404, "malformed"), "{url}");
    }
    assert_eq!(second.post(first.account.as_ref().unwrap(), "").problem(), "unauthorized");
    // With the other's key and account, from its own address: what was stolen is of no use elsewhere.
    let key_of_first = first.key;
    let thief = Client { account: first.account, key: key_of_first, ..Client::new(&world, [127, 0, 0, 2]) };
    assert_eq!(thief.order(&[&host]).problem(), "accountDoesNotExist");
    // A certificate that it has seen, to revoke it; and when it is to be renewed.
    let kept = world.ledger().certificates.into_values().next().unwrap();
    let text: String = kept.chain.lines().skip(1).take_while(|line| !line.starts_with("---")).collect();
    use base64::Engine;
    let der = base64::prelude::BASE64_STANDARD.decode(text).unwrap();
    let revoke = json!({ "certificate": encode(der) }).to_string();
    assert_eq!(second.post(&second.at("revoke-cert"), &revoke).ok(403).problem(), "unauthorized");
    let stranger = Client::new(&world, [127, 0, 0, 2]);
    assert_eq!(stranger.post(&stranger.at("revoke-cert"), &revoke).ok(403).problem(), "unauthorized", "that is not its key");
    assert_eq!(second.get(&format!("/acme/renewal-info/{}", kept.ari)).problem(), "malformed");
    // An address that is in the range of instances, but nobody's.
    let mut nobody = Client::new(&world, [127, 0, 0, 9]);
    assert_eq!(nobody.register().ok(403).problem(), "unauthorized");
}

#[test]
fn an_instance_that_is_gone_gets_nothing_any_more() {
    let mut world = World::without_ca();
    let client = Client::registered(&world, [127, 0, 0, 1]);
    let host = name("first");
    let order = client.order(&[&host]).ok(201).header("location").unwrap().to_owned();
    world.forget("first");
    let refused =
        (0..50).map(|_| client.finalize(&order, &[&host], &KeyPair::generate().unwrap())).find(|answer| answer.status != 503);
    assert_eq!(refused.unwrap().ok(403).problem(), "unauthorized");
}

#[test]
fn a_request_is_taken_once_whole_and_as_it_was_signed() {
    let world = World::without_ca();
    let client = Client::registered(&world, [127, 0, 0, 1]);
    let url = client.account.clone().unwrap();
    let good = Client::sign(&client.key, &client.header(&url), "").to_string();
    client.post_body(&url, &good).ok(200);
    let again = client.post_body(&url, &good).ok(400);
    assert_eq!(again.problem(), "badNonce");
    assert!(again.header("replay-nonce").is_some(), "with one to try again with");

    let with = |name: &str, value: Value| {
        let mut header = client.header(&url);
        header[name] = value;
        client.post_body(&url, &Client::sign(&client.key, &header, "").to_string()).problem()
    };
    assert_eq!(with("nonce", json!("AAAAAAAAAAAAAAAAAAAAAA")), "badNonce");
    assert_eq!(with("nonce", Value::Null), "badNonce");
    let other = Client::new(&world, [127, 0, 0, 2]);
    assert_eq!(with("nonce", json!(other.nonce())), "badNonce", "that is another's");
    assert_eq!(with("url", json!(client.at("new-order"))), "unauthorized");
    assert_eq!(with("alg", json!("none")), "badSignatureAlgorithm");
    assert_eq!(with("alg", json!("HS256")), "badSignatureAlgorithm");
    assert_eq!(with("alg", json!("ES256")), "malformed", "not one for this key");
    assert_eq!(with("kid", json!("http://elsewhere/acme/account/x")), "accountDoesNotExist");
    assert_eq!(with("jwk", Client::jwk(&client.key)), "malformed", "kid or jwk, not both");

    let mut forged = Client::sign(&client.key, &client.header(&url), "");
    forged["payload"] = json!(encode(r#"{"status":"deactivated"}"#));
    assert_eq!(client.post_body(&url, &forged.to_string()).problem(), "malformed");
    let stranger = Client::new(&world, [127, 0, 0, 1]);
    let foreign = Client::sign(&stranger.key, &client.header(&url), "").to_string();
    assert_eq!(client.post_body(&url, &foreign).problem(), "malformed");

    assert_eq!(client.send("POST", "/acme/new-order", "application/json", b"{}").ok(415).problem(), "malformed");
    assert_eq!(client.send("POST", "/acme/new-order", "application/jose+json", &[b'x'; 40_000]).ok(413).problem(), "malformed");
    assert_eq!(client.get("/acme/order/x").ok(405).problem(), "malformed");
    assert_eq!(client.get("/").ok(404).problem(), "malformed");
}

#[test]
fn a_flood_is_slowed_down_and_stops_nobody_else() {
    let world = World::without_ca();
    let (flood, other) = (Client::new(&world, [127, 0, 0, 1]), Client::new(&world, [127, 0, 0, 2]));
    let limited = (0..400).map(|_| flood.get("/acme/directory")).find(|answer| answer.status == 429).expect("a limit");
    assert_eq!(limited.problem(), "rateLimited");
    assert!(limited.header("retry-after").is_some());
    other.get("/acme/directory").ok(200);
    // Connections that say nothing.
    let mut idle = Vec::new();
    for _ in 0..40 {
        idle.push(std::net::TcpStream::connect(("127.0.0.1", world.port)).unwrap());
    }
    other.get("/acme/directory").ok(200);
}
