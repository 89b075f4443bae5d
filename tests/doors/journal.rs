//! Pushes that were taken, and doors that are killed meanwhile; and a repository that becomes another one under who waits for it.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use seed::{
    bus::SeedProxy,
    serve::{Settings, Sockets},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, UdpSocket},
    process::{Child, ChildStdin, Command},
};

use crate::{
    small::{ZERO, begun, git, said},
    small_attacks::made,
    support::{World, connect, dns_settings, run, until},
    vanish::programs,
};

/// Tells the process that it is the doors, and where.
const DOORS: &str = "SEED_DOORS_BELOW";

/// The doors in this process, for good.
async fn serve_below(at: &Path) {
    let bus = connect(&format!("unix:path={}", at.join("bus").display())).await;
    let mut settings = Settings::new("seed.example".parse().unwrap(), at.join("repos"), at.join("ssh/host_key"), dns_settings());
    let found =
        std::env::split_paths(&std::env::var_os("PATH").unwrap()).map(|folder| folder.join("git")).find(|path| path.is_file());
    settings.git = found.unwrap();
    settings.settle_after = Duration::from_millis(700);
    let ssh = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("listening at {}", ssh.local_addr().unwrap().port());
    let (udp, tcp) = (UdpSocket::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let sockets = Sockets { ssh: vec![ssh], dns_udp: vec![udp], dns_tcp: vec![tcp], http: vec![http.into()], ..Sockets::default() };
    seed::serve::run_until(settings, SeedProxy::new(&bus).await.unwrap(), sockets, std::future::pending()).await.unwrap();
}

/// Starts them.
async fn doors(world: &mut World, test: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(DOORS, world.path(""));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        if let Some((_, port)) = line.split_once("listening at ") {
            world.port = port.parse().unwrap();
            return child;
        }
    }
    panic!("the doors did not open");
}

/// One who pushes commit after commit to one branch.
struct Pusher {
    project: String,
    repository: &'static str,
    branch: String,
    /// With a tag that nobody has, a push is for git.
    with_tags: bool,
    count: usize,
    acknowledged: Option<String>,
    tried: Option<String>,
}

impl Pusher {
    /// Pushes until the doors have gone.
    async fn go_on(&mut self, world: &World) {
        loop {
            self.count += 1;
            world.commit(&self.project, "file", format!("{} {}\n", self.project, self.count).repeat(100).as_bytes()).await;
            self.tried = Some(said(world, &world.path(&self.project), &["rev-parse", "HEAD"]).await);
            let (url, refspec) = (world.url(self.repository), format!("HEAD:{}", self.branch));
            let tag = format!("HEAD:refs/tags/{}-{}", self.project, self.count);
            let mut words = vec!["push", "-q", "-o", "async", &url, &refspec];
            if self.with_tags && self.count.is_multiple_of(3) {
                words.push(&tag);
            }
            if world.git("ann", &self.project, &words).await.code != 0 {
                return;
            }
            self.acknowledged.clone_from(&self.tried);
        }
    }
}

/// What a power cut may leave of what nobody has waited for since git was asked last.
fn cut_power(bare: &Path, seed: usize) {
    let folder = std::fs::read_dir(bare).into_iter().flatten().flatten().map(|entry| entry.path());
    let Some(journal) = folder.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("pushes-")).max() else {
        return;
    };
    let bytes = std::fs::read(journal).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    let tail = ["\"is\":\"git\"", "\"is\":\"settled\""].iter().filter_map(|mark| text.rfind(mark)).max().unwrap_or(0);
    let value = |entry: &str, key: &str| {
        let rest = entry.split_once(&format!("\"{key}\":\""))?.1;
        Some(rest.split('"').next()?.to_owned())
    };
    for (n, entry) in text[tail..].split("\"is\":\"push\"").skip(1).enumerate() {
        // One that brings nothing is a ref that goes where another is.
        let Some(sum) = value(entry, "sum") else { continue };
        let pack = bare.join("objects/pack").join(format!("pack-{sum}.pack"));
        match (seed + n) % 4 {
            0 => drop(std::fs::remove_file(pack)),
            1 => drop(std::fs::remove_file(pack.with_extension("idx"))),
            2 => {
                let at = bare.join(value(entry, "reference").unwrap());
                std::fs::write(at, "").unwrap();
                drop(std::fs::remove_file(&pack));
                std::fs::write(pack, "").unwrap();
            }
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doors_that_are_killed_lose_nothing_that_they_took() {
    const TEST: &str = "journal::doors_that_are_killed_lose_nothing_that_they_took";
    if let Some(at) = std::env::var_os(DOORS) {
        return serve_below(&PathBuf::from(at)).await;
    }
    let mut world = World::new().await;
    world.close_doors().await;
    let rounds = std::env::var("SEED_ROUNDS").map_or(3, |text| text.parse().unwrap());
    let mut pushers = Vec::new();
    for n in 0..5 {
        let project = format!("p{n}");
        world.project(&project).await;
        let repository = if n < 3 { "my-app" } else { ["one", "two"][n - 3] };
        let branch = if n == 1 || n == 2 { format!("refs/heads/b{n}") } else { "refs/heads/main".to_owned() };
        pushers.push(Pusher { project, repository, branch, with_tags: n > 1, count: 0, acknowledged: None, tried: None });
    }
    for round in 0..rounds {
        let mut doors = doors(&mut world, TEST).await;
        let killer = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(3000 + round as u64 * 377 % 1500)).await;
            doors.kill().await.unwrap();
        });
        futures_util::future::join_all(pushers.iter_mut().map(|pusher| pusher.go_on(&world))).await;
        killer.await.unwrap();
        // systemd ends git with the doors.
        until("git to have ended", || programs(&world).is_empty()).await;
        for repository in ["my-app", "one", "two"] {
            cut_power(&world.repository(repository), round);
        }
        let mut again = self::doors(&mut world, TEST).await;
        world.ssh("ann", &["whoami"]).await.ok();
        for pusher in &mut pushers {
            let now = world.at(pusher.repository, &pusher.branch).await;
            let what = format!("round {round}, push {} of {}", pusher.count, pusher.project);
            assert!(now == pusher.acknowledged || now == pusher.tried, "{what}: {now:?}");
            pusher.acknowledged.clone_from(&now);
            if let Some(head) = now.filter(|_| pusher.branch == "refs/heads/main") {
                let told =
                    || world.agent.told().pushes.iter().any(|push| push.starts_with(pusher.repository) && push.contains(&head));
                until("the agent to be told", told).await;
            }
        }
        for repository in ["my-app", "one", "two"] {
            let path = world.repository(repository);
            if path.exists() {
                let checked = run(&mut git(&world, &path, &["fsck", "--strict", "--full"])).await;
                assert_eq!(checked.code, 0, "round {round}, {repository}: {checked:?}");
            }
        }
        again.kill().await.unwrap();
    }
    let pushed: usize = pushers.iter().map(|pusher| pusher.count).sum();
    eprintln!("{pushed} pushes in {rounds} rounds");
    assert!(pushers.iter().all(|pusher| pusher.acknowledged.is_some()));
}

/// A client of receive-pack that was told the refs.
async fn client(world: &World) -> (Child, ChildStdin) {
    let mut command = world.ssh_command("ann", &["git-receive-pack", "'my-app'"]);
    let mut client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    client.stdout.as_mut().unwrap().read_exact(&mut [0; 40]).await.unwrap();
    let stdin = client.stdin.take().unwrap();
    (client, stdin)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_is_another_when_its_turn_has_come_gets_nothing() {
    let world = begun().await;
    let head = said(&world, &world.path("p"), &["rev-parse", "HEAD"]).await;
    let create = |name: &str| {
        let update = format!("{ZERO} {head} refs/tags/{name}\0 report-status side-band-64k");
        format!("{:04x}{update}0000", update.len() + 4)
    };
    // Whose turn it is, until it sends its pack or another has waited for long enough.
    let (_slow, mut slow) = client(&world).await;
    slow.write_all(create("slow").as_bytes()).await.unwrap();
    slow.flush().await.unwrap();
    let journal = world.repository("my-app").join("pushes-0");
    let asked = || String::from_utf8_lossy(&std::fs::read(&journal).unwrap()).contains("\"is\":\"git\"");
    until("git to be asked", asked).await;
    let (late, mut stdin) = client(&world).await;
    let pack = git(&world, &world.path("p"), &["pack-objects", "--all", "--stdout", "-q"]).output().await.unwrap().stdout;
    stdin.write_all(&[create("late").as_bytes(), &pack].concat()).await.unwrap();
    stdin.flush().await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let path = world.repository("my-app");
    std::fs::rename(&path, path.with_file_name("gone")).unwrap();
    made(&path);
    drop(stdin);
    let output = tokio::time::timeout(Duration::from_secs(60), late.wait_with_output()).await.unwrap().unwrap();
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(answer.contains("renamed or deleted while you pushed"), "{answer}");
    assert_eq!(world.at("my-app", "refs/tags/late").await, None);
    assert_eq!(std::fs::read_dir(path.join("objects/pack")).unwrap().count(), 0);
}
