//! What is plain here is so for git: everything that [`super::plain`] lets through, of many names and people that are nearly odd, is put into
//! one pack, which git has to take as it takes a push.

use std::{
    collections::BTreeMap,
    io::Write,
    process::{Command, Stdio},
};

use gix::objs::Kind;

use super::{
    fuzz::sealed,
    pack::{Object, name, write_entry},
    plain,
};

/// Names that come close to what means something on some system.
fn names() -> Vec<String> {
    let mut names: Vec<String> =
        (' '..='\u{2ff}').chain('\u{2000}'..='\u{2070}').chain(['\u{feff}', '\u{131}', '\u{fb01}']).map(String::from).collect();
    let shapes = [
        ".git",
        "git",
        "git~1",
        ".gitmodules",
        ".gitignore",
        ".gitattributes",
        ".mailmap",
        "gitmod~1",
        "gi7eba~1",
        ".",
        "..",
        "...",
    ];
    for shape in shapes {
        names.extend([
            shape.to_owned(),
            shape.to_uppercase(),
            format!("{shape} "),
            format!("{shape}."),
            format!("{shape}x"),
            format!("x{shape}"),
        ]);
        for odd in ["\u{200c}", "\u{feff}", "\u{e9}", "\u{131}", ":", "::$INDEX_ALLOCATION", "~1", "\\", "/"] {
            names.extend([format!("{shape}{odd}"), format!("{odd}{shape}")]);
            if let Some((at, _)) = shape.char_indices().nth(2) {
                names.push(format!("{}{odd}{}", &shape[..at], &shape[at..]));
            }
        }
    }
    names.extend(["CON", "aux.h", "a\u{308}", "-", "--help", "HEAD", "config"].map(str::to_owned));
    names
}

fn people() -> Vec<String> {
    let mut people = Vec::new();
    for who in ["a", "a b", " a", "a ", "", "\u{e4}", "a,b", "a\t", ".", "'a'", "a\u{7f}"] {
        for mail in ["", "a@b", "a b", " ", "\u{e4}"] {
            for time in ["0", "1", "01", "1700000000", "9999999999", "99999999999", "-1", ""] {
                for zone in ["+0000", "-1200", "+9999", "+00000", "0000", ""] {
                    people.push(format!("{who} <{mail}> {time} {zone}"));
                }
            }
        }
    }
    people
}

#[test]
fn whatever_is_plain_is_taken_by_git() {
    let mut objects = BTreeMap::new();
    let mut put = |kind, data: Vec<u8>| {
        let object = Object { kind, data };
        let id = name(&object).unwrap();
        objects.insert(id, object);
        id
    };
    let (file, empty) = (put(Kind::Blob, b"* text\n".to_vec()), put(Kind::Tree, Vec::new()));
    let (mut let_through, mut asked) = (0, 0);
    for name in names() {
        for (mode, id) in [("100644", file), ("100755", file), ("40000", empty)] {
            let tree = [format!("{mode} {name}\0").as_bytes(), id.as_slice()].concat();
            asked += 1;
            if plain::tree(&tree).is_ok() {
                let_through += 1;
                put(Kind::Tree, tree);
            }
        }
    }
    assert!(let_through > 1000 && asked - let_through > 500, "{let_through} of {asked} names");
    let (mut let_through, mut asked) = (0, 0);
    for who in people() {
        for more in ["", "encoding x\n", "gpgsig a\n b\n \n"] {
            let commit = format!("tree {empty}\nauthor {who}\ncommitter {who}\n{more}\n\u{e4}\n").into_bytes();
            asked += 1;
            if plain::commit(&commit).is_ok() {
                let_through += 1;
                put(Kind::Commit, commit);
            }
        }
    }
    assert!(let_through > 200 && asked - let_through > 500, "{let_through} of {asked} people");
    let mut pack = b"PACK\0\0\0\x02".to_vec();
    pack.extend_from_slice(&u32::try_from(objects.len()).unwrap().to_be_bytes());
    objects.values().for_each(|object| write_entry(&mut pack, object).unwrap());
    let pack = sealed(pack);
    let place = tempfile::tempdir().unwrap();
    let git = |words: &[&str]| {
        let mut command = Command::new("git");
        command.arg("-C").arg(place.path()).args(words).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
        command
    };
    assert!(git(&["init", "-q", "--bare"]).status().unwrap().success());
    let mut taking = git(&["index-pack", "--stdin", "--strict"]);
    let mut child = taking.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // It may have had enough before the end.
    drop(child.stdin.take().unwrap().write_all(&pack));
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let output = git(&["fsck", "--strict", "--full", "--no-dangling"]).output().unwrap();
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
}
