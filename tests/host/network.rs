//! Who reaches whom.

use std::time::Duration;

use crate::machine::{Machine, Tenant};

/// Has the guest fetch a URL once its own page is up, and write what it got to its journal.
fn fetches(tenant: &Tenant, url: &str) {
    tenant.edit(
        "ExecStart=${tools}/bin/busybox httpd -f -p 80 -h /srv/www",
        &format!(
            "ExecStart=${{tools}}/bin/busybox httpd -f -p 80 -h /srv/www\n        \
             ExecStartPost=-${{tools}}/bin/busybox sh -c '${{tools}}/bin/busybox timeout 8 ${{tools}}/bin/busybox wget -O - {url} || echo no answer'"
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

    // Another namespace's address cannot be reached, though it answers from outside.
    assert_ne!(ann.namespace(), other);
    let status = ann.status();
    let address = status["namespaces"][0]["instances"][0]["ipv4"].as_str().expect("an address").to_owned();
    bob.edit("http://web/", &format!("http://{address}/"));
    bob.push(&[]).ok();
    machine.wait("the guest has tried", Duration::from_secs(90), || logs(&bob).contains("no answer").then_some(()));
    assert_eq!(machine.run(&["curl", "-s", "-m", "5", &format!("http://{address}/")]).ok().trim(), "Hello from Seed");

    // The rules are one table, and an address belongs to one tap.
    let rules = machine.run(&["nft", "list", "table", "inet", "seed"]).ok();
    assert!(rules.contains("seed0") && rules.contains("seed1"), "{rules}");
    // A port that is not exposed does not answer from outside.
    let closed = machine.run(&["curl", "-s", "-m", "3", &format!("http://{address}:9999/")]);
    assert_eq!(closed.code, 28, "dropped, not refused: {}", closed.all());
    let six = status["namespaces"][0]["instances"][0]["ipv6"].as_str().expect("an address").to_owned();
    assert_eq!(machine.run(&["curl", "-s", "-m", "5", &format!("http://[{six}]/")]).ok().trim(), "Hello from Seed");
}
