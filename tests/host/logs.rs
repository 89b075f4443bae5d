//! What a tenant and an operator see of a running instance, and what a stranger does not.

use std::time::Duration;

use crate::machine::Machine;

#[test]
fn logs_status_and_help_tell_what_they_should_and_no_more() {
    let machine = Machine::new("logs", &[]);
    let ann = machine.tenant("ann", "my-app");
    let (_, namespace) = ann.plant();

    let logs = ann.shell(&["logs", "web", "--lines", "400"]).ok();
    assert!(logs.contains("systemd") && logs.contains("web.service"), "{logs}");
    let json = ann.shell(&["logs", "web", "--lines", "5", "--json"]).ok();
    let times: Vec<u64> = json
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["at"].as_u64().expect("a time"))
        .collect();
    assert_eq!(times.len(), 5, "{json}");
    assert!(times.is_sorted(), "{times:?}");
    let follow = ann.shell_for(5, &["logs", "web", "-f"]);
    assert_eq!(follow.code, 124, "it goes on until it is ended: {}", follow.all());
    assert!(follow.out.lines().count() > 5);
    // It goes on over a restart, with what the guest says while it shuts down and while it boots.
    let line = format!("timeout 300 {} >/root/followed", ann.asks(&["logs", "web", "-f", "--lines", "1"]).join(" "));
    let mut following = machine.spawn(&["bash", "-c", &line]);
    let followed = || std::fs::read_to_string(machine.path("/root/followed")).unwrap_or_default();
    machine.wait("a first line", Duration::from_secs(20), || (!followed().is_empty()).then_some(()));
    ann.shell(&["restart", "web"]).ok();
    machine.wait("the lines of a restart", Duration::from_secs(30), || {
        let said = followed();
        let at = |part: &str| said.find(part);
        at("Stopping web.service").zip(at("Started web.service")).filter(|(stopped, started)| stopped < started)
    });
    following.kill().expect("it is ours");
    following.wait().expect("it has ended");

    // The console and the guest's own journal, in one order, with fields.
    let all = ann.shell(&["logs", "web", "--lines", "2000", "--json"]).ok();
    let lines: Vec<seed::bus::LogLine> = all.lines().map(|line| serde_json::from_str(line).expect("a line")).collect();
    assert!(lines.iter().any(|line| line.source == "console" && line.pid.is_none()), "{all}");
    let web = |line: &&seed::bus::LogLine| line.source == "systemd" && line.pid == Some(1) && line.text.contains("web.service");
    assert!(lines.iter().any(|line| web(&line)), "{all}");
    assert!(lines.iter().any(|line| line.unit.ends_with(".service") && line.pid.is_some_and(|pid| pid > 1)), "{all}");
    assert!(lines.is_sorted_by_key(|line| line.at));

    let unknown = ann.shell(&["logs", "wbe"]);
    assert_eq!(unknown.code, 3);
    assert!(unknown.err.contains("my-app/web"), "{}", unknown.err);

    // A stranger may connect, sees help and an empty world.
    let bob = machine.tenant("bob", "");
    assert_eq!(bob.shell(&["help"]).code, 0);
    assert_eq!(bob.status()["namespaces"].as_array().map(Vec::len), Some(0));
    let denied = bob.shell(&["logs", "web"]);
    assert_eq!(denied.code, 3);
    assert!(!denied.all().contains("my-app") && !denied.all().contains(&namespace), "{}", denied.all());
    assert_eq!(bob.shell(&["restart", "my-app/web"]).code, 3);
    assert_eq!(bob.shell(&["plan"]).code, 4);
    assert_eq!(bob.shell(&["invite", "new"]).code, 4);

    // Reading is public, writing is not.
    assert_eq!(ann.git(&["ls-remote", &ann.url("my-app")]).code, 0);
    let eve = machine.tenant("eve", "my-app");
    let pushed = eve.push(&[]);
    assert_ne!(pushed.code, 0);
    assert!(pushed.err.contains("another's"), "{}", pushed.err);

    // The operator, over the bus.
    assert!(machine.run(&["seed", "status"]).ok().contains("web"));
    assert!(machine.run(&["seed", "logs", "my-app/web", "--lines", "3"]).ok().lines().count() >= 3);
    let face = machine.run(&["busctl", "introspect", "farm.loom.Seed1", "/farm/loom/Seed1"]).ok();
    for name in [".Status", ".Restart", ".Push", ".Plant", ".Logs", ".ZoneChanged", ".Hypervisor"] {
        assert!(face.contains(name), "{face}");
    }
    // Others may not even ask.
    let nobody = machine.run(&["setpriv", "--reuid=65534", "--clear-groups", "seed", "status"]);
    assert_ne!(nobody.code, 0);
}
