//! What a tenant can get wrong, at each stage; and what ran goes on running.

use crate::machine::{Machine, Tenant};

/// Pushes the flake with one piece replaced; the push is accepted, the deploy says `parts`.
fn refused(ann: &Tenant, from: &str, to: &str, parts: &[&str]) {
    ann.edit(from, to);
    let pushed = ann.push(&[]);
    let text = pushed.all();
    assert_eq!(pushed.code, 0, "the push itself is valid:\n{text}");
    for part in parts {
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

    refused(&ann, "seeds.web = {", "seeds.web = { syntax error", &["eval", "error:", "flake.nix"]);
    refused(&ann, "seeds.web = {", "sheds.web = {", &["seeds"]);
    refused(&ann, "      seeds.web = {", "      seeds = 7; other.web = {", &["seeds"]);
    refused(&ann, "name = \"web\";\n          system", "name = \"api\";\n          system", &["seeds.web.meta.name", "differs"]);
    refused(&ann, "seeds.web = {", "seeds.\"-web\" = {", &["no DNS label"]);
    refused(&ann, "version = 1", "version = 9", &["version", "9"]);
    refused(&ann, "size = \"64Mi\"", "size = \"0Mi\"", &["storage.data.size", "out of range"]);
    refused(&ann, "size = \"64Mi\"", "size = \"1048576Ti\"", &["storage.data.size"]);
    refused(&ann, "size = \"64Mi\"", "size = \"32Mi\"", &["cannot shrink", "64Mi"]);
    refused(
        &ann,
        "expose.http = { port = 80; protocol = \"http\"; };",
        "expose.http.port = 80; expose.other.port = 80;",
        &["port 80 is exposed as http already"],
    );
    refused(&ann, "version = 1;", "version = (let f = x: f (x + 1); in f 1);", &["eval"]);
    // Ten thousand million additions: no recursion, little memory, no end in sight.
    let endless =
        "version = (let l = builtins.genList (x: x) 100000; in builtins.foldl' (a: _: builtins.foldl' (b: _: b + 1) a l) 0 l);";
    refused(&ann, "version = 1;", endless, &["did not end in 15 s", "recursion"]);
    refused(&ann, "version = 1;", "version = builtins.length (builtins.genList (x: x) 2000000000);", &["eval"]);
    refused(&ann, "$b mkdir -p $out/layer", "echo the last words; exit 3; $b mkdir -p $out/layer", &["build", "the last words"]);

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
        "exec $b switch_root",
        "echo these are the last words; exit 1; exec $b switch_root",
        &["boot", "web:", "these are the last words", "previous version"],
    );
    assert_eq!(ann.page("web"), "Hello from Seed");
    assert_eq!(ann.state("web"), "running");
}

#[test]
fn a_guest_that_never_gets_ready_is_given_up() {
    let machine = Machine::new("never", &[]);
    machine.run(&["sed", "-i", "s/boot_timeout_secs = 180/boot_timeout_secs = 40/", "/etc/seed/seed.toml"]).ok();
    machine.run(&["systemctl", "restart", "seed-agent.service"]).ok();
    let ann = machine.tenant("ann", "my-app");
    ann.edit("ExecStart=${tools}", "Type=oneshot\n        TimeoutStartSec=infinity\n        ExecStart=${tools}");
    ann.push(&[]).ok();
    let code = machine.invite();
    let planted = ann.shell(&["plant", "silo:my-app", &code]);
    let text = planted.all();
    assert_eq!(planted.code, 1, "{text}");
    assert!(text.contains("did not get ready in time"), "{text}");
    assert_eq!(ann.state("web"), "");
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
