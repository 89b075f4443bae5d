//! The folders and files of instances, in a folder of their own.

use std::os::unix::fs::FileTypeExt;

use super::*;

fn id() -> SetId {
    "s-gaydazldmnsg/web".parse().unwrap()
}

fn layout(dir: &Path) -> Layout {
    let nothing = || "/bin/false".to_owned();
    Layout {
        state: dir.join("state"),
        run: dir.join("run"),
        units: dir.join("units"),
        domain: "seed.example".parse().unwrap(),
        addressing: crate::spec::address::Addressing {
            pool4: "10.88.0.0/24".parse().unwrap(),
            pool6: "fd5e:ed00::/64".parse().unwrap(),
            uid_base: 800_000,
        },
        vmm: crate::render::Vmm::CloudHypervisor,
        tools: crate::render::Tools {
            seed: nothing(),
            cloud_hypervisor: nothing(),
            qemu: nothing(),
            virtiofsd: nothing(),
            swtpm: nothing(),
            vhost_device_vsock: nothing(),
            journal_remote: nothing(),
        },
        stop_timeout_secs: 1,
        boot_timeout_secs: 1,
        guest_ca: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".into(),
        log_max: Bytes(1 << 20),
        public: Vec::new(),
        ingress: None,
    }
}

fn look(files: &mut Files, layout: &Layout) -> Observed {
    let mut observed = Observed::default();
    files.observe(layout, &mut observed).unwrap();
    observed
}

#[test]
fn what_is_written_is_seen_and_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(dir.path());
    let mut files = Files::default();
    assert_eq!(look(&mut files, &layout), Observed::default());

    let run = layout.run_of(&id());
    folder(&layout.units).unwrap();
    folder(&run).unwrap();
    let volume = layout.volume(&id(), &"data".parse().unwrap());
    folder(volume.parent().unwrap()).unwrap();
    let unit = "seed-vm@s-gaydazldmnsg-web.service";
    write(&layout.units.join(unit), "[Unit]\n").unwrap();
    write(&run.join("closure"), "one\n").unwrap();
    File::create(&volume).unwrap().set_len(1 << 20).unwrap();
    // Things of others, leftovers, and what a guest's VMM may put there.
    for other in ["seed-agent.service", "seed-build@x.service", "seed-vm@web.service", ".seed-vm@s-gaydazldmnsg-web.service.new"] {
        fs::write(layout.units.join(other), "").unwrap();
    }
    symlink("/etc/passwd", layout.units.join("seed-tpm@s-gaydazldmnsg-web.service")).unwrap();
    symlink("/etc/passwd", run.join("link")).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(run.join("vsock")).unwrap();
    fs::write(volume.with_extension("new"), "").unwrap();
    fs::create_dir_all(layout.state.join("volumes/retired")).unwrap();
    assert!(fs::symlink_metadata(run.join("vsock")).unwrap().file_type().is_socket());

    for _ in 0..2 {
        let observed = look(&mut files, &layout);
        assert_eq!(observed.instances.keys().collect::<Vec<_>>(), [&id()]);
        let one = &observed.instances[&id()];
        assert_eq!(one.units, BTreeMap::from([(unit.to_owned(), "[Unit]\n".to_owned())]));
        assert_eq!(one.files, BTreeMap::from([(run.join("closure"), "one\n".to_owned())]));
        assert_eq!(one.volumes, BTreeMap::from([("data".parse().unwrap(), Bytes(1 << 20))]));
        assert!(!one.started);
    }
    drop(socket);
}

#[test]
fn every_change_is_seen_however_quickly_it_follows() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(dir.path());
    let mut files = Files::default();
    let closure = layout.run_of(&id()).join("closure");
    folder(closure.parent().unwrap()).unwrap();
    for n in 0..50 {
        let text = format!("{n:02}\n");
        // In place, of the same length, by hand: the hardest to see.
        fs::write(&closure, &text).unwrap();
        assert_eq!(look(&mut files, &layout).instances[&id()].files[&closure], text);
        mark_started(&layout, &id()).unwrap();
        assert!(look(&mut files, &layout).instances[&id()].started);
        clear_started(&layout, &id()).unwrap();
        assert!(!look(&mut files, &layout).instances[&id()].started);
    }
    fs::remove_dir_all(layout.run_of(&id())).unwrap();
    assert_eq!(look(&mut files, &layout), Observed::default());
}

#[test]
fn files_are_replaced_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("unit");
    fs::write(dir.path().join(".unit.new"), "a crash left this").unwrap();
    write(&path, "one").unwrap();
    let first = fs::metadata(&path).unwrap();
    assert_eq!((first.mode() & 0o777, fs::read_dir(dir.path()).unwrap().count()), (0o644, 1));
    write(&path, "one").unwrap();
    assert_eq!(fs::metadata(&path).unwrap().ino(), first.ino());
    write(&path, "two").unwrap();
    assert_ne!(fs::metadata(&path).unwrap().ino(), first.ino());
    // A link is replaced, not written through.
    let other = dir.path().join("other");
    fs::write(&other, "kept").unwrap();
    fs::remove_file(&path).unwrap();
    symlink(&other, &path).unwrap();
    write(&path, "three").unwrap();
    assert_eq!((fs::read_to_string(&path).unwrap(), fs::read_to_string(&other).unwrap()), ("three".into(), "kept".into()));
}

#[test]
fn a_user_has_a_record_by_name_and_by_number() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        make_user(dir.path(), 800_001).unwrap();
        for name in ["seed-800001.user", "800001.user"] {
            let record: serde_json::Value = serde_json::from_str(&fs::read_to_string(dir.path().join(name)).unwrap()).unwrap();
            assert_eq!((record["uid"].as_u64(), record["gid"].as_u64()), (Some(800_001), Some(800_001)));
        }
        assert!(fs::read_to_string(dir.path().join("800001.group")).unwrap().contains("\"groupName\":\"seed-800001\""));
    }
}

#[test]
fn unit_names_lead_to_their_instance() {
    assert_eq!(instance_of_unit("seed-tpm@s-gaydazldmnsg-web.service"), Some(id()));
    for other in
        ["seed-vm@web.service", "seed-build@s-gaydazldmnsg-web.service", "seed-vm@s-gaydazldmnsg-web.slice", "x", "@.service"]
    {
        assert_eq!(instance_of_unit(other), None, "{other}");
    }
}

#[test]
fn what_a_removed_instance_leaves_belongs_to_nobody_else() {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("skipped: needs root to give files away");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("tpm");
    fs::create_dir(&kept).unwrap();
    chown(&kept, Some(12_345), Some(12_345)).unwrap();
    take_back(&kept).unwrap();
    let meta = fs::metadata(&kept).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (0, 0, 0o700));
    take_back(&dir.path().join("none")).unwrap();
    symlink(dir.path(), dir.path().join("link")).unwrap();
    assert!(take_back(&dir.path().join("link")).is_err());
}
