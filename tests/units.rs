//! How exposed the two processes are, by `systemd-analyze security`; and that the files beside their units say what they should.
#![allow(clippy::disallowed_methods, clippy::print_stderr, reason = "tests touch the machine")]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

fn units() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("units")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(units().join(name)).unwrap_or_else(|error| panic!("units/{name}: {error}"))
}

/// Runs systemd-analyze, or says loudly that it cannot. Both streams of its output.
fn analyze(arguments: &[&str]) -> Option<String> {
    let version = Command::new("systemd-analyze").arg("--version").output().ok();
    let version = version.and_then(|output| String::from_utf8(output.stdout).ok()?.split(' ').nth(1)?.parse::<u32>().ok());
    if version.is_none_or(|version| version < 252) {
        eprintln!("SKIPPED: systemd-analyze 252 or later is not there (apt-get install systemd): exposure is not checked");
        return None;
    }
    let output = Command::new("systemd-analyze").args(arguments).env("SYSTEMD_EMOJI", "0").output().expect("it was there");
    Some(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

/// The values of a setting in a unit file, in order.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

#[test]
fn the_processes_are_no_more_exposed_than_agreed() {
    for (unit, most) in
        [("seed-agent.service", 4.0), ("seed-serve.service", 1.5), ("seed-recover.service", 1.5), ("seed-ingress.service", 1.5)]
    {
        let path = units().join(unit);
        let Some(output) = analyze(&["security", "--offline=yes", "--no-pager", path.to_str().expect("text")]) else { return };
        let line =
            output.lines().find(|line| line.contains("Overall exposure level")).unwrap_or_else(|| panic!("no verdict in {output}"));
        let level: f64 = line.rsplit(": ").next().and_then(|text| text.split(' ').next()?.parse().ok()).expect("a number");
        eprintln!("{unit}: exposure {level} (at most {most})");
        assert!(level <= most, "{unit} has an exposure of {level}, more than {most}:\n{output}");
    }
}

#[test]
fn systemd_understands_every_line_of_the_units() {
    for entry in std::fs::read_dir(units()).expect("units/ is there") {
        let path = entry.expect("readable").path();
        if !path.extension().is_some_and(|extension| extension == "service" || extension == "socket") {
            continue;
        }
        let Some(output) = analyze(&["verify", "--man=no", path.to_str().expect("text")]) else { return };
        // Other units and the binary need not be on this machine; what stands in the files must be understood.
        let wrong: Vec<&str> = output
            .lines()
            .filter(|line| line.contains("units/seed-") && !line.contains("is not executable"))
            .filter(|line| ["Unknown", "Failed to parse", "Invalid", "Missing", "ignoring"].iter().any(|word| line.contains(word)))
            .collect();
        assert!(wrong.is_empty(), "{}: {wrong:#?}", path.display());
    }
}

#[test]
fn a_death_of_the_agent_or_the_doors_is_followed_by_a_new_life_and_touches_nothing_else() {
    for unit in ["seed-agent.service", "seed-serve.service"] {
        let text = read(unit);
        for (key, value) in
            [("Type", "notify"), ("Restart", "always"), ("RestartPreventExitStatus", "78"), ("StartLimitIntervalSec", "0")]
        {
            assert_eq!(values(&text, key), [value], "{unit}: {key}=");
        }
        assert_eq!(values(&text, "NoNewPrivileges"), ["yes"], "{unit}");
        assert!(values(&text, "BindsTo").is_empty() && values(&text, "PartOf").is_empty(), "{unit}");
    }
    assert_eq!(values(&read("seed-serve.service"), "User"), ["seed"]);
    // What was pushed is whole before anything is built of it.
    assert_eq!(values(&read("seed-recover.service"), "Before"), ["seed-agent.service seed-serve.service"]);
    assert!(values(&read("seed-agent.service"), "Wants")[0].contains("seed-recover.service"));
    assert_eq!(values(&read("seed-serve.service"), "CapabilityBoundingSet"), [""]);
    assert!(!values(&read("seed-agent.service"), "RestrictAddressFamilies").iter().any(|families| families.contains("AF_INET")));
}

#[test]
fn the_doors_get_every_socket_by_the_name_that_they_look_for() {
    let given: BTreeSet<String> = values(&read("seed-serve.service"), "Sockets")[0].split(' ').map(str::to_owned).collect();
    let mut names = BTreeSet::new();
    for unit in &given {
        let text = read(unit);
        assert_eq!(values(&text, "Service"), ["seed-serve.service"], "{unit}");
        names.extend(values(&text, "FileDescriptorName").into_iter().map(str::to_owned));
    }
    assert_eq!(names, ["acme", "dns-tcp", "dns-udp", "http", "https", "ssh"].map(str::to_owned).into());
    let socket = read("seed-serve.socket");
    let also: Vec<&str> = values(&socket, "Also")[0].split(' ').collect();
    assert_eq!(also.len() + 1, given.len(), "enabling seed-serve.socket enables every socket");
}

#[test]
fn the_ingress_gets_its_sockets_in_the_order_of_its_configuration_and_nobody_commands_it() {
    let socket = read("seed-ingress.socket");
    let expected = ["0.0.0.0:80", "[::]:80", "0.0.0.0:443", "[::]:443", "/run/seed/ingress/admin.sock"];
    assert_eq!(values(&socket, "ListenStream"), expected);
    assert_eq!((values(&socket, "SocketMode"), values(&socket, "SocketUser")), (vec!["0600"], vec![]));
    let service = read("seed-ingress.service");
    assert_eq!((values(&service, "User"), values(&service, "CapabilityBoundingSet")), (vec!["seed-ingress"], vec![""]));
    assert_eq!((values(&service, "Restart"), values(&service, "StartLimitIntervalSec")), (vec!["always"], vec!["0"]));
    assert!(values(&service, "BindsTo").is_empty() && values(&service, "PartOf").is_empty());
}

#[test]
fn only_root_owns_the_name_on_the_bus_and_only_root_and_the_doors_speak_to_it() {
    let text = read("farm.loom.Seed1.conf");
    let mut policy = "";
    let mut allowed = BTreeSet::new();
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("<policy ") {
            policy = rest.trim_end_matches('>');
        } else if let Some(rest) = line.strip_prefix("<allow ") {
            allowed.insert((policy, rest.split('=').next().expect("an attribute")));
        }
    }
    let expected = [("user=\"root\"", "own"), ("user=\"root\"", "send_destination"), ("user=\"seed\"", "send_destination")].into();
    assert_eq!(allowed, expected);
    assert!(text.contains("<deny send_destination=\"farm.loom.Seed1\"/>"));
}
