//! The git hosting over HTTPS: real git clients and curl, without a key.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Output},
};

use seed::{
    spec::access::{Repository, Visibility, fingerprint},
    state::memory::MemoryState,
};

use crate::{
    https::{shake, world},
    world::{World, command, run, until},
};

impl World {
    /// The agent knows of this repository.
    fn give(&mut self, name: &str, visibility: Visibility) {
        self.kill_agent();
        let mut memory = self.state.memory();
        let repository = Repository { visibility, ..Repository::new(name.parse().unwrap(), fingerprint(b"ann"), 1) };
        memory.repos.insert(name.parse().unwrap(), repository);
        self.state = MemoryState::with(memory);
        self.start_agent();
    }
}

fn git(world: &World, words: &[&str]) -> Command {
    let port = world.https_port();
    let mut git = command("git");
    git.env("HOME", world.path("home")).env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_TERMINAL_PROMPT", "0").env("LC_ALL", "C.UTF-8");
    git.args(["-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main", "-c"]);
    git.arg(format!("http.curloptResolve=silo.seed.example:{port}:127.0.0.1")).env("GIT_SSL_CAINFO", world.path("roots.pem"));
    git.args(words);
    git
}

fn url(world: &World, name: &str) -> String {
    format!("https://silo.seed.example:{}/{name}", world.https_port())
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A commit with this file, on top of what is there.
fn commit(world: &World, at: &Path, file: &str, bytes: &[u8]) {
    std::fs::write(at.join(file), bytes).unwrap();
    run(git(world, &["add", "."]).current_dir(at));
    run(git(world, &["commit", "-q", "-m", file]).current_dir(at));
}

/// A working copy whose every commit is on the host, in a repository with many branches.
fn repository(world: &mut World, name: &str, visibility: Visibility) -> std::path::PathBuf {
    world.give(name, visibility);
    let at = world.path(&format!("work-{name}"));
    run(git(world, &["init", "-q"]).arg(&at));
    commit(world, &at, "page", b"hello");
    for n in 0..24 {
        commit(world, &at, &format!("file{n}"), b"x");
        run(git(world, &["branch", &format!("topic/{n}")]).current_dir(&at));
    }
    let bare = world.path(&format!("repos/{name}.git"));
    run(git(world, &["init", "-q", "--bare"]).arg(&bare));
    run(git(world, &["push", "-q", "--all"]).arg(&bare).current_dir(&at));
    at
}

#[test]
fn git_clones_and_fetches_what_is_public_without_a_key() {
    let mut world = world();
    let work = repository(&mut world, "app", Visibility::Public);
    let head = |world: &World, at: &Path, name: &str| run(git(world, &["rev-parse", name]).current_dir(at));
    for (folder, words) in [
        ("v2", &[][..]),
        ("v0", &["-c", "protocol.version=0"]),
        ("shallow", &["--depth", "1", "--no-single-branch"]),
        ("partial", &["--filter=blob:none"]),
    ] {
        let (before, after) = if words.first() == Some(&"-c") { (words, &[][..]) } else { (&[][..], words) };
        let mut clone = git(&world, &[before, &["clone"], after].concat());
        let trace = run(clone.env("GIT_TRACE_CURL", "1").arg(url(&world, "app")).arg(world.path(folder)));
        // So many branches are more than git sends as they are.
        assert!(trace.to_ascii_lowercase().contains("content-encoding: gzip"), "{folder}: nothing was packed");
        let at = world.path(folder);
        run(git(&world, &["fsck", "--strict"]).current_dir(&at));
        assert_eq!(std::fs::read(at.join("page")).unwrap(), b"hello", "{folder}");
        assert_eq!(head(&world, &at, "origin/topic/23"), head(&world, &work, "topic/23"), "{folder}");
    }
    commit(&world, &work, "later", b"more");
    run(git(&world, &["push", "-q"]).arg(world.path("repos/app.git")).arg("main").current_dir(&work));
    for folder in ["v2", "v0"] {
        run(git(&world, &["pull", "-q"]).current_dir(world.path(folder)));
        assert_eq!(std::fs::read(world.path(folder).join("later")).unwrap(), b"more", "{folder}");
    }
    run(git(&world, &["ls-remote", &url(&world, "app.git")]).current_dir(&work));

    let push = git(&world, &["push", &url(&world, "app"), "main:new"]).current_dir(&work).output().unwrap();
    assert!(!push.status.success() && said(&push).contains("403"), "{}", said(&push));
    let refs = run(git(&world, &["for-each-ref", "refs/heads/new"]).current_dir(world.path("repos/app.git")));
    assert_eq!(refs, "", "nothing came in");
}

#[test]
fn what_is_private_or_not_there_is_told_apart_by_nobody() {
    let mut world = world();
    repository(&mut world, "secret", Visibility::Private);
    let answers = ["secret", "missing"].map(|name| {
        let clone = git(&world, &["clone", "-q", &url(&world, name)]).arg(world.path("never")).output().unwrap();
        assert!(!clone.status.success() && said(&clone).contains("not found"), "{}", said(&clone));
        let ways = [
            format!("{name}/info/refs?service=git-upload-pack"),
            format!("{name}/archive/main.tar.gz"),
            format!("{name}/git-upload-pack"),
        ];
        ways.map(|path| {
            let mut curl = curl(&world);
            if path.ends_with("git-upload-pack") && !path.contains('?') {
                curl.args(["-H", "Content-Type: application/x-git-upload-pack-request", "--data-binary", "0000"]);
            }
            run(curl.args(["-w", "%{http_code}"]).arg(url(&world, &path))).replace(name, "NAME")
        })
    });
    assert_eq!(answers[0], answers[1]);
    assert!(answers[0].iter().all(|answer| answer.ends_with("404")), "{answers:?}");
}

fn curl(world: &World) -> Command {
    let mut curl = command("curl");
    curl.args(["-sS", "-m", "30", "--path-as-is", "--cacert"]).arg(world.path("roots.pem"));
    curl.args(["--resolve", &format!("silo.seed.example:{}:127.0.0.1", world.https_port())]);
    curl
}

#[test]
fn a_branch_or_a_tag_is_an_archive() {
    let mut world = world();
    let work = repository(&mut world, "app", Visibility::Public);
    run(git(&world, &["tag", "v1"]).current_dir(&work));
    run(git(&world, &["push", "-q"]).arg(world.path("repos/app.git")).arg("v1").current_dir(&work));
    for name in ["main", "topic/3", "v1"] {
        let file = world.path("got.tar.gz");
        run(curl(&world).arg("-f").arg("-o").arg(&file).arg(url(&world, &format!("app/archive/{name}.tar.gz"))));
        let list = run(command("tar").arg("-tzf").arg(&file));
        assert!(list.lines().all(|line| line.starts_with("app/")) && list.contains("app/page\n"), "{name}: {list}");
        assert_eq!(list.contains("app/file23\n"), name != "topic/3", "{name}: {list}");
    }
    let status = |path: &str| run(curl(&world).args(["-o", "/dev/null", "-w", "%{http_code}"]).arg(url(&world, path)));
    for path in ["app/archive/none.tar.gz", "app/archive/main.zip", "app/archive/--output=x.tar.gz", "app/archive/../../x.tar.gz"] {
        assert_eq!(status(path), "404", "{path}");
    }
    assert_eq!(status("app/info/refs"), "403", "only git's smart protocol");
    assert_eq!(status("app/info/refs?service=git-receive-pack"), "403");
    assert!(!world.path("repos/app.git/x.tar.gz").exists());
}

/// Asks for an archive from this address, and reads nothing of it.
fn ask(world: &World, client: [u8; 4]) -> impl Read + Write + use<> {
    let mut stream = UnixStream::connect(world.path("https.sock")).unwrap();
    let addresses = [&client[..], &[192, 0, 2, 1, 1, 1, 1, 187]].concat();
    stream.write_all(&[&b"\r\n\r\n\0\r\nQUIT\n"[..], &[0x21, 0x11, 0, 12], &addresses].concat()).unwrap();
    let mut stream = shake(world, stream).unwrap();
    stream.write_all(b"GET /big/archive/main.tar.gz HTTP/1.1\r\nHost: silo.seed.example\r\n\r\n").unwrap();
    stream.flush().unwrap();
    stream
}

/// How many gits work in this world.
fn gits(world: &World) -> usize {
    let repository = world.path("repos/big.git").display().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| std::fs::read_to_string(process.path().join("cmdline")).ok());
    lines.filter(|line| line.contains(&repository) && line.contains("archive")).count()
}

#[test]
fn one_network_has_so_many_at_a_time_and_who_hangs_up_leaves_nothing_behind() {
    let mut world = world();
    let work = repository(&mut world, "big", Visibility::Public);
    let mut noise = vec![0; 8 << 20];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    commit(&world, &work, "noise", &noise);
    run(git(&world, &["push", "-q"]).arg(world.path("repos/big.git")).arg("main").current_dir(&work));
    let slow: Vec<_> = (0..6).map(|n| ask(&world, [203, 0, 113, n])).collect();
    until("four of them", || gits(&world) == 4);
    // Somebody else does not wait for them.
    let mut other = ask(&world, [198, 51, 100, 7]);
    let mut head = [0; 15];
    other.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    // The answer may begin before its git does.
    until("a git for it", || gits(&world) == 5);
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(gits(&world), 5, "two of the six wait");
    drop((slow, other));
    until("no git", || gits(&world) == 0);
}
