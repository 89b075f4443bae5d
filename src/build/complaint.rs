//! What nix says when it fails, cut down to what its reader can use. Pure: lines in, an error out.

use super::BuildError;
use crate::spec::quantity::Bytes;

/// The most lines that are shown.
const MAX_LINES: usize = 40;

/// Why an evaluation failed. `result` is systemd's word for how the unit ended.
pub fn evaluation(lines: &[String], result: &str, timeout_secs: u32, memory: Bytes) -> BuildError {
    if let Some(host) = of_the_host(lines, result) {
        return host;
    }
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
    } else if has("allow-import-from-derivation") {
        (
            "the evaluation needs something to be built first, which this host does not allow".to_owned(),
            "do not import or read files that a derivation makes",
        )
    } else if has("stack overflow") || has("max-call-depth") {
        ("the evaluation recursed too deep".to_owned(), "look for a recursion without end")
    } else {
        ("the evaluation failed".to_owned(), "the same error is shown by: nix eval .#seeds.<name>.meta (or .#ipv4, .#ipv6)")
    };
    BuildError::Failed { what, lines: matter(lines), remedy: remedy.to_owned() }
}

/// Why a build failed.
pub fn build(lines: &[String], result: &str, timeout_secs: u32) -> BuildError {
    if let Some(host) = of_the_host(lines, result) {
        return host;
    }
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

/// What no flake can cause: the unit did not run, nix's daemon does not answer, the disk is full.
fn of_the_host(lines: &[String], result: &str) -> Option<BuildError> {
    if result.is_empty() {
        let said = lines.last().map_or("systemd-run said nothing", String::as_str);
        return Some(BuildError::Host(format!("the unit did not run: {said}")));
    }
    let line = |part: &str| lines.iter().find(|line| line.contains(part));
    if let Some(line) = line("cannot connect to socket at").or_else(|| line("cannot open connection to remote store")) {
        return Some(BuildError::Host(line.trim().to_owned()));
    }
    // A builder's own complaint is quoted with a `>`.
    let full = lines.iter().any(|line| line.contains("No space left on device") && !line.contains('>'));
    full.then(|| BuildError::Host("no space is left to build in: free some in /nix".to_owned()))
}

/// From nix's first `error:` on; without one, the end. In a tenant's words: `flake.nix:3:5` and not where nix keeps that file, and
/// nothing of Seed's own expression.
fn matter(lines: &[String]) -> Vec<String> {
    let lines: Vec<String> = without_own_frames(lines).into_iter().map(without_store).collect();
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

/// Leaves out empty lines, and the parts of a trace that lead through Seed's own expression: `… while …` and what is indented below it.
fn without_own_frames(lines: &[String]) -> Vec<&str> {
    let begins = |line: &str| {
        let text = line.trim_start();
        text.starts_with('…') || text.starts_with("error:") || text.starts_with("(stack trace truncated")
    };
    let own = |frame: &[&str]| {
        let first = frame.first().map_or("", |line| line.trim_start());
        first.starts_with('…') && frame.iter().any(|line| line.contains("«string»")) || first.starts_with("(stack trace truncated")
    };
    let lines: Vec<&str> = lines.iter().map(String::as_str).filter(|line| !line.trim().is_empty()).collect();
    lines.chunk_by(|_, next| !begins(next)).filter(|frame| !own(frame)).flatten().copied().collect()
}

/// Leaves out `/nix/store/<hash>-source/` wherever it stands.
fn without_store(line: &str) -> String {
    const STORE: &str = "/nix/store/";
    const SOURCE: &str = "-source/";
    let mut short = String::new();
    let mut rest = line;
    while let Some(at) = rest.find(STORE) {
        let after = at + STORE.len() + 32;
        if rest.get(after..).is_some_and(|tail| tail.starts_with(SOURCE)) {
            short.push_str(&rest[..at]);
            rest = &rest[after + SOURCE.len()..];
        } else {
            short.push_str(&rest[..at + STORE.len()]);
            rest = &rest[at + STORE.len()..];
        }
    }
    short.push_str(rest);
    short
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

/// Leaves out of a log what says nothing to a pusher: where Seed put the source, and the list of inputs that nix would lock.
#[derive(Debug, Default)]
pub struct Chatter {
    in_lock_list: bool,
}

impl Chatter {
    /// What to show of a line, if anything.
    pub fn pass(&mut self, line: &str) -> Option<String> {
        if line.contains("not writing modified lock file") {
            self.in_lock_list = true;
            return Some(
                "flake.lock does not name every input: they are taken as they are now (`nix flake lock` pins them)".to_owned(),
            );
        }
        let of_the_list = line.starts_with("• ") || line.starts_with("    '") || line.starts_with("    follows '");
        self.in_lock_list &= of_the_list;
        let noise = self.in_lock_list || line.trim().is_empty() || line.starts_with("unpacking 'file:///run/seed/");
        (!noise).then(|| line.to_owned())
    }
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
    fn a_trace_leaves_out_what_is_not_the_tenants() {
        let text = "error:\n       … while evaluating attribute 'web'\n\n       … while evaluating a branch condition\n         at «string»:5:5:\n            \
                    4|   describe = name: seed:\n             |     ^\n\n       (stack trace truncated; use '--show-trace')\n\n       \
                    error: undefined variable 'x'\n       at /nix/store/0123456789abcdfghijklmnpqrsvwxyz-source/flake.nix:2:17:\n";
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let expected = [
            "error:",
            "       … while evaluating attribute 'web'",
            "       error: undefined variable 'x'",
            "       at flake.nix:2:17:",
        ];
        assert_eq!(matter(&lines), expected);
        assert_eq!(without_store("/nix/store/"), "/nix/store/");
        assert_eq!(without_store("/nix/store/äöüäöüäöüäöüäöüäöüäöüäö"), "/nix/store/äöüäöüäöüäöüäöüäöüäöüäö");
        let other = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-b/c";
        assert_eq!(without_store(other), other);
    }

    #[test]
    fn what_no_flake_can_cause_is_the_hosts() {
        for (result, text) in [
            ("", "Failed to start transient service unit: Access denied"),
            ("exit-code", "error: cannot connect to socket at '/nix/var/nix/daemon-socket/socket': Connection refused"),
            ("exit-code", "error: writing to file: No space left on device"),
        ] {
            let lines = [text.to_owned()];
            assert!(matches!(evaluation(&lines, result, 1, Bytes(1)), BuildError::Host(_)), "{text}");
            assert!(matches!(build(&lines, result, 1), BuildError::Host(_)), "{text}");
        }
        let builder = ["error: builder failed".to_owned(), "       > cp: No space left on device".to_owned()];
        assert!(matches!(build(&builder, "exit-code", 1), BuildError::Failed { .. }));
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
    fn of_a_log_the_pusher_sees_what_means_something() {
        let mut chatter = Chatter::default();
        let shown: Vec<String> = [
            "unpacking 'file:///run/seed/1-2.tar' into the Git cache...",
            "warning: not writing modified lock file of flake 'file:///run/seed/1-2.tar':",
            "• Added input 'tools':",
            "    'http://x/tools.tar.gz?narHash=sha256-1' (1970-01-01)",
            "building '/nix/store/x.drv'...",
            "    'indented as the list is, but later'",
        ]
        .iter()
        .filter_map(|line| chatter.pass(line))
        .collect();
        assert_eq!(shown.len(), 3, "{shown:?}");
        assert!(shown[0].contains("nix flake lock") && shown[1].starts_with("building"));
    }

    #[test]
    fn colours_are_taken_out() {
        assert_eq!(plain("\u{1b}[31;1merror:\u{1b}[0m\tbad\r\n"), "error:    bad");
        assert!(of_systemd_run("Running as unit: seed-build@1-eval.service") && !of_systemd_run("error: Running"));
    }
}
