//! What the agent does when it, or the machine, starts again.

use std::time::Duration;

use seed::{agent::request::Request, bus::Outcome};
use serde_json::json;

use crate::world::{World, ann, id};

#[tokio::test]
async fn an_agent_that_starts_again_touches_nothing_that_runs() {
    let mut world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.planted("app").await;
    let before = world.sim.applied().len();
    world.kill_agent().await;
    let looked = world.sim.observations();
    world.until("it has looked", |world| world.sim.observations() > looked).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(world.sim.applied().len(), before);
    assert_eq!(world.status("").await.namespaces[0].instances[0].state, "running");
}

#[tokio::test]
async fn a_machine_that_starts_again_runs_the_same_with_the_same_addresses() {
    let mut world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.table.set("api", "two", json!({}));
    world.planted("app").await;
    let before = world.status("").await;
    world.reboot().await;
    let both = |world: &World| ["web", "api"].iter().all(|name| world.sim.running(&id("app", name)).is_some());
    world.until("both run", both).await;
    let after = world.status("").await;
    let addresses = |status: &seed::bus::Status| -> Vec<_> {
        status.namespaces[0].instances.iter().map(|one| (one.name.clone(), one.ipv4, one.ipv6)).collect()
    };
    assert_eq!(addresses(&before), addresses(&after));
}

#[tokio::test]
async fn a_deploy_that_was_cut_off_anywhere_is_finished() {
    for wait_ms in [0, 1, 2, 4, 8, 16, 32, 64] {
        let mut world = World::new().await;
        world.table.set("web", "one", json!({}));
        world.planted("app").await;
        world.table.set("web", "two", json!({}));
        world.table.pause(Duration::from_millis(5));
        let commit = world.commit("app", &[]);
        world.pushed(&ann(), "app", &commit, "deploy").await.unwrap();
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        world.kill_agent().await;
        let new = |world: &World| world.sim.running(&id("app", "web")).is_some_and(|text| text.contains("-two"));
        world.until(&format!("the new version runs after a cut at {wait_ms} ms"), new).await;
        for _ in 0..200 {
            if world.status("").await.namespaces[0].deploying.is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(world.push("app").await.0, Outcome::Done);
    }
}

#[tokio::test]
async fn a_step_that_fails_fails_the_deploy_and_the_previous_version_runs_again() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.planted("app").await;
    for after in 0..3 {
        world.table.set("web", &format!("new{after}"), json!({}));
        world.sim.fail_apply(after);
        let (outcome, said) = world.push("app").await;
        assert_eq!(outcome, Outcome::Failed, "{said}");
        assert!(said.contains("the machine was told to fail") && said.contains("previous version"), "{said}");
        world
            .until("the old one runs", |world| world.sim.running(&id("app", "web")).is_some_and(|text| text.contains("-one/")))
            .await;
    }
    assert_eq!(world.push("app").await.0, Outcome::Done);
}

#[tokio::test]
async fn what_a_person_stopped_stays_stopped_and_what_lost_a_helper_comes_back() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.planted("app").await;
    let web = id("app", "web");
    world.sim.stop_by_hand(&web);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(world.sim.running(&web), None);
    world.sim.start_by_hand(&web);
    world.until("it runs", |world| world.sim.running(&web).is_some()).await;
    let boots = world.sim.boots(&web);
    world.sim.kill_helper(&web);
    world.until("it was started again", |world| world.sim.boots(&web) > boots && world.sim.running(&web).is_some()).await;
}

#[tokio::test]
async fn of_many_restarts_at_once_one_is_made() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.planted("app").await;
    let boots = world.sim.boots(&id("app", "web"));
    let restart = || world.text(Request::Restart { who: ann().to_string(), instance: "web".into() });
    let asked = futures_util::future::join_all((0..20).map(|_| restart())).await;
    let jobs: Vec<&String> = asked.iter().flatten().collect();
    assert!(asked.iter().any(Result::is_err) && !jobs.is_empty(), "{asked:?}");
    for job in &jobs {
        assert_eq!(world.follow(job).await.0, Outcome::Done);
    }
    assert_eq!(world.sim.boots(&id("app", "web")) - boots, jobs.len() as u32);
}

#[tokio::test]
async fn the_lease_of_a_removed_instance_is_given_to_the_next() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.table.set("api", "two", json!({}));
    world.planted("app").await;
    let api = world.status("").await.namespaces[0].instances[0].clone();
    assert_eq!(api.name, "api");
    world.table.remove("api");
    assert_eq!(world.push("app").await.0, Outcome::Done);
    world.table.set("new", "three", json!({}));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(world.push("app").await.0, Outcome::Done);
    let status = world.status("").await;
    let new = status.namespaces[0].instances.iter().find(|one| one.name == "new").unwrap();
    assert_eq!(new.ipv4, api.ipv4);
}

#[tokio::test]
async fn what_is_to_be_tried_again_is_pending_until_it_is_done() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.planted("app").await;
    let pending = async || world.status(ann().as_str()).await.namespaces[0].instances[0].restart_pending;
    assert!(!pending().await);
    // A helper is lost, and what is to bring the instance back fails first.
    world.sim.fail_apply(0);
    world.sim.kill_helper(&id("app", "web"));
    let mut seen = false;
    for _ in 0..4000 {
        seen |= pending().await;
        if seen && !pending().await && world.sim.running(&id("app", "web")).is_some() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("pending was {}seen, or never ended", if seen { "" } else { "not " });
}
