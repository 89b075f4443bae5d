//! The main processes of an instance's units: small programs that stand between systemd and a program which does not speak its
//! language. Each is `seed <verb>`; they run once for every virtual machine, so they block, hold no runtime and allocate little.
//!
//! They trust the unit file that starts them and nothing else: what a guest or its VMM says is cut, cleaned or refused here.
#![allow(clippy::print_stderr, reason = "standard error of these processes is the journal")]
#![allow(clippy::disallowed_methods, reason = "these are processes of their own, beside the agent")]

pub mod console;
pub mod events;
pub mod machine;
pub mod power_button;
pub mod store_view;
pub mod vm;

use std::{error::Error, process::ExitCode};

/// Says an error and all its causes on standard error, which is the unit's journal.
fn complain(verb: &str, error: &dyn Error) -> ExitCode {
    let mut text = format!("seed {verb}: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    eprintln!("{text}");
    ExitCode::FAILURE
}
