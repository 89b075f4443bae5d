//! Guests to get into: the real sshd of the system that the machines of `tests/host` boot, in a mount namespace instead of a virtual
//! machine, behind an agent that lets ann in as the real one does.

use std::{
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use seed::{
    agent::authority::Authority,
    bus::{
        Refusal,
        guest::{Act, Way},
    },
};

use crate::support::World;

/// The system, unpacked once.
pub fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/host/roots");
        let made = Command::new(script).arg("guest").stderr(Stdio::inherit()).output().unwrap();
        assert!(made.status.success(), "tests/host/roots guest");
        let made = PathBuf::from(String::from_utf8(made.stdout).unwrap().trim());
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(made.file_name().unwrap());
        if !root.exists() {
            let new = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            let tar = made.join("root.tar.gz");
            let status = Command::new("tar").arg("-xzf").arg(tar).arg("-C").arg(new.path()).arg("--strip-components=1").status();
            assert!(status.unwrap().success());
            // Another test program may have been quicker.
            if std::fs::rename(new.path(), &root).is_ok() {
                drop(new.keep());
            }
        }
        root
    })
}

/// Whatever sshd writes goes to the system in its own memory, but for /srv, which is the test's.
const SSHD: &str = r#"
root=$1 srv=$2
mkdir -p /run/guest && mount -t tmpfs guest /run/guest && mkdir /run/guest/upper /run/guest/work /run/guest/root
at=/run/guest/root
mount -t overlay -o lowerdir=$root,upperdir=/run/guest/upper,workdir=/run/guest/work guest $at
mount --rbind /dev $at/dev
mount -t proc proc $at/proc
mount -t tmpfs run $at/run
mkdir -p $at/run/sshd
mount --bind $srv $at/srv
exec chroot $at /usr/sbin/sshd -i -e -f /srv/sshd_config
"#;

const SETTINGS: &str = "HostKey /srv/host_key\nAuthorizedKeysFile /srv/keys\nStrictModes no\nUsePAM no\nLogLevel VERBOSE\n\
                        Subsystem sftp /usr/lib/openssh/sftp-server\n";

/// The agent's part.
#[derive(Clone)]
pub struct Guests {
    /// What was asked: `who instance act what`.
    pub asked: Arc<Mutex<Vec<String>>>,
    /// How many are inside.
    inside: Arc<AtomicUsize>,
    authority: Authority,
    ann: String,
    directory: PathBuf,
}

#[zbus::interface(name = "farm.loom.Seed1.Guest")]
impl Guests {
    fn enter(&self, who: &str, instance: &str, key: &str, act: &str, what: &str) -> Result<(zbus::OwnedFd, String), Refusal> {
        self.asked.lock().unwrap().push(format!("{who} {instance} {act} {what}"));
        // Nobody is the operator.
        if !who.is_empty() && !who.starts_with(&self.ann) {
            return Err(Refusal::NotFound(format!("you have no instance {instance:?}; you have none yet")));
        }
        match instance {
            "web" | "my-app/web" | "api" => {}
            "deaf" => return Err(Refusal::Failed("nothing in deaf listens for SSH on vsock".into())),
            // Says nothing, for ever.
            "mute" => {
                let (ours, theirs) = UnixStream::pair().unwrap();
                Box::leak(Box::new(theirs));
                return Ok((OwnedFd::from(ours).into(), self.way(key, "web", Act::Exec)));
            }
            _ => return Err(Refusal::NotFound(format!("you have no instance {instance:?}; there is my-app/api, my-app/web"))),
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        let name = instance.rsplit('/').next().unwrap();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.directory.join("log")).unwrap();
        let mut child = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "bash", "-euc", SSHD, "sshd"])
            .arg(root())
            .arg(self.directory.join(name))
            .stdin(OwnedFd::from(theirs.try_clone().unwrap()))
            .stdout(OwnedFd::from(theirs))
            .stderr(log)
            .spawn()
            .unwrap();
        let inside = Arc::clone(&self.inside);
        inside.fetch_add(1, Ordering::Relaxed);
        std::thread::spawn(move || {
            drop(child.wait());
            inside.fetch_sub(1, Ordering::Relaxed);
        });
        Ok((OwnedFd::from(ours).into(), self.way(key, name, Act::named(act).unwrap())))
    }
}

impl Guests {
    fn way(&self, key: &str, name: &str, act: Act) -> String {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let key = russh::keys::PublicKey::from_openssh(key).unwrap();
        let certificate = self.authority.certify(&key, &format!("s-aaaaaaaaaaaa-{name}"), "ann", act, now).unwrap();
        let way = Way { version: 1, instance: format!("s-aaaaaaaaaaaa/{name}"), user: "root".into(), certificate };
        serde_json::to_string(&way).unwrap()
    }

    /// The `web` and `api` of ann's in a world.
    pub async fn of(world: &World) -> Self {
        let directory = world.path("guests");
        let authority = Authority::new().unwrap();
        for name in ["web", "api"] {
            let srv = directory.join(name);
            std::fs::create_dir_all(&srv).unwrap();
            std::fs::write(srv.join("name"), name).unwrap();
            std::fs::write(srv.join("sshd_config"), SETTINGS).unwrap();
            let line = format!("cert-authority,principals=\"s-aaaaaaaaaaaa-{name}\" {} seed\n", authority.public());
            std::fs::write(srv.join("keys"), line).unwrap();
            let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(srv.join("host_key")).status();
            assert!(made.unwrap().success());
        }
        let guests = Self { asked: Arc::default(), inside: Arc::default(), authority, ann: world.key_id("ann").await, directory };
        root();
        world.agent_bus.object_server().at(seed::bus::PATH, guests.clone()).await.unwrap();
        guests
    }

    /// Where /srv of a guest is.
    pub fn srv(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// What was asked since the last time.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    /// How many visitors' sshds there are, each with all that was started by it.
    pub fn inside(&self) -> usize {
        self.inside.load(Ordering::Relaxed)
    }

    /// ann's fingerprint.
    pub fn ann(&self) -> String {
        self.ann.clone()
    }

    /// What the guests' sshd wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}
