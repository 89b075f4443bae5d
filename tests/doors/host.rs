//! The command line on the host itself, into guests: `seed exec`, `shell`, `cp` and `forward`, the program as it is installed.

use std::{process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStdin, Command},
};

use crate::{
    guests::Guests,
    support::{Ran, World, run},
};

/// The operator's command, on the bus of a world.
pub fn seed(world: &World, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seed"));
    command.args(words).env("DBUS_SYSTEM_BUS_ADDRESS", &world.address).kill_on_drop(true);
    command
}

/// The same, at a terminal of 90 columns and 30 rows whose name is its first line, and what it says afterwards.
pub fn at_a_terminal(world: &World, line: &str) -> Child {
    let line = format!("tty; stty cols 90 rows 30; {} {line}; echo code=$?; stty -a", env!("CARGO_BIN_EXE_seed"));
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm-256color").env("DBUS_SYSTEM_BUS_ADDRESS", &world.address);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap()
}

async fn seed_does(world: &World, words: &[&str]) -> Ran {
    run(&mut seed(world, words)).await
}

fn interrupt(child: &Child) {
    let pid = nix::unistd::Pid::from_raw(child.id().unwrap() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
}

async fn code(mut child: Child) -> Option<i32> {
    tokio::time::timeout(Duration::from_secs(30), child.wait()).await.expect("it ends").unwrap().code()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_has_its_streams_its_signals_and_its_code() {
    let world = World::new().await;
    let guests = Guests::of(&world).await;
    let ran = seed_does(&world, &["exec", "web", "--", "cat /srv/name; echo oops >&2; exit 42"]).await;
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (42, "web", "oops\n"), "{}", guests.log());
    assert_eq!(guests.asked(), [" web exec cat /srv/name; echo oops >&2; exit 42"]);
    let ran = seed_does(&world, &["exec", "web", "printf", "'%s|'", "'a  b'", "--json"]).await.ok();
    assert_eq!(ran.out, "a  b|--json|");
    assert_eq!(seed_does(&world, &["exec", "web", "kill -TERM $$"]).await.code, 128 + 15);
    for (words, code, why) in [
        (&["exec", "wbe", "--", "id"][..], 3, "there is my-app/api, my-app/web"),
        (&["exec", "deaf", "--", "id"], 1, "nothing in deaf listens"),
        (&["exec", "web"], 2, "exec web -- ls -l"),
        (&["shell"], 2, "shell needs one instance"),
        (&["forward", "web"], 2, "forward web 80 8080"),
        (&["forward", "wbe", "80", "0", "--json"], 3, r#""kind":"notFound""#),
        (&["cp", "a", "b"], 2, "one of them in an instance"),
    ] {
        let ran = seed_does(&world, words).await;
        assert_eq!(ran.code, code, "{words:?}: {ran:?}");
        ran.err_has(why);
    }

    // More than any buffer on the way, answered as it is read.
    const SIZE: usize = 20 << 20;
    let mut child = seed(&world, &["exec", "web", "--", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut to, mut from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let send = async move {
        for _ in 0..SIZE >> 20 {
            to.write_all(&[b'x'; 1 << 20]).await.unwrap();
        }
    };
    let receive = async {
        let mut back = Vec::new();
        from.read_to_end(&mut back).await.unwrap();
        back.len()
    };
    let both = async { tokio::join!(send, receive).1 };
    assert_eq!(tokio::time::timeout(Duration::from_secs(60), both).await.expect("it does not stand still"), SIZE);
    assert_eq!(code(child).await, Some(0));

    // Ctrl-C is the program's; a second one, if it does not care, is ours.
    for (trap, presses, ended) in [("echo got; exit 9", 1, 9), (":", 2, 130)] {
        let line = format!("trap '{trap}' INT; echo ready; while :; do sleep 0.1; done");
        let mut child = seed(&world, &["exec", "web", "--", &line]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("ready"));
        for _ in 0..presses {
            interrupt(&child);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        assert_eq!(code(child).await, Some(ended), "{trap} {}", guests.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_has_the_terminal_and_its_size_and_gives_it_back() {
    let world = World::new().await;
    let guests = Guests::of(&world).await;
    let mut child = at_a_terminal(&world, "shell web");
    let (mut to, mut from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut said = String::new();
    let mut expect = async |to: &mut ChildStdin, typed: &str, wanted: &str| {
        to.write_all(typed.as_bytes()).await.unwrap();
        let found = async {
            let mut buffer = [0; 4096];
            while !said.contains(wanted) {
                let count = from.read(&mut buffer).await.unwrap();
                assert!(count > 0, "it ended: {said:?}");
                said.push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(30), found).await;
        assert!(found.is_ok(), "no {wanted:?} after {typed:?}: {said:?} {}", guests.log());
        said.clone()
    };
    let terminal = expect(&mut to, "", "\r\n").await.lines().next().unwrap().to_owned();
    expect(&mut to, "stty size; echo $TERM; test -t 0 && echo ter'min'al\n", "30 90").await;
    expect(&mut to, "", "xterm-256color").await;
    expect(&mut to, "", "terminal\r\n").await;
    // Ctrl-C is a key like others.
    expect(&mut to, "sleep 100\n", "sleep 100").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    expect(&mut to, "\x03echo still $((1+1)) here\n", "still 2 here").await;
    run(Command::new("stty").args(["-F", &terminal, "cols", "100", "rows", "40"])).await.ok();
    expect(&mut to, "while test \"$(stty size)\" = '30 90'; do sleep 0.1; done; stty size\n", "40 100").await;
    let after = expect(&mut to, "exit 7\n", "code=7").await;
    assert!(!after.contains("error:"), "{after}");
    let after = expect(&mut to, "", "icanon").await;
    assert!(!after.contains("-icanon"), "{after}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_copied_both_ways() {
    let world = World::new().await;
    let guests = Guests::of(&world).await;
    let here = |name: &str| world.path(name).display().to_string();
    let noise: Vec<u8> = (0..5_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8 ^ (n >> 7) as u8).collect();
    std::fs::write(world.path("noise"), &noise).unwrap();
    std::fs::create_dir_all(world.path("tree/deep/empty")).unwrap();
    std::fs::write(world.path("tree/deep/it's a \"name\" $(x)"), "text").unwrap();
    std::fs::write(world.path("tree/nothing"), "").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", world.path("tree/link")).unwrap();

    seed_does(&world, &["cp", &here("noise"), "web:/srv/"]).await.ok();
    assert!(std::fs::read(guests.srv("web").join("noise")).unwrap() == noise, "{}", guests.log());
    let said = seed_does(&world, &["cp", "my-app/web:/srv/noise", &here("back"), "--json"]).await.ok().out;
    assert!(std::fs::read(world.path("back")).unwrap() == noise);
    assert_eq!(said, "{\"version\":1,\"files\":1,\"bytes\":5000000,\"leftOut\":[]}\n");

    let ran = seed_does(&world, &["cp", "-r", &here("tree"), "web:/srv/tree"]).await.ok();
    ran.err_has("link is neither a file nor a folder");
    let there = guests.srv("web").join("tree");
    assert!(there.join("deep/it's a \"name\" $(x)").exists() && there.join("deep/empty").is_dir() && !there.join("link").exists());
    // Into what is there already; a guest's links do not lead out of it.
    std::os::unix::fs::symlink("/etc", there.join("etc")).unwrap();
    std::fs::create_dir(world.path("into")).unwrap();
    let ran = seed_does(&world, &["cp", "-r", "web:/srv/tree", &here("into")]).await.ok();
    ran.err_has("/srv/tree/etc is neither");
    let back = world.path("into/tree");
    assert_eq!(std::fs::read_to_string(back.join("deep/it's a \"name\" $(x)")).unwrap(), "text");
    assert!(
        back.join("deep/empty").is_dir() && std::fs::read(back.join("nothing")).unwrap().is_empty() && !back.join("etc").exists()
    );
    // root's home is where a path without a slash begins.
    seed_does(&world, &["cp", "web:../srv/name", &here("name")]).await.ok();
    assert_eq!(std::fs::read_to_string(world.path("name")).unwrap(), "web");

    for (from, to, code, why) in [
        (here("tree"), "web:/srv/t".to_owned(), 2, "cp -r"),
        ("web:/srv/tree".to_owned(), here("t"), 2, "cp -r"),
        ("web:/srv/none".to_owned(), here("t"), 3, "there is no /srv/none in web"),
        (here("none"), "web:/srv/".to_owned(), 1, "No such file"),
        (here("noise"), "web:/none/".to_owned(), 3, "there is no folder /none/ in web"),
        (here("noise"), "web:/none/x".to_owned(), 3, "/none/x: No such file in web"),
        ("web:/dev/null".to_owned(), here("t"), 2, "neither a file nor a folder"),
        (here("noise"), "wbe:/srv/".to_owned(), 3, "there is my-app/api, my-app/web"),
    ] {
        let ran = seed_does(&world, &["cp", &from, &to]).await;
        assert_eq!(ran.code, code, "{from} {to}: {ran:?}");
        ran.err_has(why);
    }
    assert!(guests.asked().iter().all(|line| line.contains("web copy cp ") || line.starts_with(" wbe ")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_is_had_at_loopback_until_it_is_interrupted() {
    let world = World::new().await;
    let guests = Guests::of(&world).await;
    // The guests of this test share their network with it.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                drop(tokio::io::copy(&mut read, &mut write).await);
            });
        }
    });
    let ran = seed_does(&world, &["forward", "web", &port]).await;
    assert_eq!(ran.code, 1);
    ran.err_has("choose another: forward web");
    let mut command = seed(&world, &["forward", "web", &port, "0", "--json"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let said: serde_json::Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
    let address: std::net::SocketAddr = said["address"].as_str().unwrap().parse().unwrap();
    assert!(address.ip().is_loopback());
    let mut kept = TcpStream::connect(address).await.unwrap();
    let both = async {
        for round in 0..5 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(format!("round {round}").as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut back = String::new();
            stream.read_to_string(&mut back).await.unwrap();
            assert_eq!(back, format!("round {round}"), "{}", guests.log());
        }
        kept.write_all(b"still").await.unwrap();
        let mut back = [0; 5];
        kept.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"still");
    };
    tokio::time::timeout(Duration::from_secs(60), both).await.expect("in time");
    interrupt(&child);
    assert_eq!(code(child).await, Some(0));
    assert!(TcpStream::connect(address).await.is_err());
    let closed = async { while kept.read(&mut [0; 16]).await.is_ok_and(|count| count > 0) {} };
    tokio::time::timeout(Duration::from_secs(10), closed).await.expect("what was open is closed");
}
