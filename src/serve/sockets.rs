//! The sockets that systemd holds for us, by name, so that a restart refuses no connection and no right is needed to bind them.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getsockname};
use tokio::net::{TcpListener, UdpSocket, UnixListener};

use super::ServeError;

/// Where the web's connections come in. Which of the two a socket is, is seen of the socket.
#[derive(Debug)]
pub enum Listener {
    /// From whoever it is.
    Tcp(TcpListener),
    /// From something that stands in front of the doors; each begins with a PROXY header, which says whose it is.
    Unix(UnixListener),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener)
    }
}

/// What the doors listen on. Several sockets may share a name (`FileDescriptorName=`).
#[derive(Debug, Default)]
pub struct Sockets {
    /// `ssh`: TCP
    pub ssh: Vec<TcpListener>,
    /// `dns-udp`
    pub dns_udp: Vec<UdpSocket>,
    /// `dns-tcp`
    pub dns_tcp: Vec<TcpListener>,
    /// `http`: TCP, or a Unix socket
    pub http: Vec<Listener>,
    /// `https`: the same
    pub https: Vec<Listener>,
    /// `acme`: TCP
    pub acme: Vec<TcpListener>,
}

impl Sockets {
    /// Takes the sockets that systemd passed to this process. To be called once, inside the runtime. Names that no door knows are an
    /// error: they are a mistake in the socket unit.
    pub fn from_systemd() -> Result<Self, ServeError> {
        let failed = |what: &str, error: std::io::Error| ServeError::Sockets(format!("{what}: {error}"));
        let mut sockets = Self::default();
        let passed = sd_notify::listen_fds_with_names().map_err(|error| failed("LISTEN_FDS", error))?;
        for (fd, name) in passed {
            #[allow(unsafe_code, reason = "the only way to own a descriptor that was inherited")]
            // SAFETY: systemd passed it to this process, and nobody else here takes it: this is called once.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            let result = match name.as_str() {
                "ssh" => tcp(fd).map(|listener| sockets.ssh.push(listener)),
                "http" => either(fd).map(|listener| sockets.http.push(listener)),
                "https" => either(fd).map(|listener| sockets.https.push(listener)),
                "dns-tcp" => tcp(fd).map(|listener| sockets.dns_tcp.push(listener)),
                "acme" => tcp(fd).map(|listener| sockets.acme.push(listener)),
                "dns-udp" => udp(fd).map(|socket| sockets.dns_udp.push(socket)),
                _ => Err(std::io::Error::other("no door has this name: there are ssh, http, https, dns-udp, dns-tcp and acme")),
            };
            result.map_err(|error| failed(&name, error))?;
        }
        if sockets.ssh.is_empty() {
            return Err(ServeError::Sockets("there is none named ssh: start seed-serve.socket, which starts this".into()));
        }
        Ok(sockets)
    }

    /// The socket units of doors that nothing was passed for: switched off, or something else has their port.
    pub fn missing(&self) -> Vec<&'static str> {
        [
            (self.dns_udp.is_empty(), "seed-serve-dns-udp.socket"),
            (self.dns_tcp.is_empty(), "seed-serve-dns-tcp.socket"),
            (self.http.is_empty(), "seed-serve-http.socket"),
            (self.https.is_empty(), "seed-serve-https.socket"),
            (self.acme.is_empty(), "seed-serve-acme.socket"),
        ]
        .into_iter()
        .filter_map(|(missing, unit)| missing.then_some(unit))
        .collect()
    }
}

fn tcp(fd: OwnedFd) -> std::io::Result<TcpListener> {
    let listener = std::net::TcpListener::from(fd);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

fn either(fd: OwnedFd) -> std::io::Result<Listener> {
    let address = getsockname::<SockaddrStorage>(fd.as_raw_fd())?;
    if address.family() != Some(AddressFamily::Unix) {
        return tcp(fd).map(Listener::Tcp);
    }
    let listener = std::os::unix::net::UnixListener::from(fd);
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener).map(Listener::Unix)
}

fn udp(fd: OwnedFd) -> std::io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::from(fd);
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_socket_is_is_seen_of_the_socket() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(matches!(either(tcp.into()).unwrap(), Listener::Tcp(_)));
        let six = std::net::TcpListener::bind("[::1]:0").unwrap();
        assert!(matches!(either(six.into()).unwrap(), Listener::Tcp(_)));
        let directory = tempfile::tempdir().unwrap();
        let unix = std::os::unix::net::UnixListener::bind(directory.path().join("http.sock")).unwrap();
        assert!(matches!(either(unix.into()).unwrap(), Listener::Unix(_)));
    }
}
