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
    let machine = Machine::new("net", &["[dns]", "dnssec = true"]);
    machine.run(&["sed", "-i", "/^pool6/a public_addresses = [\"192.0.2.1\"]", "/etc/seed/seed.toml"]).ok();
    machine.run(&["systemctl", "restart", "seed-agent.service", "seed-serve.service"]).ok();
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

    // What is to be said where the domain is registered, and what the zone is signed with.
    let delegation = machine.run(&["seed", "dns"]).ok();
    let ds = delegation.lines().find_map(|line| line.split_once(" DS ")).expect("a DS record").1.trim().to_owned();
    let keys = machine.run(&["dig", "+multiline", "+noall", "+answer", "@127.0.0.1", "DNSKEY", "seed.example"]).ok();
    let tag = ds.split(' ').next().expect("a key tag");
    assert!(keys.contains(&format!("key id = {tag}")), "{delegation}\n{keys}");
    let signed = machine.run(&["dig", "+dnssec", "@127.0.0.1", "A", "seed.example"]).ok();
    assert!(signed.contains("RRSIG"), "{signed}");

    // Another namespace's address cannot be reached, though it answers from outside.
    assert_ne!(ann.namespace(), other);
    let status = ann.status();
    let address = status["namespaces"][0]["instances"][0]["ipv4"].as_str().expect("an address").to_owned();
    bob.edit("http://web/", &format!("http://{address}/"));
    bob.push(&[]).ok();
    machine.wait("the guest has tried", Duration::from_secs(90), || logs(&bob).contains("no answer").then_some(()));

    // The rules are one table, and an address belongs to one tap.
    let rules = machine.run(&["nft", "list", "table", "inet", "seed"]).ok();
    assert!(rules.contains("seed0") && rules.contains("seed1"), "{rules}");
    // From outside, over another link: what is exposed answers, on both families; what is not does not even refuse.
    let six = status["namespaces"][0]["instances"][0]["ipv6"].as_str().expect("an address").to_owned();
    machine.make_outside();
    let outside = |url: &str| machine.run(&["ip", "netns", "exec", "outside", "curl", "-s", "-m", "5", url]);
    assert_eq!(outside(&format!("http://{address}/")).ok().trim(), "Hello from Seed");
    assert_eq!(outside(&format!("http://[{six}]/")).ok().trim(), "Hello from Seed");
    let closed = outside(&format!("http://{address}:9999/"));
    assert_eq!(closed.code, 28, "dropped, not refused: {}", closed.all());

    // A port of the host's public address leads to the first who claimed it, if the operator lets them.
    let claim = "ipv4 = {\n        enable = true;\n        routes.page = { port = 8080; protocol = \"tcp\"; instance = \"web\"; targetPort = 80; };\n      };\n";
    ann.edit("      seeds.web = {", &format!("      {claim}      seeds.web = {{"));
    let refused = ann.push(&[]).all();
    assert!(refused.contains("routes: one public port wanted") && refused.contains("failed at eval"), "{refused}");
    assert_ne!(outside("http://192.0.2.1:8080/").code, 0);
    for repo in ["one", "two"] {
        machine.run(&["seed", "quota", "set", repo, "routes=1"]).ok();
    }
    let said = ann.push(&[]).ok();
    assert_eq!(outside("http://192.0.2.1:8080/").ok().trim(), "Hello from Seed", "{said}");
    bob.edit("      seeds.web = {", &format!("      {claim}      seeds.web = {{"));
    let clash = bob.push(&[]).all();
    assert!(clash.contains("ipv4.routes.page: public port 8080/tcp") && clash.contains("taken by another repository"), "{clash}");
    assert!(clash.contains("failed at eval"), "{clash}");
    assert_eq!(outside("http://192.0.2.1:8080/").ok().trim(), "Hello from Seed");
}
