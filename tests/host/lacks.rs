//! What a host can lack, and what a guest can take too much of: each has one clear error, and what ran goes on.

use std::time::Duration;

use crate::machine::Machine;

#[test]
fn a_host_without_room_or_without_nix_says_so_and_what_ran_goes_on() {
    // A quota would say it first.
    let machine = Machine::new("lacks", &["[quota]", "volumes = \"100Ti\""]);
    let ann = machine.tenant("ann", "my-app");
    let (_, namespace) = ann.plant();
    let unit = format!("seed-vm@{namespace}-web.service");

    // More than any disk has.
    ann.edit("storage.data =", "storage.big = { size = \"12Ti\"; };\n          storage.data =");
    let text = ann.push(&[]).all();
    assert!(text.contains("big") && text.contains("free"), "{text}");
    assert!(text.contains("previous version"), "{text}");
    assert_eq!(ann.page("web"), "Hello from Seed");
    ann.edit("storage.big = { size = \"12Ti\"; };\n          ", "");

    // Without nix nothing new can be deployed; the agent says so when it starts, and to whoever pushes.
    machine.run(&["mv", "/usr/bin/nix", "/usr/bin/nix.away"]).ok();
    machine.run(&["systemctl", "restart", "seed-agent.service"]).ok();
    assert!(machine.run(&["journalctl", "-u", "seed-agent", "--no-pager"]).ok().contains("there is no nix"));
    ann.edit("Hello from Seed", "Never seen");
    let text = ann.push(&[]).all();
    assert!(text.contains("this host could not do it"), "{text}");
    assert_eq!(ann.page("web"), "Hello from Seed");
    assert_eq!(machine.property(&unit, "ActiveState"), "active");

    // A port that is taken: systemd says which.
    machine.run(&["systemctl", "stop", "seed-serve.socket", "seed-serve.service"]).ok();
    machine.run(&["systemd-run", "--quiet", "--unit=squatter", "busybox", "httpd", "-f", "-p", "2222"]).ok();
    std::thread::sleep(Duration::from_secs(1));
    assert_ne!(machine.run(&["systemctl", "start", "seed-serve.socket"]).code, 0);
    let said = machine.run(&["journalctl", "--no-pager", "-u", "seed-serve.socket"]).ok();
    assert!(said.contains("Address already in use"), "{said}");
    machine.run(&["systemctl", "stop", "squatter.service"]).ok();
    machine.run(&["systemctl", "start", "seed-serve.socket"]).ok();
    assert_eq!(ann.state("web"), "running");
}

#[test]
fn a_guest_that_floods_its_log_fills_no_more_than_its_share() {
    let machine = Machine::new("flood", &["[logs]", "max_per_instance = \"16Mi\""]);
    let ann = machine.tenant("ann", "my-app");
    ann.edit(
        "[Service]\n",
        "[Service]\n        LogRateLimitIntervalSec=0\n        \
         ExecStartPost=${tools}/bin/busybox sh -c '${tools}/bin/busybox yes this guest talks too much & ${tools}/bin/busybox yes console >/dev/ttyS0 &'\n",
    );
    let (_, namespace) = ann.plant();
    std::thread::sleep(Duration::from_secs(30));
    let size = machine.run(&["du", "-sm", &format!("/var/lib/seed/log/{namespace}/web")]).ok();
    let mib: u64 = size.split_whitespace().next().and_then(|mib| mib.parse().ok()).expect("du");
    assert!((1..=24).contains(&mib), "{size}");
    let kept = machine.run(&["journalctl", "--no-pager", "-q", "-u", &format!("seed-vm@{namespace}-web")]).ok().lines().count();
    assert!(kept < 40_000, "{kept} lines of console");
    // Its log can still be read, and it still answers.
    let logs = ann.shell(&["logs", "web", "--lines", "50"]).ok();
    assert_eq!(logs.lines().count(), 50, "{logs}");
    assert_eq!(ann.page("web"), "Hello from Seed");
}
