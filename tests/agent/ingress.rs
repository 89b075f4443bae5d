//! Where names lead: to an instance exactly while it is ready.

use seed::{
    agent::{history::History, request::Request},
    bus::Outcome,
    host::sim::Boot,
    plan::{MapChange, Step},
    render::ingress::Map,
};
use serde_json::json;

use crate::{
    domain,
    world::{World, ann, id},
};

/// What HAProxy has for `web` of `app` in a map.
fn line(world: &World, map: Map) -> Option<String> {
    line_of(world, map, &format!("web.{}.seed.example", id("app", "web").namespace))
}

fn line_of(world: &World, map: Map, name: &str) -> Option<String> {
    let running = world.sim.look().ingress.running?;
    let mut lines = running.maps[&map].iter().filter(|(key, _)| key == name);
    let found = lines.next().map(|(_, value)| value.clone());
    assert!(lines.next().is_none(), "a name is there twice");
    found
}

/// Waits until `web` leads to its instance, or port 80 says `away`.
async fn settles(world: &World, away: Option<&str>) {
    let what = format!("it is {}", away.unwrap_or("ready"));
    let holds = |world: &World| {
        let ready = line(world, Map::Http).is_some_and(|to| to == "plain/10.83.0.2/80");
        ready == away.is_none() && line(world, Map::Https).is_some() == ready && line(world, Map::Away).as_deref() == away
    };
    world.until(&what, holds).await;
}

async fn world() -> World {
    let world = World::with_ingress().await;
    world.table.set("web", "one", json!({ "expose": { "http": {}, "https": {} } }));
    world
}

fn act(verb: &str) -> Request {
    let (who, instance) = (ann().to_string(), "web".to_owned());
    match verb {
        "stop" => Request::History(History::Stop { who, instance }),
        _ => Request::History(History::Start { who, instance }),
    }
}

#[tokio::test]
async fn a_name_leads_to_its_instance_exactly_while_that_is_ready() {
    let world = world().await;
    let web = id("app", "web");
    world.planted("app").await;
    settles(&world, None).await;
    let job = world.text(act("stop")).await.unwrap();
    assert_eq!(world.follow(&job).await.0, Outcome::Done);
    settles(&world, Some("stopped")).await;
    world.sim.boot(Boot::AtTick);
    world.text(act("start")).await.unwrap();
    settles(&world, Some("booting")).await;
    // It is booting for its visitors from before it is started on.
    world.until("it was started", |world| world.sim.running(&web).is_some()).await;
    world.sim.tick();
    settles(&world, None).await;
    world.sim.give_up(&web, "start-limit-hit");
    settles(&world, Some("failed")).await;
    world.sim.boot(Boot::AtOnce);
    world.sim.start_by_hand(&web);
    settles(&world, None).await;
    world.sim.stop_by_hand(&web);
    settles(&world, Some("stopped")).await;
    // What is gone is not even spoken of.
    world.table.remove("web");
    world.table.set("api", "two", json!({}));
    assert_eq!(world.push("app").await.0, Outcome::Done);
    world.until("its name is gone", |world| Map::ALL.iter().all(|map| line(world, *map).is_none())).await;
}

#[tokio::test]
async fn a_name_of_a_tenants_own_leads_to_its_instance_exactly_while_it_is_proven() {
    const WWW: &str = "www.example.com";
    let world = world().await;
    world.planted("app").await;
    settles(&world, None).await;
    let fqdn = format!("web.{}.seed.example", id("app", "web").namespace);
    domain::add(&world, ann().as_str(), "web", WWW).await.unwrap();
    domain::see(&world, WWW, None).await;
    assert_eq!(line_of(&world, Map::Http, WWW), None, "a claim alone leads nowhere");
    domain::see(&world, WWW, Some(&fqdn)).await;
    let there = |world: &World| {
        [Map::Http, Map::Https]
            .iter()
            .all(|map| line_of(world, *map, WWW).is_some() && line_of(world, *map, WWW) == line(world, *map))
    };
    world.until("it leads to web", there).await;
    // It goes where its instance goes.
    let job = world.text(act("stop")).await.unwrap();
    assert_eq!(world.follow(&job).await.0, Outcome::Done);
    world.until("it says stopped", |world| line_of(world, Map::Away, WWW).as_deref() == Some("stopped")).await;
    let job = world.text(act("start")).await.unwrap();
    assert_eq!(world.follow(&job).await.0, Outcome::Done);
    world.until("it leads to web again", there).await;
    domain::remove(&world, ann().as_str(), WWW).await.unwrap();
    world.until("it is gone", |world| Map::ALL.iter().all(|map| line_of(world, *map, WWW).is_none())).await;
    settles(&world, None).await;
}

#[tokio::test]
async fn an_instance_loses_its_visitors_before_it_is_stopped() {
    let world = world().await;
    world.planted("app").await;
    settles(&world, None).await;
    let before = world.sim.applied().len();
    world.table.set("web", "two", json!({ "expose": { "http": {}, "https": {} } }));
    assert_eq!(world.push("app").await.0, Outcome::Done);
    settles(&world, None).await;
    let steps = world.sim.applied().split_off(before);
    let stop = steps.iter().position(|step| matches!(step, Step::Stop { .. })).expect("it was restarted");
    let leaves = |step: &Step| {
        matches!(step, Step::Route { changes, .. } if changes.iter().any(
        |change| matches!(change, MapChange::Remove { map: Map::Http, .. })))
    };
    assert!(steps.iter().take(stop).any(leaves), "{:#?}", steps.iter().map(ToString::to_string).collect::<Vec<_>>());
    // No deploy reloads HAProxy.
    assert!(!world.sim.applied().iter().any(|step| matches!(step, Step::Route { reload: Some(_), .. })));
}

#[tokio::test]
async fn haproxy_that_starts_again_has_what_it_had() {
    let world = world().await;
    world.planted("app").await;
    settles(&world, None).await;
    world.sim.kill_ingress();
    let looked = world.sim.observations();
    world.until("it was looked at", |world| world.sim.observations() > looked).await;
    let applied = world.sim.applied().len();
    world.sim.start_ingress();
    settles(&world, None).await;
    let looked = world.sim.observations();
    world.sim.tick();
    world.until("it was looked at", |world| world.sim.observations() > looked).await;
    assert_eq!(world.sim.applied().len(), applied, "there was nothing to tell it");
}

#[tokio::test]
async fn an_agent_that_died_between_the_files_and_haproxy_converges() {
    let mut world = world().await;
    world.planted("app").await;
    settles(&world, None).await;
    world.quit().await;
    let name = format!("web.{}.seed.example", id("app", "web").namespace);
    // The files say that it is ready; HAProxy was not told yet.
    let remove = |map| MapChange::Remove { map, name: name.clone() };
    let away = MapChange::Add { map: Map::Away, name: name.clone(), value: "booting".to_owned() };
    let changes = vec![remove(Map::Http), remove(Map::Https), away];
    world.sim.apply_now(&Step::Route { files: vec![], reload: None, changes }).unwrap();
    settles(&world, Some("booting")).await;
    world.kill_agent().await;
    settles(&world, None).await;
}

#[tokio::test]
async fn an_ingress_that_cannot_be_changed_keeps_no_instance_from_starting() {
    let world = world().await;
    world.planted("app").await;
    settles(&world, None).await;
    world.sim.fail_routes(true);
    world.table.set("web", "two", json!({ "expose": { "http": {}, "https": {} } }));
    assert_eq!(world.push("app").await.0, Outcome::Done);
    assert!(world.sim.running(&id("app", "web")).is_some_and(|text| text.contains("-two")));
    world.sim.fail_routes(false);
    world.sim.tick();
    settles(&world, None).await;
}
