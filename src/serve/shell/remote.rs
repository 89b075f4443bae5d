//! What there is to set of a repository that is elsewhere: `plant` of one, and `remote`.

use tokio::io::{AsyncReadExt, AsyncWrite};

use super::{Arguments, End, Session, plain, show};
use crate::{
    bus::{
        Refusal,
        github::{GitHubProxy, RemotePlanted, RemoteStatus, Webhook},
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
    pub(super) async fn plant_remote(&mut self, uri: &str, code: &str, token: bool, json: bool) -> Result<u8, End> {
        let token = if token { self.token("plant FLAKE CODE --token").await? } else { String::new() };
        let line = self.who.map_or("", Caller::line);
        let document = ask::within(self.github().await?.plant(self.name(), uri, code, line, token.trim())).await?;
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

    /// `remote REPO [token | forget | secret]`
    pub(super) async fn remote(&mut self, arguments: &Arguments) -> Result<u8, End> {
        let repository = arguments.required(0, "a repository from elsewhere: remote github:user/repo")?;
        let github = self.github().await?;
        let (who, json) = (self.name().to_owned(), arguments.json);
        let done = |what: &str| {
            let text = if json { serde_json::json!({ "version": 1, "done": what }).to_string() } else { what.to_owned() };
            format!("{text}\n")
        };
        let shown = match arguments.words.get(1).map(String::as_str) {
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
            Some("forget") => {
                ask::within(github.forget_token(&who, repository)).await?;
                done("the token is removed")
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
                return Err(Refusal::Invalid(format!("remote {unknown:?} is unknown: there are token, forget and secret")).into());
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

fn status_text(status: &RemoteStatus) -> String {
    let RemoteStatus { namespace, flake, branch, commit, token, webhook_url, fetched, problem, every, .. } = status;
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
    line(
        "token",
        if *token { "kept (`remote REPO forget` removes it)" } else { "none (`remote REPO token <FILE` if it is private)" },
    );
    text
}
