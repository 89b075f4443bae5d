//! What nix says, turned into what a tenant can use: the lines that matter, whose fault it is, and what to do.

use super::{NixSettings, unit::Finished};
use crate::build::BuildError;

/// The most lines of an error.
const LINES_MAX: usize = 40;

/// Removes escape sequences and control characters, and what stands at the end of a line for nobody to see.
pub(super) fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            if chars.next_if_eq(&'[').is_some() {
                while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
            }
        } else if !c.is_control() || c == '\n' || c == '\t' {
            clean.push(c);
        }
    }
    clean.truncate(clean.trim_end().len());
    clean
}

/// Whether a line is one that systemd-run says when a unit has ended.
pub(super) fn is_systemd_tail(line: &str) -> bool {
    const BEGINNINGS: [&str; 8] = [
        "Finished with result: ",
        "Main processes terminated with: ",
        "Service runtime: ",
        "CPU time consumed: ",
        "Memory peak: ",
        "IO bytes read: ",
        "IO bytes written: ",
        "IP traffic ",
    ];
    BEGINNINGS.iter().any(|beginning| line.starts_with(beginning))
}

/// Why an evaluation gave nothing.
pub(super) fn eval_error(finished: &Finished, settings: &NixSettings) -> BuildError {
    if let Some(host) = host_error(finished) {
        return host;
    }
    let said = finished.stderr.join("\n");
    let lines = lines_that_matter(&finished.stderr);
    if finished.result == "timeout" {
        let what = format!("the evaluation did not end in {} s", settings.eval_timeout_secs);
        let remedy = "look for a recursion that does not end, or for inputs that are slow to fetch";
        return failed(what, lines, remedy);
    }
    let out_of_memory = ["out of memory", "Out of Memory", "std::bad_alloc", "Too many heap sections", "Cannot allocate memory"];
    if finished.result == "oom-kill" || out_of_memory.iter().any(|sign| said.contains(sign)) {
        let what = format!("the evaluation needs more than the {} of memory it may have", settings.eval_memory);
        return failed(
            what,
            lines,
            "look for a list or a recursion that grows without end, or evaluate fewer instances in one flake",
        );
    }
    if matches!(finished.result.as_str(), "signal" | "core-dump") {
        return failed(
            "the evaluation was killed".into(),
            lines,
            "push again; if it happens again, look for a very deep recursion",
        );
    }
    if said.contains("does not provide attribute") {
        let what = "the flake has no output seeds".to_owned();
        return failed(what, lines, "write outputs = …: { seeds.<name> = { meta = { … }; toplevel = …; }; }");
    }
    if said.contains("does not contain a 'flake.nix'") || said.contains("flake.nix' does not exist") {
        return failed(
            "there is no flake.nix at the top of the repository".into(),
            lines,
            "add one: nix flake init -t …, git add flake.nix",
        );
    }
    if said.contains("import from derivation") || said.contains("allow-import-from-derivation") {
        let what = "the evaluation needs something to be built first, which this host does not allow".to_owned();
        return failed(what, lines, "do not read or import files from derivations (import from derivation)");
    }
    let last = last_error(&lines);
    // What `READ_SEEDS` throws says all there is to say, the remedy too.
    if let Some((what, remedy)) =
        last.split_once(": write ").filter(|(what, _)| what.starts_with("seeds.") || what.starts_with("the output seeds"))
    {
        return failed(what.to_owned(), Vec::new(), &format!("write {remedy}"));
    }
    failed(format!("the evaluation failed: {last}"), lines, "see it at home with: nix eval .#seeds")
}

/// Why a build gave nothing.
pub(super) fn build_error(finished: &Finished, settings: &NixSettings) -> BuildError {
    if let Some(host) = host_error(finished) {
        return host;
    }
    let said = finished.stderr.join("\n");
    let lines = lines_that_matter(&finished.stderr);
    if finished.result == "timeout" || said.contains("timed out after") {
        let what = format!("the build did not end in {} s", settings.build_timeout_secs);
        return failed(what, lines, "build less from source: use inputs that a binary cache has");
    }
    if said.contains("No space left on device") {
        return BuildError::Host("there is no room left to build in: free some in /nix".into());
    }
    let what = format!("the build failed: {}", last_error(&lines));
    failed(what, lines, "see it at home with: nix build .#seeds.<name>.toplevel")
}

fn failed(what: String, lines: Vec<String>, remedy: &str) -> BuildError {
    BuildError::Failed { what, lines, remedy: remedy.to_owned() }
}

/// Errors that no flake can cause.
fn host_error(finished: &Finished) -> Option<BuildError> {
    let line = |part: &str| finished.stderr.iter().find(|line| line.contains(part)).cloned();
    if finished.result.is_empty() {
        let said = finished.stderr.last().cloned().unwrap_or_else(|| format!("systemd-run ended with {:?}", finished.code));
        return Some(BuildError::Host(said));
    }
    // 200 to 243: systemd could not set the unit up.
    if let Some(code @ 200..=243) = finished.code {
        return Some(BuildError::Host(format!("systemd could not set up the unit of the build (code {code}): see its journal")));
    }
    line("cannot connect to socket at").or_else(|| line("cannot open connection to remote store")).map(BuildError::Host)
}

/// The block that nix's error is, without the paths that only nix knows: `flake.nix:3:5` instead of `/nix/store/…-source/flake.nix:3:5`.
fn lines_that_matter(stderr: &[String]) -> Vec<String> {
    let begin = stderr.iter().position(|line| line.starts_with("error:")).unwrap_or_else(|| stderr.len().saturating_sub(LINES_MAX));
    let block: Vec<String> = without_own_frames(&stderr[begin..]).into_iter().map(without_store).collect();
    if block.len() <= LINES_MAX {
        return block;
    }
    // The beginning says what was being done, the end says what went wrong.
    let head = LINES_MAX / 4;
    let tail = block.len() - (LINES_MAX - head - 1);
    [&block[..head], &["…".to_owned()], &block[tail..]].concat()
}

/// Leaves out empty lines, and the parts of a trace that lead through Seed's own expression: `… while …` and what is indented below it.
fn without_own_frames(lines: &[String]) -> Vec<&str> {
    let mut kept: Vec<&str> = Vec::new();
    let mut frame: Vec<&str> = Vec::new();
    let begins = |line: &str| {
        let text = line.trim_start();
        text.starts_with('…') || text.starts_with("error:") || text.starts_with("(stack trace truncated")
    };
    fn take<'a>(kept: &mut Vec<&'a str>, frame: &mut Vec<&'a str>) {
        let own = frame.first().is_some_and(|line| line.trim_start().starts_with('…'))
            && frame.iter().any(|line| line.contains("«string»"));
        let noise = frame.first().is_some_and(|line| line.trim_start().starts_with("(stack trace truncated"));
        if own || noise {
            frame.clear();
        }
        kept.append(frame);
    }
    for line in lines.iter().map(String::as_str).filter(|line| !line.trim().is_empty()) {
        if begins(line) {
            take(&mut kept, &mut frame);
        }
        frame.push(line);
    }
    take(&mut kept, &mut frame);
    kept
}

/// The last thing that is called an error: nix ends with it.
fn last_error(lines: &[String]) -> String {
    let last = lines.iter().rev().find_map(|line| line.trim_start().strip_prefix("error:").filter(|rest| !rest.trim().is_empty()));
    match last.or(lines.last().map(String::as_str)) {
        Some(text) => text.trim().chars().take(300).collect(),
        None => "nix said nothing".to_owned(),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::quantity::Bytes;

    fn settings() -> NixSettings {
        NixSettings {
            nix: "/usr/bin/nix".into(),
            roots: "/r".into(),
            run: "/run/seed".into(),
            hidden: Vec::new(),
            eval_timeout_secs: 60,
            eval_memory: Bytes(2 << 30),
            build_timeout_secs: 600,
            allow_addresses: Vec::new(),
        }
    }

    fn finished(result: &str, stderr: &str) -> Finished {
        Finished { code: Some(1), result: result.into(), stdout: Vec::new(), stderr: stderr.lines().map(str::to_owned).collect() }
    }

    #[test]
    fn each_failure_is_told_in_its_own_words() {
        for (result, stderr, expected) in [
            ("timeout", "warning: x", "the evaluation did not end in 60 s"),
            ("oom-kill", "", "the evaluation needs more than the 2Gi of memory it may have"),
            ("exit-code", "error: out of memory", "the evaluation needs more than the 2Gi"),
            ("signal", "", "the evaluation was killed"),
            ("exit-code", "error: flake 'tarball+file:///x' does not provide attribute 'seeds'", "the flake has no output seeds"),
            (
                "exit-code",
                "error:\n       … while evaluating\n         at /nix/store/0123456789abcdfghijklmnpqrsvwxyz-source/flake.nix:3:5:\n\n       error: undefined variable 'x'\n       at flake.nix:3:5",
                "the evaluation failed: undefined variable 'x'",
            ),
        ] {
            match eval_error(&finished(result, stderr), &settings()) {
                BuildError::Failed { what, lines, remedy } => {
                    assert!(what.starts_with(expected), "{what}");
                    assert!(!remedy.is_empty() && lines.iter().all(|line| !line.contains("-source/")), "{lines:?}");
                }
                other => panic!("{other}"),
            }
        }
        match build_error(
            &finished(
                "exit-code",
                "web> cc: no\nerror: builder for '/nix/store/x.drv' failed with exit code 1;\n       last 1 log lines:\n       > cc: no",
            ),
            &settings(),
        ) {
            BuildError::Failed { what, lines, .. } => {
                assert!(what.contains("builder for '/nix/store/x.drv' failed"), "{what}");
                assert_eq!(lines.len(), 3);
            }
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_trace_leaves_out_what_is_not_the_tenants() {
        let stderr = "error:\n       … while evaluating attribute 'web'\n\n       … while evaluating a branch condition\n         at «string»:5:5:\n            4|   read = name: seed:\n             |     ^\n\n       (stack trace truncated; use '--show-trace')\n\n       error: undefined variable 'x'\n       at flake.nix:2:17:\n            1| {";
        match eval_error(&finished("exit-code", stderr), &settings()) {
            BuildError::Failed { lines, .. } => assert_eq!(
                lines,
                [
                    "error:",
                    "       … while evaluating attribute 'web'",
                    "       error: undefined variable 'x'",
                    "       at flake.nix:2:17:",
                    "            1| {"
                ]
            ),
            other => panic!("{other}"),
        }
        let thrown = "error:\n       … while calling the 'throw' builtin\n         at «string»:8:7:\n       error: seeds.web has no meta: write seeds.web.meta = { }";
        let expected =
            BuildError::Failed { what: "seeds.web has no meta".into(), lines: vec![], remedy: "write seeds.web.meta = { }".into() };
        assert_eq!(eval_error(&finished("exit-code", thrown), &settings()), expected);
    }

    #[test]
    fn what_is_no_fault_of_the_flake_is_told_apart() {
        for (result, code, stderr) in [
            ("", 1, "Failed to start transient service unit: Access denied"),
            ("exit-code", 203, ""),
            ("exit-code", 1, "error: cannot connect to socket at '/nix/var/nix/daemon-socket/socket': Connection refused"),
        ] {
            let finished = Finished { code: Some(code), ..finished(result, stderr) };
            assert!(matches!(eval_error(&finished, &settings()), BuildError::Host(_)), "{stderr}");
            assert!(matches!(build_error(&finished, &settings()), BuildError::Host(_)), "{stderr}");
        }
    }

    #[test]
    fn a_long_error_keeps_its_beginning_and_its_end() {
        let text: Vec<String> = std::iter::once("error:".to_owned()).chain((0..100).map(|n| format!("  {n}"))).collect();
        let lines = lines_that_matter(&text);
        assert_eq!((lines.len(), lines[0].as_str(), lines[LINES_MAX - 1].as_str()), (LINES_MAX, "error:", "  99"));
        assert!(lines.contains(&"…".to_owned()));
    }

    #[test]
    fn escapes_and_store_paths_are_left_out() {
        assert_eq!(clean("\x1b[31;1merror:\x1b[0m a\u{7}\tb \r"), "error: a\tb");
        assert_eq!(clean("\x1b[31"), "");
        let path = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz";
        assert_eq!(without_store(&format!("at {path}-source/a.nix:1 and {path}-b/c")), format!("at a.nix:1 and {path}-b/c"));
        assert_eq!(without_store("/nix/store/"), "/nix/store/");
        assert_eq!(without_store("/nix/store/äöüäöüäöüäöüäöüäöüäöüäö"), "/nix/store/äöüäöüäöüäöüäöüäöüäöüäö");
    }
}
