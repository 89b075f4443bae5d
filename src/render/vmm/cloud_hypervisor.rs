//! Cloud Hypervisor: the VMM of a host with KVM. The same machine can be given on its command line or through its API.

use serde_json::{Value, json};

use super::{Invocation, Machine};

/// How Cloud Hypervisor runs `machine`.
///
/// Every option and its value are one argument: a value of its own that begins with `-` would be taken for an option.
pub fn invocation(machine: &Machine, program: &str) -> Invocation {
    let mut argv: Vec<String> = vec![program.to_owned()];
    let mut option = |name: &str, value: String| argv.push(format!("--{name}={value}"));

    option("api-socket", list(&[("path", &machine.control)]));
    // `seed vm` listens there, and ends a machine that panics or reboots.
    option("event-monitor", list(&[("path", &format!("{}.events", machine.control))]));
    option("cpus", format!("boot={}", machine.vcpus));
    // virtiofsd is another process: it sees the guest's memory because it is shared.
    option("memory", format!("size={}M,shared=on", machine.memory_mib));
    option("kernel", machine.kernel.clone());
    option("initramfs", machine.initrd.clone());
    option("cmdline", machine.cmdline.clone());
    // The elements of a list keep their quotes, so a string that needs some would arrive with them. Credentials need none.
    let strings: Vec<String> = machine.oem_strings.iter().map(|string| quote(string)).collect();
    option("platform", format!("oem_strings=[{}]", strings.join(",")));
    option("serial", "tty".into());
    option("console", "off".into());
    option("fs", list(&[("tag", "store"), ("socket", &machine.store), ("num_queues", "1"), ("queue_size", "1024")]));
    option("net", list(&[("tap", &machine.tap), ("mac", &machine.mac)]));
    option("vsock", list(&[("cid", &machine.cid.to_string()), ("socket", &machine.vsock)]));
    // Its own seccomp filters are on without a word. Landlock stays off: it would keep the flags of a tap that exists from being read,
    // and what it forbids, the unit forbids. No watchdog: Linux has no driver for this one.
    argv.push("--pvpanic".to_owned());
    // This one is given once and takes a value for each disk; every value begins with `path=`.
    if !machine.volumes.is_empty() {
        argv.push("--disk".to_owned());
    }
    for disk in &machine.volumes {
        argv.push(list(&[("path", &disk.path), ("image_type", "raw"), ("serial", &disk.serial)]));
    }
    if let Some(socket) = &machine.tpm {
        argv.push(format!("--tpm={}", list(&[("socket", socket)])));
    }
    Invocation { argv, control: format!("api:{}", machine.control) }
}

/// The same machine as the body of `PUT /api/v1/vm.create`.
pub fn api_config(machine: &Machine) -> Value {
    let disk = |disk: &super::Disk| json!({ "path": disk.path, "image_type": "Raw", "serial": disk.serial });
    let mut config = json!({
        "cpus": { "boot_vcpus": machine.vcpus, "max_vcpus": machine.vcpus },
        "memory": { "size": machine.memory_mib << 20, "shared": true },
        "payload": { "kernel": machine.kernel, "initramfs": machine.initrd, "cmdline": machine.cmdline },
        "platform": { "oem_strings": machine.oem_strings },
        "serial": { "mode": "Tty" },
        "console": { "mode": "Off" },
        "fs": [{ "tag": "store", "socket": machine.store, "num_queues": 1, "queue_size": 1024 }],
        "net": [{ "tap": machine.tap, "mac": machine.mac }],
        "vsock": { "cid": machine.cid, "socket": machine.vsock },
        "pvpanic": true,
    });
    if !machine.volumes.is_empty() {
        config["disks"] = machine.volumes.iter().map(disk).collect();
    }
    if let Some(socket) = &machine.tpm {
        config["tpm"] = json!({ "socket": socket });
    }
    config
}

/// An option list: `key=value,…`.
fn list(options: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = options.iter().map(|(key, value)| format!("{key}={}", quote(value))).collect();
    pairs.join(",")
}

/// A value in an option list. Inside of double quotes only the double quote means something, and is written twice.
fn quote(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@".contains(c);
    if !value.is_empty() && value.chars().all(plain) { value.to_owned() } else { format!("\"{}\"", value.replace('"', "\"\"")) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::tests::hostile, *};

    /// Splits at commas as Cloud Hypervisor does: outside of quotes and brackets.
    fn split(text: &str) -> Vec<String> {
        let (mut parts, mut depth, mut quoted) = (vec![String::new()], 0, false);
        for c in text.trim().chars() {
            match c {
                '"' => quoted = !quoted,
                _ if quoted => {}
                '[' => depth += 1,
                ']' => depth -= 1,
                ',' if depth == 0 => {
                    parts.push(String::new());
                    continue;
                }
                _ => {}
            }
            parts.last_mut().unwrap().push(c);
        }
        assert!(!quoted && depth == 0, "unbalanced: {text:?}");
        parts
    }

    fn dequote(text: &str) -> String {
        let (mut made, mut quoted, mut before) = (String::new(), false, '\0');
        for c in text.chars() {
            if c == '"' {
                if before == '"' && !quoted {
                    made.push('"');
                }
                quoted = !quoted;
            } else {
                made.push(c);
            }
            before = c;
        }
        made
    }

    fn options(argument: &str) -> Vec<(String, String)> {
        let pair =
            |part: String| part.split_once('=').map(|(k, v)| (k.to_owned(), dequote(v.trim()))).unwrap_or((part, String::new()));
        split(argument).into_iter().map(pair).collect()
    }

    fn value<'a>(argv: &'a [String], option: &str) -> &'a str {
        if let Some(at) = argv.iter().position(|argument| argument[..].strip_prefix("--") == Some(option)) {
            return &argv[at + 1];
        }
        let prefix = format!("--{option}=");
        argv.iter().find_map(|argument| argument.strip_prefix(&prefix)).unwrap_or_else(|| panic!("no {option}"))
    }

    #[test]
    fn the_command_line_and_the_api_say_the_same() {
        let machine = hostile("quiet", "x");
        let argv = invocation(&machine, "/bin/ch").argv;
        let config = api_config(&machine);
        assert_eq!(value(&argv, "cmdline"), config["payload"]["cmdline"]);
        assert_eq!(value(&argv, "memory"), "size=2048M,shared=on");
        assert_eq!(config["memory"]["size"], 2048u64 << 20);
        let strings = options(value(&argv, "platform"))[0].1.clone();
        let strings: Vec<String> = split(strings.trim_matches(['[', ']']));
        assert_eq!(json!(strings), config["platform"]["oem_strings"]);
        assert_eq!(options(value(&argv, "tpm"))[0].1, config["tpm"]["socket"].as_str().unwrap());
        assert_eq!(options(value(&argv, "disk"))[2].1, config["disks"][0]["serial"].as_str().unwrap());
    }

    #[test]
    fn what_a_guest_did_not_ask_for_is_not_there() {
        let machine = Machine { tpm: None, volumes: Vec::new(), ..hostile("quiet", "x") };
        let argv = invocation(&machine, "/bin/ch").argv;
        assert!(!argv.iter().any(|argument| argument.starts_with("--tpm") || argument.starts_with("--disk")));
        let config = api_config(&machine);
        assert!(config.get("tpm").is_none() && config.get("disks").is_none());
    }

    proptest! {
        #[test]
        fn no_value_opens_an_option(cmdline in ".{0,40}", path in "[^/\0]{1,20}") {
            let argv = invocation(&hostile(&cmdline, &path), "/bin/ch").argv;
            let plain = invocation(&hostile("quiet", "x"), "/bin/ch").argv;
            let names = |argv: &[String]| -> Vec<String> { argv.iter().map(|a| a.split('=').next().unwrap().to_owned()).collect() };
            prop_assert_eq!(names(&argv), names(&plain));
            prop_assert_eq!(value(&argv, "cmdline"), cmdline.as_str());
            for (option, at) in [("fs", "store.sock"), ("vsock", "vsock"), ("tpm", "tpm.sock"), ("disk", "data.img")] {
                let (made, wanted) = (options(value(&argv, option)), options(value(&plain, option)));
                let keys = |options: &[(String, String)]| -> Vec<String> { options.iter().map(|(key, _)| key.clone()).collect() };
                prop_assert_eq!(keys(&made), keys(&wanted));
                prop_assert!(made.iter().any(|(_, value)| *value == format!("/run/{path}/{at}")), "{:?}", made);
            }
        }
    }
}
