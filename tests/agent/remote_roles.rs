//! Each kind of key against what is decided about a repository from elsewhere.

use seed::{
    agent::{remote::Question, request::Request},
    spec::name::KeyId,
    state::Secret,
};
use serde_json::json;

use crate::{
    desk::{Desk, person},
    remote::{ask, planted},
    world::{World, ann},
};

const URI: &str = "github:ann/app";

#[tokio::test(flavor = "multi_thread")]
async fn each_role_against_each_question() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.table.set("api", "two", json!({}));
    let line = |options: &str, name: &str| format!("{options}{}", person(name).1);
    let lines = [
        line("environment=\"SEED_ROLE=admin\" ", "ann"),
        line("environment=\"SEED_ROLE=admin\" ", "admin"),
        line("", "plain"),
        line("environment=\"SEED_ROLE=read\" ", "reader"),
        line("restrict,environment=\"SEED_INSTANCE=web\" ", "web only"),
        line("environment=\"SEED_ROLE=admin\",expiry-time=\"20200101Z\" ", "expired"),
    ];
    world.forge.commit("ann/app", "main", &[(".authorized_keys", &lines.join("\n"))]);
    world.forge.commit("ann/other", "main", &[]);
    planted(&world, URI).await;
    let others = world.forge.requests("ann/other");
    let desk = Desk::new(&world).await;
    let key = |role: &str| match role {
        "operator" => None,
        "owner" => Some(ann()),
        other => Some(person(other).0),
    };
    let fingerprint = person("a server").0;
    let trust = format!("remote app trust {fingerprint}");
    // With a deploy key it is asked over SSH, where it is known by another host key from then on: so the deploy comes first.
    let verbs = ["remote app", "deploy app", "quota app", "remote app key", &trust, "remote app secret"];
    let table = [
        ("operator", "0 0 0 0 0 0"),
        ("owner", "0 0 0 0 0 0"),
        ("admin", "0 0 0 0 0 0"),
        ("plain", "0 0 0 4 4 4"),
        ("reader", "0 4 0 4 4 4"),
        ("web only", "4 4 0 4 4 4"),
        ("expired", "3 3 3 3 3 3"),
        ("stranger", "3 3 3 3 3 3"),
    ];
    let mut wrong = Vec::new();
    for (role, codes) in table {
        for (verb, expected) in verbs.into_iter().zip(codes.split(' ')) {
            let said = desk.run(key(role).as_ref(), verb).await;
            if said.code.to_string() != expected {
                wrong.push(format!("{role}: {verb}: not {expected}: {said:?}"));
            }
        }
        // What comes on standard input.
        let who = key(role).as_ref().map(KeyId::to_string).unwrap_or_default();
        let token = Question::SetToken { who: who.clone(), repository: "app".into(), token: Secret("t0ken".into()) };
        let set = world.handle.ask(ask(token)).await.is_ok();
        let forgotten = world.handle.ask(ask(Question::ForgetToken { who: who.clone(), repository: "app".into() })).await.is_ok();
        let may = matches!(role, "operator" | "owner" | "admin");
        if (set, forgotten) != (may, may) {
            wrong.push(format!("{role}: token {set}, forget {forgotten}"));
        }
        let looked = Request::Status { who, filter: "github:ann/app".into() };
        if world.handle.ask(looked).await.is_ok() != !matches!(role, "expired" | "stranger") {
            wrong.push(format!("{role}: status"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Nothing of this asks for any other repository of that owner's.
    assert_eq!(world.forge.requests("ann/other"), others);
}
