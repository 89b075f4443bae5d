//! The interface `farm.loom.Seed1.Guest`.

use std::sync::Arc;

use zbus::message::Header;

use super::Callers;
use crate::{
    agent::{
        Handle,
        enter::Enter,
        request::{Reply, Request},
    },
    bus::Refusal,
};

/// The ways into guests, on the agent's object.
pub struct GuestFace {
    pub(super) handle: Handle,
    pub(super) callers: Arc<Callers>,
}

#[zbus::interface(name = "farm.loom.Seed1.Guest")]
impl GuestFace {
    #[expect(clippy::too_many_arguments, reason = "each is one word of the method's signature on the bus")]
    async fn enter(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        instance: String,
        key: String,
        act: String,
        what: String,
    ) -> Result<(zbus::OwnedFd, String), Refusal> {
        self.callers.check(&header, connection, &who).await?;
        match self.handle.ask(Request::Enter(Enter { who, instance, key, act, what })).await? {
            Reply::Way(stream, way) => Ok((stream.into(), way)),
            Reply::Text(_) | Reply::Pipe(_) | Reply::Nothing => Err(Refusal::Failed("this is a bug in Seed: no way".to_owned())),
        }
    }
}
