//! The verbs as people type them, on a bus, with the agent of a [`World`] behind them.

use std::{process::Stdio, time::Duration};

use seed::{
    agent::bus::{Face, Trust, serve_on},
    bus::SeedProxy,
    serve::shell::{self, Look},
    spec::{caller::Caller, name::KeyId},
};
use tokio::process::{Child, Command};

use crate::world::World;

/// What a verb printed, and its exit code.
#[derive(Debug)]
pub struct Said {
    pub code: u8,
    pub out: String,
    pub err: String,
}

pub struct Desk {
    agent: SeedProxy<'static>,
    _connections: (zbus::Connection, zbus::Connection),
    _bus: Child,
    _dir: tempfile::TempDir,
}

/// A public key for a name, and its line for `.authorized_keys`.
pub fn person(name: &str) -> (KeyId, String) {
    let blob: Vec<u8> = [&[0, 0, 0, 11][..], b"ssh-ed25519", &(name.len() as u32).to_be_bytes(), name.as_bytes()].concat();
    (seed::spec::access::fingerprint(&blob), format!("ssh-ed25519 {} {name}", data_encoding::BASE64.encode(&blob)))
}

async fn connect(address: &str) -> zbus::connection::Builder<'static> {
    for _ in 0..500 {
        let builder = || zbus::connection::Builder::address(address);
        if builder().build().await.is_ok() {
            return builder();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no bus at {address}");
}

impl Desk {
    pub async fn new(world: &World) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("bus").display().to_string();
        let config = format!(
            "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\"
             \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\"><busconfig><type>session</type>
             <listen>unix:path={socket}</listen><auth>EXTERNAL</auth><policy context=\"default\"><allow send_destination=\"*\" eavesdrop=\"true\"/>
             <allow eavesdrop=\"true\"/><allow own=\"*\"/></policy></busconfig>"
        );
        std::fs::write(dir.path().join("bus.conf"), config).unwrap();
        let bus = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", dir.path().join("bus.conf").display()))
            .args(["--nofork", "--nopidfile"])
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("dbus-daemon is installed");
        let address = format!("unix:path={socket}");
        let face = Face::new(world.handle.clone(), Trust::Peer, "none".to_owned(), "seed.example".to_owned());
        let served = serve_on(connect(&address).await, face).await.unwrap();
        let connection = connect(&address).await.build().await.unwrap();
        let agent = SeedProxy::new(&connection).await.unwrap();
        Self { agent, _connections: (served, connection), _bus: bus, _dir: dir }
    }

    /// The agent, as the doors see it.
    pub fn proxy(&self) -> SeedProxy<'static> {
        self.agent.clone()
    }

    /// Runs a line of words for the holder of a key who comes from 192.0.2.7, or for the operator.
    pub async fn run(&self, who: Option<&KeyId>, line: &str) -> Said {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let who = who.map(|key| Caller::new(key.clone(), [192, 0, 2, 7].into()));
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = shell::run(&words, who.as_ref(), &self.agent, tokio::io::empty(), &mut out, &mut err, Look::default()).await;
        Said { code, out: String::from_utf8(out).unwrap(), err: String::from_utf8(err).unwrap() }
    }
}
