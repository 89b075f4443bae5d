//! What manual pages and completion are made of: every verb, with all that it takes.

use std::path::Path;

use clap::CommandFactory;

use super::Cli;
use crate::serve::shell;

/// A verb, or one of its deeds, with the options that it takes.
fn command(name: &'static str, options: &[shell::VerbOption]) -> clap::Command {
    let argument = |(long, short, value, what): &shell::VerbOption| {
        let argument = clap::Arg::new(*long).long(*long).short(*short).help(*what);
        match value {
            Some(name) => argument.value_name(*name),
            None => argument.action(clap::ArgAction::SetTrue),
        }
    };
    clap::Command::new(name)
        .args(options.iter().map(argument))
        .arg(clap::Arg::new("json").long("json").help("Print documents instead of tables").action(clap::ArgAction::SetTrue))
        .arg(clap::Arg::new("words").num_args(0..).value_name("WORD").help("What it is about"))
}

/// The command line with every verb spelled out, for manual pages: one for each verb.
fn documented() -> clap::Command {
    let verb = |known: shell::Known| {
        command(known.name, known.options)
            .about(known.short)
            .long_about(format!("{}.\n\n{}", known.short, known.long))
            .override_usage(format!("seed {}", known.usage))
    };
    let whole = Cli::command();
    // Those that nobody types are not offered.
    let shown = whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    clap::Command::new("seed")
        .version(env!("CARGO_PKG_VERSION"))
        .about(whole.get_about().cloned().unwrap_or_default())
        .disable_help_subcommand(true)
        .subcommands(shown.chain(shell::verbs().map(verb)))
}

/// Writes the manual: a page for each verb.
pub(super) fn write(folder: &Path) -> std::io::Result<()> {
    clap_mangen::generate_to(documented(), folder)?;
    for known in shell::verbs() {
        // What would be there knows the options, and nothing of what a verb is about.
        let path = folder.join(format!("seed-{}.1", known.name));
        let page = std::fs::read_to_string(&path)?;
        let mut lines: Vec<&str> = page.lines().collect();
        let at = lines.iter().position(|line| *line == ".SH SYNOPSIS").map_or(lines.len(), |at| at + 1);
        let usage = format!("\\fBseed\\fR {}", known.usage.replace('-', "\\-"));
        lines.splice(at..(at + 1).min(lines.len()), [usage.as_str()]);
        std::fs::write(&path, lines.join("\n") + "\n")?;
    }
    Ok(())
}

/// The same for completion, which offers what a verb is to do as well: `invite revoke`.
pub(super) fn completed() -> clap::Command {
    shell::verbs().filter(|known| !known.deeds.is_empty()).fold(documented(), |whole, known| {
        let deeds = known.deeds.iter().map(|deed| command(deed, known.options));
        whole.mut_subcommand(known.name, |verb| verb.disable_help_subcommand(true).subcommands(deeds))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_is_completed_and_has_a_manual_page() {
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut completed(), "seed", &mut script);
            let script = String::from_utf8(script).expect("text");
            for internal in ["store-view", "read-repository", "fetch-repository"] {
                assert!(!script.contains(internal), "{shell}: {internal}");
            }
            for known in shell::verbs() {
                assert!(script.contains(known.name), "{shell}: {}", known.name);
                for (long, ..) in known.options {
                    assert!(script.contains(long), "{shell}: {} --{long}", known.name);
                }
            }
        }
        documented().debug_assert();
        completed().debug_assert();
        let dir = tempfile::tempdir().expect("a folder");
        write(dir.path()).expect("written");
        for known in shell::verbs() {
            let page = std::fs::read_to_string(dir.path().join(format!("seed-{}.1", known.name))).expect("a page");
            assert!(page.contains(".SH NAME") && page.contains(".SH DESCRIPTION"), "{}", known.name);
        }
        let page = std::fs::read_to_string(dir.path().join("seed-invite.1")).expect("a page");
        let synopsis = ".SH SYNOPSIS\n\\fBseed\\fR invite new [\\-\\-uses N]";
        assert!(page.contains(synopsis) && page.contains("| revoke ID\n.SH DESCRIPTION"), "{page}");
    }
}
