//! What this program does on the machines that are measured, and as a child that is measured: `seed-bench worker …`. And, called
//! `seed-bench-vmm`, a virtual machine monitor that does nothing but say that its guest is ready.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    os::{
        fd::AsFd,
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use seed::{
    config::{self, Config},
    host::systemd::Systemd,
    render::{self, Layout, vm_unit},
    spec::{
        access::Repository,
        address::Lease,
        desired::{Deployment, Desired, Wanted},
        instance::{Instance, Port, Protocol, Rollout, Size},
        name::{FlakeUri, Generation, InstanceName, KeyId, Namespace, SetId, Slot, StorePath},
    },
    state::{Batch, Change, Plant, State, sled::SledState},
};

/// Does what the words say, if they are for this.
pub fn run(words: &[String]) -> Option<ExitCode> {
    let program = Path::new(words.first()?).file_name()?;
    if program == "seed-bench-vmm" {
        vmm(words);
        return Some(ExitCode::SUCCESS);
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let ["worker", rest @ ..] = &words[1..] else { return None };
    let number = |at: usize| rest[at].parse::<usize>().expect("a number");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    match rest {
        ["commits", directory, ..] => runtime.block_on(commits(Path::new(directory), number(2), number(3))),
        ["russh", port] => runtime.block_on(russh_alone(port.parse().expect("a port"))),
        ["state", _, tpm] => runtime.block_on(remember(number(1), *tpm == "tpm")),
        ["crowd", _] => runtime.block_on(crowd(number(1))),
        ["starts", prefix, _] => runtime.block_on(starts(prefix, number(2))),
        ["plans", _] => runtime.block_on(plans(number(1))),
        ["dns", ..] => runtime.block_on(crate::dns::door(number(1) as u16, number(2))),
        ["dns-hickory", ..] => runtime.block_on(crate::dns::hickory(number(1) as u16, number(2))),
        ["dns-flood"] => runtime.block_on(crate::flood::flood()),
        ["dns-changes", ..] => crate::dns::changes(number(1), number(2)),
        ["news", _] => runtime.block_on(crate::news::ask(number(1))),
        ["statuses", _, _] => runtime.block_on(statuses(number(1), number(2))),
        ["namespace"] => println!("{}", namespace()),
        ["cheap", id] => cheap(&id.parse().expect("an instance")),
        ["notify", path] => notify(Path::new(path)),
        ["certify", instance, key] => certify(instance, Path::new(key)),
        ["vsock", path] => vsock(Path::new(path)),
        unknown => panic!("a worker cannot {unknown:?}"),
    }
    Some(ExitCode::SUCCESS)
}

// --- the state ------------------------------------------------------------------------------------------------------------------

/// Commits, `at_once` at the same time; prints the median time of one in microseconds.
async fn commits(directory: &Path, count: usize, at_once: usize) {
    let state = Arc::new(SledState::open(directory).expect("a store"));
    let mut times = Vec::new();
    for first in (0..count).step_by(at_once) {
        let began = Instant::now();
        let waiting = (first..count.min(first + at_once)).map(|n| {
            let state = Arc::clone(&state);
            let id = SetId { namespace: namespace(), name: name(n), slot: Slot::A };
            tokio::spawn(async move { state.commit(vec![Change::Lease(id, Some(Lease(n as u16)))]).await.expect("a sound disk") })
        });
        for one in waiting.collect::<Vec<_>>() {
            one.await.expect("no panic");
        }
        times.push(began.elapsed().as_micros());
    }
    times.sort_unstable();
    println!("{}", times.get(times.len() / 2).copied().unwrap_or(0));
}

fn uri() -> FlakeUri {
    "silo:bench".parse().expect("a flake")
}

fn namespace() -> Namespace {
    uri().namespace()
}

fn name(n: usize) -> InstanceName {
    format!("i{n}").parse().expect("a name")
}

fn key() -> KeyId {
    format!("SHA256:{}", "A".repeat(43)).parse().expect("a fingerprint")
}

fn store_path(name: &str) -> StorePath {
    format!("/nix/store/{}-{name}", "0123456789abcdfghijklmnpqrsvwxyz").parse().expect("a store path")
}

fn instance(tpm: bool) -> Instance {
    let port = Port::new(80, Protocol::Http);
    Instance {
        toplevel: store_path("web"),
        kernel_params: "quiet".into(),
        closure: vec![store_path("system"), store_path("tools"), store_path("web")],
        size: Size { vcpus: 1, memory_mib: 512 },
        ports: BTreeMap::from([("http".parse().expect("a name"), port)]),
        volumes: BTreeMap::new(),
        rollout: Rollout::Recreate,
        acme: false,
        shoot: false,
        tpm,
        domains: std::collections::BTreeSet::new(),
    }
}

/// Makes the state that of a host that is to run `count` instances. The agent is stopped.
async fn remember(count: usize, tpm: bool) {
    let config = Config::load(Path::new(config::DEFAULT_PATH)).expect("a configuration");
    for path in instance(tpm).closure {
        let path = PathBuf::from(path.to_string());
        fs::create_dir_all(&path).unwrap();
    }
    let state = SledState::open(&config.state_directory()).expect("the agent is stopped");
    let instances: BTreeMap<InstanceName, Instance> = (0..count).map(|n| (name(n), instance(tpm))).collect();
    let repository = Repository::new("bench".parse().expect("a name"), key(), 1);
    let plant = Plant { uri: uri(), namespace: namespace(), hash: uri().hash(), by: key(), at: 1 };
    let deployment = Deployment {
        generation: Generation::of(instances.iter().map(|(name, instance)| (name, &instance.toplevel))),
        commit: "0".repeat(40).parse().expect("a commit"),
        reference: "refs/heads/main".parse().expect("a branch"),
        by: key(),
        at: 1,
        proven: true,
        instances,
        routes: Vec::new(),
    };
    let mut batch: Batch = vec![Change::Repo(repository.name.clone(), Some(repository)), Change::Plant(namespace(), Some(plant))];
    let id = |n| SetId { namespace: namespace(), name: name(n), slot: Slot::A };
    batch.extend((0..count).map(|n| Change::Lease(id(n), Some(Lease(n as u16)))));
    batch.push(Change::Want(namespace(), Some(deployment)));
    state.commit(batch).await.expect("a sound disk");
    println!("{}", namespace());
}

// --- a host with many instances -------------------------------------------------------------------------------------------------

fn layout() -> Layout {
    let config = Config::load(Path::new(config::DEFAULT_PATH)).expect("a configuration");
    let found = config::tools::find(&config.paths, &std::env::var("PATH").unwrap_or_default());
    let (vmm, _) = config::tools::choose(&config.hypervisor, &found, Err("it is not asked".into())).expect("a hypervisor");
    // The agent has made it when it was started first; what it renders names it.
    let authority = seed::agent::authority::Authority::load_or_make(&config.guest_ca()).expect("an authority");
    Layout { guest_ca: authority.public(), ..config.layout(vmm, found.tools) }
}

/// Asks the agent for its plan, which is a whole pass; prints the median time in microseconds. There must be nothing to do.
async fn plans(count: usize) {
    let bus = zbus::Connection::system().await.expect("a bus");
    let agent = seed::bus::SeedProxy::new(&bus).await.expect("an agent");
    let mut times = Vec::new();
    for _ in 0..count {
        let began = Instant::now();
        let plan = agent.plan().await.expect("a plan");
        times.push(began.elapsed().as_micros());
        assert!(
            plan.contains("\"steps\":[]"),
            "the crowd is not what the agent wants: {}",
            plan.chars().take(300).collect::<String>()
        );
    }
    times.sort_unstable();
    println!("{}", times[times.len() / 2]);
}

/// Asks the agent for the status of everything; prints the median time in microseconds. So many instances must run.
async fn statuses(count: usize, instances: usize) {
    let bus = zbus::Connection::system().await.expect("a bus");
    let agent = seed::bus::SeedProxy::new(&bus).await.expect("an agent");
    let mut times = Vec::new();
    for _ in 0..count {
        let began = Instant::now();
        let status = agent.status("", "").await.expect("a status");
        times.push(began.elapsed().as_micros());
        let running = status.matches("\"state\":\"running\"").count();
        assert_eq!(running, instances, "{}", status.chars().take(600).collect::<String>());
    }
    times.sort_unstable();
    println!("{}", times[times.len() / 2]);
}

/// Makes the machine look to the agent as if `count` instances ran: units that are active, files, taps. No unit has a process: systemd
/// loads each from a file that needs none, and then the file gets the text that is rendered.
async fn crowd(count: usize) {
    let layout = layout();
    let wanted = |n: usize| Wanted { instance: instance(false), lease: Lease(n as u16) };
    let id = |n| SetId { namespace: namespace(), name: name(n), slot: Slot::A };
    let desired = Desired { instances: (0..count).map(|n| (id(n), wanted(n))).collect(), ..Desired::default() };
    let target = render::target(&desired, &layout);
    let units: Vec<_> = target.instances.values().flat_map(|one| &one.units).collect();
    fs::create_dir_all(&layout.units).unwrap();
    for unit in &units {
        let text = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStop=/usr/bin/true\n";
        fs::write(layout.units.join(&unit.name), text).unwrap();
    }
    for some in units.chunks(200) {
        let started = Command::new("systemctl").arg("start").args(some.iter().map(|unit| &unit.name)).status().unwrap();
        assert!(started.success(), "units did not start");
    }
    for unit in &units {
        fs::write(layout.units.join(&unit.name), &unit.text).unwrap();
    }
    let mut lines = String::new();
    for (id, one) in &target.instances {
        let run = layout.run_of(id);
        fs::create_dir_all(run.join("store")).unwrap();
        fs::write(run.join("started"), "").unwrap();
        for file in &one.files {
            fs::write(&file.path, &file.text).unwrap();
        }
        let render_address = &one.address;
        let (tap, uid, v4, v6) = (&render_address.tap, render_address.uid, render_address.v4, render_address.v6);
        lines.push_str(&format!("tuntap add dev {tap} mode tap user {uid} vnet_hdr\nlink set dev {tap} up\n"));
        lines.push_str(&format!("route replace {v4}/32 dev {tap}\nroute replace {v6}/128 dev {tap}\n"));
        lines.push_str(&format!("link set dev {tap} alias seed:{id},{uid},{v4},{v6}\n"));
    }
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    ip.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(ip.wait().unwrap().success(), "no taps");
}

/// The five units of an instance, with `sleep` in the place of everything.
fn cheap(id: &SetId) {
    let folder = Path::new("/run/systemd/system");
    let helpers = ["store", "tpm", "vsock", "journal"].map(|kind| format!("seed-{kind}@{}.service", id.unit_instance()));
    fs::create_dir_all(folder).unwrap();
    for helper in &helpers {
        let text = "[Unit]\nStopWhenUnneeded=yes\n[Service]\nType=exec\nExecStart=/usr/bin/sleep infinity\n";
        fs::write(folder.join(helper), text).unwrap();
    }
    let all = helpers.join(" ");
    let text = format!("[Unit]\nRequires={all}\nAfter={all}\n[Service]\nType=exec\nExecStart=/usr/bin/sleep infinity\n");
    fs::write(folder.join(vm_unit(id)), text).unwrap();
}

/// Writes and starts instances as a deploy does, one after the other.
async fn starts(prefix: &str, count: usize) {
    let systemd = Systemd::connect().await.expect("systemd");
    for n in 0..count {
        let id = SetId { namespace: namespace(), name: format!("{prefix}{n}").parse().expect("a name"), slot: Slot::A };
        cheap(&id);
        systemd.start(&vm_unit(&id), &[&format!("seed-*@{}.service", id.unit_instance())]).await.expect("it starts");
        // A deploy does not wait for the guest either; here it keeps one start from the next.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

// --- guests ---------------------------------------------------------------------------------------------------------------------

/// Where in the arguments of QEMU the path of a socket stands.
fn socket(words: &[String], name: &str) -> PathBuf {
    let start = format!("socket,id={name},path=");
    let found = words.iter().find_map(|word| word.strip_prefix(&start)).expect("QEMU's arguments");
    PathBuf::from(found.split(',').next().unwrap_or(found))
}

/// Says when it was started, that its guest is ready, and ends when somebody presses its power button.
fn vmm(words: &[String]) {
    println!("vmm at {}", SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros());
    let control = socket(words, "control");
    let listener = UnixListener::bind(&control).unwrap();
    fs::set_permissions(&control, fs::Permissions::from_mode(0o600)).unwrap();
    let run = control.parent().unwrap();
    UnixStream::connect(run.join("vsock_9001")).unwrap().write_all(b"READY=1").unwrap();
    drop(listener.accept());
}

/// Listens where a guest notifies, and ends when it is ready. One read a notification: the guest waits until we close.
fn notify(path: &Path) {
    // Nothing there is as good.
    drop(fs::remove_file(path));
    let listener = UnixListener::bind(path).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
    let (ready, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let ready = ready.clone();
            // A connection that says nothing must not keep the next one waiting.
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                let count = stream.read(&mut buffer).unwrap_or(0);
                if buffer[..count].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                    // Nobody waits any more for what is said twice.
                    let _unheard = ready.send(());
                }
            });
        }
    });
    wait.recv().expect("the listener lives");
}

/// Writes a certificate of the agent's authority for a key beside it: what lets its holder run commands in one instance.
fn certify(instance: &str, key: &Path) {
    let config = Config::load(Path::new(config::DEFAULT_PATH)).expect("a configuration");
    let authority = seed::agent::authority::Authority::load_or_make(&config.guest_ca()).expect("an authority");
    let text = fs::read_to_string(key).unwrap();
    let public = ::russh::keys::PublicKey::from_openssh(&text).expect("a public key");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let made = authority.certify(&public, instance, "bench", seed::bus::guest::Act::Exec, now).expect("a certificate");
    fs::write(key.with_file_name(format!("{}-cert.pub", key.file_stem().unwrap().to_string_lossy())), made).unwrap();
}

/// Standard input and output are those of the guest's sshd: what ssh calls a proxy command.
fn vsock(path: &Path) {
    let mut guest = UnixStream::connect(path).expect("a guest");
    guest.write_all(b"CONNECT 22\n").unwrap();
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        guest.read_exact(&mut byte).expect("an answer");
        line.push(byte[0]);
    }
    let mut to = guest.try_clone().unwrap();
    // Not std's streams and not its `copy`: they wait for the end of a line, or for a full buffer.
    let own = |fd: std::os::fd::BorrowedFd<'_>| fs::File::from(fd.try_clone_to_owned().expect("a standard stream"));
    let (mut input, mut output) = (own(std::io::stdin().as_fd()), own(std::io::stdout().as_fd()));
    std::thread::spawn(move || {
        pass(&mut input, &mut to);
        // Either end may go first.
        let _closed = to.shutdown(std::net::Shutdown::Write);
    });
    pass(&mut guest, &mut output);
}

/// Passes everything on as it comes, to the end of either.
fn pass(from: &mut impl Read, to: &mut impl Write) {
    let mut bytes = [0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if to.write_all(&bytes[..count]).is_err() {
            return;
        }
    }
}

// --- russh with nothing behind it -----------------------------------------------------------------------------------------------

struct Alone;

impl russh::server::Handler for Alone {
    type Error = russh::Error;

    async fn auth_publickey(
        &mut self,
        _: &str,
        _: russh::server::VerifiedPublicKey<'_>,
    ) -> Result<russh::server::Auth, Self::Error> {
        Ok(russh::server::Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        _: russh::Channel<russh::server::Msg>,
        reply: russh::server::ChannelOpenHandle,
        _: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: russh::ChannelId,
        line: &[u8],
        session: &mut russh::server::Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(channel)?;
        session.data(channel, line.to_vec())?;
        session.exit_status_request(channel, 0)?;
        session.eof(channel)?;
        session.close(channel)
    }
}

/// Answers every command with itself.
async fn russh_alone(port: u16) {
    // An ed25519 key from thirty-two bytes: it guards nothing.
    let pair = russh::keys::ssh_key::private::Ed25519Keypair::from_seed(&[7; 32]);
    let config = russh::server::Config { keys: vec![pair.into()], nodelay: true, ..Default::default() };
    let config = Arc::new(config);
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.expect("a free port");
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        let config = Arc::clone(&config);
        tokio::spawn(async move {
            if let Ok(session) = russh::server::run_stream(config, stream, Alone).await {
                drop(session.await);
            }
        });
    }
}
