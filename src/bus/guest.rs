//! The interface `farm.loom.Seed1.Guest`: the way into a running guest.

use serde::{Deserialize, Serialize};

/// The agent, as who wants to get inside of a guest sees it.
#[zbus::proxy(interface = "farm.loom.Seed1.Guest", default_service = "farm.loom.Seed1", default_path = "/farm/loom/Seed1")]
pub trait Guest {
    /// Lets `who` into an instance. `key` is the line of a public key that was made for this once; `act` is one of [`Act`]; `what`
    /// says in words what is going to be done there, for the record. Returns a stream whose other end is the guest's sshd, and a
    /// [`Way`].
    fn enter(&self, who: &str, instance: &str, key: &str, act: &str, what: &str) -> zbus::Result<(zbus::OwnedFd, String)>;
}

/// What somebody wants inside of a guest. A certificate allows this and no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Run a command, or a shell.
    Exec,
    /// Copy files.
    Copy,
    /// Reach a TCP port.
    Forward,
}

impl Act {
    /// Its name on the bus.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Copy => "copy",
            Self::Forward => "forward",
        }
    }

    /// The act of a name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Exec, Self::Copy, Self::Forward].into_iter().find(|act| act.name() == name)
    }
}

/// The answer to `Enter`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Way {
    pub version: u32,
    /// `s-…/web`
    pub instance: String,
    /// Whom to be there.
    pub user: String,
    /// The line of an OpenSSH certificate that the guest's sshd takes from the holder of the key, for some minutes.
    pub certificate: String,
}
