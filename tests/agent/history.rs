//! Going back, holding still, turning off, taking away: what each leaves, and what a later push does to it.

use seed::{
    agent::{access::Question as Access, history::History, request::Request},
    bus::{
        Outcome, Refusal,
        history::{Deploys, Pinned, Unplanted},
    },
    spec::name::KeyId,
};
use serde_json::json;

use crate::world::{World, ann, bob, id};

/// A question of ann's about the one instance.
fn ask(what: fn(String, String) -> History) -> Request {
    Request::History(what(ann().to_string(), "web".into()))
}
fn stop(who: String, instance: String) -> History {
    History::Stop { who, instance }
}
fn start(who: String, instance: String) -> History {
    History::Start { who, instance }
}
fn pin(who: String, instance: String) -> History {
    History::Pin { who, instance }
}
fn unpin(who: String, instance: String) -> History {
    History::Unpin { who, instance }
}
fn back(who: String, instance: String) -> History {
    History::Rollback { who, instance, generation: String::new() }
}
fn rollback(generation: &str) -> Request {
    Request::History(History::Rollback { who: ann().to_string(), instance: "web".into(), generation: generation.into() })
}

async fn done(world: &World, request: Request) -> String {
    let job = world.text(request).await.unwrap();
    let (outcome, said) = world.follow(&job).await;
    assert_eq!(outcome, Outcome::Done, "{said}");
    said
}

async fn deploys(world: &World) -> Deploys {
    let request = Request::History(History::Deploys { who: ann().to_string(), filter: String::new() });
    serde_json::from_str(&world.text(request).await.unwrap()).unwrap()
}

fn runs(world: &World, tag: &str) -> bool {
    world.sim.running(&id("app", "web")).is_some_and(|text| text.contains(&format!("-{tag}/")))
}

async fn state(world: &World) -> (String, String) {
    let status = world.status("").await;
    let web = &status.namespaces[0].instances[0];
    (web.state.clone(), web.detail.clone())
}

/// A repository whose instance was deployed as each of `tags` in turn.
async fn deployed(tags: &[&str]) -> World {
    let world = World::new().await;
    world.table.set("web", tags[0], json!({}));
    world.planted("app").await;
    for tag in &tags[1..] {
        world.table.set("web", tag, json!({}));
        let (outcome, said) = world.push("app").await;
        assert_eq!(outcome, Outcome::Done, "{said}");
    }
    world
}

#[tokio::test]
async fn what_is_stopped_stays_off_over_pushes_and_reboots_until_it_is_started() {
    let mut world = deployed(&["one"]).await;
    let said = done(&world, ask(stop)).await;
    assert!(said.contains("start web"), "{said}");
    assert_eq!(world.sim.running(&id("app", "web")), None);
    let (what, why) = state(&world).await;
    assert_eq!(what, "stopped");
    assert!(why.contains(&ann().to_string()), "{why}");

    world.table.set("web", "two", json!({}));
    let (outcome, said) = world.push("app").await;
    assert_eq!(outcome, Outcome::Done, "{said}");
    assert!(said.contains("web is off"), "{said}");
    assert_eq!(world.sim.running(&id("app", "web")), None);

    world.reboot().await;
    let written =
        |world: &World| world.sim.look().instances.get(&(&id("app", "web")).into()).is_some_and(|one| !one.units.is_empty());
    world.until("its units are back", written).await;
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert_eq!(world.sim.running(&id("app", "web")), None);
    let restart = Request::Restart { who: ann().to_string(), instance: "web".into() };
    let Err(Refusal::Failed(text)) = world.text(restart).await else { panic!("it is off") };
    assert!(text.contains("start web"), "{text}");
    // Whoever starts the unit by hand is not the one who decides.
    world.sim.start_by_hand(&id("app", "web"));
    world.until("it is off again", |world| world.sim.running(&id("app", "web")).is_none()).await;

    let said = done(&world, ask(start)).await;
    assert!(said.contains("web is running"), "{said}");
    assert!(runs(&world, "two"));
    // Started twice, stopped twice: the same as once.
    let boots = world.sim.boots(&id("app", "web"));
    done(&world, ask(start)).await;
    assert_eq!(world.sim.boots(&id("app", "web")), boots);
    done(&world, ask(stop)).await;
    done(&world, ask(stop)).await;
    assert_eq!(world.sim.running(&id("app", "web")), None);
}

#[tokio::test]
async fn what_a_person_stopped_with_systemctl_can_be_started() {
    let world = deployed(&["one"]).await;
    world.sim.stop_by_hand(&id("app", "web"));
    done(&world, ask(start)).await;
    assert!(runs(&world, "one"));
}

#[tokio::test]
async fn a_rollback_is_one_restart_and_an_identical_push_does_not_undo_it() {
    let world = deployed(&["one", "bad"]).await;
    let boots = world.sim.boots(&id("app", "web"));
    let said = done(&world, ask(back)).await;
    assert!(said.contains("going back to generation"), "{said}");
    assert!(runs(&world, "one"));
    assert_eq!(world.sim.boots(&id("app", "web")), boots + 1);

    let (outcome, said) = world.push("app").await;
    assert_eq!(outcome, Outcome::Done, "{said}");
    assert!(said.contains("was gone back from") && said.contains("unpin web"), "{said}");
    assert!(runs(&world, "one"));
    assert_eq!(world.sim.boots(&id("app", "web")), boots + 1);
    // The agent remembers it too.
    let world = {
        let mut world = world;
        world.kill_agent().await;
        world
    };
    assert!(world.push("app").await.1.contains("was gone back from"));
    // A version that is neither is deployed.
    world.table.set("web", "mended", json!({}));
    assert_eq!(world.push("app").await.0, Outcome::Done);
    assert!(runs(&world, "mended"));
    // And so is the bad one, once somebody has gone another way since.
    world.table.set("web", "bad", json!({}));
    assert_eq!(world.push("app").await.0, Outcome::Done);
    assert!(runs(&world, "bad"));
}

#[tokio::test]
async fn going_back_again_goes_further_back_and_unpin_lets_the_newest_in() {
    let world = deployed(&["one", "two", "three"]).await;
    done(&world, ask(back)).await;
    assert!(runs(&world, "two"));
    done(&world, ask(back)).await;
    assert!(runs(&world, "one"));
    let Err(Refusal::NotFound(text)) = world.text(ask(back)).await else { panic!("there is none") };
    assert!(text.contains("no earlier version"), "{text}");
    // Forward by name; the name may be cut short, but not be anybody's.
    let kept = deploys(&world).await.namespaces[0].kept.clone();
    assert_eq!(kept.len(), 2, "{kept:?}");
    for (generation, words) in [("zz", "no generation"), ("0000000", "is kept"), (&kept[0][..3], "no generation")] {
        let text = world.text(rollback(generation)).await.unwrap_err().to_string();
        assert!(text.contains(words) && text.contains(&kept[0]), "{text}");
    }
    let boots = world.sim.boots(&id("app", "web"));
    done(&world, rollback(&kept[0][..6])).await;
    assert_eq!(world.sim.boots(&id("app", "web")), boots + 1);
    assert!(!runs(&world, "one"));
    done(&world, ask(back)).await;
    let pinned: Pinned = serde_json::from_str(&world.text(ask(unpin)).await.unwrap()).unwrap();
    assert_eq!((pinned.pinned, pinned.changed, pinned.instance.as_str()), (false, true, "app/web"));
    assert_eq!(world.push("app").await.0, Outcome::Done);
    assert!(runs(&world, "three"));
}

#[tokio::test]
async fn what_is_pinned_is_left_alone_by_every_push() {
    let world = deployed(&["one"]).await;
    let pinned: Pinned = serde_json::from_str(&world.text(ask(pin)).await.unwrap()).unwrap();
    assert!(pinned.pinned && pinned.changed);
    world.table.set("api", "api", json!({}));
    for tag in ["two", "three"] {
        world.table.set("web", tag, json!({}));
        let (outcome, said) = world.push("app").await;
        assert_eq!(outcome, Outcome::Done, "{said}");
        assert!(said.contains(&format!("web: pinned by {}", ann())) && said.contains("web: unchanged"), "{said}");
        assert!(runs(&world, "one"));
    }
    assert!(world.sim.running(&id("app", "api")).is_some());
    let status = world.status("").await;
    let web = status.namespaces[0].instances.iter().find(|one| one.name == "web").unwrap();
    assert!(web.detail.contains("pinned"), "{}", web.detail);
    world.text(ask(unpin)).await.unwrap();
    assert_eq!(world.push("app").await.0, Outcome::Done);
    assert!(runs(&world, "three"));
}

#[tokio::test]
async fn a_rollback_that_does_not_come_up_leaves_what_was_there() {
    let world = deployed(&["one", "two"]).await;
    world.sim.boot_of(&id("app", "web"), seed::host::sim::Boot::FailsOnce("timeout".into()));
    let job = world.text(ask(back)).await.unwrap();
    let (outcome, said) = world.follow(&job).await;
    assert_eq!(outcome, Outcome::Failed, "{said}");
    world.until("the newer one runs", |world| runs(world, "two")).await;
    let newest = deploys(&world).await.namespaces[0].deploys[0].clone();
    assert_eq!((newest.kind.as_str(), newest.outcome), ("rollback", Some(Outcome::Failed)));
    // It was not made the rule.
    assert_eq!(world.push("app").await.0, Outcome::Done);
    assert!(runs(&world, "two"));
}

#[tokio::test]
async fn deploys_say_who_pushed_what_and_how_each_stage_went() {
    let mut world = deployed(&["one", "two"]).await;
    world.table.fail_eval(Some(seed::build::BuildError::Failed { what: "no".into(), lines: vec![], remedy: String::new() }));
    assert_eq!(world.push("app").await.0, Outcome::Failed);
    world.table.fail_eval(None);
    for _ in 0..2 {
        let all = deploys(&world).await;
        let one = &all.namespaces[0];
        assert_eq!((all.version, one.flake.as_str(), one.deploys.len(), one.kept.len()), (1, "silo:app", 3, 1));
        let [failed, second, first] = one.deploys.as_slice() else { panic!("{one:?}") };
        let stages = |entry: &seed::bus::history::DeployEntry| -> Vec<String> {
            entry.stages.iter().map(|time| format!("{:?}", time.stage).to_lowercase()).collect()
        };
        assert_eq!((failed.outcome, failed.generation.as_str(), stages(failed)), (Some(Outcome::Failed), "", vec!["eval".into()]));
        assert_eq!((second.outcome, &second.generation), (Some(Outcome::Done), &one.generation));
        assert_eq!(first.generation, one.kept[0]);
        assert_eq!((second.by.as_str(), second.branch.as_str(), second.commit.len()), (ann().as_str(), "main", 40));
        assert_eq!(stages(second), ["eval", "build", "plan", "run"]);
        assert_eq!(first.changes, ["web: start (new)"]);
        assert_eq!(second.changes, ["web: restart (system changed)"]);
        // Also after the agent has started again.
        world.kill_agent().await;
    }
}

#[tokio::test]
async fn a_push_that_a_newer_one_took_the_place_of_is_listed_and_pushes_no_history_out() {
    let mut world = deployed(&["one"]).await;
    world.table.pause(std::time::Duration::from_millis(300));
    // Made before: on a busy machine git takes longer than a deploy here.
    let commits: Vec<String> = (0..60).map(|round| world.commit("app", &[("page", &round.to_string())])).collect();
    let mut jobs = Vec::new();
    for commit in &commits {
        jobs.push(world.pushed(&ann(), "app", commit, "deploy").await.unwrap().job);
    }
    let mut superseded = 0;
    for job in &jobs {
        superseded += usize::from(world.follow(job).await.0 == Outcome::Superseded);
    }
    assert!(superseded > 50, "{superseded}");
    world.kill_agent().await;
    let list = deploys(&world).await.namespaces.remove(0).deploys;
    assert!(list.len() <= 50, "{}", list.len());
    let of = |outcome| list.iter().filter(|entry| entry.outcome == Some(outcome)).collect::<Vec<_>>();
    // The first, and what was built of the burst.
    assert_eq!(of(Outcome::Done).len(), 1 + jobs.len() - superseded, "{list:?}");
    let gone = of(Outcome::Superseded);
    let newest = gone[0];
    assert!(commits.contains(&newest.commit) && newest.commit != commits[59], "{newest:?}");
    assert_eq!((newest.by.as_str(), newest.kind.as_str(), newest.generation.as_str()), (ann().as_str(), "push", ""));
    assert!(newest.text.contains("newer push") && newest.changes.is_empty(), "{newest:?}");
    assert!(newest.stages.iter().all(|stage| stage.stage == seed::bus::Stage::Queue), "{newest:?}");
}

async fn log(world: &World, query: seed::bus::LogQuery) -> Vec<seed::bus::LogLine> {
    let query = serde_json::to_string(&query).unwrap();
    let request = Request::Logs { who: ann().to_string(), instance: "web".into(), query };
    let seed::agent::request::Reply::Pipe(fd) = world.handle.ask(request).await.unwrap() else { panic!("no pipe") };
    let read = tokio::task::spawn_blocking(move || std::io::read_to_string(std::fs::File::from(fd)).unwrap());
    let text = tokio::time::timeout(std::time::Duration::from_secs(20), read).await.expect("it ends").unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn the_log_of_the_last_deploy_is_there_while_it_goes_on_and_after_the_agent_has_started_again() {
    let mut world = deployed(&["one"]).await;
    let build = seed::bus::LogQuery { lines: 100, build: true, ..Default::default() };
    let first = log(&world, build.clone()).await;
    assert!(first.iter().any(|line| line.source == "eval" && line.text == "a line of the evaluation"), "{first:?}");
    world.table.set("web", "two", json!({}));
    world.table.pause(std::time::Duration::from_millis(200));
    let commit = world.commit("app", &[]);
    let pushed = world.pushed(&ann(), "app", &commit, "deploy").await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    let followed = log(&world, seed::bus::LogQuery { follow: true, ..build.clone() }).await;
    assert!(followed.last().unwrap().text.contains("generation"), "{followed:?}");
    let said = world.follow(&pushed.job).await.1;
    assert_eq!(followed.len(), said.lines().count());
    assert!(followed.iter().any(|line| line.text.contains(&commit[..12])));
    world.kill_agent().await;
    world.until("it was kept", |world| world.kept("app").exists()).await;
    assert_eq!(log(&world, build.clone()).await, followed);
    let last = log(&world, seed::bus::LogQuery { lines: 2, ..build }).await;
    assert_eq!(last, followed[followed.len() - 2..]);
    for bad in ["nonsense", r#"{"unit":"a b"}"#, r#"{"unit":"$(id)"}"#, r#"{"nope":1}"#] {
        let request = Request::Logs { who: ann().to_string(), instance: "web".into(), query: bad.into() };
        assert!(matches!(world.text(request).await, Err(Refusal::Invalid(_))), "{bad}");
    }
}

#[tokio::test]
async fn a_guest_with_failed_units_is_degraded_and_says_which() {
    let world = deployed(&["one"]).await;
    world.sim.fail_units(&id("app", "web"), &["nginx.service", "db.service"]);
    let (what, why) = state(&world).await;
    assert_eq!((what.as_str(), why.as_str()), ("degraded", "failed in it: nginx.service, db.service"));
    done(&world, ask(stop)).await;
    assert_eq!(state(&world).await.0, "stopped");
}

#[tokio::test]
async fn destroying_wants_the_name_twice_and_keeps_the_volumes() {
    let world = World::new().await;
    world.table.set("web", "one", json!({ "storage": { "data": { "size": "64Mi", "mountPoint": "/seed/storage/data" } } }));
    world.table.set("api", "two", json!({}));
    world.planted("app").await;
    let destroy = |again: &str| {
        Request::History(History::Destroy { who: ann().to_string(), instance: "web".into(), again: again.to_owned() })
    };
    for again in ["", "wbe", "api"] {
        let Err(Refusal::Invalid(text)) = world.text(destroy(again)).await else { panic!("{again}") };
        assert!(text.contains("destroy web web") && text.contains("keeps its volumes"), "{text}");
    }
    assert!(world.sim.running(&id("app", "web")).is_some());
    let said = done(&world, destroy("web")).await;
    assert!(said.contains("web is gone") && said.contains("data"), "{said}");
    assert!(!world.sim.look().instances.contains_key(&(&id("app", "web")).into()));
    let (present, retired) = world.sim.volumes();
    assert_eq!((present.len(), retired.len()), (0, 1));
    let status = world.status("").await;
    assert_eq!(status.namespaces[0].instances.len(), 1);
    assert!(status.namespaces[0].retired[0].starts_with("web/data"));
    assert!(world.sim.running(&id("app", "api")).is_some());
    assert_eq!(world.push("app").await.0, Outcome::Done);
    assert!(runs(&world, "one"));
}

#[tokio::test]
async fn unplanting_stops_all_lists_what_is_kept_and_forgets_the_rest() {
    let mut world = World::new().await;
    world.table.set("web", "one", json!({ "storage": { "data": { "size": "64Mi", "mountPoint": "/seed/storage/data" } } }));
    world.planted("app").await;
    world.text(ask(pin)).await.unwrap();
    let unplant = || Request::History(History::Unplant { who: ann().to_string(), repository: "app".into(), again: "app".into() });
    for again in ["", "web", "other"] {
        let ask = History::Unplant { who: ann().to_string(), repository: "app".into(), again: again.into() };
        let refused = world.text(Request::History(ask)).await.unwrap_err();
        assert!(matches!(&refused, Refusal::Invalid(text) if text.contains("unplant app app")), "{refused}");
    }
    assert!(world.sim.running(&id("app", "web")).is_some());
    let document: Unplanted = serde_json::from_str(&world.text(unplant()).await.unwrap()).unwrap();
    assert_eq!(document.flake, "silo:app");
    assert!(document.kept[0].contains("the repository silo:app") && document.kept[1].contains("web/data (64Mi)"), "{document:?}");
    let (outcome, said) = world.follow(&document.job).await;
    assert_eq!(outcome, Outcome::Done, "{said}");
    assert!(world.sim.look().instances.is_empty());
    assert_eq!(world.sim.volumes().1.len(), 1);
    world.kill_agent().await;
    let status = world.status(&ann().to_string()).await;
    assert!(status.namespaces.is_empty());
    assert_eq!(status.unplanted, ["app"]);
    assert!(matches!(world.text(unplant()).await, Err(Refusal::NotFound(_))));
    world.until("its lease is free", |world| world.state.memory().leases.is_empty()).await;
    let memory = world.state.memory();
    assert!(memory.pins.is_empty() && memory.records.is_empty() && memory.past.is_empty() && memory.wants.is_empty());
    // It may be planted again, with another invite.
    let code = world.invite(1).await;
    let job = world.plant(&ann(), "app", &code).await.unwrap();
    assert_eq!(world.follow(&job).await.0, Outcome::Done);
    assert!(runs(&world, "one"));
}

#[tokio::test]
async fn names_that_led_to_one_owner_lead_to_no_other_unless_the_operator_says_so() {
    let mut world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.planted("app").await;
    let ask = History::Unplant { who: ann().to_string(), repository: "app".into(), again: "app".into() };
    let document: Unplanted = serde_json::from_str(&world.text(Request::History(ask)).await.unwrap()).unwrap();
    world.follow(&document.job).await;
    let delete = Access::Delete { who: ann().to_string(), name: "app".into(), again: "app".into() };
    world.handle.ask(Request::Access(delete)).await.unwrap();
    world.kill_agent().await;
    world.create(&bob(), "app").await.unwrap();
    let commit = world.commit("app", &[]);
    world.pushed(&bob(), "app", &commit, "deploy").await.unwrap();
    let code = world.invite(1).await;
    let Err(Refusal::Denied(said)) = world.plant(&bob(), "app", &code).await else { panic!("bob is ann's heir") };
    assert!(said.contains("another owner") && said.contains("operator"), "{said}");
    assert_eq!(world.state.memory().invites.values().map(|invite| invite.uses_left).sum::<u32>(), 1);
    let job = world.text(Request::Plant { who: String::new(), uri: "silo:app".into(), code: String::new() }).await.unwrap();
    assert!(job.contains("namespace"), "{job}");
}

#[tokio::test]
async fn nothing_of_this_is_a_strangers_to_ask() {
    let world = deployed(&["one", "two"]).await;
    let who = |key: &KeyId| key.to_string();
    let all = |key: &KeyId, instance: &str| {
        let instance = || instance.to_owned();
        [
            History::Rollback { who: who(key), instance: instance(), generation: String::new() },
            History::Pin { who: who(key), instance: instance() },
            History::Unpin { who: who(key), instance: instance() },
            History::Stop { who: who(key), instance: instance() },
            History::Start { who: who(key), instance: instance() },
            History::Destroy { who: who(key), instance: instance(), again: "web".into() },
        ]
    };
    for name in ["web", "app/web"] {
        for request in all(&bob(), name) {
            let shown = format!("{request:?}");
            let Err(Refusal::NotFound(text)) = world.text(Request::History(request)).await else { panic!("{shown}") };
            assert!(!text.contains("app/web") || name == "app/web", "{text}");
        }
    }
    let unplant = History::Unplant { who: who(&bob()), repository: "app".into(), again: "app".into() };
    assert!(matches!(world.text(Request::History(unplant)).await, Err(Refusal::NotFound(_))));
    let request = Request::History(History::Deploys { who: who(&bob()), filter: String::new() });
    let seen: Deploys = serde_json::from_str(&world.text(request).await.unwrap()).unwrap();
    assert!(seen.namespaces.is_empty());
    assert!(runs(&world, "two"));
}

#[tokio::test]
async fn while_a_deploy_goes_on_the_ground_is_not_moved_under_it() {
    let world = deployed(&["one", "two"]).await;
    world.table.pause(std::time::Duration::from_millis(300));
    let commit = world.commit("app", &[]);
    let pushed = world.pushed(&ann(), "app", &commit, "deploy").await.unwrap();
    let destroy = Request::History(History::Destroy { who: ann().to_string(), instance: "web".into(), again: "web".into() });
    let unplant = Request::History(History::Unplant { who: ann().to_string(), repository: "app".into(), again: "app".into() });
    for request in [ask(back), ask(pin), destroy, unplant] {
        let shown = format!("{request:?}");
        let Err(Refusal::Failed(text)) = world.text(request).await else { panic!("{shown}") };
        assert!(text.contains("is being deployed right now"), "{text}");
    }
    let shown = deploys(&world).await.namespaces[0].deploys[0].clone();
    assert_eq!((shown.outcome, shown.commit), (None, commit));
    // Turning off is always possible.
    done(&world, ask(stop)).await;
    assert_eq!(world.follow(&pushed.job).await.0, Outcome::Done);
    assert_eq!(world.sim.running(&id("app", "web")), None);
}
