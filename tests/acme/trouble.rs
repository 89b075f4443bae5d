//! The CA is away; the doors or the agent are killed in the middle of an order.

use std::time::{Duration, Instant};

use rcgen::{CertificateParams, KeyPair};
use seed::spec::acme::Stage;
use serde_json::json;

use crate::{
    client::Client,
    world::{World, name, until},
};

#[test]
fn an_order_waits_for_a_ca_that_is_away() {
    let mut world = World::without_ca();
    let client = Client::registered(&world, [127, 0, 0, 1]);
    let host = name("first");
    let order = client.order(&[&host]).ok(201).header("location").unwrap().to_owned();
    let answer = client.finalize(&order, &[&host], &KeyPair::generate().unwrap()).ok(200);
    assert_eq!(answer.json()["status"], "processing");
    assert!(answer.header("retry-after").is_some());
    world.start_ca();
    assert_eq!(client.finish(&order)["status"], "valid");
}

#[test]
fn a_ca_that_never_answers_holds_up_nobody() {
    let world = World::without_ca();
    let _silent = world.silent_ca();
    for (from, host) in [(1, name("first")), (2, name("second"))] {
        let client = Client::registered(&world, [127, 0, 0, from]);
        let order = client.order(&[&host]).ok(201).header("location").unwrap().to_owned();
        let began = Instant::now();
        let answer = client.finalize(&order, &[&host], &KeyPair::generate().unwrap()).ok(200);
        assert_eq!(answer.json()["status"], "processing");
        assert!(began.elapsed() < Duration::from_secs(10), "a client is not kept waiting: {:?}", began.elapsed());
    }
}

#[test]
fn a_ca_that_takes_its_time_gives_everybody_a_certificate_in_the_end() {
    let mut world = World::without_ca();
    world.slow = true;
    world.start_ca();
    let orders: Vec<(Client, String)> = [(1, name("first")), (2, name("second"))]
        .into_iter()
        .map(|(from, host)| {
            let client = Client::registered(&world, [127, 0, 0, from]);
            let order = client.order(&[&host]).ok(201).header("location").unwrap().to_owned();
            client.finalize(&order, &[&host], &KeyPair::generate().unwrap()).ok(200);
            (client, order)
        })
        .collect();
    for (client, order) in orders {
        let done = client.finish(&order);
        assert_eq!(done["status"], "valid", "{done}");
    }
    assert_eq!(world.ledger().certificates.len(), 2);
}

#[test]
fn a_ca_that_forgot_this_host_gets_a_new_account() {
    let mut world = World::new();
    let client = Client::registered(&world, [127, 0, 0, 1]);
    let host = name("first");
    client.certificate(&host, &KeyPair::generate().unwrap());
    // It remembers nothing over a restart.
    world.stop_ca();
    world.start_ca();
    client.certificate(&host, &KeyPair::generate().unwrap());
}

#[test]
fn a_host_that_loses_its_account_each_time_makes_no_more_than_five() {
    let mut world = World::new();
    let clients = [1, 2].map(|from| Client::registered(&world, [127, 0, 0, from]));
    let names = [name("first"), name("second")];
    for turn in 0..6 {
        let (client, host) = (&clients[turn / 3], &names[turn / 3]);
        let order = client.order(&[host]).ok(201).header("location").unwrap().to_owned();
        let answer = client.finalize(&order, &[host], &KeyPair::generate().unwrap()).ok(200);
        if turn < 5 {
            assert_eq!(client.finish(&order)["status"], "valid");
        } else {
            assert_eq!(answer.json()["status"], "processing", "it waits until there may be another");
        }
        world.kill_doors();
        world.kill_agent();
        std::fs::remove_dir_all(world.path("account")).unwrap();
        world.start_agent();
        world.open_doors();
    }
    assert_eq!((world.ca_said("accounts in memory"), world.ledger().registrations.len()), (5, 5));
}

#[test]
fn a_ca_that_is_away_or_makes_no_account_is_asked_again() {
    let mut world = World::without_ca();
    let problem = json!({ "type": "urn:ietf:params:acme:error:serverInternal", "detail": "not now", "status": 500 });
    let mut all = answers((500, String::new()));
    all[2] = ("/account", 500, problem.to_string());
    world.start_false_ca(&all);
    let client = Client::registered(&world, [127, 0, 0, 1]);
    let host = name("first");
    let order = client.order(&[&host]).ok(201).header("location").unwrap().to_owned();
    let answer = client.finalize(&order, &[&host], &KeyPair::generate().unwrap()).ok(200);
    assert_eq!(answer.json()["status"], "processing");
    world.stop_ca();
    world.start_ca();
    assert_eq!(client.finish(&order)["status"], "valid");
    assert_eq!(world.ledger().registrations.len(), 1);
}

#[test]
fn a_ca_that_knows_its_customers_is_shown_the_key() {
    let world = World::bound();
    let client = Client::registered(&world, [127, 0, 0, 1]);
    client.certificate(&name("first"), &KeyPair::generate().unwrap());
}

/// Answers of a CA up to an order, which has this status and body.
fn answers(order: (u16, String)) -> Vec<(&'static str, u16, String)> {
    let directory = json!({ "newNonce": "CA/nonce", "newAccount": "CA/account", "newOrder": "CA/order" }).to_string();
    let account = json!({ "status": "valid" }).to_string();
    vec![("/dir", 200, directory), ("/nonce", 200, String::new()), ("/account", 201, account), ("/order", order.0, order.1)]
}

#[test]
fn a_ca_that_is_asked_too_much_is_left_alone() {
    let mut world = World::without_ca();
    let problem = json!({ "type": "urn:ietf:params:acme:error:rateLimited", "detail": "too many", "status": 429 });
    world.start_false_ca(&answers((429, problem.to_string())));
    let client = Client::registered(&world, [127, 0, 0, 1]);
    let host = name("first");
    let order = client.order(&[&host]).ok(201).header("location").unwrap().to_owned();
    client.finalize(&order, &[&host], &KeyPair::generate().unwrap()).ok(200);
    let done = client.finish(&order);
    assert_eq!((&done["status"], &done["error"]["type"]), (&json!("invalid"), &problem["type"]), "{done}");
    // The next one does not even get there, and is told how long to wait.
    let order = client.order(&[&host]).ok(201).header("location").unwrap().to_owned();
    let refused = client.finalize(&order, &[&host], &KeyPair::generate().unwrap()).ok(429);
    assert_eq!(refused.problem(), "rateLimited");
    assert!(refused.header("retry-after").unwrap().parse::<u32>().unwrap() > 3000);
    assert!(world.ledger().orders[order.rsplit('/').next().unwrap()].begun.is_none(), "nothing is spent");
}

#[test]
fn a_ca_that_sends_something_else_is_not_believed() {
    let mut world = World::without_ca();
    let host = name("first");
    let order = |status: &str| {
        json!({ "status": status, "authorizations": [], "finalize": "CA/finalize", "certificate": "CA/certificate" }).to_string()
    };
    // A certificate for the right name, but for a key that is not the guest's.
    let other = CertificateParams::new(vec![host.clone()]).unwrap().self_signed(&KeyPair::generate().unwrap()).unwrap();
    let mut all = answers((201, order("ready")));
    all.extend([("/finalize", 200, order("valid")), ("/certificate", 200, other.pem())]);
    world.start_false_ca(&all);
    let client = Client::registered(&world, [127, 0, 0, 1]);
    let ours = client.order(&[&host]).ok(201).header("location").unwrap().to_owned();
    client.finalize(&ours, &[&host], &KeyPair::generate().unwrap()).ok(200);
    let done = client.finish(&ours);
    assert_eq!(done["error"]["type"], "urn:ietf:params:acme:error:serverInternal", "{done}");
    assert!(done["error"]["detail"].as_str().unwrap().contains("another key"), "{done}");
    assert!(world.ledger().certificates.is_empty());
}

/// pebble of this Debian says nothing of renewal (RFC 9773): what it would say is said by a stand-in, between two lives of pebble's.
#[test]
fn a_ca_that_wants_a_certificate_renewed_early_is_heard() {
    let mut world = World::new();
    let client = Client::registered(&world, [127, 0, 0, 1]);
    let (host, key) = (name("first"), KeyPair::generate().unwrap());
    let first = client.certificate(&host, &key);
    assert_eq!(client.certificate(&host, &key), first, "the same, as long as it is not due");
    let ari = world.ledger().certificates.into_values().next().unwrap().ari;
    world.stop_ca();
    let mut all = answers((500, String::new()));
    all[0].2 = json!({ "newNonce": "CA/nonce", "newAccount": "CA/account", "newOrder": "CA/order", "renewalInfo": "CA/renewal" })
        .to_string();
    let window = json!({ "suggestedWindow": { "start": "2026-01-02T03:04:05Z", "end": "2026-01-03T03:04:05Z" } });
    all.push(("/renewal/*", 200, window.to_string()));
    world.start_false_ca(&all);
    world.kill_doors();
    world.open_doors();
    let told = client.get(&format!("/acme/renewal-info/{ari}")).ok(200).json();
    assert_eq!(told, window, "the guest's client hears it");
    world.kill_doors();
    world.stop_ca();
    world.start_ca();
    world.open_doors();
    // Whoever asks from now on gets a new one: the same names and key, and the window says that the old one is due.
    assert_ne!(client.certificate(&host, &key), first);
    let ledger = world.ledger();
    assert_eq!((ledger.certificates.len(), ledger.orders.values().filter(|order| order.renewal).count()), (2, 1));
}

#[test]
fn a_kill_at_any_moment_of_an_order_loses_nothing() {
    let mut world = World::new();
    let client = Client::registered(&world, [127, 0, 0, 1]);
    let other = Client::registered(&world, [127, 0, 0, 2]);
    let mut caught = 0;
    // Two tenants, four orders of the same names each at most.
    for (turn, pause) in [0, 5, 15, 30, 60, 100, 150, 250].into_iter().enumerate() {
        let (client, host) = if turn % 2 == 0 { (&client, name("first")) } else { (&other, name("second")) };
        let order = client.order(&[&host]).ok(201).header("location").unwrap().to_owned();
        let id = order.rsplit('/').next().unwrap().to_owned();
        std::thread::scope(|scope| {
            let order = &order;
            let host = &host;
            // Its answer is lost with the doors.
            let asked = scope.spawn(move || client.finalize(order, &[host], &KeyPair::generate().unwrap()));
            until("the order to be begun", || world.ledger().orders[&id].begun.is_some());
            std::thread::sleep(Duration::from_millis(pause));
            if turn % 4 < 2 {
                world.kill_doors();
            } else {
                world.kill_agent();
            }
            if matches!(world.ledger().orders[&id].stage, Stage::Working(_)) {
                caught += 1;
            }
            if turn % 4 < 2 {
                world.open_doors();
            } else {
                world.start_agent();
            }
            drop(asked.join());
        });
        let done = client.finish(&order);
        assert_eq!(done["status"], "valid", "killed after {pause} ms: {done}");
    }
    eprintln!("{caught} of 8 kills met an order on its way");
    assert!(caught >= 2, "{caught} of 8 kills met an order on its way: the pauses are too long");
    assert!(world.ledger().challenges().is_empty());
}
