//! Which objects are so plain that nothing in git could take exception to them. It is far less than git allows: of what is not listed here
//! `git receive-pack` is the judge.

use std::collections::BTreeSet;

use gix::ObjectId;

use super::Odd;

/// Longer names than this are git's to judge.
const LONGEST_NAME: usize = 255;
/// So is the target of a link.
const LONGEST_LINK: usize = 255;

/// What a commit leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Commit {
    pub tree: ObjectId,
    pub parents: Vec<ObjectId>,
}

/// What an entry of a tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mode {
    File,
    Link,
    Tree,
    /// Of which nothing is known here: another repository's commit, or what git wrote long ago.
    Other,
}

/// One entry of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub mode: Mode,
    pub name: &'a [u8],
    pub id: ObjectId,
}

/// Reads a commit: a tree, its parents, an author, a committer; perhaps an encoding and a signature; then the message.
pub(super) fn commit(data: &[u8]) -> Result<Commit, Odd> {
    const ODD: Odd = Odd("a commit that is not plain");
    if data.contains(&0) {
        return Err(ODD);
    }
    let (found, mut rest) = leads_to(data).ok_or(ODD)?;
    for who in [&b"author "[..], b"committer "] {
        if !field(&mut rest, who).is_some_and(is_person) {
            return Err(ODD);
        }
    }
    if let Some(encoding) = field(&mut rest, b"encoding ")
        && (encoding.is_empty() || !encoding.iter().all(u8::is_ascii_graphic))
    {
        return Err(ODD);
    }
    if field(&mut rest, b"gpgsig ").is_some() {
        // It goes on in lines that begin with a blank.
        while field(&mut rest, b" ").is_some() {}
    }
    // The empty line before the message.
    if rest.first() != Some(&b'\n') {
        return Err(ODD);
    }
    Ok(found)
}

/// What a commit leads to, of which git has judged the rest; and that rest.
pub(super) fn leads_to(data: &[u8]) -> Option<(Commit, &[u8])> {
    let mut rest = data;
    let tree = field(&mut rest, b"tree ").and_then(id)?;
    let mut parents = Vec::new();
    while let Some(parent) = field(&mut rest, b"parent ") {
        parents.push(id(parent)?);
    }
    Some((Commit { tree, parents }, rest))
}

/// The rest of the line, if the next one begins like this.
fn field<'a>(rest: &mut &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let line = rest.strip_prefix(name)?;
    let end = line.iter().position(|byte| *byte == b'\n')?;
    *rest = &line[end + 1..];
    Some(&line[..end])
}

/// A name in its one way of writing; nothing is called by zeros.
fn id(text: &[u8]) -> Option<ObjectId> {
    let written = text.len() == 40 && text.iter().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte));
    ObjectId::from_hex(text).ok().filter(|id| written && !id.is_null())
}

/// `Name <email> seconds ±zone`.
fn is_person(text: &[u8]) -> bool {
    let read = || {
        let open = text.iter().position(|byte| *byte == b'<')?;
        let name = text[..open].strip_suffix(b" ")?;
        let rest = &text[open + 1..];
        let close = rest.iter().position(|byte| *byte == b'>')?;
        let (email, rest) = (&rest[..close], rest[close + 1..].strip_prefix(b" ")?);
        let blank = rest.iter().position(|byte| *byte == b' ')?;
        let (seconds, zone) = (&rest[..blank], &rest[blank + 1..]);
        let words = !name.is_empty() && !name.starts_with(b" ") && !name.contains(&b'>') && !email.contains(&b'<');
        let time = seconds == b"0" || (!seconds.is_empty() && seconds.len() <= 10 && seconds[0] != b'0');
        let digits = seconds.iter().all(u8::is_ascii_digit);
        let (sign, hours) = zone.split_first()?;
        Some(words && time && digits && b"+-".contains(sign) && hours.len() == 4 && hours.iter().all(u8::is_ascii_digit))
    };
    read().unwrap_or(false)
}

/// Reads a tree: plain files, links and folders, each name once, in git's order. [`ATTRIBUTES`] are left to the caller.
pub(super) fn tree(data: &[u8]) -> Result<Vec<Entry<'_>>, Odd> {
    const ODD: Odd = Odd("a tree that is not plain");
    let entries = entries(data).ok_or(ODD)?;
    let mut names = BTreeSet::new();
    for entry in &entries {
        if entry.mode == Mode::Other || !is_plain_name(entry) || entry.id.is_null() || !names.insert(entry.name) {
            return Err(ODD);
        }
    }
    // A folder's name is compared as if a slash were behind it.
    let key = |entry: &Entry<'_>| [entry.name, if entry.mode == Mode::Tree { b"/" } else { b"" }].concat();
    if entries.windows(2).all(|pair| key(&pair[0]) < key(&pair[1])) { Ok(entries) } else { Err(ODD) }
}

/// The entries of a tree that git has taken before, which may have any names.
pub(super) fn entries(mut data: &[u8]) -> Option<Vec<Entry<'_>>> {
    let mut entries = Vec::new();
    while !data.is_empty() {
        let blank = data.iter().take(7).position(|byte| *byte == b' ')?;
        let mode = match &data[..blank] {
            b"100644" | b"100755" => Mode::File,
            b"120000" => Mode::Link,
            b"40000" => Mode::Tree,
            _ => Mode::Other,
        };
        data = &data[blank + 1..];
        let end = data.iter().position(|byte| *byte == 0)?;
        let (name, rest) = (&data[..end], &data[end + 1..]);
        let (id, rest) = rest.split_first_chunk::<20>()?;
        entries.push(Entry { mode, name, id: ObjectId::Sha1(*id) });
        data = rest;
    }
    Some(entries)
}

/// Attributes are plain only if git has taken just the same before: it looks into them.
pub(super) const ATTRIBUTES: &[u8] = b".gitattributes";

/// A name that means nothing to git on any system: letters and digits of any script, and what ASCII has, but for what Windows takes
/// apart. Of all that begins with `.git`, in capitals or not, there is one file that is only a list.
fn is_plain_name(entry: &Entry<'_>) -> bool {
    let name = entry.name;
    let Ok(text) = str::from_utf8(name) else { return false };
    let plain =
        text.chars().all(|c| if c.is_ascii() { (' '..='~').contains(&c) && !"/\\~:".contains(c) } else { c.is_alphanumeric() });
    let of_git = name.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(b".git"));
    let known = entry.mode == Mode::File && (name == b".gitignore" || name == ATTRIBUTES);
    // Where some letters count for nothing, a dot may be the first that counts.
    let hidden = name.starts_with(b".") && !text.is_ascii();
    (1..=LONGEST_NAME).contains(&name.len()) && plain && (!of_git || known) && !hidden && name != b"." && name != b".."
}

/// What a link may lead to without anybody asking: no part of it means something to git.
pub(super) fn is_plain_link(target: &[u8]) -> bool {
    let printable = target.iter().all(|byte| (b' '..=b'~').contains(byte) && !b"\\~:".contains(byte));
    let of_git = target.windows(4).any(|part| part.eq_ignore_ascii_case(b".git"));
    (1..=LONGEST_LINK).contains(&target.len()) && printable && !of_git
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "1111111111111111111111111111111111111111";

    fn written(head: &str, message: &str) -> Vec<u8> {
        format!("{head}\n{message}").into_bytes()
    }

    #[test]
    fn a_plain_commit_is_read_and_everything_else_is_gits_to_judge() {
        let (tree, parent, who) = (format!("tree {A}\n"), format!("parent {A}\n"), "Ann B <a@b> 1700000000 +0100");
        let people = format!("author {who}\ncommitter {who}\n");
        let id = ObjectId::from_hex(A.as_bytes()).unwrap();
        for (head, parents) in [
            (format!("{tree}{people}"), 0),
            (format!("{tree}{parent}{people}"), 1),
            (format!("{tree}{parent}{parent}{people}encoding latin1\n"), 2),
            (format!("{tree}{people}gpgsig -----BEGIN\n a\n \n b\n"), 0),
        ] {
            let read = commit(&written(&head, "words\n")).unwrap();
            assert_eq!(read, Commit { tree: id, parents: vec![id; parents] }, "{head}");
        }
        assert!(commit(&written(&format!("{tree}{people}"), "")).is_ok(), "no message");
        for odd in [
            String::new(),
            people.clone(),
            format!("{tree}{people}mergetag x\n"),
            format!("{tree}{people}{people}"),
            format!("{tree}author {who}\n"),
            format!("{tree}{parent}{tree}{people}"),
            format!("tree {}\n{people}", "0".repeat(40)),
            format!("tree {}\n{people}", "A".repeat(40)),
            format!("tree {}\n{people}", "1".repeat(39)),
            format!("{tree}author {who}\0\ncommitter {who}\n"),
            format!("{tree}{people}gpgsig-sha256 x\n"),
        ] {
            assert!(commit(&written(&odd, "words\n")).is_err(), "{odd:?}");
        }
        assert!(commit(format!("{tree}{people}").as_bytes()).is_err(), "no empty line");
        for who in [
            "<a@b> 1 +0000",
            " <a@b> 1 +0000",
            "Ann<a@b> 1 +0000",
            "Ann <a@b>1 +0000",
            "Ann <a<b> 1 +0000",
            "A>n <ab> 1 +0000",
            "Ann <a@b> 01 +0000",
            "Ann <a@b> -1 +0000",
            "Ann <a@b> 99999999999 +0000",
            "Ann <a@b> 1 0000",
            "Ann <a@b> 1 +000",
            "Ann <a@b> 1 +00000",
            "Ann <a@b> 1",
            "Ann <a@b>  +0000",
            "Ann a@b 1 +0000",
        ] {
            assert!(!is_person(who.as_bytes()), "{who:?}");
        }
        assert!(is_person(b"A <> 0 -0000"));
    }

    fn listed(entries: &[(&str, &str)]) -> Vec<u8> {
        let mut data = Vec::new();
        for (mode, name) in entries {
            data.extend_from_slice(format!("{mode} {name}\0").as_bytes());
            data.extend_from_slice(&[0x11; 20]);
        }
        data
    }

    #[test]
    fn a_plain_tree_is_read_and_everything_else_is_gits_to_judge() {
        for plain in [
            &[][..],
            &[("100644", ".gitignore"), ("100755", "a"), ("120000", "b"), ("40000", "c")],
            // `a` as a folder comes behind `a.b`.
            &[("100644", "a.b"), ("40000", "a"), ("100644", "a0")],
            &[("100644", ".authorized_keys"), ("100644", ".gitattributes"), ("100644", "with blank"), ("100644", "\u{fc}ber")],
        ] {
            assert_eq!(tree(&listed(plain)).unwrap().len(), plain.len());
        }
        for odd in [
            &[("160000", "module")][..],
            &[("100664", "a")],
            &[("040000", "a")],
            &[("100644", "")],
            &[("100644", ".")],
            &[("40000", "..")],
            &[("40000", ".git")],
            &[("40000", ".GIT")],
            &[("100644", ".gitmodules")],
            &[("100644", ".Gitattributes")],
            &[("120000", ".gitattributes")],
            &[("100644", ".g\u{ef}t")],
            &[("100644", "u\u{308}")],
            &[("100644", ".Gitignore")],
            &[("120000", ".gitignore")],
            &[("100644", "git~1")],
            &[("100644", "a/b")],
            &[("100644", "a\\b")],
            &[("100644", "a:b")],
            &[("100644", "\u{200c}.git")],
            &[("100644", "b"), ("100644", "a")],
            &[("100644", "a"), ("100644", "a")],
            &[("100644", "a"), ("100644", "a.b"), ("40000", "a")],
            &[("40000", "a"), ("100644", "a.b")],
        ] {
            assert!(tree(&listed(odd)).is_err(), "{odd:?}");
        }
        let whole = listed(&[("100644", "a"), ("100644", "b")]);
        let ends: Vec<usize> = (0..=whole.len()).filter(|end| tree(&whole[..*end]).is_ok()).collect();
        assert_eq!(ends, [0, 29, whole.len()], "cut anywhere else it is none");
        let nobody = [b"100644 a\0", &[0; 20][..]].concat();
        assert!(tree(&nobody).is_err());
        assert!(tree(&listed(&[("100644", &"a".repeat(255))])).is_ok() && tree(&listed(&[("100644", &"a".repeat(256))])).is_err());
    }

    #[test]
    fn a_plain_link_leads_to_nothing_of_gits() {
        assert!(is_plain_link(b"../lib/x.nix") && is_plain_link(b"/etc/hosts"));
        let long = [b'a'; 256];
        for odd in [&b""[..], b".git/config", b"a/.GIT", b"a\nb", b"git~1", b"\xc3\xa4", &long] {
            assert!(!is_plain_link(odd), "{odd:?}");
        }
    }
}
