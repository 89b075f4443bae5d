//! What there is to set of a repository that is elsewhere: `plant` of one, and `remote`.

use tokio::io::{AsyncReadExt, AsyncWrite};

use super::{Arguments, End, Session, plain, show};
use crate::{
    bus::{
        Refusal,
        github::{GitHubProxy, RemoteKey, RemotePlanted, RemoteStatus, Webhook},
        shell as documents,
    },
    serve::ask,
    spec::caller::Caller,
};

/// The longest token, and what a terminal or a pipe may put behind it.
const LONGEST: u64 = 2048;

impl<O: AsyncWrite + Unpin + Send> Session<'_, O> {
    async fn github(&self) -> Result<GitHubProxy<'static>, Refusal> {
        let proxy = GitHubProxy::builder(self.agent.inner().connection()).cache_properties(zbus::proxy::CacheProperties::No);
        proxy.build().await.map_err(Refusal::from)
    }

    /// `plant` of a flake that is not silo's.
    pub(super) async fn plant_remote(&mut self, uri: &str, code: &str, arguments: &Arguments) -> Result<u8, End> {
        let (json, key) = (arguments.json, arguments.flag("--key"));
        let token = match arguments.flag("--token") {
            true if key => return Err(Refusal::Invalid("--token and --key exclude each other".into()).into()),
            true => self.token("plant FLAKE CODE --token").await?,
            false => String::new(),
        };
        let (line, github) = (self.who.map_or("", Caller::line), self.github().await?);
        if key {
            let document = ask::within(github.plant_key(self.name(), uri, code)).await?;
            let found: RemoteKey = serde_json::from_str(&document).map_err(show::unreadable)?;
            if found.made {
                let again = format!(
                    "Then plant it, with the same words once more; the key waits for a day:\n\n  ssh HOST plant {} CODE --key\n",
                    found.flake
                );
                return self.print(&if json { format!("{document}\n") } else { key_text(&found, &again) }).await;
            }
        }
        let document = ask::within(github.plant(self.name(), uri, code, line, token.trim(), key)).await?;
        let planted: RemotePlanted = serde_json::from_str(&document).map_err(show::unreadable)?;
        if json {
            self.print(&format!("{document}\n")).await?;
        } else {
            let RemotePlanted { namespace, flake, suffix, webhook, .. } = &planted;
            self.print(&format!("{flake} is planted as {namespace}\nnames end in {suffix}\n")).await?;
            self.print(&webhook_text(webhook)).await?;
        }
        self.follow(&planted.job, json).await
    }

    /// `remote REPO [token | key | trust FINGERPRINT | forget | secret]`
    pub(super) async fn remote(&mut self, arguments: &Arguments) -> Result<u8, End> {
        let repository = arguments.required(0, "a repository from elsewhere: remote github:user/repo")?;
        let deed = arguments.words.get(1).map(String::as_str);
        if arguments.words.len() > 2 && deed != Some("trust") {
            return Err(
                Refusal::Invalid("there is a word too many; a token comes on standard input: see `help remote`".into()).into()
            );
        }
        let github = self.github().await?;
        let (who, json) = (self.name().to_owned(), arguments.json);
        let done = |what: &str| {
            if json { documents::line(&documents::Done { version: 1, done: what.to_owned() }) } else { format!("{what}\n") }
        };
        let shown = match deed {
            None => {
                let document = ask::within(github.show(&who, repository)).await?;
                if json {
                    format!("{document}\n")
                } else {
                    status_text(&serde_json::from_str(&document).map_err(show::unreadable)?)
                }
            }
            Some("token") => {
                let token = self.token("remote REPO token").await?;
                ask::within(github.set_token(&who, repository, token.trim())).await?;
                done("the token is kept; it is shown to nobody")
            }
            Some("key") => {
                let document = ask::within(github.key(&who, repository)).await?;
                if json {
                    format!("{document}\n")
                } else {
                    let found: RemoteKey = serde_json::from_str(&document).map_err(show::unreadable)?;
                    key_text(&found, "It is used as long as there is no token. A deploy shows whether it works: deploy REPO\n")
                }
            }
            Some("trust") => {
                let host_key = arguments.required(2, "the fingerprint of the server's host key: remote REPO trust SHA256:…")?;
                ask::within(github.trust(&who, repository, host_key)).await?;
                done("its server is known by this host key from now on")
            }
            Some("forget") => {
                ask::within(github.forget_token(&who, repository)).await?;
                done("what it was read with is removed")
            }
            Some("secret") => {
                let document = ask::within(github.new_secret(&who, repository)).await?;
                if json {
                    format!("{document}\n")
                } else {
                    webhook_text(&serde_json::from_str(&document).map_err(show::unreadable)?)
                }
            }
            Some(unknown) => {
                return Err(Refusal::Invalid(format!(
                    "remote {unknown:?} is unknown: there are token, key, trust, forget and secret"
                ))
                .into());
            }
        };
        self.print(&shown).await
    }

    /// A line of standard input. Never an argument: those are for everybody to read, on the machine where they are typed too.
    async fn token(&mut self, verb: &str) -> Result<String, End> {
        if self.look.terminal {
            self.print("Token (it is not shown): ").await?;
        }
        let mut bytes = Vec::new();
        while let Ok(byte) = self.input.read_u8().await {
            if matches!(byte, b'\n' | b'\r') && !bytes.is_empty() {
                break;
            }
            bytes.push(byte);
            if bytes.len() as u64 > LONGEST {
                return Err(Refusal::Invalid("this is too long for a token".into()).into());
            }
        }
        if self.look.terminal {
            self.print("\n").await?;
        }
        let text = String::from_utf8(bytes).map_err(|_| Refusal::Invalid("a token is text".into()))?;
        if text.trim().is_empty() {
            return Err(Refusal::Invalid(format!("there is no token on standard input: ssh HOST {verb} <FILE")).into());
        }
        // As `ask::text`, without showing it.
        if text.contains('\0') {
            return Err(Refusal::Invalid("a token has no byte 0 in it".into()).into());
        }
        Ok(text)
    }
}

fn webhook_text(webhook: &Webhook) -> String {
    let Webhook { url, secret, .. } = webhook;
    format!(
        "\nTo have every push deployed at once, add a webhook to the repository (GitHub: Settings, Webhooks). The secret is shown only now:\n\n  \
         Payload URL   {url}\n  Content type  application/json\n  Secret        {secret}\n  Events        just the push event\n\n"
    )
}

fn key_text(found: &RemoteKey, then: &str) -> String {
    let RemoteKey { flake, key, .. } = found;
    format!(
        "\nAdd this line to {} as a deploy key (GitHub: Settings, Deploy keys; it needs no write access):\n\n  {}\n\n{then}",
        plain(flake),
        plain(key)
    )
}

fn status_text(status: &RemoteStatus) -> String {
    let RemoteStatus { namespace, flake, branch, commit, token, key, host_key, webhook_url, fetched, problem, every, .. } = status;
    let mut text = format!("{}  {namespace}\n", plain(flake));
    let mut line = |name: &str, value: &str| text.push_str(&format!("  {name:<8} {}\n", plain(value)));
    if commit.is_empty() {
        line("at", "nothing was fetched yet");
    } else {
        line("at", &format!("{branch}, commit {}", &commit[..commit.len().min(10)]));
    }
    if *fetched > 0 {
        let ago = show::now().saturating_sub(*fetched);
        line("looked", &if problem.is_empty() { format!("{ago} s ago") } else { format!("{ago} s ago, and failed: {problem}") });
    }
    line("every", &format!("{every} s, and when the webhook says so"));
    line("webhook", &format!("{webhook_url} (`remote {flake} secret` makes a new secret)"));
    let read = match (*token, key.as_str()) {
        (true, "") => "with a token (`remote REPO forget` removes it)".to_owned(),
        (true, _) => "with a token; `remote REPO forget` removes it and the deploy key".to_owned(),
        (false, "") => "by anyone (if it is private: `remote REPO key`, or `remote REPO token <FILE`)".to_owned(),
        (false, key) => format!("with the deploy key {key}"),
    };
    line("read", &read);
    if !host_key.is_empty() {
        line("host key", host_key);
    }
    text
}
