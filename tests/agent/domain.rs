//! Names of tenants' own, as far as the agent goes: the doors' looks are said here by hand.

use std::collections::BTreeMap;

use seed::{
    agent::{domain::Question, request::Request},
    bus::{
        Outcome, Refusal,
        domain::{DomainList, DomainStatus, Due, Looked, Seen, Sight},
    },
    spec::name::KeyId,
};
use serde_json::json;

use crate::{
    desk::{Desk, person},
    world::{World, ann, bob, id},
};

const WWW: &str = "www.example.com";

async fn list(world: &World, who: &str) -> Vec<DomainStatus> {
    let text = world.text(Request::Domain(Question::List { who: who.into(), filter: String::new() })).await.unwrap();
    serde_json::from_str::<DomainList>(&text).unwrap().domains
}

pub async fn add(world: &World, who: &str, instance: &str, name: &str) -> Result<DomainStatus, Refusal> {
    let question = Question::Add { who: who.into(), instance: instance.into(), name: name.into() };
    let text = world.text(Request::Domain(question)).await?;
    Ok(serde_json::from_str::<DomainList>(&text).unwrap().domains.remove(0))
}

pub async fn remove(world: &World, who: &str, name: &str) -> Result<(), Refusal> {
    world.handle.ask(Request::Domain(Question::Remove { who: who.into(), name: name.into() })).await.map(drop)
}

async fn due(world: &World) -> Due {
    serde_json::from_str(&world.text(Request::Domain(Question::Due)).await.unwrap()).unwrap()
}

/// The doors saw this CNAME of a name, or none, and no TXT record.
pub async fn see(world: &World, name: &str, cname: Option<&str>) {
    let cname = cname.map_or(Looked::Nothing, |target| Looked::Found(vec![target.to_owned()]));
    let sight = Sight { cname, txt: Looked::Nothing, acme: Looked::Nothing };
    let report = serde_json::to_string(&Seen { name: name.into(), turn: due(world).await.turn, sight }).unwrap();
    world.handle.ask(Request::Domain(Question::Seen { report })).await.unwrap();
}

fn states(domains: &[DomainStatus]) -> BTreeMap<&str, &str> {
    domains.iter().map(|one| (one.instance.as_str(), one.state.as_str())).collect()
}

#[tokio::test]
async fn a_flake_claims_names_and_a_push_says_what_to_set() {
    let mut world = World::new().await;
    world.table.set("web", "one", json!({ "domains": [WWW, "example.com"], "acme": true }));
    let (outcome, said) = world.planted("app").await;
    assert_eq!(outcome, Outcome::Done, "{said}");
    let fqdn = format!("web.{}.seed.example", id("app", "web").namespace);
    for line in
        ["web: www.example.com is not proven", &format!("www.example.com. CNAME {fqdn}."), "_seed-challenge.example.com. TXT"]
    {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert_eq!(due(&world).await.names, ["example.com", WWW]);
    see(&world, WWW, Some(&fqdn)).await;
    assert_eq!(due(&world).await.names, ["example.com"]);
    // It is remembered, over a crash and over a push that changes nothing.
    world.kill_agent().await;
    let (_, said) = world.push("app").await;
    assert!(said.contains("web: example.com is not proven") && !said.contains("www.example.com is not"), "{said}");
    let domains = world.status("").await.namespaces[0].instances[0].domains.clone();
    let shown: Vec<(&str, &str, &str)> =
        domains.iter().map(|one| (one.name.as_str(), one.state.as_str(), one.origin.as_str())).collect();
    assert_eq!(shown, [("example.com", "pending", "flake"), (WWW, "proven", "flake")]);
    // Other names restart nothing; a name that moves within its flake stays proven.
    let boots = world.sim.boots(&id("app", "web"));
    world.table.set("web", "one", json!({ "domains": ["new.example.com"], "acme": true }));
    world.table.set("api", "two", json!({ "domains": [WWW] }));
    let (_, said) = world.push("app").await;
    assert!(said.contains("web: unchanged, not touched"), "{said}");
    assert_eq!(world.sim.boots(&id("app", "web")), boots);
    let domains = list(&world, "").await;
    assert_eq!(states(&domains), [("app/api", "proven"), ("app/web", "pending")].into());
    // A look while it is gone from the flake finds nobody.
    world.table.set("api", "two", json!({}));
    world.push("app").await;
    see(&world, WWW, Some(&fqdn)).await;
    assert_eq!(states(&list(&world, "").await), [("app/web", "pending")].into());
    world
        .handle
        .ask(Request::History(seed::agent::history::History::Unplant {
            who: String::new(),
            repository: "app".into(),
            again: "app".into(),
        }))
        .await
        .unwrap();
    assert!(world.state.memory().domains.is_empty() && due(&world).await.names.is_empty());
}

#[tokio::test]
async fn who_claims_much_keeps_nobody_waiting() {
    let world = World::new().await;
    for instance in ["a", "b", "c"] {
        let names: Vec<String> = (0..16).map(|n| format!("{instance}{n}.example.com")).collect();
        world.table.set(instance, instance, json!({ "domains": names }));
    }
    let (outcome, said) = world.planted("app").await;
    assert_eq!(outcome, Outcome::Done, "{said}");
    ["a", "b", "c"].iter().for_each(|instance| world.table.remove(instance));
    world.table.set("web", "one", json!({ "domains": ["www.example.org", "a0.example.com"] }));
    let (outcome, said) = world.planted("small").await;
    assert_eq!(outcome, Outcome::Done, "{said}");
    let due = due(&world).await.names;
    let theirs = due.iter().filter(|name| name.ends_with(".example.com") && *name != "a0.example.com").count();
    assert!(due.contains(&"www.example.org".to_owned()) && due.contains(&"a0.example.com".to_owned()), "{due:?}");
    assert!((31..=32).contains(&theirs) && due.len() <= 34, "{due:?}");
}

#[tokio::test]
async fn what_cannot_be_claimed_is_refused_with_all_that_is_wrong() {
    let world = World::new().await;
    world.table.set("web", "one", json!({ "domains": [WWW, "UP.example.com", "x.seed.example"] }));
    world.table.set("api", "two", json!({ "domains": ["*.example.com"] }));
    let (outcome, said) = world.planted("app").await;
    assert_eq!(outcome, Outcome::Failed);
    for part in ["domain \"UP.example.com\" is no DNS label", "domain \"*.example.com\" is a wildcard"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    world.table.set("web", "one", json!({ "domains": [WWW, "x.seed.example"] }));
    world.table.set("api", "two", json!({ "domains": [WWW, "seed.example"] }));
    let (_, said) = world.push("app").await;
    for part in ["x.seed.example is in this host's own zone", "seed.example is in this", "www.example.com is seeds.api's already"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(world.state.memory().domains.is_empty());
    world.table.set("web", "one", json!({ "domains": [WWW] }));
    world.table.set("api", "two", json!({}));
    assert_eq!(world.push("app").await.0, Outcome::Done);
    let said = |refused: Result<DomainStatus, Refusal>| refused.unwrap_err().to_string();
    assert!(said(add(&world, "", "web", "10.0.0.1").await).contains("is an address"));
    assert!(said(add(&world, "", "web", "a.seed.example").await).contains("own zone"));
    assert!(said(add(&world, "", "api", WWW).await).contains("the flake gives www.example.com to web"));
    assert!(remove(&world, "", WWW).await.unwrap_err().to_string().contains("remove it from seed.domains"));
    assert!(matches!(remove(&world, "", "no.example.com").await, Err(Refusal::NotFound(_))));
    for n in 0..16 {
        add(&world, "", "api", &format!("n{n}.example.com")).await.unwrap();
    }
    assert!(said(add(&world, "", "api", "n16.example.com").await).contains("an instance may have 16"));
    add(&world, "", "api", "n3.example.com").await.expect("again is no new one");
    // What cannot be written is not claimed.
    world.state.fail(true);
    assert!(matches!(add(&world, "", "web", "more.example.com").await, Err(Refusal::Failed(_))));
    world.state.fail(false);
    assert!(list(&world, "").await.iter().all(|one| one.name != "more.example.com"));
    // An instance that goes takes what was added with it.
    world.table.remove("api");
    world.push("app").await;
    assert_eq!(list(&world, "").await.len(), 1);
}

#[tokio::test]
async fn a_name_is_whose_the_dns_says_and_a_claim_alone_is_worth_nothing() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.planted("app").await;
    world.create(&bob(), "bobs").await.unwrap();
    world.commit("bobs", &[]);
    let code = world.invite(1).await;
    let job = world.plant(&bob(), "bobs", &code).await.unwrap();
    world.follow(&job).await;
    let name = |repo: &str| format!("web.{}.seed.example", id(repo, "web").namespace);
    let (first, second) =
        (add(&world, &bob().to_string(), "web", WWW).await.unwrap(), add(&world, &ann().to_string(), "web", WWW).await.unwrap());
    assert_ne!(first.records.txt, second.records.txt, "the proof of one is none for the other");
    assert_eq!((first.records.cname, second.records.cname), (name("bobs"), name("app")));
    // bob was first, and it does not matter.
    see(&world, WWW, Some(&name("app"))).await;
    assert_eq!(states(&list(&world, "").await), [("app/web", "proven"), ("bobs/web", "pending")].into());
    see(&world, WWW, Some(&name("bobs"))).await;
    assert_eq!(states(&list(&world, "").await), [("app/web", "failing"), ("bobs/web", "waiting")].into());
    // Neither sees the other's.
    for who in [ann(), bob()] {
        assert_eq!(list(&world, &who.to_string()).await.len(), 1);
    }
    // Its holder gives it up: who waits is due at once, and has it with the next look.
    remove(&world, &ann().to_string(), WWW).await.unwrap();
    assert_eq!(due(&world).await.names, [WWW]);
    see(&world, WWW, Some(&name("bobs"))).await;
    assert_eq!(states(&list(&world, "").await), [("bobs/web", "proven")].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_against_the_verbs_of_names() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.table.set("api", "two", json!({}));
    world.planted("app").await;
    let lines = [
        format!("environment=\"SEED_ROLE=admin\" {}", person("admin").1),
        person("plain").1,
        format!("environment=\"SEED_ROLE=read\" {}", person("reader").1),
        format!("restrict,environment=\"SEED_INSTANCE=web\" {}", person("web only").1),
    ];
    let commit = world.commit("app", &[(".authorized_keys", &lines.join("\n"))]);
    let pushed = world.pushed(&ann(), "app", &commit, "deploy").await.unwrap();
    world.follow(&pushed.job).await;
    let table: [(&str, Option<KeyId>, [u8; 3], &[&str]); 7] = [
        // Of `add web`, `add api` and `remove`, the exit codes; and what is listed.
        ("operator", None, [0, 0, 0], &["api", "web"]),
        ("owner", Some(ann()), [0, 0, 0], &["api", "web"]),
        ("admin", Some(person("admin").0), [0, 0, 0], &["api", "web"]),
        ("plain", Some(person("plain").0), [0, 0, 0], &["api", "web"]),
        ("reader", Some(person("reader").0), [4, 4, 4], &["api", "web"]),
        ("web only", Some(person("web only").0), [4, 3, 4], &["web"]),
        ("stranger", Some(person("stranger").0), [3, 3, 3], &[]),
    ];
    for (role, key, codes, listed) in table {
        for (instance, name) in [("web", "w.example.com"), ("api", "a.example.com"), ("web", WWW)] {
            add(&world, "", instance, name).await.unwrap();
        }
        remove(&world, "", "w.example.com").await.unwrap();
        let who = key.map(|key| key.to_string()).unwrap_or_default();
        let code = |refusal: Option<Refusal>| refusal.map_or(0, |refusal| refusal.exit_code());
        let did =
            [code(add(&world, &who, "app/web", WWW).await.err()), code(add(&world, &who, "app/api", "a.example.com").await.err())];
        let shown: Vec<String> = list(&world, &who).await.into_iter().map(|one| one.instance.replace("app/", "")).collect();
        assert_eq!(shown, listed, "{role}");
        let removed = code(remove(&world, &who, WWW).await.err());
        assert_eq!([did[0], did[1], removed], codes, "{role}");
    }
    let desk = Desk::new(&world).await;
    let told = desk.run(Some(&ann()), "audit").await.out;
    assert!(told.contains("domain add") && told.contains("domain remove www.example.com"), "{told}");
    let shown = desk.run(None, "domain list").await;
    assert!(shown.code == 0 && shown.out.contains("a.example.com    app/api") && shown.out.contains("TXT \"seed-"), "{shown:?}");
    assert!(desk.run(None, "status").await.out.contains("a.example.com    app/api   not proven"));
    for (line, code) in [("domain", 2), ("domain ad", 2), ("domain add web", 2), ("domain remove", 2), ("domain list nowhere", 3)] {
        assert_eq!(desk.run(None, line).await.code, code, "{line}");
    }
}
