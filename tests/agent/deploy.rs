//! What a push does, and what it leaves alone.

use std::time::Duration;

use seed::{
    agent::request::Request,
    build::BuildError,
    bus::{Outcome, Refusal},
    host::sim::Boot,
};
use serde_json::json;

use crate::world::{World, ann, bob, id};

#[tokio::test]
async fn a_planted_repository_runs_and_an_unchanged_push_touches_nothing() {
    let world = World::new().await;
    world.table.set("web", "one", json!({ "expose": { "http": { "port": 80, "protocol": "http" } } }));
    let (outcome, said) = world.planted("app").await;
    assert_eq!(outcome, Outcome::Done, "{said}");
    assert!(said.contains("web: start (new)") && said.contains("seed.example"), "{said}");
    let before = world.sim.applied().len();
    let (outcome, said) = world.push("app").await;
    assert_eq!(outcome, Outcome::Done, "{said}");
    assert!(said.contains("web: unchanged, not touched"), "{said}");
    assert_eq!(world.sim.applied().len(), before, "no step was made");
    assert_eq!(world.sim.boots(&id("app", "web")), 1);
}

#[tokio::test]
async fn one_of_two_instances_changes_and_the_other_is_not_touched() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.table.set("api", "two", json!({}));
    world.planted("app").await;
    world.table.set("web", "three", json!({}));
    let (outcome, said) = world.push("app").await;
    assert_eq!(outcome, Outcome::Done, "{said}");
    assert!(said.contains("web: restart (system changed)") && said.contains("api: unchanged"), "{said}");
    assert_eq!((world.sim.boots(&id("app", "web")), world.sim.boots(&id("app", "api"))), (2, 1));
}

#[tokio::test]
async fn a_failed_evaluation_or_build_leaves_what_runs_running() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.planted("app").await;
    let running = world.sim.running(&id("app", "web"));
    let failed =
        |what: &str| BuildError::Failed { what: what.into(), lines: vec!["flake.nix:3:1".into()], remedy: "mend it".into() };
    world.table.fail_eval(Some(failed("evaluation failed")));
    let (outcome, said) = world.push("app").await;
    assert_eq!(outcome, Outcome::Failed);
    assert!(said.contains("! evaluation failed") && said.contains("flake.nix:3:1") && said.contains("! mend it"), "{said}");
    world.table.fail_eval(None);
    world.table.set("web", "two", json!({}));
    world.table.fail_build(Some(failed("the build failed")));
    let (outcome, said) = world.push("app").await;
    assert_eq!(outcome, Outcome::Failed);
    assert!(said.contains("! the build failed"), "{said}");
    assert_eq!(world.sim.running(&id("app", "web")), running);
    // Mended, it is deployed.
    world.table.fail_build(None);
    assert_eq!(world.push("app").await.0, Outcome::Done);
    assert_ne!(world.sim.running(&id("app", "web")), running);
}

#[tokio::test]
async fn every_problem_of_every_instance_is_said_at_once() {
    let world = World::new().await;
    world.table.set("web", "one", json!({ "size": "xxl", "expose": { "a": { "port": 0 } } }));
    world.table.set("Bad", "two", json!({}));
    let (outcome, said) = world.planted("app").await;
    assert_eq!(outcome, Outcome::Failed);
    for part in ["seeds.web.meta.size", "seeds.web.meta.expose.a.port", "\"Bad\" is no DNS label"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    world.table.remove("web");
    world.table.remove("Bad");
    let (_, said) = world.push("app").await;
    assert!(said.contains("seeds: is empty"), "{said}");
}

#[tokio::test]
async fn a_shrunk_volume_is_refused_and_a_dropped_one_is_retired() {
    let world = World::new().await;
    world.table.set("web", "one", json!({ "storage": { "data": { "size": "64Mi" } } }));
    world.planted("app").await;
    world.table.set("web", "one", json!({ "storage": { "data": { "size": "32Mi" } } }));
    let (outcome, said) = world.push("app").await;
    assert_eq!(outcome, Outcome::Failed);
    assert!(said.contains("cannot shrink"), "{said}");
    world.table.set("web", "one", json!({ "storage": { "data": { "size": "128Mi" } } }));
    assert_eq!(world.push("app").await.0, Outcome::Done);
    world.table.set("web", "one", json!({}));
    assert_eq!(world.push("app").await.0, Outcome::Done);
    let (there, aside) = world.sim.volumes();
    assert_eq!((there.len(), aside.len()), (0, 1));
}

#[tokio::test]
async fn a_guest_that_fails_is_replaced_by_the_previous_version() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.planted("app").await;
    let good = world.sim.running(&id("app", "web"));
    world.table.set("web", "two", json!({}));
    world.sim.boot_of(&id("app", "web"), Boot::FailsOnce("exit-code".into()));
    let commit = world.commit("app", &[]);
    let pushed = world.pushed(&ann(), "app", &commit, "deploy").await.unwrap();
    // The new one fails; the old one, started again, works.
    let (outcome, said) = world.follow(&pushed.job).await;
    assert_eq!(outcome, Outcome::Failed);
    assert!(said.contains("starting the previous version again"), "{said}");
    assert_eq!(world.sim.running(&id("app", "web")), good);
    assert_eq!(world.status(&ann().to_string()).await.namespaces[0].instances[0].state, "running");
}

#[tokio::test]
async fn a_first_version_that_fails_is_stopped() {
    let world = World::new().await;
    world.table.set("web", "one", json!({ "storage": { "data": { "size": "64Mi" } } }));
    world.sim.boot(Boot::Fails("timeout".into()));
    let (outcome, said) = world.planted("app").await;
    assert_eq!(outcome, Outcome::Failed);
    assert!(said.contains("did not get ready in time") && said.contains("no previous version"), "{said}");
    assert_eq!(world.sim.running(&id("app", "web")), None);
    let (there, aside) = world.sim.volumes();
    assert_eq!(there.len() + aside.len(), 1, "its volume is kept");
}

#[tokio::test]
async fn the_newest_of_many_pushes_wins() {
    let world = World::new().await;
    world.table.set("web", "start", json!({}));
    world.planted("app").await;
    let before = world.table.evaluations();
    world.table.pause(Duration::from_millis(100));
    // Made before: on a busy machine git takes longer than a deploy here.
    let commits: Vec<String> = (0..20).map(|round| world.commit("app", &[("page", &round.to_string())])).collect();
    let mut jobs = Vec::new();
    for commit in commits {
        jobs.push(world.pushed(&ann(), "app", &commit, "deploy").await.unwrap().job);
    }
    world.table.set("web", "last", json!({}));
    let mut outcomes = Vec::new();
    for job in &jobs {
        outcomes.push(world.follow(job).await.0);
    }
    assert_eq!(outcomes.last(), Some(&Outcome::Done));
    assert!(outcomes.iter().filter(|outcome| **outcome == Outcome::Superseded).count() >= 10, "{outcomes:?}");
    assert!(world.table.evaluations() - before < 12);
    assert!(world.sim.running(&id("app", "web")).unwrap().contains("last"));
}

#[tokio::test]
async fn a_plan_says_what_would_change_and_changes_nothing() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.planted("app").await;
    let before = world.sim.applied().len();
    world.table.set("web", "two", json!({ "size": "s" }));
    world.table.set("api", "three", json!({}));
    let commit = world.commit("app", &[]);
    let pushed = world.pushed(&ann(), "app", &commit, "plan").await.unwrap();
    let (outcome, said) = world.follow(&pushed.job).await;
    assert_eq!(outcome, Outcome::Done, "{said}");
    assert!(said.contains("web: restart (system changed, size changed)") && said.contains("api: start (new)"), "{said}");
    assert_eq!(world.sim.applied().len(), before);
    let deploy = Request::Deploy { who: ann().to_string(), repository: "app".into() };
    let job = world.text(deploy).await.unwrap();
    assert_eq!(world.follow(&job).await.0, Outcome::Done);
    assert!(world.sim.running(&id("app", "api")).is_some());
    let stranger = Request::Deploy { who: bob().to_string(), repository: "app".into() };
    assert!(matches!(world.text(stranger).await, Err(Refusal::Denied(_))));
}

#[tokio::test]
async fn so_many_are_evaluated_at_once_and_others_wait_for_a_free_builder() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    for repo in ["a", "b", "c"] {
        world.planted(repo).await;
    }
    world.table.pause(Duration::from_millis(400));
    let mut jobs = Vec::new();
    // The first goes on while the last is pushed: what takes long on a busy machine comes before.
    let commits = ["a", "b", "c"].map(|repo| (repo, world.commit(repo, &[])));
    for (repo, commit) in commits {
        jobs.push(world.pushed(&ann(), repo, &commit, "deploy").await.unwrap().job);
    }
    let mut said = Vec::new();
    for job in &jobs {
        let (outcome, text) = world.follow(job).await;
        assert_eq!(outcome, Outcome::Done, "{text}");
        said.push(text.contains("waiting for a free builder"));
    }
    // The settings of this world allow two.
    assert_eq!((world.table.most_at_once(), said), (2, vec![false, false, true]));
}

#[tokio::test]
async fn what_can_be_gone_back_to_is_kept_from_the_garbage_collection_and_older_is_not() {
    let world = World::new().await;
    world.table.set("web", "g1", json!({}));
    world.planted("app").await;
    for tag in ["g2", "g3", "g4", "g5", "g6"] {
        world.table.set("web", tag, json!({}));
        assert_eq!(world.push("app").await.0, Outcome::Done);
    }
    let mut kept: Vec<String> = world
        .table
        .kept(&id("app", "web").namespace)
        .iter()
        .map(|path| path.as_str().rsplit('-').next().unwrap().to_owned())
        .collect();
    kept.sort();
    kept.dedup();
    // What runs, the three that can be gone back to, and the one that was the oldest of these until this deploy.
    assert_eq!(kept, ["g2", "g3", "g4", "g5", "g6"]);
}
