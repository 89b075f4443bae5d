//! `farm.loom.Seed1.GitHub` on the bus.

use std::sync::Arc;

use zbus::message::Header;

use super::Callers;
use crate::{
    agent::{
        Handle,
        remote::{Lent, Question},
        request::{Reply, Request},
    },
    bus::Refusal,
    state::Secret,
};

/// What there is to ask of repositories from elsewhere, on the agent's object.
pub struct GitHubFace {
    pub(super) handle: Handle,
    pub(super) callers: Arc<Callers>,
}

impl GitHubFace {
    async fn text(&self, question: Question) -> Result<String, Refusal> {
        self.handle.text(Request::Remote(question)).await
    }

    async fn nothing(&self, question: Question) -> Result<(), Refusal> {
        match self.handle.ask(Request::Remote(question)).await? {
            Reply::Nothing => Ok(()),
            Reply::Text(_) | Reply::Pipe(_) | Reply::Way(..) => {
                Err(Refusal::Failed("this is a bug in Seed: not nothing".to_owned()))
            }
        }
    }
}

#[zbus::interface(name = "farm.loom.Seed1.GitHub")]
impl GitHubFace {
    #[allow(clippy::too_many_arguments, reason = "the bus's header and connection count")]
    async fn plant(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        uri: String,
        code: String,
        line: String,
        token: String,
        key: bool,
    ) -> Result<String, Refusal> {
        self.callers.check(&header, connection, &who).await?;
        let lent = match (token, key) {
            (_, true) => Lent::Key,
            (token, _) if token.is_empty() => Lent::Nothing,
            (token, _) => Lent::Token(Secret(token)),
        };
        self.text(Question::Plant { who, uri, code, line, lent }).await
    }

    async fn plant_key(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        uri: String,
        code: String,
    ) -> Result<String, Refusal> {
        self.callers.check(&header, connection, &who).await?;
        self.text(Question::PlantKey { who, uri, code }).await
    }

    async fn key(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        repository: String,
    ) -> Result<String, Refusal> {
        self.callers.check(&header, connection, &who).await?;
        self.text(Question::Key { who, repository }).await
    }

    async fn trust(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        repository: String,
        host_key: String,
    ) -> Result<(), Refusal> {
        self.callers.check(&header, connection, &who).await?;
        self.nothing(Question::Trust { who, repository, host_key }).await
    }

    async fn show(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        repository: String,
    ) -> Result<String, Refusal> {
        self.callers.check(&header, connection, &who).await?;
        self.text(Question::Show { who, repository }).await
    }

    async fn set_token(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        repository: String,
        token: String,
    ) -> Result<(), Refusal> {
        self.callers.check(&header, connection, &who).await?;
        self.nothing(Question::SetToken { who, repository, token: Secret(token) }).await
    }

    async fn forget_token(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        repository: String,
    ) -> Result<(), Refusal> {
        self.callers.check(&header, connection, &who).await?;
        self.nothing(Question::ForgetToken { who, repository }).await
    }

    async fn new_secret(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        repository: String,
    ) -> Result<String, Refusal> {
        self.callers.check(&header, connection, &who).await?;
        self.text(Question::NewSecret { who, repository }).await
    }

    async fn hook(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        repository: String,
        branch: String,
        signature: String,
        body: Vec<u8>,
    ) -> Result<String, Refusal> {
        // Its signature says who asks; the call must still come from one of the two users.
        self.callers.check(&header, connection, "anybody").await?;
        self.text(Question::Hook { repository, branch, signature, body }).await
    }
}
