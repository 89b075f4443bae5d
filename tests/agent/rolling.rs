//! Rolling out: who serves while a new version starts beside it, and what is left afterwards.

use std::time::Duration;

use seed::{
    agent::{access::Question, history::History, request::Request},
    bus::{InstanceStatus, Outcome},
    host::sim::Boot,
    plan::{Step, UnitState},
    spec::name::{SetId, Slot},
};
use serde_json::{Value, json};

use crate::world::{World, ann, id};

fn rolling() -> Value {
    json!({ "rollout": "rolling", "expose": { "http": { "port": 80 } } })
}

fn a() -> SetId {
    id("app", "web").set(Slot::A)
}
fn b() -> SetId {
    id("app", "web").set(Slot::B)
}

fn runs(world: &World, set: &SetId, tag: &str) -> bool {
    world.sim.running(set).is_some_and(|text| text.contains(&format!("-{tag}/")))
}

/// The sets that there are on the machine.
fn there(world: &World) -> Vec<SetId> {
    world.sim.look().instances.into_keys().collect()
}

/// Where the name leads.
fn named(world: &World) -> std::net::Ipv4Addr {
    let web = a();
    world.handle.zone.borrow().zone().namespaces[web.namespace.as_str()]["web"].ipv4
}

async fn web(world: &World) -> InstanceStatus {
    world.status("").await.namespaces[0].instances[0].clone()
}

async fn first(world: &World) {
    world.table.set("web", "one", rolling());
    let (outcome, said) = world.planted("app").await;
    assert_eq!(outcome, Outcome::Done, "{said}");
}

fn history(what: fn(String, String) -> History) -> Request {
    Request::History(what(ann().to_string(), "web".into()))
}

async fn done(world: &World, request: Request) -> String {
    let job = world.text(request).await.unwrap();
    let (outcome, said) = world.follow(&job).await;
    assert_eq!(outcome, Outcome::Done, "{said}");
    said
}

/// One set is left, which runs this and has the only lease.
async fn settles(world: &World, tag: &str) {
    let alone = |world: &World| there(world).len() == 1 && there(world).iter().all(|set| runs(world, set, tag));
    world.until(&format!("{tag} serves alone"), alone).await;
    world.until("the other lease is given back", |world| world.state.memory().leases.keys().eq(&there(world))).await;
    let memory = world.state.memory();
    assert!(memory.rolling.values().all(|rolling| rolling.beside.is_none()), "{:?}", memory.rolling);
    assert_eq!(web(world).await.ipv4, named(world));
}

#[tokio::test]
async fn a_new_version_takes_the_name_when_it_is_ready_and_the_old_one_drains() {
    let mut world = World::new().await;
    world.drain(2).await;
    first(&world).await;
    let old = named(&world);
    world.sim.boot(Boot::AtTick);
    world.table.set("web", "two", rolling());
    let commit = world.commit("app", &[]);
    let pushed = world.pushed(&ann(), "app", &commit, "deploy").await.unwrap();
    world.until("the new one boots", |world| world.sim.boots(b()) == 1).await;
    let status = web(&world).await;
    let beside = status.beside.expect("both are shown");
    assert_eq!((status.state.as_str(), status.ipv4, named(&world)), ("running", old, old));
    assert_eq!((beside.role.as_str(), beside.name.as_str(), beside.state.as_str()), ("coming", "web.b", "booting"));
    assert!(status.detail.contains("takes over when it is ready"), "{}", status.detail);
    let firewall = world.sim.look().firewall.unwrap();
    assert!(firewall.contains(&format!("{} . tcp . 80", beside.ipv4)), "it is exposed before the name leads to it");
    let asks = |world: &World| world.handle.zone.borrow().zone().namespaces[a().namespace.as_str()]["web"].beside.clone();
    assert_eq!(asks(&world), [std::net::IpAddr::from(beside.ipv4), beside.ipv6.into()], "it asks for names as it boots");

    world.sim.tick();
    let (outcome, said) = world.follow(&pushed.job).await;
    assert_eq!(outcome, Outcome::Done, "{said}");
    assert!(said.contains("web: roll out (system changed): it starts beside the one that serves"), "{said}");
    assert_eq!(named(&world), beside.ipv4);
    assert!(runs(&world, &a(), "one") && runs(&world, &b(), "two"));
    let status = web(&world).await;
    let drains = status.beside.expect("both are shown");
    assert_eq!((status.ipv4, drains.role.as_str(), drains.ipv4), (beside.ipv4, "draining", old));
    let firewall = world.sim.look().firewall.unwrap();
    assert!(firewall.contains(&format!("{old} . tcp . 80")), "who was told its address reaches it still");
    settles(&world, "two").await;
    assert_eq!((world.sim.boots(b()), web(&world).await.beside, asks(&world)), (1, None, vec![]));

    // And back into the other place.
    world.sim.boot(Boot::AtOnce);
    world.table.set("web", "three", rolling());
    assert_eq!(world.push("app").await.0, Outcome::Done);
    settles(&world, "three").await;
    assert_eq!((there(&world), named(&world)), (vec![a()], old));
    assert!(world.state.memory().rolling.is_empty(), "nothing is to be remembered of what is in its own place");
}

#[tokio::test]
async fn a_version_that_does_not_get_ready_is_removed_and_the_old_one_was_never_touched() {
    let world = World::new().await;
    first(&world).await;
    let old = named(&world);
    let before = world.sim.applied().len();
    world.table.set("web", "two", rolling());
    world.sim.boot_of(b(), Boot::Fails("exit-code".into()));
    let (outcome, said) = world.push("app").await;
    assert_eq!(outcome, Outcome::Failed, "{said}");
    assert!(said.contains("the new version is taken away; the one before serves, and was not touched"), "{said}");
    assert!(said.contains(&format!("a line of {}", b())), "the last words of the new one: {said}");
    settles(&world, "one").await;
    assert!(world.sim.applied()[before..].iter().all(|step| step.set() != Some(&a())), "{:#?}", &world.sim.applied()[before..]);
    assert_eq!((world.sim.boots(a()), named(&world)), (1, old));
    // Mended, it is rolled out.
    world.sim.boot_of(b(), Boot::AtOnce);
    assert_eq!(world.push("app").await.0, Outcome::Done);
    settles(&world, "two").await;
}

#[tokio::test]
async fn of_pushes_during_a_roll_out_the_newest_wins_and_something_serves_all_the_time() {
    let world = World::new().await;
    first(&world).await;
    world.sim.boot(Boot::AtTick);
    world.table.set("web", "two", rolling());
    let commits: Vec<String> = (0..3).map(|round| world.commit("app", &[("page", &round.to_string())])).collect();
    let mut jobs = Vec::new();
    for commit in &commits {
        jobs.push(world.pushed(&ann(), "app", commit, "deploy").await.unwrap().job);
        world.until("the first of them boots", |world| world.sim.boots(b()) == 1).await;
        world.table.set("web", "three", rolling());
    }
    world.sim.tick();
    world.sim.boot(Boot::AtOnce);
    assert_eq!(world.follow(&jobs[0]).await.0, Outcome::Done);
    assert_eq!(world.follow(&jobs[1]).await.0, Outcome::Superseded);
    let last = world.follow(&jobs[2]);
    tokio::pin!(last);
    let (outcome, said) = loop {
        tokio::select! {
            ended = &mut last => break ended,
            () = tokio::time::sleep(Duration::from_millis(1)) => {
                let leads = named(&world);
                let seen = world.sim.look().instances;
                let serves = seen.values().find(|one| one.tap.as_ref().is_some_and(|tap| tap.v4 == leads));
                assert!(serves.is_some_and(|one| one.vm == UnitState::Active), "the name leads to nothing");
            }
        }
    };
    assert_eq!(outcome, Outcome::Done, "{said}");
    assert!(said.contains("drains, for"), "it says what it waits for: {said}");
    settles(&world, "three").await;
}

/// A push whose agent is killed at the commit of this number, before or after that is on the disk. Returns whether there is one.
async fn killed_at(nth: usize, applied: bool) -> bool {
    let mut world = World::new().await;
    first(&world).await;
    world.table.set("web", "two", rolling());
    let commit = world.commit("app", &[]);
    let caller = ann();
    world.state.stall(nth, applied);
    let acknowledged = tokio::select! {
        pushed = world.pushed(&caller, "app", &commit, "deploy") => pushed.is_ok(),
        () = world.until("it stalls", |world| world.state.stalled()) => false,
    };
    let drained = |world: &World| world.state.memory().rolling.values().any(|one| one.beside.is_none());
    if acknowledged {
        world.until("it stalls, or has drained", |world| world.state.stalled() || drained(world)).await;
    }
    let stalled = world.state.stalled();
    assert!(world.sim.look().instances.values().any(|one| one.vm == UnitState::Active), "commit {nth}");
    world.kill_agent().await;
    settles(&world, if acknowledged || applied { "two" } else { "one" }).await;
    let starts = world.sim.applied().iter().filter(|step| matches!(step, Step::Start { id, .. } if *id == a())).count();
    assert_eq!(starts, 1, "the old one was never started again");
    stalled
}

#[tokio::test]
async fn an_agent_that_is_killed_at_any_commit_leaves_one_that_serves_and_nothing_else() {
    for applied in [true, false] {
        let stalled = futures_util::future::join_all((0..12).map(|nth| killed_at(nth, applied))).await;
        let commits = stalled.iter().filter(|stalled| **stalled).count();
        assert!((4..12).contains(&commits) && !stalled[11], "all of them were tried: {stalled:?}");
    }
}

#[tokio::test]
async fn a_roll_out_needs_room_for_both_and_is_refused_before_anything_is_touched() {
    let world = World::new().await;
    first(&world).await;
    let touched = |world: &World| world.sim.applied().iter().filter(|step| step.set().is_some()).count();
    let before = touched(&world);
    let quota = Question::SetQuota { namespace: "app".into(), changes: "instances=1".into() };
    world.handle.ask(Request::Access(quota)).await.unwrap();
    world.table.set("web", "two", rolling());
    let (outcome, said) = world.push("app").await;
    assert_eq!(outcome, Outcome::Failed);
    for part in ["while web run twice, for a roll-out", "want 2 instances, where it may have 1", "rollout = \"recreate\""] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(touched(&world), before);
    // Nothing of it changes, so it needs no second place; nor does what is recreated.
    world.table.set("web", "one", rolling());
    assert_eq!(world.push("app").await.0, Outcome::Done);
    world.table.set("web", "two", json!({}));
    assert_eq!(world.push("app").await.0, Outcome::Done);
    assert!(runs(&world, &a(), "two") && there(&world) == [a()]);
}

#[tokio::test]
async fn what_is_stopped_changes_in_its_place_and_what_is_destroyed_leaves_nothing() {
    let world = World::new().await;
    first(&world).await;
    world.sim.boot(Boot::AtTick);
    world.table.set("web", "two", rolling());
    let commit = world.commit("app", &[]);
    let pushed = world.pushed(&ann(), "app", &commit, "deploy").await.unwrap();
    world.until("the new one boots", |world| world.sim.boots(b()) == 1).await;
    done(&world, history(|who, instance| History::Stop { who, instance })).await;
    let (outcome, said) = world.follow(&pushed.job).await;
    assert_eq!(outcome, Outcome::Done, "{said}");
    assert!(said.contains("web is off"), "{said}");
    world.until("one is left, and off", |world| there(world) == [a()] && world.sim.running(a()).is_none()).await;
    world.sim.boot(Boot::AtOnce);
    done(&world, history(|who, instance| History::Start { who, instance })).await;
    assert!(runs(&world, &a(), "two"));

    world.table.set("web", "three", rolling());
    assert_eq!(world.push("app").await.0, Outcome::Done);
    let destroy = History::Destroy { who: ann().to_string(), instance: "web".into(), again: "web".into() };
    done(&world, Request::History(destroy)).await;
    world.until("both are gone", |world| there(world).is_empty() && world.state.memory().leases.is_empty()).await;
    assert!(world.state.memory().rolling.is_empty());
}

#[tokio::test]
async fn going_back_while_the_old_one_drains_starts_nothing() {
    let mut world = World::new().await;
    world.drain(600).await;
    first(&world).await;
    world.table.set("web", "two", rolling());
    assert_eq!(world.push("app").await.0, Outcome::Done);
    let boots = (world.sim.boots(a()), world.sim.boots(b()));
    done(&world, history(|who, instance| History::Rollback { who, instance, generation: String::new() })).await;
    assert_eq!((world.sim.boots(a()), world.sim.boots(b())), boots);
    let status = web(&world).await;
    assert_eq!((status.ipv4, status.beside.map(|beside| beside.role)), (named(&world), Some("draining".to_owned())));
    assert!(runs(&world, &a(), "one"));

    // A way in, a restart and the journal are of what serves.
    done(&world, Request::Restart { who: ann().to_string(), instance: "web".into() }).await;
    assert_eq!((world.sim.boots(a()), world.sim.boots(b())), (boots.0 + 1, boots.1));
    let logs = Request::Logs { who: ann().to_string(), instance: "web".into(), query: json!({ "lines": 10 }).to_string() };
    let seed::agent::request::Reply::Pipe(logs) = world.handle.ask(logs).await.unwrap() else { panic!("no pipe") };
    let read = tokio::task::spawn_blocking(move || std::io::read_to_string(std::fs::File::from(logs)).unwrap());
    let read = read.await.unwrap();
    assert!(read.contains(&format!("a line of {}\"", a())) && read.contains(&format!("a line of {}\"", b())), "{read}");
}

#[tokio::test]
async fn a_machine_that_restarts_during_a_roll_out_finishes_it() {
    let mut world = World::new().await;
    world.drain(600).await;
    first(&world).await;
    world.sim.boot(Boot::AtTick);
    world.table.set("web", "two", rolling());
    let commit = world.commit("app", &[]);
    world.pushed(&ann(), "app", &commit, "deploy").await.unwrap();
    world.until("the new one boots", |world| world.sim.boots(b()) == 1).await;
    world.sim.boot(Boot::AtOnce);
    world.reboot().await;
    world.until("the new one serves", |world| runs(world, &b(), "two")).await;
    world.until("and drains the old one", |world| !world.state.memory().rolling.values().any(|one| one.coming().is_some())).await;
    world.reboot().await;
    // What drained is not started for the sake of draining.
    settles(&world, "two").await;
}

#[tokio::test]
async fn a_version_gone_back_to_that_never_gets_ready_is_given_up_although_the_agent_was_killed() {
    let mut world = World::new().await;
    first(&world).await;
    world.table.set("web", "two", rolling());
    assert_eq!(world.push("app").await.0, Outcome::Done);
    settles(&world, "two").await;
    world.sim.boot_of(a(), Boot::AtTick);
    let rollback = history(|who, instance| History::Rollback { who, instance, generation: String::new() });
    world.text(rollback).await.unwrap();
    world.until("the old version boots", |world| world.sim.running(a()).is_some()).await;
    world.kill_agent().await;
    world.sim.give_up(a(), "timeout");
    settles(&world, "two").await;
    assert_eq!(world.sim.boots(b()), 1);
}
