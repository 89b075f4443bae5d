//! Who may do what, and what a stranger learns.

use seed::{
    agent::request::Request,
    bus::{Outcome, PushRead, Refusal},
};
use serde_json::json;

use crate::world::{World, ann, bob};

#[tokio::test]
async fn an_invite_is_spent_once_and_a_wrong_one_changes_nothing() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    for repo in ["one", "two"] {
        world.create(&ann(), repo).await.unwrap();
        world.commit(repo, &[]);
    }
    assert!(matches!(world.plant(&ann(), "one", "nonsense").await, Err(Refusal::Denied(_))));
    let code = world.invite(1).await;
    let job = world.plant(&ann(), "one", &code).await.unwrap();
    assert_eq!(world.follow(&job).await.0, Outcome::Done);
    assert!(matches!(world.plant(&ann(), "two", &code).await, Err(Refusal::Denied(_))));
    assert!(matches!(world.plant(&ann(), "one", &code).await, Err(Refusal::Invalid(_))));
    assert_eq!(world.status(&ann().to_string()).await.unplanted, ["two"]);
    let revoked = world.invite(5).await;
    world.handle.ask(Request::RevokeInvite { id: revoked[..6].to_owned() }).await.unwrap();
    assert!(matches!(world.plant(&ann(), "two", &revoked).await, Err(Refusal::Denied(_))));
}

#[tokio::test]
async fn a_stranger_can_do_nothing_and_learns_nothing() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.planted("app").await;
    let who = bob().to_string();
    assert!(world.status(&who).await.namespaces.is_empty());
    let commit = world.commit("app", &[]);
    assert!(matches!(world.pushed(&bob(), "app", &commit, "deploy").await, Err(Refusal::Denied(_))));
    assert!(matches!(world.pushed(&bob(), "app", &commit, "plan").await, Err(Refusal::Denied(_))));
    for name in ["web", "app/web"] {
        let restart = Request::Restart { who: who.clone(), instance: name.into() };
        assert!(matches!(world.text(restart).await, Err(Refusal::NotFound(_))));
        let logs = Request::Logs { who: who.clone(), instance: name.into(), query: "{}".into() };
        assert!(matches!(world.text(logs).await, Err(Refusal::NotFound(_))));
    }
    let bad = [("../x", "write"), ("-x", "write"), ("app", "own")];
    for (name, access) in bad {
        let request = Request::OpenRepository { who: who.clone(), name: name.into(), access: access.into() };
        assert!(matches!(world.text(request).await, Err(Refusal::Invalid(_))), "{name} {access}");
    }
}

#[tokio::test]
async fn what_the_doors_have_read_is_not_read_again_and_gives_nobody_more_rights() {
    let world = World::new().await;
    world.create(&ann(), "app").await.unwrap();
    let blob: Vec<u8> = [&[0, 0, 0, 11][..], b"ssh-ed25519", &[0, 0, 0, 3, 1, 2, 3]].concat();
    let guest = seed::spec::access::fingerprint(&blob);
    let line = format!("ssh-ed25519 {} guest\n", data_encoding::BASE64.encode(&blob));
    let commit = world.commit("app", &[]);
    // Nobody can read it any more.
    std::fs::rename(world.bare("app"), world.bare("gone")).unwrap();
    assert!(world.pushed(&ann(), "app", &commit, "deploy").await.is_err());
    let read = |branch: &str, keys: &str| Some(PushRead { branch: branch.parse().unwrap(), keys: Some(keys.to_owned()) });
    let (ann, bob) = (ann(), bob());
    let told = async |who, read| world.pushed_and_read(who, "app", &commit, "deploy", read).await;
    assert!(matches!(told(&guest, read("refs/heads/main", &line)).await, Err(Refusal::Denied(_))), "not by what they push");
    let pushed = told(&ann, read("refs/heads/other", &line)).await.unwrap();
    assert!(pushed.notes[0].contains("only the default branch"), "{pushed:?}");
    assert!(told(&guest, read("refs/heads/main", &line)).await.is_err());
    let pushed = told(&ann, read("refs/heads/main", &"x".repeat(300_000))).await.unwrap();
    assert!(pushed.notes[0].contains("256 KiB"), "{pushed:?}");
    assert!(told(&ann, read("refs/heads/main", &line)).await.unwrap().notes[0].contains("access: now"));
    assert!(told(&guest, read("refs/heads/main", &line)).await.is_ok());
    assert!(matches!(told(&bob, read("refs/heads/main", &line)).await, Err(Refusal::Denied(_))));
}

#[tokio::test]
async fn a_key_that_is_pushed_may_push_and_the_owner_cannot_be_locked_out() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.planted("app").await;
    // A key in wire form: its type, then some bytes.
    let blob: Vec<u8> = [&[0, 0, 0, 11][..], b"ssh-ed25519", &[0, 0, 0, 3, 1, 2, 3]].concat();
    let guest = seed::spec::access::fingerprint(&blob);
    let line = format!("ssh-ed25519 {} guest\n", data_encoding::BASE64.encode(&blob));
    let commit = world.commit("app", &[(".authorized_keys", &line)]);
    // A plan lets nobody in, nor does a deploy of it, and it says so.
    let planned = world.pushed(&ann(), "app", &commit, "plan").await.unwrap();
    assert!(planned.notes.iter().any(|note| note.contains("once it is pushed without -o plan: now SHA256:")), "{planned:?}");
    world.follow(&planned.job).await;
    let job = world.text(Request::Deploy { who: ann().to_string(), repository: "app".into() }).await.unwrap();
    world.follow(&job).await;
    assert!(world.pushed(&guest, "app", &commit, "deploy").await.is_err());
    let pushed = world.pushed(&ann(), "app", &commit, "deploy").await.unwrap();
    assert_eq!(world.follow(&pushed.job).await.0, Outcome::Done);
    let commit = world.commit("app", &[(".authorized_keys", "garbage\n")]);
    let pushed = world.pushed(&guest, "app", &commit, "deploy").await.unwrap();
    assert!(pushed.notes.iter().any(|note| note.contains("stays as it was")), "{:?}", pushed.notes);
    // The owner is in no file, and still may.
    let commit = world.commit("app", &[]);
    assert!(world.pushed(&ann(), "app", &commit, "deploy").await.is_ok());
}
