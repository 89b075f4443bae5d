//! Repositories and the keys to them, on a real bus with real units around the processes. Nothing here needs a guest.

use crate::machine::Machine;

#[test]
fn repositories_are_made_private_renamed_and_deleted_and_all_of_it_is_written_down() {
    let machine = Machine::new("access", &[]);
    let ann = machine.tenant("ann", "my-app");
    let bob = machine.tenant("bob", "bobs");
    let key = machine.run(&["cat", "/root/bob/key.pub"]).ok();
    ann.write(".authorized_keys", &format!("environment=\"SEED_ROLE=read\",expiry-time=\"20990101Z\" {key}nonsense\n"));
    let pushed = ann.push(&[]);
    for part in
        ["Anyone can read it", "repo visibility my-app private", "access: now SHA256:", "read, until 20990101Z", "line 2 is no key"]
    {
        assert!(pushed.all().contains(part), "no {part:?} in\n{}", pushed.all());
    }
    // A guest of the repository may look, and nothing else.
    ann.shell(&["repo", "visibility", "my-app", "private"]).ok();
    assert!(bob.shell(&["repo", "list"]).ok().contains("read"));
    bob.git(&["commit", "-q", "--allow-empty", "-m", "change"]).ok();
    let refused = bob.git(&["push", &bob.url("my-app"), "HEAD:refs/heads/x"]);
    assert!(refused.code != 0, "{}", refused.all());
    assert_eq!(bob.shell(&["repo", "delete", "my-app", "my-app"]).code, 4);
    bob.git(&["ls-remote", &bob.url("my-app")]).ok();
    // Without the role, it is not there.
    let carl = machine.tenant("carl", "carls");
    let refused = carl.git(&["ls-remote", &carl.url("my-app")]);
    assert!(refused.code != 0 && refused.all().contains("there is no repository my-app"), "{}", refused.all());

    ann.shell(&["repo", "rename", "my-app", "our-app"]).ok();
    ann.git(&["ls-remote", &ann.url("our-app")]).ok();
    assert_eq!(ann.shell(&["repo", "delete", "our-app"]).code, 2);
    ann.shell(&["repo", "delete", "our-app", "our-app"]).ok();
    assert!(!machine.path("/var/lib/seed/repos/our-app.git").exists());
    machine.run(&["systemctl", "restart", "seed-agent.service"]).ok();

    let told = machine.run(&["seed", "audit"]).ok();
    for part in
        ["create my-app", "push my-app", "repo visibility my-app private", "repo rename my-app our-app", "denied:", "127.0.0.1"]
    {
        assert!(told.contains(part), "no {part:?} in\n{told}");
    }
    let checked = machine.run(&["seed", "audit", "--verify"]).ok();
    let hash = checked.split_whitespace().last().expect("a hash").to_owned();
    let journal = machine.run(&["journalctl", "--no-pager", "-u", "seed-agent.service"]).ok();
    assert!(journal.contains(&hash), "the journal holds the checkpoint {hash}");
    // Whoever cuts off its end is found out, also when the agent has gone on from there.
    machine.run(&["bash", "-c", "sed -i '$d' /var/lib/seed/audit/*.jsonl"]).ok();
    for _ in 0..2 {
        let checked = machine.run(&["seed", "audit", "--verify"]);
        assert!(checked.code == 1 && checked.err.contains("was cut off or replaced"), "{}", checked.all());
        machine.run(&["systemctl", "restart", "seed-agent.service"]).ok();
        machine.run(&["seed", "invite", "new"]).ok();
    }
}

#[test]
fn a_quota_reaches_the_kernel_and_what_is_more_is_refused_before_anything_is_stopped() {
    let machine = Machine::new("quota", &[]);
    let ann = machine.tenant("ann", "my-app");
    let (_, namespace) = ann.plant();
    let slice = format!("seed-{}.slice", namespace.strip_prefix("s-").expect("a namespace"));
    let unit = format!("seed-vm@{namespace}-web.service");
    let pid = machine.main_pid(&unit);
    // 64 GiB for guests and a gibibyte around each of 16, which is what the configuration gives.
    assert_eq!(machine.property(&slice, "MemoryMax"), (80_u64 << 30).to_string());
    machine.run(&["seed", "quota", "set", "my-app", "instances=1", "memory=512Mi", "vcpus=1"]).ok();
    let smaller = ((1_u64 << 30) + (512 << 20)).to_string();
    machine.wait("the slice to follow", std::time::Duration::from_secs(20), || {
        (machine.property(&slice, "MemoryMax") == smaller).then_some(())
    });
    assert_eq!(machine.property(&slice, "CPUQuotaPerSecUSec"), "1s");
    ann.edit("size = \"xs\"", "size = \"s\"");
    let pushed = ann.push(&[]).all();
    assert!(pushed.contains("1Gi of memory, where it may have 512Mi") && pushed.contains("one of size xs"), "{pushed}");
    assert_eq!(machine.main_pid(&unit), pid, "what ran was not touched");
    assert!(ann.shell(&["quota"]).ok().contains("(set by the operator)"));
}
