//! `farm.loom.Seed1.History` on the bus.

use std::sync::Arc;

use zbus::message::Header;

use super::Callers;
use crate::{
    agent::{Handle, history::History, request::Request},
    bus::Refusal,
};

/// The interface, before a running agent.
pub struct HistoryFace {
    pub(super) handle: Handle,
    pub(super) callers: Arc<Callers>,
}

impl HistoryFace {
    async fn text(&self, request: History) -> Result<String, Refusal> {
        self.handle.text(Request::History(request)).await
    }
}

#[zbus::interface(name = "farm.loom.Seed1.History")]
impl HistoryFace {
    async fn deploys(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        filter: String,
    ) -> Result<String, Refusal> {
        self.callers.check(&header, connection, &who).await?;
        self.text(History::Deploys { who, filter }).await
    }

    async fn rollback(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        instance: String,
        generation: String,
    ) -> Result<String, Refusal> {
        self.callers.check(&header, connection, &who).await?;
        self.text(History::Rollback { who, instance, generation }).await
    }

    async fn pin(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        instance: String,
    ) -> Result<String, Refusal> {
        self.callers.check(&header, connection, &who).await?;
        self.text(History::Pin { who, instance }).await
    }

    async fn unpin(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        instance: String,
    ) -> Result<String, Refusal> {
        self.callers.check(&header, connection, &who).await?;
        self.text(History::Unpin { who, instance }).await
    }

    async fn stop(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        instance: String,
    ) -> Result<String, Refusal> {
        self.callers.check(&header, connection, &who).await?;
        self.text(History::Stop { who, instance }).await
    }

    async fn start(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        instance: String,
    ) -> Result<String, Refusal> {
        self.callers.check(&header, connection, &who).await?;
        self.text(History::Start { who, instance }).await
    }

    async fn destroy(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        instance: String,
        again: String,
    ) -> Result<String, Refusal> {
        self.callers.check(&header, connection, &who).await?;
        self.text(History::Destroy { who, instance, again }).await
    }

    async fn unplant(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        repository: String,
        again: String,
    ) -> Result<String, Refusal> {
        self.callers.check(&header, connection, &who).await?;
        self.text(History::Unplant { who, repository, again }).await
    }
}
