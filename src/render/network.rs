//! nftables text.
use super::Layout;
use crate::spec::desired::Desired;
pub fn ruleset(_desired: &Desired, _layout: &Layout) -> String {
    todo!()
}
