//! Clients as tenants have them, unmodified.

use std::process::Stdio;

use crate::world::{World, command, name, run, until};

#[test]
fn lego_gets_renews_and_revokes_a_certificate() {
    let world = World::new();
    let host = name("first");
    for (kind, folder) in [("ec256", "ec"), ("rsa2048", "rsa")] {
        let lego = |words: &[&str]| {
            let mut lego = command("lego");
            lego.args(["--accept-tos", "--email", "ann@seed.example", "--key-type", kind, "--domains", &host]);
            lego.args(["--server", &world.directory_url(), "--path"]).arg(world.path(folder));
            // It wants to be told how it would prove the name; it is never asked to.
            run(lego.args(["--http", "--http.port", "127.0.0.1:1"]).args(words))
        };
        lego(&["run"]);
        let chain = world.path(folder).join("certificates").join(format!("{host}.crt"));
        let text = world.verify(&chain);
        assert!(text.contains(&format!("DNS:{host}")), "{text}");
        let first = std::fs::read(&chain).unwrap();
        lego(&["renew", "--days", "100000", "--no-random-sleep"]);
        world.verify(&chain);
        assert_ne!(std::fs::read(&chain).unwrap(), first, "its key is new, so its certificate is");
        lego(&["revoke"]);
        let ledger = world.ledger();
        assert!(ledger.certificates.values().any(|certificate| certificate.revoked));
    }
    assert_eq!(world.ledger().certificates.len(), 4);
    assert_eq!(world.ledger().challenges(), Default::default(), "nothing is left in the DNS");
}

/// The command lines of `security.acme` of NixOS, renewing and ordering; `tests/nixos.rs` compares them with those that it writes.
const NIXOS: &str = include_str!("../nixos/security-acme.lego");

/// What `security.acme` of NixOS does with `LEGO_SERVER` and a web root: its own command lines, in the folders that its unit binds.
#[test]
fn lego_as_nixos_runs_it_gets_keeps_and_renews_a_certificate() {
    let world = World::new();
    let (host, at) = (name("first"), world.path("nixos"));
    let webroot = world.path("webroot").display().to_string();
    [at.join("certificates"), world.path("webroot")].iter().for_each(|path| std::fs::create_dir_all(path).unwrap());
    let lines: Vec<&str> = NIXOS.lines().collect();
    let [renewing, ordering] = lines[..] else { panic!("two command lines: {NIXOS}") };
    let lego = |line: &str| {
        let mut words = line.split(' ').map(|word| match word {
            "web.example" => host.as_str(),
            "/var/lib/acme/acme-challenge" => &webroot,
            word => word,
        });
        assert_eq!(words.next(), Some("lego"));
        let mut lego = command("lego");
        // The lego of NixOS reads this one from the environment; Debian's is older.
        lego.args(["--server", &world.directory_url()]).args(words);
        run(lego.current_dir(&at))
    };
    lego(ordering);
    let (key, chain) = (at.join(format!("certificates/{host}.key")), at.join(format!("certificates/{host}.crt")));
    assert!(world.verify(&chain).contains(&format!("DNS:{host}")) && key.exists());
    // Every day a timer looks; nothing is due.
    let (first, orders) = (std::fs::read(&chain).unwrap(), world.ca_said("/order-plz"));
    lego(renewing);
    assert_eq!((std::fs::read(&chain).unwrap() == first, world.ca_said("/order-plz")), (true, orders), "nobody was asked");
    // `validMinDays` is more than what is left.
    lego(&renewing.replace("--days 30", "--days 100000"));
    assert!(world.verify(&chain).contains(&format!("DNS:{host}")) && std::fs::read(&chain).unwrap() != first);
    // Its state was cleaned, but for the account.
    std::fs::remove_dir_all(at.join("certificates")).unwrap();
    lego(ordering);
    world.verify(&chain);
    assert_eq!(world.ledger().accounts.len(), 1, "one account for all of them");
    assert!(!world.path("webroot").join(".well-known").exists(), "it was never asked to prove a name");
}

#[test]
fn certbot_gets_a_certificate_and_the_same_one_for_the_same_key() {
    let world = World::new();
    let host = name("first");
    let certbot = |words: &[&str]| {
        let mut certbot = command("certbot");
        certbot.args(words).args(["--server", &world.directory_url(), "--agree-tos", "-n", "-m", "ann@seed.example", "-d", &host]);
        for kind in ["config", "work", "logs"] {
            certbot.arg(format!("--{kind}-dir")).arg(world.path("certbot"));
        }
        run(&mut certbot)
    };
    let issue = ["certonly", "--standalone", "--http-01-port", "1", "--key-type", "ecdsa", "--reuse-key"];
    certbot(&issue);
    let chain = world.path("certbot/live").join(&host).join("fullchain.pem");
    assert!(world.verify(&chain).contains(&format!("DNS:{host}")));
    let first = std::fs::read(&chain).unwrap();
    let orders = world.ca_said("/order-plz");
    // As a guest does that is deployed again: the key is kept, everything else is done anew.
    certbot(&[&issue[..], &["--force-renewal"]].concat());
    assert_eq!(std::fs::read(&chain).unwrap(), first);
    assert_eq!(world.ca_said("/order-plz"), orders, "the CA was not asked");
}

#[test]
fn caddy_serves_https_that_curl_verifies() {
    let world = World::new();
    let host = name("first");
    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port()
    };
    // As in the guest's own configuration, but for the ports.
    let text = format!(
        "{{\n admin off\n acme_ca {}\n http_port 1\n https_port {port}\n auto_https disable_redirects\n storage file_system {}\n}}\n\
         {host} {{\n respond \"hello\"\n}}\n",
        world.directory_url(),
        world.path("caddy").display()
    );
    std::fs::write(world.path("Caddyfile"), text).unwrap();
    let log = std::fs::File::create(world.path("caddy.log")).unwrap();
    let mut caddy = command("caddy");
    caddy.args(["run", "--adapter", "caddyfile", "--config"]).arg(world.path("Caddyfile"));
    let mut caddy = caddy.env("HOME", world.path("home")).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let fetch = || {
        let mut curl = command("curl");
        curl.args(["-sS", "--cacert"]).arg(world.path("roots.pem")).args(["--resolve", &format!("{host}:{port}:127.0.0.1")]);
        curl.arg(format!("https://{host}:{port}/")).output().unwrap()
    };
    let began = std::time::Instant::now();
    while !fetch().status.success() && began.elapsed().as_secs() < 40 {
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    let output = fetch();
    caddy.kill().unwrap();
    caddy.wait().unwrap();
    let said = std::fs::read_to_string(world.path("caddy.log")).unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello", "{}\n{said}", String::from_utf8_lossy(&output.stderr));
    until("the order to be over", || world.ledger().challenges().is_empty());
}
