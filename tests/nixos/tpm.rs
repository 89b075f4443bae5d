//! The age identity of an instance, kept by a real TPM in software: `nixos-modules/instance/tpm-identity.sh`, run as its unit does.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use crate::nix::{say, top};

/// Stands for the plugin: a new identity each time, and its recipient.
const PLUGIN: &str = r#"#!/bin/sh
case $1 in
  --generate) printf '# Recipient: age1tag1\nAGE-PLUGIN-TPM-1%s\n' "$(head -c 300 /dev/urandom | od -An -vtx1 | tr -d ' \n')" ;;
  -y) sed 's/^AGE-PLUGIN-TPM-1\(.\{20\}\).*/age1tag1\1/' "$2" ;;
esac
"#;

/// Two tests at once look for ports.
static NEXT_PORT: AtomicU16 = AtomicU16::new(23_000);

struct Tpm {
    folder: tempfile::TempDir,
    port: u16,
    running: Option<Child>,
}

impl Tpm {
    /// What is in the TPM stays over this, as it does when an instance is stopped and started.
    fn start(&mut self) {
        self.stop();
        let state = format!("dir={}", self.folder.path().join("state").display());
        let door = |port: u16| format!("type=tcp,port={port}");
        let child = Command::new("swtpm")
            .args(["socket", "--tpm2", "--tpmstate", &state, "--flags", "not-need-init,startup-clear"])
            .args(["--server", &door(self.port), "--ctrl", &door(self.port + 1)])
            .spawn()
            .expect("swtpm starts");
        self.running = Some(child);
        let there = || TcpStream::connect(("127.0.0.1", self.port + 1)).is_ok();
        assert!(
            (0..500).any(|_| there() || {
                std::thread::sleep(Duration::from_millis(10));
                false
            }),
            "swtpm listens"
        );
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.running.take() {
            child.kill().expect("it runs");
            child.wait().expect("it ends");
        }
    }

    /// A program of tpm2-tools, or the script.
    fn run(&self, program: &str, arguments: &[&str], credentials: Option<&Path>) -> Output {
        let mut command = Command::new(program);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.folder.path().join("bin").display()));
        command.env("TPM2TOOLS_TCTI", format!("swtpm:port={}", self.port)).env_remove("CREDENTIALS_DIRECTORY");
        if let Some(folder) = credentials {
            command.env("CREDENTIALS_DIRECTORY", folder);
        }
        command.args(arguments).output().expect("it runs")
    }

    /// A boot: nothing is left but what the TPM has. Returns the identity, or what was said instead.
    fn boot(&self, credentials: Option<&Path>) -> Result<String, String> {
        let place = self.folder.path().join("seed");
        if place.exists() {
            fs::remove_dir_all(&place).expect("ours");
        }
        let script = fs::read_to_string(top().join("nixos-modules/instance/tpm-identity.sh")).expect("the script");
        let file = self.folder.path().join("script");
        fs::write(&file, script.replace("/seed/tpm", &place.display().to_string())).expect("a file");
        let said = self.run("bash", &["-e", file.to_str().expect("text")], credentials);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !said.status.success() {
            return Err(text(&said.stderr));
        }
        assert!(text(&said.stdout).starts_with("age recipient of this instance: age1"), "{}", text(&said.stdout));
        let identity: PathBuf = place.join("age-identity");
        assert_eq!(fs::metadata(&identity).expect("made").permissions().mode() & 0o777, 0o600);
        Ok(fs::read_to_string(identity).expect("text"))
    }
}

impl Drop for Tpm {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A TPM, or a loud word that there is none.
fn tpm() -> Option<Tpm> {
    for (program, package) in [("swtpm", "swtpm"), ("tpm2_nvread", "tpm2-tools")] {
        if !Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success()) {
            say(&format!("SKIPPED: there is no {program} (apt-get install {package}): the key in the TPM is not looked at"));
            return None;
        }
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::create_dir(folder.path().join("state")).expect("new");
    fs::create_dir(folder.path().join("bin")).expect("new");
    let plugin = folder.path().join("bin/age-plugin-tpm");
    fs::write(&plugin, PLUGIN).expect("a file");
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).expect("ours");
    // tpm2-tools expects the second port after the first.
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let next = || NEXT_PORT.fetch_add(2, Ordering::Relaxed);
    let port = std::iter::repeat_with(next).take(500).find(|port| free(*port) && free(port + 1)).expect("two ports");
    let mut tpm = Tpm { folder, port, running: None };
    tpm.start();
    Some(tpm)
}

#[test]
fn the_identity_is_the_same_at_every_boot_and_the_hosts_word_wins() {
    let Some(mut tpm) = tpm() else { return };
    let first = tpm.boot(None).expect("a new one");
    assert!(first.starts_with("AGE-PLUGIN-TPM-1") && first.ends_with('\n') && first.lines().count() == 1, "{first}");
    assert_eq!(tpm.boot(None).as_ref(), Ok(&first));
    tpm.start();
    assert_eq!(tpm.boot(None).as_ref(), Ok(&first), "after the TPM was started anew");

    let credentials = tpm.folder.path().join("credentials");
    fs::create_dir(&credentials).expect("new");
    fs::write(credentials.join("seed.age-identity"), "AGE-PLUGIN-TPM-1OF-THE-HOST-ABCDEFGHIJ\n").expect("a file");
    assert_eq!(tpm.boot(Some(&credentials)), Ok("AGE-PLUGIN-TPM-1OF-THE-HOST-ABCDEFGHIJ\n".to_owned()));
    assert_eq!(tpm.boot(None).as_ref(), Ok(&first), "what the TPM remembers is untouched");
}

#[test]
fn a_key_is_never_replaced_because_it_could_not_be_read() {
    let Some(mut tpm) = tpm() else { return };
    // Stopped between making room and writing: nothing is lost, and the next boot goes on.
    let index = "0x01800a9e";
    assert!(tpm.run("tpm2_nvdefine", &["-C", "o", index, "-s", "100", "-a", "ownerread|ownerwrite"], None).status.success());
    let first = tpm.boot(None).expect("a new one");
    assert_eq!(tpm.boot(None).as_ref(), Ok(&first));
    tpm.stop();
    assert!(tpm.boot(None).is_err(), "there is no TPM");
    tpm.start();
    assert_eq!(tpm.boot(None).as_ref(), Ok(&first));
    // Written, but not to be read.
    assert!(tpm.run("tpm2_nvundefine", &["-C", "o", index], None).status.success());
    let guarded = ["-C", "o", index, "-s", "8", "-a", "authread|ownerwrite"];
    assert!(tpm.run("tpm2_nvdefine", &guarded, None).status.success());
    let file = tpm.folder.path().join("eight");
    fs::write(&file, "01234567").expect("a file");
    assert!(tpm.run("tpm2_nvwrite", &["-C", "o", index, "-i", file.to_str().expect("text")], None).status.success());
    assert!(tpm.boot(None).is_err(), "it is there, and cannot be read");
    assert!(tpm.run("tpm2_nvreadpublic", &[index], None).status.success(), "and it still is");
}
