//! A HAProxy with the configuration that is rendered, and guests of plain sockets, all on loopback.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixListener, process::CommandExt},
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, fcntl},
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use seed::{
    config::Config,
    host::ingress,
    plan::{Observed, ObservedIngress, ObservedInstance, Step, Tap, UnitState, plan},
    render::{Layout, Tools, Vmm, ingress::admin_socket, target},
    spec::{
        address::Lease,
        desired::{Desired, Wanted},
        instance::{Instance, Port, Protocol, Rollout, Size},
        name::SetId,
    },
};

pub struct World {
    pub layout: Layout,
    pub desired: Desired,
    /// What systemd says of the instances.
    pub states: BTreeMap<SetId, UnitState>,
    /// Where 80 and 443 are here: IPv4, then IPv6.
    pub http: [SocketAddr; 2],
    pub https: [SocketAddr; 2],
    /// Kept open, as systemd keeps them.
    sockets: Vec<OwnedFd>,
    haproxy: Option<Child>,
    dir: tempfile::TempDir,
}

pub fn id(name: &str) -> SetId {
    format!("s-aaaaaaaaaaaa/{name}").parse().unwrap()
}

/// The full name of an instance.
pub fn name(instance: &str) -> String {
    format!("{instance}.s-aaaaaaaaaaaa.seed.example")
}

/// The ports that instances expose here as http and https: 80 and 443 are not everybody's.
pub const HTTP: u16 = 18_080;
pub const HTTPS: u16 = 18_443;

impl World {
    /// A host whose instances have addresses of 127.`net`.0.0/16; nothing runs yet.
    pub fn new(net: u8) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::parse("domain = \"seed.example\"").unwrap();
        let tool = String::new;
        let tools = Tools {
            seed: tool(),
            cloud_hypervisor: tool(),
            qemu: tool(),
            virtiofsd: tool(),
            swtpm: tool(),
            vhost_device_vsock: tool(),
            journal_remote: tool(),
        };
        let mut layout = Layout { run: dir.path().into(), ingress: Some(1), ..config.layout(Vmm::CloudHypervisor, tools) };
        layout.addressing.pool4 = format!("127.{net}.0.0/16").parse().unwrap();
        std::fs::create_dir_all(dir.path().join("doors")).unwrap();
        ingress::prepare(&layout).unwrap();
        let listen = |ip: &str| TcpListener::bind((ip.parse::<IpAddr>().unwrap(), 0)).unwrap();
        let tcp = ["127.0.0.1", "::1", "127.0.0.1", "::1"].map(listen);
        let at = tcp.each_ref().map(|socket| socket.local_addr().unwrap());
        let admin = UnixListener::bind(admin_socket(&layout)).unwrap();
        let mut sockets: Vec<OwnedFd> = tcp.into_iter().map(OwnedFd::from).collect();
        sockets.push(admin.into());
        Self {
            layout,
            desired: Desired::default(),
            states: BTreeMap::new(),
            http: [at[0], at[1]],
            https: [at[2], at[3]],
            sockets,
            haproxy: None,
            dir,
        }
    }

    /// One more instance that is wanted, exposing these.
    pub fn add(&mut self, name: &str, ports: &[(&str, u16, bool)]) {
        let ports = ports.iter().map(|(name, port, proxy_protocol)| {
            let protocol = Protocol::Tcp;
            (name.parse().unwrap(), Port { port: *port, protocol, proxy_protocol: *proxy_protocol })
        });
        let instance = Instance {
            toplevel: "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-system".parse().unwrap(),
            kernel_params: String::new(),
            closure: vec![],
            size: Size { vcpus: 1, memory_mib: 512 },
            ports: ports.collect(),
            volumes: BTreeMap::new(),
            rollout: Rollout::Recreate,
            acme: false,
            shoot: false,
            tpm: false,
            domains: BTreeSet::new(),
        };
        let lease = Lease(u16::try_from(self.desired.instances.len()).unwrap());
        self.desired.instances.insert(id(name), Wanted { instance, lease });
        self.states.insert(id(name), UnitState::Active);
    }

    /// The address of an instance.
    pub fn address(&self, name: &str) -> Ipv4Addr {
        self.layout.addressing.v4(self.desired.instances[&id(name)].lease)
    }

    /// What the agent would do now, given what it sees; carries it out. How many lines of maps were changed in HAProxy's memory.
    pub async fn converge(&self) -> usize {
        let target = target(&self.desired, &self.layout);
        // All that is rendered for them is there.
        let one = |(id, vm): (&SetId, &UnitState)| {
            let wanted = &target.instances[id];
            let units = wanted.units.iter().map(|unit| (unit.name.clone(), unit.text.clone())).collect();
            let files = wanted.files.iter().map(|file| (file.path.clone(), file.text.clone())).collect();
            let tap = Some(Tap::of(&wanted.address));
            (id.clone(), ObservedInstance { vm: *vm, started: true, units, files, tap, ..ObservedInstance::default() })
        };
        let instances = self.states.iter().map(one);
        let files = ingress::paths(&self.layout).into_iter().filter_map(|path| {
            let text = std::fs::read_to_string(&path).ok()?;
            Some((path, text))
        });
        let running = match &self.haproxy {
            Some(_) => Some(ingress::running(&self.layout).await.unwrap()),
            None => None,
        };
        let ingress = ObservedIngress { files: files.collect(), running, mute: false };
        let observed = Observed { instances: instances.collect(), ingress, ..Observed::default() };
        for step in plan(&target, &observed) {
            if let Step::Route { files, reload, changes } = step {
                assert_eq!(reload, None, "nothing that instances do reloads HAProxy");
                files.iter().for_each(|file| ingress::write(file).unwrap());
                ingress::change(&self.layout, &changes).await.unwrap();
                return changes.len();
            }
        }
        0
    }

    fn command(&self, options: &[&str]) -> Command {
        // Far from the numbers that they get, and passed on.
        let numbers = self.sockets.iter().map(|fd| fcntl(fd.as_fd(), FcntlArg::F_DUPFD(50)).unwrap());
        let redirect: String = (3..).zip(numbers).map(|(to, from)| format!(" {to}<&{from} {from}<&-")).collect();
        let mut command = Command::new("bash");
        let config = self.layout.run.join("ingress/haproxy.cfg");
        command.arg("-c").arg(format!("exec haproxy {} -f {}{redirect}", options.join(" "), config.display()));
        command.env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap())).process_group(0).stdin(Stdio::null());
        command
    }

    /// What HAProxy says of the configuration.
    pub fn check(&self) -> (bool, String) {
        let output = self.command(&["-c"]).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Starts HAProxy as its unit does, and waits until it takes commands.
    pub async fn start(&mut self) {
        self.haproxy = Some(self.command(&["-Ws"]).spawn().unwrap());
        self.until("HAProxy takes commands", async |world| ingress::running(&world.layout).await.is_ok()).await;
    }

    /// Kills it, as a person would.
    pub fn kill(&mut self) {
        let mut child = self.haproxy.take().unwrap();
        killpg(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGKILL).unwrap();
        child.wait().unwrap();
    }

    /// Tells it to read its configuration anew.
    pub fn reload(&self) {
        let pid = self.haproxy.as_ref().unwrap().id();
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGUSR2).unwrap();
    }

    /// The process that serves.
    pub async fn worker(&self) -> String {
        let info = ingress::ask(&admin_socket(&self.layout), "show info").await.unwrap();
        info.lines().find_map(|line| line.strip_prefix("Pid: ")).unwrap().to_owned()
    }

    /// How many connections the one neighbour has who has any, by the table of a port.
    pub async fn crowd(&self, table: &str) -> usize {
        let table = ingress::ask(&admin_socket(&self.layout), &format!("show table {table}")).await.unwrap();
        table.split("conn_cur=").nth(1).map_or(0, |count| count.trim().parse().unwrap())
    }

    pub async fn until(&self, what: &str, holds: impl AsyncFn(&Self) -> bool) {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(30) {
            if holds(self).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("never: {what}");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What curl gets from port 80 under a name: the code, and the page.
    pub fn page(&self, host: &str, options: &[&str]) -> (u16, String) {
        let mut command = Command::new("curl");
        command.args(["-sS", "-m", "20", "-w", "\n%{http_code}", "-H", &format!("Host: {host}")]);
        let output = command.args(options).arg(format!("http://{}/", self.http[0])).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (page, code) = text.rsplit_once('\n').unwrap_or_default();
        (code.parse().unwrap_or(0), page.trim_end().to_owned())
    }

    /// A connection to port 443 on which a TLS client has greeted a name.
    pub fn greet(&self, at: usize, server_name: Option<&str>) -> TcpStream {
        let mut stream = TcpStream::connect(self.https[at]).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // Who is not let in may be hung up on before; whoever reads learns it.
        drop(stream.write_all(&client_hello(server_name)));
        stream
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.haproxy.is_some() {
            self.kill();
        }
    }
}

/// The greeting of a TLS client, as far as a proxy looks into it.
pub fn client_hello(server_name: Option<&str>) -> Vec<u8> {
    let sized = |bytes: Vec<u8>| [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], &bytes].concat();
    let extension = server_name.map(|name| {
        let entry = [&[0][..], &sized(name.as_bytes().to_vec())].concat();
        [&[0, 0][..], &sized(sized(entry))].concat()
    });
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(0);
    body.extend(sized(vec![0x13, 0x01]));
    body.extend([1, 0]);
    body.extend(sized(extension.unwrap_or_default()));
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let message = [&[1][..], &length[1..], &body].concat();
    [&[0x16, 3, 1][..], &sized(message)].concat()
}

/// The head of version 2 of the PROXY protocol: who is connected. Reads no byte more.
pub fn proxied(stream: &mut impl Read) -> SocketAddr {
    let mut head = [0; 16];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(&head[..12], b"\r\n\r\n\0\r\nQUIT\n");
    assert_eq!(head[12], 0x21);
    let mut rest = vec![0; usize::from(u16::from_be_bytes([head[14], head[15]]))];
    stream.read_exact(&mut rest).unwrap();
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    match head[13] {
        0x11 => (<[u8; 4]>::try_from(&rest[..4]).unwrap(), port(8)).into(),
        0x21 => (<[u8; 16]>::try_from(&rest[..16]).unwrap(), port(32)).into(),
        other => panic!("family {other:x}"),
    }
}
