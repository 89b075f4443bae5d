//! What a tenant can get wrong, at each stage; and what ran goes on running.

use crate::machine::{Machine, Tenant};

/// Pushes the flake with one piece replaced; the push is accepted, the deploy fails at `stage` and says `parts`.
#[track_caller]
fn refused(ann: &Tenant, stage: &str, from: &str, to: &str, parts: &[&str]) {
    ann.edit(from, to);
    let pushed = ann.push(&[]);
    let text = pushed.all();
    assert_eq!(pushed.code, 0, "the push itself is valid:\n{text}");
    let failed = format!("failed at {stage}");
    for part in parts.iter().copied().chain([failed.as_str()]) {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    ann.edit(to, from);
}

#[test]
fn a_broken_flake_fails_at_its_stage_and_the_page_stays() {
    let machine = Machine::new("broken", &["eval_memory = \"1Gi\""]);
    machine.run(&["sed", "-i", "s/eval_timeout_secs = 60/eval_timeout_secs = 15/", "/etc/seed/seed.toml"]).ok();
    machine.run(&["systemctl", "restart", "seed-agent.service"]).ok();
    let ann = machine.tenant("ann", "my-app");
    let (_, namespace) = ann.plant();
    let unit = format!("seed-vm@{namespace}-web.service");
    let pid = machine.main_pid(&unit);

    let eval = |from: &str, to: &str, parts: &[&str]| refused(&ann, "eval", from, to, parts);
    eval("seeds.web = {", "seeds.web = { syntax error", &["syntax error", "flake.nix"]);
    eval("seeds.web = {", "sheds.web = {", &["has no `seeds`"]);
    eval("      seeds.web = {", "      seeds = 7; other.web = {", &["`seeds` is a"]);
    eval("name = \"web\";\n          system", "name = \"api\";\n          system", &["seeds.web.meta.name", "differs"]);
    eval("seeds.web = {", "seeds.\"-web\" = {", &["no DNS label"]);
    eval("version = 1", "version = 9", &["version: is 9, which this host does not know"]);
    eval("size = \"64Mi\"", "size = \"0Mi\"", &["storage.data.size", "out of range"]);
    // A zebibyte, which is more than 64 bits count.
    eval("size = \"64Mi\"", "size = \"1073741824Ti\"", &["storage.data.size", "out of range: write 8Mi to 16Ti"]);
    refused(&ann, "eval", "size = \"64Mi\"", "size = \"32Mi\"", &["cannot shrink", "64Mi"]);
    eval(
        "expose.http = { port = 80; protocol = \"http\"; };",
        "expose.http.port = 80; expose.other.port = 80;",
        &["port 80 is exposed as http already"],
    );
    eval("version = 1;", "version = (let f = x: f (x + 1); in f 1);", &["recurse"]);
    // Ten thousand million additions: no recursion, little memory, no end in sight.
    let endless =
        "version = (let l = builtins.genList (x: x) 100000; in builtins.foldl' (a: _: builtins.foldl' (b: _: b + 1) a l) 0 l);";
    eval("version = 1;", endless, &["did not end in 15 s", "recursion"]);
    eval("version = 1;", "version = builtins.length (builtins.genList (x: x) 2000000000);", &["more than 1Gi of memory"]);
    refused(&ann, "build", "$b mkdir -p $out/layer", "echo the last words; exit 3; $b mkdir -p $out/layer", &["the last words"]);

    assert_eq!(machine.main_pid(&unit), pid, "what ran was not touched");
    assert_eq!(ann.page("web"), "Hello from Seed");
}

#[test]
fn a_guest_that_does_not_come_up_is_reported_and_the_previous_version_runs_again() {
    let machine = Machine::new("panic", &[]);
    let ann = machine.tenant("ann", "my-app");
    ann.plant();
    // The init of the next version ends: the guest's kernel panics.
    refused(
        &ann,
        "boot",
        "exec $b switch_root",
        "echo these are the last words; exit 1; exec $b switch_root",
        &["web:", "these are the last words", "previous version"],
    );
    assert_eq!(ann.page("web"), "Hello from Seed");
    assert_eq!(ann.state("web"), "running");
}

#[test]
fn a_guest_that_never_gets_ready_is_given_up_with_what_failed_in_it_and_the_previous_version_runs() {
    let machine = Machine::new("never", &[]);
    machine.run(&["sed", "-i", "s/boot_timeout_secs = 180/boot_timeout_secs = 60/", "/etc/seed/seed.toml"]).ok();
    machine.run(&["systemctl", "restart", "seed-agent.service"]).ok();
    let ann = machine.tenant("ann", "my-app");
    let (_, namespace) = ann.plant();
    // It waits for one that says why it fails, and then for ever.
    let broken = "[Service]\n        Type=oneshot\n        TimeoutStartSec=infinity\n        \
                  ExecStartPre=-${tools}/bin/busybox systemctl start broken.service\n        \
                  ExecStart=${tools}/bin/busybox sleep infinity\n        #";
    ann.edit("[Service]\n        EnvironmentFile", &format!("{broken}EnvironmentFile"));
    ann.edit("        ExecStart=${tools}/bin/busybox httpd", "        # ExecStart=${tools}/bin/busybox httpd");
    ann.edit("-${tools}/bin/busybox systemctl", "-/usr/bin/systemctl");
    ann.edit(
        "$b ln -s ../web.service",
        "$b printf '[Service]\\nType=oneshot\\nExecStart=%s/bin/busybox sh -c \"echo the database is gone; exit 3\"\\n' ${tools} \
         >$out/layer/etc/systemd/system/broken.service\n        $b ln -s ../web.service",
    );
    let pushed = ann.push(&[]);
    let text = pushed.all();
    for part in [
        "did not get ready in time",
        "broken.service failed in the guest",
        "the database is gone",
        "starting the previous version again",
        "failed at boot",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    assert_eq!((ann.page("web").as_str(), ann.state("web").as_str()), ("Hello from Seed", "running"));
    assert_eq!(machine.property(&format!("seed-vm@{namespace}-web.service"), "ActiveState"), "active");
}

#[test]
fn a_wrong_configuration_is_refused_whole_with_its_lines() {
    let machine = Machine::new("config", &[]);
    machine.write(
        "/tmp/bad.toml",
        "domain = \"-x\"\n[hypervisor]\nkind = \"xen\"\nboot_timeout_sec = 5\n[network]\npool4 = \"10.0.0.0/31\"\n",
    );
    let said = machine.run(&["seed", "check-config", "/tmp/bad.toml"]);
    let text = said.all();
    assert_ne!(said.code, 0);
    for part in ["domain", "kind", "boot_timeout_secs", "pool4", "3", "4", "6"] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
}
