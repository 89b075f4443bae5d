//! What a key's text has to look like, for each kind of value; errors say what to write.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::spec::quantity::{Bytes, SizeError};

pub(super) fn pool4(text: &str) -> Result<Ipv4Net, String> {
    let net: Ipv4Net = text.parse().map_err(|_| "is no IPv4 network: write one with its length, as in 10.83.0.0/16".to_owned())?;
    if !(8..=29).contains(&net.prefix_len()) {
        return Err("has a length outside /8 to /29: 10.83.0.0/16 has room for 30000 instances, 10.83.0.0/29 for 4".to_owned());
    }
    let address = net.addr();
    if address.is_loopback() || address.is_multicast() || address.is_link_local() || address.octets()[0] == 0 {
        return Err("cannot be routed to instances: write a private network, as in 10.83.0.0/16".to_owned());
    }
    if net.addr() == net.network() { Ok(net) } else { Err(format!("is an address inside of a network: write {}", net.trunc())) }
}

pub(super) fn pool6(text: &str) -> Result<Ipv6Net, String> {
    let net: Ipv6Net = text.parse().map_err(|_| "is no IPv6 network: write a /64, as in fd5e:ed00::/64".to_owned())?;
    if net.prefix_len() != 64 {
        return Err(format!("must be a /64: write {}/64, or the one that you were given", net.network()));
    }
    if net.addr().is_loopback() || net.addr().is_multicast() || net.addr().is_unicast_link_local() || net.addr().is_unspecified() {
        return Err("cannot be routed to instances: write a /64 of yours, as in fd5e:ed00::/64".to_owned());
    }
    if net.addr() == net.network() { Ok(net) } else { Err(format!("is an address inside of a network: write {}", net.trunc())) }
}

pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| "is no IP address: write one, as in 192.0.2.7 or 2001:db8::7".to_owned())
}

pub(super) fn server(text: &str) -> Result<SocketAddr, String> {
    let plain = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, 53));
    plain
        .or_else(|_| text.parse())
        .map_err(|_| "is no address of a server: write 192.0.2.53 or 192.0.2.53:5353 or [2001:db8::53]:53".to_owned())
}

pub(super) fn net(text: &str) -> Result<IpNet, String> {
    let single = text.parse::<IpAddr>().map(IpNet::from);
    single
        .or_else(|_| text.parse())
        .map_err(|_| "is no address or network: write 192.0.2.7 or 192.0.2.0/24 or 2001:db8::/32".to_owned())
}

/// A URL without user and query, that can stand in an argument list and on a terminal.
pub(super) fn http_url(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".:-/_~".contains(&byte);
    let rest = rest.map(|rest| rest.trim_end_matches('/'));
    match rest.filter(|rest| !rest.is_empty() && !rest.starts_with(['-', '.', ':', '/']) && rest.bytes().all(plain)) {
        Some(_) => Ok(text.trim_end_matches('/').to_owned()),
        None => Err("is no URL that can be used: write one, as in https://github.com".to_owned()),
    }
}

/// `ssh://USER@HOST[:PORT][/PATH]`
pub(super) fn ssh_url(text: &str) -> Result<String, String> {
    let word = |text: &str, more: &[u8]| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
    };
    let text = text.trim_end_matches('/');
    let rest = text.strip_prefix("ssh://").and_then(|rest| rest.split_once('@'));
    match rest.filter(|(user, rest)| word(user, b"._-") && word(rest, b".:-/_~")) {
        Some(_) => Ok(text.to_owned()),
        None => Err("is no URL of an SSH server: write one, as in ssh://git@github.com".to_owned()),
    }
}

pub(super) fn size(text: &str, least: &str, most: &str) -> Result<Bytes, String> {
    let limit = |text: &str| text.parse::<Bytes>().expect("a size of this file");
    match text.parse::<Bytes>() {
        Ok(size) if (limit(least)..=limit(most)).contains(&size) => Ok(size),
        Ok(_) | Err(SizeError::Large(_)) => Err(format!("must be from {least} to {most}")),
        Err(SizeError::Form(_)) => Err("is no size: write a whole number and one of Ki, Mi, Gi, Ti, as in 500Mi or 1Gi".to_owned()),
    }
}

pub(super) fn one_of<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    let names: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
    let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
    found.ok_or_else(|| format!("is none of the words for this: write one of {}", names.join(", ")))
}

/// An absolute path that can stand in a unit file without escaping.
pub(super) fn directory(text: &str) -> Result<PathBuf, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._+-".contains(&byte);
    if !text.starts_with('/') {
        return Err("is no absolute path: begin with a slash".to_owned());
    }
    if !text.bytes().all(plain) || text.split('/').any(|part| part == "..") {
        return Err("may have only letters, digits and any of . _ + -, and no ..".to_owned());
    }
    let text = text.trim_end_matches('/');
    if text.is_empty() { Err("is the root directory: name one below it".to_owned()) } else { Ok(PathBuf::from(text)) }
}
