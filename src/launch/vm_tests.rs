//! The launcher as a real process with real signals, a real notify socket and a fake VMM. Launcher and VMM are this test binary,
//! started again with the same test, which then plays that role instead (see `start`).

use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixDatagram,
    process::exit,
    sync::mpsc,
};

use nix::{sys::signal::kill, unistd::Pid};

use super::*;

/// This program with the running test as its only one.
fn again() -> Vec<String> {
    let me = env::current_exe().unwrap().into_os_string().into_string().unwrap();
    let test = thread::current().name().expect("a test").to_owned();
    [me, "--nocapture".into(), "--test-threads=1".into(), "--exact".into(), test].into()
}

fn launcher(dir: &Path) -> ! {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).unwrap();
    let argv = again().into_iter().map(Into::into).collect();
    let kind = if ["api", "rebooting", "panic"].contains(&env::var("SEED_TEST_VMM").unwrap().as_str()) { "api" } else { "qmp" };
    let control = format!("{kind}:{}", dir.join("control").display()).parse().unwrap();
    let args = Args { notify: dir.join("vsock_9001"), control, wait: vec![dir.join("helper")], argv };
    exit(run(&args).map(i32::from).unwrap());
}

fn vmm(dir: &Path) -> ! {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).unwrap();
    match env::var("SEED_TEST_VMM").unwrap().as_str() {
        "qmp" => {
            println!("booting");
            let listener = UnixListener::bind(dir.join("control")).unwrap();
            // The first press goes unheard, as it does in a guest that is still booting.
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().unwrap();
                stream.write_all(b"{\"QMP\": {}}\r\n").unwrap();
                for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                    println!("heard {}", line.unwrap());
                    stream.write_all(b"{\"return\": {}}\r\n").unwrap();
                }
            }
            println!("\x1b[31mpowered off\x1b[0m\x07");
            exit(0);
        }
        "api" => {
            let listener = UnixListener::bind(dir.join("control")).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"HTTP/1.1 204 \r\n\r\n").unwrap();
            let mut said = String::new();
            BufReader::new(stream).read_line(&mut said).unwrap();
            println!("heard {said}");
            exit(0);
        }
        event @ ("rebooting" | "panic") => {
            println!("last words");
            let source = if event == "panic" { "guest" } else { "vm" };
            let event =
                format!("{{\"source\": \"{source}\", \"event\": \"{event}\", \"properties\": {{\"event\": \"{event}\"}}}}\n\n");
            fs::OpenOptions::new().write(true).open(dir.join("control.events")).unwrap().write_all(event.as_bytes()).unwrap();
            thread::sleep(Duration::from_secs(60));
            exit(99);
        }
        "flood" => {
            let line = [b'x'; 1023];
            for _ in 0..8192 {
                println!("{}", std::str::from_utf8(&line).unwrap());
            }
            exit(7);
        }
        "crash" => {
            kill(Pid::this(), Signal::SIGKILL).unwrap();
            unreachable!("it is dead");
        }
        other => exit(other.parse().unwrap()),
    }
}

struct Run {
    dir: tempfile::TempDir,
    child: Child,
    told: UnixDatagram,
}

/// Starts the launcher with such a VMM. In a process that was started as either, plays it, and never returns.
fn start(kind: &str) -> Run {
    if let Some(dir) = env::var_os("SEED_TEST_DIR") {
        // The VMM is the one that was not given systemd's socket.
        let play: fn(&Path) -> ! = if env::var_os("NOTIFY_SOCKET").is_some() { launcher } else { vmm };
        play(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let notify = dir.path().join("notify");
    let told = UnixDatagram::bind(&notify).unwrap();
    told.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // What a killed predecessor leaves.
    drop(UnixListener::bind(dir.path().join("control")).unwrap());
    drop(UnixListener::bind(dir.path().join("vsock_9001")).unwrap());
    // The launcher is not the main thread of the test binary, so all of its threads must have the signal blocked.
    let mut term = SigSet::empty();
    term.add(Signal::SIGTERM);
    term.thread_block().unwrap();
    let again = again();
    let child = Command::new(&again[0])
        .args(&again[1..])
        .env("SEED_TEST_DIR", dir.path())
        .env("SEED_TEST_VMM", kind)
        .env("NOTIFY_SOCKET", &notify)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // A helper that is a little late.
    let helper = dir.path().join("helper");
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        drop(UnixListener::bind(helper));
    });
    Run { dir, child, told }
}

impl Run {
    fn told(&self) -> String {
        let mut buffer = [0; 1024];
        let count = self.told.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..count]).trim().to_owned()
    }
    /// Says something as the guest would, and waits until the connection is closed, as the guest's PID 1 does.
    fn say(&self, text: &str) {
        let path = self.dir.path().join("vsock_9001");
        let until = Instant::now() + Duration::from_secs(20);
        let mut stream = loop {
            match UnixStream::connect(&path) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > until => panic!("{error}"),
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        };
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
    fn terminate(&self) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).unwrap();
    }
    fn end(mut self) -> (i32, String) {
        let mut text = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        (self.child.wait().unwrap().code().unwrap(), text)
    }
}

#[test]
fn a_guest_reports_its_boot_and_is_powered_off_by_sigterm() {
    let run = start("qmp");
    // A connection that says nothing keeps nobody waiting.
    run.say("X_SYSTEMD_UNIT_ACTIVE=network.target\nMAINPID=1\n");
    let _silent = UnixStream::connect(run.dir.path().join("vsock_9001")).unwrap();
    assert_eq!(run.told(), "STATUS=booting: network.target reached");
    run.say("READY=1\nSTATUS=Startup finished in 3s.\n");
    assert_eq!((run.told(), run.told()), ("READY=1".into(), "STATUS=running".into()));
    run.terminate();
    assert_eq!(run.told(), "STATUS=stopping: the power button is pressed");
    let (code, text) = run.end();
    assert_eq!(code, 0);
    let press = "heard {\"execute\":\"qmp_capabilities\"}\nheard {\"execute\":\"system_powerdown\"}\n";
    assert!(text.contains(&format!("booting\n{press}{press}powered off\n")), "{text:?}");
}

#[test]
fn cloud_hypervisor_is_powered_off_by_its_api() {
    let run = start("api");
    // Heard before the VMM listens: pressed again until it does.
    run.say("X_SYSTEMD_UNIT_ACTIVE=basic.target");
    run.terminate();
    let (code, text) = run.end();
    assert_eq!(code, 0);
    assert!(text.contains("heard PUT /api/v1/vm.power-button HTTP/1.1\n"), "{text:?}");
}

#[test]
fn the_exit_code_is_the_vmms() {
    for (vmm, code) in [("0", 0), ("3", 3), ("crash", 137)] {
        assert_eq!(start(vmm).end().0, code, "{vmm}");
    }
}

#[test]
fn cloud_hypervisor_does_not_start_its_guest_again() {
    for (vmm, code) in [("rebooting", 0), ("panic", 1)] {
        let begun = Instant::now();
        let (have, text) = start(vmm).end();
        assert_eq!(have, code, "{vmm}");
        assert!(text.contains("last words\n"), "{text:?}");
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
}

#[test]
fn a_flood_that_nobody_reads_does_not_hold_the_vmm() {
    let mut run = start("flood");
    let (ended, end) = mpsc::channel();
    let out = run.child.stdout.take().unwrap();
    thread::spawn(move || ended.send(run.child.wait().unwrap().code()));
    // 8 MB were written, a pipe holds 64 KB, nobody reads: it ends all the same, within the second that the last words get.
    assert_eq!(end.recv_timeout(Duration::from_secs(30)).unwrap(), Some(7));
    drop(out);
}

#[test]
fn nothing_of_the_guests_but_readiness_and_text_reaches_systemd() {
    let mut guest = Guest::default();
    let status = |text: &str| Said { ready: false, status: Some(text.to_owned()) };
    assert_eq!(guest.hear(b"MAINPID=1\nWATCHDOG=1\nSTOPPING=1\nFDSTORE=1\nEXTEND_TIMEOUT_USEC=9"), Said::default());
    assert_eq!(guest.hear(b"STATUS=\x1b[31mhi\n"), status("booting: [31mhi"));
    assert_eq!(guest.hear(b"X_SYSTEMD_UNIT_ACTIVE=a.target\nSTATUS=x"), status("booting: a.target reached"));
    assert_eq!(guest.hear(format!("STATUS={}", "y".repeat(4000)).as_bytes()).status.unwrap().len(), "booting: ".len() + 120);
    assert_eq!(guest.hear(b"READY=1\nSTATUS=x"), Said { ready: true, status: Some("running".into()) });
    assert_eq!(guest.hear(b"READY=1"), Said::default());
    assert_eq!(guest.hear(b"X_SYSTEMD_UNIT_ACTIVE=late.target"), Said::default());
    assert_eq!(guest.hear(b"X_SYSTEMD_SHUTDOWN=poweroff"), status("stopping: the guest does a poweroff"));
    assert_eq!(guest.hear(b"\xff\xff"), Said::default());
}

#[test]
fn what_a_killed_run_leaves_is_known() {
    let args = |control: &str| Args {
        notify: "/r/vsock_9001".into(),
        control: control.parse().unwrap(),
        wait: Vec::new(),
        argv: Vec::new(),
    };
    let names = |control| stale_sockets(&args(control)).iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" ");
    assert_eq!(names("qmp:/r/qmp"), "/r/vsock_9001 /r/qmp");
    assert_eq!(names("api:/r/api"), "/r/vsock_9001 /r/api /r/api.lock /r/api.events /r/vsock");
}
