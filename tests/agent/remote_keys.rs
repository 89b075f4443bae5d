//! Private repositories by a deploy key: a real git over SSH, a server that knows the key or not, and one that is not what it was.

use std::time::Duration;

use seed::{
    agent::{
        history::History,
        remote::{Lent, Question},
        request::Request,
    },
    bus::{
        Outcome, Refusal,
        github::{RemoteKey, RemoteStatus},
    },
    spec::{
        access::Repository,
        name::{FlakeUri, KeyId},
    },
    state::{Change, Plant, Secret, State, Upstream},
};
use serde_json::json;

use crate::{
    remote::{commit_of, plant_lent, plant_with},
    world::{World, ann, bob},
};

const URI: &str = "github:ann/app";

async fn plant_key(world: &World, who: &KeyId, code: &str) -> Result<RemoteKey, Refusal> {
    let question = Question::PlantKey { who: who.to_string(), uri: URI.into(), code: code.into() };
    Ok(serde_json::from_str(&world.text(Request::Remote(question)).await?).unwrap())
}

async fn deployed(world: &World) -> (Outcome, String) {
    let job = world.text(Request::Deploy { who: ann().to_string(), repository: URI.into() }).await.unwrap();
    world.follow(&job).await
}

fn key_of(who: &KeyId) -> Request {
    Request::Remote(Question::Key { who: who.to_string(), repository: "app".into() })
}

fn trust(who: &KeyId, host_key: &str) -> Request {
    Request::Remote(Question::Trust { who: who.to_string(), repository: "app".into(), host_key: host_key.into() })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_repository_is_planted_and_followed_with_a_deploy_key_and_a_server_that_changes_is_refused() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    let first = world.forge.commit("ann/app", "main", &[]);
    // Over HTTPS nobody gets in.
    world.forge.lock("nobody:x");
    let code = world.invite(1).await;
    assert!(matches!(plant_key(&world, &ann(), "nonsense").await, Err(Refusal::Denied(_))), "a key takes a code");
    let anns = plant_key(&world, &ann(), &code).await.unwrap();
    assert!(anns.made && anns.key.starts_with("ssh-ed25519 "), "{anns:?}");
    assert_eq!(plant_key(&world, &ann(), &code).await.unwrap(), RemoteKey { made: false, ..anns.clone() });
    let bobs = plant_key(&world, &bob(), &code).await.unwrap();
    assert_ne!(bobs.key, anns.key, "each has his own");
    let Err(Refusal::NotFound(said)) = plant_lent(&world, ann().as_str(), URI, &code, Lent::Key).await else { panic!("not added") };
    assert!(said.contains("the key is not added there") && said.contains("not spent"), "{said}");
    world.forge.ssh.allow(&anns.key);
    assert!(matches!(plant_lent(&world, bob().as_str(), URI, &code, Lent::Key).await, Err(Refusal::NotFound(_))));
    let planted = plant_lent(&world, ann().as_str(), URI, &code, Lent::Key).await.unwrap();
    let (outcome, said) = world.follow(&planted.job).await;
    assert_eq!(outcome, Outcome::Done, "{said}");
    assert_eq!(commit_of(&world, URI).await, first);

    let show = async || -> RemoteStatus {
        let question = Question::Show { who: ann().to_string(), repository: "app".into() };
        serde_json::from_str(&world.text(Request::Remote(question)).await.unwrap()).unwrap()
    };
    let shown = show().await;
    assert_eq!((shown.key.as_str(), shown.token, shown.host_key), (anns.key.as_str(), false, world.forge.ssh.host_key()));
    let kept: RemoteKey = serde_json::from_str(&world.text(key_of(&ann())).await.unwrap()).unwrap();
    assert_eq!(kept, RemoteKey { made: false, ..anns });
    assert!(world.text(key_of(&bob())).await.is_err());

    // Another server answers at that address.
    let known = world.forge.ssh.host_key();
    let new = world.forge.ssh.another_key();
    let second = world.forge.commit("ann/app", "main", &[("page", "two")]);
    let (outcome, said) = deployed(&world).await;
    assert!(outcome == Outcome::Failed && said.contains(&format!("({new})")) && said.contains(&known), "{said}");
    assert!(said.contains(&format!("`remote REPO trust {new}`")), "{said}");
    assert_eq!(commit_of(&world, URI).await, first, "what runs goes on");
    assert!(matches!(world.handle.ask(trust(&bob(), &new)).await, Err(Refusal::NotFound(_))));
    assert!(matches!(world.handle.ask(trust(&ann(), "SHA256:x")).await, Err(Refusal::Invalid(_))));
    world.handle.ask(trust(&ann(), &new)).await.unwrap();
    let (outcome, said) = deployed(&world).await;
    assert_eq!((outcome, commit_of(&world, URI).await), (Outcome::Done, second), "{said}");
    assert_eq!(show().await.host_key, new);

    assert!(!format!("{:?}", world.state.memory()).contains("PRIVATE KEY"), "it is in no document of the state");
    let unplant = History::Unplant { who: ann().to_string(), repository: URI.into(), again: URI.into() };
    // The deploy may still be saying that it is done.
    let mut gone = world.text(Request::History(unplant.clone())).await;
    for _ in 0..100 {
        if gone.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        gone = world.text(Request::History(unplant.clone())).await;
    }
    gone.unwrap();
    let left: Vec<_> = std::fs::read_dir(world.path("credentials")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.len() == 1 && left[0].to_string_lossy().starts_with("plant-"), "bob's key waits, ann's is gone: {left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_over_ssh_only_wants_a_key() {
    let mut world = World::new().await;
    let code = world.invite(1).await;
    let uri = "git+ssh://git@git.example.org/ann/app";
    for (token, reason) in [(None, "--key"), (Some("s3cret"), "takes no token")] {
        let Err(Refusal::Invalid(said)) = plant_with(&world, ann().as_str(), uri, &code, token).await else { panic!("{token:?}") };
        assert!(said.contains(reason), "{said}");
    }
    // Planted, it takes none either: what it is read with would be out of sight.
    let flake: FlakeUri = uri.parse().unwrap();
    let (namespace, hash) = (flake.namespace(), flake.hash());
    let repository = Repository::new(namespace.as_str().parse().unwrap(), ann(), 1);
    let secret = Secret("webhook".into());
    let upstream = Upstream { repository, secret, branch: None, seen: None, host_key: None };
    let plant = Plant { uri: flake, namespace: namespace.clone(), hash, by: ann(), at: 1 };
    let batch = vec![Change::Plant(namespace.clone(), Some(plant)), Change::Upstream(namespace, Some(upstream))];
    world.state.commit(batch).await.unwrap();
    world.kill_agent().await;
    let token = Question::SetToken { who: ann().to_string(), repository: uri.into(), token: Secret("t0ken".into()) };
    let Err(Refusal::Invalid(said)) = world.handle.ask(Request::Remote(token)).await else { panic!("a token") };
    assert!(said.contains("takes no token"), "{said}");
}
