//! `farm.loom.Seed1.Domains` on the bus.

use std::sync::Arc;

use zbus::{message::Header, object_server::SignalEmitter};

use super::Callers;
use crate::{
    agent::{Handle, domain::Question, request::Request},
    bus::{PATH, Refusal},
};

/// The interface, before a running agent.
pub(super) struct DomainFace {
    pub(super) handle: Handle,
    pub(super) callers: Arc<Callers>,
}

impl DomainFace {
    async fn text(&self, question: Question) -> Result<String, Refusal> {
        self.handle.text(Request::Domain(question)).await
    }
}

#[zbus::interface(name = "farm.loom.Seed1.Domains")]
impl DomainFace {
    async fn add(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        instance: String,
        name: String,
    ) -> Result<String, Refusal> {
        self.callers.check(&header, connection, &who).await?;
        self.text(Question::Add { who, instance, name }).await
    }

    async fn remove(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        name: String,
    ) -> Result<(), Refusal> {
        self.callers.check(&header, connection, &who).await?;
        self.handle.ask(Request::Domain(Question::Remove { who, name })).await.map(drop)
    }

    async fn list(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        filter: String,
    ) -> Result<String, Refusal> {
        self.callers.check(&header, connection, &who).await?;
        self.text(Question::List { who, filter }).await
    }

    async fn due(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
    ) -> Result<String, Refusal> {
        // No key asks this; who asks must still be one of the two users.
        self.callers.check(&header, connection, "anybody").await?;
        self.text(Question::Due).await
    }

    async fn seen(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        report: String,
    ) -> Result<(), Refusal> {
        self.callers.check(&header, connection, "anybody").await?;
        self.handle.ask(Request::Domain(Question::Seen { report })).await.map(drop)
    }

    #[zbus(signal)]
    async fn changed(emitter: &SignalEmitter<'_>) -> zbus::Result<()>;
}

/// Emits `Changed` whenever claims have changed.
pub(super) async fn announce(connection: zbus::Connection, handle: Handle) {
    let Ok(emitter) = SignalEmitter::new(&connection, PATH) else { return };
    let mut due = handle.due.clone();
    while due.changed().await.is_ok() {
        if let Err(error) = DomainFace::changed(&emitter).await {
            tracing::warn!(%error, "could not say that names are to be looked at");
        }
    }
}
