//! RFC 8555 and 9773, resource by resource.

use rcgen::KeyPair;
use serde_json::json;

use crate::{
    client::{Client, encode},
    world::{World, name},
};

/// The DER of the first certificate of a chain.
fn leaf(chain: &str) -> Vec<u8> {
    let text: String = chain.lines().skip(1).take_while(|line| !line.starts_with("---")).collect();
    use base64::Engine;
    base64::prelude::BASE64_STANDARD.decode(text).unwrap()
}

#[test]
fn an_account_is_made_found_changed_and_given_up() {
    let world = World::without_ca();
    let mut client = Client::new(&world, [127, 0, 0, 1]);
    let directory = client.get("/acme/directory").ok(200).json();
    for resource in ["newNonce", "newAccount", "newOrder", "revokeCert", "keyChange", "renewalInfo"] {
        assert!(directory[resource].as_str().unwrap().starts_with(&client.base), "{directory}");
    }
    client.get("/acme/new-nonce").ok(204);
    let existing = json!({ "onlyReturnExisting": true }).to_string();
    assert_eq!(client.post(&client.at("new-account"), &existing).problem(), "accountDoesNotExist");
    let made = client.register().ok(201);
    assert_eq!(made.json()["status"], "valid");
    let account = client.account.clone().unwrap();
    assert_eq!(client.register().ok(200).header("location"), Some(account.as_str()), "found again by its key");

    let changed = client.post(&account, &json!({ "contact": ["mailto:bob@x.example"] }).to_string()).ok(200);
    assert_eq!(changed.json()["contact"], json!(["mailto:bob@x.example"]));
    assert_eq!(client.post(&account, &json!({ "contact": ["tel:112"] }).to_string()).problem(), "unsupportedContact");

    // Another key: signed by both.
    let new = Client::new(&world, [127, 0, 0, 1]).key;
    let url = client.at("key-change");
    let inner = |payload: &serde_json::Value| {
        let header = json!({ "alg": "EdDSA", "url": url, "jwk": Client::jwk(&new) });
        Client::sign(&new, &header, &payload.to_string()).to_string()
    };
    let wrong = inner(&json!({ "account": account, "oldKey": Client::jwk(&new) }));
    assert_eq!(client.post(&url, &wrong).problem(), "malformed");
    let right = inner(&json!({ "account": account, "oldKey": Client::jwk(&client.key) }));
    client.post(&url, &right).ok(200);
    assert_eq!(client.post(&account, "").problem(), "malformed", "the old key is nobody's");
    client.key = new;
    client.post(&account, "").ok(200);
    assert_eq!(client.post(&format!("{account}/orders"), "").ok(200).json(), json!({ "orders": [] }));

    let gone = client.post(&account, &json!({ "status": "deactivated" }).to_string()).ok(200);
    assert_eq!(gone.json()["status"], "deactivated");
    assert_eq!(client.post(&account, "").ok(401).problem(), "unauthorized");
    assert_eq!(client.register().ok(401).problem(), "unauthorized");
}

#[test]
fn an_order_is_ready_at_once_and_ends_in_a_certificate_that_can_be_renewed_and_revoked() {
    let world = World::new();
    let client = Client::registered(&world, [127, 0, 0, 1]);
    let host = name("first");
    let made = client.order(&[&host]).ok(201);
    let order = made.header("location").unwrap().to_owned();
    assert_eq!(made.json()["status"], "ready");
    let authorization = client.post(made.json()["authorizations"][0].as_str().unwrap(), "").ok(200).json();
    assert_eq!((&authorization["status"], &authorization["identifier"]["value"]), (&json!("valid"), &json!(host)));
    let challenge = authorization["challenges"][0]["url"].as_str().unwrap();
    assert_eq!(client.post(challenge, "{}").ok(200).json()["status"], "valid");
    assert_eq!(client.order(&[&host]).ok(201).header("location"), Some(order.as_str()), "the same order as long as it is open");

    let key = KeyPair::generate().unwrap();
    let other = client.finalize(&order, &["other.seed.example"], &key);
    assert_eq!(other.problem(), "badCSR");
    let valid = client.finalize(&order, &[&host], &key).ok(200).json();
    assert_eq!(valid["status"], "valid", "the answer waited for it: {valid}");
    let chain = client.post(valid["certificate"].as_str().unwrap(), "").ok(200);
    assert_eq!(chain.header("content-type"), Some("application/pem-certificate-chain"));
    std::fs::write(world.path("chain.pem"), &chain.body).unwrap();
    assert!(world.verify(&world.path("chain.pem")).contains(&format!("DNS:{host}")));
    assert_eq!(client.finalize(&order, &[&host], &KeyPair::generate().unwrap()).problem(), "orderNotReady");
    client.finalize(&order, &[&host], &key).ok(200);

    // The same names and key again: the same certificate, without a word to the CA.
    let asked = world.ca_said("/order-plz");
    assert!(asked > 0);
    assert_eq!(client.certificate(&host, &key), chain.body);
    assert_eq!(Client::registered(&world, [127, 0, 0, 1]).certificate(&host, &key), chain.body, "for an account that is new, too");
    assert_eq!(world.ca_said("/order-plz"), asked);

    let kept = world.ledger().certificates.into_values().next().unwrap();
    let window = client.get(&format!("/acme/renewal-info/{}", kept.ari)).ok(200);
    assert!(window.header("retry-after").is_some());
    let window = window.json();
    let (start, end) = (window["suggestedWindow"]["start"].as_str().unwrap(), window["suggestedWindow"]["end"].as_str().unwrap());
    assert!(start < end && start > "2026", "{window}");

    let der = leaf(&chain.body);
    let revoke = |reason: u8| json!({ "certificate": encode(&der), "reason": reason }).to_string();
    assert_eq!(client.post(&client.at("revoke-cert"), &revoke(2)).problem(), "badRevocationReason");
    client.post(&client.at("revoke-cert"), &revoke(4)).ok(200);
    assert_eq!(client.post(&client.at("revoke-cert"), &revoke(4)).problem(), "alreadyRevoked");
    let window = client.get(&format!("/acme/renewal-info/{}", kept.ari)).ok(200).json();
    assert!(window["suggestedWindow"]["end"].as_str().unwrap() < start, "what is revoked is to be renewed at once: {window}");
    assert_ne!(client.certificate(&host, &key), chain.body, "what was revoked is not given again");
}
