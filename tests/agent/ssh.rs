//! Each kind of key against each verb, and two tenants against each other: a real OpenSSH client, the real doors, the real agent. The
//! machine is made of memory: its guests hang up, so that who was let in is told that.

use std::{net::SocketAddr, path::PathBuf, process::Stdio, time::Duration};

use seed::{
    bus::Outcome,
    serve::{Settings, Sockets, dns, run_until, shell},
    spec::name::KeyId,
};
use serde_json::json;
use tokio::{net::TcpListener, process::Command, task::JoinHandle};

use crate::{
    desk::{Desk, Said},
    world::{World, id},
};

/// Kinds of keys, in the order of the table.
const ROLES: [&str; 7] = ["owner", "admin", "plain", "reader", "web-only", "expired", "stranger"];
const ALL: &str = "0 0 0 0 0 0 0";
const NONE: &str = "4 4 4 4 4 4 4";
/// Who may change how web runs.
const ACT: &str = "0 0 0 4 0 3 3";
/// Who may get into web, and is told that it has hung up.
const ENTER: &str = "1 1 1 4 1 3 3";
/// Who decides about the repository, and is told why it cannot be now.
const DECIDE: &str = "2 2 4 4 3 3 3";
const TAKE_AWAY: &str = "2 2 4 4 4 3 3";

/// What is tried of a verb, and each role's exit code: 0 done, 1 failed, 2 not as it is, 3 there is no such thing for you, 4 denied.
fn rows(verb: &str) -> &'static [(&'static str, &'static str)] {
    match verb {
        "status" => &[("status", ALL), ("status app", "0 0 0 0 0 3 3")],
        "logs" => &[("logs web", "0 0 0 0 0 3 3"), ("logs api", "0 0 0 0 3 3 3"), ("logs web --build", "0 0 0 0 4 3 3")],
        "restart" => &[("restart web", ACT), ("restart api", "0 0 0 4 3 3 3")],
        "exec" => &[("exec web -- true", ENTER), ("exec api -- true", "1 1 1 4 3 3 3")],
        "shell" => &[("shell web", ENTER)],
        "cp" => &[("cp", "2 2 2 2 2 2 2"), ("cp --help", ALL), ("scp -t web:/tmp", ENTER), ("scp -f web:/etc/passwd", ENTER)],
        "forward" => &[("forward web 80", ENTER)],
        "stop" => &[("stop web", ACT)],
        "start" => &[("start web", ACT)],
        "deploy" => &[("deploy app", "0 0 0 4 3 3 3")],
        "deploys" => &[("deploys app", "0 0 0 0 0 3 3")],
        // There is nothing before it to go back to.
        "rollback" => &[("rollback web", "3 3 3 4 3 3 3"), ("rollback api", "3 3 3 4 3 3 3")],
        "pin" => &[("pin web", ACT)],
        "unpin" => &[("unpin web", ACT)],
        "destroy" => &[("destroy web nonsense", TAKE_AWAY)],
        "plant" => &[("plant silo:app nonsense", "2 2 2 4 3 3 3")],
        "remote" => &[("remote app", "2 2 2 2 2 3 3"), ("remote app secret", "2 2 2 2 2 3 3")],
        "domain" => &[("domain list", ALL), ("domain add web no_name!", "2 2 2 4 2 3 3")],
        "repo" => &[
            ("repo list", ALL),
            ("repo visibility app private", "0 0 4 4 3 3 3"),
            ("repo rename app other", DECIDE),
            ("repo delete app app", DECIDE),
        ],
        "quota" => &[("quota app", "0 0 0 0 0 3 3"), ("quota set app vcpus=8", NONE)],
        "audit" => &[("audit", ALL), ("audit --verify", NONE)],
        "unplant" => &[("unplant app nonsense", TAKE_AWAY)],
        "whoami" => &[("whoami", ALL)],
        "plan" => &[("plan", NONE)],
        "invite" => &[("invite list", NONE), ("invite new", NONE)],
        "help" => &[("help", ALL)],
        other => panic!("{other} is new: say here who may do it"),
    }
}

/// What of another's a verb is tried with; `place` is how their repository is called.
fn reaching(verb: &str, place: &str) -> Vec<String> {
    let lines: &[&str] = match verb {
        "status" | "deploy" | "deploys" | "quota" => &["@"],
        "logs" => &["@/web", "@/web -f", "@/web --build"],
        "restart" | "stop" | "start" | "pin" | "unpin" | "shell" => &["@/web"],
        "rollback" => &["@/web", "@/web 0123"],
        "exec" => &["@/web -- id"],
        "cp" => return ["-t", "-f", "-r -f"].map(|option| format!("scp {option} {place}/web:/etc")).into(),
        "forward" => &["@/web 80"],
        "domain" => &["add @/web www.example.org", "list @"],
        "destroy" => &["@/web web"],
        "unplant" => &["@ @"],
        "plant" => &["silo:@ nonsense"],
        "remote" => &["@", "@ forget", "@ secret"],
        "repo" => &["visibility @ public", "rename @ mine", "delete @ @"],
        // These are about nobody's things but the caller's; what they show is looked at below.
        "audit" | "whoami" | "help" => &[],
        "plan" | "invite" => &[],
        other => panic!("{other} is new: say here how one would reach another's things with it"),
    };
    lines.iter().map(|line| format!("{verb} {}", line.replace('@', place))).collect()
}

/// The SSH door of a world, and people with keys.
struct Door {
    port: u16,
    repositories: PathBuf,
    dir: tempfile::TempDir,
    desk: Desk,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Door {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn output(command: &mut Command) -> Said {
    let run = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(60), run).await.expect("it ends").unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = output.status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(255);
    Said { code, out: text(&output.stdout), err: text(&output.stderr) }
}

impl Door {
    async fn of(world: &World) -> Self {
        let (dir, desk) = (tempfile::tempdir().unwrap(), Desk::new(world).await);
        let none = dns::Near {
            pool4: "127.88.0.0/16".parse().unwrap(),
            pool6: "fd5e::/64".parse().unwrap(),
            gateways: vec![],
            inside: vec![],
        };
        let dns =
            dns::Settings { near: none, upstream: vec![], rate: 200, zone_key: None, secondaries: vec![], transfer_key: None };
        let repositories = world.path("repos");
        let mut settings = Settings::new("seed.example".parse().unwrap(), repositories.clone(), dir.path().join("host_key"), dns);
        let path = std::env::var_os("PATH").unwrap();
        settings.git = std::env::split_paths(&path).map(|folder| folder.join("git")).find(|path| path.is_file()).unwrap();
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let sockets = Sockets { ssh: vec![listener], ..Sockets::default() };
        let agent = desk.proxy();
        let doors = tokio::spawn(async move {
            run_until(settings, agent, sockets, std::future::pending()).await.unwrap();
        });
        let sim = world.sim.clone();
        let guests = tokio::spawn(async move {
            loop {
                drop(sim.entered());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Self { port, repositories, dir, desk, tasks: [doors, guests] }
    }

    /// Makes a key, and says its fingerprint and its line for `.authorized_keys`.
    async fn person(&self, name: &str) -> (KeyId, String) {
        let key = self.dir.path().join(name);
        let made = output(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key)).await;
        assert_eq!(made.code, 0, "{made:?}");
        let line = std::fs::read_to_string(key.with_extension("pub")).unwrap();
        let blob = data_encoding::BASE64.decode(line.split(' ').nth(1).unwrap().as_bytes()).unwrap();
        (seed::spec::access::fingerprint(&blob), line.trim().to_owned())
    }

    /// ssh's options for a person, who has one connection for all that they do.
    fn options(&self, person: &str) -> Vec<String> {
        let at = |name: &str| self.dir.path().join(name).display().to_string();
        let mut all = vec!["-F".into(), "/dev/null".into(), "-i".into(), at(person), "-p".into(), self.port.to_string()];
        for option in [
            "IdentitiesOnly=yes",
            "BatchMode=yes",
            "LogLevel=ERROR",
            "StrictHostKeyChecking=accept-new",
            &format!("UserKnownHostsFile={}", at("known_hosts")),
            "ControlMaster=auto",
            "ControlPersist=60",
            &format!("ControlPath={}", at(&format!("{person}.ctl"))),
        ] {
            all.extend(["-o".into(), option.to_owned()]);
        }
        all
    }

    async fn ssh(&self, person: &str, line: &str) -> Said {
        output(Command::new("ssh").args(self.options(person)).arg("127.0.0.1").arg(line)).await
    }

    async fn git(&self, person: &str, work: &std::path::Path, words: &[&str], repository: &str, rest: &[&str]) -> Said {
        let mut command = Command::new("git");
        command.current_dir(work).env("GIT_SSH_COMMAND", format!("ssh {}", self.options(person).join(" ")));
        command.args(words).arg(format!("ssh://127.0.0.1:{}/{repository}", self.port)).args(rest);
        output(&mut command).await
    }

    /// Ends a person's connection.
    async fn leave(&self, person: &str) {
        output(Command::new("ssh").args(self.options(person)).args(["-O", "exit", "127.0.0.1"])).await;
    }
}

/// A private repository of somebody's that runs.
async fn planted(world: &World, door: &Door, owner: &KeyId, repo: &str, files: &[(&str, &str)]) {
    world.create(owner, repo).await.unwrap();
    let commit = world.commit(repo, files);
    let code = world.invite(1).await;
    let job = world.plant(owner, repo, &code).await.unwrap();
    assert_eq!(world.follow(&job).await.0, Outcome::Done);
    let pushed = world.pushed(owner, repo, &commit, "deploy").await.unwrap();
    assert_eq!(world.follow(&pushed.job).await.0, Outcome::Done);
    let said = door.desk.run(Some(owner), &format!("repo visibility {repo} private")).await;
    assert_eq!(said.code, 0, "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_against_each_verb_through_openssh() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.table.set("api", "two", json!({}));
    let door = Door::of(&world).await;
    let mut lines = Vec::new();
    for (role, options) in [
        ("admin", "environment=\"SEED_ROLE=admin\",no-pty "),
        ("plain", ""),
        ("reader", "environment=\"SEED_ROLE=read\" "),
        ("web-only", "restrict,environment=\"SEED_INSTANCE=web\" "),
        ("expired", "environment=\"SEED_ROLE=admin\",expiry-time=\"20200101Z\" "),
    ] {
        lines.push(format!("{options}{}", door.person(role).await.1));
    }
    door.person("stranger").await;
    let (owner, _) = door.person("owner").await;
    planted(&world, &door, &owner, "app", &[(".authorized_keys", &lines.join("\n"))]).await;

    let mut wrong = Vec::new();
    for (role, at) in ROLES.into_iter().zip(0..) {
        for (line, codes) in shell::verbs().flat_map(|verb| rows(verb.name)) {
            let expected = codes.split(' ').nth(at).unwrap();
            let said = door.ssh(role, line).await;
            if said.code.to_string() != expected || (said.code != 0 && !said.err.starts_with("error: ")) {
                wrong.push(format!("{role}: {line}: not {expected}: {said:?}"));
            }
            if *codes == ENTER && said.code == 1 && !said.err.contains("could not get into web") {
                wrong.push(format!("{role}: {line}: {said:?}"));
            }
        }
        let work = world.path("work-app");
        let branch = format!("HEAD:refs/heads/by-{role}");
        let reads = door.git(role, &work, &["ls-remote"], "app", &[]).await;
        let writes = door.git(role, &work, &["push", "-q"], "app", &[&branch]).await;
        let expected = match role {
            "owner" | "admin" | "plain" => (true, true),
            "reader" => (true, false),
            _ => (false, false),
        };
        if (reads.code == 0, writes.code == 0) != expected {
            wrong.push(format!("{role}: {reads:?} {writes:?}"));
        }
        let there = door.repositories.join("app.git/refs/heads").join(format!("by-{role}")).exists();
        if there != expected.1 {
            wrong.push(format!("{role}: {branch}: {there}"));
        }
        door.leave(role).await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_do_not_reach_each_other_by_any_verb() {
    let world = World::new().await;
    let door = Door::of(&world).await;
    let ((ann, _), (bob, _)) = (door.person("ann").await, door.person("bob").await);
    world.table.set("mine", "one", json!({}));
    planted(&world, &door, &ann, "app", &[]).await;
    world.table.remove("mine");
    world.table.set("web", "bobs", json!({}));
    let bobs = "bobs-app";
    planted(&world, &door, &bob, bobs, &[("secret", "bob's\n")]).await;
    let web = id(bobs, "web");
    let before = (world.state.memory(), world.sim.boots(&web), world.sim.running(&web));
    let namespace = web.namespace.to_string();
    for line in ["status", "status --json", "repo list", "repo list --json", "quota", "deploys", "audit", "audit --json", "help"] {
        let said = door.ssh("ann", line).await;
        let leaks = [namespace.as_str(), bob.as_str(), bobs].iter().any(|name| said.out.contains(name));
        assert!(said.code == 0 && !leaks, "{line}: {said:?}");
    }
    let strange = format!("../{bobs}");
    for place in [bobs, namespace.as_str(), "silo:bobs-app", strange.as_str(), "BOBS-APP"] {
        for line in shell::verbs().flat_map(|verb| reaching(verb.name, place)) {
            let said = door.ssh("ann", &line).await;
            assert!(matches!(said.code, 2..=4) && said.out.is_empty(), "{line}: {said:?}");
            let told = said.err.split("; ").skip(1).any(|rest| rest.contains("bobs"));
            assert!(!said.err.contains(bob.as_str()) && !told, "{line}: {said:?}");
        }
        let work = world.path("work-app");
        let reads = door.git("ann", &work, &["ls-remote"], place, &[]).await;
        assert!(reads.code != 0 && reads.out.is_empty(), "{place}: {reads:?}");
        // To push to what is called as a namespace makes a repository of that name, which has another.
        if place != namespace {
            let writes = door.git("ann", &work, &["push", "-q"], place, &["HEAD:refs/heads/main"]).await;
            assert!(writes.code != 0, "{place}: {writes:?}");
        }
    }
    // What has no command: forwarded ports, and paths of SFTP.
    for host in ["web", "web.bobs-app", &format!("web.{namespace}"), &format!("web.{namespace}.seed.example")] {
        let mut command = Command::new("ssh");
        let said = output(command.args(door.options("ann")).args(["-S", "none", "-W", &format!("{host}:80"), "127.0.0.1"])).await;
        assert!(said.code == 255 && said.err.contains("forwarding failed"), "{host}: {said:?}");
    }
    for path in ["web:/etc", "bobs-app/web:/etc", &format!("{namespace}/web:/etc"), "mine:/../../../repos/bobs-app.git"] {
        let mut command = Command::new("scp");
        let options = door.options("ann").into_iter().map(|option| if option == "-p" { "-P".to_owned() } else { option });
        let into = door.dir.path().join("copied").display().to_string();
        let said = output(command.args(options).args(["-r", &format!("127.0.0.1:{path}"), &into])).await;
        assert!(said.code != 0 && !door.dir.path().join("copied").exists(), "{path}: {said:?}");
    }
    assert_eq!((world.state.memory(), world.sim.boots(&web), world.sim.running(&web)), before);
    door.leave("ann").await;
}
