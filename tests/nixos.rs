//! The NixOS side: every Nix file of the project, evaluated.
//!
//! | folder | holds | is run |
//! |---|---|---|
//! | `tests/nixos/always/` | what needs no nixpkgs: tables, the manifest, the templates as text | always |
//! | `tests/nixos/nixpkgs/` | options, assertions and units of the modules | where `NIXPKGS` names a nixpkgs |
//!
//! Each file there is found, not listed; `tests/nixos/run.nix` says what is in one. A part of them:
//!
//!     NIXPKGS=/path/to/nixpkgs SOPS_NIX=/path/to/sops-nix ONLY=instance cargo test --test nixos
//!
//! `ONLY` is a part of `<file>: <case>`.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::print_stdout, reason = "tests read files and run programs")]

#[path = "nixos/nix.rs"]
mod nix;
#[path = "nixos/tpm.rs"]
mod tpm;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use nix::{instantiate, say, sources, top};
use serde_json::Value;

/// Every file of the project that ends in `.nix`.
fn nix_files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![top().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("readable").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() && !path.is_symlink() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "nix") {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(found.len() > 3, "{found:?}");
    found
}

/// The `.nix` files directly in a folder of tests/nixos.
fn case_files(folder: &str) -> Vec<PathBuf> {
    let folder = top().join("tests/nixos").join(folder);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "nix"));
    files.sort();
    files
}

/// Runs the cases of one file and returns what is wrong.
fn run(file: &Path, arguments: &[&str]) -> Vec<String> {
    let stem = file.file_stem().and_then(|stem| stem.to_str()).expect("a name");
    let only = std::env::var("ONLY").unwrap_or_default();
    let driver = top().join("tests/nixos/run.nix").display().to_string();
    let shown = file.display().to_string();
    let evaluate = |attribute: &str| {
        let words = ["--eval", "--strict", "--json", &driver, "-A", attribute, "--arg", "file", &shown];
        instantiate(&[&words[..], arguments].concat())
    };
    let of = |name: &str, attribute: &str| evaluate(&format!("{attribute}.{}", Value::from(name)));
    let said = evaluate("names");
    if !said.worked {
        return vec![format!("{stem}: does not evaluate:\n{}", said.err)];
    }
    let mut names: Vec<String> = serde_json::from_str(&said.out).expect("names");
    assert!(!names.is_empty(), "{stem}: has no cases");
    names.retain(|name| format!("{stem}: {name}").contains(&only));
    if names.is_empty() {
        return Vec::new();
    }
    let mut wrong = Vec::new();
    // All at once is quicker, but some errors end it all.
    let all = evaluate("results");
    let mut results: serde_json::Map<String, Value> = serde_json::from_str(&all.out).unwrap_or_default();
    for name in names.iter().filter(|_| !all.worked) {
        let said = of(name, "results");
        match serde_json::from_str(&said.out) {
            Ok(result) if said.worked => drop(results.insert(name.clone(), result)),
            _ => wrong.push(format!("{stem}: {name}: does not evaluate:\n{}", said.err)),
        }
    }
    for (name, case) in results.iter().filter(|(name, _)| names.contains(name)) {
        let one = || of(name, "exprs");
        if let Some(parts) = case.get("throws").and_then(Value::as_array) {
            let said = one();
            if said.worked {
                wrong.push(format!("{stem}: {name}: evaluates, and should not"));
            }
            let missing: Vec<&str> = parts.iter().filter_map(Value::as_str).filter(|part| !said.err.contains(part)).collect();
            if !said.worked && !missing.is_empty() {
                wrong.push(format!("{stem}: {name}: does not say {missing:?}, but\n{}", said.err));
            }
        } else if let Some(got) = case.get("got") {
            if *got != case["expected"] {
                let pretty = |value: &Value| serde_json::to_string_pretty(value).expect("JSON");
                wrong.push(format!("{stem}: {name}: gave\n{}\nand not\n{}", pretty(got), pretty(&case["expected"])));
            }
        } else {
            wrong.push(format!("{stem}: {name}: does not evaluate:\n{}", one().err));
        }
    }
    println!("{stem}: {} cases, {} wrong", names.len(), wrong.len());
    wrong
}

#[test]
fn every_nix_file_can_be_parsed() {
    for file in nix_files() {
        let said = instantiate(&["--parse", file.to_str().expect("text")]);
        assert!(said.worked, "{}:\n{}", file.display(), said.err);
    }
}

#[test]
fn every_nix_file_is_formatted_and_short() {
    let mut wrong = Vec::new();
    let nixfmt = Command::new("nixfmt").arg("--version").output().is_ok_and(|output| output.status.success());
    if !nixfmt {
        say("SKIPPED: there is no nixfmt: of the format, only tabs, blanks and the length of lines are looked at");
    }
    // What was published stays as it was written.
    for file in nix_files().into_iter().filter(|file| !file.components().any(|part| part.as_os_str() == "published")) {
        let text = fs::read_to_string(&file).expect("text");
        let shown = file.strip_prefix(top()).expect("below").display().to_string();
        if text.lines().count() > 500 {
            wrong.push(format!("{shown}: has more than 500 lines"));
        }
        for (at, line) in text.lines().enumerate() {
            // A text that people read is one string, however long; nothing breaks it.
            let long = line.chars().count() > 140 && !line.contains('"');
            if line.contains('\t') || line.ends_with(' ') || long {
                wrong.push(format!("{shown}:{}: a tab, a blank at the end, or more than 140 characters", at + 1));
            }
        }
        if !text.starts_with("# ") {
            wrong.push(format!("{shown}: does not begin with # and what it is"));
        }
        // The smallest template is laid out to be read.
        let ours = nixfmt && !file.starts_with(top().join("templates/minimal"));
        let formatted =
            || Command::new("nixfmt").args(["--width=140", "--check"]).arg(&file).output().is_ok_and(|said| said.status.success());
        if ours && !formatted() {
            wrong.push(format!("{shown}: run nixfmt on it"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_manifests_that_nix_writes_are_those_that_the_host_reads() {
    let said = instantiate(&["--eval", "--strict", "--json", top().join("tests/nixos/fixtures.nix").to_str().expect("text")]);
    assert!(said.worked, "{}", said.err);
    let made: serde_json::Map<String, Value> = serde_json::from_str(&said.out).expect("JSON");
    let folder = top().join("tests/fixtures/manifest");
    let bless = std::env::var_os("SEED_BLESS").is_some();
    let mut wrong = Vec::new();
    for (name, meta) in &made {
        if let Err(problems) = seed::spec::manifest::read(name, meta) {
            wrong.push(format!("{name}: the host refuses it: {problems:#?}"));
        }
        let (file, text) = (folder.join(format!("{name}.json")), serde_json::to_string_pretty(meta).expect("JSON") + "\n");
        if bless {
            fs::write(&file, &text).expect("the folder is there");
        } else if fs::read_to_string(&file).ok().as_deref() != Some(text.as_str()) {
            wrong.push(format!("{}: is not what Nix writes; SEED_BLESS=1 writes it anew", file.display()));
        }
    }
    let files = fs::read_dir(&folder).expect("a folder").count();
    if files != made.len() {
        wrong.push(format!("{} has {files} files, and there are {} manifests", folder.display(), made.len()));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_needs_no_nixpkgs_holds() {
    let wrong: Vec<String> = case_files("always").iter().flat_map(|file| run(file, &[])).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// `tests/acme` runs these command lines against the ACME door, word by word: when NixOS changes them, this says so.
#[test]
fn security_acme_runs_lego_as_it_is_tried() {
    let skipped = "what security.acme runs is not compared with what tests/acme does";
    let Some(nixpkgs) = sources("NIXPKGS", skipped) else { return };
    let file = top().join("tests/nixos/security-acme.nix").display().to_string();
    let said = instantiate(&["--eval", "--strict", "--json", &file, "--arg", "nixpkgs", &nixpkgs.display().to_string()]);
    assert!(said.worked, "{}", said.err);
    let script: String = serde_json::from_str(&said.out).expect("a text");
    let ran = script.lines().filter_map(|line| line.split_once("! lego ")?.1.split_once(';'));
    let ran: String = ran.map(|(words, _)| format!("lego {words}\n")).collect();
    let tried = include_str!("nixos/security-acme.lego");
    assert_eq!(
        ran, tried,
        "make tests/nixos/security-acme.lego what NixOS runs now, and see whether tests/acme gets its certificate"
    );
}

#[test]
fn the_modules_hold_against_nixpkgs() {
    let files = case_files("nixpkgs");
    let skipped = format!(
        "the options, assertions and units of the modules are not looked at ({} files of tests/nixos/nixpkgs). Name a nixpkgs: \
         NIXPKGS=/path/to/nixpkgs cargo test --test nixos",
        files.len()
    );
    let Some(nixpkgs) = sources("NIXPKGS", &skipped) else { return };
    let nixpkgs = nixpkgs.display().to_string();
    let mut arguments = vec!["--arg", "nixpkgs", &nixpkgs];
    let sops = sources("SOPS_NIX", "what the modules do with sops-nix is not looked at").map(|path| path.display().to_string());
    if let Some(sops) = &sops {
        arguments.extend(["--arg", "sopsNix", sops]);
    }
    let wrong: Vec<String> = files.iter().flat_map(|file| run(file, &arguments)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
