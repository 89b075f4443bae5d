//! Presses the power button of a virtual machine: over QEMU's monitor (QMP) or Cloud Hypervisor's HTTP API. The guest then powers
//! itself off, as a computer on a desk does.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

/// How long a VMM may take to answer; one that does not is asked again later.
const PATIENCE: Duration = Duration::from_secs(2);
/// The most that is read of an answer. The VMM may be a guest's puppet.
const ANSWER_MAX: u64 = 64 << 10;

/// Where a VMM listens for commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// QEMU's monitor socket: `qmp:PATH`.
    Qmp(PathBuf),
    /// Cloud Hypervisor's API socket: `api:PATH`.
    Api(PathBuf),
}

/// Why a text names no control socket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no control socket: write qmp:PATH or api:PATH, with an absolute path")]
pub struct ControlError(String);

impl FromStr for Control {
    type Err = ControlError;
    fn from_str(text: &str) -> Result<Self, ControlError> {
        match text.split_once(':') {
            Some(("qmp", path)) if path.starts_with('/') => Ok(Self::Qmp(path.into())),
            Some(("api", path)) if path.starts_with('/') => Ok(Self::Api(path.into())),
            _ => Err(ControlError(text.to_owned())),
        }
    }
}

/// Presses the button once; returns when the VMM has said that it was.
pub fn press(control: &Control) -> io::Result<()> {
    match control {
        Control::Qmp(path) => press_qmp(connect(path)?),
        Control::Api(path) => press_api(connect(path)?),
    }
}

fn connect(path: &PathBuf) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn press_qmp(mut stream: UnixStream) -> io::Result<()> {
    let mut answers = BufReader::new(stream.try_clone()?.take(ANSWER_MAX));
    // The greeting comes first; commands are taken after capabilities were negotiated.
    expect_answer(&mut answers, "\"QMP\"")?;
    for command in ["qmp_capabilities", "system_powerdown"] {
        stream.write_all(format!("{{\"execute\":\"{command}\"}}\r\n").as_bytes())?;
        expect_answer(&mut answers, "\"return\"")?;
    }
    Ok(())
}

/// Reads lines until one is the answer; events may come before it.
fn expect_answer(answers: &mut impl BufRead, key: &str) -> io::Result<()> {
    loop {
        let mut line = String::new();
        if answers.read_line(&mut line)? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the monitor hung up"));
        }
        if line.contains("\"error\"") {
            return Err(io::Error::other(format!("the monitor answered {}", line.trim())));
        }
        if line.contains(key) {
            return Ok(());
        }
    }
}

fn press_api(mut stream: UnixStream) -> io::Result<()> {
    stream.write_all(b"PUT /api/v1/vm.power-button HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n")?;
    let mut status = String::new();
    BufReader::new(stream.take(ANSWER_MAX)).read_line(&mut status)?;
    match status.split(' ').nth(1) {
        Some(code) if code.starts_with('2') => Ok(()),
        _ => Err(io::Error::other(format!("the API answered {:?}", status.trim()))),
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, thread};

    use super::*;

    /// Serves one connection: sends the first line at once if there is one, then for each line that ends in one of `ends` an answer.
    fn serve(
        greeting: &'static str,
        end: &'static str,
        answers: &'static [&'static str],
    ) -> (tempfile::TempDir, PathBuf, thread::JoinHandle<String>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(greeting.as_bytes()).unwrap();
            let mut said = String::new();
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            for answer in answers {
                loop {
                    let mut line = String::new();
                    if lines.read_line(&mut line).unwrap() == 0 {
                        return said;
                    }
                    said.push_str(&line);
                    if line == end || (end == "}\r\n" && line.ends_with(end)) {
                        break;
                    }
                }
                stream.write_all(answer.as_bytes()).unwrap();
            }
            said
        });
        (dir, path, server)
    }

    const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r\n";

    #[test]
    fn the_monitor_is_greeted_before_the_button_is_pressed() {
        let (_dir, path, server) = serve(
            GREETING,
            "}\r\n",
            &["{\"return\": {}}\r\n", "{\"timestamp\": {}, \"event\": \"POWERDOWN\"}\r\n{\"return\": {}}\r\n"],
        );
        press(&Control::Qmp(path)).unwrap();
        assert_eq!(server.join().unwrap(), "{\"execute\":\"qmp_capabilities\"}\r\n{\"execute\":\"system_powerdown\"}\r\n");
    }

    #[test]
    fn a_refusal_and_a_silent_end_are_errors() {
        let (_dir, path, _server) = serve(GREETING, "}\r\n", &["{\"error\": {\"class\": \"GenericError\"}}\r\n"]);
        assert!(press(&Control::Qmp(path)).unwrap_err().to_string().contains("GenericError"));
        let (_dir, path, _server) = serve(GREETING, "}\r\n", &[]);
        assert!(press(&Control::Qmp(path)).is_err());
        let (_dir, path, _server) = serve("", "\r\n", &["HTTP/1.1 500 Internal Server Error\r\n\r\n"]);
        assert!(press(&Control::Api(path)).unwrap_err().to_string().contains("500"));
        assert!(press(&Control::Qmp("/nowhere/socket".into())).is_err());
    }

    #[test]
    fn the_api_gets_one_put() {
        let (_dir, path, server) = serve("", "\r\n", &["HTTP/1.1 204 \r\nServer: Cloud Hypervisor API\r\n\r\n"]);
        press(&Control::Api(path)).unwrap();
        assert!(server.join().unwrap().starts_with("PUT /api/v1/vm.power-button HTTP/1.1\r\n"));
    }

    #[test]
    fn control_sockets_are_named_with_their_kind() {
        assert_eq!("qmp:/run/q".parse(), Ok(Control::Qmp("/run/q".into())));
        assert_eq!("api:/run/a".parse(), Ok(Control::Api("/run/a".into())));
        for bad in ["", "/run/q", "qmp:", "qmp:run/q", "http:/run/q"] {
            assert!(bad.parse::<Control>().is_err(), "{bad}");
        }
    }
}
