//! After the first push: a bad deploy and the way back, off and on again, the history, and the end.

use std::time::Duration;

use crate::machine::Machine;

const BOOT: Duration = Duration::from_secs(120);

#[test]
fn a_bad_deploy_is_gone_back_from_and_what_is_stopped_stays_off() {
    let machine = Machine::new("verbs", &[]);
    let ann = machine.tenant("ann", "my-app");
    let (planted, namespace) = ann.plant();
    assert!(planted.contains("nothing to set up") && planted.contains("webhook  none needed"), "{planted}");
    let unit = format!("seed-vm@{namespace}-web.service");

    // A name of one's own: the agent has the doors look, which find nobody to ask in this network.
    let claimed = ann.shell(&["domain", "add", "web", "www.example.com"]).ok();
    assert!(claimed.contains("not proven") && claimed.contains(&format!("CNAME web.{namespace}.seed.example.")), "{claimed}");
    machine.wait("a look at the name", Duration::from_secs(60), || {
        ann.shell(&["domain", "list"]).ok().contains("the DNS could not be asked").then_some(())
    });

    // A version that boots and does not work.
    ann.edit("busybox httpd -f -p 80 -h /srv/www", "busybox false");
    ann.push(&[]).ok();
    let degraded = || {
        let status = ann.status();
        let web = status["namespaces"][0]["instances"][0].clone();
        (web["state"] == "degraded").then_some(web)
    };
    let web = machine.wait("web is degraded", BOOT, degraded);
    assert_eq!(web["failedUnits"], serde_json::json!(["web.service"]));
    assert!(web["volumes"][0]["used"].as_u64().is_some_and(|used| used > 0 && used < 64 << 20), "{web}");
    let shown = ann.shell(&["status"]).ok();
    assert!(shown.contains("degraded") && shown.contains("failed in it: web.service"), "{shown}");
    let logs = |words: &[&str]| {
        let all = [&["logs", "web", "--lines", "2000"], words].concat();
        ann.shell(&all).ok()
    };
    let of_unit = logs(&["-u", "web", "--boot"]);
    assert!(of_unit.contains("web.service: Failed") && !of_unit.contains("console"), "{of_unit}");
    assert!(logs(&["--since", "2100-01-01"]).is_empty());
    assert!(logs(&["--since", "1h"]).lines().count() > of_unit.lines().count());
    assert!(logs(&["--build"]).contains("web: restart (system changed)"));

    // Back, in one restart; and the same push again changes nothing.
    let pid = machine.main_pid(&unit);
    let back = ann.shell(&["rollback", "web"]);
    assert_eq!(back.code, 0, "{}", back.all());
    assert_ne!(machine.main_pid(&unit), pid);
    assert_eq!(ann.page("web"), "Hello from Seed");
    assert_eq!(ann.state("web"), "running");
    let pid = machine.main_pid(&unit);
    let again = ann.push(&[]);
    assert!(again.code == 0 && again.all().contains("was gone back from"), "{}", again.all());
    assert_eq!(machine.main_pid(&unit), pid);
    let deploys = ann.shell(&["deploys", "my-app"]).ok();
    assert!(deploys.contains("rollback") && deploys.contains("done, runs") && deploys.contains("rollback can go to"), "{deploys}");

    // Off: over a reboot, and a push.
    ann.shell(&["stop", "web"]).ok();
    assert_eq!(ann.state("web"), "stopped");
    machine.reboot();
    machine.wait("the doors are open", BOOT, || (ann.shell(&["status"]).code == 0).then_some(()));
    ann.edit("page = \"Hello from Seed\"", "page = \"While it was off\"");
    ann.edit("busybox false", "busybox httpd -f -p 80 -h /srv/www");
    let pushed = ann.push(&[]);
    assert!(pushed.code == 0 && pushed.all().contains("web is off"), "{}", pushed.all());
    assert_eq!((ann.state("web").as_str(), machine.property(&unit, "ActiveState").as_str()), ("stopped", "inactive"));
    assert!(machine.run(&["systemctl", "cat", &unit]).ok().contains("ExecStart"), "it is ready to be started");
    let refused = ann.shell(&["restart", "web"]);
    assert!(refused.code == 1 && refused.err.contains("start web"), "{}", refused.all());
    machine.run(&["seed", "start", "my-app/web"]).ok();
    assert_eq!(ann.page("web"), "While it was off");

    // Held as it is, and let go again.
    ann.shell(&["pin", "web"]).ok();
    ann.edit("page = \"While it was off\"", "page = \"Not yet\"");
    let pushed = ann.push(&[]);
    assert!(pushed.code == 0 && pushed.all().contains("web: pinned by"), "{}", pushed.all());
    assert_eq!(ann.page("web"), "While it was off");
    ann.shell(&["unpin", "web"]).ok();
    let pinned = ann.status()["namespaces"][0]["instances"][0]["pinnedBy"].clone();
    assert_eq!(pinned, "");

    // Who I am, and what is drawn again and again.
    let key = machine.run(&["ssh-keygen", "-lf", "/root/ann/key.pub"]).ok();
    assert_eq!(key.split_whitespace().nth(1), Some(ann.shell(&["whoami"]).ok().trim()));
    let watched = ann.shell_for(7, &["status", "--watch", "--json"]);
    assert!(watched.code == 124 && watched.out.contains("\"running\""), "{}", watched.all());
    // A shell at a terminal, and sftp.
    let shell = ann.asks(&["shell", "web"]).join(" ").replacen("ssh ", "ssh -tt ", 1);
    let line = format!("{shell} < <(echo 'stty size; hostname; exit 7'; sleep 5)");
    let said = machine.run(&["bash", "-c", &line]);
    assert!(said.code == 7 && said.out.contains("web"), "{}", said.all());
    let sftp = ann.asks(&[]).join(" ").replacen("ssh ", "sftp -b - ", 1).replace(" -p ", " -P ");
    let line = format!("printf 'get web:/srv/www/index.html /root/ann/got\\nls web:/srv/www\\n' | {sftp}");
    assert!(machine.run(&["bash", "-c", &line]).ok().contains("index.html"));
    assert_eq!(machine.run(&["cat", "/root/ann/got"]).ok(), "While it was off\n");
    // Names and codes are taken back.
    ann.shell(&["domain", "remove", "www.example.com"]).ok();
    assert!(ann.shell(&["domain", "list"]).ok().contains("No name is claimed"));
    let code = machine.invite();
    assert!(machine.run(&["seed", "invite", "list"]).ok().contains(&code[..6]));
    machine.run(&["seed", "invite", "revoke", &code]).ok();
    assert!(!machine.run(&["seed", "audit"]).ok().contains(&code), "codes are not written down");
    assert!(!machine.run(&["seed", "invite", "list"]).ok().contains(&code[..6]));

    // The end; volumes stay.
    let half = ann.shell(&["destroy", "web"]);
    assert!(half.code == 2 && half.err.contains("destroy web web"), "{}", half.all());
    let gone = ann.shell(&["destroy", "web", "web"]);
    assert!(gone.code == 0 && gone.all().contains("web is gone; kept, and listed by status: data"), "{}", gone.all());
    assert_eq!(machine.property(&unit, "LoadState"), "not-found");
    assert!(ann.shell(&["status"]).ok().contains("web/data (64Mi)"));
    let gone = ann.shell(&["unplant", "my-app", "my-app"]);
    assert!(gone.code == 0 && gone.all().contains("the volume web/data (64Mi)"), "{}", gone.all());
    assert_eq!(machine.property(&unit, "LoadState"), "not-found");
    let kept = machine.run(&["find", "/var/lib/seed/volumes/retired", "-name", "*.img"]).ok();
    assert_eq!(kept.lines().count(), 1, "{kept}");
    assert!(ann.shell(&["status"]).ok().contains("not planted"));

    // What the host's own shell needs.
    let script = machine.run(&["seed", "completion", "bash"]).ok();
    assert!(script.contains("rollback") && script.contains("--since"));
    machine.run(&["bash", "-c", "source <(seed completion bash) && complete -p seed"]).ok();
    machine.run(&["seed", "man", "/tmp/man"]).ok();
    assert!(machine.path("/tmp/man/seed-rollback.1").exists() && machine.path("/tmp/man/seed.1").exists());
    assert!(!machine.path("/tmp/man/seed-store-view.1").exists(), "nobody types that");
    machine.run(&["bash", "-c", "source /usr/share/bash-completion/completions/seed && complete -p seed"]).ok();
    assert_eq!(machine.run(&["seed", "rolback"]).code, 2);
    assert!(machine.run(&["seed", "help", "logs"]).ok().contains("--since"));
}
