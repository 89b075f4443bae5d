//! Who gets into which guest, and with what in hand.

use std::io::{Read, Write};

use russh::keys::{Algorithm, HashAlg, PrivateKey, PublicKey, key::safe_rng, ssh_key::Certificate};
use seed::{
    agent::{
        enter::Enter,
        request::{Reply, Request},
    },
    bus::{Refusal, guest::Way},
    spec::name::KeyId,
};
use serde_json::json;

use crate::world::{World, ann, bob, id};

fn key() -> String {
    PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).unwrap().public_key().to_openssh().unwrap()
}

fn ask(who: &KeyId, instance: &str, key: &str, act: &str) -> Request {
    let (who, what) = (format!("{who}@192.0.2.7"), "cat /etc/hosts\n; reboot".to_owned());
    Request::Enter(Enter { who, instance: instance.into(), key: key.into(), act: act.into(), what })
}

#[tokio::test]
async fn an_owner_gets_a_stream_into_the_guest_and_a_certificate_for_it_alone() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.planted("app").await;
    let key = key();
    let Reply::Way(stream, text) = world.handle.ask(ask(&ann(), "web", &key, "exec")).await.unwrap() else { panic!("no way") };
    let entered = world.sim.entered();
    let [(entered, port, guest)] = &entered[..] else { panic!("one stream") };
    assert_eq!((entered, *port), (&(&id("app", "web")).into(), 22));
    (&mut &*guest).write_all(b"SSH").unwrap();
    let mut said = [0; 3];
    std::fs::File::from(stream).read_exact(&mut said).unwrap();
    assert_eq!(&said, b"SSH");

    let way: Way = serde_json::from_str(&text).unwrap();
    assert_eq!((way.user.as_str(), way.instance), ("root", id("app", "web").to_string()));
    let certificate = Certificate::from_openssh(&way.certificate).unwrap();
    assert_eq!(certificate.valid_principals(), [id("app", "web").unit_instance()]);
    assert_eq!(certificate.key_id(), format!("{}@192.0.2.7", ann()));
    let lives = certificate.valid_before() - std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    assert!((1..=300).contains(&lives), "{lives} s");
    // Signed by the key that the guest was told at its boot.
    let unit = world.sim.running(&id("app", "web")).unwrap();
    let told = unit.split("ssh.authorized_keys.root=").nth(1).expect("told").split(['"', ' ', '\n']).next().unwrap();
    let told = String::from_utf8(data_encoding::BASE64.decode(told.as_bytes()).unwrap()).unwrap();
    let authority = PublicKey::from_openssh(told.split_once(' ').unwrap().1).unwrap();
    assert!(told.starts_with(&format!("cert-authority,principals=\"{}\" ", id("app", "web").unit_instance())), "{told}");
    certificate.validate([&authority.fingerprint(HashAlg::Sha256)]).unwrap();
}

#[tokio::test]
async fn others_and_nonsense_are_refused_before_anything_is_opened() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.planted("app").await;
    for name in ["web", "app/web", &id("app", "web").to_string()] {
        let refused = world.handle.ask(ask(&bob(), name, &key(), "exec")).await.unwrap_err();
        assert!(matches!(&refused, Refusal::NotFound(text) if text.contains("you have none yet")), "{refused}");
    }
    for (key, act) in [("", "exec"), ("ssh-rsa AAAA", "exec"), (key().as_str(), "root"), (key().as_str(), "")] {
        let refused = world.handle.ask(ask(&ann(), "web", key, act)).await.unwrap_err();
        assert!(matches!(refused, Refusal::Invalid(_)), "{key} {act}: {refused}");
    }
    assert!(world.sim.entered().is_empty());
}

#[tokio::test]
async fn a_guest_that_is_off_cannot_be_entered_and_that_is_what_is_said() {
    let world = World::new().await;
    world.table.set("web", "one", json!({}));
    world.planted("app").await;
    world.sim.stop_by_hand(&id("app", "web"));
    let refused = world.handle.ask(ask(&ann(), "web", &key(), "copy")).await.unwrap_err();
    assert!(matches!(&refused, Refusal::Failed(text) if text == "web is not running: status says why"), "{refused}");
}
