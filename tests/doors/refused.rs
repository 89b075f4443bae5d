//! A push that is not taken: one clear reason, and nothing has changed.

use seed::spec::quantity::Bytes;

use crate::support::World;

#[tokio::test(flavor = "multi_thread")]
async fn another_ones_repository() {
    let world = World::new().await;
    world.project("p").await;
    world.git("ann", "p", &["push", "silo", "main"]).await.ok();
    let before = world.at("my-app", "refs/heads/main").await;
    world.commit("p", "evil", b"x").await;
    let ran = world.git("bob", "p", &["push", "silo", "main"]).await;
    assert_ne!(ran.code, 0);
    ran.err_has(&format!("fatal: remote error: your key {} may not push to my-app", world.key_id("bob").await));
    assert_eq!(world.at("my-app", "refs/heads/main").await, before);
    assert_eq!(world.agent.told().pushes.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_a_repository_may_grow_by() {
    let world = World::new().await;
    world.project("p").await;
    world.git("ann", "p", &["push", "silo", "main"]).await.ok();
    let before = world.at("my-app", "refs/heads/main").await;
    world.agent.told().room = Some(100_000);
    let noise: Vec<u8> = (0..300_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8 ^ (n >> 7) as u8).collect();
    world.commit("p", "large", &noise).await;
    let ran = world.git("ann", "p", &["push", "silo", "main"]).await;
    assert_ne!(ran.code, 0);
    ran.err_has("all that my-app may still grow by").err_has("quota my-app");
    assert_eq!(world.at("my-app", "refs/heads/main").await, before);
    world.commit("p", "small", b"x").await;
    world.git("ann", "p", &["reset", "-q", "--hard", "HEAD~2"]).await.ok();
    world.commit("p", "small", b"x").await;
    world.git("ann", "p", &["push", "silo", "main"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_that_are_no_repository_names() {
    let world = World::new().await;
    world.project("p").await;
    for path in ["../../etc", "-x", "My-App", "a/b", "x..y", "x.lock", "~root/x"] {
        let ran = world.git("ann", "p", &["push", &world.url(path), "main"]).await;
        assert_ne!(ran.code, 0, "{path}");
        ran.err_has("is no repository here");
        assert!(ran.err.contains("may") || ran.err.contains("must"), "says the rule: {ran:?}");
    }
    assert!(std::fs::read_dir(world.path("repos")).unwrap().next().is_none(), "nothing was made");
    let ran = world.git("ann", "p", &["clone", &world.url("nothing")]).await;
    ran.err_has("fatal: remote error: there is no repository nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn refs_that_could_be_taken_for_something_else() {
    let world = World::new().await;
    world.project("p").await;
    for reference in ["refs/heads/-x", "refs/heads/a/-b", "refs/notes/x", "refs/heads/a$b", "refs/seed/x", "refs/heads/ä"] {
        let refspec = format!("HEAD:{reference}");
        let ran = world.git("ann", "p", &["push", "silo", &refspec, "HEAD:refs/heads/good"]).await;
        assert_ne!(ran.code, 0, "{ran:#?}");
        let short = reference.strip_prefix("refs/heads/").unwrap_or(reference);
        if reference.is_ascii() {
            ran.err_has("[remote rejected]").err_has(short).err_has("another ref of this push was refused");
        } else {
            ran.err_has("may have only letters");
        }
        assert_eq!(world.at("my-app", "refs/heads/good").await, None);
    }
    assert!(world.agent.told().pushes.is_empty());
    assert_eq!(world.left_over("my-app"), Vec::<std::path::PathBuf>::new());
    world.git("ann", "p", &["push", "silo", "HEAD:refs/heads/good", "HEAD:refs/tags/v1.0"]).await.ok();
    assert_eq!(world.agent.told().pushes.len(), 1, "tags are kept, not deployed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_ref_is_refused_before_its_pack_is_kept_and_large_packs_are_drained() {
    let world = World::new().await;
    world.project("p").await;
    let mut noise = vec![0_u8; 20 << 20];
    let mut state = 1_u64;
    for byte in &mut noise {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        *byte = (state >> 56) as u8;
    }
    world.commit("p", "noise", &noise).await;
    let ran = world.git("ann", "p", &["push", "silo", "HEAD:refs/heads/-x"]).await;
    assert_eq!(ran.code, 1);
    ran.err_has("[remote rejected] HEAD -> -x");
    assert!(!ran.err.contains("hung up") && !ran.err.contains("signal"), "{ran:#?}");
    assert!(!world.repository("my-app").join("objects/pack").read_dir().is_ok_and(|mut packs| packs.next().is_some()));
}

#[tokio::test(flavor = "multi_thread")]
async fn push_options_that_are_not_known() {
    let world = World::new().await;
    world.project("p").await;
    for (options, why) in [
        (&["-o", "asnyc"][..], "unknown push option \"asnyc\": there are plan and async"),
        (&["-o", "plan", "-o", "async"], "exclude each other"),
    ] {
        let ran = world.git("ann", "p", &[&["push"], options, &["silo", "main"]].concat()).await;
        assert_eq!(ran.code, 1);
        ran.err_has("[remote rejected]").err_has(why);
    }
    assert_eq!(world.at("my-app", "refs/heads/main").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_branch_stays_and_others_may_go() {
    let world = World::new().await;
    world.project("p").await;
    world.git("ann", "p", &["push", "silo", "main", "main:other"]).await.ok();
    let ran = world.git("ann", "p", &["push", "silo", ":main"]).await;
    assert_eq!(ran.code, 1);
    ran.err_has("main is the default branch, which is deployed: it cannot be deleted");
    world.git("ann", "p", &["push", "silo", ":other"]).await.ok().err_has("received  other deleted");
    assert!(world.at("my-app", "refs/heads/main").await.is_some());
    assert!(world.at("my-app", "refs/heads/other").await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_is_too_large_names_the_limit() {
    let world = World::with(|settings| settings.max_pack = Bytes(1 << 20)).await;
    world.project("p").await;
    world.git("ann", "p", &["push", "silo", "main"]).await.ok();
    let mut noise = vec![0_u8; 3 << 20];
    let mut state = 1_u64;
    for byte in &mut noise {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        *byte = (state >> 56) as u8;
    }
    world.commit("p", "noise", &noise).await;
    let ran = world.git("ann", "p", &["push", "silo", "main"]).await;
    assert_ne!(ran.code, 0);
    ran.err_has("this push is larger than 1Mi, the most that this host takes at once");
    assert_eq!(world.left_over("my-app"), Vec::<std::path::PathBuf>::new());
    assert_eq!(world.agent.told().pushes.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_are_not_sound() {
    let world = World::new().await;
    world.project("p").await;
    // A tree with an entry `.git`, which would be written over a clone's own.
    let blob = world.git("ann", "p", &["hash-object", "-w", "flake.nix"]).await.ok().out.trim().to_owned();
    std::fs::write(world.path("tree"), format!("100644 blob {blob}\t.git\n")).unwrap();
    let tree = world.path("tree").display().to_string();
    let mut command = world.git_command("ann", "p", &["mktree"]);
    let output = command.stdin(std::fs::File::open(tree).unwrap()).output().await.unwrap();
    let tree = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let commit = world.git("ann", "p", &["commit-tree", "-m", "x", &tree]).await.ok().out.trim().to_owned();
    let ran = world.git("ann", "p", &["push", "silo", &format!("{commit}:refs/heads/main")]).await;
    assert_ne!(ran.code, 0);
    ran.err_has("hasDotgit");
    assert!(world.agent.told().pushes.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_could_fill_the_disk() {
    let world = World::with(|settings| settings.max_pack = Bytes(1 << 60)).await;
    world.project("p").await;
    let ran = world.git("ann", "p", &["push", "silo", "main"]).await;
    assert_ne!(ran.code, 0);
    ran.err_has("fatal: remote error: this host has no room left for a push");
    assert!(std::fs::read_dir(world.path("repos")).unwrap().next().is_none(), "nothing was made");
}
