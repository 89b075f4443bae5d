//! Commands, shells and ports of guests, by real ssh clients.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{
    guests::Guests,
    support::{World, run, until},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_command_runs_in_the_guest_with_its_streams_and_its_code() {
    let world = World::new().await;
    let guests = Guests::of(&world).await;
    let ran = world.ssh("ann", &["exec", "web", "--", "cat /srv/name; echo oops >&2; exit 42"]).await;
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (42, "web", "oops\n"), "{}", guests.log());
    assert!(guests.asked()[0].ends_with(" web exec cat /srv/name; echo oops >&2; exit 42"));
    // A program that a signal ends ends ssh as it ends with any server.
    let ran = world.ssh("ann", &["exec", "my-app/web", "kill -TERM $$"]).await;
    assert_eq!(ran.code, 255, "{ran:?}");
    // The certificate is for this instance.
    assert!(guests.log().contains("Accepted certificate ID \"ann\" (serial"), "{}", guests.log());
    // Nothing of the client's environment comes along, and no words of the line are lost.
    let mut command =
        world.ssh_command("ann", &["-o", "SendEnv=*", "exec", "web", "--", "env; printf '%s|' 'a  b' \"$HOME\" \\* "]);
    let ran = run(command.env("LD_PRELOAD", "/evil.so").env("SEED_X", "x\ny")).await.ok();
    assert!(!ran.out.contains("evil") && !ran.out.contains("SEED_X"), "{}", ran.out);
    assert!(ran.out.ends_with("a  b|/root|*|"), "{}", ran.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_enter_or_asks_wrongly_is_told_so() {
    let world = World::new().await;
    let guests = Guests::of(&world).await;
    for (person, words, code, why) in [
        ("bob", &["exec", "web", "--", "id"][..], 3, "you have no instance \"web\""),
        ("bob", &["shell", "web"], 3, "you have no instance"),
        ("bob", &["forward", "web", "22"], 3, "you have no instance"),
        ("bob", &["scp", "-t", "web:/tmp"], 3, "you have no instance"),
        ("ann", &["exec", "wbe", "--", "id"], 3, "there is my-app/api, my-app/web"),
        ("ann", &["exec", "deaf", "--", "id"], 1, "nothing in deaf listens"),
        ("ann", &["exec", "web"], 2, "exec web -- ls -l"),
        ("ann", &["shell"], 2, "shell needs one instance"),
        ("ann", &["forward", "web", "99999"], 2, "from 1 to 65535"),
        ("ann", &["forward", "web", "9"], 1, "nothing in web listens on port 9"),
        ("ann", &["scp", "-t", "/tmp"], 2, "INSTANCE:/PATH"),
        ("ann", &["exec", "--help"], 0, ""),
    ] {
        let ran = world.ssh(person, words).await;
        assert_eq!(ran.code, code, "{words:?}: {ran:?} {}", guests.log());
        ran.err_has(why);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_megabytes_go_in_and_out_and_come_back() {
    let world = World::new().await;
    let guests = Guests::of(&world).await;
    const SIZE: usize = 100 << 20;
    for (line, sent, expected) in [
        ("head -c 104857600 /dev/zero", 0, SIZE),
        ("wc -c", SIZE, 10),
        // What is answered as it is read is where a copy that waits for itself stands still.
        ("cat", SIZE, SIZE),
        // Nobody reads what is sent.
        ("echo done", SIZE, 5),
    ] {
        let mut child =
            world.ssh_command("ann", &["exec", "web", "--", line]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut to, mut from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let send = async move {
            let part = vec![b'x'; 1 << 20];
            for _ in 0..sent >> 20 {
                if to.write_all(&part).await.is_err() {
                    return;
                }
            }
        };
        let receive = async move {
            let (mut got, mut buffer) = (0, vec![0; 1 << 16]);
            loop {
                match from.read(&mut buffer).await.unwrap() {
                    0 => return got,
                    count => got += count,
                }
            }
        };
        let both = async { tokio::join!(send, receive).1 };
        let got = tokio::time::timeout(Duration::from_secs(120), both).await.unwrap_or_else(|_| panic!("{line} stands still"));
        assert_eq!((got, child.wait().await.unwrap().code()), (expected, Some(0)), "{line} {}", guests.log());
    }
}

/// Writes to who does not read until nothing more is taken for a while; returns how much was, which is more than `least`.
async fn fill(to: &mut (impl AsyncWrite + Unpin), least: usize, most: usize) -> usize {
    let part = vec![0; 64 << 10];
    let (mut sent, began) = (0, Instant::now());
    loop {
        let quiet = Duration::from_secs(if sent > least { 2 } else { 30 });
        match tokio::time::timeout(quiet, to.write(&part)).await {
            Ok(written) => sent += written.unwrap(),
            Err(_) => break,
        }
        assert!(sent < most && began.elapsed() < Duration::from_secs(60), "it goes on and on: {sent} in {:?}", began.elapsed());
    }
    assert!(sent > least, "{sent}");
    sent
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_is_sent_little_and_holds_up_nobody() {
    let world = World::new().await;
    let guests = Guests::of(&world).await;
    // A client that does not read, of a program that counts what it could write.
    let count = "while head -c 65536 /dev/zero; do printf x >>/srv/count; done";
    let mut idle = world.ssh_command("ann", &["exec", "web", "--", count]);
    let mut idle = idle.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    // A program that does not read, of a client that counts likewise, on a connection that others share.
    let control = format!("ControlPath={}", world.path("master").display());
    let mut deaf = world.ssh_command("ann", &["-o", &control, "-o", "ControlMaster=yes", "exec", "web", "--", "sleep 100"]);
    let mut deaf = deaf.stdin(Stdio::piped()).stdout(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    let mut to_deaf = deaf.stdin.take().unwrap();
    fill(&mut to_deaf, 1 << 20, 24 << 20).await;
    let counted = || std::fs::metadata(guests.srv("web").join("count")).map_or(0, |count| count.len() << 16);
    until("the other way is full, too", || counted() > 1 << 20).await;

    let ran = world.ssh("ann", &["-o", &control, "exec", "web", "--", "head -c 3000000 /dev/zero; echo fine"]).await.ok();
    assert!(ran.out.ends_with("fine\n"));
    assert!(counted() < 24 << 20, "{}", counted());
    idle.kill().await.unwrap();
    deaf.kill().await.unwrap();
    // A client that vanishes leaves nothing behind in the guest.
    until("the guest's sshd has none of them", || guests.log().matches("Closing connection").count() >= 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_has_a_terminal_with_a_size_that_follows() {
    let world = World::new().await;
    let guests = Guests::of(&world).await;
    // script(1) gives ssh a terminal, whose size is changed under its hands.
    let ssh = world.ssh_command("ann", &["-tt", "shell", "web"]);
    let words: Vec<String> = ssh.as_std().get_args().map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    let line = format!("stty cols 90 rows 30; exec ssh {}", words.join(" "));
    let mut child = tokio::process::Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .env("TERM", "xterm-256color")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (mut to, mut from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut said = String::new();
    let mut expect = async |to: &mut tokio::process::ChildStdin, typed: &str, wanted: &str| {
        to.write_all(typed.as_bytes()).await.unwrap();
        let found = async {
            let mut buffer = [0; 4096];
            while !said.contains(wanted) {
                let count = from.read(&mut buffer).await.unwrap();
                assert!(count > 0, "it ended: {said:?}");
                said.push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(20), found).await;
        assert!(found.is_ok(), "no {wanted:?} after {typed:?}: {said:?} {}", guests.log());
    };
    expect(&mut to, "stty size; echo $TERM $((6*7)); test -t 0 && echo ter'min'al\n", "30 90").await;
    expect(&mut to, "", "xterm-256color 42").await;
    expect(&mut to, "", "terminal").await;
    // Ctrl-C is the program's, not the end.
    expect(&mut to, "sleep 100\n", "sleep").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    expect(&mut to, "\x03echo still $((1+1)) here\n", "still 2 here").await;
    to.write_all(b"exit 7\n").await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(20), child.wait()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(7));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_of_ones_own_instance_is_forwarded_and_nothing_else() {
    let world = World::new().await;
    let guests = Guests::of(&world).await;
    // The guests of this test share their network with it: what they can reach, a real one has of its own.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                drop(tokio::io::copy(&mut read, &mut write).await);
            });
        }
    });
    let target = |host: &str| format!("{host}:{port}");
    for host in ["web", "web.my-app", "web.my-app.seed.example"] {
        let mut child = world.ssh_command("ann", &["-W", &target(host)]);
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let mut to = child.stdin.take().unwrap();
        to.write_all(b"hello").await.unwrap();
        let mut back = [0; 5];
        child.stdout.take().unwrap().read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"hello", "{host}");
    }
    // The verb does the same.
    let mut child = world.ssh_command("ann", &["forward", "web", &port.to_string()]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut to = child.stdin.take().unwrap();
    to.write_all(b"hello").await.unwrap();
    drop(to);
    let mut back = String::new();
    child.stdout.take().unwrap().read_to_string(&mut back).await.unwrap();
    assert_eq!((back.as_str(), child.wait().await.unwrap().code()), ("hello", Some(0)), "{}", guests.log());
    guests.asked();

    for (person, host) in [
        ("ann", "127.0.0.1"),
        ("ann", "localhost.example.org"),
        ("ann", "seed.example"),
        ("ann", "::1"),
        ("ann", "db"),
        ("bob", "web"),
    ] {
        let target = if host.contains(':') { format!("[{host}]:{port}") } else { target(host) };
        let mut command = world.ssh_command(person, &["-W", &target]);
        let ran = run(&mut command).await;
        assert_ne!(ran.code, 0, "{host}");
        ran.err_has("forwarding failed");
    }
    assert!(
        guests.asked().iter().all(|line| line.contains(" db forward ") || !line.starts_with(&guests.ann())),
        "{:?}",
        guests.asked()
    );

    // One after the other, connections share a way in; one that nobody reads holds up no other.
    let own = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let mut tunnel = world.ssh_command("ann", &["-N", "-L", &format!("{own}:web:{port}")]).kill_on_drop(true).spawn().unwrap();
    let connect = async || loop {
        match tokio::net::TcpStream::connect(("127.0.0.1", own)).await {
            Ok(stream) => return stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let mut unread = connect().await;
    fill(&mut unread, 1 << 20, 64 << 20).await;
    for round in 0..20 {
        let mut stream = connect().await;
        let text = format!("round {round:02}");
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut back = [0; 8];
        tokio::time::timeout(Duration::from_secs(20), stream.read_exact(&mut back)).await.expect("in time").unwrap();
        assert_eq!(back, text.as_bytes());
        drop(stream);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let asked = guests.asked().len();
    assert!((2..8).contains(&asked), "{asked} ways for 21 connections");
    tunnel.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ssh_can_forward_besides_is_refused() {
    let world = World::new().await;
    let guests = Guests::of(&world).await;
    let ran = world.ssh("ann", &["-R", "0:127.0.0.1:22", "-o", "ExitOnForwardFailure=yes", "exec", "web", "--", "true"]).await;
    assert_ne!(ran.code, 0);
    ran.err_has("remote port forwarding failed");
    let agent = tokio::process::Command::new("ssh-agent")
        .arg("-D")
        .arg("-a")
        .arg(world.path("agent"))
        .kill_on_drop(true)
        .stdout(Stdio::null())
        .spawn();
    let _agent = agent.unwrap();
    for options in [&["-A"][..], &["-X"], &["-Y"]] {
        let words = [options, &["exec", "web", "--", "env; ls -d /tmp/ssh-* 2>&1"]].concat();
        let mut command = world.ssh_command("ann", &words);
        let ran = run(command.env("DISPLAY", ":99").env("SSH_AUTH_SOCK", world.path("agent"))).await;
        assert!(!ran.out.contains("SSH_AUTH_SOCK") && !ran.out.contains("DISPLAY"), "{ran:?} {}", guests.log());
    }
    // A Unix socket of this host's, by ssh's own extension.
    let mut command = world.ssh_command("ann", &[]);
    let own = world.path("own");
    let mut child = command
        .args(["-N", "-L", &format!("{}:/run/dbus/system_bus_socket", own.display())])
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    for _ in 0..100 {
        if own.exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut stream = tokio::net::UnixStream::connect(&own).await.unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.unwrap();
    assert!(got.is_empty());
    child.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn long_and_odd_lines_reach_the_guests_shell_or_nothing() {
    let world = World::new().await;
    let guests = Guests::of(&world).await;
    let odd = "printf '%s' 'a\nb' ';|&`$(id)\\' \"$((6*7))\"; # '";
    assert_eq!(world.ssh("ann", &["exec", "web", "--", odd]).await.ok().out, "a\nb;|&`$(id)\\42", "{}", guests.log());
    let part = "x".repeat(60_000);
    // As long as a system takes; longer than that; longer than a packet of SSH.
    let ran = world.ssh("ann", &["exec", "web", "--", ":", &part, &part]).await.ok();
    assert_eq!(ran.err, "");
    let refused = world.ssh("ann", &["exec", "web", "--", ":", &part, &part, &part]).await;
    assert_eq!(refused.code, 2);
    refused.err_has("longer than 131071 bytes");
    let mut words = vec!["exec", "web", "--", ":"];
    words.extend(std::iter::repeat_n(part.as_str(), 18));
    assert_ne!(world.ssh("ann", &words).await.code, 0);
    assert_eq!(guests.asked().len(), 2);
    world.ssh("ann", &["exec", "web", "--", "true"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_says_nothing_holds_up_nobody_and_its_visitor_may_leave() {
    let world = World::new().await;
    let _guests = Guests::of(&world).await;
    let mut waiting = world.ssh_command("ann", &["exec", "mute", "--", "true"]).kill_on_drop(true).spawn().unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.ssh("ann", &["exec", "web", "--", "true"]).await.ok();
    assert!(waiting.try_wait().unwrap().is_none());
    waiting.kill().await.unwrap();
    world.ssh("ann", &["exec", "web", "--", "true"]).await.ok();
}
