//! What strangers send, for a fuzzer: each function takes any bytes, reads them as its door does, and panics if what comes of them is not
//! what must always be true. `fuzz/` runs them; the tests below try all inputs that are kept there.

use futures_util::FutureExt;
use tokio_util::bytes::Bytes;

use super::{
    acme, command,
    command::{Command, Inside},
    dns, http, pktline,
    receive::small,
};
use crate::spec::{authorized_keys, flake::FlakeUri, manifest, name::RefName};

/// Each by its name, which is that of the folder with its inputs.
pub const TARGETS: &[(&str, fn(&[u8]))] = &[
    ("acme-order", acme::fuzz::order),
    ("authorized-keys", keys),
    ("csr", acme::fuzz::csr),
    ("dns", dns::fuzz::question),
    ("dns-forwarded", dns::fuzz::forwarded),
    ("dns-signed", dns::fuzz::signed),
    ("flake-uri", uri),
    ("jws", acme::fuzz::jws),
    ("manifest", meta),
    ("pkt-line", push),
    ("small-pack", small::fuzz::pack),
    ("ssh-command", line),
    ("webhook", delivery),
];

/// The list of changes before a pack: what goes on to git is what was read, and says the same a second time.
fn push(bytes: &[u8]) {
    let read = |mut bytes: &[u8]| pktline::read_request(&mut bytes).now_or_never().expect("bytes that are there are read at once");
    if let Ok(Some(request)) = read(bytes) {
        assert!(bytes[..request.raw.len()].eq_ignore_ascii_case(&request.raw), "as it came");
        let again = read(&request.raw).expect("it was read before").expect("it was there before");
        assert_eq!(again, request);
    }
    let report = pktline::read_report(bytes).now_or_never().expect("bytes that are there are read at once");
    assert!(report.accepted.len() <= bytes.len() / 4);
}

/// The command of an SSH session: whatever names a repository is one name, and what is for a guest comes as it was sent.
fn line(bytes: &[u8]) {
    match command::parse(bytes) {
        Ok(Command::ReceivePack(name) | Command::UploadPack(name) | Command::UploadArchive(name)) => {
            let name = name.as_str();
            assert!(!name.is_empty() && !name.starts_with(['-', '.']) && !name.contains('/'), "{name:?}");
        }
        Ok(Command::Enter(_, Inside::Exec(inside))) => assert!(bytes.ends_with(&inside), "the guest's shell takes it apart"),
        Ok(command) => assert!(!command.summary().contains('\0')),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Some((instance, path)) = command::place(bytes) {
        assert!(!instance.starts_with(['-', '.']) && !path.is_empty(), "{instance:?}");
    }
    let text = String::from_utf8_lossy(bytes);
    if let Some(instance) = command::instance_of_host(&text, "seed.example") {
        assert!(!instance.is_empty() && instance.len() <= text.len(), "{instance:?}");
    }
}

/// A manifest: it is read, or every problem of it has words.
fn meta(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice(bytes) else { return };
    if let Err(problems) = manifest::read("web", &value) {
        assert!(!problems.is_empty() && problems.iter().all(|problem| !problem.to_string().is_empty()));
    }
}

/// `.authorized_keys`: no key twice for the same, and a line that gives nothing changes nothing of the others.
fn keys(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (grants, passed) = authorized_keys::read(&text);
    assert!(grants.len() + passed.len() <= text.lines().count());
    let (again, more) = authorized_keys::read(&format!("no-such-option ssh-ed25519 AAAA\n{text}"));
    if text.lines().count() < 900 {
        assert_eq!((again, more.len()), (grants, passed.len() + 1));
    }
}

/// A reference to a flake: it is written as it is read, and nothing in it is an option to git.
fn uri(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(uri) = text.parse::<FlakeUri>() {
        assert_eq!(uri.to_string().parse::<FlakeUri>().as_ref(), Ok(&uri));
        if let FlakeUri::Remote(remote) = &uri {
            let url = remote.url("https://github.com");
            assert!(url.starts_with("https://") && !url.contains(char::is_whitespace), "{url:?}");
            assert!(!remote.branch().is_some_and(|branch| branch.short().starts_with('-')));
        }
    }
}

/// What a forge says of a push.
fn delivery(bytes: &[u8]) {
    let Some((first, body)) = bytes.split_first() else { return };
    let kind = if first % 2 == 0 { "application/json" } else { "application/x-www-form-urlencoded" };
    let event = if first % 4 < 2 { "push" } else { "ping" };
    if let Ok(Some(told)) = http::told(event, kind, &Bytes::copy_from_slice(body)) {
        assert!(told.branch.is_empty() || told.branch.parse::<RefName>().is_ok_and(|branch| branch.is_branch()));
        assert!(told.repository.bytes().all(|byte| byte.is_ascii_graphic()));
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    /// Inputs that reach far, and those that once did harm.
    #[test]
    fn every_input_that_is_kept_is_survived() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        let folders = fs::read_dir(&corpus).unwrap().map(|folder| folder.unwrap().file_name().into_string().unwrap());
        let named: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(folders.collect::<BTreeSet<_>>(), named, "a folder of inputs for each target");
        for (name, target) in TARGETS {
            let inputs: Vec<_> = fs::read_dir(corpus.join(name)).unwrap().map(|input| input.unwrap().path()).collect();
            assert!(!inputs.is_empty(), "{name} has no inputs");
            for input in inputs {
                eprintln!("{}", input.display());
                target(&fs::read(input).unwrap());
            }
        }
    }
}
