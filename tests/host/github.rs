//! A repository that is elsewhere: a real git server over HTTP, the units that fetch, the webhook at the HTTP door.

use std::time::Duration;

use hmac::{Hmac, Mac};

use crate::machine::{Machine, Tenant};

const LIMIT: Duration = Duration::from_secs(150);
/// Stands for github.com on the machine.
const FORGE: &str = "127.0.0.1:8124";

/// git behind a web server, which asks for a password if there is a `password` (`user:pass`).
fn forge(machine: &Machine, password: &str) {
    machine.write(
        "/srv/forge/www/cgi-bin/git",
        "#!/bin/sh\nexport GIT_PROJECT_ROOT=/srv/forge/repos GIT_HTTP_EXPORT_ALL=1\nexec git http-backend\n",
    );
    machine.run(&["chmod", "+x", "/srv/forge/www/cgi-bin/git"]).ok();
    let lock = if password.is_empty() { String::new() } else { format!("/cgi-bin/git:{password}\n") };
    machine.write("/srv/forge/httpd.conf", &lock);
    machine.run(&["systemctl", "stop", "forge.service"]);
    let server = ["busybox", "httpd", "-f", "-p", FORGE, "-h", "/srv/forge/www", "-c", "/srv/forge/httpd.conf"];
    machine.run(&[&["systemd-run", "--quiet", "--collect", "--unit=forge"][..], &server].concat()).ok();
}

/// The same repositories behind the sshd of the guest's system, for who has a deploy key.
fn forge_ssh(machine: &Machine) {
    let script = r#"
        mkdir -p /srv/sshd && tar -xzf /srv/guest/root.tar.gz -C /srv/sshd --wildcards \
            'root/usr/sbin/sshd*' 'root/usr/lib/openssh/*' 'root/usr/lib/x86_64-linux-gnu/*.so*'
        cp -an /srv/sshd/root/usr/lib/x86_64-linux-gnu/. /usr/lib/x86_64-linux-gnu/
        mkdir -p /usr/lib/openssh /run/sshd && cp -an /srv/sshd/root/usr/lib/openssh/. /usr/lib/openssh/
        cp -a /srv/sshd/root/usr/sbin/sshd /usr/sbin/ && ldconfig
        id sshd >/dev/null 2>&1 || systemd-sysusers --inline 'u sshd - "sshd" /run/sshd'
        ssh-keygen -q -t ed25519 -N '' -f /srv/forge/host_key
        printf 'Port 2299\nListenAddress 127.0.0.1\nHostKey /srv/forge/host_key\nAuthorizedKeysFile /srv/forge/keys\nStrictModes no\nUsePAM no\n' \
            >/srv/forge/sshd_config
        touch /srv/forge/keys
        systemd-run --quiet --unit=forge-ssh -p Type=exec /usr/sbin/sshd -D -e -f /srv/forge/sshd_config
    "#;
    machine.run(&["bash", "-euc", script]).ok();
}

/// Commits the checkout and pushes it to the forge.
fn push(ann: &Tenant) {
    ann.git(&["add", "-A"]).ok();
    ann.git(&["commit", "-q", "-m", "change"]).ok();
    ann.git(&["push", "-q", "/srv/forge/repos/ann/app.git", "HEAD:main"]).ok();
}

/// A delivery as GitHub sends it; what the HTTP door answers.
fn deliver(machine: &Machine, secret: &str, body: &str) -> String {
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(body.as_bytes());
    let signature = format!("X-Hub-Signature-256: sha256={}", data_encoding::HEXLOWER.encode(&mac.finalize().into_bytes()));
    let url = "http://127.0.0.1/webhook/github";
    let headers = ["-H", "Content-Type: application/json", "-H", "X-GitHub-Event: push", "-H", &signature];
    machine.run(&[&["curl", "-s", "-m", "20", "--data-binary", body][..], &headers, &[url]].concat()).ok()
}

#[test]
fn a_repository_of_a_forge_is_followed_and_a_private_one_is_read_with_its_token() {
    let server = format!("server = \"http://{FORGE}/cgi-bin/git\"");
    let machine = Machine::new(
        "github",
        &["[github]", &server, "ssh_server = \"ssh://root@127.0.0.1:2299/srv/forge/repos\"", "fetch_every_secs = 3600"],
    );
    forge(&machine, "");
    machine.run(&["git", "init", "-q", "--bare", "-b", "main", "/srv/forge/repos/ann/app.git"]).ok();
    let ann = machine.tenant("ann", "app");
    push(&ann);

    // A repository that is not there spends nothing, and neither does one that does not say whose it is.
    let code = machine.invite();
    let wrong = ann.shell(&["plant", "github:ann/app", &code]);
    let line = machine.run(&["cut", "-d", " ", "-f", "1,2", "/root/ann/key.pub"]).ok();
    assert!(wrong.code == 4 && wrong.err.contains("not spent") && wrong.err.contains(line.trim()), "{}", wrong.all());
    ann.write(".authorized_keys", &line);
    push(&ann);
    let wrong = ann.shell(&["plant", "github:ann/none", &code]);
    assert!(wrong.code == 3 && wrong.err.contains("does not exist") && wrong.err.contains("not spent"), "{}", wrong.all());
    let planted = ann.shell(&["plant", "github:ann/app", &code]);
    let text = planted.all();
    assert_eq!(planted.code, 0, "{text}");
    let after = |label: &str| text.split_once(label).and_then(|(_, rest)| rest.split_whitespace().next()).expect("said").to_owned();
    let (namespace, secret) = (after("is planted as"), after("Secret "));
    assert_eq!(after("Payload URL"), "http://seed.example/webhook/github");
    let url = format!("http://web.{namespace}.seed.example/");
    let page = || machine.run(&["curl", "-s", "-m", "5", &url]).out.trim().to_owned();
    assert_eq!(page(), "Hello from Seed");

    // What was fetched belongs to a user of its own, and the doors cannot see it.
    let cache = format!("/var/cache/private/seed-fetch/{namespace}");
    let owner = machine.run(&["stat", "-c", "%u %a", &cache]).ok();
    let (user, mode) = owner.trim().split_once(' ').expect("two words");
    assert!(user.parse::<u32>().expect("a number") >= 61184 && mode == "700", "{owner}");
    assert_ne!(machine.run(&["runuser", "-u", "seed", "--", "ls", &cache]).code, 0);

    // A push is deployed when the forge says so, and only if the forge says so.
    ann.edit("Hello from Seed", "Hello from the forge");
    push(&ann);
    let body = r#"{"ref":"refs/heads/main","repository":{"full_name":"ann/app"}}"#;
    assert!(deliver(&machine, "guessed", body).contains("no plant of this host"), "a wrong secret");
    assert_eq!(page(), "Hello from Seed");
    assert!(deliver(&machine, &secret, body).contains("\"fetching\""));
    machine.wait("the page of the second commit", LIMIT, || (page() == "Hello from the forge").then_some(()));
    assert!(deliver(&machine, &secret, body).contains("\"repeated\""));

    // It becomes private: nothing is fetched any more, and what runs goes on, until there is a token.
    forge(&machine, "ann:s3cret-of-ann");
    ann.edit("Hello from the forge", "Hello in private");
    push(&ann);
    let refused = ann.shell(&["deploy", "github:ann/app"]);
    assert!(refused.code == 1 && refused.all().contains("remote REPO token"), "{}", refused.all());
    assert_eq!(page(), "Hello from the forge");
    machine.write("/root/ann/token", "ann:s3cret-of-ann\n");
    let command = format!("{} <{}", ann.asks(&["remote", "app", "token"]).join(" "), "/root/ann/token");
    machine.run(&["sh", "-c", &command]).ok();
    let deployed = ann.shell(&["deploy", "app"]);
    assert_eq!(deployed.code, 0, "{}", deployed.all());
    assert_eq!(page(), "Hello in private");
    let file = format!("/var/lib/seed/credentials/{namespace}.token");
    assert_eq!(machine.run(&["stat", "-c", "%U %a", &file]).ok().trim(), "root 600");
    assert_ne!(machine.run(&["runuser", "-u", "seed", "--", "cat", &file]).code, 0);
    let shown = ann.shell(&["remote", "app"]).ok();
    assert!(shown.contains("with a token") && !shown.contains("s3cret"), "{shown}");
    let journal = machine.run(&["journalctl", "--no-pager", "-o", "json"]).ok();
    assert!(journal.contains("seed-fetch@") && !journal.contains("s3cret-of-ann"), "the token is in the journal");
    let left = ["grep", "-rl", "s3cret-of-ann", "/var/lib/seed/state", "/run/seed", "/var/cache/private", "/run/systemd/transient"];
    assert_eq!(machine.run(&left).out, "", "the token is kept elsewhere too");

    // With a deploy key instead: it is made here, and used as soon as there is no token.
    forge_ssh(&machine);
    ann.shell(&["remote", "app", "forget"]).ok();
    let shown = ann.shell(&["remote", "app", "key"]).ok();
    let key = shown.lines().find_map(|line| line.trim().strip_prefix("ssh-ed25519 ")).expect("a key");
    ann.edit("Hello in private", "Hello by a key");
    push(&ann);
    let refused = ann.shell(&["deploy", "app"]);
    assert!(refused.code == 1 && refused.all().contains("the key is not added there"), "{}", refused.all());
    machine.write("/srv/forge/keys", &format!("restrict ssh-ed25519 {key}\n"));
    let deployed = ann.shell(&["deploy", "app"]);
    assert_eq!(deployed.code, 0, "{}", deployed.all());
    assert_eq!(page(), "Hello by a key");
    assert!(ann.shell(&["remote", "app"]).ok().contains("host key"));
    let file = format!("/var/lib/seed/credentials/{namespace}.key");
    assert_eq!(machine.run(&["stat", "-c", "%U %a", &file]).ok().trim(), "root 600");
    // What a webhook brought is in the record, and no text of a secret's.
    let audit = ann.shell(&["audit"]).ok();
    assert!(audit.contains("fetch github:ann/app refs/heads/main") && !audit.contains("s3cret"), "{audit}");

    // Unplanted, nothing of it is left here.
    ann.shell(&["unplant", "app", "app"]).ok();
    machine.wait("what was fetched is gone", LIMIT, || {
        (machine.run(&["ls", &cache]).out.trim().is_empty() && machine.run(&["ls", &file]).code != 0).then_some(())
    });
}
