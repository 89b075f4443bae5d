//! Small pushes: taken without git, and as git would; and what is odd, which git gets to see.

use std::{
    collections::BTreeSet,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
};

use seed::bus::PushRead;
use tokio::{io::AsyncWriteExt, process::Command};

use crate::support::{Ran, World, run};

pub const ZERO: &str = "0000000000000000000000000000000000000000";

/// A world whose git writes down that it was started.
async fn counted() -> World {
    World::with(|settings| {
        let git = settings.git.display().to_string();
        let at = settings.repositories.parent().unwrap().join("counting-git");
        let log = at.with_file_name("started");
        std::fs::write(&at, format!("#!/bin/sh\necho \"$*\" >>{}\nexec {git} \"$@\"\n", log.display())).unwrap();
        std::fs::set_permissions(&at, std::fs::Permissions::from_mode(0o755)).unwrap();
        settings.git = at;
    })
    .await
}

/// How many programs were started since the last time.
pub fn started(world: &World) -> usize {
    let text = std::fs::read_to_string(world.path("started")).unwrap_or_default();
    std::fs::write(world.path("started"), "").unwrap();
    text.lines().count()
}

/// git in the directory `at`, without anybody's settings.
pub fn git(world: &World, at: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("git");
    command.arg("-C").arg(at).args(arguments);
    command.env("GIT_CONFIG_GLOBAL", world.path("gitconfig")).env("GIT_CONFIG_NOSYSTEM", "1");
    command
}

pub async fn said(world: &World, at: &Path, arguments: &[&str]) -> String {
    run(&mut git(world, at, arguments)).await.ok().out.trim().to_owned()
}

/// The same, with something to read.
pub async fn fed(mut command: Command, bytes: &[u8]) -> std::process::Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let feeding = tokio::spawn(async move {
        // Who does not listen to the end has heard enough.
        drop(stdin.write_all(&bytes).await);
    });
    let output = tokio::time::timeout(std::time::Duration::from_secs(60), child.wait_with_output()).await.unwrap().unwrap();
    feeding.await.unwrap();
    output
}

/// Writes an object that git would not make itself.
pub async fn object(world: &World, at: &Path, kind: &str, bytes: &[u8]) -> String {
    let output = fed(git(world, at, &["hash-object", "-t", kind, "--literally", "-w", "--stdin"]), bytes).await;
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

pub async fn pack_of(world: &World, at: &Path, objects: &[&str], options: &[&str]) -> Vec<u8> {
    let arguments = [&["pack-objects", "--stdout", "-q"][..], options].concat();
    let output = fed(git(world, at, &arguments), objects.iter().map(|id| format!("{id}\n")).collect::<String>().as_bytes()).await;
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

/// Pushes these bytes as the pack of a change.
pub async fn send(world: &World, old: &str, new: &str, reference: &str, pack: &[u8]) -> String {
    let update = format!("{old} {new} {reference}\0 report-status side-band-64k");
    let bytes = [format!("{:04x}{update}0000", update.len() + 4).as_bytes(), pack].concat();
    let output = fed(world.ssh_command("ann", &["git-receive-pack", "'my-app'"]), &bytes).await;
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The repository has no flaw, and a clone of it has the files of `project`.
async fn whole(world: &World, project: &str) {
    let path = world.repository("my-app");
    let ran = run(&mut git(world, &path, &["fsck", "--strict", "--full", "--no-dangling"])).await.ok();
    assert!(ran.out.is_empty(), "{ran:?}");
    for pack in std::fs::read_dir(path.join("objects/pack")).unwrap().flatten() {
        if pack.path().extension().is_some_and(|extension| extension == "idx") {
            said(world, &path, &["verify-pack", pack.path().to_str().unwrap()]).await;
        }
    }
    assert_eq!(world.left_over("my-app"), Vec::<PathBuf>::new());
    let copy = format!("copy-of-{project}");
    drop(std::fs::remove_dir_all(world.path(&copy)));
    let branch = said(world, &world.path(project), &["symbolic-ref", "--short", "HEAD"]).await;
    world.git("bob", "", &["clone", "-q", "-b", &branch, &world.url("my-app"), &copy]).await.ok();
    let tree = ["rev-parse", "HEAD^{tree}"];
    assert_eq!(said(world, &world.path(&copy), &tree).await, said(world, &world.path(project), &tree).await);
}

/// A project with some history here and there.
pub async fn begun() -> World {
    let world = counted().await;
    world.project("p").await;
    for n in 0..40 {
        std::fs::write(world.path("p").join(format!("file{n}")), format!("{n}\n").repeat(100)).unwrap();
    }
    std::fs::create_dir_all(world.path("p/deep/er")).unwrap();
    world.commit("p", "deep/er/file", b"deep").await;
    world.git("ann", "p", &["push", "silo", "main"]).await.ok();
    started(&world);
    world
}

async fn push(world: &World, arguments: &[&str]) -> Ran {
    world.git("ann", "p", &[&["push", "silo"], arguments].concat()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_most_people_push_starts_no_program() {
    let world = counted().await;
    world.project("p").await;
    push(&world, &["main"]).await.ok();
    // `git init` made the repository.
    assert_eq!(started(&world), 1);
    whole(&world, "p").await;
    started(&world);
    let at = world.path("p");
    for n in 0..40 {
        std::fs::write(at.join(format!("file{n}")), format!("{n}\n").repeat(100)).unwrap();
    }
    std::fs::create_dir_all(at.join("deep/er")).unwrap();
    world.commit("p", "deep/er/file", b"deep").await;
    push(&world, &["main"]).await.ok().err_has("received  main at");
    // Of a large file that changes a little, and of the folder it is in, only the difference is sent.
    let text: Vec<u8> = (0..20_000_u32).flat_map(|n| format!("{}\n", n.wrapping_mul(2_654_435_761)).into_bytes()).collect();
    world.commit("p", "large", &text).await;
    push(&world, &["main"]).await.ok();
    let ran = {
        world.commit("p", "large", &[&text[..], b"more\n"].concat()).await;
        push(&world, &["--progress", "main"]).await.ok()
    };
    ran.err_has("remote: Resolving deltas: 100% (").err_has("completed with 2 local objects.");
    let newest = std::fs::read_dir(world.repository("my-app").join("objects/pack")).unwrap().flatten();
    let newest = newest.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "pack"));
    let newest = newest.max_by_key(|entry| entry.metadata().unwrap().modified().unwrap()).unwrap();
    assert_eq!(newest.metadata().unwrap().permissions().mode() & 0o222, 0, "as git leaves it");
    // A new branch, far from everything; it is in a folder of its own.
    push(&world, &["main~1:refs/heads/old/one"]).await.ok();
    // Back, and another way: the history is another.
    said(&world, &at, &["reset", "-q", "--hard", "main~2"]).await;
    world.commit("p", "other", b"other").await;
    assert_eq!(push(&world, &["main"]).await.code, 1, "the client keeps it from being lost");
    push(&world, &["+main"]).await.ok().err_has("forced update");
    assert_eq!(started(&world), 0);
    // A merge, of what is here and what is not.
    said(&world, &at, &["checkout", "-q", "-b", "side", "main~1"]).await;
    world.commit("p", "side", b"side").await;
    said(&world, &at, &["checkout", "-q", "main"]).await;
    said(&world, &at, &["merge", "-q", "-m", "merged", "side"]).await;
    push(&world, &["main"]).await.ok();
    assert_eq!(started(&world), 0);
    // A file and a folder that move, one that is executable, a link.
    said(&world, &at, &["mv", "file1", "deep/er/moved"]).await;
    said(&world, &at, &["mv", "deep", "deeper"]).await;
    std::fs::set_permissions(at.join("file2"), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("deeper/er/moved", at.join("link")).unwrap();
    std::fs::write(at.join(".gitignore"), "result\n").unwrap();
    world.commit("p", "moved", b"moved").await;
    push(&world, &["main"]).await.ok();
    assert_eq!(started(&world), 0);
    // What was there before comes back, and nothing changes at all.
    said(&world, &at, &["revert", "--no-edit", "HEAD"]).await;
    push(&world, &["-q", "main"]).await.ok();
    assert_eq!(started(&world), 0, "a revert");
    said(&world, &at, &["commit", "-q", "--allow-empty", "--allow-empty-message", "-m", ""]).await;
    push(&world, &["main", "--atomic"]).await.ok();
    push(&world, &["main"]).await.ok().err_has("Everything up-to-date");
    assert_eq!(started(&world), 0);
    whole(&world, "p").await;
    assert_eq!(world.at("my-app", "refs/heads/old/one").await, world.at("my-app", "refs/heads/old/one^{commit}").await);
    started(&world);
    // git has put it all together meanwhile.
    said(&world, &world.repository("my-app"), &["gc", "-q", "--prune=now"]).await;
    world.commit("p", "after", b"gc").await;
    push(&world, &["main"]).await.ok();
    push(&world, &["main:refs/heads/young"]).await.ok();
    assert_eq!(started(&world), 0);
    whole(&world, "p").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_is_handed_what_it_would_have_to_read() {
    let world = begun().await;
    let told = || std::mem::take(&mut world.agent.told().read);
    let read = |keys: Option<&str>| vec![PushRead { branch: "refs/heads/main".parse().unwrap(), keys: keys.map(str::to_owned) }];
    told();
    world.commit("p", ".authorized_keys", b"ssh-ed25519 AAAA \0\xff\n").await;
    push(&world, &["main"]).await.ok();
    assert_eq!(told(), read(Some("ssh-ed25519 AAAA \0\u{fffd}\n")));
    world.commit("p", "another", b"x").await;
    push(&world, &["main"]).await.ok();
    assert_eq!(told(), read(Some("ssh-ed25519 AAAA \0\u{fffd}\n")), "it was not sent again");
    push(&world, &["main:other"]).await.ok();
    assert_eq!(told(), read(None), "not the default branch");
    std::fs::remove_file(world.path("p/.authorized_keys")).unwrap();
    world.commit("p", "another", b"y").await;
    push(&world, &["-o", "plan", "main"]).await.ok();
    assert_eq!(told(), read(None));
    world.commit("p", ".authorized_keys", &vec![b'#'; 300 << 10]).await;
    push(&world, &["main"]).await.ok();
    assert_eq!(told(), [], "the agent says what it thinks of that");
    std::fs::remove_file(world.path("p/.authorized_keys")).unwrap();
    std::os::unix::fs::symlink("another", world.path("p/.authorized_keys")).unwrap();
    world.commit("p", "another", b"z").await;
    push(&world, &["main"]).await.ok();
    assert_eq!((told(), started(&world)), (vec![], 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_of_refs_is_what_git_would_list() {
    let world = begun().await;
    let list = async || {
        let bytes = fed(world.ssh_command("ann", &["git-receive-pack", "'my-app'"]), b"0000").await.stdout;
        let path = world.repository("my-app");
        let real = git(&world, &path, &["-c", "receive.advertisePushOptions=true", "receive-pack", "."]);
        (bytes, fed(real, b"0000").await.stdout)
    };
    // Who we are differs, and so does the length of the line that says so.
    let same = |bytes: &[u8]| {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let (first, rest) = text.split_once('\n').unwrap();
        let (first, agent) = first.split_once("agent=").unwrap();
        assert!(!agent.contains(' '));
        (first[4..].to_owned(), rest.to_owned())
    };
    for refs in [&["main:a/b/c", "main:a-b", "main:a0", "main:refs/tags/v1"][..], &["main:a.b", "main:refs/tags/v2"]] {
        push(&world, refs).await.ok();
        said(&world, &world.path("p"), &["tag", "-f", "-m", "annotated", "noted"]).await;
        push(&world, &["+noted"]).await.ok();
        let (ours, gits) = list().await;
        assert_eq!(same(&ours), same(&gits));
        assert!(String::from_utf8_lossy(&ours).contains("refs/heads/a/b/c"));
        said(&world, &world.repository("my-app"), &["pack-refs", "--all"]).await;
        assert_eq!(list().await.0, ours, "wherever they are");
    }
    world.git("ann", "", &["init", "-q", "q"]).await.ok();
    world.commit("q", "a", b"a").await;
    // A repository that was made, and got nothing.
    assert_ne!(world.git("ann", "q", &["push", &world.url("empty"), "main:refs/heads/-x"]).await.code, 0);
    let ours = fed(world.ssh_command("ann", &["git-receive-pack", "'empty'"]), b"0000").await.stdout;
    let real = git(&world, &world.repository("empty"), &["-c", "receive.advertisePushOptions=true", "receive-pack", "."]);
    assert_eq!(same(&ours), same(&fed(real, b"0000").await.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_odd_is_gits_to_judge() {
    let world = begun().await;
    let at = world.path("p");
    let head = said(&world, &at, &["rev-parse", "HEAD"]).await;
    let files = async |names: &[&str]| {
        for name in names {
            std::fs::write(at.join(name), "x").unwrap();
        }
        world.commit("p", "odd", names.concat().as_bytes()).await;
    };
    // Taken, by git.
    files(&[".gitattributes"]).await;
    push(&world, &["main"]).await.ok();
    assert_eq!(started(&world), 1, "attributes");
    files(&["plain-beside"]).await;
    push(&world, &["main"]).await.ok();
    assert_eq!(started(&world), 0, "git has judged these attributes");
    std::fs::write(at.join(".gitattributes"), "* text\n").unwrap();
    world.commit("p", "other-attributes", b"").await;
    push(&world, &["main"]).await.ok();
    assert_eq!(started(&world), 1, "but not those");
    files(&["b\u{fc}cher"]).await;
    push(&world, &["main"]).await.ok();
    assert_eq!(started(&world), 0, "letters are letters");
    files(&["bu\u{308}cher"]).await;
    push(&world, &["main"]).await.ok();
    assert_eq!(started(&world), 1, "something between letters");
    said(&world, &at, &["rm", "-q", "bu\u{308}cher"]).await;
    files(&["plain"]).await;
    push(&world, &["main"]).await.ok();
    assert_eq!(started(&world), 0, "plain again");
    push(&world, &["main:refs/tags/v1"]).await.ok();
    assert_eq!(started(&world), 1, "a tag");
    push(&world, &["main:refs/heads/b1", "main:refs/heads/b2"]).await.ok();
    assert_eq!(started(&world), 1, "two at once");
    push(&world, &[":refs/heads/b2"]).await.ok();
    assert_eq!(started(&world), 1, "one less");
    let mut state = 1_u64;
    let noise = (0..1_200_000).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    });
    std::fs::write(at.join("noise"), noise.collect::<Vec<u8>>()).unwrap();
    world.commit("p", "b", b"b").await;
    push(&world, &["main"]).await.ok();
    assert_eq!(started(&world), 1, "large");
    world.commit("p", "zeros", &vec![0; 20 << 20]).await;
    push(&world, &["main"]).await.ok();
    assert_eq!(started(&world), 1, "large when it is unfolded");
    // Refused, by git, in its own words.
    let ran = push(&world, &["main:refs/heads/b1/below"]).await;
    assert!(ran.code == 1 && started(&world) == 1, "{ran:?}");
    ran.err_has("[remote rejected]");
    said(&world, &world.repository("my-app"), &["pack-refs", "--all"]).await;
    push(&world, &["main:refs/heads/b1/below"]).await.err_has("[remote rejected]");
    // A repository with settings of its own, which may forbid what is usual.
    said(&world, &world.repository("my-app"), &["config", "receive.denyNonFastForwards", "true"]).await;
    push(&world, &[&format!("+{head}:refs/heads/main")]).await.err_has("denying non-fast-forward");
    assert!(world.at("my-app", "refs/heads/main").await.is_some_and(|now| now != head));
    whole(&world, "p").await;
}

/// A commit of a tree with these entries, and its pack; the commit is on top of `parent`.
async fn crafted(world: &World, parent: &str, tree: &[u8], more: &[&str]) -> (String, Vec<u8>) {
    let at = world.path("p");
    let tree = object(world, &at, "tree", tree).await;
    let who = "t <t@t> 1700000000 +0000";
    let commit = format!("tree {tree}\nparent {parent}\nauthor {who}\ncommitter {who}\n\nx\n");
    let commit = object(world, &at, "commit", commit.as_bytes()).await;
    let pack = pack_of(world, &at, &[&[commit.as_str(), &tree], more].concat(), &[]).await;
    (commit, pack)
}

pub fn entry(mode: &str, name: &str, id: &str) -> Vec<u8> {
    let id: Vec<u8> = (0..40).step_by(2).map(|at| u8::from_str_radix(&id[at..at + 2], 16).unwrap()).collect();
    [format!("{mode} {name}\0").as_bytes(), &id].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_git_refuses_is_refused_and_what_is_missing_is_missed() {
    let world = begun().await;
    let at = world.path("p");
    let head = said(&world, &at, &["rev-parse", "HEAD"]).await;
    let main = "refs/heads/main";
    let blob = object(&world, &at, "blob", b"a new one\n").await;
    let here = said(&world, &at, &["rev-parse", "HEAD:flake.nix"]).await;
    let refused = async |what: &str, new: &str, pack: &[u8]| {
        let answer = send(&world, &head, new, main, pack).await;
        assert!(!answer.contains("ok refs/heads/main"), "{what}: {answer}");
        assert_eq!(world.at("my-app", main).await.as_ref(), Some(&head), "{what}");
        assert_eq!(started(&world), 1, "{what}: {answer}");
        answer
    };
    for name in [".git", ".GIT", ".Git", "..", ".", "git~1", ""] {
        let (commit, pack) = crafted(&world, &head, &entry("100644", name, &blob), &[&blob]).await;
        refused(name, &commit, &pack).await;
    }
    let (double, wrong) = ([entry("100644", "a", &blob), entry("100644", "a", &blob)].concat(), entry("40000", "a", &blob));
    for (what, tree) in [("twice", double), ("a file as a folder", wrong)] {
        let (commit, pack) = crafted(&world, &head, &tree, &[&blob]).await;
        refused(what, &commit, &pack).await;
    }
    let (commit, pack) = crafted(&world, &head, &entry("100644", "a", &blob), &[]).await;
    refused("a file that was not sent", &commit, &pack).await;
    let folder = object(&world, &at, "tree", &entry("100644", "a", &here)).await;
    let (commit, pack) = crafted(&world, &head, &entry("40000", "a", &folder), &[]).await;
    refused("a folder that was not sent", &commit, &pack).await;
    let (commit, pack) = crafted(&world, &"1".repeat(40), &entry("100644", "a", &here), &[]).await;
    refused("a parent that is nowhere", &commit, &pack).await;
    refused("a commit that was not sent", &"1".repeat(40), &pack_of(&world, &at, &[], &[]).await).await;
    refused("a file for a commit", &blob, &pack_of(&world, &at, &[&blob], &[]).await).await;
    // What is here, but not where it was, is found; and an object of no use is no harm, but not plain.
    let (commit, pack) = crafted(&world, &head, &entry("100644", "moved", &here), &[]).await;
    assert!(send(&world, &head, &commit, main, &pack).await.contains("ok refs/heads/main"));
    assert_eq!(started(&world), 0);
    let (second, pack) = crafted(&world, &commit, &entry("100644", "b", &here), &[&blob]).await;
    assert!(send(&world, &commit, &second, main, &pack).await.contains("ok refs/heads/main"));
    assert_eq!(started(&world), 1);
    // The ref is not where the client believes it is.
    let (third, pack) = crafted(&world, &second, &entry("100644", "c", &here), &[]).await;
    for wrong in [head.as_str(), ZERO] {
        assert!(send(&world, wrong, &third, main, &pack).await.contains("ng refs/heads/main"));
        assert_eq!(started(&world), 1);
    }
    assert!(send(&world, &second, &third, "refs/heads/new", &pack).await.contains("ng refs/heads/new"));
    assert_eq!(world.at("my-app", "refs/heads/new").await, None);
    assert!(send(&world, &second, &third, main, &pack).await.contains("ok refs/heads/main"));
    let path = world.repository("my-app");
    run(&mut git(&world, &path, &["fsck", "--strict", "--full"])).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_pack_that_is_not_as_it_was_made_is_kept() {
    let world = begun().await;
    let at = world.path("p");
    let head = said(&world, &at, &["rev-parse", "HEAD"]).await;
    world.commit("p", "a", b"a").await;
    let (new, tree) = (said(&world, &at, &["rev-parse", "HEAD"]).await, said(&world, &at, &["rev-parse", "HEAD^{tree}"]).await);
    let blob = said(&world, &at, &["rev-parse", "HEAD:a"]).await;
    let pack = pack_of(&world, &at, &[&new, &tree, &blob], &[]).await;
    let mut broken: Vec<Vec<u8>> = (0..pack.len())
        .step_by(pack.len() / 12)
        .map(|place| {
            let mut bytes = pack.clone();
            bytes[place] ^= 1 << (place % 8);
            bytes
        })
        .collect();
    broken.extend([0, 3, 11, 13, pack.len() / 2, pack.len() - 20, pack.len() - 1].map(|end| pack[..end].to_vec()));
    // A delta that says of itself that it makes a gigabyte of nothing.
    broken.push(bomb(&said(&world, &at, &["rev-parse", "HEAD~1^{tree}"]).await));
    for bytes in &broken {
        let answer = send(&world, &head, &new, "refs/heads/main", bytes).await;
        assert!(!answer.contains("ok refs/heads/main"), "{answer}");
        assert_eq!(world.at("my-app", "refs/heads/main").await.as_ref(), Some(&head));
    }
    assert_eq!(started(&world), broken.len());
    assert!(send(&world, &head, &new, "refs/heads/main", &pack).await.contains("ok refs/heads/main"));
    assert_eq!(started(&world), 0);
    whole(&world, "p").await;
}

/// A pack of one delta to `base` that declares a result of a gigabyte.
fn bomb(base: &str) -> Vec<u8> {
    // Base of 100 bytes, result of 2^30, and one instruction.
    let delta = [100, 0x80, 0x80, 0x80, 0x80, 0x04, 0x90, 0x01];
    let mut zlib = vec![0x78, 0x01, 0x01, 8, 0, 0xf7, 0xff];
    zlib.extend_from_slice(&delta);
    let (a, b) =
        delta.iter().fold((1_u32, 0_u32), |(a, b), byte| ((a + u32::from(*byte)) % 65521, (b + a + u32::from(*byte)) % 65521));
    zlib.extend_from_slice(&(b << 16 | a).to_be_bytes());
    let mut pack = b"PACK\0\0\0\x02\0\0\0\x01".to_vec();
    pack.push(7 << 4 | 8);
    pack.extend_from_slice(&entry("", "", base)[2..]);
    pack.extend_from_slice(&zlib);
    pack.extend_from_slice(&[0; 20]);
    pack
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_ends_the_doors_leaves_a_whole_repository() {
    let mut world = begun().await;
    let at = world.repository("my-app");
    let before = world.at("my-app", "refs/heads/main").await;
    world.commit("p", "a", b"a").await;
    push(&world, &["main"]).await.ok();
    let packs = |at: &Path| -> BTreeSet<PathBuf> {
        std::fs::read_dir(at.join("objects/pack")).unwrap().flatten().map(|e| e.path()).collect()
    };
    let sent = world.at("my-app", "refs/heads/main").await.unwrap();
    // As if it had ended before the ref was moved: after the pack was named, and its index, or neither.
    world.close_doors().await;
    let newest = packs(&at).into_iter().max_by_key(|path| path.metadata().unwrap().modified().unwrap()).unwrap();
    for left in ["objects/pack/tmp_pack_seed-1-1", "objects/pack/tmp_idx_seed-1-1"] {
        std::fs::copy(&newest, at.join(left)).unwrap();
    }
    for left in ["refs/heads/main.lock", "refs/heads/deep/er.lock", "HEAD.lock", "packed-refs.lock", "packed-refs.new"] {
        std::fs::create_dir_all(at.join(left).parent().unwrap()).unwrap();
        std::fs::write(at.join(left), "").unwrap();
    }
    std::fs::write(at.join("refs/heads/main"), format!("{}\n", before.unwrap())).unwrap();
    world.open_doors().await;
    let url = world.url("my-app");
    said(&world, &world.path("p"), &["remote", "set-url", "silo", &url]).await;
    whole_at(&world, &at).await;
    started(&world);
    push(&world, &["main"]).await.ok();
    assert_eq!(world.at("my-app", "refs/heads/main").await, Some(sent.clone()));
    push(&world, &["main:refs/heads/deep/er"]).await.ok();
    // Only the index was missing.
    let index = packs(&at).into_iter().find(|path| path.extension().is_some_and(|extension| extension == "idx")).unwrap();
    assert!(index.exists());
    assert_eq!(started(&world), 0);
    whole(&world, "p").await;
    let left: Vec<PathBuf> = [at.join("refs/heads"), at.join("refs/heads/deep"), at.clone()]
        .iter()
        .flat_map(|folder| std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "lock" || extension == "new"))
        .collect();
    assert_eq!(left, Vec::<PathBuf>::new());
    // A folder where a branch should be, and nothing in it.
    std::fs::create_dir_all(at.join("refs/heads/hollow/inside")).unwrap();
    world.commit("p", "hollow", b"hollow").await;
    started(&world);
    push(&world, &["main:refs/heads/hollow"]).await.ok();
    assert_eq!(started(&world), 1);
    // Somebody else has the ref: git waits for them, and says so.
    std::fs::write(at.join("refs/heads/main.lock"), "").unwrap();
    world.commit("p", "b", b"b").await;
    push(&world, &["main"]).await.err_has("[remote rejected]");
    assert_eq!(world.at("my-app", "refs/heads/main").await, Some(sent));
    std::fs::remove_file(at.join("refs/heads/main.lock")).unwrap();
    push(&world, &["main"]).await.ok();
    whole(&world, "p").await;
}

async fn whole_at(world: &World, at: &Path) {
    run(&mut git(world, at, &["fsck", "--strict", "--full"])).await.ok();
    assert_eq!(world.left_over("my-app"), Vec::<PathBuf>::new());
}
