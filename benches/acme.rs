//! C-P16: a certificate through the ACME door, by lego, against lego that asks the same CA itself and has to prove its name over HTTP.

use std::time::Instant;

use crate::{
    acme_world::{World, command, name, run},
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

fn lego(world: &World, server: &str, folder: &str, words: &[&str]) -> f64 {
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
    lego.arg("--path").arg(world.path(folder)).args(["--http", "--http.port", &world.proof_address()]).args(words);
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
    let asked = || world.ca_said("-> calling handler()");
    let (mut direct, mut ours, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    let (mut asked_direct, mut asked_ours, mut asked_kept) = (0, 0, 0);
    for round in 0..ROUNDS {
        let at = asked();
        direct.push(lego(&world, &world.ca_directory(), &format!("direct{round}"), &["run"]));
        asked_direct = asked() - at;
        let at = asked();
        ours.push(lego(&world, &world.directory_url(), &format!("ours{round}"), &["run"]));
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
    sheet.set("acme-cold", ours / direct, format!("{ours:.2} s; itself {direct:.2} s"));
    sheet.set("acme-kept", kept / direct, format!("{kept:.2} s"));
    sheet.set("acme-kept-asked", asked_kept as f64, "");
    sheet.set("acme-asked", asked_ours as f64, format!("lego itself: {asked_direct}"));
}
