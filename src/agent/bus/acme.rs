//! `farm.loom.Seed1.Acme` on the agent's object: turns calls of the ACME door into requests.

use std::sync::Arc;

use zbus::message::Header;

use super::callers::Callers;
use crate::{
    agent::{
        Handle, acme,
        request::{Reply, Request},
    },
    bus::Refusal,
};

/// The interface that is served, beside the agent's own on the same object.
pub(super) struct AcmeFace {
    pub(super) handle: Handle,
    pub(super) callers: Arc<Callers>,
}

impl AcmeFace {
    async fn request(&self, header: &Header<'_>, connection: &zbus::Connection, request: acme::Request) -> Result<Reply, Refusal> {
        // Which instance is meant is in the question; who asks must be one of the two users.
        self.callers.check(header, connection, "anybody").await?;
        self.handle.ask(Request::Acme(request)).await
    }
}

#[zbus::interface(name = "farm.loom.Seed1.Acme")]
impl AcmeFace {
    async fn ask(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        address: String,
        question: String,
    ) -> Result<String, Refusal> {
        self.request(&header, connection, acme::Request::Ask { address, question }).await?.text()
    }

    async fn own(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        asked: String,
    ) -> Result<String, Refusal> {
        self.request(&header, connection, acme::Request::Own { asked }).await?.text()
    }

    async fn work(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
    ) -> Result<String, Refusal> {
        self.request(&header, connection, acme::Request::Work).await?.text()
    }

    async fn report(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        report: String,
    ) -> Result<(), Refusal> {
        self.request(&header, connection, acme::Request::Report { report }).await.map(drop)
    }

    /// Nothing in it is secret: it is what everybody sees who connects.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn certificate(&self) -> zbus::fdo::Result<String> {
        let reply = self.handle.ask(Request::Acme(acme::Request::Certificate)).await;
        reply.and_then(Reply::text).map_err(|refusal| zbus::fdo::Error::Failed(refusal.to_string()))
    }
}
