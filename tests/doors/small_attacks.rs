//! What a client could send to have a small push taken that git would not take, or that is not for it: all of it is git's to judge, or
//! nobody's, and the repository stays whole.

use std::{io::Write, path::Path, process::Stdio, time::Duration};

use tokio::io::AsyncWriteExt;

use crate::{
    small::{ZERO, begun, entry, git, object, pack_of, said, send, started},
    support::{World, run, until},
};

const MAIN: &str = "refs/heads/main";
const WHO: &str = "t <t@t> 1700000000 +0000";

fn commit(tree: &str, parents: &[&str], message: &str) -> Vec<u8> {
    let parents: String = parents.iter().map(|parent| format!("parent {parent}\n")).collect();
    format!("tree {tree}\n{parents}author {WHO}\ncommitter {WHO}\n\n{message}\n").into_bytes()
}

/// Nothing of it was taken, and what is there is whole.
async fn refused(world: &World, what: &str, head: &str, answer: &str) {
    assert!(!answer.contains(&format!("ok {MAIN}")), "{what}: {answer}");
    assert_eq!(world.at("my-app", MAIN).await.as_deref(), Some(head), "{what}");
    let path = world.repository("my-app");
    let checked = run(&mut git(world, &path, &["fsck", "--strict", "--full"])).await;
    assert_eq!(checked.code, 0, "{what}: {checked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_has_one_role_wherever_it_is_named() {
    let world = begun().await;
    let at = world.path("p");
    let head = said(&world, &at, &["rev-parse", "HEAD"]).await;
    let blob = object(&world, &at, "blob", b"a new one\n").await;
    let t1 = object(&world, &at, "tree", &entry("100644", "a", &blob)).await;
    let c1 = object(&world, &at, "commit", &commit(&t1, &[&head], "x")).await;
    for case in ["a file and a folder", "a folder that is a commit", "a root that is a commit", "a root that is a file"] {
        let (root, with) = match case {
            "a file and a folder" => {
                let both = [entry("100644", "a", &blob), entry("40000", "b", &blob)].concat();
                (object(&world, &at, "tree", &both).await, true)
            }
            "a folder that is a commit" => (object(&world, &at, "tree", &entry("40000", "b", &c1)).await, true),
            "a root that is a commit" => (c1.clone(), false),
            _ => (blob.clone(), false),
        };
        let c2 = object(&world, &at, "commit", &commit(&root, &[&c1], "y")).await;
        let mut objects = vec![blob.as_str(), &t1, &c1, &c2];
        if with {
            objects.push(&root);
        }
        let pack = pack_of(&world, &at, &objects, &[]).await;
        started(&world);
        let answer = send(&world, &head, &c2, MAIN, &pack).await;
        assert!(started(&world) > 0, "{case}: {answer}");
        refused(&world, case, &head, &answer).await;
    }
}

fn varint(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let byte = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            bytes.push(byte);
            return bytes;
        }
        bytes.push(byte | 0x80);
    }
}

fn head_of(kind: u8, size: usize) -> Vec<u8> {
    let (mut bytes, mut byte, mut size) = (Vec::new(), kind << 4 | (size & 15) as u8, size >> 4);
    while size > 0 {
        bytes.push(byte | 0x80);
        byte = (size & 0x7f) as u8;
        size >>= 7;
    }
    bytes.push(byte);
    bytes
}

/// How far back a base is, as a pack has it.
fn distance(mut number: u128) -> Vec<u8> {
    let mut bytes = vec![(number & 0x7f) as u8];
    number >>= 7;
    while number > 0 {
        number -= 1;
        bytes.insert(0, 0x80 | (number & 0x7f) as u8);
        number >>= 7;
    }
    bytes
}

fn deflated(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// A pack that is being written.
struct Pack {
    bytes: Vec<u8>,
    count: u32,
}

impl Pack {
    fn new() -> Self {
        Self { bytes: b"PACK\0\0\0\x02\0\0\0\0".to_vec(), count: 0 }
    }
    /// Adds an entry with this head, and says where it begins.
    fn add(&mut self, head: &[u8], data: &[u8]) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(head);
        self.bytes.extend(deflated(data));
        self.count += 1;
        start
    }
    fn object(&mut self, kind: gix::objs::Kind, data: &[u8]) -> String {
        let number = match kind {
            gix::objs::Kind::Commit => 1,
            gix::objs::Kind::Tree => 2,
            _ => 3,
        };
        self.add(&head_of(number, data.len()), data);
        id(kind, data)
    }
    fn sealed(mut self) -> Vec<u8> {
        self.bytes[8..12].copy_from_slice(&self.count.to_be_bytes());
        let mut hash = gix::hash::hasher(gix::hash::Kind::Sha1);
        hash.update(&self.bytes);
        let sum = hash.try_finalize().unwrap();
        self.bytes.extend_from_slice(sum.as_slice());
        self.bytes
    }
}

fn id(kind: gix::objs::Kind, data: &[u8]) -> String {
    gix::objs::compute_hash(gix::hash::Kind::Sha1, kind, data).unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_is_written_as_git_reads_it() {
    use gix::objs::Kind;
    for case in ["plain", "short", "short by name", "far", "long size"] {
        let world = begun().await;
        let head = said(&world, &world.path("p"), &["rev-parse", "HEAD"]).await;
        let mut pack = Pack::new();
        let text = format!("hello {case}\n").into_bytes();
        let a = id(Kind::Blob, &text);
        let mut size = head_of(3, text.len());
        while case == "long size" && size.len() < 9 {
            *size.last_mut().unwrap() |= 0x80;
            size.push(0);
        }
        let base = pack.add(&size, &text);
        let other: &[u8] = if case.starts_with("short") { b"" } else { b"bb" };
        let b = id(Kind::Blob, other);
        let mut delta = [varint(text.len()), varint(other.len())].concat();
        if !other.is_empty() {
            delta.push(2);
            delta.extend_from_slice(other);
        }
        let far = (pack.bytes.len() - base) as u128 + if case == "far" { 1 << 64 } else { 0 };
        let place = match case {
            "short by name" => [head_of(7, delta.len()), entry("", "", &a)[2..].to_vec()].concat(),
            _ => [head_of(6, delta.len()), distance(far)].concat(),
        };
        pack.add(&place, &delta);
        let tree = pack.object(Kind::Tree, &[entry("100644", "a", &a), entry("100644", "b", &b)].concat());
        let new = pack.object(Kind::Commit, &commit(&tree, &[&head], case));
        started(&world);
        let answer = send(&world, &head, &new, MAIN, &pack.sealed()).await;
        let programs = started(&world);
        match case {
            "plain" => assert!(answer.contains(&format!("ok {MAIN}")) && programs == 0, "{programs}: {answer}"),
            // What git makes of this one is git's.
            "long size" => assert!(programs > 0, "{answer}"),
            _ => {
                assert!(programs > 0, "{case}: {answer}");
                refused(&world, case, &head, &answer).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_much_room_is_gits() {
    use gix::objs::Kind;
    let world = begun().await;
    let head = said(&world, &world.path("p"), &["rev-parse", "HEAD"]).await;
    // It deflates to little: five thousand folders fit into some kilobytes, and two hundred thousand into less than a mebibyte.
    for (folders, programs) in [(5_000, 0), (200_000, 1)] {
        let mut pack = Pack::new();
        let empty = pack.object(Kind::Tree, b"");
        let all: Vec<u8> = (0..folders).flat_map(|n| entry("40000", &format!("{n:06}"), &empty)).collect();
        let tree = pack.object(Kind::Tree, &all);
        let new = pack.object(Kind::Commit, &commit(&tree, &[&head], "many"));
        let pack = pack.sealed();
        assert!(pack.len() < 1 << 20, "{}", pack.len());
        started(&world);
        let answer = send(&world, ZERO, &new, &format!("refs/heads/many{folders}"), &pack).await;
        assert!(answer.contains("ok refs/heads/many"), "{answer}");
        assert_eq!(started(&world).min(1), programs, "{folders}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_is_another_by_the_time_that_all_was_sent_gets_nothing() {
    for again in [true, false] {
        let world = begun().await;
        let at = world.path("p");
        let blob = object(&world, &at, "blob", b"not for you\n").await;
        let tree = object(&world, &at, "tree", &entry("100644", "a", &blob)).await;
        let new = object(&world, &at, "commit", &commit(&tree, &[], "x")).await;
        let pack = pack_of(&world, &at, &[&blob, &tree, &new], &[]).await;
        let update = format!("{ZERO} {new} refs/heads/late\0 report-status side-band-64k");
        let bytes = [format!("{:04x}{update}0000", update.len() + 4).as_bytes(), &pack].concat();
        let mut command = world.ssh_command("ann", &["git-receive-pack", "'my-app'"]);
        let mut client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let mut stdin = client.stdin.take().unwrap();
        // The refs were told, so the push has begun.
        let mut some = [0; 40];
        tokio::io::AsyncReadExt::read_exact(client.stdout.as_mut().unwrap(), &mut some).await.unwrap();
        stdin.write_all(&bytes[..bytes.len() - 1]).await.unwrap();
        stdin.flush().await.unwrap();
        let path = world.repository("my-app");
        std::fs::rename(&path, path.with_file_name("gone")).unwrap();
        if again {
            made(&path);
        }
        stdin.write_all(&bytes[bytes.len() - 1..]).await.unwrap();
        drop(stdin);
        let output = tokio::time::timeout(Duration::from_secs(60), client.wait_with_output()).await.unwrap().unwrap();
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(answer.contains("renamed or deleted while you pushed"), "{answer}");
        if again {
            assert_eq!(world.at("my-app", "refs/heads/late").await, None);
            assert_eq!(std::fs::read_to_string(path.join("HEAD")).unwrap(), "ref: refs/heads/main\n");
        }
        until("nothing is left of it", || path.exists() == again && !path.join("refs/heads/late.lock").exists()).await;
    }
}

pub fn made(path: &Path) {
    let words = ["init", "-q", "--bare", "--template=", "--initial-branch=main"];
    assert!(std::process::Command::new("git").args(words).arg(path).status().unwrap().success());
}
