//! The ACME door between real clients (lego, certbot, caddy, and one of our own that misbehaves) and a real CA (pebble, validating, and
//! refusing good nonces at random), with the agent and the doors in process. What is missing is installed by `.ci/tools`.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests talk to the world")]

mod client;
mod clients;
mod domains;
mod hosting;
mod https;
mod outside;
mod protocol;
mod refused;
mod tenants;
mod thousand;
mod trouble;
mod world;
