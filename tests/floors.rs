//! Who may import whom, and what a file of this crate looks like. Reads `src/` and `tests/` as text, so a link in a comment counts as
//! an edge too: name the lower thing.
#![allow(clippy::disallowed_methods, reason = "this test reads the sources")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Each room (or file) of `src/`, and what it may import. `render::zone` stands for that part of a room only.
const FLOORS: &[(&str, &[&str])] = &[
    ("spec", &[]),
    ("render", &["spec"]),
    ("plan", &["spec", "render"]),
    ("build", &["spec"]),
    ("state", &["spec", "journal"]),
    ("host", &["spec", "render", "plan", "bus"]),
    ("bus", &["spec", "render::zone"]),
    ("config", &["spec", "render"]),
    ("launch", &["spec"]),
    ("secret_file", &[]),
    ("journal", &[]),
    ("agent", &["spec", "render", "plan", "build", "state", "host", "bus", "config", "secret_file"]),
    ("serve", &["spec", "render::zone", "config", "bus", "secret_file", "journal"]),
    ("cli", &["spec", "render", "plan", "build", "state", "host", "bus", "config", "launch", "agent", "serve"]),
    ("lib", &[]),
    ("main", &[]),
];
/// Lines of a file at most.
const LONGEST: usize = 500;
/// What no file or folder is called: such a name says nothing of what is in it, so anything ends up there.
const NO_NAMES: &[&str] =
    &["util", "utils", "common", "helper", "helpers", "manager", "types", "error", "errors", "misc", "traits", "prelude"];
/// The traits of this crate: a trait is for where a test needs a stand-in. The others are the interfaces on the bus.
const TRAITS: &[&str] = &["Host", "State", "Builder", "Seed", "Guest", "History", "Access", "GitHub", "Acme", "Domains"];

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below a folder, with its path relative to the crate.
fn files(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![top().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("text");
                found.push((path.strip_prefix(top()).expect("below").to_owned(), text));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "nothing in {folder}");
    found
}

/// The room of a file of `src/`: its folder, or its own name.
fn room(path: &Path) -> String {
    let first = path.components().nth(1).expect("below src/").as_os_str().to_str().expect("text");
    first.trim_end_matches(".rs").to_owned()
}

/// The paths below `crate::` in a text, at most two parts each, with their lines: braces are taken apart, so that no edge hides in one.
fn edges(text: &str) -> Vec<(usize, String)> {
    let mut edges = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        // `$crate::` of a macro is the same, `foocrate::` is not.
        if text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let line = text[..at].matches('\n').count() + 1;
        for path in paths(&text[at + "crate::".len()..]) {
            edges.push((line, path));
        }
    }
    edges
}

/// The paths that a use tree begins with: `a::{b, c::d}` gives `a::b` and `a::c`.
fn paths(tree: &str) -> Vec<String> {
    let tree = tree.trim_start();
    if let Some(inside) = tree.strip_prefix('{') {
        return branches(inside).into_iter().flat_map(paths).collect();
    }
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let first = word(tree);
    let Some(rest) = tree[first.len()..].strip_prefix("::") else { return vec![first] };
    match rest.trim_start().strip_prefix('{') {
        Some(inside) => branches(inside).into_iter().map(|branch| format!("{first}::{}", word(branch.trim_start()))).collect(),
        None => vec![format!("{first}::{}", word(rest))],
    }
}

/// The branches of a use tree behind its opening brace, up to the closing one.
fn branches(inside: &str) -> Vec<&str> {
    let (mut depth, mut start, mut branches) = (0, 0, Vec::new());
    for (at, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' if depth > 0 => {}
            '}' | ',' => {
                if !inside[start..at].trim().is_empty() {
                    branches.push(&inside[start..at]);
                }
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    branches
}

#[test]
fn no_room_imports_a_higher_one() {
    let known: BTreeSet<&str> = FLOORS.iter().map(|(room, _)| *room).collect();
    let mut wrong = Vec::new();
    for (path, text) in files("src") {
        let from = room(&path);
        let Some((_, below)) = FLOORS.iter().find(|(room, _)| *room == from) else {
            wrong.push(format!("{}: {from} is no room of the table", path.display()));
            continue;
        };
        for (line, edge) in edges(&text) {
            let to = edge.split("::").next().expect("a first part");
            let allowed = to == from || !known.contains(to) || below.contains(&to) || below.contains(&edge.as_str());
            if !allowed {
                wrong.push(format!("{}:{line}: {from} -> {edge}", path.display()));
            }
        }
        for (line, text) in text.lines().enumerate().filter(|(_, line)| line.contains("super::super")) {
            wrong.push(format!("{}:{}: write the path from crate:: ({})", path.display(), line + 1, text.trim()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn edges_are_found_wherever_they_hide() {
    let table = [
        ("use crate::spec::name::Namespace;", vec!["spec::name"]),
        ("use crate::{agent, spec::{name::X, address}};", vec!["agent", "spec::name", "spec::address"]),
        ("use crate::render::{self, zone::Zone};", vec!["render::self", "render::zone"]),
        ("fn f() -> crate::host::HostError {", vec!["host::HostError"]),
        ("use crate::{\n    plan::{A, b::{C, D}},\n    serve,\n};\nuse x::{y};", vec!["plan::A", "plan::b", "serve"]),
        ("use supercrate::x; //! see [`crate::cli`]", vec!["cli"]),
    ];
    for (text, expected) in table {
        let found: Vec<String> = edges(text).into_iter().map(|(_, edge)| edge).collect();
        assert_eq!(found, expected, "{text}");
    }
}

#[test]
fn every_file_says_first_what_it_is_and_stays_short() {
    let mut wrong = Vec::new();
    for (path, text) in files("src").into_iter().chain(files("tests")) {
        let (shown, lines) = (path.display(), text.lines().count());
        if !text.starts_with("//! ") {
            wrong.push(format!("{shown}: does not begin with //! and what it is"));
        }
        if lines > LONGEST {
            wrong.push(format!("{shown}: has {lines} lines, more than {LONGEST}"));
        }
        for part in path.components().filter_map(|part| part.as_os_str().to_str()) {
            if NO_NAMES.contains(&part.trim_end_matches(".rs")) {
                wrong.push(format!("{shown}: {part} says nothing of what is in it"));
            }
        }
        for (at, line) in text.lines().enumerate() {
            for unfinished in ["todo", "unimplemented"].map(|name| format!("{name}!(")) {
                if line.contains(&unfinished) {
                    wrong.push(format!("{shown}:{}: {unfinished}", at + 1));
                }
            }
            if let Some(name) = line.trim().strip_prefix("pub trait ") {
                let name: String = name.chars().take_while(|c| c.is_alphanumeric()).collect();
                if !TRAITS.contains(&name.as_str()) {
                    wrong.push(format!("{shown}:{}: the trait {name} is none of {TRAITS:?}", at + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_file_is_forgotten() {
    let mut forgotten = Vec::new();
    for (path, _) in files("src").into_iter().chain(files("tests")) {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("text");
        let folder = path.parent().expect("a folder");
        // What cargo finds by itself.
        if ["src/main.rs", "src/lib.rs"].iter().any(|own| path == Path::new(own)) || folder == Path::new("tests") {
            continue;
        }
        if stem == "main" && folder.parent() == Some(Path::new("tests")) {
            continue;
        }
        let (name, above) = if stem == "mod" {
            (folder.file_name().and_then(|name| name.to_str()).expect("text"), folder.parent().expect("a folder"))
        } else {
            (stem, folder)
        };
        let parents = [above.join("mod.rs"), above.join("lib.rs"), above.join("main.rs"), above.with_extension("rs")]
            .map(|file| top().join(file));
        let text: String = parents.iter().filter_map(|parent| fs::read_to_string(parent).ok()).collect();
        let declared = text.lines().any(|line| {
            let line = line.trim();
            line == format!("mod {name};") || (line.starts_with("pub") && line.ends_with(&format!(" mod {name};")))
        });
        let placed = format!("#[path = \"{stem}.rs\"]");
        let beside = fs::read_dir(top().join(folder)).expect("a folder").map(|entry| entry.expect("readable").path());
        let declared = declared || beside.filter_map(|file| fs::read_to_string(file).ok()).any(|text| text.contains(&placed));
        if !declared {
            forgotten.push(format!("{}: no `mod {name};` above it", path.display()));
        }
    }
    assert!(forgotten.is_empty(), "{forgotten:#?}");
}

#[test]
fn every_room_of_the_table_is_there() {
    for (room, _) in FLOORS {
        let there = top().join("src").join(room).is_dir() || top().join("src").join(format!("{room}.rs")).is_file();
        assert!(there, "{room} is in the table, but not in src/");
    }
}
