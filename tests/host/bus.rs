//! Who may ask the agent what, on a real system bus; and what the user of the doors can make root do.

use std::time::Duration;

use crate::machine::Machine;

const AGENT: [&str; 3] = ["farm.loom.Seed1", "/farm/loom/Seed1", "farm.loom.Seed1"];

fn call(machine: &Machine, user: &str, words: &[&str]) -> (bool, String) {
    let mut all = vec!["runuser", "-u", user, "--", "busctl", "--system", "--timeout=20", "call"];
    all.extend(words);
    let said = machine.run(&all);
    (said.code == 0, said.all())
}

#[test]
fn only_root_is_the_operator_and_only_the_doors_speak_for_keys() {
    let machine = Machine::new("bus", &[]);
    let ann = machine.tenant("ann", "my-app");
    let (_, namespace) = ann.plant();
    let object = format!("/farm/loom/Seed1/instance/{}_web", namespace.replace('-', "_"));
    let verbs: [&[&str]; 5] = [
        &["Status", "ss", "", ""],
        &["Plan"],
        &["NewInvite", "uts", "1", "0", "x"],
        &["ListInvites"],
        &["Restart", "ss", "", "web"],
    ];
    let key = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    for verb in verbs {
        let words = [&AGENT[..], verb].concat();
        for (user, why) in [("nobody", "Access denied"), ("seed", "only root may ask this")] {
            let (done, said) = call(&machine, user, &words);
            assert!(!done && said.contains(why), "{user} {verb:?}: {said}");
        }
    }
    // Who forgets sudo is told so.
    for words in ["seed status", "seed exec web -- id"] {
        let said = machine.run(&["runuser", "-u", "nobody", "--", "bash", "-c", words]);
        assert!(said.code == 4 && said.err.contains("only root is the operator") && said.err.contains("sudo"), "{}", said.all());
    }
    // Nor is what everybody did there for all to read.
    let read = machine.run(&["runuser", "-u", "seed", "--", "bash", "-c", "cat /var/lib/seed/audit/*"]);
    assert!(read.code != 0 && read.out.is_empty(), "{}", read.all());
    // The doors speak for a key, nobody else does.
    let for_key = [&AGENT[..], &["Status", "ss", key, ""]].concat();
    assert!(call(&machine, "seed", &for_key).0 && !call(&machine, "nobody", &for_key).0);
    assert!(call(&machine, "seed", &[&AGENT[..], &["Zone"]].concat()).0);
    // Objects of instances, the name of the agent, its properties.
    let restart = ["farm.loom.Seed1", object.as_str(), "farm.loom.Seed1.Instance", "Restart"];
    let set = ["farm.loom.Seed1", AGENT[1], "org.freedesktop.DBus.Properties", "Set", "ssv", AGENT[2], "Domain", "s", "evil"];
    let own = ["org.freedesktop.DBus", "/", "org.freedesktop.DBus", "RequestName", "su", "farm.loom.Seed1", "2"];
    for words in [&restart[..], &set, &own] {
        for user in ["nobody", "seed"] {
            let (done, said) = call(&machine, user, words);
            assert!(!done && said.contains("Access denied"), "{user} {words:?}: {said}");
        }
    }
    assert!(call(&machine, "root", &restart).0, "root may");
}

/// The repositories are the doors' to write. A door that was taken over puts links and pipes into them.
#[test]
fn a_repository_leads_root_nowhere() {
    let machine = Machine::new("leads", &[]);
    let ann = machine.tenant("ann", "my-app");
    ann.push(&[]).ok();
    let repository = "/var/lib/seed/repos/my-app.git";
    let commit = ann.git(&["rev-parse", "HEAD"]).ok();
    let key = machine.run(&["ssh-keygen", "-lf", "/root/ann/key.pub"]).ok();
    let key = key.split_whitespace().nth(1).expect("a fingerprint").to_owned();
    let zeros = "0".repeat(40);
    let push = ["Push", "ssssss", &key, "my-app", "refs/heads/main", &zeros, commit.trim(), "deploy"];
    let ask = || call(&machine, "seed", &[&AGENT[..], &push].concat());
    let door = |words: &[&str]| machine.run(&[&["runuser", "-u", "seed", "--"], words].concat()).ok();
    assert!(ask().0, "{}", ask().1);

    let head = format!("{repository}/HEAD");
    machine.write("/root/secret", "ref: refs/heads/TOPSECRET\n");
    machine.run(&["chmod", "600", "/root/secret"]).ok();
    for target in ["/root/secret", "/dev/zero"] {
        door(&["ln", "-sf", target, &head]);
        let (done, said) = ask();
        assert!(!done && !said.contains("TOPSECRET"), "{said}");
    }
    // A whole repository of root's.
    machine.run(&["cp", "-a", repository, "/root/mine.git"]).ok();
    machine.run(&["chown", "-R", "root", "/root/mine.git"]).ok();
    door(&["mv", repository, "/var/lib/seed/repos/aside"]);
    door(&["ln", "-s", "/root/mine.git", repository]);
    assert!(!ask().0);
    door(&["rm", repository]);
    door(&["mv", "/var/lib/seed/repos/aside", repository]);
    // A pipe that nobody writes to: the agent answers others meanwhile.
    door(&["rm", &head]);
    door(&["mkfifo", &head]);
    let mut asking = machine.spawn(&[&["runuser", "-u", "seed", "--", "busctl", "call"], &AGENT[..], &push].concat());
    std::thread::sleep(Duration::from_millis(500));
    machine.run(&["timeout", "3", "seed", "status"]).ok();
    // It may have ended by itself.
    drop((asking.kill(), asking.wait()));
}
