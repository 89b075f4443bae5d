//! The verbs about names of one's own, through real ssh; and that the doors look when they are told to.

use std::sync::{Arc, Mutex};

use seed::bus::{
    PATH, Refusal,
    domain::{DomainList, DomainStatus, Due, Looked, Records, Seen},
};
use serde_json::Value;
use zbus::object_server::SignalEmitter;

use crate::support::{World, until};

/// Says that these are due, and remembers what it was told.
#[derive(Debug, Clone, Default)]
struct Domains {
    due: Arc<Mutex<Vec<String>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

fn status(next: u64) -> DomainStatus {
    DomainStatus {
        name: "www.example.com".into(),
        namespace: "s-aaaaaaaaaaaa".into(),
        instance: "my-app/web".into(),
        origin: "added".into(),
        state: "pending".into(),
        since: 0,
        lost_at: 0,
        detail: if next == 0 { String::new() } else { "it is no CNAME".into() },
        next,
        records: Records {
            cname: "web.s-aaaaaaaaaaaa.seed.example".into(),
            txt_name: "_seed-challenge.www.example.com".into(),
            txt: "seed-x".into(),
            acme_name: "_acme-challenge.www.example.com".into(),
            acme: "_acme-y.s-aaaaaaaaaaaa.seed.example".into(),
        },
        delegated: false,
    }
}

fn list(next: u64) -> String {
    serde_json::to_string(&DomainList { version: 1, domains: vec![status(next)] }).unwrap()
}

#[zbus::interface(name = "farm.loom.Seed1.Domains")]
impl Domains {
    fn add(&self, _who: &str, instance: &str, name: &str) -> Result<String, Refusal> {
        match (instance, name) {
            ("web", "www.example.com") => Ok(list(0)),
            ("web", _) => Err(Refusal::Invalid(format!("domain {name:?} is no DNS label"))),
            _ => Err(Refusal::NotFound(format!("you have no instance {instance:?}"))),
        }
    }
    fn remove(&self, _who: &str, name: &str) -> Result<(), Refusal> {
        match name {
            "www.example.com" => Ok(()),
            _ => Err(Refusal::NotFound(format!("none of your instances claims {name}"))),
        }
    }
    /// By then it was looked at.
    fn list(&self, _who: &str, _filter: &str) -> String {
        list(60)
    }
    fn due(&self) -> String {
        let names = std::mem::take(&mut *self.due.lock().unwrap());
        serde_json::to_string(&Due { names, turn: 7, pause: 600 }).unwrap()
    }
    fn seen(&self, report: &str) {
        self.seen.lock().unwrap().push(serde_json::from_str(report).unwrap());
    }
    #[zbus(signal)]
    async fn changed(emitter: &SignalEmitter<'_>) -> zbus::Result<()>;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_claimed_and_what_to_set_is_said() {
    let world = World::new().await;
    let domains = Domains::default();
    world.agent_bus.object_server().at(PATH, domains.clone()).await.unwrap();
    let added = world.ssh("ann", &["domain", "add", "web", "www.example.com"]).await.ok();
    for line in [
        "www.example.com is claimed for my-app/web: not proven (it is no CNAME)",
        "www.example.com. CNAME web.s-aaaaaaaaaaaa.seed.example.",
        "_seed-challenge.www.example.com. TXT \"seed-x\"",
        "_acme-challenge.www.example.com. CNAME _acme-y.s-aaaaaaaaaaaa.seed.example.",
    ] {
        added.out_has(line);
    }
    world.ssh("ann", &["domain", "list"]).await.ok().out_has("not proven");
    world.ssh("ann", &["domain", "remove", "www.example.com"]).await.ok().out_has("no longer claimed");
    for words in [&["add", "web", "www.example.com"][..], &["list", "my-app.git"], &["remove", "www.example.com"]] {
        let said = world.ssh("ann", &[&["domain"], words, &["--json"]].concat()).await.ok();
        assert_eq!(serde_json::from_str::<Value>(&said.out).unwrap()["version"], 1, "{said:?}");
    }
    for (words, code, text) in [
        (&["domain"][..], 2, "one of add, remove, list"),
        (&["domain", "add", "web"], 2, "domain add web www.example.com"),
        (&["domain", "add", "web", "UP"], 2, "no DNS label"),
        (&["domain", "add", "api", "www.example.com"], 3, "no instance"),
        (&["domain", "remove", "other.example.com"], 3, "claims"),
        (&["domain", "lsit"], 2, "there are add, remove and list"),
        (&["domian"], 2, "did you mean domain?"),
    ] {
        let ran = world.ssh("ann", words).await;
        assert_eq!(ran.code, code, "{words:?}: {ran:?}");
        ran.err_has(text);
    }
    // This host has no resolvers, and says so of every name; they are looked at when the agent says that there are some.
    *domains.due.lock().unwrap() = vec!["a.example.com".into(), "b.example.com".into()];
    let emitter = SignalEmitter::new(&world.agent_bus, PATH).unwrap();
    Domains::changed(&emitter).await.unwrap();
    until("both are looked at", || domains.seen.lock().unwrap().len() == 2).await;
    for seen in domains.seen.lock().unwrap().iter() {
        assert_eq!((seen.turn, &seen.sight.cname), (7, &Looked::Unknown("this host has no resolvers".into())));
    }
}
