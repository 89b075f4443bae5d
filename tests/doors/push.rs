//! A push that is taken: what is kept, what the agent hears, what the pusher sees.

use std::{process::Stdio, time::Duration};

use seed::bus::{Level, Outcome, Stage};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::support::{World, run, until, word};

const ZERO: &str = "0000000000000000000000000000000000000000";

#[tokio::test(flavor = "multi_thread")]
async fn the_first_push_makes_a_repository_and_says_how_to_plant_it() {
    let world = World::new().await;
    world.project("p").await;
    world.git("ann", "p", &["branch", "-m", "master"]).await.ok();
    world.agent.told().notes = vec!["not planted: plant silo:my-app CODE".into(), "line 1 is no key".into()];
    let ran = world.git("ann", "p", &["push", "silo", "master"]).await.ok();
    let head = world.at("my-app", "refs/heads/master").await.unwrap();
    ran.err_has(&format!("received  master at {}", &head[..10]));
    ran.err_has("my-app is a new repository").err_has("Anyone can read it");
    ran.err_has("line 1 is no key");
    assert!(!ran.err.contains("not planted: plant"), "told once");
    ran.err_has(&format!("ssh -p {} seed.example plant silo:my-app CODE", world.port));
    assert_eq!(world.agent.told().pushes, [format!("my-app refs/heads/master {ZERO} {head} deploy")]);
    // The first branch is the default one, so a stranger's clone checks it out.
    assert_eq!(world.at("my-app", "HEAD").await.as_ref(), Some(&head));
    world.git("bob", "", &["clone", "-q", &world.url("my-app.git"), "copy"]).await.ok();
    assert!(world.path("copy/flake.nix").exists());
    assert_eq!(world.left_over("my-app"), Vec::<std::path::PathBuf>::new());
    // Everything of a push is in one pack.
    let packs = std::fs::read_dir(world.repository("my-app").join("objects/pack")).unwrap().count();
    assert!(packs >= 2, "a pack and its index");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stages_of_a_deploy_are_told_under_the_push() {
    let world = World::new().await;
    world.project("p").await;
    world.agent.told().planted.push("my-app".into());
    let mut script = vec![
        word(Stage::Eval, Level::Info, "evaluated: api, web", None),
        word(Stage::Build, Level::Info, "building web", None),
        word(Stage::Build, Level::Detail, "\x1b[31mcompiling\x1b[0m", None),
        word(Stage::Plan, Level::Info, "web: start (new)\napi: keep", None),
        word(Stage::Boot, Level::Info, "web: multi-user.target", None),
        word(Stage::Run, Level::Info, "web runs at web.s-x.seed.example", Some(Outcome::Done)),
    ];
    for (index, word) in script.iter_mut().enumerate() {
        word.at += 1500 * index as u64;
    }
    world.agent.told().script = script.into_iter().map(|word| (Duration::from_millis(20), word)).collect();
    let ran = world.git("ann", "p", &["push", "silo", "main"]).await.ok();
    let lines = ran.remote();
    let from = lines.iter().position(|line| line.contains("evaluated")).unwrap();
    assert_eq!(
        lines[from..],
        [
            "   0.0 s  eval   evaluated: api, web",
            "   1.5 s  build  building web",
            "                 | compiling",
            "   4.5 s  plan   web: start (new)",
            "                 api: keep",
            "   6.0 s  boot   web: multi-user.target",
            "   7.5 s  run    web runs at web.s-x.seed.example",
            "   7.5 s  done",
        ]
    );
    assert!(!ran.err.contains("plant silo:"), "it is planted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_that_fails_keeps_the_push_and_says_what_went_wrong() {
    let world = World::new().await;
    world.project("p").await;
    world.agent.told().planted.push("my-app".into());
    world.agent.told().script =
        vec![(Duration::ZERO, word(Stage::Eval, Level::Error, "the flake has no `seeds`\nadd them", Some(Outcome::Failed)))];
    let ran = world.git("ann", "p", &["push", "silo", "main"]).await.ok();
    ran.err_has("remote: error: the flake has no `seeds`")
        .err_has("remote:        add them")
        .err_has("The push was accepted and is kept");
    assert!(world.at("my-app", "refs/heads/main").await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn push_options_choose_what_happens() {
    let world = World::new().await;
    world.project("p").await;
    world.agent.told().planted.push("my-app".into());
    world.agent.told().script = vec![(Duration::from_secs(30), word(Stage::Run, Level::Info, "late", Some(Outcome::Done)))];
    let ran = world.git("ann", "p", &["push", "-o", "async", "silo", "main"]).await.ok();
    ran.err_has("Deploying in the background");
    assert!(!ran.err.contains("late"));
    world.agent.told().script = vec![(Duration::ZERO, word(Stage::Plan, Level::Info, "web: start", Some(Outcome::Done)))];
    world.commit("p", "b", b"b").await;
    world.git("ann", "p", &["push", "-o", "plan", "silo", "main"]).await.ok().err_has("plan   web: start");
    let modes: Vec<String> = world.agent.told().pushes.iter().map(|push| push.rsplit(' ').next().unwrap().to_owned()).collect();
    assert_eq!(modes, ["deploy", "plan"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn push_options_reach_no_shell_and_those_that_are_none_are_refused() {
    let world = World::new().await;
    world.project("p").await;
    world.agent.told().planted.push("my-app".into());
    let evil = world.path("evil").display().to_string();
    let touch = format!("touch {evil}");
    for (n, mark) in
        [";", "|", "&", "`", "$(", "\"", "'", "\\", ">", "\x1b[2J", "--upload-pack=", "-c core.pager="].iter().enumerate()
    {
        world.commit("p", "b", n.to_string().as_bytes()).await;
        for option in [format!("plan{mark}{touch}"), format!("{mark}{touch}{mark}"), format!("mode={mark}{touch})")] {
            let ran = world.git("ann", "p", &["push", "-o", &option, "silo", "main"]).await;
            assert_ne!(ran.code, 0, "{option}: {ran:?}");
            ran.err_has("push option");
            assert!(!ran.err.contains('\x1b'), "{ran:?}");
        }
    }
    assert!(world.agent.told().pushes.is_empty() && !std::path::Path::new(&evil).exists());
    world.git("ann", "p", &["push", "silo", "main"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn hanging_up_stops_no_deploy() {
    let world = World::new().await;
    world.project("p").await;
    world.agent.told().planted.push("my-app".into());
    world.agent.told().script = vec![
        (Duration::ZERO, word(Stage::Build, Level::Info, "building", None)),
        (Duration::from_millis(500), word(Stage::Build, Level::Info, "still building", None)),
        (Duration::from_millis(500), word(Stage::Run, Level::Info, "running", Some(Outcome::Done))),
    ];
    // In a process group of its own, so that its ssh is killed with it.
    let mut push =
        world.git_command("ann", "p", &["push", "silo", "main"]).stderr(Stdio::piped()).process_group(0).spawn().unwrap();
    let mut lines = BufReader::new(push.stderr.take().unwrap()).lines();
    while !lines.next_line().await.unwrap().unwrap().contains("building") {}
    let group = nix::unistd::Pid::from_raw(push.id().unwrap().try_into().unwrap());
    nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL).unwrap();
    push.wait().await.unwrap();
    // The follower leaves, and that is all: the agent was told of the push before.
    until("the follower to leave", || world.agent.told().left == 1).await;
    assert_eq!(world.agent.told().pushes.len(), 1);
    world.git("ann", "p", &["push", "silo", "main"]).await.ok().err_has("Everything up-to-date");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanishes_in_its_pack_leaves_nothing() {
    let world = World::new().await;
    world.project("p").await;
    world.git("ann", "p", &["push", "silo", "main"]).await.ok();
    let before = world.at("my-app", "refs/heads/main").await.unwrap();
    let mut client = world
        .ssh_command("ann", &["git-receive-pack", "'my-app'"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut to = client.stdin.take().unwrap();
    let update = format!("{before} {} refs/heads/main\0report-status side-band-64k", "1".repeat(40));
    to.write_all(format!("{:04x}{update}0000", update.len() + 4).as_bytes()).await.unwrap();
    // The head of a pack of a thousand objects, and the beginning of the first.
    to.write_all(b"PACK\0\0\0\x02\0\0\x03\xe8\xb5\x0f").await.unwrap();
    to.write_all(&[0x78; 2000]).await.unwrap();
    to.flush().await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    client.kill().await.unwrap();
    until("git to clean up", || world.left_over("my-app").is_empty()).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(world.left_over("my-app"), Vec::<std::path::PathBuf>::new());
    assert_eq!(world.at("my-app", "refs/heads/main").await, Some(before));
    assert_eq!(world.agent.told().pushes.len(), 1);
    world.commit("p", "c", b"c").await;
    world.git("ann", "p", &["push", "silo", "main"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_bridged() {
    let world = World::new().await;
    world.project("p").await;
    world.agent.told().planted.push("my-app".into());
    world.agent.told().script = vec![(Duration::from_secs(11), word(Stage::Run, Level::Info, "at last", Some(Outcome::Done)))];
    let mut push = world.git_command("ann", "p", &["push", "silo", "main"]);
    let ran = run(push.env("GIT_TRACE_PACKET", "1")).await.ok();
    // The report comes before the wait, signs of life during it.
    let report = ran.err.find("unpack ok").unwrap();
    assert!(ran.err[report..].contains("at last") && ran.err[report..].matches("sideband< \\1").count() >= 2, "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_restarts_is_waited_for() {
    let world = World::new().await;
    world.project("p").await;
    world.agent.told().push_away = 3;
    world.git("ann", "p", &["push", "silo", "main"]).await.ok().err_has("received  main");
    assert_eq!(world.agent.told().pushes.len(), 1);
}

async fn push(world: &World, project: &str, refspec: &str) -> crate::support::Ran {
    world.git("ann", project, &["push", "silo", refspec]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_at_the_same_time_do_not_harm_each_other() {
    let world = World::new().await;
    world.project("p").await;
    // Both may be the first push, which makes the repository.
    let branches: Vec<String> = (0..6).map(|n| format!("HEAD:refs/heads/b{n}")).collect();
    let pushes: Vec<_> = branches.iter().map(|branch| push(&world, "p", branch)).map(Box::pin).collect();
    for ran in futures_util::future::join_all(pushes).await {
        ran.ok();
    }
    assert_eq!(world.agent.told().pushes.len(), 6);
    // Two that want different things of one branch: one wins, the other is told.
    let clones = ["x", "y"];
    for name in clones {
        world.git("ann", "", &["clone", "-q", "-b", "b0", "-o", "silo", &world.url("my-app"), name]).await.ok();
        world.commit(name, name, name.as_bytes()).await;
    }
    let pushes: Vec<_> = clones.iter().map(|name| push(&world, name, "b0")).map(Box::pin).collect();
    let mut codes: Vec<i32> = futures_util::future::join_all(pushes).await.iter().map(|ran| ran.code).collect();
    codes.sort_unstable();
    assert_eq!(codes, [0, 1]);
    assert_eq!(world.agent.told().pushes.len(), 7);
    let path = world.repository("my-app");
    run(tokio::process::Command::new("git").arg("--git-dir").arg(path).args(["fsck", "--strict"])).await.ok();
    assert_eq!(world.left_over("my-app"), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn old_and_new_protocols_read_and_archives_are_made() {
    let world = World::new().await;
    world.project("p").await;
    world.git("ann", "p", &["push", "silo", "main"]).await.ok();
    for version in ["0", "1", "2"] {
        let version = format!("protocol.version={version}");
        world.git("bob", "", &["-c", &version, "ls-remote", &world.url("my-app")]).await.ok().out_has("refs/heads/main");
    }
    let ran = world.git("bob", "", &["archive", "--remote", &world.url("my-app"), "-o", "a.tar", "main"]).await.ok();
    assert!(std::fs::metadata(world.path("a.tar")).unwrap().len() > 1000, "{ran:?}");
    world.git("bob", "", &["clone", "-q", "--depth=1", "--filter=blob:none", &world.url("my-app"), "shallow"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_push_left_is_swept_at_the_next_start() {
    let world = World::with(|settings| {
        for left in [".new-x-1-1/refs", "old.git/objects/tmp_objdir-incoming-abc/pack", "old.git/objects/12"] {
            std::fs::create_dir_all(settings.repositories.join(left)).unwrap();
        }
    })
    .await;
    world.ssh("ann", &["whoami"]).await.ok();
    assert_eq!(world.left_over("old"), Vec::<std::path::PathBuf>::new());
    assert!(world.repository("old").join("objects/12").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doors_close_only_when_the_agent_has_heard_of_a_push() {
    let mut world = World::new().await;
    world.project("p").await;
    world.agent.told().push_away = 4;
    let mut push =
        world.git_command("ann", "p", &["push", "silo", "main"]).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    let moved = world.repository("my-app").join("refs/heads/main");
    until("the ref to move", || moved.exists()).await;
    until("the first try", || world.agent.told().push_away < 4).await;
    world.close_doors().await;
    assert_eq!(world.agent.told().pushes.len(), 1);
    push.wait().await.unwrap();
}

/// How many pushes into my-app the agent has not answered, by its journal.
fn marks(world: &World) -> usize {
    let entries = std::fs::read_dir(world.repository("my-app")).unwrap().flatten();
    let journal = entries.map(|entry| entry.path()).find(|path| path.file_name().unwrap().to_string_lossy().starts_with("pushes-"));
    let bytes = journal.map(|path| std::fs::read(path).unwrap()).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.matches(r#""who":"SHA256:"#).count() - text.matches(r#""is":"heard""#).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_hears_of_a_push_even_if_the_doors_fell_before_it_could_be_told() {
    let mut world = World::with(|settings| settings.stop_timeout = Duration::from_millis(300)).await;
    world.project("p").await;
    world.git("ann", "p", &["push", "silo", "main"]).await.ok();
    world.commit("p", "second", b"2").await;
    world.agent.told().push_away = 1_000_000;
    let mut push =
        world.git_command("ann", "p", &["push", "silo", "main"]).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    until("the first try", || world.agent.told().push_away < 1_000_000).await;
    world.close_doors().await;
    push.wait().await.unwrap();
    assert_eq!(marks(&world), 1);
    // The old doors live on in this process, as no real ones do, and go on trying; what the new ones tell has no old commit.
    world.agent.told().push_away = 0;
    world.open_doors().await;
    let head = world.at("my-app", "refs/heads/main").await.unwrap();
    let expected = format!("my-app refs/heads/main {ZERO} {head} deploy");
    until("the agent to be told", || world.agent.told().pushes.contains(&expected)).await;
    until("the mark to go", || marks(&world) == 0).await;
    world.commit("p", "x", b"x").await;
    let url = world.url("my-app");
    world.git("ann", "p", &["push", "-o", "async", &url, "main"]).await.ok();
    until("the mark to go", || marks(&world) == 0).await;
    world.commit("p", "y", b"y").await;
    assert_ne!(world.git("ann", "p", &["push", &url, "main:refs/tags/-x"]).await.code, 0);
    assert_eq!(marks(&world), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_older_than_the_doors_is_told_in_its_own_way() {
    let world = World::new().await;
    world.agent.told().older = true;
    world.project("p").await;
    world.commit("p", "file", b"text").await;
    world.git("ann", "p", &["push", "silo", "main"]).await.ok();
    let told = world.agent.told();
    assert_eq!((told.pushes.len(), told.read.len()), (1, 0), "{:?}", told.pushes);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_hears_of_pushes_in_their_order_also_if_it_was_away() {
    let world = World::new().await;
    world.project("p").await;
    world.git("ann", "p", &["push", "silo", "main"]).await.ok();
    let head = async |world: &World| world.git("ann", "p", &["rev-parse", "HEAD"]).await.ok().out.trim().to_owned();
    let told = || world.agent.told().pushes.iter().map(|push| push.split(' ').nth(3).unwrap().to_owned()).collect::<Vec<_>>();
    let mut pushed = told();
    for round in 0..3 {
        world.agent.told().push_away = 5;
        world.commit("p", "file", format!("first {round}").as_bytes()).await;
        pushed.push(head(&world).await);
        let second = async {
            until("the first push is on its way", || world.agent.told().push_away < 5).await;
            world.commit("p", "file", format!("second {round}").as_bytes()).await;
            let head = head(&world).await;
            world.git("ann", "p", &["push", "silo", "main"]).await.ok();
            head
        };
        let (first, head) = tokio::join!(world.git("ann", "p", &["push", "silo", "main"]), second);
        first.ok();
        pushed.push(head);
        assert_eq!(told(), pushed);
    }
}
