//! `domain`: names of one's own, what proves them, and how they are.

use std::time::Duration;

use tokio::io::AsyncWrite;

use super::{
    Arguments, End, Look, Session, ask,
    progress::plain,
    show::{self, Cell, DIM, GREEN, RED, YELLOW},
};
use crate::bus::{
    Refusal,
    domain::{DomainList, DomainStatus, DomainsProxy},
    shell as documents,
};

/// How long `domain add` waits for the first look, and how often it asks for it.
const LOOK: Duration = Duration::from_secs(8);
const EVERY: Duration = Duration::from_millis(200);

impl<O: AsyncWrite + Unpin + Send> Session<'_, O> {
    /// `domain add INSTANCE NAME | remove NAME | list [REPO]`
    pub(super) async fn domain(&mut self, rest: &[String]) -> Result<u8, End> {
        let proxy = DomainsProxy::builder(self.agent.inner().connection()).cache_properties(zbus::proxy::CacheProperties::No);
        let domains = proxy.build().await.map_err(Refusal::from)?;
        let (deed, rest) =
            rest.split_first().ok_or_else(|| Refusal::Invalid("domain needs one of add, remove, list".to_owned()))?;
        let verb = format!("domain {deed}");
        let arguments = |at_most| Arguments::parse(&verb, rest, &[], &[], at_most);
        let who = self.name().to_owned();
        match deed.as_str() {
            "add" => {
                let arguments = arguments(2)?;
                let instance = arguments.required(0, "an instance and a name: domain add web www.example.com")?;
                let name = arguments.required(1, "a name: domain add web www.example.com")?;
                let document = ask::within(domains.add(&who, instance, name)).await?;
                let added: DomainList = serde_json::from_str(&document).map_err(show::unreadable)?;
                let Some(added) = added.domains.first() else {
                    return Err(Refusal::Failed("this is a bug in Seed: the claim is not there".to_owned()).into());
                };
                let seen = looked_at(&domains, &who, added).await?;
                let shown = match arguments.json {
                    true => json(&DomainList { version: 1, domains: vec![seen] }),
                    false => added_words(&seen),
                };
                self.print(&shown).await
            }
            "remove" => {
                let arguments = arguments(1)?;
                let name = arguments.required(0, "a name: domain remove www.example.com")?;
                ask::within(domains.remove(&who, name)).await?;
                let shown = match arguments.json {
                    true => documents::line(&documents::DomainRemoved { version: 1, removed: name.to_owned() }),
                    false => format!("{} is no longer claimed; its records in the DNS are yours to remove\n", plain(name)),
                };
                self.print(&shown).await
            }
            "list" => {
                let arguments = arguments(1)?;
                let filter = arguments.words.first().map_or("", |word| word.strip_suffix(".git").unwrap_or(word));
                let list: DomainList = ask::document(domains.list(&who, filter)).await?;
                let shown = if arguments.json { json(&list) } else { listed(&list, show::now(), self.look) };
                self.print(&shown).await
            }
            unknown => Err(Refusal::Invalid(format!("domain {unknown:?} is unknown: there are add, remove and list")).into()),
        }
    }
}

fn json(list: &DomainList) -> String {
    format!("{}\n", serde_json::to_string(list).expect("plain data is JSON"))
}

/// A name after it was looked at, if that does not take long.
async fn looked_at(domains: &DomainsProxy<'_>, who: &str, added: &DomainStatus) -> Result<DomainStatus, Refusal> {
    let mut last = added.clone();
    let looked = async {
        loop {
            let list: DomainList = ask::document(domains.list(who, &added.namespace)).await?;
            let Some(now) = list.domains.into_iter().find(|one| one.name == added.name) else { return Ok::<(), Refusal>(()) };
            last = now;
            if last.next > added.next {
                return Ok(());
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    // The doors may be away, or the DNS slow; that it is claimed is known anyway.
    tokio::time::timeout(LOOK, looked).await.unwrap_or(Ok(()))?;
    Ok(last)
}

fn state(domain: &DomainStatus) -> (&'static str, &'static str) {
    match domain.state.as_str() {
        "proven" => ("proven", GREEN),
        "failing" => ("proof is gone", RED),
        "waiting" => ("another's still", YELLOW),
        _ => ("not proven", YELLOW),
    }
}

/// What is to be set for a name, a line each.
fn to_set(domain: &DomainStatus) -> Vec<String> {
    let records = &domain.records;
    let (name, proof) = (plain(&domain.name), matches!(domain.state.as_str(), "proven" | "waiting"));
    let mut lines = Vec::new();
    if !proof {
        lines.push(format!("{name}. CNAME {}.", records.cname));
        lines.push(format!("or, also for a name that can be no CNAME: {}. TXT \"{}\"", records.txt_name, records.txt));
    }
    if !domain.delegated {
        lines.push(format!("for certificates: {}. CNAME {}.", records.acme_name, records.acme));
    }
    lines
}

/// What there is to say of a name besides its state.
fn detail(domain: &DomainStatus, now: u64) -> String {
    match domain.state.as_str() {
        "proven" if domain.delegated => plain(&domain.detail),
        "proven" => format!("{}; no certificates yet", plain(&domain.detail)),
        "waiting" => format!("{}; another has it until its own proof is gone for an hour", plain(&domain.detail)),
        "failing" => format!("{}; lost in {}", plain(&domain.detail), show::span(domain.lost_at.saturating_sub(now))),
        _ if domain.detail.is_empty() => "not looked at yet".to_owned(),
        _ => plain(&domain.detail),
    }
}

fn added_words(domain: &DomainStatus) -> String {
    let mut text = format!("{} is claimed for {}: {}", plain(&domain.name), plain(&domain.instance), state(domain).0);
    if !domain.detail.is_empty() {
        text.push_str(&format!(" ({})", plain(&domain.detail)));
    }
    let lines = to_set(domain);
    if !lines.is_empty() {
        text.push_str("\nSet in its DNS:\n");
        lines.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
        text.push_str("It is looked at every now and then; `domain add` again does so at once.");
    }
    text.push('\n');
    text
}

/// The table of names, as `status` shows it, too. Empty if there are none.
pub(super) fn table<'a>(domains: impl IntoIterator<Item = &'a DomainStatus>, now: u64, look: Look) -> String {
    let titles = ["DOMAIN", "INSTANCE", "STATE", "FOR", "DETAIL"];
    let mut rows: Vec<Vec<Cell>> = vec![titles.iter().map(|title| ((*title).to_owned(), Some(DIM))).collect()];
    rows.extend(domains.into_iter().map(|domain| {
        let (word, colour) = state(domain);
        vec![
            (plain(&domain.name), None),
            (plain(&domain.instance), None),
            (word.to_owned(), Some(colour)),
            (show::span(now.saturating_sub(domain.since)), None),
            (detail(domain, now), None),
        ]
    }));
    if rows.len() == 1 { String::new() } else { show::table(&rows, "  ", look) }
}

fn listed(list: &DomainList, now: u64, look: Look) -> String {
    let mut text = table(&list.domains, now, look);
    if text.is_empty() {
        return "No name is claimed. `domain add INSTANCE www.example.com`, or seed.domains in the flake, claims one.\n".to_owned();
    }
    for domain in list.domains.iter().filter(|domain| domain.state != "proven" || !domain.delegated) {
        text.push_str(&format!("\nFor {}, set in its DNS:\n", plain(&domain.name)));
        to_set(domain).iter().for_each(|line| text.push_str(&format!("  {line}\n")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::domain::Records;

    fn domain(state: &str, delegated: bool) -> DomainStatus {
        DomainStatus {
            name: "www.example.com".into(),
            namespace: "s-aaaaaaaaaaaa".into(),
            instance: "app/web".into(),
            origin: "added".into(),
            state: state.into(),
            since: 1000,
            lost_at: if state == "failing" { 4900 } else { 0 },
            detail: "seen\x1b[2J".into(),
            next: 0,
            records: Records {
                cname: "web.s-aaaaaaaaaaaa.seed.example".into(),
                txt_name: "_seed-challenge.www.example.com".into(),
                txt: "seed-x".into(),
                acme_name: "_acme-challenge.www.example.com".into(),
                acme: "_acme-y.s-aaaaaaaaaaaa.seed.example".into(),
            },
            delegated,
        }
    }

    #[test]
    fn what_is_missing_is_said_and_nothing_else() {
        let list =
            DomainList { version: 1, domains: vec![domain("pending", false), domain("proven", true), domain("failing", true)] };
        assert_eq!(
            listed(&list, 1300, Look::default()),
            "  DOMAIN           INSTANCE  STATE          FOR    DETAIL\n\
             \x20 www.example.com  app/web   not proven     5 min  seen\n\
             \x20 www.example.com  app/web   proven         5 min  seen\n\
             \x20 www.example.com  app/web   proof is gone  5 min  seen; lost in 60 min\n\
             \nFor www.example.com, set in its DNS:\n\
             \x20 www.example.com. CNAME web.s-aaaaaaaaaaaa.seed.example.\n\
             \x20 or, also for a name that can be no CNAME: _seed-challenge.www.example.com. TXT \"seed-x\"\n\
             \x20 for certificates: _acme-challenge.www.example.com. CNAME _acme-y.s-aaaaaaaaaaaa.seed.example.\n\
             \nFor www.example.com, set in its DNS:\n\
             \x20 www.example.com. CNAME web.s-aaaaaaaaaaaa.seed.example.\n\
             \x20 or, also for a name that can be no CNAME: _seed-challenge.www.example.com. TXT \"seed-x\"\n"
        );
        assert_eq!(added_words(&domain("proven", true)), "www.example.com is claimed for app/web: proven (seen)\n");
        let text = added_words(&domain("proven", false));
        assert!(text.contains("for certificates") && !text.contains("TXT"), "{text}");
        assert!(listed(&DomainList::default(), 0, Look::default()).contains("domain add"));
    }
}
