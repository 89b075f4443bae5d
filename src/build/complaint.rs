//! What nix says when it fails, cut down to what its reader can use. Pure: lines in, an error out.

use super::BuildError;
use crate::spec::quantity::Bytes;

/// The most lines that are shown.
const MAX_LINES: usize = 40;

/// Why an evaluation failed. `result` is systemd's word for how the unit ended.
pub fn evaluation(lines: &[String], result: &str, timeout_secs: u32, memory: Bytes) -> BuildError {
    let has = |text: &str| lines.iter().any(|line| line.contains(text));
    let out_of_memory = result == "oom-kill"
        || has("std::bad_alloc")
        || has("Out of memory")
        || has("out of memory")
        || has("GC Warning: Failed to expand heap")
        || has("Cannot allocate memory");
    let (what, remedy) = if result == "timeout" {
        (format!("the evaluation did not end in {timeout_secs} s and was stopped"), "look for a recursion without end")
    } else if out_of_memory {
        (
            format!("the evaluation needed more than {memory} of memory and was stopped"),
            "look for a list or a recursion without end",
        )
    } else if has("does not provide attribute") {
        ("the flake has no `seeds`".to_owned(), "add an output seeds.<name> = seed.lib.mkSeed { … } to flake.nix")
    } else if has("does not contain a '/flake.nix'") || has("does not contain a 'flake.nix'") || has("flake.nix' does not exist") {
        ("there is no flake.nix in the root of the repository".to_owned(), "add one; a template is the quickest way to begin")
    } else if has("stack overflow") || has("max-call-depth") {
        ("the evaluation recursed too deep".to_owned(), "look for a recursion without end")
    } else {
        ("the evaluation failed".to_owned(), "the same error is shown by: nix eval .#seeds.<name>.meta")
    };
    BuildError::Failed { what, lines: matter(lines), remedy: remedy.to_owned() }
}

/// Why a build failed.
pub fn build(lines: &[String], result: &str, timeout_secs: u32) -> BuildError {
    let what = match result {
        "timeout" => format!("the build did not end in {timeout_secs} s and was stopped"),
        _ => "the build failed".to_owned(),
    };
    BuildError::Failed {
        what,
        lines: matter(lines),
        remedy: "the same error is shown by: nix build .#seeds.<name>.toplevel".to_owned(),
    }
}

/// From nix's first `error:` on; without one, the end.
fn matter(lines: &[String]) -> Vec<String> {
    let lines: Vec<&String> = lines.iter().filter(|line| !line.trim().is_empty()).collect();
    let begin = lines.iter().position(|line| line.trim_start().starts_with("error:")).unwrap_or(lines.len().saturating_sub(15));
    let found = &lines[begin..];
    if found.len() <= MAX_LINES {
        return found.iter().map(|line| (*line).clone()).collect();
    }
    // The beginning says what, the end says where.
    let (head, tail) = (&found[..MAX_LINES / 2], &found[found.len() - MAX_LINES / 2..]);
    let cut = format!("… {} lines …", found.len() - MAX_LINES);
    head.iter().map(|line| (*line).clone()).chain([cut]).chain(tail.iter().map(|line| (*line).clone())).collect()
}

/// The first version of each series that does not give builders root (CVE-2026-39860). Later series have it from the start.
const FIXED: [(u32, u32, u32); 7] = [(2, 28, 6), (2, 29, 3), (2, 30, 4), (2, 31, 4), (2, 32, 7), (2, 33, 4), (2, 34, 5)];

/// Whether what `nix --version` said is a version without that hole; `None` if it is no version.
pub fn is_safe(said: &str) -> Option<bool> {
    let version = said.split_whitespace().last()?;
    let mut parts = version.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let mut next = || parts.next().and_then(Result::ok);
    let (major, minor) = (next()?, next()?);
    let patch = next().unwrap_or(0);
    let series = FIXED.iter().find(|(a, b, _)| (*a, *b) == (major, minor));
    Some(series.map_or((major, minor) > (2, 34), |(_, _, fixed)| patch >= *fixed))
}

/// Whether a line of standard error is systemd-run's own.
pub fn of_systemd_run(line: &str) -> bool {
    let line = line.trim_start();
    const SAID: [&str; 9] = [
        "Running as unit:",
        "Finished with result:",
        "Main processes terminated with:",
        "Service runtime:",
        "CPU time consumed:",
        "Memory peak:",
        "Memory swap peak:",
        "IP traffic",
        "IO bytes",
    ];
    SAID.iter().any(|said| line.starts_with(said))
}

/// A line without its end, colours and other control characters.
pub fn plain(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' && chars.peek() == Some(&'[') {
            chars.next();
            // Up to the letter that ends the sequence.
            while chars.next().is_some_and(|c| !c.is_ascii_alphabetic()) {}
        } else if c == '\t' {
            text.push_str("    ");
        } else if !c.is_control() {
            text.push(c);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(error: &BuildError) -> String {
        match error {
            BuildError::Failed { what, lines, remedy } => format!("{what}|{}|{remedy}", lines.join("\n")),
            BuildError::Host(text) => text.clone(),
        }
    }

    #[test]
    fn each_kind_of_failure_has_its_own_words() {
        let lines = |text: &str| -> Vec<String> { text.lines().map(str::to_owned).collect() };
        let memory = Bytes(1 << 30);
        let table = [
            ("x", "timeout", "did not end in 5 s"),
            ("error: std::bad_alloc", "exit-code", "more than 1Gi of memory"),
            ("x", "oom-kill", "more than 1Gi of memory"),
            ("error: flake 'tarball+file' does not provide attribute 'seeds'", "exit-code", "has no `seeds`"),
            ("error: stack overflow (possible infinite recursion)", "exit-code", "recursed too deep"),
            ("error: syntax error, unexpected '}'\n   at /nix/store/x-source/flake.nix:3:1:", "exit-code", "flake.nix:3:1"),
        ];
        for (text, result, part) in table {
            let found = said(&evaluation(&lines(text), result, 5, memory));
            assert!(found.contains(part), "{found}");
        }
    }

    #[test]
    fn a_long_log_keeps_its_beginning_and_its_end() {
        let mut lines = vec!["warning: noise".to_owned(), "error: what".to_owned()];
        lines.extend((0..300).map(|n| format!("line {n}")));
        let BuildError::Failed { lines, .. } = build(&lines, "exit-code", 1) else { panic!() };
        assert_eq!(lines.len(), MAX_LINES + 1);
        assert_eq!((lines[0].as_str(), lines.last().map(String::as_str)), ("error: what", Some("line 299")));
    }

    #[test]
    fn versions_that_give_builders_root_are_known() {
        let table = [
            ("nix (Nix) 2.26.3", false),
            ("nix (Nix) 2.28.5", false),
            ("nix (Nix) 2.28.6", true),
            ("nix (Nix) 2.34.4", false),
            ("nix (Nix) 2.35.0pre1", true),
            ("nix (Nix) 3.0", true),
            ("nix (Nix) 2.33.10", true),
        ];
        for (said, safe) in table {
            assert_eq!(is_safe(said), Some(safe), "{said}");
        }
        assert_eq!(is_safe("what"), None);
    }

    #[test]
    fn colours_are_taken_out() {
        assert_eq!(plain("\u{1b}[31;1merror:\u{1b}[0m\tbad\r\n"), "error:    bad");
        assert!(of_systemd_run("Running as unit: seed-build@1-eval.service") && !of_systemd_run("error: Running"));
    }
}
