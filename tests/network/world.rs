//! A host with three guests and an outside, each a network namespace, joined by veth pairs: the host's ends are named as taps are.
//! All of it goes with the value.
#![allow(unsafe_code, reason = "packet sockets are made with libc")]

use std::{
    fs::{self, File},
    io::Write,
    net::{Ipv4Addr, Ipv6Addr, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};
use seed::{
    host::network::TAP_SETTINGS,
    render::{Layout, Tools, Vmm, credentials::LINK_GATEWAY6, network},
    spec::{
        address::{Address, Addressing, Lease},
        desired::{Desired, Wanted},
        name::SetId,
        quantity::Bytes,
        route::PublicAddress,
    },
};

use crate::frame::Mac;

/// The names of the three guests: two of one namespace, one of another. `db` exposes 53 (both) and 9000/udp, the others 80/tcp.
pub const GUESTS: [&str; 3] = ["s-gaydazldmnsg/web", "s-gaydazldmnsg/db", "s-aaaaaaaaaaaa/web"];
pub const HOST4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const OUTSIDE4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
pub const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
pub const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 9);
/// Where clouds keep what they know about their host, all of them "outside" here.
pub const METADATA4: [Ipv4Addr; 4] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
];
pub const METADATA6: [&str; 2] = ["fd00:ec2::254", "fd20:ce::254"];
/// Ports of the host that somebody listens on, on all its addresses.
pub const HOST_PORTS: [u16; 5] = [22, 53, 5000, 9876, 9877];
const OUTSIDE_MAC: Mac = [2, 0, 0, 0, 0xee, 9];
const UPLINK_MAC: Mac = [2, 0, 0, 0, 0xee, 1];

pub struct World {
    prefix: String,
    pub desired: Desired,
    pub layout: Layout,
    pub listeners: Vec<UdpSocket>,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A packet socket on the only interface of a namespace.
pub struct Wire(OwnedFd);

fn ip(lines: &str) {
    // Not `ip -batch`, which cannot change from one namespace to another.
    for line in lines.lines() {
        let done = Command::new("ip").args(line.split_whitespace()).output().expect("ip is there");
        assert!(done.status.success(), "ip {line}: {}", String::from_utf8_lossy(&done.stderr));
    }
}

/// Why this cannot run here, if it cannot.
pub fn missing() -> Option<String> {
    if !nix::unistd::Uid::effective().is_root() {
        return Some("it makes network namespaces, which needs root".to_owned());
    }
    for program in ["ip", "nft"] {
        if Command::new(program).arg("-V").output().is_err() {
            return Some(format!("{program} is not there"));
        }
    }
    let name = format!("seed-probe-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let made = Command::new("ip").args(["netns", "add", &name]).output().expect("ip is there");
    if !made.status.success() {
        return Some(format!("no network namespace can be made: {}", String::from_utf8_lossy(&made.stderr).trim()));
    }
    drop(Command::new("ip").args(["netns", "del", &name]).output());
    None
}

fn wanted(lease: u16, ports: &str) -> Wanted {
    let text = format!(
        r#"{{"toplevel":"/nix/store/0123456789abcdfghijklmnpqrsvwxyz-x","kernelParams":"","closure":[],"size":{{"vcpus":1,"memoryMiB":512}},
            "ports":{ports},"volumes":{{}},"rollout":"recreate","acme":false,"shoot":false,"tpm":false}}"#
    );
    Wanted { instance: serde_json::from_str(&text).expect("an instance"), lease: Lease(lease) }
}

fn layout() -> Layout {
    let nothing = String::new;
    Layout {
        state: "/var/lib/seed".into(),
        run: "/run/seed".into(),
        units: "/run/systemd/system".into(),
        domain: "seed.example".parse().expect("a domain"),
        addressing: Addressing {
            pool4: "10.88.0.0/24".parse().expect("a network"),
            pool6: "fd5e:ed00::/64".parse().expect("a network"),
            uid_base: 800_000,
        },
        vmm: Vmm::CloudHypervisor,
        tools: Tools {
            seed: nothing(),
            cloud_hypervisor: nothing(),
            qemu: nothing(),
            virtiofsd: nothing(),
            swtpm: nothing(),
            vhost_device_vsock: nothing(),
            journal_remote: nothing(),
        },
        stop_timeout_secs: 90,
        boot_timeout_secs: 300,
        guest_ca: String::new(),
        log_max: Bytes(64 << 20),
        public: [HOST4.into(), HOST6.into()].map(|address| PublicAddress { address, arrives: address }).into(),
        ingress: None,
    }
}

impl World {
    pub fn new() -> Self {
        let db = r#"{"dns":{"port":53,"protocol":"dns"},"sync":{"port":9000,"protocol":"udp"}}"#;
        let web = r#"{"http":{"port":80,"protocol":"http"}}"#;
        let instances = [(GUESTS[0], wanted(0, web)), (GUESTS[1], wanted(1, db)), (GUESTS[2], wanted(2, web))];
        let desired = Desired {
            instances: instances.into_iter().map(|(id, one)| (id.parse().expect("an id"), one)).collect(),
            ..Desired::default()
        };
        let mut world = Self {
            prefix: format!("seed{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)),
            desired,
            layout: layout(),
            listeners: Vec::new(),
        };
        world.wire();
        world.apply();
        world.listeners = world.within("host", || {
            HOST_PORTS.map(|port| UdpSocket::bind(("::", port)).expect("a free port in a new namespace")).into()
        });
        for listener in &world.listeners {
            listener.set_nonblocking(true).expect("a socket");
        }
        world
    }

    /// The namespace called `name`.
    fn ns(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn wire(&self) {
        let (host, out) = (self.ns("host"), self.ns("out"));
        let mut lines = format!("netns add {host}\nnetns add {out}\n");
        for guest in 0..GUESTS.len() {
            let (ns, mac) = (self.ns(&guest.to_string()), &self.address(guest).mac);
            lines += &format!(
                "netns add {ns}\n-n {host} link add seed{guest} address {} type veth peer name eth0 address {mac} netns {ns}\n",
                text(tap_mac(guest))
            );
        }
        lines += &format!(
            "-n {host} link add up0 address {} type veth peer name eth0 address {} netns {out}\n",
            text(UPLINK_MAC),
            text(OUTSIDE_MAC)
        );
        lines += &format!("-n {host} tuntap add dev seed-gw mode tap\n");
        ip(&lines);
        self.within("host", || {
            for (key, value) in [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")] {
                fs::write(format!("/proc/sys/net/{key}"), value).expect("a setting");
            }
            for guest in 0..GUESTS.len() {
                for (family, key, value) in TAP_SETTINGS {
                    fs::write(format!("/proc/sys/net/{family}/conf/seed{guest}/{key}"), value).expect("a setting");
                }
            }
        });
        let addressing = &self.layout.addressing;
        let (gateway4, gateway6) = (addressing.gateway4(), addressing.gateway6());
        let mut lines = String::new();
        for guest in 0..GUESTS.len() {
            let (ns, address) = (self.ns(&guest.to_string()), self.address(guest));
            lines += &format!("-n {host} link set seed{guest} up\n-n {ns} link set lo up\n-n {ns} link set eth0 up\n");
            lines += &format!(
                "-n {host} addr add {gateway4}/32 dev seed{guest}\n-n {host} addr add {gateway6}/128 dev seed{guest} nodad\n"
            );
            lines += &format!("-n {host} addr add {LINK_GATEWAY6}/64 dev seed{guest} nodad\n");
            lines += &format!("-n {host} route add {}/32 dev seed{guest} src {gateway4}\n", address.v4);
            lines += &format!("-n {host} route add {}/128 dev seed{guest} src {gateway6}\n", address.v6);
            lines += &format!("-n {ns} addr add {}/32 dev eth0\n-n {ns} addr add {}/128 dev eth0 nodad\n", address.v4, address.v6);
            lines += &format!("-n {ns} route add default via {gateway4} dev eth0 onlink\n");
            lines += &format!("-n {ns} -6 route add default via {LINK_GATEWAY6} dev eth0\n");
        }
        lines += &format!("-n {host} link set lo up\n-n {host} link set seed-gw up\n-n {host} link set up0 up\n");
        lines += &format!("-n {out} link set lo up\n-n {out} link set eth0 up\n");
        lines += &format!("-n {host} addr add {HOST4}/24 dev up0\n-n {host} addr add {HOST6}/64 dev up0 nodad\n");
        lines += &format!("-n {out} addr add {OUTSIDE4}/24 dev eth0\n-n {out} addr add {OUTSIDE6}/64 dev eth0 nodad\n");
        lines += &format!("-n {host} route add default via {OUTSIDE4}\n-n {host} -6 route add default via {OUTSIDE6}\n");
        lines += &format!("-n {out} route add default via {HOST4}\n-n {out} -6 route add default via {HOST6}\n");
        ip(&lines);
        thread::sleep(Duration::from_millis(100));
    }

    /// Loads the rules for what is desired.
    pub fn apply(&self) {
        let rules = network::ruleset(&self.desired, &self.layout);
        let mut nft = Command::new("ip");
        nft.args(["netns", "exec", &self.ns("host"), "nft", "-f", "-"]).stdin(Stdio::piped());
        let mut child = nft.spawn().expect("ip is there");
        child.stdin.take().expect("a pipe").write_all(rules.as_bytes()).expect("taken");
        assert!(child.wait().expect("ended").success(), "nft refused:\n{rules}");
    }

    pub fn id(guest: usize) -> SetId {
        GUESTS[guest].parse().expect("an id")
    }

    pub fn address(&self, guest: usize) -> Address {
        self.layout.addressing.of(&Self::id(guest), Lease(guest as u16))
    }

    pub fn mac(&self, guest: usize) -> Mac {
        let parts: Vec<u8> = self.address(guest).mac.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hex")).collect();
        parts.try_into().expect("six bytes")
    }

    /// Runs something in a namespace; sockets made there stay there.
    pub fn within<T: Send>(&self, name: &str, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.ns(name));
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(File::open(path).expect("the namespace"), CloneFlags::CLONE_NEWNET).expect("root may enter");
                work()
            });
            inside.join().expect("it did not panic")
        })
    }

    pub fn tap(&self, name: &str) -> Wire {
        self.within(name, Wire::open)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for name in ["host", "out", "0", "1", "2"] {
            drop(Command::new("ip").args(["netns", "del", &self.ns(name)]).output());
        }
    }
}

impl World {
    /// What `ip` lists on the host.
    pub fn listed(&self, what: &str) -> String {
        let output = Command::new("ip").args(["-n", &self.ns("host"), what]).output().expect("ip is there");
        let six = Command::new("ip").args(["-6", "-n", &self.ns("host"), what]).output().expect("ip is there");
        String::from_utf8_lossy(&[output.stdout, six.stdout].concat()).into_owned()
    }
}

/// The host's end of a guest's wire.
pub fn tap_mac(guest: usize) -> Mac {
    [2, 0, 0, 0, 0xaa, guest as u8]
}

pub fn uplink_mac() -> Mac {
    UPLINK_MAC
}

pub fn outside_mac() -> Mac {
    OUTSIDE_MAC
}

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

impl Wire {
    fn open() -> Self {
        let all = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: socket(2) takes numbers; the descriptor is new and ours.
        let fd = unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, all.into());
            assert!(fd >= 0, "a packet socket: {}", std::io::Error::last_os_error());
            OwnedFd::from_raw_fd(fd)
        };
        // SAFETY: all zeroes is a valid sockaddr_ll.
        let mut place: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        place.sll_family = libc::AF_PACKET as u16;
        place.sll_protocol = all;
        place.sll_ifindex = nix::net::if_::if_nametoindex("eth0").expect("the guest's interface") as i32;
        let length = size_of::<libc::sockaddr_ll>() as u32;
        // SAFETY: the address is a sockaddr_ll of the length that is given.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const place).cast(), length) };
        assert_eq!(bound, 0, "bind: {}", std::io::Error::last_os_error());
        Self(fd)
    }

    pub fn send(&self, frame: &[u8]) {
        assert_eq!(nix::unistd::write(&self.0, frame).expect("sent"), frame.len());
    }

    /// The next frame that came from the other end, if one has.
    pub fn next(&self) -> Option<Vec<u8>> {
        loop {
            let mut buffer = vec![0u8; 4096];
            // SAFETY: as above.
            let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            let mut length = size_of::<libc::sockaddr_ll>() as u32;
            // SAFETY: buffer and address are as long as is said.
            let count = unsafe {
                libc::recvfrom(
                    self.0.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                    (&raw mut from).cast(),
                    &raw mut length,
                )
            };
            if count < 0 {
                return None;
            }
            if from.sll_pkttype != libc::PACKET_OUTGOING {
                buffer.truncate(count as usize);
                return Some(buffer);
            }
        }
    }

    /// Whether a frame for which `wanted` holds comes within `limit`.
    pub fn hears(&self, limit: Duration, wanted: impl Fn(&[u8]) -> bool) -> bool {
        let began = Instant::now();
        loop {
            while let Some(frame) = self.next() {
                if wanted(&frame) {
                    return true;
                }
            }
            if began.elapsed() >= limit {
                return false;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Whether `part` is somewhere in `whole`.
pub fn contains(whole: &[u8], part: &[u8]) -> bool {
    whole.windows(part.len()).any(|window| window == part)
}
