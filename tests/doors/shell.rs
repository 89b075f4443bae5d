//! The verbs, through real ssh.

use std::{process::Stdio, time::Duration};

use seed::bus::{InstanceStatus, Level, NamespaceStatus, Outcome, Stage, Status};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::support::{World, run, until, word};

pub fn status() -> Status {
    let instance = InstanceStatus {
        name: "web".into(),
        state: "running".into(),
        detail: String::new(),
        since: 1,
        restarts: 0,
        fqdn: "web.s-aaaaaaaaaaaa.seed.example".into(),
        ipv4: "10.88.0.2".parse().unwrap(),
        ipv6: "fd5e::2".parse().unwrap(),
        ports: vec![],
        routes: vec![],
        vcpus: 1,
        memory_mib: 512,
        memory_used: None,
        cpu_milli: None,
        volumes: vec![],
        failed_units: vec![],
        stopped_by: String::new(),
        pinned_by: String::new(),
        domains: Vec::new(),
        restart_pending: false,
        beside: None,
    };
    let namespace = NamespaceStatus {
        namespace: "s-aaaaaaaaaaaa".into(),
        flake: "silo:my-app".into(),
        generation: "0123456789ab".into(),
        commit: "1".repeat(40),
        deploying: String::new(),
        instances: vec![instance],
        retired: vec![],
    };
    Status { version: 1, namespaces: vec![namespace], unplanted: vec![] }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_key_sees_help_and_an_empty_world() {
    let world = World::new().await;
    world.agent.told().status = status();
    let ran = world.ssh("bob", &[]).await.ok();
    ran.out_has("ssh HOST status [REPO]").out_has("git push HOST:my-app");
    world.ssh("bob", &["status"]).await.ok().out_has("Nothing here is yours yet");
    world.ssh("bob", &["help", "logs"]).await.ok().out_has("--lines N");
    world.ssh("bob", &["logs", "--help"]).await.ok().out_has("--lines N");
    assert_eq!(world.ssh("bob", &["whoami"]).await.ok().out.trim(), world.key_id("bob").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_is_a_table_or_the_document() {
    let world = World::new().await;
    world.agent.told().status = status();
    let ann = world.key_id("ann").await;
    world.agent.told().owners.insert("my-app".into(), ann);
    let ran = world.ssh("ann", &["status", "my-app.git"]).await.ok();
    ran.out_has("  INSTANCE  STATE    FOR").out_has("  web       running  ");
    assert!(!ran.out.contains('\x1b'), "no colours without a terminal");
    let ran = world.ssh("ann", &["status", "--json"]).await.ok();
    assert_eq!(serde_json::from_str::<Status>(&ran.out).unwrap(), status());
    let options = world.options("ann");
    let ran = run(tokio::process::Command::new("ssh").arg("-tt").env("TERM", "xterm").args(options).args(["127.0.0.1", "status"]))
        .await
        .ok();
    assert!(ran.out.contains("\x1b[32mrunning\x1b[0m") && ran.out.contains("\r\n") && !ran.out.contains("\r\r"), "{ran:?}");
    assert_eq!(ran.out.matches('\n').count(), ran.out.matches("\r\n").count());
    // What has no room beside the rest stands below it, in each of the two places that it is asked from.
    let ssh = world.ssh_command("ann", &["status"]);
    let words: Vec<&str> = ssh.as_std().get_args().map(|word| word.to_str().unwrap()).collect();
    for (columns, line) in [(70, format!("ssh -tt {}", words.join(" "))), (60, format!("{} status", env!("CARGO_BIN_EXE_seed")))] {
        let line = format!("stty cols {columns}; {line}");
        let mut script = tokio::process::Command::new("script");
        script.args(["-qec", &line, "/dev/null"]).env("TERM", "dumb").env("NO_COLOR", "1").stdin(Stdio::null());
        let ran = run(script.env("DBUS_SYSTEM_BUS_ADDRESS", &world.address)).await.ok();
        assert!(ran.out.contains("NAME") && !ran.out.contains("IPV4       IPV6"), "{ran:?}");
        let widest = ran.out.lines().skip(1).map(|line| line.trim_end().chars().count()).max();
        assert!(widest <= Some(columns) && ran.out.contains("SIZE") && ran.out.contains("1 CPU, 512 MiB"), "{ran:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_say_what_to_do_and_have_codes() {
    let world = World::new().await;
    let table: [(&[&str], i32, &str); 14] = [
        (&["statsu"], 2, "did you mean status?"),
        (&["rm", "-rf", "/"], 2, "there are status, logs"),
        (&["status", "--jsn"], 2, "knows no option \"--jsn\""),
        (&["status", "other"], 3, "there is my-app"),
        (&["logs"], 2, "logs needs an instance"),
        (&["logs", "wbe"], 3, "there are api, web"),
        (&["logs", "web", "--lines", "many"], 2, "no number from 1"),
        (&["restart", "db"], 3, "there are api, web"),
        (&["plant", "silo:my-app", "bad"], 4, "unknown or spent"),
        (&["plant", "silo:my-app"], 2, "an invite code"),
        (&["plan"], 4, "on the host itself: seed plan"),
        (&["invite", "new"], 4, "on the host itself: seed invite"),
        (&["cp", "page.html", "web:/srv/"], 2, "scp FILE HOST:INSTANCE:/PATH"),
        (&["'unclosed"], 2, "quote"),
    ];
    for (words, code, text) in table {
        let ran = world.ssh("ann", words).await;
        assert_eq!(ran.code, code, "{words:?}: {ran:?}");
        assert!(ran.err.starts_with("error: ") && ran.out.is_empty(), "{ran:?}");
        ran.err_has(text);
    }
    let ran = world.ssh("ann", &["status", "other", "--json"]).await;
    let error: serde_json::Value = serde_json::from_str(&ran.err).unwrap();
    assert_eq!((ran.code, error["error"]["kind"].as_str()), (3, Some("notFound")));
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_shown_in_order_and_followed_until_the_client_leaves() {
    let world = World::new().await;
    let line = |n: u64| format!(r#"{{"at":{},"source":"nginx","priority":{},"text":"line {n}"}}"#, n * 1_000_000, 3 + n % 4);
    world.agent.told().logs = (0..3).map(line).collect();
    let ran = world.ssh("ann", &["logs", "web", "--lines", "500"]).await.ok();
    assert_eq!(
        ran.out,
        "1970-01-01T00:00:00Z nginx: line 0\n1970-01-01T00:00:01Z nginx: line 1\n1970-01-01T00:00:02Z nginx: line 2\n"
    );
    let ran = world.ssh("ann", &["logs", "my-app/web", "--json"]).await.ok();
    assert_eq!(ran.out.lines().map(str::to_owned).collect::<Vec<_>>(), world.agent.told().logs);
    assert_eq!(world.agent.told().calls, ["logs web 500 false", "logs my-app/web 100 false"]);

    let mut client = world.ssh_command("ann", &["logs", "-f", "web"]).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
    while !lines.next_line().await.unwrap().unwrap().contains("tick") {}
    assert_eq!(world.agent.told().left, 0);
    client.kill().await.unwrap();
    until("the pipe to be closed", || world.agent.told().left == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_and_plant_follow_their_job() {
    let world = World::new().await;
    world.agent.told().script = vec![
        (Duration::ZERO, word(Stage::Boot, Level::Info, "powering off", None)),
        (Duration::ZERO, word(Stage::Run, Level::Info, "web runs", Some(Outcome::Done))),
    ];
    world.ssh("ann", &["restart", "web"]).await.ok().out_has("boot   powering off").out_has("run    web runs");
    let ran = world.ssh("ann", &["plant", "silo:my-app", "good", "--json"]).await.ok();
    let documents: Vec<serde_json::Value> = ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(documents[0]["namespace"], "s-aaaaaaaaaaaa");
    assert_eq!(documents[2]["outcome"], "done");
    world.agent.told().script = vec![(Duration::ZERO, word(Stage::Boot, Level::Error, "it panics", Some(Outcome::Failed)))];
    let ran = world.ssh("ann", &["restart", "web"]).await;
    assert_eq!(ran.code, 1);
    ran.out_has("error: it panics").out_has("failed at boot");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_agent_is_away_the_doors_say_so() {
    let world = World::new().await;
    world.project("p").await;
    world.git("ann", "p", &["push", "silo", "main"]).await.ok();
    world.agent_leaves().await;
    let ran = world.ssh("ann", &["status"]).await;
    assert_eq!(ran.code, 5);
    ran.err_has("error: the agent is restarting: try again");
    world.ssh("ann", &["help"]).await.ok();
    let ran = world.git("ann", "p", &["push", "silo", "main"]).await;
    ran.err_has("fatal: remote error: the agent is restarting: try again");
    world.agent_returns().await;
    world.ssh("ann", &["status"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_commands_is_served() {
    let world = World::new().await;
    let refused = |options: &[&str]| {
        let mut command = tokio::process::Command::new("ssh");
        command.args(world.options("ann")).args(options);
        command
    };
    let ran = run(&mut refused(&["-s", "127.0.0.1", "netconf"])).await;
    ran.err_has("subsystem request failed");
    let ran = run(&mut refused(&["-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1", "127.0.0.1", "whoami"])).await;
    assert_ne!(ran.code, 0, "remote forwarding is refused: {ran:?}");
    let ran = run(&mut refused(&["-W", "127.0.0.1:22", "127.0.0.1"])).await;
    assert_ne!(ran.code, 0, "local forwarding is refused: {ran:?}");
    let ran = run(&mut refused(&["-o", "PubkeyAuthentication=no", "127.0.0.1", "whoami"])).await;
    ran.err_has("Permission denied (publickey)");
    // What a client says about its environment does not reach anything.
    run(refused(&["-o", "SendEnv=GIT_PROTOCOL", "127.0.0.1", "whoami"]).env("GIT_PROTOCOL", "version=2;$(id)")).await.ok();
    // What is sent to a verb that reads nothing does not hold up the connection.
    let mut command = refused(&["127.0.0.1", "logs", "-f", "web"]);
    let mut client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut stdin = client.stdin.take().unwrap();
    let noise = vec![b'x'; 20 << 20];
    let sending = tokio::time::timeout(Duration::from_secs(20), stdin.write_all(&noise));
    sending.await.expect("all is taken").unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
    assert!(lines.next_line().await.unwrap().unwrap().contains("tick"));
    drop(client);
    let long = "x".repeat(9000);
    let ran = world.ssh("ann", &[&long]).await;
    assert_eq!(ran.code, 2);
    ran.err_has("longer than 8192 bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_common_kind_of_key_is_an_identity() {
    let world = World::new().await;
    for (kind, bits) in [("ecdsa", "256"), ("rsa", "2048")] {
        run(tokio::process::Command::new("ssh-keygen").args(["-q", "-t", kind, "-b", bits, "-N", "", "-f"]).arg(world.path(kind)))
            .await
            .ok();
        assert_eq!(world.ssh(kind, &["whoami"]).await.ok().out.trim(), world.key_id(kind).await);
    }
    let options = world.options("rsa");
    let mut sha1 = tokio::process::Command::new("ssh");
    sha1.args(["-o", "PubkeyAcceptedAlgorithms=ssh-rsa"]).args(options).args(["127.0.0.1", "whoami"]);
    assert_eq!(run(&mut sha1).await.code, 255, "SHA-1 signatures are refused");
}
