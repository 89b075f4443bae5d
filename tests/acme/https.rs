//! This host's own certificate and its HTTPS door: curl, openssl, and a client that looks at the bytes, with pebble as the CA.

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use seed::{
    spec::acme::{Holder, Stage, Window},
    state::memory::MemoryState,
};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
};

use crate::{
    client::Client,
    world::{World, command, name, run, tenants, until},
};

impl World {
    /// Everything but the CA is up, and this host has an HTTPS door.
    pub fn with_https() -> Self {
        Self::prepared(false, true, tenants())
    }

    pub fn http_port(&self) -> u16 {
        self.http.local_addr().unwrap().port()
    }

    pub fn https_port(&self) -> u16 {
        self.https.local_addr().unwrap().port()
    }

    /// A long time passes: every certificate is due, and the orders are of another week.
    pub fn age(&mut self) {
        self.kill_agent();
        let mut memory = self.state.memory();
        for certificate in memory.acme.certificates.values_mut() {
            certificate.window = Some(Window { start: 1, end: 2 });
        }
        for order in memory.acme.orders.values_mut() {
            order.begun = Some(1);
        }
        self.state = MemoryState::with(memory);
        self.start_agent();
    }
}

/// What curl gets of this host, which it verifies; with the status at the end.
fn fetch(world: &World, host: &str, path: &str, words: &[&str]) -> Option<String> {
    let port = world.https_port();
    let mut curl = command("curl");
    curl.args(["-sS", "-m", "10", "-w", "%{http_code}", "--cacert"]).arg(world.path("roots.pem"));
    curl.args(["--resolve", &format!("{host}:{port}:127.0.0.1")]).args(words);
    let output = curl.arg(format!("https://{host}:{port}{path}")).output().unwrap();
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn is_up(world: &World) -> bool {
    fetch(world, "silo.seed.example", "/", &[]).is_some()
}

/// A world whose host has its certificate.
pub fn world() -> World {
    let mut world = World::with_https();
    world.start_ca();
    until("HTTPS that curl verifies", || is_up(&world));
    world
}

/// What openssl says when it knocks with these words.
fn knock(world: &World, words: &[&str]) -> String {
    let mut openssl = command("openssl");
    openssl.args(["s_client", "-connect", &format!("127.0.0.1:{}", world.https_port())]).args(words);
    let output = openssl.stdin(Stdio::null()).output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A client that trusts what signs the certificates here.
pub fn shake<S: Read + Write>(world: &World, stream: S) -> std::io::Result<StreamOwned<ClientConnection, S>> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(world.path("roots.pem")).unwrap() {
        roots.add(root.unwrap()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots).with_no_client_auth();
    let tls = ClientConnection::new(Arc::new(config), "seed.example".try_into().unwrap()).unwrap();
    let mut stream = StreamOwned::new(tls, stream);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

fn connect(world: &World) -> StreamOwned<ClientConnection, TcpStream> {
    shake(world, TcpStream::connect(("127.0.0.1", world.https_port())).unwrap()).unwrap()
}

/// Asks once, and leaves the connection open.
fn ask(stream: &mut (impl Read + Write)) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: seed.example\r\n\r\n").unwrap();
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    while !said.ends_with(b"seed\n") {
        let n = stream.read(&mut buffer).unwrap();
        assert!(n > 0, "it hung up after {:?}", String::from_utf8_lossy(&said));
        said.extend_from_slice(&buffer[..n]);
    }
    String::from_utf8(said).unwrap()
}

fn leaf<S: Read + Write>(stream: &StreamOwned<ClientConnection, S>) -> Vec<u8> {
    stream.conn.peer_certificates().unwrap()[0].to_vec()
}

#[test]
fn this_host_gets_a_certificate_for_its_own_names_and_keeps_it() {
    let mut world = world();
    for host in ["seed.example", "silo.seed.example"] {
        let said = fetch(&world, host, "/", &[]).unwrap();
        assert!(said.contains("This is seed.example") && said.ends_with("200"), "{said}");
    }
    let unsigned = fetch(&world, "seed.example", "/webhook/github", &["--data", "{}"]).unwrap();
    assert!(unsigned.contains("there is no signature") && unsigned.ends_with("401"), "{unsigned}");
    let plain = |host: &str, words: &[&str]| {
        let mut curl = command("curl");
        curl.args(["-s", "-m", "10", "-o", "/dev/null", "-w", "%{http_code} %{redirect_url}", "-H", &format!("Host: {host}")]);
        run(curl.args(words).arg(format!("http://127.0.0.1:{}/x?y=1", world.http_port())))
    };
    assert_eq!(plain("silo.seed.example", &[]), "307 https://silo.seed.example/x?y=1");
    assert_eq!(plain("seed.example", &[]).trim(), "404", "what is no page of the git hosting stays where it is");
    assert_eq!(plain("silo.seed.example", &["--data", "x"]).trim(), "404", "and what is sent is not sent twice");

    let ledger = world.ledger();
    assert_eq!(ledger.challenges(), Default::default(), "nothing is left in the DNS");
    let certificate = ledger.certificates.values().next().unwrap();
    assert_eq!((ledger.certificates.len(), &certificate.holder), (1, &Holder::Host));
    let key = std::fs::metadata(world.path("account/host.key")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);

    // A tenant gets its own name still, and none of the host's.
    let tenant = Client::registered(&world, [127, 0, 0, 1]);
    for own in ["seed.example", "silo.seed.example"] {
        assert_eq!(tenant.order(&[own]).ok(403).problem(), "rejectedIdentifier", "{own}");
    }
    assert_eq!(tenant.order(&[&name("first")]).status, 201);

    // Restarts ask the CA for nothing, and while the agent is away the door has what was kept.
    let orders = world.ca_said("/order-plz");
    let first = leaf(&connect(&world));
    world.kill_agent();
    world.kill_doors();
    world.open_doors();
    until("HTTPS without an agent", || is_up(&world));
    assert_eq!(leaf(&connect(&world)), first);
    world.start_agent();
    world.kill_doors();
    std::fs::remove_file(world.path("account/host.pem")).unwrap();
    world.open_doors();
    until("HTTPS again", || is_up(&world));
    assert_eq!(leaf(&connect(&world)), first, "the agent has it, too");
    assert_eq!(world.ca_said("/order-plz"), orders, "the CA was not asked");
}

#[test]
fn without_a_certificate_there_is_an_alert_and_the_ca_is_asked_until_there_is_one() {
    let mut world = World::with_https();
    let said = knock(&world, &["-servername", "silo.seed.example"]);
    assert!(said.contains("alert number 40"), "handshake_failure: {said}");
    let plain = || run(command("curl").args(["-sS", "-m", "10"]).arg(format!("http://127.0.0.1:{}/", world.http_port())));
    assert!(plain().contains("This is seed.example"), "the other doors are open");
    let mut silo = command("curl");
    silo.args(["-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Host: silo.seed.example"]);
    let silo = run(silo.arg(format!("http://127.0.0.1:{}/", world.http_port())));
    assert_eq!(silo, "200", "nobody is sent where nothing answers");
    world.start_ca();
    until("HTTPS once the CA is there", || is_up(&world));
    assert_eq!(world.ledger().certificates.len(), 1);
}

#[test]
fn who_wants_another_name_or_none_is_told_so_by_an_alert() {
    let world = world();
    let strange = [
        &["-servername", &name("first")][..],
        &["-servername", "ns1.seed.example"],
        &["-servername", "other.example"],
        &["-noservername"],
        // As old as is spoken here.
        &["-tls1_2", "-servername", &name("first")],
    ]
    .map(|words| (words.join(" "), knock(&world, words)));
    for (words, said) in strange {
        assert!(said.contains("alert number 112"), "unrecognized_name for {words}: {said}");
        assert!(!said.contains("BEGIN CERTIFICATE"), "{words}: {said}");
    }
    for words in [&["-servername", "SILO.seed.example"][..], &["-tls1_2", "-servername", "seed.example"]] {
        assert!(knock(&world, words).contains("BEGIN CERTIFICATE"), "{words:?}");
    }
    // What is no TLS at all ends, too.
    let mut stream = TcpStream::connect(("127.0.0.1", world.https_port())).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: seed.example\r\n\r\n").unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).unwrap();
    assert_eq!(said.first(), Some(&21), "an alert: {said:?}");
    assert!(is_up(&world));
}

#[test]
fn a_renewed_certificate_is_used_at_once_and_no_connection_is_dropped() {
    let mut world = world();
    let mut old = connect(&world);
    let first = leaf(&old);
    ask(&mut old);
    world.age();
    until("a new certificate", || {
        ask(&mut old);
        std::thread::sleep(Duration::from_millis(50));
        leaf(&connect(&world)) != first
    });
    ask(&mut old);
    assert_eq!(leaf(&old), first, "who was there goes on with what it has");
    let ledger = world.ledger();
    let keys: std::collections::BTreeSet<_> = ledger.certificates.values().map(|certificate| &certificate.key).collect();
    assert_eq!((ledger.certificates.len(), keys.len()), (2, 1), "the key stays");
    assert!(ledger.orders.values().any(|order| order.renewal && order.replaces.is_some()), "{:?}", ledger.orders);
}

#[test]
fn a_kill_at_any_moment_of_the_hosts_own_order_loses_nothing() {
    let mut world = World::with_https();
    world.start_ca();
    let mut caught = 0;
    for (turn, pause) in [0, 20, 60, 100, 150, 250].into_iter().enumerate() {
        let before = world.ledger().certificates.len();
        if turn > 0 {
            world.age();
        }
        let working = |world: &World| world.ledger().orders.values().any(|order| matches!(order.stage, Stage::Working(_)));
        until("an order", || working(&world) || world.ledger().certificates.len() > before);
        std::thread::sleep(Duration::from_millis(pause));
        caught += usize::from(working(&world));
        if turn % 2 == 0 {
            world.kill_doors();
            world.open_doors();
        } else {
            world.kill_agent();
            world.start_agent();
        }
        until("the certificate", || world.ledger().certificates.len() > before && !working(&world));
        until("HTTPS", || is_up(&world));
    }
    eprintln!("{caught} of 6 kills met an order on its way");
    assert!(caught >= 2, "{caught} of 6 kills met an order on its way: the pauses are too long");
    let ledger = world.ledger();
    let keys: std::collections::BTreeSet<_> = ledger.certificates.values().map(|certificate| &certificate.key).collect();
    assert_eq!((ledger.certificates.len(), keys.len()), (6, 1), "one for each time that one was due, and all for one key");
    assert!(ledger.challenges().is_empty());
}

#[test]
fn a_connection_that_is_passed_on_says_whose_it_is_first() {
    let world = world();
    let header = |client: u8| {
        let addresses = [203, 0, 113, client, 192, 0, 2, 1, 1, 1, 1, 187];
        [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[0x21, 0x11, 0, 12], &addresses].concat()
    };
    let mut passed = UnixStream::connect(world.path("https.sock")).unwrap();
    passed.write_all(&header(9)).unwrap();
    let mut passed = shake(&world, passed).unwrap();
    assert!(ask(&mut passed).contains("200 OK"));
    // Without it not even a handshake begins; and on TCP nobody can say to be somebody else.
    let bare = UnixStream::connect(world.path("https.sock")).unwrap();
    assert!(shake(&world, bare).is_err());
    let mut liar = TcpStream::connect(("127.0.0.1", world.https_port())).unwrap();
    liar.write_all(&header(9)).unwrap();
    assert!(shake(&world, liar).is_err());
}
