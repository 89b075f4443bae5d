//! The interface `farm.loom.Seed1.GitHub`: repositories that are elsewhere, at GitHub or any other server that git can read over HTTPS or SSH.

use serde::{Deserialize, Serialize};

/// The agent, as who follows a repository from elsewhere sees it.
#[zbus::proxy(interface = "farm.loom.Seed1.GitHub", default_service = "farm.loom.Seed1", default_path = "/farm/loom/Seed1")]
pub trait GitHub {
    /// Fetches a flake from elsewhere, with `token` if it is not empty, or over SSH with the deploy key of `PlantKey` if `key` says so; if its `.authorized_keys` says that it is `who`'s, registers it with an
    /// invite code and deploys it. `line` is the public key of `who` as that file has it, for a refusal to show; it may be empty. The operator
    /// needs neither a code nor a line there: the first key there that may own it does. Returns a [`RemotePlanted`].
    fn plant(&self, who: &str, uri: &str, code: &str, line: &str, token: &str, key: bool) -> zbus::Result<String>;
    /// The deploy key with which a flake is to be planted; it is made for `who` if there is none, and waits for a day. Returns a [`RemoteKey`].
    fn plant_key(&self, who: &str, uri: &str, code: &str) -> zbus::Result<String>;
    /// How a repository from elsewhere is followed: a [`RemoteStatus`].
    fn show(&self, who: &str, repository: &str) -> zbus::Result<String>;
    /// Keeps a token with which a repository can be read. It is never shown again.
    fn set_token(&self, who: &str, repository: &str, token: &str) -> zbus::Result<()>;
    /// The deploy key of a repository, which is made if there is none: a [`RemoteKey`]. Without a token, it is read over SSH with it.
    fn key(&self, who: &str, repository: &str) -> zbus::Result<String>;
    /// Takes a host key, by its fingerprint, for that of the repository's server.
    fn trust(&self, who: &str, repository: &str, host_key: &str) -> zbus::Result<()>;
    /// Removes the token and the deploy key.
    fn forget_token(&self, who: &str, repository: &str) -> zbus::Result<()>;
    /// Makes a new secret for the webhook; the one before is of no use any more. Returns a [`Webhook`].
    fn new_secret(&self, who: &str, repository: &str) -> zbus::Result<String>;
    /// A forge says that `branch` (empty: none, it only wants to know whether we are here) of `repository` (`user/repo`) has moved.
    /// `signature` is what it signed `body` with. Returns what comes of it, in a word: `fetching`, `repeated`, `otherBranch`, `welcome`.
    fn hook(&self, repository: &str, branch: &str, signature: &str, body: &[u8]) -> zbus::Result<String>;
}

/// What a forge has to be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Webhook {
    pub version: u32,
    pub url: String,
    /// Shown when it is made, and never again.
    pub secret: String,
}

/// The answer to `Plant`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RemotePlanted {
    pub version: u32,
    pub namespace: String,
    pub flake: String,
    /// The job of the first deployment.
    pub job: String,
    /// Names end in this: `<instance>.<namespace>.<domain>`.
    pub suffix: String,
    pub webhook: Webhook,
}

/// The answer to `Key` and `PlantKey`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RemoteKey {
    pub version: u32,
    pub flake: String,
    /// The public half, as it is to be added to the repository.
    pub key: String,
    /// Whether it was made just now.
    pub made: bool,
}

/// The answer to `Show`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RemoteStatus {
    pub version: u32,
    pub namespace: String,
    pub flake: String,
    /// Empty as long as nothing was fetched.
    pub branch: String,
    pub commit: String,
    /// Whether there is a token. It is shown to nobody.
    pub token: bool,
    /// The public half of the deploy key; empty if there is none.
    #[serde(default)]
    pub key: String,
    /// The fingerprint of the host key by which its server is known; empty if it was never asked over SSH.
    #[serde(default)]
    pub host_key: String,
    pub webhook_url: String,
    /// Seconds since 1970 of the last fetch since the agent started; 0 if there was none.
    pub fetched: u64,
    /// Why it failed; empty if it did not.
    pub problem: String,
    /// It is fetched so often, whether or not a webhook comes, in seconds.
    pub every: u64,
}
