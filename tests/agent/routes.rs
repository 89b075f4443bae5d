//! Public ports: the first claim stands, what is given back is free, and nothing claims what it may not.

use std::time::Duration;

use seed::{
    agent::{access::Question, history::History, request::Request},
    bus::{Outcome, Refusal},
    host::sim::Boot,
};
use serde_json::{Value, json};

use crate::{
    desk::Desk,
    world::{World, ann, id},
};

/// `ipv4.routes.in`: this public port leads to `web` 80.
fn port(port: u16) -> Option<Value> {
    Some(json!({ "routes": { "in": { "port": port, "instance": "web", "targetPort": 80 } } }))
}

fn web() -> Value {
    json!({ "expose": { "http": { "port": 80 } } })
}

async fn allow(world: &World, repo: &str, routes: u32) {
    let request = Request::Access(Question::SetQuota { namespace: repo.into(), changes: format!("routes={routes}") });
    world.handle.ask(request).await.unwrap();
}

/// A host with the repositories `app` and `other`, which run one instance each and may have two public ports.
async fn host() -> World {
    let world = World::new().await;
    world.table.set("web", "one", web());
    for repo in ["app", "other"] {
        let (outcome, said) = world.planted(repo).await;
        assert_eq!(outcome, Outcome::Done, "{said}");
        allow(&world, repo, 2).await;
    }
    world
}

/// Pushes what the table holds with this public port, or none.
async fn push(world: &World, repo: &str, routes: Option<Value>) -> (Outcome, String) {
    world.table.routes(routes, None);
    world.push(repo).await
}

/// The public ports of `web` of a repository, as `status` has them.
async fn ports(world: &World, repo: &str) -> Vec<u16> {
    let status = world.status("").await;
    let namespace = status.namespaces.iter().find(|one| one.flake == format!("silo:{repo}")).expect("it is planted");
    namespace.instances.iter().flat_map(|one| one.routes.iter().map(|route| route.port)).collect()
}

/// Whether the firewall leads a port of 192.0.2.7 to `web` of a repository.
fn leads(world: &World, port: u16, repo: &str) -> bool {
    let from = format!("192.0.2.7 . tcp . {port} comment \"{}\"", id(repo, "web"));
    world.sim.look().firewall.is_some_and(|text| text.contains(&from))
}

async fn rollback(world: &World) -> Result<(Outcome, String), Refusal> {
    // Several have one.
    let instance = "app/web".to_owned();
    let request = Request::History(History::Rollback { who: ann().to_string(), instance, generation: String::new() });
    let job = world.text(request).await?;
    Ok(world.follow(&job).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_has_a_public_port_until_the_operator_gives_one() {
    let world = World::new().await;
    let desk = Desk::new(&world).await;
    world.table.set("web", "one", web());
    world.planted("app").await;
    let boots = world.sim.boots(&id("app", "web"));
    world.table.set("web", "two", web());
    let (outcome, said) = push(&world, "app", port(2525)).await;
    assert_eq!(outcome, Outcome::Failed);
    assert!(said.contains("! routes: one public port wanted, where this namespace may have none"), "{said}");
    assert_eq!(world.sim.boots(&id("app", "web")), boots, "nothing was stopped");

    assert_eq!(desk.run(None, "quota set app routes=1").await.code, 0);
    let (outcome, said) = push(&world, "app", port(2525)).await;
    assert_eq!(outcome, Outcome::Done, "{said}");
    assert!(said.contains("web: claims public port 2525/tcp of every IPv4 address, which leads to its port 80"), "{said}");
    assert!(leads(&world, 2525, "app"));
    let shown = desk.run(Some(&ann()), "status").await.out;
    assert!(shown.contains("PUBLIC") && shown.contains("192.0.2.7:2525/tcp"), "{shown}");
    let shown = desk.run(Some(&ann()), "quota").await.out;
    assert!(shown.lines().any(|line| line.split_whitespace().eq(["routes", "1", "1"])), "{shown}");
    let status: Value = serde_json::from_str(&desk.run(Some(&ann()), "status --json").await.out).unwrap();
    let expected = json!([{ "name": "in", "addresses": ["192.0.2.7"], "port": 2525, "protocol": "tcp", "targetPort": 80 }]);
    assert_eq!(status["namespaces"][0]["instances"][0]["routes"], expected);

    // One more than that is refused with what would fit, the one that it has first.
    let both = json!({ "routes": { "a": { "port": 80, "instance": "web" }, "in": { "port": 2525, "instance": "web", "targetPort": 80 } } });
    let (_, said) = push(&world, "app", Some(both.clone())).await;
    assert!(said.contains("ipv4.routes.a: public port 80/tcp of every IPv4 address is one that this host uses"), "{said}");
    let both = json!({ "routes": { "a": { "port": 8080, "instance": "web", "targetPort": 80 }, "in": both["routes"]["in"] } });
    let (outcome, said) = push(&world, "app", Some(both)).await;
    assert_eq!(outcome, Outcome::Failed);
    assert!(said.contains("2 public ports wanted, where this namespace may have 1; ipv4.routes.in would fit"), "{said}");
    // What the operator takes back stays until it is asked for anew.
    assert_eq!(desk.run(None, "quota set app routes=0").await.code, 0);
    assert_eq!(ports(&world, "app").await, [2525]);
    assert_eq!(push(&world, "app", port(2525)).await.0, Outcome::Failed);
    assert_eq!(push(&world, "app", None).await.0, Outcome::Done);
    assert_eq!(ports(&world, "app").await, [0u16; 0]);
}

#[tokio::test]
async fn the_first_claim_stands_and_what_is_given_back_is_free() {
    let world = host().await;
    assert_eq!(push(&world, "app", port(2525)).await.0, Outcome::Done);
    let boots = world.sim.boots(&id("other", "web"));
    let (outcome, said) = push(&world, "other", port(2525)).await;
    assert_eq!(outcome, Outcome::Failed);
    let expected = "! ipv4.routes.in: public port 2525/tcp of every IPv4 address is taken by another repository of this host: choose another port";
    assert!(said.contains(expected), "{said}");
    assert!(!said.contains("app") && !said.contains(id("app", "web").namespace.as_str()), "whose it is, nobody says: {said}");
    assert_eq!((world.sim.boots(&id("other", "web")), ports(&world, "other").await.len()), (boots, 0));
    // A plan says the same.
    let commit = world.commit("other", &[]);
    let plan = world.pushed(&ann(), "other", &commit, "plan").await.unwrap();
    assert!(world.follow(&plan.job).await.1.contains(expected));
    // Ports that the host uses are nobody's: those of the doors, and those that are configured.
    for own in [22, 53, 443, 9876, 2200] {
        let (_, said) = push(&world, "other", port(own)).await;
        assert!(said.contains(&format!("public port {own}/tcp of every IPv4 address is one that this host uses itself")), "{said}");
    }

    // Moved to another port, the old one is free; nothing restarts for it.
    let boots = world.sim.boots(&id("app", "web"));
    let (outcome, said) = push(&world, "app", port(2526)).await;
    assert_eq!(outcome, Outcome::Done, "{said}");
    for part in [
        "web: unchanged, not touched",
        "web: claims public port 2526/tcp",
        "web: gives public port 2525/tcp of every IPv4 address back",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(world.sim.boots(&id("app", "web")), boots);
    assert!(leads(&world, 2526, "app") && !leads(&world, 2525, "app"), "the push ends when it leads there");
    assert_eq!(push(&world, "other", port(2525)).await.0, Outcome::Done);
    assert!(leads(&world, 2525, "other"));

    // Who goes gives all back.
    let destroy = History::Destroy { who: ann().to_string(), instance: "other/web".into(), again: "web".into() };
    let job = world.text(Request::History(destroy)).await.unwrap();
    world.follow(&job).await;
    assert_eq!(push(&world, "app", port(2525)).await.0, Outcome::Done);
    let unplant = History::Unplant { who: ann().to_string(), repository: "app".into(), again: "app".into() };
    world.text(Request::History(unplant)).await.unwrap();
    let (outcome, said) = push(&world, "other", port(2525)).await;
    assert_eq!(outcome, Outcome::Done, "{said}");
}

#[tokio::test]
async fn of_two_that_claim_at_once_one_has_it() {
    let world = host().await;
    world.table.routes(port(2525), None);
    world.table.pause(Duration::from_millis(200));
    let mut jobs = Vec::new();
    for repo in ["app", "other"] {
        let commit = world.commit(repo, &[]);
        jobs.push(world.pushed(&ann(), repo, &commit, "deploy").await.unwrap().job);
    }
    let (one, two) = tokio::join!(world.follow(&jobs[0]), world.follow(&jobs[1]));
    let mut outcomes = [one.0, two.0];
    outcomes.sort_by_key(|outcome| *outcome == Outcome::Failed);
    assert_eq!(outcomes, [Outcome::Done, Outcome::Failed], "{}\n{}", one.1, two.1);
    let lost = if one.0 == Outcome::Failed { one.1 } else { two.1 };
    // When it is told depends on who of them was evaluated first.
    assert!(lost.contains("public port 2525/tcp of every IPv4 address is taken by another repository"), "{lost}");
    assert_ne!(leads(&world, 2525, "app"), leads(&world, 2525, "other"));
}

#[tokio::test]
async fn a_rollback_brings_back_its_ports_unless_they_are_anothers_by_now() {
    let world = host().await;
    assert_eq!(push(&world, "app", port(2525)).await.0, Outcome::Done);
    world.table.set("web", "two", web());
    assert_eq!(push(&world, "app", None).await.0, Outcome::Done);
    world.table.set("web", "one", web());
    assert_eq!(push(&world, "other", port(2525)).await.0, Outcome::Done);
    let boots = world.sim.boots(&id("app", "web"));
    let Err(Refusal::Failed(text)) = rollback(&world).await else { panic!("it is taken") };
    assert!(text.contains("public port 2525/tcp of every IPv4 address is taken by another repository"), "{text}");
    assert_eq!((world.sim.boots(&id("app", "web")), ports(&world, "app").await.len()), (boots, 0));

    assert_eq!(push(&world, "other", None).await.0, Outcome::Done);
    // Nor is it brought back past a quota.
    allow(&world, "app", 0).await;
    let Err(Refusal::Failed(text)) = rollback(&world).await else { panic!("it may have none") };
    assert!(text.contains("where this namespace may have none"), "{text}");
    allow(&world, "app", 1).await;
    let (outcome, said) = rollback(&world).await.unwrap();
    assert_eq!(outcome, Outcome::Done, "{said}");
    assert!(said.contains("web: claims public port 2525/tcp"), "{said}");
    assert!(leads(&world, 2525, "app"));
    assert_eq!(push(&world, "other", port(2525)).await.0, Outcome::Failed);
}

#[tokio::test]
async fn a_version_that_does_not_come_up_leaves_the_ports_as_they_were() {
    let world = host().await;
    assert_eq!(push(&world, "app", port(2525)).await.0, Outcome::Done);
    world.table.set("web", "bad", web());
    world.sim.boot_of(&id("app", "web"), Boot::FailsOnce("exit-code".into()));
    let (outcome, said) = push(&world, "app", port(2526)).await;
    assert_eq!(outcome, Outcome::Failed, "{said}");
    assert_eq!(ports(&world, "app").await, [2525], "{said}");
    assert!(leads(&world, 2525, "app") && !leads(&world, 2526, "app"));

    // Given back by a version that then does not come up, and another's by then: the version before runs without it.
    world.sim.boot_of(&id("app", "web"), Boot::Hangs);
    world.table.set("web", "worse", web());
    world.table.routes(None, None);
    let commit = world.commit("app", &[]);
    let pushed = world.pushed(&ann(), "app", &commit, "deploy").await.unwrap();
    world.until("it is given back", |world| !leads(world, 2525, "app")).await;
    assert_eq!(push(&world, "other", port(2525)).await.0, Outcome::Done);
    world.sim.boot_of(&id("app", "web"), Boot::AtOnce);
    world.sim.give_up(&id("app", "web"), "timeout");
    let (outcome, said) = world.follow(&pushed.job).await;
    assert_eq!(outcome, Outcome::Failed, "{said}");
    assert!(said.contains("! web: goes back without a port: public port 2525/tcp of every IPv4 address is taken"), "{said}");
    assert!(world.sim.running(&id("app", "web")).is_some_and(|text| text.contains("-one/")));
    assert!(ports(&world, "app").await.is_empty() && leads(&world, 2525, "other"));
}

#[tokio::test]
async fn an_instance_that_is_pinned_keeps_its_ports() {
    let world = host().await;
    assert_eq!(push(&world, "app", port(2525)).await.0, Outcome::Done);
    world.text(Request::History(History::Pin { who: ann().to_string(), instance: "app/web".into() })).await.unwrap();
    world.table.set("web", "two", web());
    let (outcome, said) = push(&world, "app", port(2526)).await;
    assert_eq!(outcome, Outcome::Done, "{said}");
    assert!(said.contains("pinned by") && !said.contains("2526"), "{said}");
    assert_eq!(ports(&world, "app").await, [2525]);
}

#[tokio::test]
async fn an_agent_that_is_killed_anywhere_leaves_each_port_to_one() {
    for wait_ms in [0, 1, 2, 4, 8, 16, 32] {
        let mut world = host().await;
        assert_eq!(push(&world, "app", port(2525)).await.0, Outcome::Done);
        // `app` gives it back while `other` asks for it.
        world.table.pause(Duration::from_millis(5));
        world.table.routes(port(2526), None);
        let commit = world.commit("app", &[]);
        world.pushed(&ann(), "app", &commit, "deploy").await.unwrap();
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        world.kill_agent().await;
        world.until("the new port leads there", |world| leads(world, 2526, "app")).await;
        assert!(!leads(&world, 2525, "app"), "cut at {wait_ms} ms");
        let (outcome, said) = push(&world, "other", port(2526)).await;
        assert_eq!(outcome, Outcome::Failed, "cut at {wait_ms} ms: {said}");
        let (outcome, said) = push(&world, "other", port(2525)).await;
        assert_eq!(outcome, Outcome::Done, "cut at {wait_ms} ms: {said}");
        // And they stay so over a start of the machine.
        world.reboot().await;
        world.until("both lead there", |world| leads(world, 2525, "other") && leads(world, 2526, "app")).await;
    }
}
