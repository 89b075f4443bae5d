//! Inside of a real guest: commands, copies and ports, by OpenSSH.

use crate::machine::Machine;

#[test]
fn a_tenant_gets_into_a_guest_and_nobody_else_does() {
    let machine = Machine::new("enter", &[]);
    let ann = machine.tenant("ann", "my-app");
    let (_, namespace) = ann.plant();
    // It was not asked about before: a boot has kept one CPU busy, and this machine has no more than it has.
    let busy = ann.status()["namespaces"][0]["instances"][0]["cpuMilli"].as_u64().expect("a number");
    let cpus: u64 = machine.run(&["nproc"]).ok().trim().parse().expect("a number");
    assert!(busy <= cpus * 1000 + 500, "{busy} thousandths of a CPU, of {cpus} CPUs");
    let exec = |line: &str| ann.shell(&["exec", "web", "--", line]);
    // At the first try: the guest is ready, and its sshd waits for what it needs.
    let ran = exec("hostname; id -u; echo oops >&2; exit 42");
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (42, "web\n0\n", "oops\n"));
    // What is served is what is there, and 100 MB come out of an emulated machine.
    assert_eq!(exec("cat /srv/www/index.html").ok(), "Hello from Seed\n");
    assert_eq!(exec("head -c 100000000 /dev/zero").ok().len(), 100_000_000);
    // It has a TPM, and of the host's store its own closure and nothing else, which it cannot write to.
    exec("test -c /dev/tpmrm0").ok();
    let there: std::collections::BTreeSet<String> = exec("ls /nix/store").ok().lines().map(str::to_owned).collect();
    let closure = machine.run(&["cat", &format!("/run/seed/{namespace}/web/closure")]).ok();
    let own = closure.lines().filter_map(|path| path.rsplit('/').next()).map(str::to_owned).collect();
    assert_eq!(there, own);
    assert!(machine.run(&["ls", "/nix/store"]).ok().lines().count() > there.len());
    assert_ne!(exec("touch /nix/store/mine").code, 0);
    // What it uses.
    let web = ann.status()["namespaces"][0]["instances"][0].clone();
    // Where the kernel accounts it: a machine inside of another may have been lent only some of the controllers.
    let accounted = machine.run(&["test", "-e", "/sys/fs/cgroup/seed.slice/memory.current"]).code == 0;
    if !accounted {
        eprintln!("NOT TESTED: memory in `status`: the kernel accounts none on this machine");
    }
    assert_eq!(web["memoryUsed"].as_u64().is_some_and(|used| used > 64 << 20), accounted, "{web}");
    assert!(web["cpuMilli"].as_u64().is_some(), "{web}");
    // With a terminal.
    let mut words = ann.asks(&["exec", "web", "--", "tty; stty size"]);
    words.insert(1, "-tt");
    assert!(machine.run(&words).ok().contains("/dev/pts/"));

    // Files in and out, by both protocols of scp.
    machine.write("/root/ann/page", "Copied in\n");
    let scp: String = ann.asks(&[]).join(" ").replacen("ssh ", "scp ", 1).replace(" -p ", " -P ").replace(" seed@127.0.0.1", "");
    for option in ["", "-O"] {
        let line = format!("{scp} {option} /root/ann/page seed@127.0.0.1:web:/srv/www/copied");
        machine.run(&["bash", "-c", &line]).ok();
        assert_eq!(exec("cat /srv/www/copied && rm /srv/www/copied").ok(), "Copied in\n", "{option}");
    }
    let line = format!("{scp} seed@127.0.0.1:my-app/web:/srv/www/index.html /root/ann/out && cat /root/ann/out");
    assert_eq!(machine.run(&["bash", "-c", &line]).ok(), "Hello from Seed\n");

    // A port that the guest only has for itself.
    // In a unit of its own: what a session leaves behind ends with it.
    let serve = exec("systemd-run -q $(ls /nix/store/*/bin/busybox | head -n 1) httpd -f -p 127.0.0.1:8081 -h /srv/www");
    assert_eq!(serve.code, 0, "{}", serve.all());
    let ssh = ann.asks(&["-N", "-L", "8082:web:8081"]).join(" ");
    let line = format!("{ssh} & for n in {{1..100}}; do curl -s -m 20 http://127.0.0.1:8082/ && break; sleep 0.2; done; kill $!");
    assert_eq!(machine.run(&["bash", "-c", &line]).ok().trim(), "Hello from Seed");

    // On the host itself, over the bus, as its operator.
    let host = |line: &str| machine.run(&["bash", "-c", line]);
    let ran = host("seed exec my-app/web -- 'cat; hostname; exit 7' < <(echo from the host)");
    assert_eq!((ran.code, ran.out.as_str()), (7, "from the host\nweb\n"), "{}", ran.all());
    let ran =
        host("script -qec 'stty rows 31 cols 77; seed shell web; echo code $?' /dev/null < <(echo 'stty size; exit 5'; sleep 5)");
    assert!(ran.out.contains("code 5") && ran.out.contains("31 77"), "{}", ran.all());
    host("echo Copied > /root/page && seed cp /root/page web:/srv/www/page && seed cp web:/srv/www/page /root/back").ok();
    assert_eq!(host("cat /root/back").ok(), "Copied\n");
    assert_eq!(exec("rm /srv/www/page").code, 0);
    let line = "seed forward web 8081 8083 & for n in {1..100}; do curl -s -m 20 http://127.0.0.1:8083/ && break; sleep 0.2; done; kill $!";
    assert_eq!(host(line).ok().trim(), "127.0.0.1:8083 is port 8081 of web, until Ctrl-C\nHello from Seed");

    // Others, even with an instance of the same name.
    let bob = machine.tenant("bob", "");
    let refused = bob.shell(&["exec", "my-app/web", "--", "id"]);
    assert_eq!((refused.code, refused.out.as_str()), (3, ""), "{}", refused.err);
    assert_eq!(bob.shell(&["forward", &format!("{namespace}/web"), "8081"]).code, 3);
    // Nobody but the agent has what opens guests, and it is not among what guests are told.
    assert_eq!(machine.run(&["stat", "-c", "%U %a", "/var/lib/seed/guest-ca"]).ok(), "root 600\n");
    assert_ne!(machine.run(&["setpriv", "--reuid=seed", "--clear-groups", "cat", "/var/lib/seed/guest-ca"]).code, 0);
    // The record says who did what.
    let journal = machine.run(&["journalctl", "-u", "seed-agent", "--no-pager"]).ok();
    assert!(journal.contains("let somebody into a guest") && journal.contains("cat /srv/www/index.html"), "{journal}");

    let audit = ann.shell(&["audit"]).ok();
    for part in ["exec web", "cat /srv/www/index.html", "copy my-app/web", "forward web"] {
        assert!(audit.contains(part), "no {part:?} in\n{audit}");
    }
    assert!(!audit.contains("from the host\n"), "what goes over it is nobody's to keep");

    // A guest that is off says so.
    machine.run(&["systemctl", "stop", &format!("seed-vm@{namespace}-web.service")]).ok();
    let off = exec("true");
    assert_eq!(off.code, 1, "{}", off.all());
    assert!(off.err.contains("web is not running") || off.err.contains("is not running (status"), "{}", off.err);
}
