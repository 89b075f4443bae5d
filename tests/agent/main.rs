//! The agent in process: the real loop against a machine made of memory, a state made of memory and a builder that answers from a table.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests touch the machine"
)]

mod forge;
mod forge_ssh;
mod world;

mod access;
mod deploy;
mod desk;
mod domain;
mod enter;
mod history;
mod ingress;
mod json;
mod record;
mod remote;
mod remote_keys;
mod remote_roles;
mod restart;
mod roles;
mod rolling;
mod routes;
mod ssh;
