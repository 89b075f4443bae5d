//! The doors, in process, against a stand-in for the agent on a bus of its own; the clients are real: ssh, git, DNS packets.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::exit,
    reason = "tests talk to the world"
)]

mod bound;
mod copy;
mod crowd;
mod debian;
mod dns;
mod dns_clients;
mod dns_servers;
mod domain;
mod guests;
mod history;
mod hook;
mod host;
mod hostile;
mod inside;
mod journal;
mod push;
mod refused;
mod shell;
mod small;
mod small_attacks;
mod stand_in;
mod support;
mod vanish;
