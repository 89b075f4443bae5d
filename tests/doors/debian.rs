//! Both Debians: their clients at our door, and their own sshd with an `.authorized_keys` of ours. This machine is the older one; the
//! newer is the root that the machines of `tests/host` have, entered with chroot in a mount namespace.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::OnceLock,
    time::Duration,
};

use seed::spec::authorized_keys;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
};

use crate::{
    guests::{self, Guests},
    support::{World, run},
};

/// The root of the machine that Seed is installed on: it has git, and the clients of OpenSSH.
fn host_root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/host/roots");
        let made = std::process::Command::new(script).arg("host").stderr(Stdio::inherit()).output().unwrap();
        assert!(made.status.success(), "tests/host/roots host");
        PathBuf::from(String::from_utf8(made.stdout).unwrap().trim())
    })
}

/// Runs a program in a root, to which nothing is written, with a folder of this machine at its place.
const IN_ROOT: &str = r#"
root=$1 folder=$2; shift 2
mkdir -p /run/debian && mount -t tmpfs debian /run/debian && mkdir /run/debian/upper /run/debian/work /run/debian/root
at=/run/debian/root
mount -t overlay -o lowerdir=$root,upperdir=/run/debian/upper,workdir=/run/debian/work debian $at
mount --rbind /dev $at/dev
mount --rbind /proc $at/proc
mount -t tmpfs run $at/run
mkdir -p $at/run/sshd $at$folder && mount --bind $folder $at$folder
exec chroot $at "$@"
"#;

/// Whose programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Debian {
    Ours,
    Next,
}

impl Debian {
    fn program(self, world: &World, program: &str) -> Command {
        if self == Self::Ours {
            return Command::new(program);
        }
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "bash", "-euc", IN_ROOT, "bash"]);
        command.arg(host_root()).arg(world.directory.path()).arg(program);
        command
    }
}

/// ssh's options, for a client that has another name for the port.
fn copying(world: &World, person: &str) -> Vec<String> {
    world.options(person).into_iter().map(|option| if option == "-p" { "-P".to_owned() } else { option }).collect()
}

async fn clients_work(debian: Debian) {
    let world = World::new().await;
    let guests = Guests::of(&world).await;
    let does = async |program: &str, options: Vec<String>, words: &[&str]| {
        let ran = run(debian.program(&world, program).args(options).args(words)).await;
        assert_eq!(ran.code, 0, "{debian:?} {program} {words:?}: {ran:?} {}", guests.log());
        ran.out
    };
    let version = run(debian.program(&world, "ssh").arg("-V")).await.err;
    assert_eq!(debian == Debian::Next, version.starts_with("OpenSSH_10"), "{version}");
    for (kind, bits) in [("ed25519", "256"), ("ecdsa", "256"), ("ecdsa", "384"), ("ecdsa", "521"), ("rsa", "3072")] {
        let (name, made) = (format!("{kind}{bits}"), world.path(&format!("{kind}{bits}")));
        let words = ["-q", "-t", kind, "-b", bits, "-N", "", "-f", made.to_str().unwrap()];
        does("ssh-keygen", vec![], &words).await;
        let said = does("ssh", world.options(&name), &["127.0.0.1", "whoami"]).await;
        assert_eq!(said.trim(), world.key_id(&name).await, "{name}");
    }
    let ran =
        run(debian.program(&world, "ssh").args(world.options("ann")).args(["127.0.0.1", "exec", "web", "--", "exit 42"])).await;
    assert_eq!(ran.code, 42, "{ran:?}");

    let path = |name: &str| world.path(name).display().to_string();
    std::fs::write(world.path("file"), "some text").unwrap();
    for (round, options) in [&[][..], &["-O"]].into_iter().enumerate() {
        let (file, there, back) = (path("file"), format!("127.0.0.1:web:/srv/file{round}"), path(&format!("back{round}")));
        does("scp", copying(&world, "ann"), &[options, &[&file, &there]].concat()).await;
        does("scp", copying(&world, "ann"), &[options, &[&there, &back]].concat()).await;
        assert_eq!(std::fs::read_to_string(back).unwrap(), "some text");
    }
    std::fs::write(world.path("batch"), format!("cd web:/srv\nget file0 {}\nrename file1 file2\n", path("got"))).unwrap();
    does("sftp", copying(&world, "ann"), &["-b", &path("batch"), "127.0.0.1"]).await;
    assert!(world.path("got").exists() && guests.srv("web").join("file2").exists());

    // The guests of this test share their network with it.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let echo = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut read, mut write) = stream.split();
        drop(tokio::io::copy(&mut read, &mut write).await);
    };
    let own = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let mut tunnel = debian.program(&world, "ssh");
    tunnel.args(world.options("ann")).args(["-N", "-L", &format!("{own}:web:{port}"), "127.0.0.1"]);
    let mut tunnel = tunnel.kill_on_drop(true).spawn().unwrap();
    let talk = async {
        let mut stream = loop {
            match tokio::net::TcpStream::connect(("127.0.0.1", own)).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        stream.write_all(b"hello").await.unwrap();
        let mut back = [0; 5];
        stream.read_exact(&mut back).await.unwrap();
        back
    };
    let both = async { tokio::join!(echo, talk).1 };
    assert_eq!(&tokio::time::timeout(Duration::from_secs(30), both).await.expect("in time"), b"hello");
    tunnel.kill().await.unwrap();

    world.project("p").await;
    let git = async |words: &[&str]| {
        let mut command = debian.program(&world, "git");
        command
            .env("GIT_SSH_COMMAND", format!("ssh {}", world.options("ann").join(" ")))
            .env("GIT_CONFIG_GLOBAL", path("gitconfig"));
        let ran = run(command.args(words)).await;
        assert_eq!(ran.code, 0, "{debian:?} git {words:?}: {ran:?}");
        ran
    };
    git(&["-C", &path("p"), "push", "silo", "main"]).await.err_has("my-app is a new repository");
    git(&["clone", "-q", &world.url("my-app"), &path("cloned")]).await;
    assert!(world.path("cloned/flake.nix").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_of_this_debian_work() {
    clients_work(Debian::Ours).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_of_the_next_debian_work() {
    clients_work(Debian::Next).await;
}

/// This machine's sshd and the libraries that only it needs: installed here, or unpacked from Debian's packages.
fn own_sshd() -> (PathBuf, PathBuf) {
    if Path::new("/usr/sbin/sshd").exists() {
        return ("/usr/sbin/sshd".into(), "/usr/lib".into());
    }
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sshd");
    if !place.exists() {
        let new = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let script = "cd \"$1\" && apt-get download -qq openssh-server libwrap0 && for it in *.deb; do dpkg-deb -x \"$it\" .; done";
        let status = std::process::Command::new("bash").args(["-euc", script, "bash"]).arg(new.path()).status().unwrap();
        assert!(status.success(), "there is no sshd here, and its package cannot be had: install openssh-server");
        // Another test program may have been quicker.
        if std::fs::rename(new.path(), &place).is_ok() {
            drop(new.keep());
        }
    }
    (place.join("usr/sbin/sshd"), place.join("usr/lib/x86_64-linux-gnu"))
}

/// Runs an sshd of this machine's, which may have no user for it and no root that may log in.
const OWN: &str = r#"
sshd=$1 libraries=$2 folder=$3
mount -t tmpfs run /run && mkdir /run/sshd
grep -v ^sshd: /etc/passwd >/run/passwd && echo 'sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin' >>/run/passwd
sed 's/^root:[^:]*:/root:*:/' /etc/shadow >/run/shadow && chmod 600 /run/shadow
mount --bind /run/passwd /etc/passwd && mount --bind /run/shadow /etc/shadow
LD_LIBRARY_PATH=$libraries exec "$sshd" -i -e -f "$folder/sshd_config"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn their_sshd_takes_the_lines_that_we_take() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let shown = |name: &str| at(name).display().to_string();
    // Who, what stands before the key, what we make of it, and what a session there has of it.
    let table = [
        ("plain", "", "deploy", Some("/")),
        ("reader", "environment=\"SEED_ROLE=read\" ", "read", Some("read/")),
        ("admin", "environment=\"SEED_ROLE=admin\",expiry-time=\"20300101Z\" ", "admin, until 20300101Z", Some("admin/")),
        ("web", "restrict,environment=\"SEED_INSTANCE=web\" ", "deploy, only web", Some("/web")),
        (
            "all",
            "restrict,environment=\"SEED_ROLE=read\",environment=\"SEED_INSTANCE=web\",expiry-time=\"203001011230Z\" ",
            "read, only web, until",
            Some("read/web"),
        ),
        ("expired", "environment=\"SEED_ROLE=admin\",expiry-time=\"20200101Z\" ", "admin, until 20200101Z", None),
    ];
    let mut text = "# who may push\n".to_owned();
    for (name, options, ..) in table {
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(at(name))).await.ok();
        text.push_str(&format!("{options}{}", std::fs::read_to_string(at(&format!("{name}.pub"))).unwrap()));
    }
    std::fs::write(at("authorized_keys"), &text).unwrap();
    let (grants, passed) = authorized_keys::read(&text);
    assert!(passed.is_empty() && grants.len() == table.len(), "{passed:?}");
    for ((name, _, meant, _), grant) in table.iter().zip(&grants) {
        assert!(grant.to_string().contains(meant), "{name}: {grant}");
    }

    run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(at("host_key"))).await.ok();
    let settings = format!(
        "HostKey {}\nAuthorizedKeysFile {}\nPermitUserEnvironment SEED_*\nPermitRootLogin yes\nStrictModes no\nUsePAM no\n",
        shown("host_key"),
        shown("authorized_keys")
    );
    std::fs::write(at("sshd_config"), &settings).unwrap();
    // As it is out of the box: the roles say nothing to it, and the lines are good all the same.
    let bare: String =
        settings.lines().filter(|line| !line.starts_with("PermitUserEnvironment")).flat_map(|line| [line, "\n"]).collect();
    std::fs::write(at("sshd_config.bare"), bare).unwrap();
    let script = |name: &str, script: &str, words: &[&Path]| {
        let words: Vec<String> = words.iter().map(|word| format!("'{}'", word.display())).collect();
        std::fs::write(at(&format!("{name}.sh")), script).unwrap();
        let line = format!(
            "#!/bin/sh\nexec unshare --mount --propagation private bash -eu '{}' {}\n",
            shown(&format!("{name}.sh")),
            words.join(" ")
        );
        std::fs::write(at(name), line).unwrap();
        std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let (sshd, libraries) = own_sshd();
    script("ours", OWN, &[&sshd, &libraries, dir.path()]);
    let config = at("sshd_config");
    let words =
        [guests::root(), dir.path(), Path::new("/usr/sbin/sshd"), Path::new("-i"), Path::new("-e"), Path::new("-f"), &config];
    script("next", IN_ROOT, &words);
    let bare = at("sshd_config.bare");
    let words: Vec<&Path> = words.iter().map(|word| if *word == config { bare.as_path() } else { word }).collect();
    script("bare", IN_ROOT, &words);
    for server in ["ours", "next", "bare"] {
        let (proxy, known) = (format!("ProxyCommand={}", shown(server)), format!("UserKnownHostsFile={}", shown("known_hosts")));
        for (name, _, _, has) in table {
            let mut command = Command::new("ssh");
            command.args([
                "-F",
                "/dev/null",
                "-o",
                "BatchMode=yes",
                "-o",
                "IdentitiesOnly=yes",
                "-o",
                "StrictHostKeyChecking=accept-new",
            ]);
            command.args(["-o", &proxy, "-o", &known, "-i", &shown(name), "root@stock", "echo \"$SEED_ROLE/$SEED_INSTANCE\""]);
            let ran = run(&mut command).await;
            match has.map(|has| if server == "bare" { "/" } else { has }) {
                Some(has) => assert_eq!((ran.code, ran.out.trim_end()), (0, has), "{server} {name}: {ran:?}"),
                None => {
                    assert_eq!(ran.code, 255, "{server} {name}: {ran:?}");
                    ran.err_has("Permission denied");
                }
            }
        }
    }
}
