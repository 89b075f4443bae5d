//! Files in and out of guests, by real clients.

use std::process::Stdio;

use tokio::{io::AsyncWriteExt, process::Command};

use crate::{
    guests::Guests,
    support::{Ran, World, run},
};

/// A client that takes ssh's options, but the port by another name.
fn client(world: &World, person: &str, program: &str) -> Command {
    let options: Vec<String> =
        world.options(person).into_iter().map(|option| if option == "-p" { "-P".to_owned() } else { option }).collect();
    let mut command = Command::new(program);
    command.args(options);
    command
}

async fn scp(world: &World, person: &str, words: &[&str]) -> Ran {
    let mut command = client(world, person, "scp");
    run(command.args(words)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn files_go_in_and_come_out() {
    let world = World::new().await;
    let guests = Guests::of(&world).await;
    let mut noise = vec![0; 5 << 20];
    let mut state = 1_u64;
    for byte in &mut noise {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        *byte = (state >> 56) as u8;
    }
    let here = |name: &str| world.path(name).display().to_string();
    std::fs::write(world.path("noise"), &noise).unwrap();
    std::fs::create_dir_all(world.path("tree/deep")).unwrap();
    std::fs::write(world.path("tree/deep/it's a \"name\" $(x)"), "text").unwrap();
    for (round, options) in [&[][..], &["-O"]].into_iter().enumerate() {
        let to = |path: &str| format!("127.0.0.1:{path}");
        let with = |words: &[&str]| [options, words].concat().iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let scp = async |words: Vec<String>| {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let ran = scp(&world, "ann", &words).await;
            assert_eq!(ran.code, 0, "{words:?} {ran:?} {}", guests.log());
        };
        let name = format!("noise{round}");
        scp(with(&[&here("noise"), &to(&format!("web:/srv/{name}"))])).await;
        assert!(std::fs::read(guests.srv("web").join(&name)).unwrap() == noise);
        scp(with(&[&to(&format!("my-app/web:/srv/{name}")), &here(&name)])).await;
        assert!(std::fs::read(world.path(&name)).unwrap() == noise);
        scp(with(&["-r", "-p", &here("tree"), &to(&format!("web:/srv/tree{round}"))])).await;
        let copied = guests.srv("web").join(format!("tree{round}/deep/it's a \"name\" $(x)"));
        assert_eq!(std::fs::read_to_string(copied).unwrap(), "text");
        scp(with(&["-r", &to(&format!("web:/srv/tree{round}")), &here(&format!("back{round}"))])).await;
        assert!(world.path(&format!("back{round}/deep/it's a \"name\" $(x)")).exists());
        // root's home is where a path without a slash begins.
        scp(with(&[&to("web:../srv/name"), &here("name")])).await;
        assert_eq!(std::fs::read_to_string(world.path("name")).unwrap(), "web");
    }
    let asked = guests.asked();
    assert!(asked.iter().all(|line| line.contains("web copy ")), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_sftp_walks_about_in_one_instance() {
    let world = World::new().await;
    let guests = Guests::of(&world).await;
    std::fs::create_dir(guests.srv("web").join("folder")).unwrap();
    let mut command = client(&world, "ann", "sftp");
    let mut child =
        command.args(["-b", "-", "127.0.0.1"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let batch = "pwd\ncd web:/srv/folder\npwd\n-get nothing\nput known x\nrename x y\nsymlink y z\nls -1\ncd ..\nls -1 folder\nchmod 600 folder/y\nrm folder/z\n\
                 -ls /api:/srv\n-ls /etc\ncd folder\nmkdir sub\nrmdir sub\n";
    std::fs::write(world.path("known"), "known").unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(batch.replace("put known", &format!("put {}", world.path("known").display())).as_bytes())
        .await
        .unwrap();
    let output = child.wait_with_output().await.unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}\n{}", guests.log());
    for part in ["Remote working directory: /\n", "Remote working directory: /web:/srv/folder\n", "\ny\nz\n"] {
        assert!(out.contains(part), "no {part:?} in\n{out}\n{err}");
    }
    assert_eq!(std::fs::read_to_string(guests.srv("web").join("folder/y")).unwrap(), "known");
    assert!(err.contains("this copy is with web: start another for api"), "{err}");
    assert!(err.contains("a path here is INSTANCE:/PATH"), "{err}");
    assert_eq!(guests.asked().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_that_are_not_to_be() {
    let world = World::new().await;
    let guests = Guests::of(&world).await;
    std::fs::write(world.path("file"), "x").unwrap();
    let file = world.path("file").display().to_string();
    for (person, to, why) in [
        ("bob", "127.0.0.1:web:/srv/x", "you have no instance \"web\""),
        ("ann", "127.0.0.1:db:/srv/x", "there is my-app/api, my-app/web"),
        ("ann", "127.0.0.1:/etc/x", "a path here is INSTANCE:/PATH"),
        ("ann", "127.0.0.1:../../etc/x", "a path here is INSTANCE:/PATH"),
    ] {
        let ran = scp(&world, person, &[&file, to]).await;
        assert_ne!(ran.code, 0, "{to}");
        ran.err_has(why);
    }
    assert!(!guests.srv("web").join("x").exists());
    // A guest without an sftp server.
    let config = guests.srv("web").join("sshd_config");
    let settings = std::fs::read_to_string(&config).unwrap().replace("Subsystem", "# Subsystem");
    std::fs::write(&config, settings).unwrap();
    scp(&world, "ann", &[&file, "127.0.0.1:web:/srv/x"]).await.err_has("web has no sftp server");
    scp(&world, "ann", &["-O", &file, "127.0.0.1:web:/srv/x"]).await.ok();
}
