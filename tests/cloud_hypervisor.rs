//! What is rendered for Cloud Hypervisor, given to Cloud Hypervisor: the one in $CLOUD_HYPERVISOR, or else in $PATH. Where there is none,
//! or no /dev/kvm, each test says `SKIPPED` on standard error and passes.
//!
//! The guests are kernels of some twenty instructions: they say hello on the serial console, and then halt, power off or reboot. The
//! store and the TPM are stand-ins that know as much of their protocols as it takes to boot.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "these tests run programs")]

use std::{
    env, fs,
    io::{self, BufRead, BufReader, IoSliceMut, Read, Write},
    os::{
        fd::{FromRawFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        socket::{ControlMessageOwned, MsgFlags, recvmsg},
    },
    unistd::Pid,
};
use seed::{
    launch::power_button::{Control, press},
    render::vmm::{
        Disk, Machine,
        cloud_hypervisor::{api_config, invocation},
    },
};
use serde_json::{Value, json};

/// The program, or a loud word that there is none.
fn program() -> Option<String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places = env::split_paths(&path).map(|folder| folder.join("cloud-hypervisor"));
    let found = env::var_os("CLOUD_HYPERVISOR").map(PathBuf::from).or_else(|| places.find(|place| place.is_file()));
    let missing = if found.is_none() {
        "no Cloud Hypervisor in $CLOUD_HYPERVISOR or $PATH"
    } else if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        "/dev/kvm cannot be opened"
    } else if !Command::new("unshare").args(&NETWORK[1..3]).arg("true").status().is_ok_and(|status| status.success()) {
        "unshare(1) cannot make a network"
    } else {
        return found.map(|path| path.to_str().unwrap().to_owned());
    };
    #[allow(clippy::explicit_write, reason = "what eprintln! says in a test that passes is kept from being seen")]
    writeln!(io::stderr(), "SKIPPED: nothing of Cloud Hypervisor was tested: {missing}").unwrap();
    None
}

/// Runs what follows with a network of its own, in which it may make its tap.
const NETWORK: [&str; 4] = ["unshare", "--map-root-user", "--net", "--"];

/// What a guest does after it has said hello.
#[derive(Clone, Copy)]
enum Then {
    Halts,
    PowersOff,
    Reboots,
}

/// An ELF file with one segment at 1 MiB and the note that says where a PVH kernel is entered.
fn kernel(then: Then) -> Vec<u8> {
    const BASE: u32 = 0x10_0000;
    // mov dx, port; mov al, value; out dx, al
    let out = |port: u16, value: u8| [b"\x66\xba".as_slice(), &port.to_le_bytes(), &[0xb0, value, 0xee]].concat();
    let mut code: Vec<u8> = b"hello\n".iter().flat_map(|letter| out(0x3f8, *letter)).collect();
    match then {
        Then::Halts => {}
        // The sleep register of ACPI, and its reset register, are one port.
        Then::PowersOff => code.extend(out(0x600, 0x34)),
        Then::Reboots => code.extend(out(0x600, 1)),
    }
    code.extend(b"\xf4\xeb\xfd"); // hlt; jmp to it

    let words = |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|word| word.to_le_bytes()).collect() };
    let longs = |longs: &[u64]| -> Vec<u8> { longs.iter().flat_map(|long| long.to_le_bytes()).collect() };
    let note = [words(&[4, 4, 18]), b"Xen\0".to_vec(), words(&[BASE])].concat();
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    file.extend(longs(&[BASE.into(), 64, 0]));
    file.extend(b"\0\0\0\0\x40\0\x38\0\x02\0\0\0\0\0\0\0");
    let size = code.len() as u64;
    file.extend(words(&[1, 7]));
    file.extend(longs(&[0x1000, BASE.into(), BASE.into(), size, size, 0x1000]));
    file.extend(words(&[4, 4]));
    file.extend(longs(&[64 + 2 * 56, 0, 0, note.len() as u64, note.len() as u64, 4]));
    file.extend(note);
    file.resize(0x1000, 0);
    file.extend(code);
    file
}

/// Everything that a guest can have, in a place with the worst of names.
struct World {
    _dir: tempfile::TempDir,
    at: PathBuf,
    machine: Machine,
}

fn world(then: Then) -> World {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("a,b=[c \"d\"]\"'%");
    fs::create_dir(&at).unwrap();
    fs::write(at.join("kernel"), kernel(then)).unwrap();
    fs::write(at.join("initrd"), [0; 4096]).unwrap();
    for image in ["data.img", "wal,x.img"] {
        fs::write(at.join(image), vec![0; 1 << 20]).unwrap();
    }
    serve(&at.join("store.sock"), store);
    serve(&at.join("tpm.sock"), tpm);
    let path = |name: &str| at.join(name).to_str().unwrap().to_owned();
    let disk = |serial: &str, image: &str| Disk { serial: serial.into(), path: path(image) };
    let credential = |name: &str, base64: String| format!("io.systemd.credential.binary:{name}={base64}");
    let machine = Machine {
        name: "s-gaydazldmnsg-web".into(),
        vcpus: 2,
        memory_mib: 160,
        kernel: path("kernel"),
        initrd: path("initrd"),
        cmdline: "x=\"a, b\" [c] y=%n $HOME \\ ; z='1 --kernel=/etc/passwd -v init=/nix/store/x/init console=ttyS0 panic=-1".into(),
        store: path("store.sock"),
        tap: "seedtest0".into(),
        mac: "02:7e:7d:c4:e8:03".into(),
        cid: 10,
        vsock: path("vsock"),
        vhost_vsock: path("vhost-vsock.sock"),
        tpm: Some(path("tpm.sock")),
        volumes: vec![disk("data", "data.img"), disk("twenty-characters-20", "wal,x.img")],
        oem_strings: vec![credential("a.b", "eCwiXQo=".into()), credential("network.network.10-seed", "QUJD".repeat(2000))],
        control: path("api"),
    };
    World { _dir: dir, at, machine }
}

/// Serves each connection in a thread of its own, until the process ends.
fn serve(path: &Path, conversation: fn(UnixStream) -> io::Result<()>) {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || conversation(stream));
        }
    });
}

/// virtiofsd, as far as it is asked before a guest looks for it: vhost-user with no feature but virtio 1.
fn store(mut stream: UnixStream) -> io::Result<()> {
    loop {
        let mut head = [[0; 4]; 3];
        stream.read_exact(head.as_flattened_mut())?;
        let [request, _, size] = head.map(u32::from_le_bytes);
        io::copy(&mut (&stream).take(size.into()), &mut io::sink())?;
        const GET_FEATURES: u32 = 1;
        if request == GET_FEATURES {
            let answer = [request, 1 | 1 << 2, 8, 0, 1].map(u32::to_le_bytes);
            stream.write_all(answer.as_flattened())?;
        }
    }
}

/// swtpm: its control channel agrees to all, and the other one, whose descriptor comes over the first, says that each command worked.
fn tpm(mut stream: UnixStream) -> io::Result<()> {
    const GET_CAPABILITY: u32 = 1;
    const SET_BUFFERSIZE: u32 = 17;
    loop {
        let mut request = [0; 64];
        let mut space = nix::cmsg_space!([RawFd; 1]);
        let mut parts = [IoSliceMut::new(&mut request)];
        let message = recvmsg::<()>(std::os::fd::AsRawFd::as_raw_fd(&stream), &mut parts, Some(&mut space), MsgFlags::empty())?;
        if message.bytes == 0 {
            return Ok(());
        }
        for part in message.cmsgs()? {
            let ControlMessageOwned::ScmRights(descriptors) = part else { continue };
            #[allow(unsafe_code, reason = "a descriptor that has just arrived is nobody else's")]
            let mut commands = UnixStream::from(unsafe { OwnedFd::from_raw_fd(descriptors[0]) });
            thread::spawn(move || {
                while commands.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {
                    commands.write_all(b"\x80\x01\0\0\0\x0a\0\0\0\0").unwrap();
                }
            });
        }
        let command = u32::from_be_bytes(request[..4].try_into().unwrap());
        let answer: &[u32] = match command {
            GET_CAPABILITY => &[0, u32::MAX],
            SET_BUFFERSIZE => &[0, 4096, 4096, 4096],
            _ => &[0],
        };
        stream.write_all(answer.iter().map(|word| word.to_be_bytes()).collect::<Vec<_>>().as_flattened())?;
    }
}

/// A program that is killed when the test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn start(argv: &[String]) -> Running {
    let mut command = Command::new(NETWORK[0]);
    command.args(&NETWORK[1..]).args(argv).stdin(Stdio::null()).stdout(Stdio::null());
    Running(command.spawn().unwrap())
}

fn within<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < until, "not within a minute: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Asks the API. Says the status and the body.
fn ask(api: &str, method: &str, what: &str, body: &Value) -> io::Result<(u16, String)> {
    let mut stream = UnixStream::connect(api)?;
    let body = if body.is_null() { String::new() } else { body.to_string() };
    write!(stream, "{method} /api/v1/{what} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
    let mut answer = BufReader::new(stream);
    let (mut status, mut length) = (String::new(), 0);
    answer.read_line(&mut status)?;
    loop {
        let mut line = String::new();
        if answer.read_line(&mut line)? <= 2 {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut text = vec![0; length];
    answer.read_exact(&mut text)?;
    let code = status.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((code.ok_or(io::ErrorKind::UnexpectedEof)?, String::from_utf8(text).unwrap()))
}

/// The configuration of a machine once it runs.
fn running(api: &str) -> Value {
    within("a machine that runs", || {
        let (_, text) = ask(api, "GET", "vm.info", &Value::Null).ok().filter(|(code, _)| *code == 200)?;
        let info: Value = serde_json::from_str(&text).unwrap();
        (info["state"] == "Running").then(|| info["config"].clone())
    })
}

#[test]
fn the_command_line_and_the_api_make_the_same_machine() {
    let Some(program) = program() else { return };
    let world = world(Then::Halts);
    let machine = &world.machine;
    let api = &machine.control;

    let by_command_line = {
        let _vmm = start(&invocation(machine, &program).argv);
        running(api)
    };
    for left in ["api", "vsock"] {
        fs::remove_file(world.at.join(left)).unwrap();
    }

    let vmm = start(&[program, format!("--api-socket={api}")]);
    within("the API", || ask(api, "GET", "vmm.ping", &Value::Null).ok());
    assert_eq!(ask(api, "PUT", "vm.create", &api_config(machine)).unwrap(), (204, String::new()));
    let (_, created) = ask(api, "GET", "vm.info", &Value::Null).unwrap();
    let created: Value = serde_json::from_str(&created).unwrap();
    // A button that nobody has yet. The launcher tries again.
    let refusal = press(&Control::Api(api.into())).unwrap_err().to_string();
    assert!(refusal.contains("HTTP/1.1 "), "{refusal}");
    assert_eq!(ask(api, "PUT", "vm.boot", &Value::Null).unwrap(), (204, String::new()));
    let by_api = running(api);
    press(&Control::Api(api.into())).unwrap();
    drop(vmm);

    assert_eq!(by_command_line, by_api);
    let config = &by_api;
    assert_eq!(created["state"], "Created");
    assert_eq!((&config["cpus"]["boot_vcpus"], &config["cpus"]["max_vcpus"]), (&json!(2), &json!(2)));
    assert_eq!((&config["memory"]["size"], &config["memory"]["shared"]), (&json!(160 << 20), &json!(true)));
    let payload = ["kernel", "initramfs", "cmdline"].map(|key| config["payload"][key].as_str().unwrap());
    assert_eq!(payload, [machine.kernel.as_str(), &machine.initrd, &machine.cmdline]);
    assert_eq!(config["platform"]["oem_strings"], json!(machine.oem_strings));
    let disks: Vec<_> = config["disks"].as_array().unwrap().iter().map(|disk| (&disk["serial"], &disk["path"])).collect();
    let volumes: Vec<_> = machine.volumes.iter().map(|disk| (json!(disk.serial), json!(disk.path))).collect();
    assert_eq!(disks, volumes.iter().map(|(serial, path)| (serial, path)).collect::<Vec<_>>());
    for disk in config["disks"].as_array().unwrap() {
        assert_eq!((&disk["image_type"], &disk["readonly"]), (&json!("Raw"), &json!(false)));
    }
    assert_eq!((&config["fs"][0]["tag"], &config["fs"][0]["socket"]), (&json!("store"), &json!(machine.store)));
    assert_eq!((&config["net"][0]["tap"], &config["net"][0]["mac"]), (&json!(machine.tap), &json!(machine.mac)));
    assert_eq!((&config["vsock"]["cid"], &config["vsock"]["socket"]), (&json!(10), &json!(machine.vsock)));
    assert_eq!(config["tpm"]["socket"], json!(machine.tpm));
    assert_eq!((&config["serial"]["mode"], &config["console"]["mode"]), (&json!("Tty"), &json!("Off")));
    assert_eq!(config["pvpanic"], true);
    for list in ["disks", "fs", "net"] {
        assert_eq!(config[list].as_array().unwrap().len(), if list == "disks" { 2 } else { 1 });
    }
}

/// `seed vm` with the machine, as in its unit.
fn launch(world: &World, program: &str) -> Running {
    let invocation = invocation(&world.machine, program);
    let mut command = Command::new(env!("CARGO_BIN_EXE_seed"));
    command.args(["vm", "--notify"]).arg(world.at.join("vsock_9001")).args(["--control", &invocation.control]);
    command.arg("--wait").arg(world.at.join("tpm.sock"));
    command.arg("--").args(NETWORK).args(invocation.argv);
    Running(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

/// The exit code, the console and the complaints of a launch that ends by itself.
fn end(mut launch: Running) -> (Option<i32>, String, String) {
    let status = within("an end", || launch.0.try_wait().unwrap());
    let (mut console, mut complaints) = (String::new(), String::new());
    launch.0.stdout.take().unwrap().read_to_string(&mut console).unwrap();
    launch.0.stderr.take().unwrap().read_to_string(&mut complaints).unwrap();
    (status.code(), console, complaints)
}

fn pid(api: &str) -> Pid {
    let (_, text) = ask(api, "GET", "vmm.ping", &Value::Null).unwrap();
    let ping: Value = serde_json::from_str(&text).unwrap();
    Pid::from_raw(ping["pid"].as_i64().unwrap() as i32)
}

#[test]
fn a_guest_that_powers_off_ends_well_and_its_console_is_heard() {
    let Some(program) = program() else { return };
    let (code, console, complaints) = end(launch(&world(Then::PowersOff), &program));
    assert_eq!((code, console.as_str()), (Some(0), "hello\n"), "{complaints}");
}

#[test]
fn a_guest_that_reboots_ends_and_is_not_started_again() {
    let Some(program) = program() else { return };
    let world = world(Then::Reboots);
    let (code, console, complaints) = end(launch(&world, &program));
    assert_eq!(code, Some(0), "{complaints}");
    assert!(console.starts_with("hello\n"), "{console}");
    assert!(ask(&world.machine.control, "GET", "vmm.ping", &Value::Null).is_err());
}

#[test]
fn the_button_is_pressed_and_what_a_killed_run_leaves_is_in_nobodys_way() {
    let Some(program) = program() else { return };
    let world = world(Then::Halts);
    let api = &world.machine.control;
    for _ in 0..2 {
        let launch = launch(&world, &program);
        running(api);
        let vmm = pid(api);
        // Both are gone at once, as when the power fails; all their sockets stay.
        drop(launch);
        kill(vmm, Signal::SIGKILL).unwrap();
        within("the end of the VMM", || kill(vmm, None).is_err().then_some(()));
        for left in ["api", "api.events", "vsock", "vsock_9001"] {
            assert!(world.at.join(left).exists(), "{left}");
        }
    }

    let launch = launch(&world, &program);
    running(api);
    kill(Pid::from_raw(launch.0.id() as i32), Signal::SIGTERM).unwrap();
    // Long enough for two presses. This guest has no ears, and systemd would kill its VMM in the end.
    thread::sleep(Duration::from_secs(3));
    kill(pid(api), Signal::SIGKILL).unwrap();
    let (code, console, complaints) = end(launch);
    assert_eq!((code, console.as_str()), (Some(137), "hello\n"));
    assert!(!complaints.contains("power button"), "{complaints}");
}

#[test]
fn a_machine_that_cannot_be_made_ends_in_failure() {
    let Some(program) = program() else { return };
    let mut world = world(Then::Halts);
    world.machine.kernel.push_str(".not");
    let (code, _, complaints) = end(launch(&world, &program));
    assert_eq!(code, Some(1), "{complaints}");
}
