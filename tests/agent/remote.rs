//! Repositories from elsewhere: a real git server on loopback, and what a forge says over its webhook.

use std::time::Duration;

use hmac::{Hmac, Mac};
use seed::{
    agent::{
        access::Question as Access,
        history::History,
        remote::{Lent, Question},
        request::Request,
    },
    bus::{
        Outcome, Refusal,
        github::{RemotePlanted, RemoteStatus, Webhook},
    },
    spec::name::{FlakeUri, InstanceId, KeyId},
    state::Secret,
};
use serde_json::json;

use crate::{
    desk::person,
    world::{World, ann, bob},
};

pub fn ask(question: Question) -> Request {
    Request::Remote(question)
}

fn id(uri: &str, name: &str) -> InstanceId {
    InstanceId { namespace: uri.parse::<FlakeUri>().unwrap().namespace(), name: name.parse().unwrap() }
}

async fn plant(world: &World, who: &KeyId, uri: &str, code: &str) -> Result<RemotePlanted, Refusal> {
    plant_with(world, who.as_str(), uri, code, None).await
}

pub async fn plant_with(world: &World, who: &str, uri: &str, code: &str, token: Option<&str>) -> Result<RemotePlanted, Refusal> {
    let lent = token.map_or(Lent::Nothing, |token| Lent::Token(Secret(token.into())));
    plant_lent(world, who, uri, code, lent).await
}

pub async fn plant_lent(world: &World, who: &str, uri: &str, code: &str, lent: Lent) -> Result<RemotePlanted, Refusal> {
    let line = ["ann", "bob"].map(person).into_iter().find(|(key, _)| key.as_str() == who).map(|(_, line)| line);
    let line = line.unwrap_or_default();
    let question = Question::Plant { who: who.into(), uri: uri.into(), code: code.into(), line, lent };
    Ok(serde_json::from_str(&world.text(ask(question)).await?).unwrap())
}

/// ann's repository at the forge, planted and running.
pub async fn planted(world: &World, uri: &str) -> RemotePlanted {
    let code = world.invite(1).await;
    let planted = plant(world, &ann(), uri, &code).await.unwrap();
    let (outcome, said) = world.follow(&planted.job).await;
    assert_eq!(outcome, Outcome::Done, "{said}");
    planted
}

pub fn sign(secret: &str, body: &str) -> String {
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(body.as_bytes());
    format!("sha256={}", data_encoding::HEXLOWER.encode(&mac.finalize().into_bytes()))
}

pub async fn hook(world: &World, repository: &str, branch: &str, signature: &str, body: &str) -> Result<String, Refusal> {
    let (repository, branch, signature) = (repository.to_owned(), branch.to_owned(), signature.to_owned());
    world.text(ask(Question::Hook { repository, branch, signature, body: body.as_bytes().to_vec() })).await
}

/// What `status` says runs in the namespace of a flake.
pub async fn commit_of(world: &World, uri: &str) -> String {
    let status = world.status("").await;
    let found = status.namespaces.iter().find(|namespace| namespace.flake == uri);
    found.map(|namespace| namespace.commit.clone()).unwrap_or_default()
}

pub async fn runs(world: &World, uri: &str, commit: &str) {
    for _ in 0..1200 {
        if commit_of(world, uri).await == commit {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{uri} never ran {commit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_of_github_is_planted_and_a_signed_delivery_deploys_its_branch() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    let first = world.forge.commit("ann/app", "main", &[("flake.nix", "{ }")]);
    let planted = planted(&world, "github:ann/app").await;
    assert_eq!(planted.namespace, id("github:ann/app", "web").namespace.to_string());
    assert_eq!((planted.webhook.url.as_str(), planted.webhook.secret.len()), ("http://seed.example/webhook/github", 40));
    assert_eq!(commit_of(&world, "github:ann/app").await, first);
    assert!(world.sim.running(&id("github:ann/app", "web")).is_some());

    world.table.set("web", "two", json!({}));
    // The history was rewritten, too.
    let second = world.forge.commit("ann/app", "main", &[("page", "two")]);
    let signature = sign(&planted.webhook.secret, "moved");
    assert_eq!(hook(&world, "Ann/App", "refs/heads/main", &signature, "moved").await.unwrap(), "fetching");
    runs(&world, "github:ann/app", &second).await;
    // Sent again, it does nothing.
    let requests = world.forge.requests("ann/app");
    assert_eq!(hook(&world, "ann/app", "refs/heads/main", &signature, "moved").await.unwrap(), "repeated");
    // Another branch is none of this plant's business.
    world.forge.commit("ann/app", "next", &[("page", "three")]);
    let other = sign(&planted.webhook.secret, "other");
    assert_eq!(hook(&world, "ann/app", "refs/heads/next", &other, "other").await.unwrap(), "otherBranch");
    assert_eq!(hook(&world, "ann/app", "", &sign(&planted.webhook.secret, "ping"), "ping").await.unwrap(), "welcome");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.forge.requests("ann/app"), requests, "nothing was asked of the forge");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_signed_with_the_secret_of_the_plant_is_heard() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    for name in ["ann/app", "ann/other"] {
        world.forge.commit(name, "main", &[]);
    }
    let app = planted(&world, "github:ann/app").await.webhook.secret;
    let other = planted(&world, "github:ann/other").await.webhook.secret;
    assert_ne!(app, other);
    let before = world.forge.requests("");
    let refused = [
        ("ann/app", sign(&other, "x")),
        ("ann/app", sign("", "x")),
        ("ann/app", sign(&app, "y")),
        ("ann/app", sign(&app, "x")[..70].to_owned()),
        ("ann/app", String::new()),
        ("ann/app", sign(&app, "x").replace("sha256", "sha1")),
        ("ann/ap", sign(&app, "x")),
        ("nobody/nothing", sign("", "x")),
        ("", sign(&app, "x")),
    ];
    let mut texts = std::collections::BTreeSet::new();
    for (repository, signature) in refused {
        let Err(Refusal::Denied(text)) = hook(&world, repository, "refs/heads/main", &signature, "x").await else {
            panic!("{repository} {signature} was heard")
        };
        if signature.len() == 71 {
            texts.insert(text);
        }
    }
    assert_eq!(texts.len(), 1, "whether a repository is planted here is not told: {texts:?}");
    // A secret that was replaced is of no use.
    let question = Question::NewSecret { who: ann().to_string(), repository: "app".into() };
    let new: Webhook = serde_json::from_str(&world.text(ask(question)).await.unwrap()).unwrap();
    assert!(hook(&world, "ann/app", "refs/heads/main", &sign(&app, "x"), "x").await.is_err());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(world.forge.requests(""), before, "nothing was asked of the forge");
    assert_eq!(hook(&world, "ann/app", "refs/heads/main", &sign(&new.secret, "x"), "x").await.unwrap(), "fetching");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_deliveries_is_one_deploy_of_the_last_commit() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.forge.commit("ann/app", "main", &[]);
    let planted = planted(&world, "github:ann/app").await;
    let evaluations = world.table.evaluations();
    let mut last = String::new();
    for round in 0..5 {
        last = world.forge.commit("ann/app", "main", &[("page", &round.to_string())]);
    }
    let bodies: Vec<String> = (0..50).map(|round| format!("round {round}")).collect();
    let all = bodies
        .iter()
        .map(async |body| hook(&world, "ann/app", "refs/heads/main", &sign(&planted.webhook.secret, body), body).await.unwrap());
    let said = futures_util::future::join_all(all).await;
    assert!(said.iter().all(|word| word == "fetching"), "{said:?}");
    runs(&world, "github:ann/app", &last).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.table.evaluations() - evaluations, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_that_was_missed_is_made_up_for() {
    let mut world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.forge.commit("ann/app", "main", &[]);
    world.every(Duration::from_millis(100)).await;
    planted(&world, "github:ann/app").await;
    let second = world.forge.commit("ann/app", "main", &[]);
    runs(&world, "github:ann/app", &second).await;
    // Looking again and again costs one question, and no evaluation.
    let (asked, evaluations) = (world.forge.requests("git-upload-pack"), world.table.evaluations());
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(world.forge.requests("git-upload-pack") > asked);
    assert_eq!(world.table.evaluations(), evaluations);
    // The same while the agent is away, although it looks only every ten minutes.
    world.every(Duration::from_secs(600)).await;
    let third = world.forge.commit("ann/app", "main", &[]);
    world.kill_agent().await;
    runs(&world, "github:ann/app", &third).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_repository_is_read_with_a_token_that_is_shown_to_nobody() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    let commit = world.forge.commit("ann/app", "main", &[]);
    world.forge.lock("ann:s3cret");
    let code = world.invite(1).await;
    let Err(Refusal::NotFound(said)) = plant(&world, &ann(), "github:ann/app", &code).await else { panic!("it is private") };
    assert!(said.contains("private") && said.contains("--token") && said.contains("not spent"), "{said}");
    let kept = || std::fs::read_dir(world.path("credentials")).map_or(0, Iterator::count);
    let with = |who: &KeyId, token: &'static str| {
        let who = who.to_string();
        let (world, code) = (&world, &code);
        async move { plant_with(world, &who, "github:ann/app", code, Some(token)).await }
    };
    assert!(matches!(with(&ann(), "ann:wrong").await, Err(Refusal::NotFound(_))));
    // Whoever has a token can read it, and no more.
    assert!(matches!(with(&bob(), "ann:s3cret").await, Err(Refusal::Denied(_))));
    assert!(matches!(with(&ann(), "two words").await, Err(Refusal::Invalid(_))));
    assert_eq!(kept(), 0, "a token that was of no use is not kept");
    let planted = with(&ann(), "ann:s3cret").await.unwrap();
    assert_eq!(kept(), 1);
    let (outcome, said) = world.follow(&planted.job).await;
    assert_eq!(outcome, Outcome::Done, "{said}");
    let deploy = || Request::Deploy { who: ann().to_string(), repository: "github:ann/app".into() };
    let set = |who: &KeyId, token: &str| {
        let token = Secret(token.to_owned());
        world.handle.ask(ask(Question::SetToken { who: who.to_string(), repository: "app".into(), token }))
    };
    assert!(matches!(set(&bob(), "mine").await, Err(Refusal::NotFound(_))));
    set(&ann(), "ann:wrong").await.unwrap();
    let job = world.text(deploy()).await.unwrap();
    let (outcome, said) = world.follow(&job).await;
    assert!(outcome == Outcome::Failed && said.contains("`remote REPO token`"), "{said}");
    set(&ann(), "ann:s3cret").await.unwrap();
    let job = world.text(deploy()).await.unwrap();
    let (outcome, said) = world.follow(&job).await;
    assert_eq!(outcome, Outcome::Done, "{said}");
    assert_eq!(commit_of(&world, "github:ann/app").await, commit);
    let show = Question::Show { who: ann().to_string(), repository: "app".into() };
    let shown = world.text(ask(show)).await.unwrap();
    let status: RemoteStatus = serde_json::from_str(&shown).unwrap();
    assert!(status.token && status.problem.is_empty() && status.commit == commit && status.branch == "main", "{shown}");
    assert!(!shown.contains("s3cret") && !said.contains("s3cret"));
    assert!(!format!("{:?}", world.state.memory()).contains("s3cret"), "it is in no document of the state");
    let forget = |who: &KeyId| world.handle.ask(ask(Question::ForgetToken { who: who.to_string(), repository: "app".into() }));
    assert!(forget(&bob()).await.is_err());
    forget(&ann()).await.unwrap();
    let job = world.text(deploy()).await.unwrap();
    assert_eq!(world.follow(&job).await.0, Outcome::Failed);
    assert!(world.sim.running(&id("github:ann/app", "web")).is_some(), "what runs goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_followed_is_refused_with_its_reason_and_spends_no_code() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.forge.commit("ann/app", "main", &[]);
    assert!(matches!(plant(&world, &ann(), "github:ann/app", "nonsense").await, Err(Refusal::Denied(_))));
    assert_eq!(world.forge.requests(""), 0, "without a code nothing is asked of anybody");
    let code = world.invite(1).await;
    for (uri, reason) in [
        ("github:ann/none", "does not exist"),
        ("github:ann/app/none", "has no branch none"),
        ("git+https://localhost/a", "not at a host that the world knows"),
        ("silo:app", "of this host"),
        ("path:/etc", "nothing that can be planted"),
    ] {
        let said = plant(&world, &ann(), uri, &code).await.unwrap_err().to_string();
        assert!(said.contains(reason), "{uri}: {said}");
    }
    // A server that leads elsewhere is not followed.
    let elsewhere = crate::forge::Forge::new();
    elsewhere.commit("ann/app", "main", &[]);
    world.forge.moves_to(&elsewhere.url);
    let said = plant(&world, &ann(), "github:ann/app", &code).await.unwrap_err().to_string();
    assert!(said.contains("has moved") && elsewhere.requests("") == 0, "{said}");
    assert!(world.status("").await.namespaces.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_neither_sees_nor_changes_what_another_has_planted() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.forge.commit("ann/app", "main", &[]);
    planted(&world, "github:ann/app").await;
    let (who, repository) = (bob().to_string(), "github:ann/app".to_owned());
    assert!(world.status(&who).await.namespaces.is_empty());
    let questions = [
        Question::Show { who: who.clone(), repository: repository.clone() },
        Question::NewSecret { who: who.clone(), repository: repository.clone() },
        Question::ForgetToken { who: who.clone(), repository: repository.clone() },
    ];
    for question in questions {
        assert!(matches!(world.handle.ask(ask(question)).await, Err(Refusal::NotFound(_))));
    }
    assert!(world.text(Request::Deploy { who: who.clone(), repository }).await.is_err());
    let code = world.invite(1).await;
    let said = plant(&world, &bob(), "github:ann/app", &code).await.unwrap_err().to_string();
    assert!(said.contains("is planted already"), "{said}");
    for name in ["github:ann/app/web", "app/web", "web"] {
        let restart = |who: &str| Request::Restart { who: who.into(), instance: name.into() };
        assert!(matches!(world.text(restart(&who)).await, Err(Refusal::NotFound(_))), "{name}");
        let job = world.text(restart(ann().as_str())).await.unwrap();
        assert_eq!(world.follow(&job).await.0, Outcome::Done, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_stand_in_the_repository_may_act_and_the_one_that_planted_it_cannot_be_locked_out() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    let blob: Vec<u8> = [&[0, 0, 0, 11][..], b"ssh-ed25519", &[0, 0, 0, 3, 1, 2, 3]].concat();
    let guest = seed::spec::access::fingerprint(&blob);
    let line = format!("{}\nssh-ed25519 {} guest\n", person("ann").1, data_encoding::BASE64.encode(&blob));
    world.forge.commit("ann/app", "main", &[(".authorized_keys", &line)]);
    planted(&world, "github:ann/app").await;
    let deploy = |who: &KeyId| Request::Deploy { who: who.to_string(), repository: "app".into() };
    for who in [&guest, &ann()] {
        let job = world.text(deploy(who)).await.unwrap();
        assert_eq!(world.follow(&job).await.0, Outcome::Done);
    }
    // A file without a key changes nothing.
    world.forge.commit("ann/app", "main", &[(".authorized_keys", "garbage\n")]);
    let job = world.text(deploy(&ann())).await.unwrap();
    let (_, said) = world.follow(&job).await;
    assert!(said.contains("stays as it was"), "{said}");
    assert!(world.text(deploy(&guest)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_gone_back_from_does_not_return_by_itself_and_unplanting_leaves_no_secret() {
    let mut world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.forge.commit("ann/app", "main", &[]);
    world.every(Duration::from_millis(100)).await;
    let secret = planted(&world, "github:ann/app").await.webhook.secret;
    world.table.set("web", "two", json!({}));
    let second = world.forge.commit("ann/app", "main", &[]);
    runs(&world, "github:ann/app", &second).await;
    let web = id("github:ann/app", "web");
    let good = |world: &World| world.sim.running(&web).is_some_and(|text| text.contains("-one/"));
    world.until("the second runs", |world| world.sim.running(&web).is_some_and(|text| text.contains("-two/"))).await;
    let who = ann().to_string();
    let back = History::Rollback { who: who.clone(), instance: "app/web".into(), generation: String::new() };
    // The deploy may still be saying that it is done.
    let mut job = world.text(Request::History(back.clone())).await;
    for _ in 0..100 {
        if job.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        job = world.text(Request::History(back.clone())).await;
    }
    let (outcome, said) = world.follow(&job.unwrap()).await;
    assert!(outcome == Outcome::Done && good(&world), "{said}");
    // It is looked at several times, and a delivery comes for a commit that is known.
    assert_eq!(hook(&world, "ann/app", "refs/heads/main", &sign(&secret, "x"), "x").await.unwrap(), "fetching");
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(good(&world), "nobody brought it back");

    let token = Secret("s3cret".into());
    world.handle.ask(ask(Question::SetToken { who: who.clone(), repository: "app".into(), token })).await.unwrap();
    let unplanted = world
        .text(Request::History(History::Unplant { who, repository: "github:ann/app".into(), again: "github:ann/app".into() }))
        .await
        .unwrap();
    let job = serde_json::from_str::<serde_json::Value>(&unplanted).unwrap()["job"].as_str().unwrap().to_owned();
    assert_eq!(world.follow(&job).await.0, Outcome::Done);
    let own = Request::Follow { who: ann().to_string(), job: job.clone() };
    assert!(world.handle.ask(own).await.is_ok(), "who unplants follows to the end");
    let others = Request::Follow { who: bob().to_string(), job };
    assert!(matches!(world.handle.ask(others).await, Err(Refusal::NotFound(_))));
    world.until("it is gone", |world| world.sim.running(&web).is_none()).await;
    assert!(world.state.memory().upstreams.is_empty());
    assert!(hook(&world, "ann/app", "refs/heads/main", &sign(&secret, "y"), "y").await.is_err());
    assert_eq!(std::fs::read_dir(world.path("credentials")).unwrap().count(), 0, "the token is gone");
    let mirror = world.path("mirrors").join(web.namespace.as_str()).join("mirror.git");
    world.until("what was fetched is gone", |_| !mirror.exists()).await;
    let asked = world.forge.requests("");
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(world.forge.requests("") <= asked + 2, "it is not looked at any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_planted_it_finds_what_was_done_in_the_record_and_a_namesake_does_not() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.forge.commit("ann/app", "main", &[]);
    planted(&world, "github:ann/app").await;
    // A repository of this host may have the same name; it is another's.
    world.create(&bob(), "app").await.unwrap();
    // How large that is is not ann's to know.
    world.commit("app", &[("large", &"x".repeat(100_000))]);
    let quota = world.text(Request::Access(Access::Quota { who: ann().to_string(), filter: String::new() })).await.unwrap();
    let quota: serde_json::Value = serde_json::from_str(&quota).unwrap();
    let mirror = world.path("mirrors").join(id("github:ann/app", "web").namespace.as_str()).join("mirror.git");
    let own = seed::build::disk::bytes_of(&mirror);
    assert!(own > 0 && quota["namespaces"][0]["used"]["repository"] == own, "{quota}");
    let token = Secret("s3cret".into());
    world.handle.ask(ask(Question::SetToken { who: ann().to_string(), repository: "app".into(), token })).await.unwrap();
    let audit = |who: &KeyId| Access::Audit { who: who.to_string(), since: 0, lines: 100 };
    let said = async |who: &KeyId| world.text(Request::Access(audit(who))).await.unwrap();
    let anns = said(&ann()).await;
    assert!(anns.contains("\"plant\"") && anns.contains("remote token") && anns.contains("github:ann/app"), "{anns}");
    assert!(!anns.contains("s3cret"), "{anns}");
    let bobs = said(&bob()).await;
    assert!(bobs.contains("create") && !bobs.contains("token") && !bobs.contains("github:ann/app"), "{bobs}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_stand_in_the_repository_plants_it_under_no_code() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    let uri = "github:ann/app";
    let code = world.invite(1).await;
    let (ann_line, bob_line) = (person("ann").1, person("bob").1);
    let role = |role: &str, line: &str| format!("environment=\"SEED_ROLE={role}\" {line}\n");
    let table = [
        (format!("{ann_line}\n"), "has no line for your key"),
        (role("read", &bob_line), "too little"),
        (format!("environment=\"SEED_INSTANCE=web\" {bob_line}\n"), "only web"),
        (format!("expiry-time=\"20200101Z\" {bob_line}\n"), "until 20200101Z"),
        (format!("{}{bob_line}\n", role("admin", &ann_line)), "names admins"),
        (format!("from=\"10.0.0.0/8\" {bob_line}\n"), "line 1 has from="),
        ("garbage\n".to_owned(), "has no line for your key"),
    ];
    for (file, reason) in &table {
        world.forge.commit("ann/app", "main", &[(".authorized_keys", file)]);
        let Err(Refusal::Denied(said)) = plant(&world, &bob(), uri, &code).await else { panic!("{file}") };
        assert!(said.contains(reason) && said.contains("the code was not spent"), "{file}: {said}");
        // What is told is a line that will do.
        assert!(said.ends_with(&bob_line), "{said}");
    }
    // Another branch says nothing of this one.
    world.forge.commit("ann/app", "next", &[(".authorized_keys", &format!("{bob_line}\n"))]);
    assert!(matches!(plant(&world, &bob(), uri, &code).await, Err(Refusal::Denied(_))));
    let mirror = world.path("mirrors").join(id(uri, "web").namespace.as_str()).join("mirror.git");
    world.until("what was fetched for nothing is gone", |_| !mirror.exists()).await;
    let memory = world.state.memory();
    assert!(memory.plants.is_empty() && memory.upstreams.is_empty() && memory.invites.values().all(|invite| invite.uses_left == 1));

    // The operator's word is enough; it belongs to the first key there that may own it.
    world.forge.commit("ann/app", "main", &[(".authorized_keys", "nobody\n")]);
    let Err(Refusal::Invalid(said)) = plant_with(&world, "", uri, "", None).await else { panic!("nobody's") };
    assert!(said.contains("needs an owner"), "{said}");
    let file = format!("{}{ann_line}\n", role("read", &bob_line));
    world.forge.commit("ann/app", "main", &[(".authorized_keys", &file)]);
    let planted = plant_with(&world, "", uri, "", None).await.unwrap();
    assert_eq!(world.follow(&planted.job).await.0, Outcome::Done);
    assert_eq!(world.state.memory().upstreams[&id(uri, "web").namespace].repository.owner, ann());
    // Who only reads may not make another secret for it.
    let question = |who: &KeyId| ask(Question::NewSecret { who: who.to_string(), repository: "app".into() });
    assert!(matches!(world.text(question(&bob())).await, Err(Refusal::Denied(_))) && world.text(question(&ann())).await.is_ok());
}
