//! What a host can lack, and what a guest can take too much of: each has one clear error, and what ran goes on.

use std::time::Duration;

use crate::machine::Machine;

#[test]
fn a_host_without_room_or_without_nix_says_so_and_what_ran_goes_on() {
    // A quota would say it first.
    let machine = Machine::new("lacks", &["[quota]", "volumes = \"100Ti\""]);
    // Which hypervisor there is, the agent finds out.
    machine.run(&["sed", "-i", "/^kind = /d; /^acceleration = /d", "/etc/seed/seed.toml"]).ok();
    machine.run(&["systemctl", "restart", "seed-agent.service"]).ok();
    let ann = machine.tenant("ann", "my-app");
    ann.edit("seeds.web = {", crate::push::TWO);
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

    // What the virtual machine cannot do without: it is not started, and others go on.
    let web = machine.main_pid(&unit);
    let api = machine.main_pid(&format!("seed-vm@{namespace}-api.service"));
    machine.run(&["mv", "/usr/bin/swtpm", "/usr/bin/swtpm.away"]).ok();
    let said = ann.shell(&["restart", "web"]);
    assert!(said.code == 1 && said.all().contains("a helper of the virtual machine did not start"), "{}", said.all());
    let tree = machine.run(&["pgrep", "-fc", &format!("qemu-system.*{namespace}/web/")]).out;
    assert_eq!(tree.trim(), "0", "no virtual machine runs without its TPM");
    assert_eq!(machine.main_pid(&format!("seed-vm@{namespace}-api.service")), api);
    machine.run(&["mv", "/usr/bin/swtpm.away", "/usr/bin/swtpm"]).ok();
    let said = ann.shell(&["restart", "web"]);
    assert_eq!(said.code, 0, "{}", said.all());
    assert_ne!(machine.main_pid(&unit), web);
    assert_eq!(ann.page("web"), "Hello from Seed");

    // A hypervisor that this host cannot run: said once, and not tried again each second.
    assert!(machine.run(&["journalctl", "-u", "seed-agent", "--no-pager"]).ok().contains("qemu, emulating"));
    machine.run(&["cp", "/etc/seed/seed.toml", "/etc/seed/good"]).ok();
    machine.run(&["sed", "-i", "s/^\\[hypervisor\\]/&\\nkind = \"cloud-hypervisor\"/", "/etc/seed/seed.toml"]).ok();
    machine.run(&["systemctl", "restart", "seed-agent.service"]);
    machine.wait("the agent gives up", Duration::from_secs(20), || {
        (machine.property("seed-agent.service", "ActiveState") == "failed").then_some(())
    });
    assert_eq!(machine.property("seed-agent.service", "ExecMainStatus"), "78");
    assert!(machine.run(&["journalctl", "-u", "seed-agent", "--no-pager"]).ok().contains("no hypervisor can be used"));
    assert_eq!(ann.shell(&["status", "--json"]).code, 5);
    assert_eq!(machine.property(&unit, "ActiveState"), "active", "what runs goes on");
    machine.run(&["mv", "/etc/seed/good", "/etc/seed/seed.toml"]).ok();
    machine.run(&["systemctl", "reset-failed", "seed-agent.service"]).ok();
    machine.run(&["systemctl", "start", "seed-agent.service"]).ok();

    // A port that is taken: systemd says which, the doors that are open are open, and say which is not.
    machine.run(&["systemctl", "stop", "seed-serve-dns-tcp.socket", "seed-serve.service"]).ok();
    machine.run(&["systemd-run", "--quiet", "--unit=resolver", "busybox", "httpd", "-f", "-p", "127.0.0.53:53"]).ok();
    std::thread::sleep(Duration::from_secs(1));
    assert_ne!(machine.run(&["systemctl", "start", "seed-serve-dns-tcp.socket"]).code, 0);
    machine.run(&["systemctl", "start", "seed-serve.service"]).ok();
    assert_eq!(machine.property("seed-serve.service", "StatusText"), "open, but not: seed-serve-dns-tcp.socket");
    assert_eq!(ann.page("web"), "Hello from Seed");
    machine.run(&["systemctl", "stop", "resolver.service", "seed-serve.service"]).ok();
    machine.run(&["systemctl", "start", "seed-serve-dns-tcp.socket", "seed-serve.service"]).ok();
    assert_eq!(machine.property("seed-serve.service", "StatusText"), "all doors are open");
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
    let began = std::time::Instant::now();
    let (_, namespace) = ann.plant();
    let size = || {
        let size = machine.run(&["du", "-sm", &format!("/var/lib/seed/log/{namespace}/web")]).ok();
        size.split_whitespace().next().and_then(|mib| mib.parse::<u64>().ok()).expect("du")
    };
    // It has come to its share, and goes on talking.
    machine.wait("12 MiB of journal", Duration::from_secs(180), || (size() >= 12).then_some(()));
    std::thread::sleep(Duration::from_secs(20));
    assert!((8..=24).contains(&size()), "{} MiB", size());
    let allowed = 30_000 * (usize::try_from(began.elapsed().as_secs()).unwrap_or_default() / 30 + 2);
    let kept = machine.run(&["journalctl", "--no-pager", "-q", "-u", &format!("seed-vm@{namespace}-web")]).ok().lines().count();
    // 5,000 in 30 s is what the unit says; with room on the disk, journald takes up to six times as many.
    assert!(kept < allowed, "{kept} lines of console, where there may be {allowed}");
    // Its log can still be read, and it still answers.
    let logs = ann.shell(&["logs", "web", "--lines", "50"]).ok();
    assert_eq!(logs.lines().count(), 50, "{logs}");
    assert_eq!(ann.page("web"), "Hello from Seed");
}

#[test]
fn a_guest_that_does_not_heed_its_power_button_is_ended_when_its_time_is_up() {
    let machine = Machine::new("button", &[]);
    machine.run(&["sed", "-i", "s/^boot_timeout_secs.*/&\\nstop_timeout_secs = 5/", "/etc/seed/seed.toml"]).ok();
    machine.run(&["systemctl", "restart", "seed-agent.service"]).ok();
    let ann = machine.tenant("ann", "my-app");
    ann.edit(
        "$b ln -s ../web.service",
        "$b mkdir -p $out/layer/etc/systemd/logind.conf.d\n        \
         $b printf '[Login]\\nHandlePowerKey=ignore\\n' >$out/layer/etc/systemd/logind.conf.d/button.conf\n        \
         $b ln -s ../web.service",
    );
    let (_, namespace) = ann.plant();
    let unit = format!("seed-vm@{namespace}-web.service");
    let began = std::time::Instant::now();
    machine.run(&["systemctl", "stop", &unit]).ok();
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(4), "it was given its time: {took:?}");
    assert_eq!(machine.run(&["pgrep", "-fc", &format!("qemu-system.*{namespace}/web/")]).out.trim(), "0");
    let state = machine.property(&unit, "ActiveState");
    assert!(matches!(state.as_str(), "inactive" | "failed"), "{state}");
    // It is heard of, and it comes back when it is asked to.
    let log = machine.run(&["journalctl", "--no-pager", "-u", &unit]).ok();
    assert!(log.contains("timed out. Killing"), "{log}");
    machine.run(&["systemctl", "reset-failed", &unit]);
    assert_eq!(ann.shell(&["start", "web"]).code, 0);
    assert_eq!(ann.page("web"), "Hello from Seed");
}
