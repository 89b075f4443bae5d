//! Every verb with `--json`: documents, one a line, each of a kind that was promised.

use serde::de::DeserializeOwned;
use serde_json::json;

use seed::bus::{self, access, domain, history, shell};

use crate::{
    desk::{Desk, Said},
    world::{World, ann},
};

#[track_caller]
fn documents<T: DeserializeOwned>(said: &Said) -> Vec<T> {
    assert_eq!((said.code, said.err.as_str()), (0, ""), "{said:?}");
    let read = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    said.out.lines().map(read).collect()
}

#[track_caller]
fn one<T: DeserializeOwned>(said: &Said) -> T {
    let mut all = documents(said);
    assert_eq!(all.len(), 1, "{said:?}");
    assert!(said.out.starts_with("{\"version\":1,") || said.out.contains(",\"version\":1"), "{said:?}");
    all.pop().unwrap()
}

#[track_caller]
fn progress(said: &Said) {
    let all: Vec<bus::Progress> = documents(said);
    assert_eq!(all.last().and_then(|last| last.outcome), Some(bus::Outcome::Done), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_verb_prints_what_was_promised() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.create(&ann(), "app").await.unwrap();
    world.commit("app", &[]);
    let desk = Desk::new(&world).await;
    let mine = async |line: &str| desk.run(Some(&ann()), &format!("{line} --json")).await;
    let host = async |line: &str| desk.run(None, &format!("{line} --json")).await;

    let shell::NewInvite { code, uses_left: 2, .. } = one(&host("invite new --uses 2 --note friends").await) else { panic!() };
    let said = mine(&format!("plant silo:app {code}")).await;
    let (first, rest) = said.out.split_once('\n').unwrap();
    assert!(first.contains("\"version\":1") && serde_json::from_str::<bus::Planted>(first).is_ok(), "{first}");
    progress(&Said { code: said.code, out: rest.to_owned(), err: said.err });
    let list: shell::InviteList = one(&host("invite list").await);
    assert_eq!((list.invites[0].uses_left, list.invites[0].used.len()), (1, 1));
    let shell::InviteRevoked { revoked, .. } = one(&host(&format!("invite revoke {}", &code[..6])).await);
    assert_eq!(revoked, code[..6]);

    let status: bus::Status = one(&mine("status").await);
    assert_eq!(status.namespaces[0].instances[0].name, "web");
    let _steps: shell::StepList = one(&host("plan").await);
    let lines: Vec<bus::LogLine> = documents(&mine("logs web").await);
    assert!(!lines.is_empty());
    for verb in ["restart web", "deploy app", "stop web", "start web"] {
        progress(&mine(verb).await);
    }
    let deploys: history::Deploys = one(&mine("deploys app").await);
    assert!(!deploys.namespaces[0].deploys.is_empty());
    let history::Pinned { pinned: true, .. } = one(&mine("pin web").await) else { panic!() };
    let history::Pinned { pinned: false, changed: true, .. } = one(&mine("unpin web").await) else { panic!() };
    world.table.set("web", "two", json!({}));
    let commit = world.commit("app", &[]);
    let pushed = world.pushed(&ann(), "app", &commit, "deploy").await.unwrap();
    world.follow(&pushed.job).await;
    progress(&mine("rollback web").await);

    let shell::Whoami { source: Some(_), .. } = one(&mine("whoami").await) else { panic!() };
    let help: shell::VerbList = one(&mine("help").await);
    assert!(help.verbs.len() > 15 && help.verbs.iter().all(|verb| verb.name != "invite"));
    let help: shell::VerbList = one(&host("help invite").await);
    assert_eq!(help.verbs.len(), 1);
    assert_eq!(mine("help invite").await.code, 2);
    let quota: shell::QuotaList = one(&mine("quota").await);
    assert_eq!(quota.namespaces[0].used.share.instances, 1);
    // In one unit, so that whoever reads it can compare them.
    assert!(quota.namespaces[0].used.share.memory < quota.namespaces[0].quota.memory);
    let shell::QuotaSet { quota, .. } = one(&host("quota set app memory=4Gi").await);
    assert_eq!(quota, "memory=4Gi");
    let trail: access::AuditTrail = one(&mine("audit").await);
    assert!(trail.entries.iter().any(|entry| entry.verb == "rollback"));
    let checked: shell::AuditChecked = one(&host("audit --verify").await);
    assert!(checked.entries as usize >= trail.entries.len());
    let claimed: domain::DomainList = one(&mine("domain add web www.example.com").await);
    assert_eq!(claimed.domains[0].name, "www.example.com");
    let _list: domain::DomainList = one(&mine("domain list").await);
    let _removed: shell::DomainRemoved = one(&mine("domain remove www.example.com").await);
    let repositories: access::RepositoryList = one(&mine("repo list").await);
    assert_eq!(repositories.repositories[0].name, "app");
    let _set: shell::VisibilitySet = one(&mine("repo visibility app private").await);

    progress(&mine("destroy web web").await);
    let said = mine("unplant app app").await;
    let (first, rest) = said.out.split_once('\n').unwrap();
    let _unplanted: history::Unplanted = serde_json::from_str(first).unwrap();
    progress(&Said { code: said.code, out: rest.to_owned(), err: said.err });
    let renamed: shell::Renamed = one(&mine("repo rename app other").await);
    assert_eq!(renamed.name, "other");
    let deleted: shell::Deleted = one(&mine("repo delete other other").await);
    assert_eq!(deleted.deleted, "other");

    let said = mine("status app").await;
    let failure: shell::Failure = serde_json::from_str(&said.err).unwrap();
    assert_eq!((said.code, failure.error.kind.as_str(), said.out.as_str()), (3, "notFound", ""));
}
