//! What is written down of what nobody with a key has asked for, and whether the log can be trusted; what a repository from elsewhere may take.

use std::time::Duration;

use seed::bus::Outcome;
use serde_json::{Value, json};

use crate::{
    desk::{Desk, person},
    remote::{hook, planted, runs, sign},
    world::{World, ann},
};

const URI: &str = "github:ann/app";

async fn entries(desk: &Desk, verb: &str) -> Vec<Value> {
    let said = desk.run(Some(&ann()), "audit --json").await;
    let trail: Value = serde_json::from_str(&said.out).unwrap();
    trail["entries"].as_array().unwrap().iter().filter(|entry| entry["verb"] == verb).cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_webhook_or_the_time_brings_is_written_down_and_so_is_whom_it_lets_in() {
    let mut world = World::new().await;
    world.table.set("web", "one", json!({}));
    let first = world.forge.commit("ann/app", "main", &[]);
    let secret = planted(&world, URI).await.webhook.secret;
    let desk = Desk::new(&world).await;
    // Planting is an act of ann's, and whom the repository lets in is said besides.
    for entry in entries(&desk, "fetch").await {
        assert!(entry["arguments"][2] == first.as_str() && entry["result"].as_str().unwrap().contains("access: now"), "{entry}");
    }
    let before = entries(&desk, "fetch").await.len();
    world.table.set("web", "two", json!({}));
    let second = world.forge.commit("ann/app", "main", &[("page", "two")]);
    assert_eq!(hook(&world, "ann/app", "refs/heads/main", &sign(&secret, "x"), "x").await.unwrap(), "fetching");
    runs(&world, URI, &second).await;
    let told = entries(&desk, "fetch").await;
    assert_eq!(told.len(), before + 1, "{told:?}");
    let last = told.last().unwrap();
    assert_eq!((&last["who"], &last["source"], &last["repository"]), (&json!("agent"), &json!(""), &json!(URI)));
    assert_eq!(last["arguments"], json!([URI, "refs/heads/main", second]));
    assert!(last["result"].as_str().unwrap().starts_with("ok: ") && !last["result"].as_str().unwrap().contains("access"), "{last}");

    // Without a webhook, by the time; and it lets somebody in.
    let lines = format!("{}\n{}\n", person("ann").1, person("bob").1);
    let third = world.forge.commit("ann/app", "main", &[(".authorized_keys", &lines), ("page", "three")]);
    world.every(Duration::from_millis(100)).await;
    runs(&world, URI, &third).await;
    let desk = Desk::new(&world).await;
    let last = entries(&desk, "fetch").await.pop().unwrap();
    let result = last["result"].as_str().unwrap();
    assert!(result.contains("access: now") && result.contains(person("bob").0.as_str()), "{result}");
    // Looked at again, nothing is new, and nothing is written.
    let before = entries(&desk, "fetch").await.len();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(entries(&desk, "fetch").await.len(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_is_written_down_with_whom_it_lets_in() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.planted("app").await;
    let lines = format!("{}\n", person("bob").1);
    let commit = world.commit("app", &[(".authorized_keys", &lines)]);
    let desk = Desk::new(&world).await;
    // A plan deploys nothing, and lets nobody in; but the branch has moved.
    let planned = world.pushed(&ann(), "app", &commit, "plan").await.unwrap();
    assert_eq!(world.follow(&planned.job).await.0, Outcome::Done);
    let push = entries(&desk, "push").await.pop().unwrap();
    assert_eq!(push["arguments"], json!(["app", "refs/heads/main", commit, "-o plan"]));
    assert!(!push["result"].as_str().unwrap().contains("access"), "{push}");
    let pushed = world.pushed(&ann(), "app", &commit, "deploy").await.unwrap();
    assert_eq!(world.follow(&pushed.job).await.0, Outcome::Done);
    let push = entries(&desk, "push").await.pop().unwrap();
    let result = push["result"].as_str().unwrap();
    assert!(result.starts_with("ok: ") && result.contains(&format!("access: now {}", person("bob").0)), "{result}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_lacks_what_the_journal_knows_was_cut_off() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.planted("app").await;
    let desk = Desk::new(&world).await;
    let checked = desk.run(None, "audit --verify --json").await;
    let document: seed::bus::shell::AuditChecked = serde_json::from_str(&checked.out).unwrap();
    let line = |number: u64, hash: &str| format!("audit number={number} verb=\"plant\" who=\"x\" hash=\"{hash}\"");
    let last = document.first + document.entries - 1;
    world.sim.audited_line(line(last, &document.hash));
    assert_eq!(desk.run(None, "audit --verify").await.code, 0);
    let path = std::fs::read_dir(world.audit()).unwrap().next().unwrap().unwrap().path();
    let text = std::fs::read_to_string(&path).unwrap();
    let shorter: String = text.lines().take(text.lines().count() - 1).flat_map(|line| [line, "\n"]).collect();
    std::fs::write(&path, shorter).unwrap();
    let checked = desk.run(None, "audit --verify").await;
    assert!(checked.code == 1 && checked.err.contains(&format!("knows entry {last}")), "{checked:?}");
    std::fs::write(&path, text).unwrap();
    assert_eq!(desk.run(None, "audit --verify").await.code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_from_elsewhere_may_take_what_its_quota_says() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.forge.commit("ann/app", "main", &[]);
    let secret = planted(&world, URI).await.webhook.secret;
    let desk = Desk::new(&world).await;
    let noise = |seed: u64, bytes: usize| {
        let mut state = seed;
        let mut text = String::new();
        while text.len() < bytes {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text.push_str(&format!("{state:x}"));
        }
        text
    };
    let namespace = URI.parse::<seed::spec::name::FlakeUri>().unwrap().namespace();
    let mirror = world.path("mirrors").join(namespace.as_str()).join("mirror.git");
    assert_eq!(desk.run(None, "quota set github:ann/app repository=1Mi").await.code, 0);
    // Each commit is some 300 KiB: what was there of older ones makes room.
    for round in 1..=4 {
        let commit = world.forge.commit("ann/app", "main", &[("large", &noise(round, 600_000))]);
        let body = format!("{round}");
        hook(&world, "ann/app", "refs/heads/main", &sign(&secret, &body), &body).await.unwrap();
        runs(&world, URI, &commit).await;
        assert!(seed::build::disk::bytes_of(&mirror) <= 1 << 20);
    }
    // One that is too large alone is refused in words, and what runs goes on.
    let runs_now = crate::remote::commit_of(&world, URI).await;
    world.forge.commit("ann/app", "main", &[("large", &noise(9, 4_000_000))]);
    let said = desk.run(Some(&ann()), "deploy github:ann/app").await;
    assert!(said.code == 1 && said.out.contains("may take 1Mi: ask the operator"), "{said:?}");
    assert_eq!((crate::remote::commit_of(&world, URI).await, mirror.exists()), (runs_now, false));
    // It is a cache: with more room it is there again.
    assert_eq!(desk.run(None, "quota set github:ann/app repository=20Mi").await.code, 0);
    let said = desk.run(Some(&ann()), "deploy github:ann/app").await;
    assert_eq!(said.code, 0, "{said:?}");
}
