//! The verbs about who may what: `repo`, `quota`, `audit`; and the table of invites.

use tokio::io::AsyncWrite;

use super::{
    End, Session,
    arguments::{self, Arguments},
    ask, show,
};
use crate::{
    bus::{
        Refusal,
        access::{AccessProxy, AuditTrail, QuotaReport, RepositoryList},
        shell as documents,
    },
    serve::progress::plain,
    spec::{access::Visibility, quantity::Bytes},
};

fn name_of(word: &str) -> &str {
    word.strip_suffix(".git").unwrap_or(word)
}

impl<O: AsyncWrite + Unpin + Send> Session<'_, O> {
    async fn access(&self) -> Result<AccessProxy<'static>, Refusal> {
        let asked = self.agent.inner();
        let proxy = AccessProxy::builder(asked.connection()).destination(asked.destination().to_owned());
        proxy.cache_properties(zbus::proxy::CacheProperties::No).build().await.map_err(Refusal::ZBus)
    }

    pub(super) async fn repo(&mut self, rest: &[String]) -> Result<u8, End> {
        let (deed, rest) =
            rest.split_first().ok_or_else(|| Refusal::Invalid("repo needs one of list, visibility, rename, delete".into()))?;
        let verb = format!("repo {deed}");
        let arguments = |at_most| Arguments::parse(&verb, rest, &[], &[], at_most);
        let access = self.access().await?;
        match deed.as_str() {
            "list" => {
                let arguments = arguments(0)?;
                if arguments.json {
                    let document = ask::within(access.list_repositories(self.name())).await?;
                    return self.print(&format!("{document}\n")).await;
                }
                let list: RepositoryList = ask::document(access.list_repositories(self.name())).await?;
                let shown = self.repositories(&list);
                self.print(&shown).await
            }
            "visibility" => {
                let arguments = arguments(2)?;
                let name = name_of(arguments.required(0, "a repository and public or private: repo visibility my-app private")?);
                let visibility = arguments.required(1, "public or private: repo visibility my-app private")?;
                ask::within(access.set_visibility(self.name(), name, visibility)).await?;
                let who = if visibility == "public" { "anyone" } else { "its owner and the keys in its .authorized_keys" };
                self.done(
                    &arguments,
                    &documents::VisibilitySet { version: 1, visibility: visibility.to_owned() },
                    &format!("{name} is {visibility}: {who} can read it\n"),
                )
                .await
            }
            "rename" => {
                let arguments = arguments(2)?;
                let name = name_of(arguments.required(0, "a repository and its new name: repo rename my-app our-app")?);
                let to = name_of(arguments.required(1, "a new name: repo rename my-app our-app")?);
                ask::within(access.rename_repository(self.name(), name, to)).await?;
                self.done(
                    &arguments,
                    &documents::Renamed { version: 1, name: to.to_owned() },
                    &format!("{name} is {to} now: git remote set-url says so to a clone\n"),
                )
                .await
            }
            "delete" => {
                let arguments = arguments(2)?;
                let name = name_of(arguments.required(0, "a repository, and its name once more: repo delete my-app my-app")?);
                let again = arguments.words.get(1).map_or("", |word| name_of(word));
                ask::within(access.delete_repository(self.name(), name, again)).await?;
                let deleted = documents::Deleted { version: 1, deleted: name.to_owned() };
                self.done(&arguments, &deleted, &format!("{name} is deleted\n")).await
            }
            unknown => {
                Err(Refusal::Invalid(format!("repo {unknown:?} is unknown: there are list, visibility, rename and delete")).into())
            }
        }
    }

    /// Says that it is done, in the way that was asked for.
    async fn done(&mut self, arguments: &Arguments, document: &impl serde::Serialize, text: &str) -> Result<u8, End> {
        let shown = if arguments.json { documents::line(document) } else { plain(text.trim_end()) + "\n" };
        self.print(&shown).await
    }

    fn repositories(&self, list: &RepositoryList) -> String {
        if list.repositories.is_empty() {
            return "You have no repository yet: git push HOST:my-app makes one.\n".into();
        }
        let mut rows = vec![show::titles(&["REPOSITORY", "READ BY", "YOU ARE", "PLANTED AS", "AGE", "WHO ELSE"])];
        for repository in &list.repositories {
            let read_by = match repository.visibility {
                Visibility::Public => "anyone",
                Visibility::Private => "its keys",
            };
            let age = show::span(show::now().saturating_sub(repository.created));
            let first = repository.access.first().cloned().unwrap_or_default();
            rows.push(show::cells(&[&repository.name, read_by, &repository.standing, &repository.namespace, &age, &first]));
            for more in repository.access.iter().skip(1) {
                rows.push(show::cells(&["", "", "", "", "", more]));
            }
        }
        show::table(&rows, "", self.look)
    }

    pub(super) async fn quota(&mut self, rest: &[String]) -> Result<u8, End> {
        let access = self.access().await?;
        if rest.first().is_some_and(|word| word == "set") {
            if self.who.is_some() {
                return Err(Refusal::Denied("quota set is for the operator, on the host itself: seed quota set".into()).into());
            }
            let arguments = Arguments::parse("quota set", &rest[1..], &[], &[], 8)?;
            let name = arguments
                .required(0, "a namespace and what to change: quota set my-app memory=8Gi, or quota set my-app default")?;
            arguments.required(1, "what to change: quota set my-app memory=8Gi, or quota set my-app default")?;
            let changes = arguments.words[1..].join(" ");
            ask::within(access.set_quota(name_of(name), &changes)).await?;
            let text = format!("{name}: {changes}; what runs goes on\n");
            return self.done(&arguments, &documents::QuotaSet { version: 1, quota: changes }, &text).await;
        }
        let arguments = Arguments::parse("quota", rest, &[], &[], 1)?;
        let filter = arguments.words.first().map_or("", |word| name_of(word));
        let document = ask::within(access.quota(self.name(), filter)).await?;
        if arguments.json {
            return self.print(&format!("{document}\n")).await;
        }
        let quotas: documents::QuotaList = serde_json::from_str(&document)
            .map_err(|error| Refusal::Failed(format!("the agent's answer could not be read: {error}")))?;
        if quotas.namespaces.is_empty() {
            return self.print("Nothing of yours is planted yet, so nothing is used.\n").await;
        }
        let mut text = String::new();
        for report in &quotas.namespaces {
            text.push_str(&self.quota_of(report));
        }
        self.print(&text).await
    }

    fn quota_of(&self, report: &QuotaReport) -> String {
        let QuotaReport { quota, used, .. } = report;
        let bytes = |used: u64, most: u64| (Bytes(used).rough().to_string(), Bytes(most).to_string());
        let count = |used: u64, most: u32| (used.to_string(), most.to_string());
        let table = [
            ("instances", count(used.share.instances, quota.instances)),
            ("vcpus", count(used.share.vcpus, quota.vcpus)),
            ("memory", bytes(used.share.memory, quota.memory)),
            ("volumes", bytes(used.share.volumes, quota.volumes)),
            ("repository", bytes(used.repository, quota.repository)),
            ("builds", count(used.builds.into(), quota.builds)),
            ("logs", bytes(used.share.logs, quota.logs)),
            ("routes", count(used.routes.into(), quota.routes)),
        ];
        let mut rows = vec![show::titles(&["QUOTA", "USED", "OF"])];
        rows.extend(table.iter().map(|(name, (used, most))| show::cells(&[name, used, most])));
        let own = if report.own { "  (set by the operator)" } else { "" };
        format!("{}  {}{own}\n{}", plain(&report.repository), report.namespace, show::table(&rows, "  ", self.look))
    }

    pub(super) async fn audit(&mut self, rest: &[String]) -> Result<u8, End> {
        let arguments = Arguments::parse("audit", rest, &["--verify"], &["--since", "--lines"], 0)?;
        let access = self.access().await?;
        if arguments.flag("--verify") {
            if self.who.is_some() {
                return Err(
                    Refusal::Denied("audit --verify is for the operator, on the host itself: seed audit --verify".into()).into()
                );
            }
            let document = ask::within(access.verify_audit()).await?;
            let documents::AuditChecked { entries, first, since, hash, .. } =
                serde_json::from_str(&document).map_err(show::unreadable)?;
            let hash = plain(&hash);
            let mut text = format!(
                "{entries} entries, each follows the one before, and none that the journal knows is missing; the last is {hash}\n"
            );
            if first > 1 {
                let since = crate::spec::authorized_keys::time_text(since);
                text.push_str(&format!(
                    "It speaks from entry {first} on, of {since}: those before it were removed to make room.\n"
                ));
            }
            return self.print(&if arguments.json { format!("{document}\n") } else { text }).await;
        }
        let since = match arguments.value("--since") {
            None => 0,
            Some(text) => arguments::moment(text, show::now())?,
        };
        let lines = match arguments.value("--lines") {
            None => 100,
            Some(text) => text
                .parse()
                .ok()
                .filter(|n| (1..=10_000).contains(n))
                .ok_or_else(|| Refusal::Invalid(format!("--lines {text:?} is no number from 1 to 10000")))?,
        };
        if arguments.json {
            let document = ask::within(access.audit(self.name(), since, lines)).await?;
            return self.print(&format!("{document}\n")).await;
        }
        let trail: AuditTrail = ask::document(access.audit(self.name(), since, lines)).await?;
        if trail.entries.is_empty() {
            return self.print("Nothing was changed.\n").await;
        }
        let mut rows = vec![show::titles(&["TIME (UTC)", "WHO", "FROM", "WHAT", "RESULT"])];
        for entry in &trail.entries {
            let what = format!("{} {}", entry.verb, entry.arguments.join(" "));
            let time = crate::spec::authorized_keys::time_text(entry.at);
            rows.push(show::cells(&[&time, &entry.who, &entry.source, &what, &entry.result]));
        }
        let shown = show::table(&rows, "", self.look);
        self.print(&shown).await
    }
}

/// Invites, with who used them.
pub(super) fn invites(document: &str, now: u64, all: bool, look: super::Look) -> Result<String, Refusal> {
    let list: documents::InviteList = serde_json::from_str(document).map_err(show::unreadable)?;
    let shown: Vec<_> = list.invites.iter().filter(|invite| all || invite.state == "usable").collect();
    if shown.is_empty() {
        return Ok(
            "There are no invites that can be used. `seed invite new` makes one; `seed invite list --all` shows the others.\n"
                .into(),
        );
    }
    let mut rows = vec![show::titles(&["ID", "STATE", "USES LEFT", "EXPIRES IN", "NOTE", "USED BY"])];
    for invite in shown {
        let expires = match invite.expires {
            0 => "never".to_owned(),
            at if at <= now => "passed".to_owned(),
            at => show::span(at - now),
        };
        let mut used = invite.used.iter().map(|used| {
            let from = used.source.as_ref().map(|source| format!(" from {source}")).unwrap_or_default();
            let key = used.key.as_deref().unwrap_or("operator");
            format!("{key}{from} for {}", used.flake)
        });
        let left = invite.uses_left.to_string();
        let first = used.next().unwrap_or_default();
        rows.push(show::cells(&[&invite.id, &invite.state, &left, &expires, &invite.note, &first]));
        rows.extend(used.map(|used| show::cells(&["", "", "", "", "", &used])));
    }
    Ok(show::table(&rows, "", look))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invites_are_shown_with_who_used_them() {
        let document = r#"{"version":1,"invites":[
            {"id":"abc","state":"usable","usesLeft":1,"expires":7200,"note":"ann","created":1,"revoked":0,"used":[{"key":"SHA256:x","source":"192.0.2.1","flake":"silo:app","at":1}]},
            {"id":"old","state":"used","usesLeft":0,"expires":0,"note":"","created":1,"revoked":0,"used":[{"key":null,"source":null,"flake":"silo:b","at":1}]}]}"#;
        let look = crate::serve::shell::Look::default();
        let usable = invites(document, 0, false, look).unwrap();
        assert!(
            usable.contains("abc  usable  1          2 h         ann   SHA256:x from 192.0.2.1 for silo:app")
                && !usable.contains("old"),
            "{usable}"
        );
        let all = invites(document, 8000, true, look).unwrap();
        assert!(all.contains("passed") && all.contains("operator for silo:b"), "{all}");
        assert!(invites("{}", 0, true, look).is_err());
    }
}
