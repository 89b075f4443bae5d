//! Names that are next to a name in the order of DNSSEC, and NSEC records between them. Names are on the wire and in lower case.

use super::{
    question::kind,
    table::{child, label},
};

/// The name right after `name` and before all that there can be below it.
pub fn first_below(name: &[u8]) -> Box<[u8]> {
    if name.len() + 2 <= 255 { child(b"\0", name) } else { after(name) }
}

/// A name before `name`, a child of `parent`, with nothing between them that a zone of host names can have. `None` if only the parent is.
pub fn before(name: &[u8], parent: &[u8]) -> Option<Box<[u8]>> {
    let mut first = label(name).to_vec();
    let last = first.pop()?;
    if last == 0 {
        return (!first.is_empty()).then(|| child(&first, parent));
    }
    // Capital letters stand for small ones, which come later.
    first.push(if last == b'[' { b'@' } else { last - 1 });
    // And after all of that one's own.
    if first.len() < 63 && parent.len() + first.len() + 2 <= 255 {
        first.push(0xff);
        return Some(child(&first, parent));
    }
    let less = child(&first, parent);
    Some(if less.len() + 2 <= 255 { child(b"\xff", &less) } else { less })
}

/// A name after `name` and all that there can be below it.
pub fn after(name: &[u8]) -> Box<[u8]> {
    let mut first = label(name).to_vec();
    let parent = &name[1 + first.len()..];
    if first.len() < 63 && name.len() < 255 {
        first.push(0);
        return child(&first, parent);
    }
    while let Some(last) = first.pop() {
        if last < 0xff {
            first.push(if last == b'@' { b'[' } else { last + 1 });
            break;
        }
    }
    child(&first, parent)
}

/// The data of an NSEC record. Every name that has one has it, and its signature.
pub fn data(next: &[u8], types: &[u16]) -> Box<[u8]> {
    // Types below 256, and the 256 after them: no others are in the zone.
    let mut windows = [[0u8; 32]; 2];
    for kind in types.iter().copied().chain([kind::RRSIG, kind::NSEC]) {
        if let Some(window) = windows.get_mut(usize::from(kind >> 8)) {
            window[usize::from(kind & 0xff) / 8] |= 0x80 >> (kind & 7);
        }
    }
    let mut data = next.to_vec();
    for (number, window) in (0u8..).zip(&windows) {
        let length = window.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        if length > 0 {
            data.extend([number, u8::try_from(length).unwrap_or(32)]);
            data.extend(&window[..length]);
        }
    }
    data.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ZONE: &[u8] = b"\x04seed\x07example\0";

    /// The labels of a name from the right, which is the order of DNSSEC.
    fn order(name: &[u8]) -> Vec<Vec<u8>> {
        let (mut labels, mut at) = (Vec::new(), 0);
        while name[at] != 0 {
            labels.push(label(&name[at..]).to_ascii_lowercase());
            at += 1 + usize::from(name[at]);
        }
        labels.reverse();
        labels
    }

    fn host() -> impl Strategy<Value = Vec<u8>> {
        "[a-z0-9_-]{1,63}".prop_map(String::into_bytes)
    }

    proptest! {
        #[test]
        fn a_name_is_covered_with_all_below_it_and_nothing_else_is(
            missing in prop_oneof![host(), proptest::collection::vec(any::<u8>(), 1..=63)],
            other in host(),
            deep in host(),
        ) {
            let name = child(&missing.to_ascii_lowercase(), ZONE);
            let start = before(&name, ZONE).unwrap_or_else(|| ZONE.into());
            let end = after(&name);
            prop_assert!(order(&start) < order(&name) && order(&name) < order(&end));
            prop_assert!(order(&child(&deep, &name)) < order(&end));
            prop_assert!(start.len() <= 255 && end.len() <= 255);
            let other = child(&other, ZONE);
            if other != name {
                for other in [other.clone(), child(&deep, &other)] {
                    prop_assert!(order(&other) <= order(&start) || order(&other) >= order(&end), "{:?} {:?} {:?}", other, start, end);
                }
            }
            let first = first_below(&name);
            prop_assert!(order(&name) < order(&first) && order(&first) < order(&child(&deep, &name)));
        }
    }

    #[test]
    fn types_are_bits() {
        assert_eq!(&*data(b"\0", &[1, 257]), b"\0\x00\x06\x40\0\0\0\0\x03\x01\x01\x40");
    }
}
