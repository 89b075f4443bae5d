//! The interface `farm.loom.Seed1.Access`.

use std::sync::Arc;

use zbus::message::Header;

use super::Callers;
use crate::{
    agent::{Handle, access::Question, request::Request},
    bus::Refusal,
};

/// What one decides about repositories, on the agent's object.
pub struct AccessFace {
    pub(super) handle: Handle,
    pub(super) callers: Arc<Callers>,
}

impl AccessFace {
    async fn text(&self, question: Question) -> Result<String, Refusal> {
        self.handle.text(Request::Access(question)).await
    }

    async fn done(&self, question: Question) -> Result<(), Refusal> {
        self.handle.ask(Request::Access(question)).await.map(drop)
    }
}

#[zbus::interface(name = "farm.loom.Seed1.Access")]
impl AccessFace {
    async fn list_repositories(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
    ) -> Result<String, Refusal> {
        self.callers.check(&header, connection, &who).await?;
        self.text(Question::Repositories { who }).await
    }

    async fn set_visibility(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        repository: String,
        visibility: String,
    ) -> Result<(), Refusal> {
        self.callers.check(&header, connection, &who).await?;
        self.done(Question::Visibility { who, name: repository, visibility }).await
    }

    async fn rename_repository(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        repository: String,
        to: String,
    ) -> Result<(), Refusal> {
        self.callers.check(&header, connection, &who).await?;
        self.done(Question::Rename { who, name: repository, to }).await
    }

    async fn delete_repository(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        repository: String,
        again: String,
    ) -> Result<(), Refusal> {
        self.callers.check(&header, connection, &who).await?;
        self.done(Question::Delete { who, name: repository, again }).await
    }

    async fn quota(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        filter: String,
    ) -> Result<String, Refusal> {
        self.callers.check(&header, connection, &who).await?;
        self.text(Question::Quota { who, filter }).await
    }

    async fn set_quota(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        namespace: String,
        changes: String,
    ) -> Result<(), Refusal> {
        self.callers.check(&header, connection, "").await?;
        self.done(Question::SetQuota { namespace, changes }).await
    }

    async fn audit(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        since: u64,
        lines: u32,
    ) -> Result<String, Refusal> {
        self.callers.check(&header, connection, &who).await?;
        self.text(Question::Audit { who, since, lines }).await
    }

    async fn verify_audit(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
    ) -> Result<String, Refusal> {
        self.callers.check(&header, connection, "").await?;
        self.text(Question::VerifyAudit).await
    }
}
