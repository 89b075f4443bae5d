//! A certificate for a guest's own web server, by the guest's own ACME clients, from a CA that looks into Seed's DNS.

use std::{path::Path, process::Command, time::Duration};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::{
    clients,
    machine::{Machine, Tenant},
};

/// Puts a program of this machine onto that one.
fn bring(machine: &Machine, program: &str, to: &str) {
    let from = Path::new("/usr/bin").join(program);
    assert!(from.is_file(), "{program} is not there: run .ci/tools, which installs it");
    let to = machine.path(to);
    std::fs::create_dir_all(to.parent().expect("below a folder")).expect("made");
    std::fs::copy(from, to).expect("copied");
}

/// Starts pebble on the machine. It validates, refuses good nonces at random, and asks Seed's DNS.
fn start_ca(machine: &Machine) {
    bring(machine, "pebble", "/usr/local/bin/pebble");
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names");
    params.distinguished_name.push(DnType::CommonName, "who signs pebble's HTTPS");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    machine.write("/etc/seed/ca-root.pem", &params.self_signed(&key).expect("signed").pem());
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
    machine.write("/etc/pebble/cert.pem", &params.signed_by(&key, &issuer).expect("signed").pem());
    machine.write("/etc/pebble/key.pem", &key.serialize_pem());
    let config = serde_json::json!({ "pebble": {
        "listenAddress": "127.0.0.1:14000", "managementListenAddress": "127.0.0.1:15000",
        "certificate": "/etc/pebble/cert.pem", "privateKey": "/etc/pebble/key.pem",
        "httpPort": 5002, "tlsPort": 5001, "ocspResponderURL": "", "externalAccountBindingRequired": false,
    } });
    machine.write("/etc/pebble/config.json", &config.to_string());
    let log = ["systemd-run", "--quiet", "--unit=pebble", "-p", "StandardOutput=file:/root/pebble.log"];
    // It looks for a proof each time.
    let settings = ["--setenv=PEBBLE_VA_NOSLEEP=1", "--setenv=PEBBLE_WFE_NONCEREJECT=20", "--setenv=PEBBLE_AUTHZREUSE=0"];
    let pebble = ["/usr/local/bin/pebble", "-strict", "-config", "/etc/pebble/config.json", "-dnsserver", "127.0.0.1:53"];
    machine.run(&[&log[..], &settings, &pebble].concat()).ok();
    let roots = "https://127.0.0.1:15000/roots/0";
    machine.wait("pebble", Duration::from_secs(20), || {
        let got = machine.run(&["curl", "-sS", "--cacert", "/etc/seed/ca-root.pem", "-o", "/root/roots.pem", roots]);
        (got.code == 0).then_some(())
    });
}

/// Puts caddy, lego and certbot of this machine into the folder `$1`: with the Python that certbot needs, which is one folder, too. What
/// comes out of a tarball is dated 1970, so its bytecode must not be compared with the sources: an emulated CPU would compile them all.
const CLIENTS: &str = r#"
    python=$(basename "$(readlink -f /usr/bin/python3)")
    mkdir -p "$1"/lib/{python3/dist-packages,zoneinfo}
    cp /usr/bin/{caddy,lego,certbot} "$1/"
    cp "/usr/bin/$python" "$1/python3"
    cp -L /usr/lib/x86_64-linux-gnu/libffi.so.8 "$1/lib/"
    cp -L /usr/share/zoneinfo/{tzdata.zi,zone1970.tab,iso3166.tab,UTC} "$1/lib/zoneinfo/"
    tar -C /usr/lib -c --exclude=__pycache__ --exclude='config-*' --exclude=test --exclude=idlelib --exclude=lib2to3 --exclude=pydoc_data \
      "$python" | tar -C "$1/lib" -x
    cd /usr/lib/python3/dist-packages
    tar -c --exclude=__pycache__ --exclude='tests' OpenSSL _cffi_backend* acme* certbot* certifi* chardet* charset_normalizer* \
      configargparse.py ConfigArgParse* configobj* cryptography* distro* idna* josepy* parsedatetime* pkg_resources pyOpenSSL* \
      pyrfc3339 pyRFC3339* pytz* requests* six* urllib3* | tar -C "$1/lib/python3/dist-packages" -x
    # A module or two of what is shipped is no Python of this version.
    /usr/bin/python3 -m compileall -q -j 2 --invalidation-mode unchecked-hash "$1/lib" >/dev/null
"#;

/// Makes the template's web server caddy, set up as the README has it, and its certificates outlive the guest. Beside it are lego and
/// certbot, for whoever runs them by hand.
fn serve_https(machine: &Machine, tenant: &Tenant) {
    for program in ["caddy", "lego", "certbot"] {
        assert!(Path::new("/usr/bin").join(program).is_file(), "{program} is not there: run .ci/tools, which installs it");
    }
    let to = machine.path("/srv/clients/clients");
    std::fs::create_dir_all(&to).expect("made");
    let made = Command::new("bash").args(["-euc", CLIENTS, "bash"]).arg(&to).output().expect("bash runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    machine.run(&["tar", "-C", "/srv/clients", "-I", "gzip -1", "-cf", "/srv/clients/clients.tar.gz", "clients"]).ok();
    let httpd = ["/usr/bin/busybox", "httpd", "-f", "-p", "127.0.0.1:8124", "-h", "/srv/clients"];
    machine.run(&[&["systemd-run", "--quiet", "--unit=clients-tarball"][..], &httpd].concat()).ok();
    tenant.edit(
        "  inputs = {\n",
        "  inputs = {\n    clients = { url = \"http://127.0.0.1:8124/clients.tar.gz\"; flake = false; };\n",
    );
    tenant.edit("{ tools, boot, root, ... }", "{ tools, boot, root, clients, ... }");
    tenant.edit(
        "      web = ''",
        "      caddyfile = ''\n        {\n          admin off\n          acme_ca {$SEED_ACME_URL}\n          \
         storage file_system /seed/storage/data\n        }\n        {$SEED_FQDN} {\n          respond \"Hello from Seed\"\n        }\n      '';\n\n      \
         web = ''",
    );
    tenant.edit(
        "ExecStart=${tools}/bin/busybox httpd -f -p 80 -h /srv/www",
        "Environment=HOME=/seed/storage/data\n        ExecStart=${clients}/caddy run --adapter caddyfile --config /etc/Caddyfile",
    );
    tenant.edit(
        "$b printf '%s\\n' \"$page\" >$out/layer/srv/www/index.html",
        "$b printf '%s\\n' \"$caddyfile\" >$out/layer/etc/Caddyfile",
    );
    tenant.edit("inherit page web init;", "inherit caddyfile web init;");
    tenant.edit("expose.http = { port = 80;", "expose.https = { port = 443;");
    tenant.edit("acme = false;", "acme = true;");
}

#[test]
fn a_guests_own_clients_get_certificates_and_one_serves_https() {
    let ca = ["[acme]", "directory = \"https://127.0.0.1:14000/dir\"", "ca_root = \"/etc/seed/ca-root.pem\""];
    let machine = Machine::new("acme", &[&ca[..], &["[ingress]", "enable = true"]].concat());
    start_ca(&machine);
    let ann = machine.tenant("ann", "one");
    serve_https(&machine, &ann);
    let (_, namespace) = ann.plant();
    let host = format!("web.{namespace}.seed.example");
    let url = format!("https://{host}/");
    let page = || machine.run(&["curl", "-sS", "-m", "10", "--cacert", "/root/roots.pem", &url]);
    machine.wait("HTTPS that curl verifies", Duration::from_secs(120), || {
        let got = page();
        (got.out == "Hello from Seed").then_some(())
    });
    // As the world sees it: from another network, through the ingress, which leads there by the TLS server name and sees no plaintext.
    machine.make_outside();
    let to = format!("{host}:443:192.0.2.1");
    let words =
        ["ip", "netns", "exec", "outside", "curl", "-sS", "-m", "10", "--cacert", "/root/roots.pem", "--resolve", &to, &url];
    assert_eq!(machine.run(&words).ok(), "Hello from Seed");

    let certificate = || {
        let line =
            format!("echo | openssl s_client -connect {host}:443 -servername {host} 2>/dev/null | openssl x509 -noout -serial");
        machine.run(&["sh", "-c", &line]).ok()
    };
    let first = certificate();
    let record = format!("_acme-challenge.{host}");
    let left = machine.run(&["dig", "+short", "@127.0.0.1", "TXT", &record]).ok();
    assert_eq!(left.trim(), "", "the proof is gone");

    clients::lego_among_kills(&machine, &ann, &host);
    clients::certbot(&machine, &ann, &host);

    // Nobody but an instance gets anything: not this host, though the door stands on all of its addresses.
    let refused = machine.run(&["curl", "-s", "-m", "5", "http://127.0.0.1:9876/acme/directory"]);
    assert_ne!(refused.code, 0, "{}", refused.all());

    // The doors and the agent are killed, and the guest boots again: what was issued is still there.
    machine.run(&["systemctl", "kill", "-s", "KILL", "seed-agent.service", "seed-serve.service"]).ok();
    machine.wait("the agent to be back", Duration::from_secs(30), || (ann.shell(&["status"]).code == 0).then_some(()));
    ann.shell(&["restart", "web"]).ok();
    machine.wait("HTTPS after a restart", Duration::from_secs(120), || (page().out == "Hello from Seed").then_some(()));
    assert_eq!(certificate(), first);
}
