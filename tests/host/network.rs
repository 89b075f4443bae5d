//! Who reaches whom.

use std::time::Duration;

use crate::machine::{Machine, Tenant};

/// Has the guest fetch a URL every two seconds, and write what it got to its journal.
fn fetches(tenant: &Tenant, url: &str) {
    tenant.edit(
        "ExecStart=${tools}/bin/busybox httpd -f -p 80 -h /srv/www",
        &format!(
            "ExecStart=${{tools}}/bin/busybox httpd -f -p 80 -h /srv/www\n        \
             ExecStartPost=-${{tools}}/bin/busybox wget -T 4 -O - {url}"
        ),
    );
}

#[test]
fn namespaces_are_apart_and_members_reach_each_other_by_name() {
    let machine = Machine::new("net", &[]);
    let ann = machine.tenant("ann", "one");
    ann.plant();
    let bob = machine.tenant("bob", "two");
    fetches(&bob, "http://web/");
    let (_, other) = bob.plant();
    assert_eq!(bob.page("web"), "Hello from Seed");
    // Its own name resolves inside, and is reached.
    let logs = |tenant: &Tenant| tenant.shell(&["logs", "web", "--lines", "500"]).ok();
    machine
        .wait("the guest reaches its own name", Duration::from_secs(60), || logs(&bob).contains("Hello from Seed").then_some(()));

    // Another namespace's name resolves, and cannot be reached.
    let first = ann.namespace();
    assert_ne!(first, other);
    bob.edit("http://web/", &format!("http://web.{first}.seed.example/"));
    bob.push(&[]).ok();
    machine.wait("the guest has tried", Duration::from_secs(90), || {
        let said = logs(&bob);
        (said.contains("download timed out") || said.contains("can't connect")).then_some(())
    });
    // From outside both are there.
    assert_eq!(ann.page("web"), "Hello from Seed");

    // The rules are one table, and an address belongs to one tap.
    let rules = machine.run(&["nft", "list", "table", "inet", "seed"]).ok();
    assert!(rules.contains("seed0") && rules.contains("seed1"), "{rules}");
    // A port that is not exposed does not answer from outside.
    let status = ann.status();
    let address = status["namespaces"][0]["instances"][0]["ipv4"].as_str().expect("an address").to_owned();
    let closed = machine.run(&["curl", "-s", "-m", "3", &format!("http://{address}:9999/")]);
    assert_eq!(closed.code, 28, "dropped, not refused: {}", closed.all());
    let six = status["namespaces"][0]["instances"][0]["ipv6"].as_str().expect("an address").to_owned();
    assert_eq!(machine.run(&["curl", "-s", "-m", "5", &format!("http://[{six}]/")]).ok().trim(), "Hello from Seed");
}
