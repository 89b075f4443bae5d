//! Where a flake comes from, in the words a tenant writes: a repository of this host, of GitHub, or of any Git server over HTTPS or SSH. Parsed
//! into parts that cannot be wrong and put together anew, never passed on as text.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::name::{Domain, NameError, Namespace, RefName, RepoName, namespace_of_hash};

/// Where a flake comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum FlakeUri {
    /// A repository on this host: `silo:my-app`.
    Silo(RepoName),
    /// A repository somewhere else: `github:user/repo`, `git+https://host/path`.
    Remote(Remote),
}

/// A repository somewhere else, and the branch of it that is deployed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Remote {
    place: Place,
    /// `None`: the one that the server calls its default.
    branch: Option<RefName>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Place {
    /// `user/repo`
    GitHub(String),
    /// Never an address, a name without a dot or a user: what the world calls a host.
    Https { host: Domain, port: Option<u16>, path: String },
    /// Read with a deploy key, always.
    Ssh { user: String, host: Domain, port: Option<u16>, path: String },
}

/// The longest URI. It stands in a unit's arguments and in messages.
const LONGEST: usize = 300;

fn refuse(given: &str, reason: &'static str) -> NameError {
    NameError { what: "flake", given: given.chars().take(80).collect(), reason }
}

impl FlakeUri {
    /// The full hash of the URI, in lower-case hexadecimal: the key of its namespace.
    pub fn hash(&self) -> String {
        data_encoding::HEXLOWER.encode(&Sha256::digest(self.to_string().as_bytes()))
    }

    /// The short name: `s-` and the first 12 characters of the base32 of the ASCII of the first 20 digits of the hash.
    pub fn namespace(&self) -> Namespace {
        namespace_of_hash(&self.hash())
    }

    /// What people call the repository: `my-app` of `silo:my-app`, `repo` of `github:user/repo`.
    pub fn repository(&self) -> &str {
        match self {
            Self::Silo(name) => name.as_str(),
            Self::Remote(remote) => remote.repository(),
        }
    }
}

impl Remote {
    /// Where git finds it; `github` is the URL of GitHub, without a slash at its end.
    pub fn url(&self, github: &str) -> String {
        match &self.place {
            Place::GitHub(name) => format!("{github}/{name}.git"),
            Place::Https { host, port: Some(port), path } => format!("https://{host}:{port}/{path}"),
            Place::Https { host, port: None, path } => format!("https://{host}/{path}"),
            Place::Ssh { .. } => self.ssh_url(""),
        }
    }

    /// Where git finds it over SSH; `github` is the URL of GitHub's SSH server, without a slash at its end.
    pub fn ssh_url(&self, github: &str) -> String {
        match &self.place {
            Place::GitHub(name) => format!("{github}/{name}.git"),
            // What every forge has: the same path, and the user git.
            Place::Https { host, path, .. } => format!("ssh://git@{host}/{path}"),
            Place::Ssh { user, host, port: Some(port), path } => format!("ssh://{user}@{host}:{port}/{path}"),
            Place::Ssh { user, host, port: None, path } => format!("ssh://{user}@{host}/{path}"),
        }
    }

    /// Whether it can only be read with a deploy key.
    pub fn is_ssh(&self) -> bool {
        matches!(self.place, Place::Ssh { .. })
    }

    /// The branch that was named.
    pub fn branch(&self) -> Option<&RefName> {
        self.branch.as_ref()
    }

    /// The last part of its path, without `.git`.
    pub fn repository(&self) -> &str {
        let path = self.path();
        path.rsplit('/').next().unwrap_or(path)
    }

    /// Whether a forge calls it `name` (`user/repo`): forges do not tell capitals from small letters.
    pub fn is_called(&self, name: &str) -> bool {
        self.path().eq_ignore_ascii_case(name)
    }

    fn path(&self) -> &str {
        match &self.place {
            Place::GitHub(name) => name,
            Place::Https { path, .. } | Place::Ssh { path, .. } => path.strip_suffix(".git").unwrap_or(path),
        }
    }
}

/// A path of letters, digits and `._~-`, no part of which is empty, `.`, `..` or begins with `-`.
fn check_path(given: &str, path: &str) -> Result<(), NameError> {
    if !path.bytes().all(|b| b.is_ascii_alphanumeric() || b"._~-/".contains(&b)) {
        return Err(refuse(given, "has a path with other characters than letters, digits and any of . _ ~ - /"));
    }
    if path.split('/').any(|part| part.is_empty() || part == "." || part == ".." || part.starts_with('-')) {
        return Err(refuse(given, "has a path with a part that is empty, '.', '..' or begins with '-'"));
    }
    Ok(())
}

fn check_branch(given: &str, name: &str) -> Result<RefName, NameError> {
    if name.len() == 40 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(refuse(given, "names a commit, which never changes: name a branch, or leave it out"));
    }
    format!("refs/heads/{name}").parse().map_err(|error: NameError| refuse(given, error.reason))
}

/// What stands behind `github:`.
fn github(given: &str, text: &str) -> Result<Remote, NameError> {
    let mut parts = text.splitn(3, '/');
    let (Some(user), Some(repository), branch) = (parts.next(), parts.next(), parts.next()) else {
        return Err(refuse(given, "names no repository: write github:USER/REPO"));
    };
    let user_ok =
        (1..=39).contains(&user.len()) && user.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') && !user.starts_with('-');
    if !user_ok {
        return Err(refuse(given, "has a user that GitHub would not allow: write github:USER/REPO"));
    }
    let repository = repository.strip_suffix(".git").unwrap_or(repository);
    let repository_ok = (1..=100).contains(&repository.len())
        && repository.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && !repository.starts_with('-')
        && !matches!(repository, "." | "..");
    if !repository_ok {
        return Err(refuse(given, "has a repository that GitHub would not allow: write github:USER/REPO"));
    }
    let branch = branch.map(|branch| check_branch(given, branch)).transpose()?;
    Ok(Remote { place: Place::GitHub(format!("{user}/{repository}")), branch })
}

/// What stands behind `git+https://` and `git+ssh://`.
fn server(given: &str, text: &str, ssh: bool) -> Result<Remote, NameError> {
    let (place, query) = text.split_once('?').map_or((text, None), |(place, query)| (place, Some(query)));
    let branch = match query.map(|query| query.strip_prefix("ref=")) {
        None => None,
        Some(Some(branch)) => Some(check_branch(given, branch)?),
        Some(None) => return Err(refuse(given, "asks for more than a branch: write ?ref=BRANCH, or nothing")),
    };
    let (authority, path) = place
        .split_once('/')
        .ok_or_else(|| refuse(given, "names no repository: write git+https://HOST/PATH or git+ssh://git@HOST/PATH"))?;
    let (user, authority) = match (authority.split_once('@'), ssh) {
        (None, false) => (None, authority),
        (Some((user, authority)), true) => (Some(user), authority),
        (None, true) => return Err(refuse(given, "names no user: write git+ssh://git@HOST/PATH")),
        (Some(_), false) => return Err(refuse(given, "names a user or a password: leave it out, and plant it with --token")),
    };
    let is_word = |user: &str| {
        user.len() <= 32
            && user.starts_with(|c: char| c.is_ascii_alphanumeric())
            && user.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    if user.is_some_and(|user| !is_word(user)) {
        return Err(refuse(given, "has a user with other characters than letters, digits and any of . _ -"));
    }
    let usual = if ssh { 22 } else { 443 };
    let (host, port) = match authority.split_once(':') {
        None => (authority, None),
        Some((host, port)) => {
            let port = port.parse().ok().filter(|port| *port > 0 && *port != usual);
            let why = "has no usable port: write a number below 65536, and leave the usual one (443, or 22 of SSH) out";
            (host, Some(port.ok_or_else(|| refuse(given, why))?))
        }
    };
    let host: Domain = host.parse().map_err(|error: NameError| refuse(given, error.reason))?;
    // An address can be written in many ways (127.1, 0x7f.1): all of them end with a part that begins with a digit, and no domain does.
    let last = host.as_str().rsplit('.').next().unwrap_or_default();
    if last == host.as_str() || last.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(refuse(
            given,
            "is not at a host that the world knows: write its full name, as in git+https://git.example.org/app",
        ));
    }
    check_path(given, path)?;
    let path = path.to_owned();
    let place = match user {
        Some(user) => Place::Ssh { user: user.to_owned(), host, port, path },
        None => Place::Https { host, port, path },
    };
    Ok(Remote { place, branch })
}

impl FromStr for FlakeUri {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.len() > LONGEST {
            return Err(refuse(text, "is longer than 300 characters"));
        }
        if let Some(name) = text.strip_prefix("silo:") {
            return Ok(Self::Silo(name.strip_suffix(".git").unwrap_or(name).parse()?));
        }
        if let Some(rest) = text.strip_prefix("github:") {
            return github(text, rest).map(Self::Remote);
        }
        if let Some(rest) = text.strip_prefix("git+https://") {
            return server(text, rest, false).map(Self::Remote);
        }
        if let Some(rest) = text.strip_prefix("git+ssh://") {
            return server(text, rest, true).map(Self::Remote);
        }
        Err(refuse(
            text,
            "is nothing that can be planted: write silo:NAME, github:USER/REPO, git+https://HOST/PATH or git+ssh://git@HOST/PATH",
        ))
    }
}

impl TryFrom<String> for FlakeUri {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<FlakeUri> for String {
    fn from(uri: FlakeUri) -> String {
        uri.to_string()
    }
}

impl fmt::Display for FlakeUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silo(name) => write!(f, "silo:{name}"),
            Self::Remote(remote) => remote.fmt(f),
        }
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let branch = self.branch.as_ref().map(RefName::short);
        match (&self.place, branch) {
            (Place::GitHub(name), None) => write!(f, "github:{name}"),
            (Place::GitHub(name), Some(branch)) => write!(f, "github:{name}/{branch}"),
            (Place::Https { .. } | Place::Ssh { .. }, None) => write!(f, "git+{}", self.url("")),
            (Place::Https { .. } | Place::Ssh { .. }, Some(branch)) => write!(f, "git+{}?ref={branch}", self.url("")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_can_be_planted() {
        let table = [
            ("silo:my-app.git", "silo:my-app", None),
            ("github:loomtex/seed", "github:loomtex/seed", Some(("https://github.com/loomtex/seed.git", None))),
            ("github:A-b/c_D.e", "github:A-b/c_D.e", Some(("https://github.com/A-b/c_D.e.git", None))),
            ("github:a/b.git", "github:a/b", Some(("https://github.com/a/b.git", None))),
            ("github:a/.github", "github:a/.github", Some(("https://github.com/a/.github.git", None))),
            ("github:a/b/feature/x", "github:a/b/feature/x", Some(("https://github.com/a/b.git", Some("refs/heads/feature/x")))),
            (
                "git+https://git.example.org/a/b.git",
                "git+https://git.example.org/a/b.git",
                Some(("https://git.example.org/a/b.git", None)),
            ),
            (
                "git+https://git.example.org:8443/~ann/app?ref=next",
                "git+https://git.example.org:8443/~ann/app?ref=next",
                Some(("https://git.example.org:8443/~ann/app", Some("refs/heads/next"))),
            ),
            (
                "git+ssh://git@git.example.org/ann/app.git",
                "git+ssh://git@git.example.org/ann/app.git",
                Some(("ssh://git@git.example.org/ann/app.git", None)),
            ),
            (
                "git+ssh://ann-1@git.example.org:2222/srv/app?ref=next",
                "git+ssh://ann-1@git.example.org:2222/srv/app?ref=next",
                Some(("ssh://ann-1@git.example.org:2222/srv/app", Some("refs/heads/next"))),
            ),
        ];
        for (given, shown, remote) in table {
            let uri: FlakeUri = given.parse().unwrap_or_else(|error| panic!("{given}: {error}"));
            assert_eq!(uri.to_string(), shown);
            assert_eq!(uri, shown.parse().unwrap(), "what is shown means the same");
            if let (FlakeUri::Remote(found), Some((url, branch))) = (&uri, remote) {
                assert_eq!((found.url("https://github.com").as_str(), found.branch().map(RefName::as_str)), (url, branch));
            }
            assert_eq!(matches!(uri, FlakeUri::Remote(_)), remote.is_some(), "{given}");
        }
        assert_eq!("github:loomtex/seed".parse::<FlakeUri>().unwrap().namespace().as_str(), "s-gaydazldmnsg");
    }

    #[test]
    fn what_cannot_be_planted_says_why() {
        let table = [
            ("path:/etc", "is nothing that can be planted"),
            ("/etc", "is nothing that can be planted"),
            ("file:///etc", "is nothing that can be planted"),
            ("git+file:///etc", "is nothing that can be planted"),
            ("git+ssh://github.com/a/b", "names no user"),
            ("git+ssh://-oProxyCommand=id@e.org/a", "has a user"),
            ("git+ssh://@e.org/a", "has a user"),
            ("git+ssh://a:b@e.org/a", "has a user"),
            ("git+ssh://git@-x.e.org/a", "label"),
            ("git+ssh://git@127.0.0.1/a", "not at a host that the world knows"),
            ("git+ssh://git@e.org:22/a", "port"),
            ("git+ssh://git@e.org/-x", "path"),
            ("git+ssh://git@e.org/a'b", "path"),
            ("git+http://example.org/a", "is nothing that can be planted"),
            ("ext::sh -c id", "is nothing that can be planted"),
            ("github:a", "names no repository"),
            ("github:-a/b", "has a user"),
            ("github:a b/c", "has a user"),
            ("github:a/--upload-pack=id", "has a repository"),
            ("github:a/..", "has a repository"),
            ("github:a/b;id", "has a repository"),
            ("github:a/b/-x", "has a part"),
            ("github:a/b/0123456789abcdef0123456789abcdef01234567", "names a commit"),
            ("git+https://localhost/a", "not at a host that the world knows"),
            ("git+https://127.0.0.1/a", "not at a host that the world knows"),
            ("git+https://127.1/a", "not at a host that the world knows"),
            ("git+https://0x7f.0x1/a", "not at a host that the world knows"),
            ("git+https://2130706433/a", "not at a host that the world knows"),
            ("git+https://[::1]/a", "port"),
            ("git+https://ann:pass@example.org/a", "names a user or a password"),
            ("git+https://example.org", "names no repository"),
            ("git+https://example.org/", "path"),
            ("git+https://example.org/a/../b", "path"),
            ("git+https://example.org/a%0ab", "path"),
            ("git+https://example.org/a b", "path"),
            ("git+https://example.org:0/a", "port"),
            ("git+https://example.org:99999/a", "port"),
            ("git+https://example.org/a?dir=x", "asks for more than a branch"),
            ("git+https://example.org/a?ref=--x", "has a part"),
            ("git+https://-x.example.org/a", "label"),
        ];
        for (given, reason) in table {
            let error = given.parse::<FlakeUri>().expect_err(given).to_string();
            assert!(error.contains(reason), "{given}: {error}");
        }
        assert!(format!("git+https://example.org/{}", "a".repeat(300)).parse::<FlakeUri>().is_err());
    }

    #[test]
    fn forges_do_not_tell_capitals_from_small_letters() {
        let of = |uri: &str| match uri.parse().unwrap() {
            FlakeUri::Remote(remote) => remote,
            FlakeUri::Silo(_) => panic!("{uri}"),
        };
        assert!(of("github:Ann/App").is_called("ann/app") && of("github:ann/app").is_called("Ann/App"));
        assert!(of("git+https://git.example.org/ann/app.git?ref=x").is_called("ann/app"));
        let over_ssh = |uri: &str| of(uri).ssh_url("ssh://git@github.com");
        assert_eq!(over_ssh("github:Ann/App/next"), "ssh://git@github.com/Ann/App.git");
        assert_eq!(over_ssh("git+https://git.example.org:8443/a/b"), "ssh://git@git.example.org/a/b");
        assert!(!of("github:ann/app").is_called("ann/app2") && !of("github:ann/app").is_called("app"));
        assert_eq!((of("github:ann/app").repository(), of("git+https://e.org/x/y.git").repository()), ("app", "y"));
    }

    proptest! {
        #[test]
        fn no_text_makes_an_option_or_leaves_its_word(text in "(github:|git\\+https://e\\.org/|git\\+ssh://)?\\PC{0,60}") {
            if let Ok(uri) = text.parse::<FlakeUri>() {
                let shown = uri.to_string();
                prop_assert!(shown.parse::<FlakeUri>().unwrap() == uri);
                prop_assert!(!shown.starts_with('-') && shown.bytes().all(|b| b.is_ascii_graphic() && !b"'\"\\$`;&|<>()*#%".contains(&b)));
                if let FlakeUri::Remote(remote) = uri {
                    let scheme = if remote.is_ssh() { "ssh://" } else { "https://" };
                    prop_assert!(remote.url("https://github.com").starts_with(scheme));
                    prop_assert!(remote.ssh_url("ssh://git@github.com").starts_with("ssh://"));
                }
            }
        }
    }
}
