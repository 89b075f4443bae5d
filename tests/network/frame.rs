//! Frames by hand, so that they can lie.

use std::net::{Ipv4Addr, Ipv6Addr};

pub type Mac = [u8; 6];

pub const UDP: u8 = 17;
pub const TCP: u8 = 6;
pub const ICMP: u8 = 1;
pub const ICMP6: u8 = 58;

fn sum(parts: &[&[u8]]) -> [u8; 2] {
    let bytes = parts.concat();
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// An Ethernet frame.
pub fn ethernet(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

/// The same frame with a VLAN tag.
pub fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    [&frame[..12], &[0x81, 0], &vlan.to_be_bytes(), &frame[12..]].concat()
}

/// An IPv4 packet; `fragment` is the word of flags and offset.
pub fn ip4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut head = vec![0x45, 0];
    head.extend((20 + payload.len() as u16).to_be_bytes());
    head.extend([0x12, 0x34]);
    head.extend(fragment.to_be_bytes());
    head.extend([64, protocol, 0, 0]);
    head.extend(from.octets());
    head.extend(to.octets());
    let check = sum(&[&head]);
    head[10..12].copy_from_slice(&check);
    [&head[..], payload].concat()
}

/// An IPv6 packet.
pub fn ip6(from: Ipv6Addr, to: Ipv6Addr, next: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let mut head = vec![0x60, 0, 0, 0];
    head.extend((payload.len() as u16).to_be_bytes());
    head.extend([next, hops]);
    head.extend(from.octets());
    head.extend(to.octets());
    [&head[..], payload].concat()
}

/// The fragment header of IPv6 before a payload.
pub fn fragment6(next: u8, offset_and_more: u16, payload: &[u8]) -> Vec<u8> {
    [&[next, 0], &offset_and_more.to_be_bytes()[..], &[0, 0, 0, 9], payload].concat()
}

/// A UDP datagram; IPv4 does without a checksum.
pub fn udp(from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let length = 8 + data.len() as u16;
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &length.to_be_bytes(), &[0, 0], data].concat()
}

fn pseudo6(from: Ipv6Addr, to: Ipv6Addr, next: u8, length: usize) -> Vec<u8> {
    [&from.octets()[..], &to.octets(), &(length as u32).to_be_bytes(), &[0, 0, 0, next]].concat()
}

/// A UDP datagram for IPv6.
pub fn udp6(source: Ipv6Addr, target: Ipv6Addr, from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let mut made = udp(from, to, data);
    let check = sum(&[&pseudo6(source, target, UDP, made.len()), &made]);
    made[6..8].copy_from_slice(&check);
    made
}

/// A TCP segment of IPv4 without data of the stream, but with some behind its header: enough for a filter, and to be recognised.
pub fn tcp(source: Ipv4Addr, target: Ipv4Addr, from: u16, to: u16, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut made =
        [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0, 0, 0, 0, 0], data].concat();
    let pseudo = [&source.octets()[..], &target.octets(), &[0, TCP], &(made.len() as u16).to_be_bytes()].concat();
    let check = sum(&[&pseudo, &made]);
    made[16..18].copy_from_slice(&check);
    made
}

/// An ICMP message.
pub fn icmp(kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
    let mut made = [&[kind, code, 0, 0], body].concat();
    let check = sum(&[&made]);
    made[2..4].copy_from_slice(&check);
    made
}

/// An ICMPv6 message.
pub fn icmp6(from: Ipv6Addr, to: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut made = [&[kind, 0, 0, 0], body].concat();
    let check = sum(&[&pseudo6(from, to, ICMP6, made.len()), &made]);
    made[2..4].copy_from_slice(&check);
    made
}

/// An ARP message: 1 asks, 2 answers.
pub fn arp(kind: u8, from: (Mac, Ipv4Addr), about: Ipv4Addr) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4, 0, kind], &from.0[..], &from.1.octets(), &[0; 6], &about.octets()].concat()
}
