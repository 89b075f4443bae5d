//! The manual is true, problems are found all at once, and the choice of the hypervisor.

use super::{tools::*, *};

const MANUAL: &str = include_str!("../../units/seed.toml");

fn problems(text: &str) -> Vec<String> {
    Config::parse(text).err().unwrap_or_default().iter().map(Problem::to_string).collect()
}

#[test]
fn the_manual_shows_every_key_with_its_default() {
    let config = Config::parse(MANUAL).expect("the manual can be used");
    assert_eq!(config, Config::default_of("seed.example".parse().expect("a domain")));
    assert_eq!(Config::parse("domain = \"seed.example\"").expect("enough"), config);
    let mut reader = Reader::new("");
    read(&mut reader);
    let written = MANUAL.parse::<toml::Table>().expect("TOML");
    for key in reader.keys() {
        let found = match key.split_once('.') {
            Some((section, key)) => written[section].get(key).is_some(),
            None => written.contains_key(&key),
        };
        assert!(found, "the manual does not show {key}");
    }
}

#[test]
fn every_problem_is_said_at_once_with_its_line_and_what_to_write() {
    let text = "domian = \"x.example\"\n\n[network]\npool4 = \"10.0.0.5/24\"\npool6 = \"fd00::/48\"\nupstream_dns = [\"9.9.9.9\",\n  \"dns\"]\n\
                uid_base = -1\nmax_pack = 1\n[hypervisor]\nkind = \"kvm\"\nboot_timeout_secs = \"90\"\n[ssh]\nport = 0\nmax_pack = \"1GB\"\n[net]\n";
    let expected = [
        "domain: is missing: write the domain of this host's names, as in domain = \"seed.example\"",
        "line 1: domian: there is no such key: did you mean domain?",
        "line 4: network.pool4 = \"10.0.0.5/24\": is an address inside of a network: write 10.0.0.0/24",
        "line 5: network.pool6 = \"fd00::/48\": must be a /64: write fd00::/64, or the one that you were given",
        "line 7: network.upstream_dns = \"dns\": is no address of a server: write 192.0.2.53 or 192.0.2.53:5353 or [2001:db8::53]:53",
        "line 8: network.uid_base = -1: must be a whole number from 1000 to 4294900000",
        "line 9: network.max_pack: there is no such key here: it belongs in [ssh]",
        "line 11: hypervisor.kind = \"kvm\": is none of the words for this: write one of \"auto\", \"cloud-hypervisor\", \"qemu\"",
        "line 12: hypervisor.boot_timeout_secs = \"90\": must be a whole number from 5 to 3600",
        "line 14: ssh.port = 0: must be a whole number from 1 to 65535",
        "line 15: ssh.max_pack = \"1GB\": is no size: write a whole number and one of Ki, Mi, Gi, Ti, as in 500Mi or 1Gi",
        "line 16: net: there is no such key or section: remove it, or write one of acme, audit, build, dns, github, hypervisor, ingress, logs, network, paths, quota, rollout, \
         ssh, storage, domain",
    ];
    assert_eq!(problems(text), expected);
}

#[test]
fn each_range_has_two_ends() {
    let table = [
        ("network", "pool4", "\"10.0.0.0/29\"", "\"10.0.0.0/30\""),
        ("network", "pool4", "\"10.0.0.0/8\"", "\"0.0.0.0/7\""),
        ("network", "pool4", "\"192.168.0.0/24\"", "\"127.0.0.0/24\""),
        ("network", "pool6", "\"2001:db8::/64\"", "\"2001:db8::/65\""),
        ("network", "pool6", "\"2001:db8:0:1::/64\"", "\"fe80::/64\""),
        ("github", "server", "\"https://git.example.org:8443/forge/\"", "\"git.example.org\""),
        ("github", "server", "\"http://192.0.2.7\"", "\"https://user:pass@git.example.org\""),
        ("github", "ssh_server", "\"ssh://git@git.example.org:2222/srv/\"", "\"https://git.example.org\""),
        ("github", "ssh_server", "\"\"", "\"ssh://-oProxyCommand=x@git.example.org\""),
        ("github", "webhook", "\"\"", "\"https://-x\""),
        ("github", "fetch_every_secs", "10", "9"),
        ("network", "uid_base", "65_536", "60_000"),
        ("network", "uid_base", "0x10_000", "999"),
        ("network", "public_addresses", "[\"192.0.2.1\", \"2001:db8::1\"]", "\"192.0.2.1\""),
        ("network", "nat_addresses", "[]", "[\"nat\"]"),
        ("network", "reserved_ports", "[\"65535\"]", "[\"65536\"]"),
        ("quota", "routes", "0", "65_536"),
        ("hypervisor", "stop_timeout_secs", "600", "601"),
        ("rollout", "drain_secs", "30", "29"),
        ("hypervisor", "boot_timeout_secs", "5", "4"),
        ("build", "parallel", "1", "0"),
        ("build", "eval_memory", "\"128Mi\"", "\"127Mi\""),
        ("build", "allow_addresses", "[\"10.0.0.0/8\", \"::1\"]", "[\"all\"]"),
        ("ssh", "port", "65_535", "65_536"),
        ("ssh", "max_pack", "\"64Gi\"", "\"1Ti\""),
        ("acme", "directory", "\"https://ca.example/dir\"", "\"http://ca.example/dir\""),
        ("acme", "email", "\"a@x.example\"", "\"a x.example\""),
        ("acme", "ca_root", "\"/etc/ca.pem\"", "\"ca.pem\""),
        ("acme", "per_week", "1", "0"),
        ("audit", "keep", "\"128Mi\"", "\"64Mi\""),
        ("logs", "max_per_instance", "\"16Mi\"", "\"15Mi\""),
        ("storage", "directory", "\"/srv/seed/\"", "\"srv\""),
        ("storage", "directory", "\"/srv/seed\"", "\"/srv/../etc\""),
        ("storage", "directory", "\"/srv/seed\"", "\"/\""),
        ("paths", "qemu", "\"/opt/qemu+x/bin/qemu\"", "\"/opt/a b\""),
        ("paths", "nix", "\"\"", "7"),
    ];
    for (section, key, good, bad) in table {
        let text = |value: &str| format!("domain = \"x.example\"\n[{section}]\n{key} = {value}\n");
        assert_eq!(problems(&text(good)), [""; 0]);
        let found = problems(&text(bad));
        assert!(found.len() == 1 && found[0].starts_with(&format!("line 3: {section}.{key} = ")), "{bad}: {found:?}");
    }
}

#[test]
fn what_is_no_toml_is_said_with_its_line_and_hides_nothing_after_it() {
    let found = problems("domain = \"x.example\"\n[network\npool4 = 7\nssh = 1\n[ssh]\nport = 0\nport = 1\n");
    assert!(found.iter().any(|line| line.starts_with("line 2: [network: ")), "{found:#?}");
    assert!(found.iter().any(|line| line.starts_with("line 7: port = 1: ")), "{found:#?}");
    assert_eq!(
        problems("network = 7\ndomain = \"x.example\""),
        ["line 1: network: is a section: write [network] and its keys below it"]
    );
    let error = Config::load(Path::new("/nonexistent/seed.toml")).expect_err("nothing is there");
    assert!(error.to_string().starts_with("could not read /nonexistent/seed.toml: "), "{error}");
}

#[test]
fn the_layout_is_what_was_written() {
    let text = "domain = \"x.example\"\n[storage]\ndirectory = \"/srv/s\"\n[paths]\nrun = \"/run/s\"\n[network]\npool4 = \"10.1.0.0/24\"\n\
                public_addresses = [\"192.0.2.1\", \"2001:db8::1\", \"192.0.2.2\"]";
    let config = Config::parse(text).expect("valid");
    let found = find(&config.paths, "");
    let layout = config.layout(Vmm::CloudHypervisor, found.tools);
    assert_eq!((layout.state, layout.run), (PathBuf::from("/srv/s"), PathBuf::from("/run/s")));
    assert_eq!(layout.addressing.gateway4().to_string(), "10.1.0.1");
    assert_eq!((layout.stop_timeout_secs, layout.boot_timeout_secs), (90, 300));
    assert_eq!(config.repositories(), PathBuf::from("/srv/s/repos"));
    let (v4, v6) = config.public_addresses();
    assert_eq!((v4.len(), v6.len()), (2, 1));
}

#[test]
fn other_names_are_asked_of_others_and_never_of_this_host() {
    let text = "# made by hand\nsearch x\nnameserver 127.0.0.1\nnameserver\t192.0.2.53 \n nameserver 192.0.2.54\nnameserver fe80::1%eth0\noptions edns0";
    assert_eq!(nameservers(text), ["127.0.0.1", "192.0.2.53"].map(|text| text.parse::<IpAddr>().expect("an address")));
    let config =
        Config::parse("domain = \"x.example\"\n[network]\nupstream_dns = [\"192.0.2.1\", \"[2001:db8::1]:5353\"]").expect("valid");
    let upstream: Vec<String> = config.upstream_dns().iter().map(SocketAddr::to_string).collect();
    assert_eq!(upstream, ["192.0.2.1:53", "[2001:db8::1]:5353"]);
    let config = Config::parse("domain = \"x.example\"").expect("valid");
    assert!(config.upstream_dns().iter().all(|server| !server.ip().is_loopback()));
}

#[test]
fn programs_are_where_the_configuration_says_or_where_they_are_found() {
    let config = Config::parse("domain = \"x.example\"\n[paths]\nnix = \"/nonexistent/nix\"\ngit = \"/bin/sh\"").expect("valid");
    let directory = tempfile::tempdir().expect("a place");
    let program = directory.path().join("cloud-hypervisor");
    std::fs::write(&program, "").expect("room");
    let path = format!("relative:{}", directory.path().display());
    assert_ne!(find(&config.paths, &path).tools.cloud_hypervisor, program.display().to_string(), "it cannot be executed");
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("ours");
    let found = find(&config.paths, &path);
    assert_eq!((found.tools.cloud_hypervisor, found.git), (program.display().to_string(), PathBuf::from("/bin/sh")));
    let missing = found.missing.iter().find(|missing| missing.key == "nix").expect("it is not there");
    assert_eq!(
        missing.to_string(),
        "there is no /nonexistent/nix: install it, or say where it is in the configuration, in [paths]: nix = \"/…\""
    );
}

#[test]
fn the_hypervisor_follows_from_the_configuration_and_from_what_is_there() {
    use Acceleration::{Auto, Kvm, Tcg};
    let domain = "x.example".parse().expect("a domain");
    let found = |missing: &[&'static str]| {
        let mut found = find(&Config::default_of("x.example".parse().expect("a domain")).paths, "");
        found.missing = missing.iter().map(|key| Missing { key, name: (*key).to_owned() }).collect();
        found
    };
    let base = Config::default_of(domain).hypervisor;
    let none = || Err("/dev/kvm is not there".to_owned());
    let table = [
        (HypervisorKind::Auto, Auto, found(&[]), Ok(()), Some("cloud-hypervisor: /dev/kvm can be used")),
        (HypervisorKind::Auto, Auto, found(&[]), none(), Some("qemu, emulating: /dev/kvm is not there")),
        (HypervisorKind::Auto, Auto, found(&["cloud_hypervisor"]), Ok(()), Some("qemu, with KVM: there is no cloud-hypervisor")),
        (HypervisorKind::Auto, Tcg, found(&[]), Ok(()), Some("qemu, emulating: the configuration asks for emulation")),
        (HypervisorKind::Auto, Kvm, found(&[]), none(), None),
        (HypervisorKind::Qemu, Auto, found(&[]), Ok(()), Some("qemu, with KVM: the configuration asks for it")),
        (HypervisorKind::Qemu, Auto, found(&["qemu"]), none(), None),
        (HypervisorKind::Qemu, Auto, found(&["vhost_device_vsock"]), none(), None),
        (HypervisorKind::CloudHypervisor, Auto, found(&[]), none(), None),
        (HypervisorKind::CloudHypervisor, Auto, found(&["cloud_hypervisor"]), Ok(()), None),
        (HypervisorKind::CloudHypervisor, Kvm, found(&["qemu"]), Ok(()), Some("cloud-hypervisor: the configuration asks for it")),
    ];
    for (kind, acceleration, found, kvm, expected) in table {
        let wanted = Hypervisor { kind, acceleration, ..base.clone() };
        let chosen = choose(&wanted, &found, kvm).map(|(_, why)| why);
        assert_eq!(chosen.as_deref().ok(), expected, "{wanted:?} {:?}: {chosen:?}", found.missing);
    }
}

#[test]
fn github_over_ssh_is_the_same_host_unless_it_is_said() {
    for (text, expected) in [
        ("", "ssh://git@github.com"),
        ("server = \"https://git.example.org:8443/forge\"", "ssh://git@git.example.org"),
        ("server = \"http://192.0.2.7\"\nssh_server = \"ssh://forge@192.0.2.8:2222/srv/\"", "ssh://forge@192.0.2.8:2222/srv"),
    ] {
        let config = Config::parse(&format!("domain = \"seed.example\"\n[github]\n{text}\n")).unwrap();
        assert_eq!(config.github_ssh(), expected);
    }
}
