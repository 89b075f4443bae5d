//! Nix for the tests: the machine's own, or that of the cached Debian root, run by the root's own loader. It has an empty store that is
//! never written to, needs no daemon, no privileges and no network, and so can build nothing: what it evaluates forces no build.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::LazyLock,
};

/// What a run of Nix said.
pub struct Said {
    pub worked: bool,
    pub out: String,
    pub err: String,
}

/// The command line that Nix begins with.
static NIX: LazyLock<Vec<String>> = LazyLock::new(|| {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(own) = std::env::split_paths(&path).map(|folder| folder.join("nix")).find(|file| file.is_file()) {
        return vec!["--argv0".to_owned(), own.display().to_string()];
    }
    let made = Command::new(top().join("tests/host/roots")).arg("host").stderr(Stdio::inherit()).output().expect("a script");
    let root = String::from_utf8(made.stdout).expect("a path");
    let root = Path::new(root.trim());
    assert!(made.status.success() && root.is_dir(), "there is no nix, and no Debian root that has one: install nix");
    let text = |path: PathBuf| path.display().to_string();
    vec![
        text(root.join("usr/lib64/ld-linux-x86-64.so.2")),
        "--library-path".to_owned(),
        text(root.join("usr/lib/x86_64-linux-gnu")),
        "--argv0".to_owned(),
        text(root.join("usr/bin/nix")),
    ]
});

/// The folder of the project.
pub fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs `nix-instantiate`.
pub fn instantiate(arguments: &[&str]) -> Said {
    // `nix` is one program of many names. What is on PATH is called by the name; a loader is told it.
    let mut command = match NIX.as_slice() {
        [flag, own] if flag == "--argv0" => Command::new(Path::new(own).with_file_name("nix-instantiate")),
        [loader, before @ .., program] => {
            let mut command = Command::new(loader);
            command.args(before).arg("nix-instantiate").arg(program);
            command
        }
        _ => unreachable!("NIX has one of two shapes"),
    };
    let state = tempfile::tempdir().expect("a temporary folder");
    command.args(["--readonly-mode", "--option", "experimental-features", ""]).args(arguments);
    for variable in ["NIX_STATE_DIR", "NIX_CONF_DIR", "NIX_LOG_DIR", "XDG_CACHE_HOME", "HOME"] {
        command.env(variable, state.path());
    }
    command.env("NIX_REMOTE", "dummy://").env("NIX_PATH", "").env("NO_COLOR", "1").env("LC_ALL", "C.UTF-8");
    // A third of the time of an evaluation of NixOS goes into growing the heap.
    command.env("GC_INITIAL_HEAP_SIZE", "400M");
    let output = command.stdin(Stdio::null()).output().expect("nix runs");
    Said {
        worked: output.status.success(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Says it even though the test passes: the test runner keeps only what the print macros say.
pub fn say(text: &str) {
    writeln!(std::io::stderr(), "{text}").expect("stderr is there");
}

/// The folder that an environment variable names, or a loud word on what is skipped without it.
pub fn sources(variable: &str, skipped: &str) -> Option<PathBuf> {
    let Some(path) = std::env::var_os(variable).map(PathBuf::from) else {
        say(&format!("SKIPPED: {variable} is not set: {skipped}"));
        return None;
    };
    assert!(path.is_dir(), "{variable} is {}, which is no folder: name one, or unset it", path.display());
    Some(path.canonicalize().expect("it is there"))
}
