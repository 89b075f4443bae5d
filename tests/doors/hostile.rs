//! A client that keeps to the protocol and to nothing else: what ssh would never send. Nothing of it reaches a shell, a guest or this
//! host, and each is answered.

use std::{path::Path, sync::Arc, time::Duration};

use russh::{
    Channel, ChannelMsg,
    client::{self, Handle, Msg},
    keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate},
};

use crate::{guests::Guests, support::World};

struct Anything;

impl client::Handler for Anything {
    type Error = russh::Error;
    async fn check_server_key(&mut self, _key: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

async fn connect(world: &World, key: PrivateKey) -> Handle<Anything> {
    let config = Arc::new(client::Config::default());
    let mut session = client::connect(config, ("127.0.0.1", world.port), Anything).await.unwrap();
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
    assert!(session.authenticate_publickey("root", key).await.unwrap().success());
    session
}

/// What a channel says until it is closed: standard output and error, the exit code, and how many requests were refused.
async fn ended(channel: &mut Channel<Msg>) -> (String, String, Option<u32>, usize) {
    let (mut out, mut err, mut code, mut refused) = (Vec::new(), Vec::new(), None, 0);
    let all = async {
        while let Some(message) = channel.wait().await {
            match message {
                ChannelMsg::Data { data } => out.extend_from_slice(&data),
                ChannelMsg::ExtendedData { data, .. } => err.extend_from_slice(&data),
                ChannelMsg::ExitStatus { exit_status } => code = Some(exit_status),
                ChannelMsg::Failure => refused += 1,
                ChannelMsg::Close => break,
                _ => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all).await.expect("it is answered");
    (String::from_utf8_lossy(&out).into_owned(), String::from_utf8_lossy(&err).into_owned(), code, refused)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_ssh_would_send_is_answered_and_reaches_nothing() {
    let world = World::new().await;
    let guests = Guests::of(&world).await;
    let ann = russh::keys::load_secret_key(world.path("ann"), None).unwrap();
    let session = connect(&world, ann.clone()).await;

    // Names and values of an environment; none is taken, and none is in the guest.
    let mut channel = session.channel_open_session().await.unwrap();
    let long = "x".repeat(60_000);
    let odd = [
        ("PATH", "/evil"),
        ("LD_PRELOAD", "/evil.so"),
        ("BASH_ENV", "/evil"),
        ("BASH_FUNC_ls%%", "() { /evil; }"),
        ("GIT_PROTOCOL", "version=2\n$(/evil)"),
        ("GIT_SSH_COMMAND", "/evil"),
        ("SEED_ROLE", "admin"),
        ("", ""),
        ("A\0B", "x\0y"),
        ("A=B\nC", "$(/evil)`/evil`;|&"),
        (&long, &long),
    ];
    for (name, value) in odd {
        channel.set_env(true, name, value).await.unwrap();
    }
    channel.exec(true, "exec web -- env; cat /proc/$$/environ").await.unwrap();
    let (out, err, code, refused) = ended(&mut channel).await;
    assert_eq!((code, refused), (Some(0), odd.len()), "{out} {err} {}", guests.log());
    assert!(!out.contains("evil") && !out.contains("SEED_ROLE"), "{out}");
    guests.asked();

    // Lines that are for no shell; `touch` would show that one has read them.
    let evil = world.path("evil");
    let touch = format!("touch {}", evil.display());
    let mut lines: Vec<Vec<u8>> = Vec::new();
    for mark in [";", "|", "&", "&&", "||", "\n", "\r\n", "\0", "`", "$(", "<(", ">", "\x1b", "\x7f", "\u{2028}"] {
        for verb in [
            "status",
            "logs web",
            "git-upload-pack my-app",
            "git-receive-pack 'my-app'",
            "restart web",
            "scp -t web:/tmp",
            "forward web 80",
        ] {
            lines.push(format!("{verb} {mark} {touch} {mark}").into_bytes());
            lines.push(format!("{verb}{mark}{touch})").into_bytes());
        }
        lines.push(format!("{mark}{touch}").into_bytes());
    }
    lines.extend([
        b"exec web -- a\0b".to_vec(),
        b"exec web -- \xff\xfe\0".to_vec(),
        b"exec \xff -- id".to_vec(),
        b"exec we\0b -- id".to_vec(),
        b"remote app token".to_vec(),
        b"status \xff".to_vec(),
        vec![b'x'; 200_000],
        [&b"exec web -- "[..], &vec![b'x'; 200_000]].concat(),
        vec![b' '; 100_000],
    ]);
    for line in &lines {
        let mut channel = session.channel_open_session().await.unwrap();
        channel.exec(true, line.clone()).await.unwrap();
        channel.eof().await.unwrap();
        let (_, err, code, _) = ended(&mut channel).await;
        assert!(code.is_some_and(|code| code != 0) && !err.is_empty(), "{:?}: {code:?} {err}", String::from_utf8_lossy(line));
    }
    // More than a packet of SSH may be: it is hung up on, and others go on.
    for line in [vec![b'x'; 1 << 20], [&b"exec web -- "[..], &vec![b'y'; 1 << 20]].concat()] {
        let session = connect(&world, ann.clone()).await;
        let mut channel = session.channel_open_session().await.unwrap();
        drop(channel.exec(true, line).await);
        let (out, _, code, _) = ended(&mut channel).await;
        assert!(code != Some(0) && out.is_empty(), "{code:?} {out}");
    }
    assert!(!evil.exists() && !Path::new("/evil").exists());
    assert!(!world.doors.as_ref().unwrap().is_finished(), "the doors are still open");

    // What a channel can be asked for besides.
    let mut channel = session.channel_open_session().await.unwrap();
    channel.request_pty(true, &format!("xterm;{touch}\n\x1b[2J{long}"), u32::MAX, 0, 7, 7, &[]).await.unwrap();
    channel.agent_forward(true).await.unwrap();
    channel.request_x11(true, false, "MIT-MAGIC-COOKIE-1", format!("$({touch})"), 0).await.unwrap();
    for subsystem in ["", "netconf", "sftp;id", "../sftp", "sftp\0", &long] {
        channel.request_subsystem(true, subsystem).await.unwrap();
    }
    channel.exec(true, "exec web -- echo \"$TERM\" | head -c 100; env").await.unwrap();
    // One channel does one thing.
    channel.exec(true, "exec web -- touch /srv/second").await.unwrap();
    let (out, err, code, refused) = ended(&mut channel).await;
    assert!(code == Some(0) && refused >= 8, "{code:?} {refused} {out} {err} {}", guests.log());
    assert!(!out.contains('\x1b') && !out.contains("SSH_AUTH_SOCK") && !out.contains("DISPLAY"), "{out}");
    assert!(!guests.srv("web").join("second").exists() && !evil.exists());
    guests.asked();

    // What a connection can be asked for besides.
    let socket = world.path("bus").display().to_string();
    assert!(session.tcpip_forward("127.0.0.1", 0).await.is_err());
    assert!(session.streamlocal_forward(socket.as_str()).await.is_err());
    assert!(session.channel_open_direct_streamlocal(socket.as_str()).await.is_err());
    assert!(session.channel_open_x11("127.0.0.1", 6000).await.is_err());
    for (host, port) in [
        ("127.0.0.1", 22),
        ("::1", 22),
        ("10.88.0.2", 80),
        ("seed.example", 22),
        ("web\0", 80),
        ("web\n", 80),
        ("../web", 80),
        ("$(id)", 80),
        ("web", 0),
        ("web", 65_536),
        ("web", u32::MAX),
        ("", 80),
        (&long, 80),
    ] {
        assert!(session.channel_open_direct_tcpip(host, port, "127.0.0.1", 1).await.is_err(), "{host:.20}:{port}");
    }
    assert!(!world.doors.as_ref().unwrap().is_finished(), "the doors are still open");
    let entered = guests.asked();
    assert!(entered.is_empty() || entered.iter().all(|line| !line.contains(" web ")), "{entered:?}");
}
