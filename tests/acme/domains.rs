//! Names of tenants' own: looked at in a DNS that says all kinds of things, and certified by a CA that is led here.

use std::path::PathBuf;

use hickory_proto::op::ResponseCode;
use rcgen::KeyPair;
use seed::{
    bus::domain::{DomainList, DomainStatus, DomainsProxy},
    spec::{domain::Stage, name::CustomDomain},
};

use crate::{
    client::Client,
    outside::Said,
    world::{World, instance, name, until},
};

const WWW: &str = "www.example.com";
const HOUR: u64 = 3600;

/// Asks the agent as the operator does.
fn ask<T>(world: &World, question: impl AsyncFnOnce(DomainsProxy<'static>) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let bus = zbus::connection::Builder::address(world.bus_address().as_str()).build().await.unwrap();
        question(DomainsProxy::new(&bus).await.unwrap()).await
    })
}

fn claim(world: &World, tenant: &str, name: &str) -> DomainStatus {
    let text = ask(world, async |domains| domains.add("", &format!("{tenant}/web"), name).await.unwrap());
    serde_json::from_str::<DomainList>(&text).unwrap().domains.remove(0)
}

fn shown(world: &World, tenant: &str, name: &str) -> DomainStatus {
    let text = ask(world, async |domains| domains.list("", tenant).await.unwrap());
    serde_json::from_str::<DomainList>(&text).unwrap().domains.into_iter().find(|one| one.name == name).unwrap()
}

/// The same after it was looked at anew.
fn looked_at(world: &World, tenant: &str, name: &str) -> DomainStatus {
    let due = claim(world, tenant, name).next;
    until("a look", || shown(world, tenant, name).next > due);
    shown(world, tenant, name)
}

#[test]
fn what_the_dns_says_is_taken_for_what_it_is() {
    let world = World::without_ca();
    let target = name("first");
    let txt = |domain: &str| claim(&world, "first", domain).records.txt;
    let apex = "example.com";
    world.outside.say(&format!("_seed-challenge.{apex}"), Said::Txt(vec!["v=spf1 -all".into(), txt(apex)]));
    world.outside.cname("chain.example.com", "one.example.net");
    world.outside.cname("one.example.net", "two.example.net");
    world.outside.cname("two.example.net", &target);
    world.outside.cname("loop.example.com", "pool.example.com");
    world.outside.cname("pool.example.com", "loop.example.com");
    world.outside.cname("theirs.example.com", &name("second"));
    world
        .outside
        .say("_seed-challenge.theirs.example.com", Said::Txt(vec![claim(&world, "second", "theirs.example.com").records.txt]));
    world.outside.say("_seed-challenge.long.example.com", Said::LongTxt(vec![txt("long.example.com")]));
    world.outside.cname("_seed-challenge.led.example.com", "proofs.example.net");
    world.outside.say("proofs.example.net", Said::Txt(vec![txt("led.example.com")]));
    world.outside.say("_seed-challenge.forged.example.com", Said::Forged(txt("forged.example.com")));
    world.outside.say("broken.example.com", Said::Code(ResponseCode::ServFail));
    world.outside.say("_seed-challenge.refused.example.com", Said::Code(ResponseCode::Refused));
    world.outside.say("silent.example.com", Said::Silence);
    // What is proven in one way needs nothing of the other.
    world.outside.say("half.example.com", Said::Code(ResponseCode::ServFail));
    world.outside.say("_seed-challenge.half.example.com", Said::Txt(vec![txt("half.example.com")]));
    for (domain, state, detail) in [
        (apex, "proven", "by the TXT record"),
        ("chain.example.com", "proven", "by its CNAME"),
        ("long.example.com", "proven", "by the TXT record"),
        ("led.example.com", "proven", "by the TXT record"),
        ("half.example.com", "proven", "by the TXT record"),
        ("nothing.example.com", "pending", "it is no CNAME, and _seed-challenge.nothing.example.com has no TXT record"),
        ("theirs.example.com", "pending", "it is a CNAME of web.s-"),
        ("loop.example.com", "pending", "it is a CNAME of "),
        ("forged.example.com", "pending", "has no TXT record"),
        ("broken.example.com", "pending", "could not be asked: a resolver says"),
        ("refused.example.com", "pending", "could not be asked: a resolver says"),
        ("silent.example.com", "pending", "could not be asked: a resolver did not answer in time"),
    ] {
        let seen = looked_at(&world, "first", domain);
        assert_eq!(seen.state, state, "{domain}: {}", seen.detail);
        assert!(seen.detail.contains(detail), "{domain}: {}", seen.detail);
    }
    assert_eq!(looked_at(&world, "second", "theirs.example.com").state, "proven");
}

/// The agent was away for as long as a claim's stage says now.
fn meanwhile(world: &mut World, tenant: &str, stage: impl Fn(u64) -> Stage) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let (name, namespace) = (WWW.parse::<CustomDomain>().unwrap(), instance(tenant).namespace);
    world.remember(|memory| memory.domains.get_mut(&name).unwrap().get_mut(&namespace).unwrap().stage = stage(now));
}

#[test]
fn a_name_of_ones_own_gets_a_certificate_while_it_is_proven() {
    let mut world = World::without_ca();
    world.ask_outside = true;
    world.start_ca();
    let (first, second) = (Client::registered(&world, [127, 0, 0, 1]), Client::registered(&world, [127, 0, 0, 2]));
    assert_eq!(first.order(&[WWW]).ok(403).problem(), "rejectedIdentifier");
    claim(&world, "second", WWW);
    let claimed = looked_at(&world, "first", WWW);
    let refused = first.order(&[WWW]).ok(403);
    assert!(refused.body.contains("is not proven to be this instance's: it is no CNAME"), "{}", refused.body);

    world.outside.cname(WWW, &name("first"));
    assert_eq!(looked_at(&world, "first", WWW).state, "proven");
    // The CA would not find us.
    let refused = first.order(&[WWW]).ok(400);
    assert_eq!(refused.problem(), "dns");
    assert!(refused.body.contains(&format!("set _acme-challenge.{WWW}. CNAME {}.", claimed.records.acme)), "{}", refused.body);
    world.outside.cname(&claimed.records.acme_name, &claimed.records.acme);
    assert!(looked_at(&world, "first", WWW).delegated);
    assert_eq!(second.order(&[WWW]).ok(403).problem(), "rejectedIdentifier");

    let chain = |world: &World, text: &str| -> PathBuf {
        let path = world.path("chain.pem");
        std::fs::write(&path, text).unwrap();
        path
    };
    let key = KeyPair::generate().unwrap();
    let text = first.certificate(WWW, &key);
    assert!(world.verify(&chain(&world, &text)).contains(&format!("DNS:{WWW}")));
    // With its name of this host, in one certificate.
    let host = name("first");
    let order = first.order(&[WWW, &host]).ok(201).header("location").unwrap().to_owned();
    first.finalize(&order, &[WWW, &host], &KeyPair::generate().unwrap()).ok(200);
    assert_eq!(first.finish(&order)["status"], "valid");
    until("the proofs to be gone", || world.ledger().challenges().is_empty());

    // The DNS points to the other now; both have said so for a while.
    let waiting = first.order(&[WWW]).ok(201).header("location").unwrap().to_owned();
    world.outside.cname(WWW, &name("second"));
    assert_eq!(looked_at(&world, "first", WWW).state, "failing");
    assert_eq!(looked_at(&world, "second", WWW).state, "waiting");
    // The name is still the first's, and gives it nothing new.
    assert_eq!(first.order(&[WWW]).ok(403).problem(), "rejectedIdentifier");
    assert_eq!(second.order(&[WWW]).ok(403).problem(), "rejectedIdentifier", "never both");
    meanwhile(&mut world, "first", |now| Stage::Held { since: 0, failing: Some(now - 2 * HOUR) });
    meanwhile(&mut world, "second", |now| Stage::Waiting { since: now - 2 * HOUR });
    assert_eq!(looked_at(&world, "second", WWW).state, "proven");
    assert_eq!(shown(&world, "first", WWW).state, "pending");
    // A name that it lost: neither by a new order nor by an old one.
    assert_eq!(first.order(&[WWW]).ok(403).problem(), "rejectedIdentifier");
    assert_eq!(first.finalize(&waiting, &[WWW], &KeyPair::generate().unwrap()).ok(403).problem(), "rejectedIdentifier");
    // The other has a place of its own in the zone, which the CA is not led to yet.
    assert_eq!(second.order(&[WWW]).ok(400).problem(), "dns");
    let theirs = shown(&world, "second", WWW).records;
    world.outside.cname(&theirs.acme_name, &theirs.acme);
    second.certificate(WWW, &KeyPair::generate().unwrap());

    // Given up by everybody in the DNS: after three days nobody has it.
    world.outside.forget(WWW);
    meanwhile(&mut world, "second", |now| Stage::Held { since: 0, failing: Some(now - 72 * HOUR) });
    assert_eq!(looked_at(&world, "second", WWW).state, "pending");
    assert_eq!(second.order(&[WWW]).ok(403).problem(), "rejectedIdentifier");
}
