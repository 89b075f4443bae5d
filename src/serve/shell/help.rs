//! What the verbs are, and which one was meant.

use crate::bus::Refusal;

struct Verb {
    name: &'static str,
    usage: &'static str,
    short: &'static str,
    long: &'static str,
    operator: bool,
}

const VERBS: [Verb; 10] = [
    Verb {
        name: "status",
        usage: "status [REPO]",
        short: "what runs, where, and how it is doing",
        long: "Without REPO, everything that your key may see.",
        operator: false,
    },
    Verb {
        name: "logs",
        usage: "logs [REPO/]INSTANCE [-f] [--lines N]",
        short: "the journal and console of an instance",
        long: "The last 100 lines, or N. With -f (--follow) it goes on until you stop it.",
        operator: false,
    },
    Verb {
        name: "restart",
        usage: "restart [REPO/]INSTANCE",
        short: "power an instance off and start it again",
        long: "Follows until it runs again. Hanging up stops nothing.",
        operator: false,
    },
    Verb {
        name: "deploy",
        usage: "deploy REPO",
        short: "deploy what was pushed, again",
        long: "After a push with -o plan, or when the host was at fault. An instance that is as it should be is not touched.",
        operator: false,
    },
    Verb {
        name: "plant",
        usage: "plant FLAKE CODE [--private]",
        short: "run a repository here, with an invite code",
        long: "FLAKE is silo:REPO, github:USER/REPO[/BRANCH] or git+https://HOST/PATH[?ref=BRANCH]. Afterwards every push of its (default) \
               branch deploys it; of one that is elsewhere, once its webhook is set up. With --private it is not fetched before it has a \
               token (see help remote). The operator hands out codes.",
        operator: false,
    },
    Verb {
        name: "remote",
        usage: "remote REPO [token | forget | secret]",
        short: "how a repository from elsewhere is followed",
        long: "token reads one from standard input (TOKEN or USER:TOKEN, with leave to read that repository) and keeps it for fetching; \
               it is never shown. forget removes it. secret makes a new secret for the webhook.",
        operator: false,
    },
    Verb {
        name: "whoami",
        usage: "whoami",
        short: "the fingerprint of your key",
        long: "It is your identity here.",
        operator: false,
    },
    Verb {
        name: "plan",
        usage: "plan",
        short: "what the agent would change now",
        long: "The steps of a pass, in their order. Empty when all is as it should be.",
        operator: true,
    },
    Verb {
        name: "invite",
        usage: "invite new [--uses N] [--expires 7d] [--note TEXT] | list | revoke ID",
        short: "make, list and revoke invite codes",
        long: "A code is shown once, when it is made. It can be used once and for 7 days if nothing else is said; --expires never is for ever.",
        operator: true,
    },
    Verb { name: "help", usage: "help [VERB]", short: "this, or more about one verb", long: "", operator: false },
];

fn visible(operator: bool) -> impl Iterator<Item = &'static Verb> {
    VERBS.iter().filter(move |verb| operator || !verb.operator)
}

fn prefix(operator: bool) -> &'static str {
    if operator { "seed" } else { "ssh HOST" }
}

/// Whether there is such a verb, for whomever.
pub(super) fn known(verb: &str) -> bool {
    VERBS.iter().any(|known| known.name == verb)
}

/// All verbs.
pub(super) fn all(operator: bool) -> String {
    let mut text = String::from("Seed runs NixOS instances from git repositories.\n\n");
    for verb in visible(operator) {
        let usage = if verb.name == "invite" { "invite new | list | revoke ID" } else { verb.usage };
        text.push_str(&format!("  {} {usage:<38} {}\n", prefix(operator), verb.short));
    }
    text.push_str(
        "\nEvery verb takes --json. Exit codes: 1 failed, 2 wrongly asked, 3 not found, 4 denied, 5 the agent is away.\n",
    );
    if !operator {
        text.push_str("\nTo deploy, push a flake with `seeds`:\n\n  git push HOST:my-app\n\n");
        text.push_str(
            "The key that pushes first owns the repository. Push with -o plan to see what would change, -o async not to wait.\n",
        );
    }
    text
}

/// One verb.
pub(super) fn of(verb: &str, operator: bool) -> Result<String, Refusal> {
    let found = visible(operator).find(|known| known.name == verb).ok_or_else(|| unknown(verb, operator))?;
    let long = if found.long.is_empty() { String::new() } else { format!("\n{}\n", found.long) };
    Ok(format!("{} {}\n  {}\n{long}", prefix(operator), found.usage, found.short))
}

/// The refusal of a verb that does not exist, with the one that was meant.
pub(super) fn unknown(verb: &str, operator: bool) -> Refusal {
    let shown: String = super::plain(verb).chars().take(40).collect();
    let nearest = visible(operator).map(|known| (distance(&shown, known.name), known.name)).min();
    match nearest {
        Some((0..=2, name)) => Refusal::Invalid(format!("there is no {shown:?}: did you mean {name}?")),
        _ => {
            let names: Vec<&str> = visible(operator).map(|verb| verb.name).collect();
            Refusal::Invalid(format!("there is no {shown:?}: there are {}", names.join(", ")))
        }
    }
}

/// How many letters must be changed, added or left out to turn one word into the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, c) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for j in 0..b.len() {
            let change = diagonal + usize::from(c != b[j]);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verb_that_was_meant_is_named() {
        for (typed, meant) in [("statsu", "status"), ("log", "logs"), ("retsart", "restart"), ("Plant", "plant")] {
            let Refusal::Invalid(text) = unknown(typed, false) else { panic!() };
            assert!(text.contains(&format!("did you mean {meant}?")), "{text}");
        }
        let Refusal::Invalid(text) = unknown("frobnicate", false) else { panic!() };
        assert!(text.contains("status, logs") && !text.contains("invite"), "{text}");
    }

    #[test]
    fn every_verb_has_help_and_the_operator_sees_more() {
        for verb in &VERBS {
            assert!(of(verb.name, true).unwrap().contains(verb.usage));
            assert_eq!(of(verb.name, false).is_err(), verb.operator);
        }
        assert!(all(true).contains("invite new") && !all(false).contains("invite new"));
    }

    #[test]
    fn distances() {
        for (a, b, expected) in [("", "abc", 3), ("abc", "abc", 0), ("kitten", "sitting", 3), ("ab", "ba", 2)] {
            assert_eq!(distance(a, b), expected);
        }
    }
}
