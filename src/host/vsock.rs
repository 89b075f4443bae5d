//! Connections into guests, over hybrid vsock: a Unix socket of the VMM's (or its helper's), where `CONNECT port` opens a stream to
//! the guest's port.
//!
//! The socket lies where its instance's user may put something else, so it is opened without following links, and must be held by
//! that user: else a VMM that was taken over could make the agent connect, as root, to any service of this host.

use std::{
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::Path,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

/// How long a guest may take to accept. An emulated one is slow.
const PATIENCE: Duration = Duration::from_secs(15);

/// Connects to a port of the guest whose run directory is `run`.
pub(super) async fn connect(run: &Path, port: u32) -> io::Result<OwnedFd> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, "the guest did not accept the connection");
    tokio::time::timeout(PATIENCE, handshake(run, port)).await.map_err(|_| late())?
}

async fn handshake(run: &Path, port: u32) -> io::Result<OwnedFd> {
    // The agent made it for the group of the instance's user, which has the user's number.
    let user = std::fs::symlink_metadata(run)?.gid();
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // O_PATH asks for no access; std wants to be told of one.
    let socket = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(run.join("vsock"))?;
    let refuse = |text: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    if !socket.metadata()?.file_type().is_socket() {
        return refuse(format!("{} is no socket", run.join("vsock").display()));
    }
    let mut stream = UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await?;
    let holder = stream.peer_cred()?.uid();
    if holder != user {
        return refuse(format!("{} is held by user {holder}, not by the instance's user {user}", run.join("vsock").display()));
    }
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    // What follows the line is the guest's, so not a byte more is read.
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        if line.len() >= 32 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the VMM answered something else than OK"));
        }
        match stream.read_u8().await {
            Ok(byte) => line.push(byte),
            // Both VMMs hang up if nobody listens in the guest.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(io::Error::new(
                    io::ErrorKind::ConnectionRefused,
                    format!("nothing in the guest listens on vsock port {port}"),
                ));
            }
            Err(error) => return Err(error),
        }
    }
    if !line.starts_with(b"OK ") {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the VMM answered something else than OK"));
    }
    Ok(stream.into_std()?.into())
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    /// Answers one connection with `answer`, and returns what was asked.
    fn vmm(run: &Path, answer: &'static str) -> tokio::task::JoinHandle<String> {
        let listener = UnixListener::bind(run.join("vsock")).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 11];
            stream.read_exact(&mut asked).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&asked).into_owned()
        })
    }

    #[tokio::test]
    async fn what_follows_the_answer_is_the_guests() {
        let dir = tempfile::tempdir().unwrap();
        let asked = vmm(dir.path(), "OK 1073741824\nSSH-2.0-x");
        let fd = connect(dir.path(), 22).await.unwrap();
        assert_eq!(asked.await.unwrap(), "CONNECT 22\n");
        let stream = std::os::unix::net::UnixStream::from(fd);
        stream.set_nonblocking(false).unwrap();
        assert_eq!(io::read_to_string(stream).unwrap(), "SSH-2.0-x");
    }

    #[tokio::test]
    async fn a_guest_that_does_not_listen_and_a_vmm_that_babbles() {
        let babble = "O".repeat(100).leak();
        for (answer, kind) in
            [("", io::ErrorKind::ConnectionRefused), ("NO\n", io::ErrorKind::InvalidData), (&*babble, io::ErrorKind::InvalidData)]
        {
            let dir = tempfile::tempdir().unwrap();
            vmm(dir.path(), answer);
            assert_eq!(connect(dir.path(), 22).await.unwrap_err().kind(), kind, "{answer:?}");
        }
    }

    #[tokio::test]
    async fn a_socket_of_somebody_else_is_not_spoken_to() {
        let dir = tempfile::tempdir().unwrap();
        let (run, other) = (dir.path().join("run"), dir.path().join("other"));
        std::fs::create_dir(&run).unwrap();
        std::fs::create_dir(&other).unwrap();
        let asked = vmm(&other, "OK 1\n");
        // By a link, as a VMM that was taken over may put it there.
        std::os::unix::fs::symlink(other.join("vsock"), run.join("vsock")).unwrap();
        assert!(connect(&run, 22).await.is_err());
        std::fs::remove_file(run.join("vsock")).unwrap();
        std::fs::write(run.join("vsock"), "").unwrap();
        assert_eq!(connect(&run, 22).await.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        // By a name of its own, in the directory of another user.
        if nix::unistd::geteuid().is_root() {
            nix::unistd::chown(&other, None, Some(nix::unistd::Gid::from_raw(800_123))).unwrap();
            let refused = connect(&other, 22).await.unwrap_err();
            assert!(refused.to_string().contains("held by user 0, not by the instance's user 800123"), "{refused}");
        }
        assert!(!asked.is_finished() || asked.await.is_err(), "nobody was asked anything");
    }
}
