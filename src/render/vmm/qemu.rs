//! QEMU: the stand-in where there is no usable /dev/kvm. Without KVM it emulates, with one host thread for each virtual processor.

use super::{Invocation, Machine};

/// How QEMU runs `machine`.
pub fn invocation(machine: &Machine, kvm: bool, program: &str) -> Invocation {
    let mut argv: Vec<String> = vec![program.to_owned()];
    let mut option = |name: &str, value: String| argv.extend([name.to_owned(), value]);

    option("-name", list("debug-threads=on", &[("guest", &machine.name)]));
    // Without the devices of a PC that no guest here looks at: each costs time at every boot.
    let without = "vmport=off,hpet=off,graphics=off,i8042=off,usb=off,sata=off,dump-guest-core=off";
    option("-machine", format!("q35,memory-backend=memory,{without}"));
    // The buffer of translated code is bounded, so that it can be told from a guest's memory in the unit's limit.
    let (accel, cpu) = if kvm { ("kvm", "host") } else { ("tcg,thread=multi,tb-size=256", "max") };
    option("-accel", accel.into());
    option("-cpu", cpu.into());
    option("-smp", machine.vcpus.to_string());
    option("-m", format!("{}M", machine.memory_mib));
    // vhost-user devices live in other processes: they see the guest's memory because it is shared.
    option("-object", format!("memory-backend-memfd,id=memory,size={}M,share=on", machine.memory_mib));

    option("-kernel", machine.kernel.clone());
    option("-initrd", machine.initrd.clone());
    option("-append", machine.cmdline.clone());
    for string in &machine.oem_strings {
        option("-smbios", list("type=11", &[("value", string)]));
    }

    option("-chardev", "stdio,id=console,signal=off".into());
    option("-serial", "chardev:console".into());
    option("-chardev", list("socket", &[("id", "control"), ("path", &machine.control), ("server", "on"), ("wait", "off")]));
    option("-mon", "chardev=control,mode=control".into());

    option("-chardev", list("socket", &[("id", "store"), ("path", &machine.store)]));
    option("-device", "vhost-user-fs-pci,chardev=store,tag=store,queue-size=1024".into());
    option("-chardev", list("socket", &[("id", "vsock"), ("path", &machine.vhost_vsock)]));
    option("-device", "vhost-user-vsock-pci,chardev=vsock".into());
    option("-netdev", list("tap", &[("id", "net"), ("ifname", &machine.tap), ("script", "no"), ("downscript", "no")]));
    // Without a ROM: nothing boots from the network.
    option("-device", list("virtio-net-pci", &[("netdev", "net"), ("mac", &machine.mac), ("romfile", "")]));
    for (index, disk) in machine.volumes.iter().enumerate() {
        let node = format!("volume{index}");
        let file = [("node-name", node.as_str()), ("discard", "unmap"), ("file.driver", "file"), ("file.filename", &disk.path)];
        option("-blockdev", list("driver=raw,file.discard=unmap", &file));
        option("-device", list("virtio-blk-pci", &[("drive", &node), ("serial", &disk.serial)]));
    }
    if let Some(socket) = &machine.tpm {
        option("-chardev", list("socket", &[("id", "tpm"), ("path", socket)]));
        option("-tpmdev", "emulator,id=tpm,chardev=tpm".into());
        option("-device", "tpm-crb,tpmdev=tpm".into());
    }
    option("-device", "virtio-rng-pci".into());
    option("-device", "pvpanic-pci".into());

    // A guest that panics ends in failure, one that reboots ends: systemd starts it again, with new helpers.
    option("-action", "panic=exit-failure,reboot=shutdown".into());
    option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".into());
    argv.extend(["-nodefaults", "-no-user-config", "-display", "none"].map(str::to_owned));
    Invocation { argv, control: format!("qmp:{}", machine.control) }
}

/// An option list: `head,key=value,…`. A comma in a value is written twice.
fn list(head: &str, options: &[(&str, &str)]) -> String {
    let mut text = head.to_owned();
    for (key, value) in options {
        text.push(',');
        text.push_str(key);
        text.push('=');
        text.push_str(&value.replace(',', ",,"));
    }
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::{super::tests::hostile, *};

    /// The options of one argument, split as QEMU splits them.
    pub(crate) fn split(argument: &str) -> Vec<(String, String)> {
        let mut parts = vec![String::new()];
        let mut chars = argument.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                ',' if chars.peek() == Some(&',') => parts.last_mut().unwrap().push(chars.next().unwrap()),
                ',' => parts.push(String::new()),
                c => parts.last_mut().unwrap().push(c),
            }
        }
        let pair = |part: String| part.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).unwrap_or((part, String::new()));
        parts.into_iter().map(pair).collect()
    }

    fn value<'a>(argv: &'a [String], option: &str, having: &str) -> &'a str {
        let mut pairs = argv.windows(2).filter(|pair| pair[0] == option);
        &pairs.find(|pair| pair[1].contains(having)).unwrap_or_else(|| panic!("no {option} with {having}"))[1]
    }

    #[test]
    fn emulation_says_so_and_kvm_does_not_emulate() {
        let machine = hostile("quiet", "x");
        let emulated = invocation(&machine, false, "/bin/qemu").argv;
        assert_eq!(value(&emulated, "-accel", ""), "tcg,thread=multi,tb-size=256");
        let kvm = invocation(&machine, true, "/bin/qemu").argv;
        assert_eq!((value(&kvm, "-accel", ""), value(&kvm, "-cpu", "")), ("kvm", "host"));
        assert!(!kvm.iter().any(|argument| argument.contains("tcg")));
    }

    #[test]
    fn a_machine_without_a_tpm_or_volumes_has_neither() {
        let machine = Machine { tpm: None, volumes: Vec::new(), ..hostile("quiet", "x") };
        let argv = invocation(&machine, false, "/bin/qemu").argv;
        assert!(!argv.iter().any(|argument| argument.contains("tpm") || argument.contains("virtio-blk")));
    }

    proptest! {
        /// A path and a kernel command line of any bytes stay the values they are.
        #[test]
        fn no_value_opens_an_option(cmdline in ".{0,40}", path in "[^/\0]{1,20}") {
            let machine = hostile(&cmdline, &path);
            let argv = invocation(&machine, false, "/bin/qemu").argv;
            let plain = invocation(&hostile("quiet", "x"), false, "/bin/qemu").argv;
            prop_assert_eq!(argv.len(), plain.len());
            let keys = |argv: &[String]| -> Vec<Vec<String>> {
                let free = |at: usize| at > 0 && ["-append", "-kernel", "-initrd"].contains(&argv[at - 1].as_str());
                let listed = argv.iter().enumerate().filter(|(at, _)| !free(*at)).map(|(_, argument)| split(argument));
                listed.map(|options| options.into_iter().map(|(key, _)| key).collect()).collect()
            };
            prop_assert_eq!(keys(&argv), keys(&plain));
            prop_assert_eq!(value(&argv, "-append", ""), cmdline.as_str());
            let disk = split(value(&argv, "-blockdev", "volume0"));
            let path = format!("/run/{path}/data.img");
            prop_assert!(disk.contains(&("file.filename".to_owned(), path)));
        }
    }
}
