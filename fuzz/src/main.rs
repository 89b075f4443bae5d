//! One program for all targets: SEED_FUZZ names one of `seed::serve::fuzz::TARGETS`.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use seed::serve::fuzz::TARGETS;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let asked = std::env::var("SEED_FUZZ").unwrap_or_default();
    let Some((_, target)) = TARGETS.iter().find(|(name, _)| *name == asked) else {
        let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
        panic!("SEED_FUZZ is {asked:?}, which is none of {}", names.join(", "));
    };
    *target
});

fuzz_target!(|bytes: &[u8]| (*TARGET)(bytes));
