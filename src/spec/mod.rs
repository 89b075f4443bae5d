//! What is wanted: values and their rules. No IO, no clock, no async; only this room refuses, and it says every problem at once.
//!
//! | word | means |
//! |---|---|
//! | namespace | what one planted flake owns: `s-` and 12 characters, from the hash of its URI |
//! | instance | one virtual machine of a namespace |
//! | manifest | the meta JSON with which a flake describes one instance |
//! | deployment | the instances of one namespace at one commit |
//! | lease | the small number from which an instance's addresses, user and CID follow |
//! | route | a port of this host's public addresses that leads to an instance |
//! | claim | a namespace's wish to have a name of its own; it counts once the DNS proves it |
//! | set | the units of an instance: one, or two while a new version is rolled out |
//! | volume | a disk that outlives its instance; retired, never deleted, when it is no longer declared |

pub mod access;
pub mod acme;
pub mod address;
pub mod authorized_keys;
pub mod caller;
pub mod desired;
pub mod domain;
pub mod flake;
pub mod instance;
pub mod manifest;
pub mod name;
pub mod ownership;
pub mod quantity;
pub mod quota;
pub mod rollout;
pub mod route;
pub mod set;
