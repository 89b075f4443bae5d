//! `seed vm`: the main process of `seed-vm@….service`. It starts the VMM as its child and speaks for the guest to systemd.
//!
//! - The guest's own notifications (`vmm.notify_socket=vsock-stream:2:9001`) become the unit's `READY=1` and `STATUS=`.
//! - The guest's serial console, which is the VMM's standard output, becomes lines in the unit's journal.
//! - SIGTERM presses the guest's power button, again and again, until the VMM ends. Killing is systemd's part, after TimeoutStopSec.
//!
//! One thread waits for all of it with poll(2), and nothing that a guest does or leaves undone makes it wait anywhere else.

use std::{
    fs, io,
    os::{
        fd::AsFd,
        unix::{
            ffi::OsStrExt,
            net::{UnixListener, UnixStream},
            process::ExitStatusExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use sd_notify::NotifyState;

use super::{
    console::Console,
    events::{self, End, Events},
    power_button::{self, Control},
};

/// The power button is pressed again after this long: a guest that is still booting does not hear the first.
const PRESS_AGAIN: Duration = Duration::from_secs(2);
/// After a press that did not reach the VMM, whose socket may not be there yet.
const PRESS_RETRY: Duration = Duration::from_millis(250);
/// How long a connection of the guest may take to say something. PID 1 of the guest waits for us meanwhile.
const NOTIFY_PATIENCE: Duration = Duration::from_secs(5);
/// How many of the guest's connections wait at the same time; more wait in the listener's queue.
const NOTIFY_MANY: usize = 8;
/// The longest notification.
const NOTIFY_MAX: usize = 4096;
/// How long a helper of the VMM may take to make its socket.
const HELPER_PATIENCE: Duration = Duration::from_secs(20);
/// A console line that was begun is passed on after this long.
const LINE_PATIENCE: Duration = Duration::from_secs(1);

/// Runs a virtual machine for its unit.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the guest's notifications arrive: the hybrid vsock socket with the port, as in /run/…/vsock_9001
    #[arg(long, value_name = "SOCKET")]
    pub notify: PathBuf,
    /// Where the VMM takes commands: qmp:SOCKET (QEMU) or api:SOCKET (Cloud Hypervisor)
    #[arg(long, value_name = "KIND:SOCKET")]
    pub control: Control,
    /// A socket that must be there before the VMM starts; may be given several times
    #[arg(long, value_name = "SOCKET")]
    pub wait: Vec<PathBuf>,
    /// The VMM and its arguments, after `--`
    #[arg(last = true, required = true, value_name = "VMM")]
    pub argv: Vec<std::ffi::OsString>,
}

/// Why there is no virtual machine.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    #[error("no VMM was given")]
    NoVmm,
    #[error("could not remove the old socket {path}")]
    Clean { path: PathBuf, source: io::Error },
    #[error("could not listen at {path}")]
    Listen { path: PathBuf, source: io::Error },
    #[error("{path} did not appear in {} seconds: see the unit that makes it", HELPER_PATIENCE.as_secs())]
    Helper { path: PathBuf },
    #[error("could not start {program}")]
    Start { program: PathBuf, source: io::Error },
    #[error("could not wait for what happens next")]
    Wait(#[source] io::Error),
}

/// Runs the VMM to its end. Exits with its code, or with 128 + n if signal n killed it; with 0 when the guest reboots and 1 when its
/// kernel panics, which are ends too.
pub fn main(args: Args) -> ExitCode {
    match run(&args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => super::complain("vm", &error),
    }
}

fn run(args: &Args) -> Result<u8, VmError> {
    for path in stale_sockets(args) {
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(VmError::Clean { path, source }),
            _ => {}
        }
    }
    let listen_error = |source| VmError::Listen { path: args.notify.clone(), source };
    let listener = UnixListener::bind(&args.notify).map_err(listen_error)?;
    listener.set_nonblocking(true).map_err(listen_error)?;
    let events = match &args.control {
        Control::Qmp(_) => None,
        Control::Api(api) => {
            let path = events::path(api);
            Some(Events::listen(&path).map_err(|source| VmError::Listen { path, source })?)
        }
    };

    for path in &args.wait {
        wait_for(path)?;
    }

    // The child is started before signals are blocked, since it would inherit that.
    let (program, rest) = args.argv.split_first().ok_or(VmError::NoVmm)?;
    let mut child = Command::new(program)
        .args(rest)
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|source| VmError::Start { program: program.into(), source })?;
    let pipe = child.stdout.take().expect("standard output was asked for as a pipe");

    let code = (|| {
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Watch::new(args, listener, events, pipe)?.until_end(&mut child)
    })();
    if code.is_err() {
        // Should this process end first, systemd ends the child with the unit; but not outside of a unit.
        child.kill().and_then(|()| child.wait()).map_err(VmError::Wait)?;
    }
    code.map_err(VmError::Wait)
}

/// Waits until a helper has made its socket. Programs that say when they are ready need no such thing; these do not.
fn wait_for(path: &Path) -> Result<(), VmError> {
    let until = Instant::now() + HELPER_PATIENCE;
    while !path.exists() {
        if Instant::now() > until {
            return Err(VmError::Helper { path: path.into() });
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Sockets and pipes that an earlier run may have left and that the VMM or this process binds. Cloud Hypervisor refuses a path that
/// is taken, though a new one clears its API's socket by itself; its hybrid vsock socket is the notification socket's path without
/// the port.
fn stale_sockets(args: &Args) -> Vec<PathBuf> {
    let mut stale = vec![args.notify.clone()];
    match &args.control {
        Control::Qmp(path) => stale.push(path.clone()),
        Control::Api(path) => {
            stale.push(path.clone());
            let mut lock = path.clone().into_os_string();
            lock.push(".lock");
            stale.push(lock.into());
            stale.push(events::path(path));
            stale.extend(without_port(&args.notify));
        }
    }
    stale
}

fn without_port(notify: &Path) -> Option<PathBuf> {
    let name = notify.file_name()?.as_bytes();
    let at = name.iter().rposition(|byte| *byte == b'_')?;
    let port = std::str::from_utf8(&name[at + 1..]).ok()?.parse::<u32>().ok()?;
    debug_assert!(port > 0);
    Some(notify.with_file_name(std::ffi::OsStr::from_bytes(&name[..at])))
}

/// All that this process waits for.
struct Watch {
    control: Control,
    signals: SignalFd,
    listener: UnixListener,
    events: Option<Events>,
    /// The console, until the VMM closes it.
    pipe: Option<std::process::ChildStdout>,
    console: Console,
    line_since: Option<Instant>,
    connections: Vec<(UnixStream, Instant)>,
    guest: Guest,
    stopping: Option<Stopping>,
}

/// The state of powering off.
struct Stopping {
    next: Instant,
    /// A press under way. It runs in a thread of its own: a VMM that is waiting for its console to be read would not answer.
    press: Option<JoinHandle<io::Result<()>>>,
    complained: bool,
}

impl Watch {
    fn new(args: &Args, listener: UnixListener, events: Option<Events>, pipe: std::process::ChildStdout) -> io::Result<Self> {
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
            mask.add(signal);
        }
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Self {
            control: args.control.clone(),
            signals,
            listener,
            events,
            pipe: Some(pipe),
            console: Console::default(),
            line_since: None,
            connections: Vec::new(),
            guest: Guest::default(),
            stopping: None,
        })
    }

    fn until_end(mut self, child: &mut Child) -> io::Result<u8> {
        loop {
            // Asked each time round: a child may have ended before its signal could be heard.
            if let Some(status) = child.try_wait()? {
                self.write_last_words();
                return Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)).clamp(0, 255) as u8);
            }
            self.wait()?;
            if let Some(end) = self.events.as_mut().and_then(Events::hear) {
                // What it was about to do by itself is done by the unit, with new helpers.
                child.kill()?;
                child.wait()?;
                self.write_last_words();
                return Ok(if end == End::Panic { 1 } else { 0 });
            }
            let now = Instant::now();
            self.hear_signals(now)?;
            self.read_console();
            if !self.console.unfinished() {
                self.line_since = None;
            } else if now - *self.line_since.get_or_insert(now) >= LINE_PATIENCE {
                self.console.flush();
                self.line_since = None;
            }
            self.accept(now);
            self.hear_guest(now);
            self.press_button(now);
        }
    }

    /// Waits until something can be done; writes what waits for standard output when that is ready.
    fn wait(&mut self) -> io::Result<()> {
        let deadline = [
            self.line_since.map(|since| since + LINE_PATIENCE),
            self.connections.iter().map(|(_, until)| *until).min(),
            // A press under way ends without a word: look again soon.
            self.stopping.as_ref().map(|s| if s.press.is_some() { Instant::now() + Duration::from_millis(50) } else { s.next }),
        ];
        let timeout = match deadline.into_iter().flatten().min() {
            None => PollTimeout::NONE,
            Some(at) => {
                let millis = at.saturating_duration_since(Instant::now()).as_millis() + 1;
                PollTimeout::try_from(i32::try_from(millis).unwrap_or(i32::MAX)).unwrap_or(PollTimeout::MAX)
            }
        };
        let out = io::stdout();
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        if self.connections.len() < NOTIFY_MANY {
            fds.push(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        }
        fds.extend(self.events.as_ref().map(|events| PollFd::new(events.as_fd(), PollFlags::POLLIN)));
        fds.extend(self.pipe.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        fds.extend(self.connections.iter().map(|(stream, _)| PollFd::new(stream.as_fd(), PollFlags::POLLIN)));
        let writing = !self.console.waiting().is_empty();
        if writing {
            fds.push(PollFd::new(out.as_fd(), PollFlags::POLLOUT));
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = |fd: &PollFd| fd.revents().is_some_and(|events| !events.is_empty());
        if writing && fds.last().is_some_and(ready) {
            drop(fds);
            self.write_console();
        }
        Ok(())
    }

    fn hear_signals(&mut self, now: Instant) -> io::Result<()> {
        while let Some(signal) = self.signals.read_signal()? {
            let terminate = [Signal::SIGTERM as u32, Signal::SIGINT as u32].contains(&signal.ssi_signo);
            if terminate && self.stopping.is_none() {
                self.stopping = Some(Stopping { next: now, press: None, complained: false });
                tell(&[NotifyState::Status("stopping: the power button is pressed")]);
            }
        }
        Ok(())
    }

    /// Reads some of what the guest wrote: a bounded part, so that a flood does not keep this from anything else.
    fn read_console(&mut self) {
        let mut buffer = [0; 4096];
        for _ in 0..16 {
            let Some(pipe) = &self.pipe else { return };
            match nix::unistd::read(pipe, &mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(count) => self.console.feed(&buffer[..count]),
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return,
                Err(_) => self.pipe = None,
            }
        }
    }

    /// Writes one part of the console. Standard output was ready, and takes this much without waiting.
    fn write_console(&mut self) {
        match nix::unistd::write(io::stdout(), self.console.waiting()) {
            Ok(count) => self.console.written(count),
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
            // Nobody will ever read it.
            Err(_) => self.console.written(self.console.waiting().len()),
        }
    }

    /// The last words, for as long as the reader takes them.
    fn write_last_words(&mut self) {
        self.read_console();
        self.console.flush();
        while !self.console.waiting().is_empty() {
            let out = io::stdout();
            let mut fds = [PollFd::new(out.as_fd(), PollFlags::POLLOUT)];
            if poll(&mut fds, 1000u16).unwrap_or(0) == 0 {
                return;
            }
            self.write_console();
        }
    }

    fn accept(&mut self, now: Instant) {
        while self.connections.len() < NOTIFY_MANY {
            let Ok((stream, _)) = self.listener.accept() else { return };
            if stream.set_nonblocking(true).is_ok() {
                self.connections.push((stream, now + NOTIFY_PATIENCE));
            }
        }
    }

    /// Takes one notification from each connection and closes it at once: PID 1 of the guest waits for that. The end of the stream
    /// is not waited for, because vhost-device-vsock does not pass the guest's half of it on.
    fn hear_guest(&mut self, now: Instant) {
        let guest = &mut self.guest;
        let stopping = self.stopping.is_some();
        self.connections.retain(|(stream, until)| {
            let mut buffer = [0; NOTIFY_MAX];
            match nix::unistd::read(stream, &mut buffer) {
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => *until > now,
                Err(_) | Ok(0) => false,
                Ok(count) => {
                    let said = guest.hear(&buffer[..count]);
                    if said.ready {
                        tell(&[NotifyState::Ready]);
                    }
                    if let Some(status) = said.status.filter(|_| !stopping) {
                        tell(&[NotifyState::Status(&status)]);
                    }
                    false
                }
            }
        });
    }

    fn press_button(&mut self, now: Instant) {
        let Some(stopping) = &mut self.stopping else { return };
        if let Some(press) = stopping.press.take_if(|press| press.is_finished()) {
            match press.join().unwrap_or_else(|_| Err(io::Error::other("the thread that pressed it died"))) {
                Ok(()) => stopping.next = now + PRESS_AGAIN,
                Err(error) => {
                    stopping.next = now + PRESS_RETRY;
                    if !stopping.complained {
                        eprintln!("seed vm: could not press the power button, trying on: {error}");
                        stopping.complained = true;
                    }
                }
            }
        }
        if stopping.press.is_none() && stopping.next <= now {
            let control = self.control.clone();
            let thread = thread::Builder::new().name("power-button".into()).stack_size(128 << 10);
            match thread.spawn(move || power_button::press(&control)) {
                Ok(press) => stopping.press = Some(press),
                Err(error) => {
                    eprintln!("seed vm: could not start a thread to press the power button: {error}");
                    stopping.next = now + PRESS_AGAIN;
                }
            }
        }
    }
}

fn tell(state: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(state) {
        eprintln!("seed vm: could not tell systemd how the guest is doing: {error}");
    }
}

/// What is known of the guest from its own notifications. Anyone inside of it can send them: they decide nothing but what is shown
/// of this guest.
#[derive(Debug, Default)]
struct Guest {
    ready: bool,
}

/// What one notification of the guest means to the host.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    ready: bool,
    status: Option<String>,
}

impl Guest {
    fn hear(&mut self, message: &[u8]) -> Said {
        let text = String::from_utf8_lossy(message);
        let mut said = Said::default();
        for line in text.lines() {
            let Some((key, value)) = line.split_once('=') else { continue };
            let value: String = value.chars().filter(|c| !c.is_control()).take(120).collect();
            match key {
                "READY" if value == "1" && !self.ready => {
                    self.ready = true;
                    said.ready = true;
                }
                "X_SYSTEMD_UNIT_ACTIVE" if !self.ready => said.status = Some(format!("booting: {value} reached")),
                "X_SYSTEMD_SHUTDOWN" => said.status = Some(format!("stopping: the guest does a {value}")),
                "STATUS" if !self.ready && said.status.is_none() => said.status = Some(format!("booting: {value}")),
                // systemd's variables that would steer the host's unit (MAINPID, WATCHDOG, EXTEND_TIMEOUT_USEC, …) stop here.
                _ => {}
            }
        }
        if said.ready {
            said.status = Some("running".to_owned());
        }
        said
    }
}

#[cfg(test)]
#[path = "vm_tests.rs"]
mod tests;
