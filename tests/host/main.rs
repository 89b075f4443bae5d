//! Stories on real parts: systemd, D-Bus, nix, git, ssh and virtual machines, in machines that the test boots for itself (see
//! `tests/host/host`). Each story has a machine of its own and may break it. Emulated guests take a while: run a single story with
//! `cargo test --test host NAME`.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::print_stderr, reason = "tests touch the machine")]

mod machine;

mod access;
mod acme;
mod bad_input;
mod bus;
mod clients;
mod crash;
mod enter;
mod github;
mod ingress;
mod lacks;
mod logs;
mod network;
mod push;
mod rolling;
mod verbs;
mod volumes;
