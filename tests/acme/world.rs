//! A world to test in: a bus, an agent with two tenants, the doors, and pebble. Agent and doors each live in a runtime of their own, which
//! is thrown away to kill them; their sockets stay, as systemd keeps them.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use seed::{
    agent::{
        self, Agent,
        authority::Authority,
        bus::{Face, Trust},
    },
    build::{BuildError, Builder, Evaluated, Job, Outputs, Realised},
    bus::SeedProxy,
    config::Config,
    host::sim::Sim,
    render::{Layout, Tools, Vmm},
    serve::{self, Sockets, acme::Ca},
    spec::{
        acme::Ledger,
        address::Addressing,
        name::{FlakeUri, InstanceId, Namespace, StorePath},
    },
    state::{Memory, memory::MemoryState},
};
use serde_json::json;
use tokio::{runtime::Runtime, sync::mpsc};

use crate::{outside::Dns, tenants};

/// Nothing is built here.
#[derive(Clone)]
struct NoBuilder;

impl Builder for NoBuilder {
    async fn eval(&self, _: &Job, _: mpsc::Sender<String>) -> Result<Outputs, BuildError> {
        panic!("nothing is built here")
    }
    async fn realise(
        &self,
        _: &Job,
        _: &BTreeMap<String, Evaluated>,
        _: mpsc::Sender<String>,
    ) -> Result<BTreeMap<String, Realised>, BuildError> {
        panic!("nothing is built here")
    }
    async fn retain(&self, _: &Namespace, _: &[StorePath]) -> Result<(), BuildError> {
        Ok(())
    }
}

/// The key of this host as a customer of the CA's, in base64url.
const CUSTOMER: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";

/// What a tenant is known by here. The first has 127.0.0.1, the second 127.0.0.2.
pub const TENANTS: [&str; 2] = ["first", "second"];

pub fn instance(tenant: &str) -> InstanceId {
    let namespace = format!("silo:{tenant}").parse::<FlakeUri>().unwrap().namespace();
    InstanceId { namespace, name: "web".parse().unwrap() }
}

/// The full name of a tenant's instance.
pub fn name(tenant: &str) -> String {
    let id = instance(tenant);
    format!("{}.{}.seed.example", id.name, id.namespace)
}

pub struct World {
    pub directory: tempfile::TempDir,
    pub state: MemoryState,
    pub port: u16,
    acme: TcpListener,
    dns_tcp: TcpListener,
    dns_udp: UdpSocket,
    ssh: TcpListener,
    pub http: TcpListener,
    pub https: TcpListener,
    /// Whether this host has an HTTPS door.
    secret: bool,
    ca_port: u16,
    roots_port: u16,
    /// The DNS of the world; and whether the CA asks there, and not Seed itself.
    pub outside: Dns,
    pub ask_outside: bool,
    /// Of a hundred good nonces.
    rejects: u32,
    pub slow: bool,
    /// Whether the CA knows its customers by a key.
    bound: bool,
    agent: Option<Runtime>,
    doors: Option<Runtime>,
    pebble: Option<Child>,
    bus: Child,
}

fn free() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn found(program: &str) -> PathBuf {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let found = std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{program} is not there: run .ci/tools, which installs it"))
}

/// A command of a client's or a tool's; one that is missing fails the test in words.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(found(program));
    command.stdin(Stdio::null()).env_remove("https_proxy").env_remove("http_proxy").env("NO_PROXY", "*");
    command
}

/// Runs to the end; both streams if it went well.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    text
}

impl World {
    /// Everything is up.
    pub fn new() -> Self {
        Self::that_rejects(20)
    }

    /// Everything is up; the CA refuses so many of a hundred good nonces.
    pub fn that_rejects(rejects: u32) -> Self {
        let mut world = Self::without_ca();
        world.rejects = rejects;
        world.start_ca();
        world
    }

    /// Everything is up; the CA wants an external account binding.
    pub fn bound() -> Self {
        let mut world = Self::prepared(true, false, tenants());
        world.start_ca();
        world
    }

    /// Everything but the CA is up.
    pub fn without_ca() -> Self {
        Self::with(tenants())
    }

    /// The same with other tenants.
    pub fn with(memory: Memory) -> Self {
        Self::prepared(false, false, memory)
    }

    pub fn prepared(bound: bool, secret: bool, memory: Memory) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        std::fs::write(at.join("bus.conf"), bus_configuration(at)).unwrap();
        let config = format!("--config-file={}", at.join("bus.conf").display());
        let bus = command("dbus-daemon").args([&config, "--nofork", "--nopidfile"]).stderr(Stdio::null()).spawn().unwrap();
        until("the bus", || at.join("bus").exists());
        let (dns_udp, dns_tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()) {
                break (udp, tcp);
            }
        };
        let acme = free();
        let world = Self {
            state: MemoryState::with(memory),
            port: acme.local_addr().unwrap().port(),
            acme,
            outside: Dns::new(dns_udp.local_addr().unwrap()),
            ask_outside: false,
            dns_tcp,
            dns_udp,
            ssh: free(),
            http: free(),
            https: free(),
            secret,
            ca_port: free().local_addr().unwrap().port(),
            roots_port: free().local_addr().unwrap().port(),
            rejects: 20,
            slow: false,
            bound,
            agent: None,
            doors: None,
            pebble: None,
            bus,
            directory,
        };
        world.make_ca_certificate();
        let mut world = world;
        world.start_agent();
        world.open_doors();
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The address of the directory, as guests are told it.
    pub fn directory_url(&self) -> String {
        format!("http://127.0.0.1:{}/acme/directory", self.port)
    }

    /// The DNS door.
    pub fn dns(&self) -> SocketAddr {
        self.dns_udp.local_addr().unwrap()
    }

    pub fn ledger(&self) -> Ledger {
        self.state.memory().acme
    }

    /// A tenant's instance is no longer wanted; seen by the next agent.
    pub fn forget(&mut self, tenant: &str) {
        self.remember(|memory| drop(memory.wants.remove(&instance(tenant).namespace)));
    }

    /// The agent is killed, and its next life remembers something else.
    pub fn remember(&mut self, change: impl FnOnce(&mut Memory)) {
        let mut memory = self.state.memory();
        change(&mut memory);
        self.state = MemoryState::with(memory);
        self.kill_agent();
        self.start_agent();
    }

    /// HTTPS of the CA's own, which the doors have to be told to trust.
    fn make_ca_certificate(&self) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "who signs pebble's HTTPS");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        std::fs::write(self.path("root.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        std::fs::write(self.path("ca.pem"), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
        std::fs::write(self.path("ca.key"), key.serialize_pem()).unwrap();
    }

    /// Starts pebble. It remembers nothing of an earlier life.
    pub fn start_ca(&mut self) {
        let mut config = json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{}", self.ca_port),
            "managementListenAddress": format!("127.0.0.1:{}", self.roots_port),
            "certificate": self.path("ca.pem"), "privateKey": self.path("ca.key"),
            "httpPort": 1, "tlsPort": 1, "ocspResponderURL": "", "externalAccountBindingRequired": false,
        } });
        if self.bound {
            config["pebble"]["externalAccountBindingRequired"] = json!(true);
            config["pebble"]["externalAccountMACKeys"] = json!({ "kid-1": CUSTOMER });
        }
        std::fs::write(self.path("pebble.json"), config.to_string()).unwrap();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("pebble.log")).unwrap();
        let mut pebble = command("pebble");
        pebble
            .args(["-strict", "-config"])
            .arg(self.path("pebble.json"))
            .args(["-dnsserver", &if self.ask_outside { self.outside.at } else { self.dns() }.to_string()])
            .envs([("PEBBLE_VA_NOSLEEP", if self.slow { "0" } else { "1" }), ("PEBBLE_VA_ALWAYS_VALID", "0")])
            .env("PEBBLE_VA_SLEEPTIME", "5")
            .env("PEBBLE_WFE_NONCEREJECT", self.rejects.to_string())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.pebble = Some(pebble.spawn().unwrap());
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, self.ca_port));
        until("pebble", || std::net::TcpStream::connect(at).is_ok());
        // What signs the tenants' certificates.
        let url = format!("https://127.0.0.1:{}/roots/0", self.roots_port);
        run(command("curl").args(["-sS", "--cacert"]).arg(self.path("root.pem")).arg("-o").arg(self.path("roots.pem")).arg(url));
    }

    /// Starts a CA that gives these answers, whatever it is asked: path, status, body.
    pub fn start_false_ca(&mut self, answers: &[(&str, u16, String)]) {
        let mut text = format!(
            "{{\n admin off\n auto_https off\n storage file_system {0}\n}}\nhttps://127.0.0.1:{1} {{\n tls {2} {3}\n \
             header Replay-Nonce nonce\n header Location https://127.0.0.1:{1}/located\n \
             header /renewal/* Retry-After 21600\n",
            self.path("false-ca").display(),
            self.ca_port,
            self.path("ca.pem").display(),
            self.path("ca.key").display()
        );
        for (path, status, body) in answers {
            text.push_str(&format!(" respond {path} `{body}` {status}\n"));
        }
        text.push_str("}\n");
        std::fs::write(self.path("FalseCa"), text.replace("CA/", &format!("https://127.0.0.1:{}/", self.ca_port))).unwrap();
        let log = std::fs::File::create(self.path("pebble.log")).unwrap();
        let mut caddy = command("caddy");
        caddy.args(["run", "--adapter", "caddyfile", "--config"]).arg(self.path("FalseCa")).env("HOME", self.path("home"));
        self.pebble = Some(caddy.stdout(Stdio::null()).stderr(log).spawn().unwrap());
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, self.ca_port));
        until("the false CA", || std::net::TcpStream::connect(at).is_ok());
    }

    /// In the place of the CA, something that takes connections and says nothing.
    pub fn silent_ca(&self) -> TcpListener {
        TcpListener::bind(("127.0.0.1", self.ca_port)).unwrap()
    }

    pub fn stop_ca(&mut self) {
        if let Some(mut pebble) = self.pebble.take() {
            pebble.kill().unwrap();
            pebble.wait().unwrap();
        }
    }

    /// How many times pebble has said this in its log.
    pub fn ca_said(&self, text: &str) -> usize {
        std::fs::read_to_string(self.path("pebble.log")).unwrap_or_default().matches(text).count()
    }

    pub fn bus_address(&self) -> String {
        format!("unix:path={}", self.path("bus").display())
    }

    pub fn start_agent(&mut self) {
        let config = Config::parse("domain = \"seed.example\"").unwrap();
        let tool = |name: &str| format!("/usr/bin/{name}");
        let tools = Tools {
            seed: tool("seed"),
            cloud_hypervisor: tool("cloud-hypervisor"),
            qemu: tool("qemu-system-x86_64"),
            virtiofsd: tool("virtiofsd"),
            swtpm: tool("swtpm"),
            vhost_device_vsock: tool("vhost-device-vsock"),
            journal_remote: tool("systemd-journal-remote"),
        };
        let authority = Authority::load_or_make(&self.path("guest-ca")).unwrap();
        // The first lease is 127.0.0.1, so that clients that cannot choose where they come from are the first tenant.
        let addressing = Addressing { pool4: "126.255.255.255/32".parse().unwrap(), ..config.addressing() };
        let settings = agent::Settings {
            layout: Layout { guest_ca: authority.public(), addressing, ..config.layout(Vmm::Qemu { kvm: false }, tools) },
            repositories: self.path("repos"),
            reader: seed::build::source::Reader::Here,
            work: self.path("work"),
            drain_secs: 60,
            parallel: 1,
            keep: 1,
            reserved: config.reserved(),
            quota: config.quota,
            audit: self.path("audit"),
            audit_keep: u64::MAX,
            apex: seed::render::zone::Apex::default(),
            acme: agent::acme::budget::Limits::default(),
            remotes: agent::remote::Settings {
                fetcher: seed::build::fetch::Fetcher::Here {
                    git: "git".into(),
                    seed: "seed".into(),
                    mirrors: self.path("mirrors"),
                    allow: Vec::new(),
                },
                credentials: agent::credentials::Credentials(self.path("credentials")),
                github: "https://github.com".to_owned(),
                github_ssh: "ssh://git@github.com".to_owned(),
                webhook: String::new(),
                every: Duration::from_secs(3600),
                pause: Duration::from_secs(1),
            },
            hypervisor: "a machine made of memory".to_owned(),
            authority,
        };
        let (state, address) = (self.state.clone(), self.bus_address());
        let runtime = Runtime::new().unwrap();
        runtime.block_on(async {
            let (agent, handle) = Agent::new(Sim::new(), state, NoBuilder, settings).await.unwrap();
            tokio::spawn(agent.run());
            let face = Face::new(handle, Trust::Peer, String::new(), "seed.example".to_owned());
            let bus = loop {
                let builder = zbus::connection::Builder::address(address.as_str());
                match agent::bus::serve_on(builder, face.clone()).await {
                    Ok(bus) => break bus,
                    // The name of the one that was killed is not free yet.
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            };
            // It lives as long as the runtime.
            tokio::spawn(async move {
                let _bus = bus;
                std::future::pending::<()>().await;
            });
        });
        self.agent = Some(runtime);
    }

    pub fn open_doors(&mut self) {
        let runtime = Runtime::new().unwrap();
        let dns = serve::dns::Settings {
            near: serve::dns::Near {
                pool4: "126.255.255.255/32".parse().unwrap(),
                pool6: "fd5e::/64".parse().unwrap(),
                gateways: vec![],
                inside: vec![],
            },
            upstream: vec![self.outside.at],
            rate: 0,
            zone_key: None,
            secondaries: vec![],
            transfer_key: None,
        };
        std::fs::write(self.path("customer"), format!("{CUSTOMER}\n")).unwrap();
        let mut settings = serve::Settings::new("seed.example".parse().unwrap(), self.path("repos"), self.path("ssh/key"), dns);
        settings.acme = serve::acme::Settings {
            instances: vec!["127.0.0.0/8".parse().unwrap()],
            ca: Some(Ca {
                directory: format!("https://127.0.0.1:{}/dir", self.ca_port),
                email: Some("operator@seed.example".to_owned()),
                binding: self.bound.then(|| ("kid-1".to_owned(), self.path("customer"))),
                root: Some(self.path("root.pem")),
                account: self.path("account"),
            }),
        };
        settings.certificate_look = Duration::from_millis(50);
        let tcp = |listener: &TcpListener| {
            let listener = listener.try_clone().unwrap();
            listener.set_nonblocking(true).unwrap();
            tokio::net::TcpListener::from_std(listener).unwrap()
        };
        runtime.block_on(async {
            let udp = self.dns_udp.try_clone().unwrap();
            udp.set_nonblocking(true).unwrap();
            // What an earlier life has left.
            drop(std::fs::remove_file(self.path("https.sock")));
            let unix = tokio::net::UnixListener::bind(self.path("https.sock")).unwrap();
            let sockets = Sockets {
                ssh: vec![tcp(&self.ssh)],
                dns_udp: vec![tokio::net::UdpSocket::from_std(udp).unwrap()],
                dns_tcp: vec![tcp(&self.dns_tcp)],
                acme: vec![tcp(&self.acme)],
                http: vec![tcp(&self.http).into()],
                https: if self.secret { vec![tcp(&self.https).into(), unix.into()] } else { Vec::new() },
            };
            let bus = zbus::connection::Builder::address(self.bus_address().as_str()).build().await.unwrap();
            let proxy = SeedProxy::new(&bus).await.unwrap();
            tokio::spawn(serve::run_until(settings, proxy, sockets, std::future::pending()));
        });
        self.doors = Some(runtime);
    }

    /// The doors are gone in the middle of whatever they did.
    pub fn kill_doors(&mut self) {
        self.doors.take().unwrap().shutdown_background();
    }

    pub fn kill_agent(&mut self) {
        self.agent.take().unwrap().shutdown_background();
    }

    /// Whether a chain of certificates leads to the CA's root, by OpenSSL's word; and its text.
    pub fn verify(&self, chain: &Path) -> String {
        run(command("openssl").arg("verify").arg("-CAfile").arg(self.path("roots.pem")).arg("-untrusted").arg(chain).arg(chain));
        run(command("openssl").args(["x509", "-noout", "-text", "-in"]).arg(chain))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop_ca();
        for runtime in [self.doors.take(), self.agent.take()].into_iter().flatten() {
            runtime.shutdown_background();
        }
        drop(self.bus.kill());
        drop(self.bus.wait());
    }
}

/// Two namespaces with an instance each.
pub fn tenants() -> Memory {
    tenants::memory(TENANTS.map(|tenant| (tenant.to_owned(), vec!["web".to_owned()]))).0
}

/// Waits until something is so.
pub fn until(what: &str, mut is: impl FnMut() -> bool) {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(60) {
        if is() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("waited a minute for {what}");
}

fn bus_configuration(at: &Path) -> String {
    format!(
        "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\" \
         \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\"><busconfig><type>session</type><listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context=\"default\"><allow send_destination=\"*\" eavesdrop=\"true\"/>
         <allow eavesdrop=\"true\"/><allow own=\"*\"/></policy></busconfig>",
        at.join("bus").display()
    )
}
