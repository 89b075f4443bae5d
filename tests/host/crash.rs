//! What is killed comes back, and what is not killed does not notice.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use crate::machine::Machine;

const BOOT: Duration = Duration::from_secs(150);
const BARE: &str = "/var/lib/seed/repos/my-app.git";

#[test]
fn a_killed_process_comes_back_and_the_rest_does_not_notice() {
    let machine = Machine::new("kill", &[]);
    let ann = machine.tenant("ann", "my-app");
    let (_, namespace) = ann.plant();
    let unit = |kind: &str| format!("seed-{kind}@{namespace}-web.service");
    let pid = machine.main_pid(&unit("vm"));

    // The agent and the doors: what runs does not notice.
    for own in ["seed-agent.service", "seed-serve.service"] {
        let before = machine.main_pid(own);
        machine.run(&["kill", "-KILL", &before]).ok();
        machine.wait("it is back", Duration::from_secs(20), || {
            let now = machine.main_pid(own);
            (now != before && now != "0" && machine.property(own, "ActiveState") == "active").then_some(())
        });
        assert_eq!(machine.main_pid(&unit("vm")), pid);
        assert_eq!(ann.page("web"), "Hello from Seed");
    }
    machine.wait("nothing to do", Duration::from_secs(20), || {
        let plan = machine.run(&["seed", "plan", "--json"]).out;
        let plan: serde_json::Value = serde_json::from_str(&plan).ok()?;
        (plan["steps"].as_array()?.is_empty()).then_some(())
    });
    assert_eq!(machine.main_pid(&unit("vm")), pid);

    // The virtual machine and each of its helpers: the instance comes back.
    for kind in ["vm", "store", "tpm", "vsock"] {
        let vm = machine.main_pid(&unit("vm"));
        let victim = machine.main_pid(&unit(kind));
        assert_ne!(victim, "0", "{kind}");
        machine.run(&["kill", "-KILL", &victim]).ok();
        machine.wait(kind, BOOT, || {
            let back = machine.main_pid(&unit("vm"));
            (back != vm && back != "0" && machine.property(&unit("vm"), "ActiveState") == "active").then_some(())
        });
        machine.wait("the page", BOOT, || (ann.page("web") == "Hello from Seed").then_some(()));
    }
}

#[test]
fn an_agent_killed_in_the_middle_of_a_deploy_finishes_it() {
    let machine = Machine::new("middle", &[]);
    let ann = machine.tenant("ann", "my-app");
    ann.push(&[]).ok();
    let code = machine.invite();
    let mut planting = machine.spawn(&ann.asks(&["plant", "silo:my-app", &code]));
    for wait in [500, 900, 1300, 1700, 2500, 4000] {
        std::thread::sleep(Duration::from_millis(wait));
        let pid = machine.main_pid("seed-agent.service");
        if pid != "0" {
            machine.run(&["kill", "-KILL", &pid]).ok();
        }
    }
    // The client was cut off; it may say so as it likes.
    let _ended = planting.kill();
    planting.wait().expect("it ends");
    machine.wait("the page", BOOT, || {
        let up = machine.property("seed-agent.service", "ActiveState") == "active";
        (up && !ann.status()["namespaces"].as_array()?.is_empty() && ann.page("web") == "Hello from Seed").then_some(())
    });
}

#[test]
fn everything_is_back_after_a_reboot_and_after_a_pulled_plug() {
    let machine = Machine::new("reboot", &[]);
    let ann = machine.tenant("ann", "my-app");
    ann.plant();
    let before = ann.status();
    for pull_the_plug in [false, true] {
        if pull_the_plug {
            // The deploy of what was pushed goes on, although that is only where somebody has waited for it to be.
            ann.edit("Hello from Seed", "Hello again");
            ann.push(&["-o", "async"]).ok();
            machine.pull_the_plug();
            lose_the_last_push(&machine.disk(BARE));
            machine.power_on();
        } else {
            machine.reboot();
        }
        let page = if pull_the_plug { "Hello again" } else { "Hello from Seed" };
        // The old version has to boot before it hears that it is to stop.
        machine.wait("the page", 3 * BOOT, || {
            let up = machine.property("seed-agent.service", "ActiveState") == "active";
            (up && ann.shell(&["status"]).code == 0 && ann.page("web") == page).then_some(())
        });
        let after = ann.status();
        let what = |status: &serde_json::Value| {
            let web = &status["namespaces"][0]["instances"][0];
            (web["ipv4"].clone(), web["ipv6"].clone())
        };
        assert_eq!(what(&before), what(&after));
        let generation = |status: &serde_json::Value| status["namespaces"][0]["generation"].as_str().unwrap().to_owned();
        assert_eq!(generation(&before) != generation(&after), pull_the_plug);
    }
    let deploys = ann.shell(&["deploys", "--json"]).ok();
    assert!(!deploys.contains("failed"), "{deploys}\n{}", machine.journal());
    let pushed = ann.git(&["rev-parse", "HEAD"]).ok();
    let there = ann.git(&["ls-remote", &ann.url("my-app"), "refs/heads/main"]).ok();
    assert_eq!(there.split_whitespace().next(), Some(pushed.trim()), "{}", machine.journal());
    machine.run(&["git", "-c", "safe.directory=*", "-C", BARE, "fsck", "--strict", "--full"]).ok();
    // In its sandbox it may sync the file system.
    machine.run(&["systemctl", "restart", "seed-serve.service"]).ok();
    assert_eq!(machine.run(&["grep", "-l", "-a", "settled", "-r", BARE]).ok().lines().count(), 1, "{}", machine.journal());
    assert!(!machine.journal().contains("could not sync"));
}

/// Of the last push into a repository, what nobody has waited for is not on the disk.
fn lose_the_last_push(bare: &Path) {
    let packs = std::fs::read_dir(bare.join("objects/pack")).unwrap().flatten().map(|entry| entry.path());
    let packs: Vec<_> = packs.filter(|path| path.extension().is_some_and(|extension| extension == "pack")).collect();
    let made = |path: &PathBuf| path.metadata().unwrap().modified().unwrap();
    let newest = packs.iter().max_by_key(|path| made(path)).unwrap();
    for path in [newest.clone(), newest.with_extension("idx")] {
        std::fs::OpenOptions::new().write(true).truncate(true).open(path).unwrap();
    }
    std::fs::write(bare.join("refs/heads/main"), "").unwrap();
}

/// What people on call do by hand, and what a guest may do by itself.
#[test]
fn a_restart_by_systemctl_and_one_by_the_guest_are_restarts() {
    let machine = Machine::new("again", &[]);
    let ann = machine.tenant("ann", "my-app");
    let (_, namespace) = ann.plant();
    let unit = |kind: &str| format!("seed-{kind}@{namespace}-web.service");
    let is_up_again = |before: &str| {
        machine.wait("another guest", BOOT, || {
            let now = machine.main_pid(&unit("vm"));
            (now != before && now != "0" && machine.property(&unit("vm"), "ActiveState") == "active").then_some(())
        });
        machine.wait("the page", BOOT, || (ann.page("web") == "Hello from Seed").then_some(()));
    };

    for helper in ["vm", "tpm", "store", "vsock"] {
        let before = machine.main_pid(&unit("vm"));
        let said = machine.run(&["systemctl", "restart", &unit(helper)]);
        assert_eq!(said.code, 0, "{helper}: {}\n{}", said.all(), machine.journal());
        is_up_again(&before);
    }
    // A guest that leaves, as one that reboots does under QEMU.
    let before = machine.main_pid(&unit("vm"));
    let qemu = machine.run(&["pgrep", "-P", &before]).ok();
    machine.run(&["kill", "-TERM", qemu.trim()]).ok();
    is_up_again(&before);
}
