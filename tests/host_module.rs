//! The host module and the binary agree: what `services.seed` writes is what the binary reads, and every key can be set.
#![allow(clippy::disallowed_methods, reason = "tests read files and run programs")]

#[path = "nixos/nix.rs"]
mod nix;

use std::{collections::BTreeSet, fs};

use nix::{instantiate, sources, top};
use seed::config::Config;

/// The configuration of a case of tests/nixos/seed-toml.nix.
fn written(nixpkgs: &str, case: &str) -> String {
    let file = top().join("tests/nixos/seed-toml.nix").display().to_string();
    let said = instantiate(&["--eval", "--json", &file, "-A", case, "--arg", "nixpkgs", nixpkgs]);
    assert!(said.worked, "{case}: {}", said.err);
    serde_json::from_str(&said.out).expect("a text")
}

fn keys(toml: &str) -> BTreeSet<String> {
    let table: toml::Table = toml.parse().unwrap_or_else(|error| panic!("{error}:\n{toml}"));
    let of = |(section, value): (&String, &toml::Value)| match value.as_table() {
        Some(keys) => keys.keys().map(|key| format!("{section}.{key}")).collect(),
        None => vec![section.clone()],
    };
    table.iter().flat_map(of).collect()
}

#[test]
fn what_the_host_module_writes_the_binary_reads_and_every_key_is_there() {
    let Some(nixpkgs) = sources("NIXPKGS", "the configuration that the host module writes is not read") else { return };
    let nixpkgs = nixpkgs.display().to_string();
    let manual = fs::read_to_string(top().join("units/seed.toml")).expect("the manual");

    let least = written(&nixpkgs, "least");
    assert_eq!(keys(&least), keys(&manual), "what the module writes has the manual's keys");
    let mut config = Config::parse(&least).unwrap_or_else(|problems| panic!("{problems:#?}\n{least}"));
    assert!(config.paths.seed.is_some() && config.paths.nix.is_some(), "no program is looked for");
    let defaults = Config::default_of("seed.example".parse().expect("a domain"));
    config.paths = defaults.paths.clone();
    assert_eq!(config, defaults, "an option's default is the key's");

    // Every key has another value than its default, so each option got to its key.
    let most = written(&nixpkgs, "most");
    let config = Config::parse(&most).unwrap_or_else(|problems| panic!("{problems:#?}\n{most}"));
    let (most, defaults): (toml::Table, toml::Table) = (most.parse().expect("TOML"), manual.parse().expect("TOML"));
    for key in keys(&manual).iter().filter(|key| !["domain", "dns.dnssec"].contains(&key.as_str())) {
        let (section, name) = key.split_once('.').expect("a section");
        assert_ne!(most[section][name], defaults[section][name], "{key} is as ever");
    }
    assert_eq!((config.ssh.port, config.build.parallel, config.hypervisor.boot_timeout_secs), (2222, 64, 5));

    assert!(Config::parse(&written(&nixpkgs, "signed")).expect("it is valid").dns.dnssec);

    let problems = Config::parse(&written(&nixpkgs, "wrong")).expect_err("there is no such key");
    assert!(problems[0].to_string().contains("network.pool5: there is no such key: did you mean pool4?"), "{problems:?}");
}
