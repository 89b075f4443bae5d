//! Desired -> zone.
use super::Layout;
use crate::{bus::Zone, spec::desired::Desired};
use std::net::{Ipv4Addr, Ipv6Addr};
pub fn zone(_desired: &Desired, _layout: &Layout, _serial: u32, _h4: &[Ipv4Addr], _h6: &[Ipv6Addr]) -> Zone {
    Zone::default()
}
