//! ACME clients that somebody runs by hand in a guest, whatever is killed meanwhile.

use std::time::Duration;

use crate::machine::{Machine, Tenant};

const LEGO: &str = "$c/lego --server $SEED_ACME_URL --accept-tos --email ann@x.example --path lego --domains $1 \
                    --cert.timeout 300 --http --http.port 127.0.0.1:1 run";
const CERTBOT: &str = "$c/python3 $c/certbot certonly --server $SEED_ACME_URL --agree-tos -n -m ann@x.example --standalone \
                       --http-01-port 1 --key-type ecdsa --config-dir certbot --work-dir certbot --logs-dir certbot -d $1";
const OTHERS: &str = "web.s-aaaaaaaaaaaa.seed.example";

/// A script for the guest in which `get NAME` is a client that says everything on standard error.
fn script(client: &str, rest: &str) -> String {
    format!(
        "set -a; . /run/seed/env; c=$(dirname /nix/store/*/lego); export HOME=/run/clients PYTHONHOME=$c
         PYTHONPATH=$c/lib/python3/dist-packages LD_LIBRARY_PATH=$c/lib; mkdir -p $HOME /usr/share/zoneinfo; cd $HOME
         ln -sf $c/lib/zoneinfo/* /usr/share/zoneinfo/
         get() {{ {client} >&2; }}
         {rest}"
    )
}

/// Has OpenSSL look at a chain of the CA's.
#[track_caller]
fn verify(machine: &Machine, host: &str, chain: &str) {
    machine.write("/root/chain.pem", chain);
    let words = ["-untrusted", "/root/chain.pem", "-verify_hostname", host, "/root/chain.pem"];
    machine.run(&[&["openssl", "verify", "-CAfile", "/root/roots.pem"][..], &words].concat()).ok();
}

/// Kills the agent, and then the doors, at each of these moments of an order, for which the CA is stopped: it was not told of the order yet;
/// the order is there; it is to look for the proof; it is to sign; what it has signed is fetched.
const KILLS: &str = r#"
    ca=$(systemctl show -P MainPID pebble)
    killed() {
      old=$(systemctl show -P MainPID "$1")
      kill -KILL "$old"
      until new=$(systemctl show -P MainPID "$1") && [[ $new != 0 && $new != "$old" ]] && systemctl is-active -q "$1"; do sleep 0.05; done
    }
    exec 3< <(exec tail -n 0 -F /root/pebble.log)
    reader=$!
    for moment in '' authZ chalZ finalize-order certZ; do
      while [[ $moment ]] && read -r -u3 line && [[ $line != *"POST /$moment/"* ]]; do :; done
      kill -STOP "$ca"
      killed seed-agent.service
      killed seed-serve.service
      kill -CONT "$ca"
      echo "killed at ${moment:-first}"
    done
    kill "$reader"
"#;

/// lego does not notice that the agent and the doors are killed again and again, and the CA makes one order. Another's name is refused.
pub fn lego_among_kills(machine: &Machine, tenant: &Tenant, host: &str) {
    let exec = |line: &str| tenant.shell(&["exec", "web", "--", line]);
    let orders = || machine.run(&["grep", "-c", "Added order", "/root/pebble.log"]).out.trim().parse::<u32>().expect("a number");
    machine.wait("the guest's sshd", Duration::from_secs(60), || (exec("true").code == 0).then_some(()));
    let heard = || std::fs::read_to_string(machine.path("/root/asked")).unwrap_or_default();
    let monitor = ["busctl", "monitor", "--json=short", "farm.loom.Seed1"];
    machine
        .run(&[&["systemd-run", "--quiet", "--unit=asked", "-p", "StandardOutput=file:/root/asked"][..], &monitor].concat())
        .ok();
    machine.wait("what the agent is asked to be heard", Duration::from_secs(10), || {
        machine.run(&["seed", "status"]).ok();
        heard().contains("\"Status\"").then_some(())
    });

    let (before, ca) = (orders(), machine.main_pid("pebble.service"));
    machine.run(&["kill", "-STOP", &ca]).ok();
    // In a unit of its own: the session ends with the doors.
    let lego = script(LEGO, &format!("get {host}; echo $? >code"));
    exec(&format!("cat >/run/lego.sh <<'END'\n{lego}\nEND\nsystemd-run -q --unit=lego sh /run/lego.sh")).ok();
    // A client whose question is cut off in the middle would have to begin anew; from now on it only asks how far the order is.
    machine.wait("lego to ask again", Duration::from_secs(60), || {
        let asked = heard();
        asked.rsplit_once(r#"{\"finalize\":{"#)?.1.contains(r#"{\"account\":{"#).then_some(())
    });
    let killed = machine.run(&["timeout", "120", "bash", "-euc", KILLS]);
    assert_eq!(killed.code, 0, "{}\n{}", killed.all(), machine.journal());
    let ended = machine.wait("lego", Duration::from_secs(120), || {
        let ended = exec("cd /run/clients && cat code >&2 && cat lego/certificates/web.*.crt");
        ended.err.trim().parse::<u8>().is_ok().then_some(ended)
    });
    assert_eq!(ended.err, "0\n", "{}", exec("journalctl -u lego").all());
    verify(machine, host, &ended.out);
    assert_eq!(orders(), before + 1, "{}", machine.journal());
    let refused = exec(&script(LEGO, &format!("get {OTHERS}")));
    assert!(refused.code != 0 && refused.all().contains("is not this instance's"), "{}", refused.all());
}

/// certbot gets a certificate, and none for another's name.
pub fn certbot(machine: &Machine, tenant: &Tenant, host: &str) {
    // This version of it stumbles over a refusal when it wants to show it.
    let rest = format!(
        "get {host} && cat certbot/live/{host}/fullchain.pem || exit 1
         get {OTHERS} && exit 2
         cat certbot/letsencrypt.log >&2; exit 42"
    );
    let ran = tenant.shell(&["exec", "web", "--", &script(CERTBOT, &rest)]);
    assert!(ran.code == 42 && ran.err.contains("is not this instance's"), "{} {}", ran.code, ran.all());
    verify(machine, host, &ran.out);
}
