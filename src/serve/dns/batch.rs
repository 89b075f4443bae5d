//! Many packets for one system call. Each answer leaves from the address that its question came to: this host has several, and a client
//! takes an answer only from the one that it asked.

use std::{
    io,
    mem::{size_of, zeroed},
    net::{IpAddr, SocketAddr, SocketAddrV6},
    os::fd::{AsRawFd, RawFd},
};

use tokio::{io::Interest, net::UdpSocket};

/// Packets at a time.
pub const SIZE: usize = 32;
/// No question is longer.
const LONGEST: usize = 2048;
/// Room for what the kernel says beside a packet: the address that it came to.
const CONTROL: usize = 64;

/// A packet that came, and where its answer goes.
#[derive(Clone, Copy)]
struct From {
    length: usize,
    cut: bool,
    address: libc::sockaddr_storage,
    control: Control,
    control_length: usize,
}

/// Aligned as the kernel's headers are.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// Packets that came together, and answers that go together.
pub struct Batch {
    buffers: Vec<[u8; LONGEST]>,
    from: Vec<From>,
    came: usize,
    /// What is answered to each; empty for nothing.
    pub answers: Vec<Vec<u8>>,
}

impl Batch {
    /// Empty, and as large as it ever gets.
    #[allow(unsafe_code, reason = "addresses and headers of the kernel begin as zeros")]
    pub fn new() -> Self {
        // SAFETY: a sockaddr_storage of zeros is an address of no family.
        let address = unsafe { zeroed() };
        let from = From { length: 0, cut: false, address, control: Control([0; CONTROL]), control_length: 0 };
        Self { buffers: vec![[0; LONGEST]; SIZE], from: vec![from; SIZE], came: 0, answers: vec![Vec::new(); SIZE] }
    }

    /// Waits for packets. Those of before are forgotten.
    pub async fn receive(&mut self, socket: &UdpSocket) -> io::Result<()> {
        self.came = 0;
        self.answers.iter_mut().for_each(Vec::clear);
        self.came = socket.async_io(Interest::READABLE, || receive(socket.as_raw_fd(), &mut self.buffers, &mut self.from)).await?;
        Ok(())
    }

    /// How many came.
    pub fn came(&self) -> usize {
        self.came
    }

    /// A packet, who sent it, and the place of its answer. `None` if it was too long or came from nowhere.
    pub fn packet(&mut self, n: usize) -> Option<(&[u8], SocketAddr, &mut Vec<u8>)> {
        let from = &self.from[n];
        let peer = address(&from.address).filter(|_| !from.cut)?;
        Some((&self.buffers[n][..from.length], peer, &mut self.answers[n]))
    }

    /// The way back for an answer that is not ready yet.
    pub fn way_back(&self, n: usize) -> WayBack {
        WayBack(self.from[n])
    }

    /// Sends all answers. One that cannot be sent is left out.
    pub async fn send(&mut self, socket: &UdpSocket) {
        let from: Vec<usize> = (0..self.came).filter(|n| !self.answers[*n].is_empty()).collect();
        let mut rest = &from[..];
        while !rest.is_empty() {
            let (answers, ways) = (&self.answers, &mut self.from);
            let sent = socket.async_io(Interest::WRITABLE, || send(socket.as_raw_fd(), rest, answers, ways)).await;
            match sent {
                Ok(count) => rest = &rest[count.clamp(1, rest.len())..],
                Err(error) => {
                    tracing::debug!(%error, "could not send an answer");
                    rest = &rest[1..];
                }
            }
        }
    }
}

/// Where one answer goes.
pub struct WayBack(From);

impl WayBack {
    /// Sends it.
    pub async fn send(self, socket: &UdpSocket, answer: Vec<u8>) {
        let (answers, mut ways) = ([answer], [self.0]);
        if let Err(error) = socket.async_io(Interest::WRITABLE, || send(socket.as_raw_fd(), &[0], &answers, &mut ways)).await {
            tracing::debug!(%error, "could not send an answer");
        }
    }
}

/// Asks the kernel to say which address each packet came to.
pub fn prepare(socket: &UdpSocket) -> io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    match socket.local_addr()? {
        SocketAddr::V4(_) => setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?,
        SocketAddr::V6(_) => setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?,
    }
    Ok(())
}

#[allow(unsafe_code, reason = "recvmmsg has no safe face that leaves the addresses beside the packets")]
fn receive(socket: RawFd, buffers: &mut [[u8; LONGEST]], from: &mut [From]) -> io::Result<usize> {
    // SAFETY: headers of zeros point at nothing.
    let mut headers: [libc::mmsghdr; SIZE] = unsafe { zeroed() };
    // SAFETY: as above.
    let mut parts: [libc::iovec; SIZE] = unsafe { zeroed() };
    for (((header, part), buffer), from) in headers.iter_mut().zip(&mut parts).zip(buffers.iter_mut()).zip(from.iter_mut()) {
        *part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: LONGEST };
        let message = &mut header.msg_hdr;
        message.msg_name = (&raw mut from.address).cast();
        message.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        message.msg_iov = part;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut from.control).cast();
        message.msg_controllen = CONTROL;
    }
    // SAFETY: each header points at one part, one address and one control buffer with their true lengths; all outlive the call, and
    // nothing else refers to them meanwhile.
    let count =
        unsafe { libc::recvmmsg(socket, headers.as_mut_ptr(), SIZE as libc::c_uint, libc::MSG_DONTWAIT, std::ptr::null_mut()) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    for (header, from) in headers.iter().zip(from).take(count) {
        from.length = header.msg_len as usize;
        from.cut = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
        from.control_length = header.msg_hdr.msg_controllen;
    }
    Ok(count)
}

#[allow(unsafe_code, reason = "sendmmsg has no safe face that gives each packet its own source")]
fn send(socket: RawFd, which: &[usize], answers: &[Vec<u8>], from: &mut [From]) -> io::Result<usize> {
    // SAFETY: headers of zeros point at nothing.
    let mut headers: [libc::mmsghdr; SIZE] = unsafe { zeroed() };
    // SAFETY: as above.
    let mut parts: [libc::iovec; SIZE] = unsafe { zeroed() };
    for ((header, part), n) in headers.iter_mut().zip(&mut parts).zip(which) {
        let way = &mut from[*n];
        let answer = &answers[*n];
        // It is only read from.
        *part = libc::iovec { iov_base: answer.as_ptr().cast_mut().cast(), iov_len: answer.len() };
        source(&mut way.control.0[..way.control_length]);
        let message = &mut header.msg_hdr;
        message.msg_name = (&raw mut way.address).cast();
        message.msg_namelen = match i32::from(way.address.ss_family) {
            libc::AF_INET => size_of::<libc::sockaddr_in>(),
            _ => size_of::<libc::sockaddr_in6>(),
        } as libc::socklen_t;
        message.msg_iov = part;
        message.msg_iovlen = 1;
        if way.control_length > 0 {
            message.msg_control = (&raw mut way.control).cast();
            message.msg_controllen = way.control_length;
        }
    }
    let count = which.len().min(SIZE) as libc::c_uint;
    // SAFETY: the first `count` headers point at one part, one address and one control buffer with their true lengths, and all outlive
    // the call, which only reads from them.
    let sent = unsafe { libc::sendmmsg(socket, headers.as_mut_ptr(), count, libc::MSG_DONTWAIT) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Turns what the kernel said of where a packet came to into what it is to be told of where the answer comes from: the address stays,
/// the interface is for the routes to find, except where an address means nothing without it.
fn source(control: &mut [u8]) {
    const DATA: usize = size_of::<libc::cmsghdr>();
    let word = |control: &[u8], at: usize| control.get(at..at + 4).and_then(|word| word.try_into().ok()).map(i32::from_ne_bytes);
    match (word(control, 8), word(control, 12)) {
        // struct in_pktinfo { int interface; struct in_addr local, header; }
        (Some(libc::IPPROTO_IP), Some(libc::IP_PKTINFO)) => {
            if let Some(interface) = control.get_mut(DATA..DATA + 4) {
                interface.fill(0);
            }
        }
        // struct in6_pktinfo { struct in6_addr address; unsigned interface; }
        (Some(libc::IPPROTO_IPV6), Some(libc::IPV6_PKTINFO)) => {
            let link = control.get(DATA..DATA + 2).is_some_and(|start| start[0] == 0xfe && start[1] & 0xc0 == 0x80);
            if let Some(interface) = control.get_mut(DATA + 16..DATA + 20).filter(|_| !link) {
                interface.fill(0);
            }
        }
        _ => {}
    }
}

#[allow(unsafe_code, reason = "the kernel says of which kind an address is")]
fn address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: of this family, it is one of these, which is smaller; both are plain data, and the storage is aligned for all.
            let v4 = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in>() };
            Some(SocketAddr::new(IpAddr::from(v4.sin_addr.s_addr.to_ne_bytes()), u16::from_be(v4.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in6>() };
            let ip = v6.sin6_addr.s6_addr.into();
            Some(SocketAddrV6::new(ip, u16::from_be(v6.sin6_port), v6.sin6_flowinfo, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}
