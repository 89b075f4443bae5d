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
#![allow(clippy::disallowed_methods, reason = "tests read files and run programs")]

#[path = "nixos/nix.rs"]
mod nix;

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
    let said = evaluate("results");
    if !said.worked {
        return vec![format!("{stem}: does not evaluate:\n{}", said.err)];
    }
    let results: Value = serde_json::from_str(&said.out).expect("JSON");
    let results = results.as_object().expect("cases by name");
    assert!(!results.is_empty(), "{stem}: has no cases");
    let mut wrong = Vec::new();
    for (name, case) in results.iter().filter(|(name, _)| format!("{stem}: {name}").contains(&only)) {
        let one = || evaluate(&format!("exprs.{}", Value::from(name.as_str())));
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
    println!("{stem}: {} cases, {} wrong", results.len(), wrong.len());
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
    for file in nix_files() {
        let text = fs::read_to_string(&file).expect("text");
        let shown = file.strip_prefix(top()).expect("below").display().to_string();
        if text.lines().count() > 500 {
            wrong.push(format!("{shown}: has more than 500 lines"));
        }
        for (at, line) in text.lines().enumerate() {
            if line.contains('\t') || line.ends_with(' ') || line.chars().count() > 140 {
                wrong.push(format!("{shown}:{}: a tab, a blank at the end, or more than 140 characters", at + 1));
            }
        }
        if !text.starts_with("# ") {
            wrong.push(format!("{shown}: does not begin with # and what it is"));
        }
        if nixfmt && !Command::new("nixfmt").arg("--check").arg(&file).output().is_ok_and(|output| output.status.success()) {
            wrong.push(format!("{shown}: run nixfmt on it"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_needs_no_nixpkgs_holds() {
    let wrong: Vec<String> = case_files("always").iter().flat_map(|file| run(file, &[])).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
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
