//! The verbs about deploys and about what becomes of instances: `deploys`, `rollback`, `pin`, `stop`, `start`, `destroy`, `unplant`.

use tokio::io::AsyncWrite;

use super::{
    Arguments, End, Session, ask,
    progress::plain,
    show::{self, Cell, DIM, GREEN, RED, YELLOW},
};
use crate::bus::{
    Outcome, Refusal, Stage,
    history::{DeployEntry, Deploys, HistoryProxy, NamespaceDeploys, Pinned, Unplanted},
};

impl<O: AsyncWrite + Unpin + Send> Session<'_, O> {
    /// Does one of the verbs of this file.
    pub(super) async fn history(&mut self, verb: &str, rest: &[String]) -> Result<u8, End> {
        let proxy = HistoryProxy::builder(self.agent.inner().connection()).cache_properties(zbus::proxy::CacheProperties::No);
        let history = proxy.build().await.map_err(Refusal::from)?;
        let most = if matches!(verb, "rollback" | "destroy" | "unplant") { 2 } else { 1 };
        let arguments = Arguments::parse(verb, rest, &[], &[], most)?;
        let json = arguments.json;
        let repository = |word: &str| word.strip_suffix(".git").unwrap_or(word).to_owned();
        let instance = || arguments.required(0, &format!("an instance: {verb} web, or {verb} my-app/web"));
        let more = arguments.words.get(1).map_or("", String::as_str);
        let who = self.name().to_owned();
        let job = match verb {
            "deploys" => {
                let filter = arguments.words.first().map(|word| repository(word)).unwrap_or_default();
                let document = ask::within(history.deploys(&who, &filter)).await?;
                if json {
                    return self.print(&format!("{document}\n")).await;
                }
                let deploys: Deploys = serde_json::from_str(&document).map_err(show::unreadable)?;
                return self.print(&table(&deploys, show::now(), self.look)).await;
            }
            "pin" | "unpin" => {
                let asked = instance()?;
                let document = match verb {
                    "pin" => ask::within(history.pin(&who, asked)).await?,
                    _ => ask::within(history.unpin(&who, asked)).await?,
                };
                if json {
                    return self.print(&format!("{document}\n")).await;
                }
                let pinned: Pinned = serde_json::from_str(&document).map_err(show::unreadable)?;
                return self.print(&pinned_words(&pinned)).await;
            }
            "unplant" => {
                let name = repository(arguments.required(0, "a repository: unplant my-app")?);
                let again = match more {
                    "" => self.name_again(&name, "takes all instances of", json).await?,
                    again => repository(again),
                };
                let document = ask::within(history.unplant(&who, &name, &again)).await?;
                let unplanted: Unplanted = serde_json::from_str(&document).map_err(show::unreadable)?;
                let shown = if json { format!("{document}\n") } else { unplanted_words(&unplanted) };
                self.print(&shown).await?;
                unplanted.job
            }
            "rollback" => ask::within(history.rollback(&who, instance()?, more)).await?,
            "stop" => ask::within(history.stop(&who, instance()?)).await?,
            "start" => ask::within(history.start(&who, instance()?)).await?,
            _ => {
                let asked = instance()?;
                let again = match more {
                    "" => self.name_again(asked.rsplit('/').next().unwrap_or(asked), "takes", json).await?,
                    again => again.to_owned(),
                };
                ask::within(history.destroy(&who, asked, &again)).await?
            }
        };
        self.follow(&job, json).await
    }
}

fn pinned_words(pinned: &Pinned) -> String {
    let instance = plain(&pinned.instance);
    let repository = instance.split('/').next().unwrap_or_default();
    match (pinned.pinned, pinned.changed) {
        (true, true) => format!("{instance} is pinned: deploys leave it as it is until `unpin {instance}`\n"),
        (true, false) => format!("{instance} was pinned already\n"),
        (false, true) => format!("{instance} is not pinned any more: the next push changes it, or now: deploy {repository}\n"),
        (false, false) => format!("{instance} was not pinned\n"),
    }
}

fn unplanted_words(unplanted: &Unplanted) -> String {
    let mut text = format!("{} is no longer planted. Kept:\n", plain(&unplanted.flake));
    for line in &unplanted.kept {
        text.push_str(&format!("  {}\n", plain(line)));
    }
    text
}

/// The first characters of a fingerprint, which people tell apart.
fn short(who: &str) -> String {
    plain(who).chars().take(15).collect()
}

fn table(deploys: &Deploys, now: u64, look: super::Look) -> String {
    let mut text = String::new();
    for namespace in &deploys.namespaces {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&of_namespace(namespace, now, look));
    }
    if text.is_empty() {
        text.push_str("Nothing of yours was deployed yet: `git push`, then `plant`; `help` shows how.\n");
    }
    text
}

fn of_namespace(namespace: &NamespaceDeploys, now: u64, look: super::Look) -> String {
    let mut text = format!("{}  {}\n", plain(&namespace.flake), namespace.namespace);
    if namespace.deploys.is_empty() {
        text.push_str("  nothing was deployed yet\n");
    } else {
        let titles = ["AGO", "WHAT", "BY", "BRANCH", "COMMIT", "GENERATION", "RESULT", "TOOK", "STAGES", "CHANGES"];
        let mut rows: Vec<Vec<Cell>> = vec![titles.iter().map(|title| ((*title).to_owned(), Some(DIM))).collect()];
        rows.extend(namespace.deploys.iter().map(|entry| row(entry, now, entry.generation == namespace.generation)));
        text.push_str(&show::table(&rows, "  ", look));
    }
    if !namespace.kept.is_empty() {
        text.push_str(&format!("  rollback can go to: {}\n", namespace.kept.join(", ")));
    }
    text
}

fn row(entry: &DeployEntry, now: u64, current: bool) -> Vec<Cell> {
    let (result, colour) = match entry.outcome {
        None => ("under way".to_owned(), YELLOW),
        Some(Outcome::Done) if current => ("done, runs".to_owned(), GREEN),
        Some(Outcome::Done) => ("done".to_owned(), GREEN),
        Some(Outcome::Superseded) => ("superseded".to_owned(), YELLOW),
        Some(Outcome::Failed) => match entry.stages.last() {
            Some(last) => (format!("failed at {}", name(last.stage)), RED),
            None => ("failed".to_owned(), RED),
        },
    };
    let stage = |time: &crate::bus::history::StageTime| {
        let seconds = time.milliseconds as f64 / 1000.0;
        format!("{} {seconds:.1} s", name(time.stage))
    };
    let stages: Vec<String> = entry.stages.iter().map(stage).collect();
    let commit: String = entry.commit.chars().take(10).collect();
    vec![
        (show::span(now.saturating_sub(entry.at)), None),
        (plain(&entry.kind), None),
        (short(&entry.by), None),
        (plain(&entry.branch), None),
        (plain(&commit), None),
        (plain(&entry.generation), None),
        (result, Some(colour)),
        (show::span(entry.seconds), None),
        (stages.join(", "), None),
        (plain(&entry.changes.join("; ")), None),
    ]
}

fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::Queue => "queue",
        Stage::Fetch => "fetch",
        Stage::Eval => "eval",
        Stage::Build => "build",
        Stage::Plan => "plan",
        Stage::Boot => "boot",
        Stage::Run => "run",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bus::history::StageTime, serve::shell::Look};

    #[test]
    fn deploys_are_a_table_that_says_what_runs_and_where_one_may_go_back_to() {
        let time = |stage, milliseconds| StageTime { stage, milliseconds };
        let entry = |at, generation: &str, outcome, stages: Vec<StageTime>| DeployEntry {
            at,
            seconds: 23,
            by: format!("SHA256:{}", "A".repeat(43)),
            kind: "push".into(),
            branch: "main".into(),
            commit: "1".repeat(40),
            generation: generation.into(),
            outcome,
            stages,
            changes: vec!["web: restart (system changed)".into()],
            text: String::new(),
        };
        let deploys = Deploys {
            version: 1,
            namespaces: vec![NamespaceDeploys {
                namespace: "s-aaaaaaaaaaaa".into(),
                flake: "silo:my-app".into(),
                generation: "0123456789ab".into(),
                kept: vec!["ba9876543210".into()],
                deploys: vec![
                    entry(1290, "", Some(Outcome::Failed), vec![time(Stage::Eval, 2210)]),
                    entry(1000, "0123456789ab", Some(Outcome::Done), vec![time(Stage::Eval, 2000), time(Stage::Build, 3300)]),
                ],
            }],
        };
        assert_eq!(
            table(&deploys, 1300, Look::default()),
            "silo:my-app  s-aaaaaaaaaaaa\n\
             \x20 AGO    WHAT  BY               BRANCH  COMMIT      GENERATION    RESULT          TOOK  STAGES                   CHANGES\n\
             \x20 10 s   push  SHA256:AAAAAAAA  main    1111111111                failed at eval  23 s  eval 2.2 s               web: \
             restart (system changed)\n\
             \x20 5 min  push  SHA256:AAAAAAAA  main    1111111111  0123456789ab  done, runs      23 s  eval 2.0 s, build 3.3 s  web: \
             restart (system changed)\n\
             \x20 rollback can go to: ba9876543210\n"
        );
        assert!(table(&Deploys::default(), 0, Look::default()).contains("git push"));
    }

    #[test]
    fn what_was_changed_is_said_with_the_way_back() {
        let pinned = |pinned, changed| Pinned { version: 1, instance: "app/web".into(), pinned, changed };
        for (one, words) in [
            (pinned(true, true), "until `unpin app/web`"),
            (pinned(true, false), "already"),
            (pinned(false, true), "deploy app"),
            (pinned(false, false), "was not pinned"),
        ] {
            assert!(pinned_words(&one).contains(words), "{one:?}");
        }
        let unplanted = Unplanted {
            version: 1,
            namespace: String::new(),
            flake: "silo:a".into(),
            job: String::new(),
            kept: vec!["x\x1b[2J".into()],
        };
        assert_eq!(unplanted_words(&unplanted), "silo:a is no longer planted. Kept:\n  x\n");
    }
}
