//! A deploy that loses no request, as its clients see it.

use std::{process::Child, time::Duration};

use crate::machine::Machine;

/// Fetches the page by name, again and again, each time over a new connection, until /root/stop is there.
const FETCHES: &str = r#"while [ ! -e /root/stop ]; do
  curl -sS -m 15 "${@:2}" "http://$1/" || echo "failed: $?"
  sleep 0.1
done"#;

/// Holds one connection, and checks that what it says comes back.
const TALKS: &str = r#"exec 3<>"/dev/tcp/$1/81" || { echo "failed to connect"; exit 1; }
for ((n = 0; ; n++)); do
  if [ -e /root/stop ]; then exit; fi
  echo "$n" >&3
  if read -r -t 15 -u 3 said && [ "$said" = "$n" ]; then echo "$n"; else echo "failed at $n"; exit 1; fi
  sleep 0.1
done"#;

/// A server beside the page, which says whatever it hears.
const ECHO: &str = r#"$b ln -s ../web.service $out/layer/etc/systemd/system/multi-user.target.wants/
        $b printf '%s\n' "[Socket]" "ListenStream=81" "Accept=yes" >$out/layer/etc/systemd/system/echo.socket
        $b printf '%s\n' "[Service]" "ExecStart=${tools}/bin/busybox cat" "StandardInput=socket" "StandardOutput=socket" \
          >$out/layer/etc/systemd/system/echo@.service
        $b ln -s ../echo.socket $out/layer/etc/systemd/system/multi-user.target.wants/"#;

/// A page that counts as started once it is served: only then is the guest ready.
const READY: &str = "ExecStart=${tools}/bin/busybox httpd -f -p 80 -h /srv/www
        ExecStartPost=${tools}/bin/busybox sh -c 'until ${tools}/bin/busybox wget -q -O /dev/null http://127.0.0.1/; do ${tools}/bin/busybox sleep 0.1; done'";

fn client(machine: &Machine, script: &str, words: &[&str], output: &str) -> Child {
    let script = format!("{{ {script}\n}} >{output} 2>&1");
    machine.spawn(&[&["bash", "-c", &script, "client"], words].concat())
}

#[test]
fn a_rolling_push_fails_no_request_and_cuts_no_connection() {
    let machine = Machine::new("rolling", &["[rollout]", "drain_secs = 30", "[ingress]", "enable = true"]);
    machine.run(&["ip", "address", "add", "192.0.2.7/32", "dev", "lo"]).ok();
    let ann = machine.tenant("ann", "my-app");
    ann.edit("rollout = \"recreate\"", "rollout = \"rolling\"");
    ann.edit("tpm = true", "tpm = false");
    ann.edit("storage.data = { size = \"64Mi\"; mountPoint = \"/seed/storage/data\"; };", "expose.echo = { port = 81; };");
    ann.edit("$b ln -s ../web.service $out/layer/etc/systemd/system/multi-user.target.wants/", ECHO);
    ann.edit("ExecStart=${tools}/bin/busybox httpd -f -p 80 -h /srv/www", READY);
    let (_, namespace) = ann.plant();
    assert_eq!(ann.page("web"), "Hello from Seed");
    let old = format!("seed-vm@{namespace}-web.service");
    let pid = machine.main_pid(&old);

    let name = format!("web.{namespace}.seed.example");
    let ingress = format!("{name}:80:192.0.2.7");
    let clients = [
        client(&machine, FETCHES, &[&name], "/root/fetched"),
        client(&machine, TALKS, &[&name], "/root/talked"),
        // As the world does: through the ingress.
        client(&machine, FETCHES, &[&name, "--resolve", &ingress], "/root/visited"),
    ];
    let lines = |file: &str| -> Vec<String> {
        let text = std::fs::read_to_string(machine.path(file)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    };
    let many = |file: &str, most: usize| machine.wait(file, Duration::from_secs(60), || (lines(file).len() > most).then_some(()));
    many("/root/fetched", 5);
    many("/root/visited", 5);
    many("/root/talked", 5);

    ann.edit("Hello from Seed", "Hello again");
    let pushed = ann.push(&[]);
    let text = pushed.all();
    assert_eq!(pushed.code, 0, "{text}");
    assert!(text.contains("web: roll out (system changed)") && text.contains("web is running"), "{text}");
    assert_eq!(ann.page("web"), "Hello again");
    // Both are there, and each is told apart.
    assert_eq!(machine.main_pid(&old), pid, "the old one was not touched");
    assert_eq!(machine.property(&format!("seed-vm@{namespace}-web.b.service"), "ActiveState"), "active");
    let beside = ann.status()["namespaces"][0]["instances"][0]["beside"].clone();
    assert_eq!((beside["role"].as_str(), beside["name"].as_str()), (Some("draining"), Some("web")), "{beside}");

    // New connections reach the new one, and the connection to the old one goes on.
    many("/root/fetched", lines("/root/fetched").len() + 5);
    many("/root/visited", lines("/root/visited").len() + 5);
    many("/root/talked", lines("/root/talked").len() + 5);
    machine.write("/root/stop", "");
    for mut client in clients {
        client.wait().expect("it ends");
    }
    let (fetched, talked, visited) = (lines("/root/fetched"), lines("/root/talked"), lines("/root/visited"));
    let failed: Vec<&String> =
        fetched.iter().chain(&talked).chain(&visited).filter(|line| line.contains("fail") || line.contains("curl")).collect();
    assert!(failed.is_empty(), "{} of {} failed: {failed:?}", failed.len(), fetched.len() + talked.len());
    for pages in [&fetched, &visited] {
        let turn = pages.iter().position(|page| page == "Hello again").expect("the new page was seen");
        assert!(pages[..turn].iter().all(|page| page == "Hello from Seed"), "{pages:?}");
        assert!(pages[turn..].iter().all(|page| page == "Hello again"), "{pages:?}");
    }
    println!("{} pages and {} echoes on one connection, none of them failed", fetched.len() + visited.len(), talked.len());

    machine.wait("the old one is gone", Duration::from_secs(60), || {
        (machine.property(&old, "LoadState") == "not-found").then_some(())
    });
    assert_eq!((ann.page("web").as_str(), ann.state("web").as_str()), ("Hello again", "running"));
    assert_ne!(machine.run(&["test", "-e", &format!("/run/seed/{namespace}/web")]).code, 0, "its folder is gone too");
}
