//! The verbs about deploys and about what becomes of instances, through real ssh.

use std::{process::Stdio, sync::Mutex, time::Duration};

use seed::bus::{PATH, Refusal, history::Deploys};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::{
    shell::status,
    support::{World, run, until},
};

/// Answers, and remembers what it was asked.
#[derive(Debug, Default, Clone)]
pub struct History(std::sync::Arc<Mutex<Vec<String>>>);

impl History {
    fn asked(&self, words: &[&str]) {
        self.0.lock().unwrap().push(words.join(" "));
    }
    /// Whether a line was asked, whatever came after it.
    pub fn asked_for(&self, line: &str) -> bool {
        self.0.lock().unwrap().iter().any(|asked| asked.trim_end() == line)
    }
    fn last(&self) -> String {
        self.0.lock().unwrap().pop().unwrap_or_default()
    }
}

fn job(instance: &str) -> Result<String, Refusal> {
    match instance {
        "web" | "my-app/web" => Ok("job-9".into()),
        _ => Err(Refusal::NotFound(format!("no instance {instance:?}: there is web"))),
    }
}

#[zbus::interface(name = "farm.loom.Seed1.History")]
impl History {
    fn deploys(&self, _who: &str, filter: &str) -> String {
        self.asked(&["deploys", filter]);
        serde_json::to_string(&Deploys { version: 1, namespaces: vec![] }).unwrap()
    }
    fn rollback(&self, _who: &str, instance: &str, generation: &str) -> Result<String, Refusal> {
        self.asked(&["rollback", instance, generation]);
        job(instance)
    }
    fn pin(&self, _who: &str, instance: &str) -> Result<String, Refusal> {
        self.asked(&["pin", instance]);
        job(instance).map(|_| r#"{"version":1,"instance":"my-app/web","pinned":true,"changed":true}"#.to_owned())
    }
    fn unpin(&self, _who: &str, instance: &str) -> Result<String, Refusal> {
        self.asked(&["unpin", instance]);
        job(instance).map(|_| r#"{"version":1,"instance":"my-app/web","pinned":false,"changed":false}"#.to_owned())
    }
    fn stop(&self, _who: &str, instance: &str) -> Result<String, Refusal> {
        self.asked(&["stop", instance]);
        job(instance)
    }
    fn start(&self, _who: &str, instance: &str) -> Result<String, Refusal> {
        self.asked(&["start", instance]);
        job(instance)
    }
    fn destroy(&self, _who: &str, instance: &str, again: &str) -> Result<String, Refusal> {
        self.asked(&["destroy", instance, again]);
        match again {
            "" => Err(Refusal::Invalid("say its name again: destroy web web".into())),
            _ => job(instance),
        }
    }
    fn unplant(&self, _who: &str, repository: &str, again: &str) -> Result<String, Refusal> {
        self.asked(&["unplant", repository, again]);
        match repository {
            "my-app" => {
                Ok(r#"{"version":1,"namespace":"s-a","flake":"silo:my-app","job":"job-1","kept":["the volume web/data (64Mi)"]}"#
                    .to_owned())
            }
            _ => Err(Refusal::NotFound(format!("you have no repository {repository:?}"))),
        }
    }
}

pub async fn world() -> (World, History) {
    let world = World::new().await;
    let history = History::default();
    world.agent_bus.object_server().at(PATH, history.clone()).await.unwrap();
    (world, history)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_verb_asks_what_was_typed_and_follows_to_the_end() {
    let (world, history) = world().await;
    let table: [(&[&str], &str, &str); 9] = [
        (&["deploys", "my-app.git"], "deploys my-app", "Nothing of yours was deployed yet"),
        (&["rollback", "web"], "rollback web ", "running web"),
        (&["rollback", "my-app/web", "0123abcd"], "rollback my-app/web 0123abcd", "running web"),
        (&["pin", "web"], "pin web", "my-app/web is pinned"),
        (&["unpin", "web"], "unpin web", "was not pinned"),
        (&["stop", "web"], "stop web", "running web"),
        (&["start", "web"], "start web", "running web"),
        (&["destroy", "web", "web"], "destroy web web", "running web"),
        (&["unplant", "my-app.git", "my-app"], "unplant my-app my-app", "the volume web/data (64Mi)"),
    ];
    for (words, asked, shown) in table {
        world.ssh("ann", words).await.ok().out_has(shown);
        assert_eq!(history.last(), asked);
        let json = [words, &["--json"]].concat();
        for line in world.ssh("ann", &json).await.ok().out.lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{words:?}: {line}: {error}"));
        }
        history.last();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_terminal_the_name_of_what_is_taken_away_is_asked_for_again() {
    let (world, history) = world().await;
    let table = [
        (&["destroy", "my-app/web"][..], "wex\x7fb\r", 0, "destroy my-app/web web", "off this host"),
        (&["destroy", "web"], "everything\x15web\r", 0, "destroy web web", "running web"),
        (&["destroy", "web"], "api\r", 2, "", "that is not web: nothing was changed"),
        (&["destroy", "web"], "\r", 2, "", "nothing was changed"),
        (&["destroy", "web"], "\x03", 130, "", "Its name again"),
        (&["unplant", "my-app"], "my-app\r", 0, "unplant my-app my-app", "all instances of my-app"),
        (&["unplant", "my-app"], "web\r", 2, "", "that is not my-app"),
        // Nobody is asked who could not answer: the agent says what is missing.
        (&["destroy", "web", "--json"], "web\r", 2, "destroy web ", "destroy web web"),
    ];
    for (words, typed, code, asked, shown) in table {
        let mut command = tokio::process::Command::new("ssh");
        command.arg("-tt").env("TERM", "xterm").args(world.options("ann")).arg("127.0.0.1").args(words);
        let mut client =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let mut stdin = client.stdin.take().unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stdin, typed.as_bytes()).await.unwrap();
        let output = tokio::time::timeout(Duration::from_secs(20), client.wait_with_output()).await.expect("it ends").unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert_eq!((output.status.code(), history.last().as_str()), (Some(code), asked), "{words:?} {typed:?}: {said}");
        assert!(said.contains(shown), "{words:?} {typed:?}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_is_asked_for_the_name_again_too() {
    let (world, history) = world().await;
    for (typed, code, asked) in [("web\n", "code=0", "destroy web web"), ("api\n", "code=2", "")] {
        let mut child = crate::host::at_a_terminal(&world, "destroy web");
        tokio::io::AsyncWriteExt::write_all(child.stdin.as_mut().unwrap(), typed.as_bytes()).await.unwrap();
        let stdin = child.stdin.take();
        let output = tokio::time::timeout(Duration::from_secs(20), child.wait_with_output()).await.expect("it ends").unwrap();
        drop(stdin);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains(code) && said.contains("Its name again"), "{said}");
        assert_eq!(history.last(), asked, "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_likeliest_mistakes_are_told_apart() {
    let (world, _) = world().await;
    let table: [(&[&str], i32, &str); 9] = [
        (&["rollback"], 2, "rollback needs an instance"),
        (&["rollback", "wbe"], 3, "there is web"),
        (&["rollback", "web", "1", "2"], 2, "does not take \"2\""),
        (&["stop", "web", "api"], 2, "does not take \"api\""),
        (&["start", "--force", "web"], 2, "knows no option \"--force\""),
        (&["destroy", "web"], 2, "destroy web web"),
        (&["unplant"], 2, "unplant needs a repository"),
        (&["unplant", "other"], 3, "you have no repository"),
        (&["rolback", "web"], 2, "did you mean rollback?"),
    ];
    for (words, code, text) in table {
        let ran = world.ssh("ann", words).await;
        assert_eq!(ran.code, code, "{words:?}: {ran:?}");
        ran.err_has(text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_is_watched_is_drawn_again_until_the_client_leaves() {
    let world = World::new().await;
    world.agent.told().status = status();
    let ann = world.key_id("ann").await;
    world.agent.told().owners.insert("my-app".into(), ann);
    let mut client = world.ssh_command("ann", &["status", "--watch"]).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
    let mut until_line = async |text: &str| {
        let found = async { while !lines.next_line().await.unwrap().expect("it goes on").contains(text) {} };
        tokio::time::timeout(Duration::from_secs(20), found).await.unwrap_or_else(|_| panic!("no {text}"));
    };
    until_line("running").await;
    world.agent.told().status.namespaces[0].instances[0].state = "degraded".into();
    until_line("degraded").await;
    let asked = || world.agent.told().statuses;
    client.kill().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = asked();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(asked() <= before + 1, "nobody is watching any more");

    // On a terminal it is drawn over the last, and Ctrl-C ends it.
    let mut command = tokio::process::Command::new("ssh");
    command.arg("-tt").env("TERM", "xterm").args(world.options("ann")).args(["127.0.0.1", "status", "-w"]);
    let before = asked();
    let mut client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    until("it was drawn twice", || asked() >= before + 2).await;
    let mut stdin = client.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"\x03").await.unwrap();
    let output = tokio::time::timeout(Duration::from_secs(20), client.wait_with_output()).await.expect("it ends").unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.starts_with("\x1b[H") && text.contains("\x1b[K\r\n") && text.contains("\x1b[J"), "{text:?}");
    run(&mut world.ssh_command("ann", &["status"])).await.ok();
}
