//! What is rendered, to the byte: each folder of tests/fixtures holds a `case.json` and the text of every unit, file and ruleset that
//! comes of it. `SEED_BLESS=1 cargo test --test render` writes them anew; then `git diff` shows what a change means on a machine.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "fixtures are files")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use seed::{
    render::{Layout, Tools, Vmm, target},
    spec::{
        address::{Addressing, Lease},
        desired::{Desired, Wanted},
        instance::Instance,
        name::{InstanceId, SetId},
        quantity::Bytes,
        route::{PublicAddress, Route},
    },
};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    /// `qemu`, `qemu-kvm`, `cloud-hypervisor`
    vmm: String,
    instances: BTreeMap<SetId, CaseInstance>,
    #[serde(default)]
    routes: BTreeMap<InstanceId, Vec<Route>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CaseInstance {
    lease: Lease,
    instance: Instance,
}

fn layout(vmm: &str) -> Layout {
    Layout {
        state: "/var/lib/seed".into(),
        run: "/run/seed".into(),
        units: "/run/systemd/system".into(),
        domain: "seed.example".parse().unwrap(),
        addressing: Addressing {
            pool4: "10.88.0.0/16".parse().unwrap(),
            pool6: "fd5e:ed00::/64".parse().unwrap(),
            uid_base: 800_000,
        },
        vmm: match vmm {
            "qemu" => Vmm::Qemu { kvm: false },
            "qemu-kvm" => Vmm::Qemu { kvm: true },
            "cloud-hypervisor" => Vmm::CloudHypervisor,
            other => panic!("no VMM is called {other}"),
        },
        tools: Tools {
            seed: "/usr/bin/seed".into(),
            cloud_hypervisor: "/usr/bin/cloud-hypervisor".into(),
            qemu: "/usr/bin/qemu-system-x86_64".into(),
            virtiofsd: "/usr/libexec/virtiofsd".into(),
            swtpm: "/usr/bin/swtpm".into(),
            vhost_device_vsock: "/usr/bin/vhost-device-vsock".into(),
            journal_remote: "/usr/lib/systemd/systemd-journal-remote".into(),
        },
        stop_timeout_secs: 90,
        boot_timeout_secs: 300,
        guest_ca: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".into(),
        log_max: Bytes(64 << 20),
        public: [("203.0.113.7", "10.0.0.5"), ("2001:db8::7", "2001:db8::7")]
            .map(|(address, arrives)| PublicAddress { address: address.parse().unwrap(), arrives: arrives.parse().unwrap() })
            .into(),
        ingress: None,
    }
}

/// File name to text.
fn render(folder: &Path) -> BTreeMap<String, String> {
    let case: Case = serde_json::from_str(&fs::read_to_string(folder.join("case.json")).unwrap()).unwrap();
    let wanted = |one: CaseInstance| Wanted { instance: one.instance, lease: one.lease };
    let instances = case.instances.into_iter().map(|(id, one)| (id, wanted(one))).collect();
    let desired = Desired { instances, routes: case.routes, ..Desired::default() };
    let target = target(&desired, &layout(&case.vmm));
    let mut made = BTreeMap::from([("firewall.nft".to_owned(), target.firewall)]);
    for (id, instance) in target.instances {
        for unit in instance.units {
            made.insert(unit.name, unit.text);
        }
        for file in instance.files {
            let name = file.path.file_name().unwrap().to_str().unwrap();
            made.insert(format!("{}.{name}", id.unit_instance()), file.text);
        }
    }
    made
}

#[test]
fn every_case_renders_as_it_is_written_down() {
    let folders = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut cases: Vec<PathBuf> = fs::read_dir(folders).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.retain(|folder| folder.join("case.json").exists());
    assert!(cases.len() >= 3, "{cases:?}");
    let bless = std::env::var_os("SEED_BLESS").is_some();
    let mut wrong = Vec::new();
    for folder in cases {
        let made = render(&folder);
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if name != "case.json" && !made.contains_key(&name) {
                wrong.push(format!("{}: is not rendered any more", path.display()));
                if bless {
                    fs::remove_file(path).unwrap();
                }
            }
        }
        for (name, text) in made {
            let path = folder.join(name);
            let have = fs::read_to_string(&path).unwrap_or_default();
            if have != text {
                let at = have.lines().zip(text.lines()).take_while(|(a, b)| a == b).count();
                let line = |text: &str| text.lines().nth(at).unwrap_or("(end)").to_owned();
                wrong.push(format!("{}:{}:\n  have {}\n  made {}", path.display(), at + 1, line(&have), line(&text)));
                if bless {
                    fs::write(path, text).unwrap();
                }
            }
        }
    }
    assert!(wrong.is_empty() || bless, "{}\nSEED_BLESS=1 writes them anew", wrong.join("\n"));
}
