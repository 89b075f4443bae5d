//! The CA is away; the doors or the agent are killed in the middle of an order.

use std::time::Duration;

use rcgen::KeyPair;
use seed::spec::acme::Stage;

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
