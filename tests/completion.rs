//! What completes the command line, in the shells that it is for.
#![allow(clippy::disallowed_methods, reason = "this test runs shells")]

use std::process::{Command, Stdio};

fn said(mut command: Command) -> String {
    let dir = tempfile::tempdir().expect("a folder");
    command.env("SEED", env!("CARGO_BIN_EXE_seed")).env("HOME", dir.path()).env("XDG_CONFIG_HOME", dir.path()).current_dir("/");
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.trim().is_empty(), "{command:?}: {}\n{text}\n{errors}", output.status);
    text
}

/// What bash offers for the last of `words`.
fn bash(words: &[&str]) -> Vec<String> {
    let script = r#"source <("$SEED" completion bash); complete -p seed >/dev/null
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
        COMPREPLY=(); "$(complete -p seed | sed 's/.*-F \([^ ]*\) .*/\1/')" seed "${@: -1}" "${@: -2:1}"; printf '%s\n' "${COMPREPLY[@]}""#;
    let mut command = Command::new("bash");
    command.args(["--norc", "--noprofile", "-euc", script, "bash"]).args(words);
    said(command).lines().map(str::to_owned).collect()
}

/// What fish offers for a line.
fn fish(line: &str) -> Vec<String> {
    let mut command = Command::new("fish");
    command.args(["--no-config", "-c", "$SEED completion fish | source; complete -C $argv[1]", "--", line]);
    said(command).lines().map(|line| line.split('\t').next().unwrap_or_default().to_owned()).collect()
}

/// What zsh offers for a line, in a terminal of its own, as it has completion nowhere else.
fn zsh(line: &str) -> String {
    let script = r#"
        zmodload zsh/zpty
        zpty shell zsh -f -i
        zpty -w shell 'PS1=; autoload -Uz compinit; compinit -u -D; "$SEED" completion zsh >"$HOME/_seed"; source "$HOME/_seed"; compdef _seed seed'
        zpty -w shell 'zstyle ":completion:*" list-prompt ""; LISTMAX=0; print ready-now'
        while zpty -r shell said; do [[ $said == ready-now* ]] && break; done
        zpty -w -n shell "$1"$'\t\t'
        text=
        while [[ $text != *"$2"* ]] && (( ++rounds < 200 )); do
            if zpty -r -t shell said; then text+=$said; else sleep 0.1; fi
        done
        print -r -- "$text"
        zpty -d shell"#;
    let mut command = Command::new("zsh");
    command.args(["-f", "-c", script, "zsh", line, "whoami"]);
    said(command)
}

#[test]
fn each_shell_offers_the_verbs_and_their_options_and_nothing_internal() {
    assert_eq!(bash(&["seed", "sta"]), ["status", "start"].map(str::to_owned));
    let offered = bash(&["seed", ""]);
    for (verb, there) in [("rollback", true), ("dns", true), ("store-view", false), ("vm", false), ("machine", false)] {
        assert_eq!(offered.iter().any(|word| word == verb), there, "{verb}: {offered:?}");
    }
    assert_eq!(bash(&["seed", "logs", "--foll"]), ["--follow".to_owned()]);
    assert_eq!(bash(&["seed", "invite", "re"]), ["revoke".to_owned()]);

    let mut offered = fish("seed sta");
    offered.sort();
    assert_eq!(offered, ["start", "status"].map(str::to_owned));
    assert!(fish("seed logs --").contains(&"--follow".to_owned()));
    assert!(fish("seed repo vis").contains(&"visibility".to_owned()));
    assert!(!fish("seed ").iter().any(|word| word == "store-view"));

    let offered = zsh("seed ");
    assert!(offered.contains("rollback") && offered.contains("whoami") && !offered.contains("store-view"), "{offered}");
}
