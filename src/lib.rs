//! Seed: a NixOS host as a small cloud. Modules in reading order; `ARCHITECTURE.md` has the map.
// Tests may unwrap, that is how they fail; and they meet the machine.
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::disallowed_types, clippy::exit, reason = "as it says")
)]

pub mod agent;
pub mod build;
pub mod bus;
pub mod cli;
pub mod config;
pub mod host;
pub mod journal;
pub mod launch;
pub mod plan;
pub mod render;
pub mod secret_file;
pub mod serve;
pub mod spec;
pub mod state;
