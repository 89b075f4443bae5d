//! What the verbs are, and which one was meant.

use super::arguments::Arguments;
use crate::bus::{
    Refusal,
    shell::{self, VerbHelp, VerbList},
};

struct Verb {
    name: &'static str,
    usage: &'static str,
    short: &'static str,
    long: &'static str,
    operator: bool,
}

const VERBS: [Verb; 26] = [
    Verb {
        name: "status",
        usage: "status [REPO] [--watch]",
        short: "what runs, where, and how it is doing",
        long: "Without REPO, everything that your key may see. With --watch (-w) it is drawn again every 2 seconds until you stop it.",
        operator: false,
    },
    Verb {
        name: "logs",
        usage: "logs [REPO/]INSTANCE [-f] [--lines N] [--since T] [-u UNIT] [--boot] [--build]",
        short: "the journal and console of an instance",
        long: "The last 100 lines, or N (-n). With -f (--follow) it goes on until you stop it. --since (-S) takes 10m, 2h, 7d or a time in UTC as \
               2026-11-21T10:31; -u (--unit) a unit of the guest; --boot (-b) shows what came since its last start, --build what the last \
               deploy said.",
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
        name: "exec",
        usage: "exec [REPO/]INSTANCE -- COMMAND",
        short: "run a command inside of an instance, as its root",
        long: "The line is for the instance's own shell: your shell takes quotes off first, as with any ssh. Standard streams may be of any \
               size; with ssh -t it has a terminal. The exit code is the command's, and 255 if the connection was lost.",
        operator: false,
    },
    Verb {
        name: "shell",
        usage: "shell [REPO/]INSTANCE",
        short: "a shell inside of an instance; with ssh -t",
        long: "Without a terminal it reads commands from standard input.",
        operator: false,
    },
    Verb {
        name: "cp",
        usage: "cp",
        short: "copy files: scp FILE HOST:INSTANCE:/PATH",
        long: "There is no such command on this side: scp, sftp and sshfs do it, with paths that begin with [REPO/]INSTANCE and a colon. One \
               copy is with one instance. scp -O works, too; a path without a slash is in root's home.",
        operator: false,
    },
    Verb {
        name: "forward",
        usage: "forward [REPO/]INSTANCE PORT",
        short: "a TCP port of an instance, as standard streams",
        long: "For a port of your own machine: ssh -N -L 8080:INSTANCE:80 HOST, then http://localhost:8080/. The instance needs to expose \
               nothing. INSTANCE.REPO tells two of the same name apart.",
        operator: false,
    },
    Verb {
        name: "stop",
        usage: "stop [REPO/]INSTANCE",
        short: "power an instance off, and keep it off",
        long: "It stays off over pushes and reboots until you start it. Its addresses, its name and its volumes stay its own.",
        operator: false,
    },
    Verb {
        name: "start",
        usage: "start [REPO/]INSTANCE",
        short: "start an instance that is off",
        long: "Follows until it runs. What was pushed meanwhile is what starts.",
        operator: false,
    },
    Verb {
        name: "deploy",
        usage: "deploy REPO",
        short: "deploy what was pushed, again",
        long: "After a push with -o plan, or when the host was at fault. An instance that is as it should be is not touched. Who has access \
               changes with a push only.",
        operator: false,
    },
    Verb {
        name: "deploys",
        usage: "deploys [REPO]",
        short: "who pushed what, when, how it went, and what it changed",
        long: "The newest first, at most 50 of a repository; and the generations that rollback can go back to.",
        operator: false,
    },
    Verb {
        name: "rollback",
        usage: "rollback [REPO/]INSTANCE [GENERATION]",
        short: "run an instance as it was before",
        long: "Without GENERATION, as it was before the last change that worked. It takes one restart. A push of the version that you went back from \
               does not bring it back; another version, or unpin, does.",
        operator: false,
    },
    Verb {
        name: "pin",
        usage: "pin [REPO/]INSTANCE",
        short: "keep an instance as it is, whatever is pushed",
        long: "Pushes go on to be built and to change other instances. unpin ends it.",
        operator: false,
    },
    Verb {
        name: "unpin",
        usage: "unpin [REPO/]INSTANCE",
        short: "let pushes change an instance again",
        long: "It changes with the next push, or with deploy REPO. It also forgets which versions you went back from.",
        operator: false,
    },
    Verb {
        name: "destroy",
        usage: "destroy [REPO/]INSTANCE INSTANCE",
        short: "take an instance off this host",
        long: "Without the second INSTANCE it asks for the name again at a terminal (ssh -t), and refuses elsewhere. Its volumes are kept, and \
               listed by status. A push, or deploy REPO, makes it anew.",
        operator: false,
    },
    Verb {
        name: "plant",
        usage: "plant FLAKE CODE [--token | --key]",
        short: "run a repository here, with an invite code",
        long: "FLAKE is silo:REPO, github:USER/REPO[/BRANCH], git+https://HOST/PATH[?ref=BRANCH] or git+ssh://git@HOST/PATH. Afterwards every push of its (default) \
               branch deploys it; of one that is elsewhere, once its webhook is set up. That one has to say that it is yours: your key stands in \
               .authorized_keys at the top of that branch, without SEED_ROLE=read, SEED_INSTANCE or a date that is over, and as an admin if any \
               line is one. A private one is read with a deploy key of this host, which --key makes and shows first, or with --token: then a token comes on \
               standard input. The operator hands out codes.",
        operator: false,
    },
    Verb {
        name: "remote",
        usage: "remote REPO [token | key | trust SHA256:… | forget | secret]",
        short: "how a repository from elsewhere is followed",
        long: "token reads one from standard input (TOKEN or USER:TOKEN, with leave to read that repository) and keeps it for fetching; \
               it is never shown. key shows the deploy key of this host for it, and makes one if there is none: without a token, it is read over SSH \
               with that. The server is known by the host key that it showed first; trust takes another. forget removes token and key. secret makes a \
               new secret for the webhook.",
        operator: false,
    },
    Verb {
        name: "domain",
        usage: "domain add [REPO/]INSTANCE NAME | remove [REPO/]NAME | list [REPO]",
        short: "names of your own, as www.example.com",
        long: "add says which DNS record proves that a name is yours: a CNAME to the instance's name, or a TXT record. It is looked at at \
               once, then less and less often until it is proven, and daily from then on; add again looks at once. A claim without a \
               proof keeps nobody away. A name whose proof is gone is lost after 3 days, or after an hour if somebody else proves it. \
               seed.domains in the flake claims names as well.",
        operator: false,
    },
    Verb {
        name: "repo",
        usage: "repo list | visibility REPO public|private | rename REPO NAME | delete REPO REPO",
        short: "your repositories, who may read them, and their end",
        long: "Anyone can read a repository until it is made private. One that is planted cannot be renamed or deleted. Who else may do \
               what is said by .authorized_keys at its top: a line is a key, with environment=\"SEED_ROLE=read|deploy|admin\", \
               environment=\"SEED_INSTANCE=web\" or expiry-time=\"20300101Z\" before it, or none of them for deploy.",
        operator: false,
    },
    Verb {
        name: "quota",
        usage: "quota [REPO]",
        short: "how much you have, and may have",
        long: "What is more than that is refused before anything is stopped. The operator changes it: seed quota set REPO memory=8Gi routes=2, \
               or seed quota set REPO default.",
        operator: false,
    },
    Verb {
        name: "audit",
        usage: "audit [--since TIME] [--lines N]",
        short: "who changed what, when and from where",
        long: "What you did, and what was done to the repositories that you decide about. On the host: everything, and with --verify \
               whether anybody has changed the log.",
        operator: false,
    },
    Verb {
        name: "unplant",
        usage: "unplant REPO REPO",
        short: "end what plant began",
        long: "Stops its instances and takes them off this host. Without the second REPO it asks for the name again at a terminal (ssh -t), and \
               refuses elsewhere, if there are any. The repository and all volumes are kept, and listed.",
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
        usage: "invite new [--uses N] [--expires 7d] [--note TEXT] | list [--all] | revoke ID",
        short: "make, list and revoke invite codes",
        long: "A code is shown once, when it is made. It can be used once and for 7 days if nothing else is said; --expires never is for ever.",
        operator: true,
    },
    Verb { name: "help", usage: "help [VERB]", short: "this, or more about one verb", long: "", operator: false },
];

/// What is different on the host itself: the usage of a verb, what it does, and more about that.
fn on_host(verb: &str) -> Option<(&'static str, &'static str, &'static str)> {
    Some(match verb {
        "exec" => (
            "exec [-t] [REPO/]INSTANCE -- COMMAND",
            "run a command inside of an instance, as its root",
            "The words are put together with blanks and are for the instance's own shell. Standard streams may be of any size; with -t (--tty) \
             it has your terminal. Signals are passed on. The exit code is the command's, 128 and the signal that ended it, or 255 if the \
             connection was lost.",
        ),
        "shell" => (
            "shell [REPO/]INSTANCE",
            "a shell inside of an instance",
            "At a terminal it has one. Otherwise it reads commands from standard input.",
        ),
        "cp" => (
            "cp [-r] FILE INSTANCE:/PATH | INSTANCE:/PATH FILE",
            "copy files into an instance, or out of it",
            "A path in an instance begins with [REPO/]INSTANCE and a colon; without a slash it is in root's home. -r (--recursive) copies a \
             folder and all that is in it, but for links and devices. A file here with a colon in its name is ./a:b.",
        ),
        "forward" => (
            "forward [REPO/]INSTANCE PORT [LOCALPORT]",
            "a TCP port of an instance at 127.0.0.1, until Ctrl-C",
            "At LOCALPORT, or at PORT if none is given; 0 is any that is free. The instance needs to expose nothing.",
        ),
        "quota" => (
            "quota [REPO] | set REPO NAME=VALUE... | set REPO default",
            "how much a namespace has, and may have",
            "What is more than that is refused before anything is stopped. set gives one namespace another quota, as memory=8Gi routes=2, and \
             default takes that back. What runs goes on.",
        ),
        "audit" => (
            "audit [--since TIME] [--lines N] | --verify",
            "who changed what, when and from where",
            "Everything that anybody did. --verify says whether somebody has changed the log since.",
        ),
        _ => return None,
    })
}

/// An option of a verb: its long name, its short one, the name of its value if it takes one, and what it does.
pub type VerbOption = (&'static str, Option<char>, Option<&'static str>, &'static str);

/// The options of a verb, for completion and manual pages.
fn options(verb: &str) -> &'static [VerbOption] {
    match verb {
        "exec" => &[("tty", Some('t'), None, "With your terminal")],
        "cp" => &[("recursive", Some('r'), None, "A folder and all that is in it")],
        "status" => &[("watch", Some('w'), None, "Draw it again every 2 seconds")],
        "logs" => &[
            ("follow", Some('f'), None, "Go on until it is stopped"),
            ("lines", Some('n'), Some("N"), "The last N lines"),
            ("since", Some('S'), Some("TIME"), "None from before: 10m, 2h, 7d, or 2026-11-21T10:31 in UTC"),
            ("unit", Some('u'), Some("UNIT"), "Only of this unit of the guest"),
            ("boot", Some('b'), None, "Only since the last start"),
            ("build", None, None, "What the last deploy said"),
        ],
        "plant" => &[
            ("token", None, None, "Read a token for a private repository from standard input"),
            ("key", None, None, "Read a private repository with a deploy key, which is shown first"),
        ],
        "audit" => &[
            ("since", None, Some("TIME"), "None from before: 10m, 2h, 7d, or 2026-11-21T10:31 in UTC"),
            ("lines", None, Some("N"), "The last N lines"),
            ("verify", None, None, "Whether anybody has changed the log; on the host only"),
        ],
        "invite" => &[
            ("uses", None, Some("N"), "How often it may be used"),
            ("expires", None, Some("SPAN"), "For how long: 12h, 7d, never"),
            ("note", None, Some("TEXT"), "What it is for"),
            ("all", None, None, "List also those that can do nothing any more"),
        ],
        _ => &[],
    }
}

/// The words of which one comes first, and says what a verb is to do.
fn deeds(verb: &str) -> &'static [&'static str] {
    match verb {
        "domain" => &["add", "remove", "list"],
        "repo" => &["list", "visibility", "rename", "delete"],
        "invite" => &["new", "list", "revoke"],
        "quota" => &["set"],
        _ => &[],
    }
}

/// A verb, as completion and manual pages need to know it.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    pub name: &'static str,
    pub usage: &'static str,
    pub short: &'static str,
    pub long: &'static str,
    pub options: &'static [VerbOption],
    pub deeds: &'static [&'static str],
}

/// Every verb, in the order of the help, as it is on the host.
pub fn verbs() -> impl Iterator<Item = Known> {
    VERBS.iter().map(|verb| {
        let (usage, short, long) = verb.words(true);
        Known { name: verb.name, usage, short, long, options: options(verb.name), deeds: deeds(verb.name) }
    })
}

impl Verb {
    /// Its usage, what it does, and more about that.
    fn words(&self, operator: bool) -> (&'static str, &'static str, &'static str) {
        on_host(self.name).filter(|_| operator).unwrap_or((self.usage, self.short, self.long))
    }
}

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

/// `help`, of one verb or of all, as it was asked for.
pub(super) fn asked(words: &[String], operator: bool) -> Result<String, Refusal> {
    let arguments = Arguments::parse("help", words, &[], &[], 1)?;
    let verb = arguments.words.first().map(String::as_str);
    if !arguments.json {
        return verb.map_or_else(|| Ok(all(operator)), |verb| of(verb, operator));
    }
    let wanted = |known: &&Verb| verb.is_none_or(|verb| known.name == verb);
    let verbs: Vec<VerbHelp> = visible(operator)
        .filter(wanted)
        .map(|verb| {
            let (usage, short, long) = verb.words(operator);
            let [usage, short, long] = [usage, short, long].map(str::to_owned);
            VerbHelp { name: verb.name.to_owned(), usage, short, long }
        })
        .collect();
    match (verb, verbs.is_empty()) {
        (Some(verb), true) => Err(unknown(verb, operator)),
        _ => Ok(shell::line(&VerbList { version: 1, verbs })),
    }
}

/// All verbs.
pub(super) fn all(operator: bool) -> String {
    let mut text = String::from("Seed runs NixOS instances from git repositories.\n\n");
    for verb in visible(operator) {
        let (usage, short, _) = verb.words(operator);
        let usage = match verb.name {
            "invite" => "invite new | list | revoke ID",
            "domain" => "domain add | remove | list",
            "repo" => "repo list | visibility | rename | delete",
            "logs" => "logs [REPO/]INSTANCE [-f] [-n N] …",
            "remote" => "remote REPO [token | key | …]",
            "cp" if operator => "cp [-r] FILE INSTANCE:/PATH",
            "quota" if operator => "quota [REPO] | set REPO …",
            _ => usage,
        };
        text.push_str(&format!("  {} {usage:<40} {short}\n", prefix(operator)));
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
    let (usage, short, long) = found.words(operator);
    let long = if long.is_empty() { String::new() } else { format!("\n{long}\n") };
    Ok(format!("{} {usage}\n  {short}\n{long}", prefix(operator)))
}

/// The refusal of a verb that does not exist, with the one that was meant.
pub(super) fn unknown(verb: &str, operator: bool) -> Refusal {
    let shown: String = super::plain(verb).chars().take(40).collect();
    let nearest = visible(operator).map(|known| (distance(&shown, known.name), known.name)).min();
    match nearest {
        // Of a short word nothing would be left.
        Some((changes @ 0..=2, name)) if changes < shown.chars().count() => {
            Refusal::Invalid(format!("there is no {shown:?}: did you mean {name}?"))
        }
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
        for known in verbs() {
            // Whatever stands in the usage can be completed, and the other way round.
            for long in known.usage.split(|c: char| !c.is_ascii_lowercase() && c != '-').filter_map(|word| word.strip_prefix("--"))
            {
                let there = long.is_empty() || known.options.iter().any(|(option, ..)| *option == long);
                assert!(there, "{}: --{long} of its usage", known.name);
            }
            for (long, short, _, _) in known.options {
                let named = known.usage.contains(&format!("--{long}"))
                    || short.is_some_and(|short| known.usage.contains(&format!("-{short}")));
                assert!(named, "{}: --{long}", known.name);
            }
        }
        for known in verbs() {
            let usage: Vec<&str> = known.usage.split(|c: char| !c.is_ascii_alphabetic()).collect();
            assert!(known.deeds.iter().all(|deed| usage.contains(deed)), "{}: {:?}", known.name, known.deeds);
        }
        for verb in &VERBS {
            assert!(of(verb.name, true).unwrap().contains(verb.words(true).0));
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
