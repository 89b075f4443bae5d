//! C-P16: a certificate through the ACME door, by lego, against lego that asks the same CA itself and has to prove its name over HTTP.

use std::{
    net::TcpListener,
    process::{Child, Stdio},
    time::Instant,
};

use crate::{
    acme_world::{World, command, name, run, until},
    table::{Row, Sheet},
};

const ROUNDS: usize = 3;

pub fn rows() -> Vec<Row> {
    vec![
        Row::new("acme-cold", "C-P16", "ACME: a first certificate, wall", "lego at pebble itself", "x", 1.0),
        Row::new("acme-kept", "C-P16", "ACME: the same names and key again, wall", "lego at pebble itself", "x", 0.25),
        Row::new("acme-kept-asked", "C-P16", "ACME: the same names and key again, questions to the CA", "-", "requests", 0.0),
        Row::known(
            "acme-asked",
            "C-P16",
            "ACME: a first certificate, questions to the CA",
            "lego itself: see the note",
            "requests",
        ),
    ]
}

/// A pebble of its own for lego itself, which proves its name over HTTP on this machine: all names are 127.0.0.1 to it.
struct Peer {
    directory: String,
    proof: String,
    log: std::path::PathBuf,
    running: Vec<Child>,
}

impl Peer {
    fn start(world: &World) -> Self {
        let ports: Vec<u16> =
            (0..5).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).map(|free| free.local_addr().unwrap().port()).collect();
        let at = |n: usize| format!("127.0.0.1:{}", ports[n]);
        let config = serde_json::json!({ "pebble": {
            "listenAddress": at(0), "managementListenAddress": at(1), "certificate": world.path("ca.pem"), "privateKey": world.path("ca.key"),
            "httpPort": ports[2], "tlsPort": 1, "ocspResponderURL": "", "externalAccountBindingRequired": false,
        } });
        std::fs::write(world.path("peer.json"), config.to_string()).unwrap();
        let log = world.path("peer.log");
        let mut names = command("pebble-challtestsrv");
        names.args(["-dns01", &at(3), "-management", &at(4), "-http01", "", "-https01", "", "-tlsalpn01", ""]);
        names.args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut pebble = command("pebble");
        pebble.arg("-strict").arg("-config").arg(world.path("peer.json")).args(["-dnsserver", &at(3)]);
        pebble.envs([("PEBBLE_VA_NOSLEEP", "1"), ("PEBBLE_WFE_NONCEREJECT", "0")]);
        pebble.stdout(std::fs::File::create(&log).unwrap()).stderr(Stdio::null());
        let running = vec![names.spawn().unwrap(), pebble.spawn().unwrap()];
        until("the peer", || std::net::TcpStream::connect(at(0)).is_ok());
        Self { directory: format!("https://{}/dir", at(0)), proof: at(2), log, running }
    }

    fn asked(&self) -> usize {
        std::fs::read_to_string(&self.log).unwrap().matches("-> calling handler()").count()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        for child in &mut self.running {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn lego(world: &World, server: &str, proof: &str, folder: &str) -> f64 {
    let mut lego = command("lego");
    lego.args([
        "--accept-tos",
        "--email",
        "ann@seed.example",
        "--key-type",
        "ec256",
        "--domains",
        &name("first"),
        "--server",
        server,
    ]);
    lego.arg("--path").arg(world.path(folder)).args(["--http", "--http.port", proof, "run"]);
    let began = Instant::now();
    run(lego.env("LEGO_CA_CERTIFICATES", world.path("root.pem")));
    began.elapsed().as_secs_f64()
}

fn middle(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

pub fn measure(_: &mut crate::place::Place, sheet: &mut Sheet) {
    // Refused nonces would be luck.
    let world = World::that_rejects(0);
    let peer = Peer::start(&world);
    let asked = || world.ca_said("-> calling handler()");
    let (mut direct, mut ours, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    let (mut asked_direct, mut asked_ours, mut asked_kept) = (0, 0, 0);
    for round in 0..ROUNDS {
        let at = peer.asked();
        direct.push(lego(&world, &peer.directory, &peer.proof, &format!("direct{round}")));
        asked_direct = peer.asked() - at;
        let at = asked();
        ours.push(lego(&world, &world.directory_url(), "127.0.0.1:1", &format!("ours{round}")));
        asked_ours = asked() - at;
        let at = asked();
        // Everything but the key is lost.
        let key = world.path(&format!("ours{round}/certificates/{}.key", name("first")));
        let key = rcgen::KeyPair::from_pem(&std::fs::read_to_string(key).unwrap()).unwrap();
        let mut csr = rcgen::CertificateParams::new(vec![name("first")]).unwrap();
        csr.distinguished_name = rcgen::DistinguishedName::new();
        let path = world.path("request.pem");
        std::fs::write(&path, csr.serialize_request(&key).unwrap().pem().unwrap()).unwrap();
        let mut lego = command("lego");
        lego.args(["--accept-tos", "--email", "ann@seed.example", "--server", &world.directory_url(), "--csr"]).arg(&path);
        lego.arg("--path").arg(world.path(&format!("kept{round}"))).args(["--http", "--http.port", "127.0.0.1:1", "run"]);
        let began = Instant::now();
        run(&mut lego);
        kept.push(began.elapsed().as_secs_f64());
        asked_kept = asked() - at;
    }
    let (direct, ours, kept) = (middle(direct), middle(ours), middle(kept));
    sheet.set(
        "acme-cold",
        ours / direct,
        format!("{ours:.2} s; itself {direct:.2} s, most of it lego's pause before it looks whether its proof was seen"),
    );
    sheet.set("acme-kept", kept / direct, format!("{kept:.2} s"));
    sheet.set("acme-kept-asked", asked_kept as f64, "");
    sheet.set("acme-asked", asked_ours as f64, format!("lego itself: {asked_direct}"));
}
