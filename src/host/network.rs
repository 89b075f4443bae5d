//! The network of the guests: one gateway interface, one routed tap an instance, one nftables table.
//!
//! A tap is up, belongs to its instance's user, carries the gateway's addresses and the two routes to its guest, and has an alias
//! that says all of that: the alias is written last, so a tap with one was finished. Everything is made with `ip -batch` and
//! `nft -f`, which take one transaction on standard input; no shell is involved.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
    path::Path,
    process::Stdio,
    time::Duration,
};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

use super::HostError;
use crate::{
    plan::observed::Tap,
    render::credentials::LINK_GATEWAY6,
    spec::{
        address::{Address, Addressing},
        name::SetId,
    },
};

/// The interface that carries the gateway's addresses whether there are instances or not: a tap that nobody opens, because a host of
/// guests has taps, while not every kernel has the `dummy` kind.
pub const GATEWAY: &str = "seed-gw";
const PATIENCE: Duration = Duration::from_secs(30);

/// How the kernel is to treat a tap: family, setting, value.
pub const TAP_SETTINGS: [(&str, &str, &str); 7] = [
    ("ipv4", "rp_filter", "1"),
    // A guest that asks for this host's other addresses gets no answer.
    ("ipv4", "arp_ignore", "1"),
    ("ipv4", "accept_redirects", "0"),
    ("ipv4", "send_redirects", "0"),
    ("ipv6", "accept_ra", "0"),
    ("ipv6", "accept_redirects", "0"),
    ("ipv6", "dad_transmits", "0"),
];

/// Makes the gateway and lets the kernel forward. What is so already stays as it is.
pub async fn prepare(addressing: &Addressing) -> Result<(), HostError> {
    set("net/ipv4/ip_forward", "1")?;
    if get("net/ipv6/conf/all/forwarding")? != "1" {
        keep_router_advertisements()?;
        set("net/ipv6/conf/all/forwarding", "1")?;
    }
    let mut lines = String::new();
    if !Path::new("/sys/class/net").join(GATEWAY).exists() {
        lines.push_str(&format!("tuntap add dev {GATEWAY} mode tap\n"));
    }
    lines.push_str(&format!("link set {GATEWAY} up\n"));
    lines.push_str(&gateway_addresses(GATEWAY, addressing));
    run("ip", &["-batch", "-"], &lines).await
}

/// A kernel that forwards ignores router advertisements, unless it is told (2) to take them all the same. A host that lives by them
/// would lose its own addresses.
fn keep_router_advertisements() -> Result<(), HostError> {
    let folder = Path::new("/proc/sys/net/ipv6/conf");
    let listed = fs::read_dir(folder).map_err(|source| HostError::File { deed: "list", path: folder.into(), source })?;
    for entry in listed {
        let entry = entry.map_err(|source| HostError::File { deed: "list", path: folder.into(), source })?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| *name != "all" && !name.starts_with("seed")) else { continue };
        let key = format!("net/ipv6/conf/{name}/accept_ra");
        if get(&key)? == "1" {
            set(&key, "2")?;
        }
    }
    Ok(())
}

fn gateway_addresses(interface: &str, addressing: &Addressing) -> String {
    let (v4, v6) = (addressing.gateway4(), addressing.gateway6());
    format!("addr replace {v4}/32 dev {interface}\naddr replace {v6}/128 dev {interface} nodad\n")
}

/// Makes the tap of an instance, in the place of any that is the instance's or has the name.
pub async fn create_tap(id: &SetId, address: &Address, addressing: &Addressing) -> Result<(), HostError> {
    let Address { v4, v6, tap, uid, .. } = address;
    let old = aliases()?.into_iter().filter(|(name, alias)| name == tap || alias.as_ref().is_some_and(|(owner, _)| owner == id));
    let mut lines: String = old.map(|(name, _)| format!("link del dev {name}\n")).collect();
    lines.push_str(&format!("tuntap add dev {tap} mode tap user {uid} vnet_hdr\n"));
    run("ip", &["-batch", "-"], &lines).await?;
    for (family, key, value) in TAP_SETTINGS {
        set(&format!("net/{family}/conf/{tap}/{key}"), value)?;
    }
    let mut lines = format!("link set dev {tap} up\n");
    lines.push_str(&gateway_addresses(tap, addressing));
    // The guest's IPv6 gateway: Linux answers neighbour solicitations only for addresses of the interface that they came in on.
    lines.push_str(&format!("addr replace {LINK_GATEWAY6}/64 dev {tap} nodad\n"));
    lines.push_str(&format!("route replace {v4}/32 dev {tap} src {}\n", addressing.gateway4()));
    lines.push_str(&format!("route replace {v6}/128 dev {tap} src {}\n", addressing.gateway6()));
    lines.push_str(&format!("link set dev {tap} alias {}\n", alias(id, &Tap::of(address))));
    run("ip", &["-batch", "-"], &lines).await
}

/// Removes a tap, if it is there.
pub async fn remove_tap(name: &str) -> Result<(), HostError> {
    if !Path::new("/sys/class/net").join(name).exists() {
        return Ok(());
    }
    run("ip", &["-batch", "-"], &format!("link del dev {name}\n")).await
}

/// Replaces the table: all of it or nothing.
pub async fn apply_firewall(text: &str) -> Result<(), HostError> {
    run("nft", &["-f", "-"], text).await
}

/// Runs a program with `input` on its standard input.
async fn run(program: &'static str, arguments: &[&str], input: &str) -> Result<(), HostError> {
    let command = || format!("{program} {}", arguments.join(" "));
    let failed = |output: String| HostError::Command { command: command(), output };
    let finished = async {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut stdin = child.stdin.take().expect("standard input was asked for as a pipe");
        // It reads all of its input before it says much, so writing first cannot block both.
        let written = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let output = child.wait_with_output().await?;
        // A program that has failed says why; the broken pipe is only a consequence.
        if output.status.success() {
            written?;
        }
        Ok::<_, io::Error>(output)
    };
    let output = match timeout(PATIENCE, finished).await {
        Err(_) => return Err(failed(format!("it did not end in {} s", PATIENCE.as_secs()))),
        Ok(Err(error)) => return Err(failed(format!("it could not be run: {error}"))),
        Ok(Ok(output)) => output,
    };
    if output.status.success() {
        return Ok(());
    }
    let said: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(2000).collect();
    Err(failed(format!("{said} ({})", output.status)))
}

fn sysctl(key: &str) -> std::path::PathBuf {
    Path::new("/proc/sys").join(key)
}

fn get(key: &str) -> Result<String, HostError> {
    let path = sysctl(key);
    let text = fs::read_to_string(&path).map_err(|source| HostError::File { deed: "read", path, source })?;
    Ok(text.trim().to_owned())
}

fn set(key: &str, value: &str) -> Result<(), HostError> {
    if get(key)? == value {
        return Ok(());
    }
    let path = sysctl(key);
    fs::write(&path, value).map_err(|source| HostError::File { deed: "write", path, source })
}

/// The alias of a finished tap.
fn alias(id: &SetId, tap: &Tap) -> String {
    format!("seed:{id},{},{},{}", tap.uid, tap.v4, tap.v6)
}

fn parse_alias(name: &str, text: &str) -> Option<(SetId, Tap)> {
    let mut parts = text.trim().strip_prefix("seed:")?.split(',');
    let id = parts.next()?.parse().ok()?;
    let (uid, v4, v6) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some((id, Tap { name: name.to_owned(), uid, v4, v6 }))
}

/// Whether `name` is one that taps have: `seed` and a number.
fn is_tap_name(name: &str) -> bool {
    name.strip_prefix("seed").is_some_and(|lease| !lease.is_empty() && lease.bytes().all(|b| b.is_ascii_digit()))
}

type Alias = Option<(SetId, Tap)>;

/// Every tap of Seed's and what its alias says.
fn aliases() -> Result<Vec<(String, Alias)>, HostError> {
    let mut taps = Vec::new();
    for (_, name) in interfaces()? {
        let alias = read_alias(&name)?;
        taps.push((name, alias));
    }
    Ok(taps)
}

fn read_alias(name: &str) -> Result<Alias, HostError> {
    let path = Path::new("/sys/class/net").join(name).join("ifalias");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(parse_alias(name, &text)),
        // It went between the listing and now.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound) || error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(source) => Err(HostError::File { deed: "read", path, source }),
    }
}

/// Index and name of each interface that has a tap's name.
fn interfaces() -> Result<Vec<(u32, String)>, HostError> {
    let listed = nix::net::if_::if_nameindex().map_err(|source| HostError::File {
        deed: "list",
        path: "/sys/class/net".into(),
        source: source.into(),
    })?;
    let named = listed.iter().map(|interface| (interface.index(), interface.name().to_string_lossy().into_owned()));
    Ok(named.filter(|(_, name)| is_tap_name(name)).collect())
}

/// Looks at taps. Remembers what it read by the index of the interface, which no two interfaces ever share.
#[derive(Debug, Default)]
pub struct Taps {
    seen: BTreeMap<u32, (SetId, Tap)>,
}

impl Taps {
    /// The finished taps whose routes are there, by instance. A tap that is down has no routes.
    pub fn observe(&mut self) -> Result<BTreeMap<SetId, Tap>, HostError> {
        let present = interfaces()?;
        let indices: BTreeSet<u32> = present.iter().map(|(index, _)| *index).collect();
        self.seen.retain(|index, _| indices.contains(index));
        if present.is_empty() {
            return Ok(BTreeMap::new());
        }
        for (index, name) in present {
            if self.seen.get(&index).is_none_or(|(_, tap)| tap.name != name) {
                match read_alias(&name)? {
                    Some(found) => drop(self.seen.insert(index, found)),
                    None => drop(self.seen.remove(&index)),
                }
            }
        }
        let routes = routes()?;
        let whole = |tap: &Tap| [IpAddr::V4(tap.v4), IpAddr::V6(tap.v6)].iter().all(|ip| routes.contains(&(*ip, tap.name.clone())));
        Ok(self.seen.values().filter(|(_, tap)| whole(tap)).cloned().collect())
    }
}

/// The host routes through interfaces of Seed's.
fn routes() -> Result<BTreeSet<(IpAddr, String)>, HostError> {
    let read = |path: &str| fs::read_to_string(path).map_err(|source| HostError::File { deed: "read", path: path.into(), source });
    let mut routes: BTreeSet<(IpAddr, String)> = read("/proc/net/route")?.lines().filter_map(route4).collect();
    routes.extend(read("/proc/net/ipv6_route")?.lines().filter_map(route6));
    Ok(routes)
}

/// A line of /proc/net/route: `seed0 0200580A 00000000 0001 0 0 0 FFFFFFFF …`; numbers in the order of the machine's bytes.
fn route4(line: &str) -> Option<(IpAddr, String)> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let (name, to, mask) = (*words.first()?, *words.get(1)?, *words.get(7)?);
    let wanted = is_tap_name(name) && mask == "FFFFFFFF";
    let address = wanted.then(|| u32::from_str_radix(to, 16).ok())??;
    Some((Ipv4Addr::from(address.to_ne_bytes()).into(), name.to_owned()))
}

/// A line of /proc/net/ipv6_route: address, prefix length, source, its length, next hop, metric, two counters, flags, interface.
fn route6(line: &str) -> Option<(IpAddr, String)> {
    const LOCAL: u32 = 0x8000_0000;
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let (to, length, flags, name) = (*words.first()?, *words.get(1)?, *words.get(8)?, *words.get(9)?);
    let remote = u32::from_str_radix(flags, 16).ok()? & LOCAL == 0;
    let wanted = is_tap_name(name) && length == "80" && remote;
    let address = wanted.then(|| u128::from_str_radix(to, 16).ok())??;
    Some((Ipv6Addr::from(address).into(), name.to_owned()))
}

/// Whether the kernel has the table `inet seed`: asked over netlink, which starts no program.
pub fn has_table() -> io::Result<bool> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
    send(netlink.as_raw_fd(), &get_table_message("seed"), MsgFlags::empty())?;
    let mut answer = [0; 1024];
    let count = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let word = |at: usize| answer[..count].get(at..at + 4).map(|bytes| i32::from_ne_bytes(bytes.try_into().expect("four bytes")));
    // Header: length, type and flags, sequence, port; then for an error its negative number.
    match word(4).map(|kind| kind & 0xffff) {
        Some(libc::NLMSG_ERROR) => match word(16) {
            Some(0) => Ok(true),
            Some(error) if -error == libc::ENOENT => Ok(false),
            Some(error) => Err(io::Error::from_raw_os_error(-error)),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        },
        Some(_) => Ok(true),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// NFT_MSG_GETTABLE for a table of the family inet.
fn get_table_message(table: &str) -> Vec<u8> {
    const NFT_MSG_GETTABLE: u16 = 1;
    let kind = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | NFT_MSG_GETTABLE;
    let name_length = 4 + table.len() as u16 + 1;
    let mut body = vec![libc::NFPROTO_INET as u8, 0, 0, 0];
    body.extend(name_length.to_ne_bytes());
    body.extend(1u16.to_ne_bytes()); // NFTA_TABLE_NAME
    body.extend(table.as_bytes());
    body.push(0);
    body.resize(body.len().next_multiple_of(4), 0);
    let mut message = Vec::new();
    message.extend((16 + body.len() as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_says_what_its_tap_was_made_with() {
        let id: SetId = "s-gaydazldmnsg/web".parse().unwrap();
        let tap = Tap { name: "seed7".into(), uid: 800_007, v4: "10.88.0.9".parse().unwrap(), v6: "fd5e::8000:1".parse().unwrap() };
        let text = alias(&id, &tap);
        assert!(text.len() < 256 && !text.contains(char::is_whitespace));
        assert_eq!(parse_alias("seed7", &format!("{text}\n")), Some((id, tap)));
        for bad in ["", "seed:", "seed:web,1,10.0.0.1,::1", "seed:s-gaydazldmnsg/web,1,10.0.0.1", "uplink"] {
            assert_eq!(parse_alias("seed7", bad), None, "{bad}");
        }
    }

    #[test]
    fn only_a_lease_makes_a_taps_name() {
        for (name, expected) in
            [("seed0", true), ("seed30000", true), ("seed", false), ("seed-gw", false), ("seedy", false), ("eth0", false)]
        {
            assert_eq!(is_tap_name(name), expected, "{name}");
        }
    }

    #[test]
    fn host_routes_are_read_from_the_kernels_tables() {
        let to = u32::from_ne_bytes([10, 88, 0, 2]);
        let line = format!("seed0\t{to:08X}\t00000000\t0001\t0\t0\t0\tFFFFFFFF\t0\t0\t0");
        assert_eq!(route4(&line), Some((IpAddr::from([10, 88, 0, 2]), "seed0".into())));
        assert_eq!(route4(&line.replace("FFFFFFFF", "00FFFFFF")), None);
        assert_eq!(route4(&line.replace("seed0", "eth0")), None);
        assert_eq!(route4("Iface\tDestination\tGateway"), None);
        let zeros = "0".repeat(32);
        let line = format!("fd5eed00000000008000000000000001 80 {zeros} 00 {zeros} 00000400 00000001 00000000 00000001   seed0");
        assert_eq!(route6(&line), Some(("fd5e:ed00::8000:0:0:1".parse().unwrap(), "seed0".into())));
        // The gateway's own address on the tap is in the table too, as a local one.
        assert_eq!(route6(&line.replace("00000001   seed0", "80200001   seed0")), None);
        assert_eq!(route6(&line.replace(" 80 ", " 40 ")), None);
    }

    #[test]
    fn the_question_about_the_table_is_well_formed() {
        let message = get_table_message("seed");
        assert_eq!(message.len(), 32);
        assert_eq!(u32::from_ne_bytes(message[..4].try_into().unwrap()) as usize, message.len());
        assert_eq!(&message[16..], [&[1, 0, 0, 0][..], &9u16.to_ne_bytes(), &1u16.to_ne_bytes(), b"seed\0\0\0\0"].concat());
    }
}
