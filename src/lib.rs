//! Seed: a NixOS host as a small cloud. Modules in reading order; `ARCHITECTURE.md` has the map.

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
