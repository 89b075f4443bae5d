//! Clients that are killed in the middle of what they do: nothing of theirs is left in a guest or on this host, and jobs go on.

use std::{process::Stdio, time::Duration};

use seed::bus::{Level, Outcome, Stage};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};

use crate::{
    guests::Guests,
    support::{World, until, word},
};

/// Programs that this machine runs for a world: what works on its repositories.
pub fn programs(world: &World) -> Vec<String> {
    let folder = world.path("repos").display().to_string();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(&folder)).collect()
}

/// Connections to the SSH door that are open at its end.
fn connections(world: &World) -> usize {
    let local = format!("0100007F:{:04X}", world.port);
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    // 1: established, 8: the other side has closed it.
    let open = |line: &&str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.get(1) == Some(&local.as_str()) && matches!(words.get(3), Some(&"01" | &"08"))
    };
    table.lines().filter(open).count()
}

async fn nothing_is_left(world: &World, guests: &Guests, what: &str) {
    until(&format!("{what}: nobody is in a guest"), || guests.inside() == 0).await;
    until(&format!("{what}: no connection is open"), || connections(world) == 0).await;
    until(&format!("{what}: no program is left: {:?}", programs(world)), || programs(world).is_empty()).await;
}

fn piped(mut command: Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap()
}

/// Waits until a client was told `text`.
async fn says(client: &mut Child, text: &str, line: &str) {
    let (mut said, mut buffer) = (String::new(), [0; 1000]);
    while !said.contains(text) {
        let count = client.stdout.as_mut().unwrap().read(&mut buffer).await.unwrap();
        assert!(count > 0, "{line}: {said}");
        said.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_guest() {
    // An ssh whose scp was killed lives on if its server is not OpenSSH, so that it is left after a while.
    let world = World::with(|settings| settings.stalled = Duration::from_secs(3)).await;
    let guests = Guests::of(&world).await;
    std::fs::write(world.path("large"), vec![b'x'; 8 << 20]).unwrap();
    std::fs::write(guests.srv("web").join("large"), vec![b'x'; 8 << 20]).unwrap();
    let copying: Vec<String> =
        world.options("ann").into_iter().map(|option| if option == "-p" { "-P".to_owned() } else { option }).collect();
    let (large, back) = (world.path("large").display().to_string(), world.path("back").display().to_string());
    // So slowly that it lasts.
    let scp = |words: &[&str]| {
        let mut command = Command::new("scp");
        command.args(&copying).args(["-l", "4000"]).args(words);
        command
    };
    let arrived = |name: &str, least: u64| {
        let path = guests.srv("web").join(name);
        move || std::fs::metadata(&path).is_ok_and(|found| found.len() > least)
    };
    for (name, options) in [("sent", &[][..]), ("sent-before", &["-O"])] {
        let to = format!("127.0.0.1:web:/srv/{name}");
        let mut client = piped(scp(&[options, &[&large, &to]].concat()));
        until("some of it has arrived", arrived(name, 64 << 10)).await;
        client.kill().await.unwrap();
        nothing_is_left(&world, &guests, &to).await;
    }
    for options in [&[][..], &["-O"]] {
        let mut client = piped(scp(&[options, &["127.0.0.1:web:/srv/large", &back]].concat()));
        until("some of it came back", || std::fs::metadata(world.path("back")).is_ok_and(|found| found.len() > 64 << 10)).await;
        client.kill().await.unwrap();
        nothing_is_left(&world, &guests, "scp from a guest").await;
        std::fs::remove_file(world.path("back")).unwrap();
    }
    let mut sftp = Command::new("sftp");
    sftp.args(&copying).args(["-b", "-", "127.0.0.1"]);
    let mut client = piped(sftp);
    client.stdin.as_mut().unwrap().write_all(b"mkdir web:/srv/made\n").await.unwrap();
    until("sftp has begun", || guests.srv("web").join("made").exists()).await;
    client.kill().await.unwrap();
    nothing_is_left(&world, &guests, "sftp").await;

    let mut client = piped(world.ssh_command("ann", &["-tt", "shell", "web"]));
    client.stdin.as_mut().unwrap().write_all(b"touch /srv/in; sleep 100\n").await.unwrap();
    until("the shell has begun", || guests.srv("web").join("in").exists()).await;
    client.kill().await.unwrap();
    nothing_is_left(&world, &guests, "shell").await;

    // The same with the operator's command line, which is the client itself.
    let mut client = piped(crate::host::seed(&world, &["exec", "web", "--", "touch /srv/host; sleep 100"]));
    until("the command has begun", || guests.srv("web").join("host").exists()).await;
    client.kill().await.unwrap();
    nothing_is_left(&world, &guests, "seed exec").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_clone() {
    let world = World::new().await;
    let guests = Guests::of(&world).await;
    world.project("p").await;
    let mut noise = vec![0_u8; 8 << 20];
    let mut state = 1_u64;
    for byte in &mut noise {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        *byte = (state >> 56) as u8;
    }
    world.commit("p", "noise", &noise).await;
    world.git("ann", "p", &["push", "silo", "main"]).await.ok();
    let head = world.at("my-app", "refs/heads/main").await.unwrap();
    // Before it has said what it wants, and when it takes no more of what it wanted.
    for wants in [false, true] {
        let mut client = piped(world.ssh_command("ann", &["git-upload-pack", "my-app"]));
        let mut some = [0; 200];
        client.stdout.as_mut().unwrap().read_exact(&mut some).await.unwrap();
        if wants {
            let ask = format!("0032want {head}\n00000009done\n");
            client.stdin.as_mut().unwrap().write_all(ask.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        assert!(!programs(&world).is_empty());
        client.kill().await.unwrap();
        nothing_is_left(&world, &guests, "a clone").await;
    }
    world.git("ann", ".", &["clone", "-q", &world.url("my-app"), "cloned"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn while_they_follow_a_job() {
    let world = World::new().await;
    let guests = Guests::of(&world).await;
    // The job goes on long after, and says so.
    let mut script = vec![(Duration::ZERO, word(Stage::Boot, Level::Info, "powering off", None))];
    script.extend((0..500).map(|_| (Duration::from_millis(200), word(Stage::Boot, Level::Info, "booting", None))));
    script.push((Duration::ZERO, word(Stage::Run, Level::Info, "web runs", Some(Outcome::Done))));
    world.agent.told().script = script;
    for (left, line) in [(1, "restart web"), (2, "plant silo:my-app good"), (3, "deploy my-app")] {
        let words: Vec<&str> = line.split(' ').collect();
        let mut client = piped(world.ssh_command("ann", &words));
        says(&mut client, "powering off", line).await;
        client.kill().await.unwrap();
        until(&format!("{line}: the agent is not listened to any more"), || world.agent.told().left == left).await;
        nothing_is_left(&world, &guests, line).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_they_follow_what_becomes_of_an_instance() {
    let (world, history) = crate::history::world().await;
    let guests = Guests::of(&world).await;
    let mut script = vec![(Duration::ZERO, word(Stage::Boot, Level::Info, "powering off", None))];
    script.extend((0..500).map(|_| (Duration::from_millis(200), word(Stage::Boot, Level::Info, "booting", None))));
    world.agent.told().script = script;
    let lines = ["rollback web", "stop web", "start web", "destroy web web", "unplant my-app my-app"];
    for (left, line) in (1..).zip(lines) {
        let words: Vec<&str> = line.split(' ').collect();
        let mut client = piped(world.ssh_command("ann", &words));
        says(&mut client, "powering off", line).await;
        client.kill().await.unwrap();
        until(&format!("{line}: the agent is not listened to any more"), || world.agent.told().left == left).await;
        nothing_is_left(&world, &guests, line).await;
    }
    // Asked for the name again, and gone.
    for line in ["destroy web", "unplant my-app"] {
        let mut command = Command::new("ssh");
        command.arg("-tt").env("TERM", "xterm").args(world.options("ann")).arg("127.0.0.1").args(line.split(' '));
        let mut client = piped(command);
        says(&mut client, "Its name again", line).await;
        client.kill().await.unwrap();
        nothing_is_left(&world, &guests, line).await;
        assert!(!history.asked_for(line), "{line}: nothing was asked for");
    }
}

/// Something in a guest that answers with what it is sent.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
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
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_port_is_forwarded_or_a_host_shell_is_open() {
    let world = World::new().await;
    let guests = Guests::of(&world).await;
    let port = echo().await;
    // The guests of this test share their network with it.
    let through = async |client: &mut Child, what: &str| {
        client.stdin.as_mut().unwrap().write_all(b"hello").await.unwrap();
        let mut back = [0; 5];
        client.stdout.as_mut().unwrap().read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"hello", "{what}");
        assert!(guests.inside() > 0, "{what}");
    };
    let mut client = piped(world.ssh_command("ann", &["forward", "web", &port.to_string()]));
    through(&mut client, "forward").await;
    client.kill().await.unwrap();
    nothing_is_left(&world, &guests, "forward").await;

    let mut command = Command::new("ssh");
    command.args(world.options("ann")).args(["-W", &format!("web:{port}"), "127.0.0.1"]);
    let mut client = piped(command);
    through(&mut client, "-W").await;
    client.kill().await.unwrap();
    nothing_is_left(&world, &guests, "-W").await;

    let here = free_port();
    let mut command = Command::new("ssh");
    command.args(world.options("ann")).args(["-N", "-L", &format!("{here}:web:{port}"), "127.0.0.1"]);
    let mut client = piped(command);
    let mut stream = connected(here).await;
    stream.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).await.unwrap();
    client.kill().await.unwrap();
    nothing_is_left(&world, &guests, "-L").await;

    // On the host.
    let mut client = piped(crate::host::seed(&world, &["forward", "web", &port.to_string(), &here.to_string()]));
    let mut stream = connected(here).await;
    stream.write_all(b"hello").await.unwrap();
    stream.read_exact(&mut back).await.unwrap();
    client.kill().await.unwrap();
    nothing_is_left(&world, &guests, "seed forward").await;

    let mut client = piped(crate::host::seed(&world, &["shell", "web"]));
    client.stdin.as_mut().unwrap().write_all(b"touch /srv/host-shell; sleep 100\n").await.unwrap();
    until("the shell has begun", || guests.srv("web").join("host-shell").exists()).await;
    client.kill().await.unwrap();
    nothing_is_left(&world, &guests, "seed shell").await;
}

/// A port of this machine's that nobody has just now.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn connected(port: u16) -> TcpStream {
    for _ in 0..400 {
        if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)).await {
            return stream;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("nothing listens at {port}");
}
