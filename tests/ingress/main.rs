//! The real HAProxy with the rendered configuration: real TLS, real HTTP, and changes while it runs.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests touch the machine")]

mod world;

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use seed::plan::UnitState;
use world::{HTTP, HTTPS, World, client_hello, id, name, proxied};

const BOTH: [(&str, u16, bool); 2] = [("http", HTTP, false), ("https", HTTPS, false)];

/// A web server that answers every request with one page, behind the head of the PROXY protocol if it is to be there.
fn serve(world: &World, name: &str, page: &'static str, behind_proxy: bool) {
    let listener = TcpListener::bind((world.address(name), HTTP)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                let from = if behind_proxy { proxied(&mut stream).ip().to_string() } else { String::new() };
                let mut request = String::new();
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() {
                    request.push(char::from(byte[0]));
                    if request.ends_with("\r\n\r\n") {
                        let body = format!("{page} {from}\n{request}");
                        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
                        request.clear();
                    }
                }
            });
        }
    });
}

/// Takes connections at the port for HTTPS, and sends back what comes over them, byte by byte, behind a letter of its own.
fn echo(world: &World, name: &str, letter: u8) {
    let listener = TcpListener::bind((world.address(name), HTTPS)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                stream.write_all(&[letter]).unwrap();
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            });
        }
    });
}

/// What comes next over a connection, or nothing if it ends.
fn next(stream: &mut TcpStream) -> Option<u8> {
    let mut byte = [0];
    stream.read_exact(&mut byte).ok().map(|()| byte[0])
}

/// Passes over an echoed greeting: what is sent from now on comes back alone.
fn drain(stream: &mut TcpStream) {
    stream.write_all(b"\xff").unwrap();
    while next(stream).expect("the echo") != 0xff {}
}

/// A program that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// openssl's web server for a name, with a certificate for it.
fn tls_server(world: &World, instance: &str, page: &str) -> Server {
    let (at, host) = (world.path(instance), name(instance));
    std::fs::create_dir_all(&at).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec![host]).unwrap().self_signed(&key).unwrap();
    std::fs::write(at.join("cert.pem"), certificate.pem()).unwrap();
    std::fs::write(at.join("key.pem"), key.serialize_pem()).unwrap();
    std::fs::write(at.join("page"), page).unwrap();
    let accept = format!("{}:{HTTPS}", world.address(instance));
    let mut command = Command::new("openssl");
    command.args(["s_server", "-quiet", "-WWW", "-cert", "cert.pem", "-key", "key.pem", "-accept", &accept]).current_dir(at);
    Server(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

/// What curl gets over HTTPS from a server that proves to be `instance`.
fn fetch(world: &World, instance: &str, at: usize) -> String {
    let host = name(instance);
    let (ip, port) = (world.https[at].ip(), world.https[at].port());
    let ip = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
    let mut command = Command::new("curl");
    command.args(["-sS", "-m", "20", "--cacert"]).arg(world.path(instance).join("cert.pem"));
    command.args(["--resolve", &format!("{host}:{port}:{ip}"), &format!("https://{host}:{port}/page")]);
    let output = command.output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn the_configuration_is_one_that_this_haproxy_takes() {
    let mut world = World::new(70);
    world.add("web", &BOTH);
    let (valid, said) = world.check();
    assert!(valid, "{said}");
    let warned = said.lines().any(|line| line.contains("[WARNING]") || line.contains("[ALERT]"));
    assert!(!warned, "{said}");
}

#[tokio::test]
async fn https_goes_by_its_server_name_and_ends_in_the_guest() {
    let mut world = World::new(71);
    for instance in ["one", "two"] {
        world.add(instance, &BOTH);
    }
    world.converge().await;
    world.start().await;
    let servers = [tls_server(&world, "one", "this is one"), tls_server(&world, "two", "this is two")];
    for instance in ["one", "two"] {
        world.until("the server is up", async |world| TcpStream::connect((world.address(instance), HTTPS)).is_ok()).await;
        for at in [0, 1] {
            assert_eq!(fetch(&world, instance, at), format!("this is {instance}"));
        }
    }
    drop(servers);
    // What is no TLS gets nothing, and a name in capitals is the same name.
    let mut plain = TcpStream::connect(world.https[0]).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(next(&mut plain), None);
    echo(&world, "two", b'2');
    assert_eq!(next(&mut world.greet(0, Some(&name("two").to_uppercase()))), Some(b'2'));
}

#[tokio::test]
async fn http_goes_by_host_and_a_page_says_what_is_not_ready() {
    let mut world = World::new(72);
    world.add("one", &BOTH);
    world.add("two", &BOTH);
    world.add("tls", &[("https", HTTPS, false)]);
    world.add("db", &[("postgresql", 5432, false)]);
    world.converge().await;
    world.start().await;
    serve(&world, "one", "page one", false);
    serve(&world, "two", "page two", false);
    let (code, page) = world.page(&name("one"), &["-H", "X-Forwarded-For: 192.0.2.1", "-H", "Forwarded: for=192.0.2.1"]);
    assert_eq!(code, 200);
    assert!(page.starts_with("page one"), "{page}");
    // What the client said of itself is not passed on.
    assert!(page.contains("x-forwarded-for: 127.0.0.1\r") && page.contains("x-forwarded-proto: http"), "{page}");
    assert!(!page.contains("192.0.2.1"), "{page}");
    let (_, page) = world.page(&format!("{}.:80", name("two").to_uppercase()), &[]);
    assert!(page.starts_with("page two"), "{page}");

    // One connection, two names: each request goes where it is meant to.
    let mut stream = TcpStream::connect(world.http[0]).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    for instance in ["one", "two", "one"] {
        write!(stream, "GET / HTTP/1.1\r\nHost: {}\r\n\r\n", name(instance)).unwrap();
        let mut answer = String::new();
        while !answer.ends_with("http\r\n\r\n") {
            answer.push(char::from(next(&mut stream).expect("an answer")));
        }
        assert!(answer.contains(&format!("page {instance}")), "{answer}");
    }

    let gone = world.page("nothing.example", &[]);
    assert_eq!(gone, (404, "There is nothing by this name here.".to_owned()));
    assert_eq!(world.page(&name("db"), &[]).0, 404, "it exposes nothing that comes by name");
    let (code, _) = world.page(&name("tls"), &[]);
    assert_eq!(code, 308, "it speaks HTTPS only");
    for (state, said) in [
        (UnitState::Activating, "booting"),
        (UnitState::Deactivating, "stopping"),
        (UnitState::Inactive, "stopped"),
        (UnitState::Failed, "failed"),
    ] {
        world.states.insert(id("one"), state);
        world.converge().await;
        assert_eq!(world.page(&name("one"), &[]), (503, format!("{} is {said}.", name("one"))));
        assert_eq!(world.page(&name("two"), &[]).0, 200);
    }
    // Ready, and nothing there.
    world.add("empty", &BOTH);
    world.converge().await;
    let (code, page) = world.page(&name("empty"), &[]);
    assert!(code == 503 && page.contains("is running, but does not take connections"), "{code} {page}");
}

#[tokio::test]
async fn guests_that_ask_for_it_and_the_doors_hear_who_is_connected() {
    let mut world = World::new(73);
    world.add("web", &[("http", HTTP, true), ("https", HTTPS, true)]);
    world.converge().await;
    world.start().await;
    serve(&world, "web", "from", true);
    assert!(world.page(&name("web"), &["--interface", "127.0.0.9"]).1.starts_with("from 127.0.0.9"));

    let guest = TcpListener::bind((world.address("web"), HTTPS)).unwrap();
    for at in [0, 1] {
        let mut client = world.greet(at, Some(&name("web")));
        let (mut stream, _) = guest.accept().unwrap();
        assert_eq!(proxied(&mut stream), client.local_addr().unwrap());
        assert_eq!(next(&mut stream), Some(0x16), "the greeting is behind it");
        stream.write_all(b"!").unwrap();
        assert_eq!(next(&mut client), Some(b'!'));
    }

    // The host's own names, those that nobody has, and none: the doors see to them. Until there are any, they are hung up on.
    let door = world.path("doors/https.sock");
    for hello in [Some("seed.example"), Some("silo.seed.example"), Some("nothing.example"), None] {
        assert_eq!(next(&mut world.greet(0, hello)), None);
    }
    let door = UnixListener::bind(door).unwrap();
    let mut hellos = vec![Some("seed.example".to_owned()), Some("nothing.example".to_owned()), None];
    world.states.insert(id("web"), UnitState::Failed);
    world.converge().await;
    hellos.push(Some(name("web")));
    for hello in hellos {
        let client = world.greet(0, hello.as_deref());
        let (mut stream, _) = door.accept().unwrap();
        assert_eq!(proxied(&mut stream), client.local_addr().unwrap(), "{hello:?}");
    }
    let door = UnixListener::bind(world.path("doors/http.sock")).unwrap();
    let asked = std::thread::spawn(move || {
        let (mut stream, _) = door.accept().unwrap();
        let from = proxied(&mut stream);
        // All of the request: who hangs up on the rest of it takes his answer back.
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\ndoor").unwrap();
        from.ip().to_string()
    });
    assert_eq!(world.page("silo.seed.example", &[]), (200, "door".to_owned()));
    assert_eq!(asked.join().unwrap(), "127.0.0.1");
}

#[tokio::test]
async fn a_change_reloads_nothing_and_cuts_no_connection() {
    let mut world = World::new(74);
    for instance in ["one", "two"] {
        world.add(instance, &BOTH);
    }
    world.converge().await;
    world.start().await;
    let worker = world.worker().await;
    echo(&world, "one", b'1');
    echo(&world, "two", b'2');
    let mut old = world.greet(0, Some(&name("one")));
    assert_eq!(next(&mut old), Some(b'1'));
    drain(&mut old);
    // Ninety more, in one change: more than one line of commands holds.
    for n in 0..90 {
        world.add(&format!("more-{n}"), &BOTH);
    }
    world.states.insert(id("one"), UnitState::Inactive);
    assert_eq!(world.converge().await, 2 * 90 + 3);
    assert_eq!(world.converge().await, 0, "there is nothing left to change");
    assert_eq!(next(&mut world.greet(0, Some(&name("one")))), None, "it is not led to any more");
    assert_eq!(next(&mut world.greet(0, Some(&name("two")))), Some(b'2'));
    old.write_all(b"x").unwrap();
    assert_eq!(next(&mut old), Some(b'x'), "who was connected stays so");
    assert_eq!(world.worker().await, worker);

    // A reload, which only another Seed asks for, cuts none either.
    world.reload();
    world
        .until("the new one serves", async |world| {
            let new = seed::host::ingress::running(&world.layout).await.is_ok();
            new && world.worker().await != worker
        })
        .await;
    old.write_all(b"y").unwrap();
    assert_eq!(next(&mut old), Some(b'y'));
    assert_eq!(world.converge().await, 0, "it has read what it was told before");
}

#[tokio::test]
async fn one_that_was_killed_comes_back_with_its_maps_and_refused_nobody() {
    let mut world = World::new(75);
    world.add("one", &BOTH);
    world.add("two", &BOTH);
    world.states.insert(id("two"), UnitState::Failed);
    world.converge().await;
    world.start().await;
    echo(&world, "one", b'1');
    assert_eq!(next(&mut world.greet(0, Some(&name("one")))), Some(b'1'));
    world.kill();
    // While it is away, one gets ready: the agent writes it down.
    world.states.insert(id("two"), UnitState::Active);
    echo(&world, "two", b'2');
    assert_eq!(world.converge().await, 0);
    let mut waiting = world.greet(1, Some(&name("two")));
    world.start().await;
    assert_eq!(next(&mut waiting), Some(b'2'), "it waited");
    assert_eq!(next(&mut world.greet(0, Some(&name("one")))), Some(b'1'));
    assert_eq!(world.converge().await, 0);
}

#[tokio::test]
async fn a_crowd_from_one_address_keeps_nobody_else_away() {
    let mut world = World::new(76);
    world.add("web", &BOTH);
    world.converge().await;
    world.start().await;
    echo(&world, "web", b'w');
    let crowd: Vec<TcpStream> = (0..129).map(|_| TcpStream::connect(world.https[0]).unwrap()).collect();
    // It counts as it takes them.
    world.until("they are counted", async |world| world.crowd("near-https").await == 128).await;
    let mut late = world.greet(0, Some(&name("web")));
    assert_eq!(next(&mut late), None, "there are {} of them", crowd.len());
    assert_eq!(next(&mut world.greet(1, Some(&name("web")))), Some(b'w'));
    drop(crowd);
    // The same at port 80, where somebody else has another address of the same family.
    serve(&world, "web", "the page", false);
    let crowd: Vec<TcpStream> = (0..129).map(|_| TcpStream::connect(world.http[0]).unwrap()).collect();
    world.until("they are counted", async |world| world.crowd("near-http").await == 128).await;
    assert_eq!(world.page(&name("web"), &[]).0, 0, "there are {} of them", crowd.len());
    assert_eq!(world.page(&name("web"), &["--interface", "127.0.0.9"]).0, 200);
    drop(crowd);
    world.until("they have left", async |world| world.page(&name("web"), &[]).0 == 200).await;
}

/// A client that has all the time in the world.
struct Slow {
    stream: TcpStream,
    text: Vec<u8>,
    sent: usize,
}

impl Slow {
    async fn connect(to: SocketAddr, from: [u8; 4], text: Vec<u8>) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        Self { stream: socket.connect(to).await.unwrap().into_std().unwrap(), text, sent: 0 }
    }

    /// Sends one byte more, but never the last one. Whether it is connected still.
    fn goes_on(&mut self) -> bool {
        if self.sent + 1 < self.text.len() && self.stream.write(&self.text[self.sent..=self.sent]).is_ok() {
            self.sent += 1;
        }
        // It may be told why before it is hung up on.
        let mut bytes = [0; 512];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
    }
}

#[tokio::test]
async fn slow_clients_are_cut_off_and_keep_nobody_from_a_page() {
    let mut world = World::new(77);
    world.add("web", &BOTH);
    world.converge().await;
    world.start().await;
    serve(&world, "web", "the page", false);
    echo(&world, "web", b'w');
    // Three hundred at each port, from so many addresses that none is one too many.
    let request = format!("GET / HTTP/1.1\r\nHost: {}\r\nX-Slow: {}\r\n\r\n", name("web"), "x".repeat(4000));
    let hello = client_hello(Some(&name("web")));
    let (mut http, mut https) = (Vec::new(), Vec::new());
    for n in 0..300u16 {
        let from = [127, 0, 1, (n % 5) as u8 + 1];
        http.push(Slow::connect(world.http[0], from, request.clone().into_bytes()).await);
        https.push(Slow::connect(world.https[0], from, hello.clone()).await);
    }
    let began = Instant::now();
    let mut rounds = Vec::new();
    while !(http.is_empty() && https.is_empty()) {
        assert_eq!(world.page(&name("web"), &[]).0, 200);
        assert_eq!(next(&mut world.greet(0, Some(&name("web")))), Some(b'w'));
        http.retain_mut(Slow::goes_on);
        https.retain_mut(Slow::goes_on);
        rounds.push((http.len(), https.len()));
        assert!(began.elapsed() < Duration::from_secs(40), "{rounds:?}");
    }
    assert_eq!(rounds[0], (300, 300), "all of them were there");
    let full = |of: fn(&(usize, usize)) -> usize| rounds.iter().filter(|round| of(round) == 300).count();
    assert!(full(|round| round.1) < full(|round| round.0), "a greeting has less time than a request: {rounds:?}");
}
