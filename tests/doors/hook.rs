//! The HTTP door with real HTTP clients, and what the shell says of repositories from elsewhere.

use std::{
    io::{Read, Write},
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use seed::{
    bus::{
        PATH, Refusal,
        github::{RemoteKey, RemotePlanted, RemoteStatus, Webhook},
    },
    spec::{access::fingerprint, authorized_keys},
};
use tokio::{io::AsyncWriteExt, process::Command};

use crate::support::{Ran, World, run};

const PUSH: &str = r#"{"ref":"refs/heads/main","repository":{"full_name":"ann/app"}}"#;

/// The agent's other interface; it writes down what it is asked.
#[derive(Clone, Default)]
struct GitHub(Arc<Mutex<Vec<String>>>);

impl GitHub {
    fn calls(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
    fn call(&self, text: String) {
        self.0.lock().unwrap().push(text);
    }
}

fn webhook() -> Webhook {
    Webhook { version: 1, url: "http://seed.example/webhook/github".into(), secret: "0123456789".into() }
}

#[zbus::interface(name = "farm.loom.Seed1.GitHub")]
impl GitHub {
    fn plant(&self, who: &str, uri: &str, code: &str, line: &str, token: &str, with_key: bool) -> Result<String, Refusal> {
        let (key, _) = who.split_once('@').unwrap();
        assert_eq!(fingerprint(&authorized_keys::blob(line).unwrap()).as_str(), key, "the key of who asks, to be shown");
        self.call(format!("plant {uri} {code} {token}{}", if with_key { "key" } else { "" }));
        if code != "good" {
            return Err(Refusal::Denied("this code is unknown or spent".into()));
        }
        let job = "job-1".into();
        let (namespace, suffix) = ("s-aaaaaaaaaaaa".into(), "s-aaaaaaaaaaaa.seed.example".into());
        let planted = RemotePlanted { version: 1, namespace, flake: uri.into(), job, suffix, webhook: webhook() };
        Ok(serde_json::to_string(&planted).unwrap())
    }
    fn show(&self, _who: &str, repository: &str) -> Result<String, Refusal> {
        if repository != "app" {
            return Err(Refusal::NotFound(format!("no repository {repository:?}")));
        }
        let status = RemoteStatus {
            version: 1,
            namespace: "s-aaaaaaaaaaaa".into(),
            flake: "github:ann/app".into(),
            branch: "main".into(),
            commit: "0123456789abcdef0123456789abcdef01234567".into(),
            token: true,
            key: String::new(),
            host_key: "SHA256:server".into(),
            webhook_url: webhook().url,
            fetched: 1,
            problem: "it is \u{1b}[31mred".into(),
            every: 600,
        };
        Ok(serde_json::to_string(&status).unwrap())
    }
    fn set_token(&self, _who: &str, repository: &str, token: &str) {
        self.call(format!("token {repository} {token}"));
    }
    fn forget_token(&self, _who: &str, repository: &str) {
        self.call(format!("forget {repository}"));
    }
    fn plant_key(&self, _who: &str, uri: &str, _code: &str) -> String {
        // It is made at the first time.
        let made = !self.calls().contains(&"plant_key".to_owned());
        self.call("plant_key".into());
        let key = RemoteKey { version: 1, flake: uri.into(), key: "ssh-ed25519 AAAA seed".into(), made };
        serde_json::to_string(&key).unwrap()
    }
    fn key(&self, _who: &str, repository: &str) -> String {
        let key = RemoteKey { version: 1, flake: repository.into(), key: "ssh-ed25519 AAAA seed".into(), made: false };
        serde_json::to_string(&key).unwrap()
    }
    fn trust(&self, _who: &str, repository: &str, host_key: &str) {
        self.call(format!("trust {repository} {host_key}"));
    }
    fn new_secret(&self, _who: &str, _repository: &str) -> String {
        serde_json::to_string(&webhook()).unwrap()
    }
    fn hook(&self, repository: &str, branch: &str, signature: &str, body: Vec<u8>) -> Result<String, Refusal> {
        self.call(format!("hook {repository} {branch} {signature} {}", body.len()));
        match signature {
            "sha256=good" => Ok("fetching".into()),
            _ => Err(Refusal::Denied("no plant of this host has this repository and this secret".into())),
        }
    }
}

async fn world() -> (World, GitHub) {
    let (world, github) = (World::new().await, GitHub::default());
    world.agent_bus.object_server().at(PATH, github.clone()).await.unwrap();
    (world, github)
}

/// Sends a delivery with curl; standard output ends with the status.
async fn post(world: &World, headers: &[&str], body: &[u8]) -> Ran {
    std::fs::write(world.path("body"), body).unwrap();
    let mut command = Command::new("curl");
    command.args(["-sS", "-m", "20", "-w", "%{http_code}", "--data-binary"]).arg(format!("@{}", world.path("body").display()));
    for header in headers {
        command.args(["-H", header]);
    }
    run(command.arg(format!("http://{}/webhook/github", world.http))).await
}

const JSON: &str = "Content-Type: application/json";

#[tokio::test]
async fn a_delivery_reaches_the_agent_as_it_was_signed_and_its_answer_is_the_status() {
    let (world, github) = world().await;
    let good = "X-Hub-Signature-256: sha256=good";
    let said = post(&world, &[JSON, "X-GitHub-Event: push", good], PUSH.as_bytes()).await.ok();
    assert!(said.out.contains("\"result\":\"fetching\"") && said.out.ends_with("200"), "{said:?}");
    assert_eq!(github.calls(), [format!("hook ann/app refs/heads/main sha256=good {}", PUSH.len())]);
    let table: &[(&[&str], &[u8], &str)] = &[
        (&[JSON, "X-GitHub-Event: push", "X-Hub-Signature-256: sha256=bad"], PUSH.as_bytes(), "401"),
        (&[JSON, "X-GitHub-Event: push"], PUSH.as_bytes(), "401"),
        (&[JSON, "X-GitHub-Event: push", good], b"{", "400"),
        (&["X-GitHub-Event: push", good], PUSH.as_bytes(), "400"),
        (&[JSON, "X-GitHub-Event: issues", good], PUSH.as_bytes(), "200"),
        (&[JSON, "X-GitHub-Event: push", good], &vec![b' '; (1 << 20) + 1], "413"),
        (&[JSON, "X-GitHub-Event: push", good, "Transfer-Encoding: chunked"], &vec![b' '; 3 << 20], "413"),
    ];
    for (headers, body, status) in table {
        let said = post(&world, headers, body).await;
        // Who goes on sending what nobody reads may be hung up on before the answer has come.
        let hung_up = body.len() > 1 << 20 && matches!(said.code, 55 | 56);
        assert!(said.out.ends_with(status) || hung_up, "{headers:?}: {said:?}");
    }
    // A text with a byte 0 in it would make the bus hang up on all doors.
    for (from, to, status) in [("ann/app", "ann/app\\u0000", "400"), ("refs/heads/main", "refs/heads/main\\u0000", "200")] {
        let said = post(&world, &[JSON, "X-GitHub-Event: push", good], PUSH.replace(from, to).as_bytes()).await;
        assert!(said.out.ends_with(status) && !said.out.contains("fetching"), "{to}: {said:?}");
    }
    assert_eq!(github.calls().len(), 2, "the agent is asked about what is a delivery: {:?}", github.calls());
    for (url, status) in [("webhook/github", "405"), ("", "200"), ("else", "404"), ("webhook/gitlab", "404")] {
        let url = format!("http://{}/{url}", world.http);
        let said = run(Command::new("curl").args(["-sS", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}", &url])).await;
        assert_eq!(said.out, status, "{url}");
    }
    world.agent_leaves().await;
    let said = post(&world, &[JSON, "X-GitHub-Event: push", good], PUSH.as_bytes()).await;
    assert!(said.out.ends_with("503"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_clients_that_never_finish_keep_nobody_out_and_are_shown_the_door() {
    let (world, _github) = world().await;
    let slow: Vec<std::net::TcpStream> = (0..200)
        .map(|_| {
            let mut stream = std::net::TcpStream::connect(world.http).unwrap();
            stream.write_all(b"POST /webhook/github HTTP/1.1\r\nHost: x\r\n").unwrap();
            stream
        })
        .collect();
    let began = Instant::now();
    let headers = [JSON, "X-GitHub-Event: push", "X-Hub-Signature-256: sha256=good"];
    let said = post(&world, &headers, PUSH.as_bytes()).await;
    assert!(said.out.ends_with("200") && began.elapsed() < Duration::from_secs(9), "{said:?} after {:?}", began.elapsed());
    let ended = tokio::task::spawn_blocking(move || {
        slow.into_iter().all(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(25))).unwrap();
            // Closed, reset, or told that it took too long: all but silence.
            !matches!(stream.read(&mut [0; 64]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
        })
    });
    assert!(ended.await.unwrap(), "a connection stays open for ever");
}

#[tokio::test]
async fn a_repository_from_elsewhere_is_planted_and_its_token_comes_on_standard_input_only() {
    let (world, github) = world().await;
    let said = world.ssh("ann", &["plant", "github:ann/app", "good"]).await.ok();
    said.out_has("planted as s-aaaaaaaaaaaa").out_has("Payload URL   http://seed.example/webhook/github").out_has("0123456789");
    world.ssh("ann", &["plant", "github:ann/app", "good", "--token"]).await.err_has("there is no token on standard input");
    let refused = world.ssh("ann", &["plant", "github:ann/app", "bad"]).await;
    assert_eq!(refused.code, 4);
    refused.err_has("unknown or spent");
    let said = world.ssh("ann", &["remote", "app"]).await.ok();
    said.out_has("main, commit 0123456789").out_has("and failed: it is red").out_has("with a token").out_has("SHA256:server");
    assert!(!said.out.contains('\u{1b}'));
    assert_eq!(world.ssh("ann", &["remote", "app", "tokne"]).await.code, 2);
    world.ssh("ann", &["remote", "app", "token"]).await.err_has("there is no token on standard input");
    for (sent, words) in [
        ("s3cret\n", vec!["remote", "app", "token"]),
        ("ann:s3cret", vec!["remote", "--json", "app", "token"]),
        ("s3cret\n", vec!["plant", "github:ann/app", "good", "--token"]),
    ] {
        let mut child = world.ssh_command("ann", &words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(sent.as_bytes()).await.unwrap();
        let output = child.wait_with_output().await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && !text.contains("s3cret"), "{text}");
        let (said, call) = if words[0] == "plant" { ("is planted", "plant github:ann/app good") } else { ("is kept", "token app") };
        assert!(text.contains(said), "{text}");
        assert_eq!(github.calls().last().unwrap(), &format!("{call} {}", sent.trim()));
    }
    // A deploy key is shown first, and used the second time.
    let plant = ["plant", "github:ann/app", "good", "--key"];
    world.ssh("ann", &plant).await.ok().out_has("ssh-ed25519 AAAA seed").out_has("plant github:ann/app CODE --key");
    world.ssh("ann", &plant).await.ok().out_has("planted as");
    assert_eq!(github.calls().last().unwrap(), "plant github:ann/app good key");
    assert_eq!(world.ssh("ann", &["plant", "github:ann/app", "good", "--key", "--token"]).await.code, 2);
    world.ssh("ann", &["remote", "app", "key"]).await.ok().out_has("ssh-ed25519 AAAA seed");
    world.ssh("ann", &["remote", "app", "trust", "SHA256:x"]).await.ok();
    assert_eq!(github.calls().last().unwrap(), "trust app SHA256:x");
    assert_eq!(world.ssh("ann", &["remote", "app", "trust"]).await.code, 2);
    world.ssh("ann", &["remote", "app", "forget"]).await.ok().out_has("removed");
    world.ssh("ann", &["remote", "app", "secret"]).await.ok().out_has("0123456789");
    // A token does not fit on the command line.
    assert_eq!(world.ssh("ann", &["remote", "app", "token", "s3cret"]).await.code, 2);
}
