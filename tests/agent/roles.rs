//! Each kind of key against each verb; tenants against each other; the log of it all.

use seed::{
    agent::{access::Question, request::Request},
    bus::{Outcome, Refusal},
    spec::name::KeyId,
};
use serde_json::{Value, json};

use crate::{
    desk::{Desk, person},
    world::{World, ann, bob, id},
};

/// A repository of ann's with two instances, private, and a key of each kind in its `.authorized_keys`.
async fn shared() -> (World, Desk) {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.table.set("api", "two", json!({}));
    world.planted("app").await;
    let lines = [
        format!("environment=\"SEED_ROLE=admin\",no-pty {}", person("admin").1),
        person("plain").1,
        format!("environment=\"SEED_ROLE=read\" {}", person("reader").1),
        format!("restrict,environment=\"SEED_INSTANCE=web\" {}", person("web only").1),
        format!("environment=\"SEED_ROLE=admin\",expiry-time=\"20200101Z\" {}", person("expired").1),
    ];
    let commit = world.commit("app", &[(".authorized_keys", &lines.join("\n"))]);
    let pushed = world.pushed(&ann(), "app", &commit, "deploy").await.unwrap();
    assert!(pushed.notes.iter().any(|note| note.contains("access: now") && note.contains("admin")), "{:?}", pushed.notes);
    assert_eq!(world.follow(&pushed.job).await.0, Outcome::Done);
    let desk = Desk::new(&world).await;
    let said = desk.run(Some(&ann()), "repo visibility app private").await;
    assert_eq!((said.code, said.err.as_str()), (0, ""), "{said:?}");
    (world, desk)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_against_each_verb() {
    let (world, desk) = shared().await;
    let verbs = [
        "logs web",
        "logs api",
        "restart web",
        "restart api",
        "deploy app",
        "quota app",
        "repo visibility app private",
        "repo rename app other",
        "repo delete app app",
        "quota set app vcpus=8",
        "audit --verify",
        "invite list",
        "plan",
    ];
    // 0 done, 2 not as it is (planted), 3 there is nothing of this kind for you, 4 denied.
    let table = [
        ("operator", "0 0 0 0 0 0 0 2 2 0 0 0 0"),
        ("owner", "0 0 0 0 0 0 0 2 2 4 4 4 4"),
        ("admin", "0 0 0 0 0 0 0 2 2 4 4 4 4"),
        ("plain", "0 0 0 0 0 0 4 4 4 4 4 4 4"),
        ("reader", "0 0 4 4 4 0 4 4 4 4 4 4 4"),
        ("web only", "0 3 0 3 3 0 3 3 3 4 4 4 4"),
        ("expired", "3 3 3 3 3 3 3 3 3 4 4 4 4"),
        ("stranger", "3 3 3 3 3 3 3 3 3 4 4 4 4"),
    ];
    let key = |role: &str| match role {
        "operator" => None,
        "owner" => Some(ann()),
        other => Some(person(other).0),
    };
    for (role, codes) in table {
        let key = key(role);
        for (verb, expected) in verbs.into_iter().zip(codes.split(' ')) {
            let said = desk.run(key.as_ref(), verb).await;
            assert_eq!(said.code.to_string(), expected, "{role}: {verb}: {said:?}");
            assert_eq!(said.err.is_empty(), said.code == 0, "{role}: {verb}: {said:?}");
        }
    }
    let table = [
        // who, clone, push, what status shows
        ("owner", true, true, "api web"),
        ("admin", true, true, "api web"),
        ("plain", true, true, "api web"),
        ("reader", true, false, "api web"),
        ("web only", false, false, "web"),
        ("expired", false, false, ""),
        ("stranger", false, false, ""),
    ];
    for (role, clones, pushes, shown) in table {
        let who = key(role).unwrap();
        for (access, may) in [("read", clones), ("write", pushes)] {
            let request = Request::OpenRepository { who: who.to_string(), name: "app".into(), access: access.into() };
            assert_eq!(world.text(request).await.is_ok(), may, "{role} {access}");
        }
        let commit = world.commit("app", &[]);
        let pushed = world.pushed(&who, "app", &commit, "plan").await;
        assert_eq!(pushed.is_ok(), pushes, "{role}: {pushed:?}");
        // The quota lets only so many plans be made at once.
        if let Ok(pushed) = pushed {
            world.follow(&pushed.job).await;
        }
        let said = desk.run(Some(&who), "status --json").await;
        let status: Value = serde_json::from_str(&said.out).unwrap();
        let instances = status["namespaces"].as_array().unwrap().iter().flat_map(|ns| ns["instances"].as_array().unwrap());
        let names: Vec<&str> = instances.map(|instance| instance["name"].as_str().unwrap()).collect();
        assert_eq!(names.join(" "), shown, "{role}");
        let listed = desk.run(Some(&who), "repo list").await.out;
        assert_eq!(listed.contains("its keys"), !matches!(role, "expired" | "stranger"), "{role}: {listed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_against_each_verb_that_changes_what_runs() {
    let (_world, desk) = shared().await;
    let verbs = [
        "deploys app",
        "pin web",
        "unpin web",
        "stop web",
        "start web",
        "stop api",
        "start api",
        "destroy web nonsense",
        "unplant app app",
    ];
    // The owner last: what may be unplanted is gone afterwards.
    let table = [
        ("plain", "0 0 0 0 0 0 0 4 4"),
        ("reader", "0 4 4 4 4 4 4 4 4"),
        ("web only", "0 0 0 0 0 3 3 4 4"),
        ("expired", "3 3 3 3 3 3 3 3 3"),
        ("stranger", "3 3 3 3 3 3 3 3 3"),
        ("operator", "0 0 0 0 0 0 0 2 -"),
        ("admin", "0 0 0 0 0 0 0 2 -"),
        ("owner", "0 0 0 0 0 0 0 2 0"),
    ];
    for (role, codes) in table {
        let key = match role {
            "operator" => None,
            "owner" => Some(ann()),
            other => Some(person(other).0),
        };
        for (verb, expected) in verbs.into_iter().zip(codes.split(' ')).filter(|(_, expected)| *expected != "-") {
            let said = desk.run(key.as_ref(), verb).await;
            assert_eq!(said.code.to_string(), expected, "{role}: {verb}: {said:?}");
        }
    }
    let told = desk.run(Some(&ann()), "audit").await.out;
    for verb in ["stop web", "start api", "pin web", "unpin web", "destroy web", "unplant app"] {
        assert!(told.contains(verb), "{verb}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_for_one_instance_follows_what_is_about_that_alone() {
    let (world, _desk) = shared().await;
    let follows = async |who: &KeyId, job: &str| {
        world.handle.ask(Request::Follow { who: who.to_string(), job: job.to_owned() }).await.is_ok()
    };
    let restart = async |instance: &str| {
        world.text(Request::Restart { who: ann().to_string(), instance: instance.to_owned() }).await.unwrap()
    };
    let (web, api) = (restart("web").await, restart("api").await);
    for job in [&web, &api] {
        assert_eq!(world.follow(job).await.0, Outcome::Done);
    }
    let commit = world.commit("app", &[]);
    let deploy = world.pushed(&ann(), "app", &commit, "deploy").await.unwrap().job;
    assert_eq!(world.follow(&deploy).await.0, Outcome::Done);
    for (who, may) in [("web only", [true, false, false]), ("reader", [true; 3]), ("expired", [false; 3]), ("stranger", [false; 3])]
    {
        for (job, may) in [&web, &api, &deploy].into_iter().zip(may) {
            assert_eq!(follows(&person(who).0, job).await, may, "{who}: {job} of {web} {api} {deploy}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_admin_lets_others_in_and_nobody_locks_the_owner_out() {
    let (world, desk) = shared().await;
    let (new, line) = person("new");
    let files = [(".authorized_keys", line.as_str())];
    let commit = world.commit("app", &files);
    let pushed = world.pushed(&person("plain").0, "app", &commit, "deploy").await.unwrap();
    assert!(pushed.notes.iter().any(|note| note.contains("none of an admin")), "{:?}", pushed.notes);
    world.follow(&pushed.job).await;
    assert_eq!(desk.run(Some(&new), "restart web").await.code, 3);
    let commit = world.commit("app", &[]);
    let pushed = world.pushed(&person("admin").0, "app", &commit, "deploy").await.unwrap();
    assert!(pushed.notes.iter().any(|note| note.contains("no longer")), "{:?}", pushed.notes);
    world.follow(&pushed.job).await;
    assert_eq!(desk.run(Some(&new), "restart web").await.code, 0);
    assert_eq!(desk.run(Some(&person("admin").0), "restart web").await.code, 3);
    assert_eq!(desk.run(Some(&ann()), "repo visibility app public").await.code, 0);
    assert_eq!(desk.run(Some(&person("admin").0), "restart web").await.code, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_is_renamed_and_deleted_and_the_next_of_its_name_is_empty() {
    let world = World::new().await;
    let desk = Desk::new(&world).await;
    world.create(&ann(), "app").await.unwrap();
    world.commit("app", &[("secret", "ann's\n")]);
    let run = async |line: &str| desk.run(Some(&ann()), line).await;
    assert_eq!(run("repo rename app ../x").await.code, 2);
    assert_eq!(run("repo rename app our-app").await.code, 0);
    assert!(!world.bare("app").exists() && world.bare("our-app").join("HEAD").exists());
    assert!(run("repo list").await.out.contains("our-app"));
    let said = run("repo delete our-app").await;
    assert!(said.code == 2 && said.err.contains("repo delete our-app our-app"), "{said:?}");
    assert_eq!(run("repo delete our-app our-ap").await.code, 2);
    assert_eq!(run("repo delete our-app our-app").await.code, 0);
    assert!(!world.bare("our-app").exists());
    // What a crash has left is not for the next owner of a name.
    std::fs::create_dir_all(world.bare("app").join("objects")).unwrap();
    world.create(&bob(), "app").await.unwrap();
    assert!(!world.bare("app").join("objects/secret").exists() && world.bare("app").join("HEAD").exists());
    assert_eq!(run("repo delete app app").await.code, 4);
    // Nor is what was written down of it: whoever takes the name sees what comes from then on.
    assert_eq!(run("repo list").await.code, 0);
    world.create(&ann(), "other").await.unwrap();
    assert_eq!(desk.run(Some(&bob()), "repo visibility app private").await.code, 0);
    assert_eq!(desk.run(Some(&bob()), "repo delete app app").await.code, 0);
    assert_eq!(run("repo rename other app").await.code, 0);
    let told = run("audit").await.out;
    assert!(told.contains("repo rename other app") && !told.contains(bob().as_str()), "{told}");
    assert!(!told.contains("app private"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_act_is_in_the_log_and_each_sees_their_own() {
    let (mut world, desk) = shared().await;
    let code = world.invite(1).await;
    let plain: KeyId = person("plain").0;
    for (who, line) in [(&plain, "restart web"), (&plain, "repo delete app app"), (&bob(), "restart web")] {
        desk.run(Some(who), line).await;
    }
    let said = desk.run(Some(&ann()), "audit").await;
    for part in
        ["create app", "plant silo:app", "push app refs/heads/main", "repo visibility app private", "192.0.2.7", plain.as_str()]
    {
        assert!(said.out.contains(part), "{part}: {}", said.out);
    }
    assert!(said.out.contains("ok: job") || said.out.contains("ok: "), "{}", said.out);
    assert!(said.out.contains("repo delete app") && said.out.contains("denied:"), "{}", said.out);
    assert!(!said.out.contains(bob().as_str()), "{}", said.out);
    let said = desk.run(Some(&bob()), "audit --since 1h --lines 5").await;
    assert!(
        said.out.contains("not found") && !said.out.contains("plant silo") && !said.out.contains(ann().as_str()),
        "{}",
        said.out
    );
    let all = desk.run(None, "audit --lines 1000").await.out;
    assert!(all.contains("invite new") && all.contains(&code[..6]) && !all.contains(&code[..7]), "{all}");
    // It goes on after a restart, in one chain.
    world.kill_agent().await;
    let desk = Desk::new(&world).await;
    desk.run(Some(&plain), "restart web").await;
    let checked = desk.run(None, "audit --verify").await;
    assert!(checked.code == 0 && checked.out.contains("each follows the one before"), "{checked:?}");
    let path = std::fs::read_dir(world.audit()).unwrap().next().unwrap().unwrap().path();
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("denied:", "ok    :", 1)).unwrap();
    let checked = desk.run(None, "audit --verify").await;
    assert!(checked.code == 1 && checked.err.contains("was changed"), "{checked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn invites_remember_who_used_them_and_guessing_is_slowed_down() {
    let world = World::new().await;
    let desk = Desk::new(&world).await;
    world.table.set("web", "one", json!({}));
    world.create(&ann(), "app").await.unwrap();
    world.commit("app", &[]);
    let code = desk.run(None, "invite new --note for-ann").await.out.lines().next().unwrap().to_owned();
    for n in 0..5 {
        let said = desk.run(Some(&ann()), &format!("plant silo:app wrong{n}")).await;
        assert!(said.code == 4 && said.err.contains("not valid"), "{said:?}");
    }
    let said = desk.run(Some(&ann()), &format!("plant silo:app {code}")).await;
    assert!(said.code == 4 && said.err.contains("too many wrong invite codes"), "{said:?}");
    // The operator needs no code, and is not slowed down.
    let listed = desk.run(None, "invite list").await.out;
    assert!(listed.contains(&code[..6]) && listed.contains("for-ann") && listed.contains("usable"), "{listed}");
    // Another key, behind the same address, still may.
    world.create(&bob(), "bobs").await.unwrap();
    world.commit("bobs", &[]);
    assert_eq!(desk.run(Some(&bob()), &format!("plant silo:bobs {code}")).await.code, 0);
    assert!(!desk.run(None, "invite list").await.out.contains(&code[..6]));
    let listed = desk.run(None, "invite list --all").await.out;
    let used = format!("{} from 192.0.2.7 for silo:bobs", bob());
    assert!(listed.contains("used") && listed.contains(&used) && !listed.contains(&code), "{listed}");
    assert_eq!(desk.run(None, &format!("invite revoke {}", &code[..6])).await.code, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_has_as_many_uses_and_as_long_a_life_as_its_maker_says() {
    let world = World::new().await;
    let desk = Desk::new(&world).await;
    world.table.set("web", "one", json!({}));
    let new = async |line: &str| desk.run(None, line).await.out.lines().next().unwrap().to_owned();
    let two = new("invite new --uses 2").await;
    for (name, code) in [("a", 0), ("b", 0), ("c", 4)] {
        world.create(&ann(), name).await.unwrap();
        world.commit(name, &[]);
        let said = desk.run(Some(&ann()), &format!("plant silo:{name} {two}")).await;
        assert_eq!(said.code, code, "{name}: {said:?}");
    }
    let short = new("invite new --expires 1s").await;
    let long = new("invite new --expires 1h").await;
    tokio::time::sleep(std::time::Duration::from_millis(2100)).await;
    let listed = desk.run(None, "invite list --all").await.out;
    let line = |code: &str| listed.lines().find(|line| line.starts_with(&code[..6])).unwrap().to_owned();
    assert!(line(&short).contains("expired") && line(&long).contains("usable") && line(&two).contains("used"), "{listed}");
    assert_eq!(desk.run(Some(&ann()), &format!("plant silo:c {short}")).await.code, 4);
    assert_eq!(desk.run(Some(&ann()), &format!("plant silo:c {long}")).await.code, 0);
    for line in ["invite new --uses 0", "invite new --uses x", "invite new --expires soon", "invite new --expires -1s"] {
        assert_eq!(desk.run(None, line).await.code, 2, "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_quota_is_refused_before_anything_is_stopped() {
    let world = World::new().await;
    let desk = Desk::new(&world).await;
    world.table.set("web", "one", json!({ "size": "s", "storage": { "data": { "size": "64Mi", "mountPoint": "/data" } } }));
    world.planted("app").await;
    assert_eq!(desk.run(None, "quota set app instances=2 memory=2Gi volumes=100Mi").await.code, 0);
    let before = (world.sim.boots(&id("app", "web")), world.sim.running(&id("app", "web")));
    // The kernel is told, and nothing is restarted for it.
    let slice = seed::render::slice(&id("app", "web").namespace);
    world.until("the slice to follow", |world| world.sim.look().slices[&slice].memory == (2 << 30) + (2 << 30)).await;
    let calls = [
        (json!({ "size": "m" }), vec!["3Gi of memory, where it may have 2Gi", "web would fit"]),
        (
            json!({ "storage": { "data": { "size": "64Mi", "mountPoint": "/data" } } }),
            vec!["128Mi of volumes, where it may have 100Mi"],
        ),
    ];
    for (meta, expected) in calls {
        world.table.set("api", "two", meta);
        // web would be restarted, too.
        world.table.set("web", "changed", json!({ "size": "s", "storage": { "data": { "size": "64Mi", "mountPoint": "/data" } } }));
        let (outcome, said) = world.push("app").await;
        assert_eq!(outcome, Outcome::Failed);
        assert!(expected.iter().all(|part| said.contains(part)), "{said}");
        assert_eq!((world.sim.boots(&id("app", "web")), world.sim.running(&id("app", "web"))), before);
    }
    // A volume that is dropped is kept, and counts.
    world.table.remove("api");
    world.table.set("web", "changed", json!({ "size": "s", "storage": { "other": { "size": "64Mi", "mountPoint": "/data" } } }));
    let (outcome, said) = world.push("app").await;
    assert!(outcome == Outcome::Failed && said.contains("128Mi of volumes"), "{said}");
    assert_eq!(desk.run(None, "quota set app volumes=128Mi").await.code, 0);
    assert_eq!(world.push("app").await.0, Outcome::Done);
    let shown = desk.run(Some(&ann()), "quota").await.out;
    assert!(shown.contains("memory      1Gi    2Gi") && shown.contains("volumes     128Mi  128Mi"), "{shown}");
    assert_eq!(desk.run(None, "quota set app default").await.code, 0);
    assert!(!desk.run(Some(&ann()), "quota app").await.out.contains("set by the operator"));
    for line in ["quota set app", "quota set app cpu=1", "quota set app memory=1", "quota set nothing memory=1Gi"] {
        assert!(matches!(desk.run(None, line).await.code, 2 | 3), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_at_once_and_the_bytes_of_a_repository_have_their_ends() {
    let world = World::new().await;
    let desk = Desk::new(&world).await;
    world.table.set("web", "one", json!({}));
    world.planted("app").await;
    assert_eq!(desk.run(None, "quota set app builds=1").await.code, 0);
    world.table.pause(std::time::Duration::from_millis(300));
    let commit = world.commit("app", &[]);
    let first = world.pushed(&ann(), "app", &commit, "plan").await.unwrap();
    let Err(Refusal::Denied(text)) = world.pushed(&ann(), "app", &commit, "plan").await else { panic!("two plans at once") };
    assert!(text.contains("may have 1 at once"), "{text}");
    // A deploy waits for it, and then goes on by itself.
    let deploy = world.pushed(&ann(), "app", &commit, "deploy").await.unwrap();
    assert_eq!(world.table.evaluations(), 1);
    assert_eq!(world.follow(&first.job).await.0, Outcome::Done);
    assert_eq!(world.follow(&deploy.job).await.0, Outcome::Done);
    world.table.pause(std::time::Duration::ZERO);

    let open = || Request::OpenRepository { who: ann().to_string(), name: "app".into(), access: "write".into() };
    assert_eq!(desk.run(None, "quota set app repository=2Mi").await.code, 0);
    let opened: Value = serde_json::from_str(&world.text(open()).await.unwrap()).unwrap();
    assert!((1..2 << 20).contains(&opened["room"].as_u64().unwrap()), "{opened}");
    std::fs::write(world.bare("app").join("large"), vec![1; 2 << 20]).unwrap();
    let Err(Refusal::Denied(text)) = world.text(open()).await else { panic!("no end") };
    assert!(text.contains("may take 2Mi"), "{text}");
    let report = world.text(Request::Access(Question::Quota { who: ann().to_string(), filter: String::new() })).await.unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    assert!(report["namespaces"][0]["used"]["repository"].as_u64().unwrap() > 2 << 20, "{report}");
}
