//! The agent's face on the system bus: turns calls into requests, and checks that a caller may speak for whom it speaks.

use std::collections::HashMap;

use tokio::sync::{Mutex, watch};
use zbus::{fdo, message::Header, names::UniqueName, object_server::SignalEmitter};

use super::{
    Handle,
    request::{Reply, Request},
};
use crate::bus::{NAME, PATH, Refusal};

/// Who may speak: on the bus, callers are told apart by their Unix user; a peer on a private socket (in tests) is who it says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// root may ask anything; this user may ask on behalf of keys.
    Users {
        door: u32,
    },
    Peer,
}

/// The object that is served.
pub struct Face {
    handle: Handle,
    trust: Trust,
    version: String,
    hypervisor: String,
    domain: String,
    /// Unix users of callers, by unique name: a name is never used twice on one bus.
    users: Mutex<HashMap<String, u32>>,
}

impl Face {
    /// A face for a running agent.
    pub fn new(handle: Handle, trust: Trust, hypervisor: String, domain: String) -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self { handle, trust, version, hypervisor, domain, users: Mutex::default() }
    }

    /// Refuses callers that may not speak for `who`.
    async fn check(&self, header: &Header<'_>, connection: &zbus::Connection, who: &str) -> Result<(), Refusal> {
        let Trust::Users { door } = self.trust else { return Ok(()) };
        let sender = header.sender().ok_or_else(|| Refusal::Denied("a call without a sender".to_owned()))?;
        match self.user(connection, sender).await? {
            0 => Ok(()),
            user if user == door && !who.is_empty() => Ok(()),
            user if user == door => Err(Refusal::Denied("only root may ask this".to_owned())),
            user => Err(Refusal::Denied(format!("user {user} may not ask the agent"))),
        }
    }

    async fn user(&self, connection: &zbus::Connection, sender: &UniqueName<'_>) -> Result<u32, Refusal> {
        let mut users = self.users.lock().await;
        if let Some(user) = users.get(sender.as_str()) {
            return Ok(*user);
        }
        let bus = fdo::DBusProxy::new(connection).await.map_err(Refusal::ZBus)?;
        let user = bus.get_connection_unix_user(sender.clone().into()).await;
        let user = user.map_err(|error| Refusal::Denied(format!("the bus does not know the caller: {error}")))?;
        if users.len() >= 1024 {
            users.clear();
        }
        users.insert(sender.to_string(), user);
        Ok(user)
    }

    async fn text(&self, request: Request) -> Result<String, Refusal> {
        match self.handle.ask(request).await? {
            Reply::Text(text) => Ok(text),
            Reply::Pipe(_) | Reply::Nothing => Err(Refusal::Failed("this is a bug in Seed: not a text".to_owned())),
        }
    }

    async fn pipe(&self, request: Request) -> Result<zbus::OwnedFd, Refusal> {
        match self.handle.ask(request).await? {
            Reply::Pipe(fd) => Ok(fd.into()),
            Reply::Text(_) | Reply::Nothing => Err(Refusal::Failed("this is a bug in Seed: not a pipe".to_owned())),
        }
    }
}

#[zbus::interface(name = "farm.loom.Seed1")]
impl Face {
    async fn status(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        filter: String,
    ) -> Result<String, Refusal> {
        self.check(&header, connection, &who).await?;
        self.text(Request::Status { who, filter }).await
    }

    async fn plan(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
    ) -> Result<String, Refusal> {
        self.check(&header, connection, "").await?;
        self.text(Request::Plan).await
    }

    async fn open_repository(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        name: String,
        access: String,
    ) -> Result<String, Refusal> {
        self.check(&header, connection, &who).await?;
        self.text(Request::OpenRepository { who, name, access }).await
    }

    #[expect(clippy::too_many_arguments, reason = "each is one word of the method's signature on the bus")]
    async fn push(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        repository: String,
        reference: String,
        old: String,
        new: String,
        mode: String,
    ) -> Result<String, Refusal> {
        self.check(&header, connection, &who).await?;
        self.text(Request::Push { who, repository, reference, old, new, mode }).await
    }

    async fn plant(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        uri: String,
        code: String,
    ) -> Result<String, Refusal> {
        self.check(&header, connection, &who).await?;
        self.text(Request::Plant { who, uri, code }).await
    }

    async fn follow(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        job: String,
    ) -> Result<zbus::OwnedFd, Refusal> {
        self.check(&header, connection, &who).await?;
        self.pipe(Request::Follow { who, job }).await
    }

    async fn logs(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        instance: String,
        lines: u32,
        follow: bool,
    ) -> Result<zbus::OwnedFd, Refusal> {
        self.check(&header, connection, &who).await?;
        self.pipe(Request::Logs { who, instance, lines, follow }).await
    }

    async fn restart(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        instance: String,
    ) -> Result<String, Refusal> {
        self.check(&header, connection, &who).await?;
        self.text(Request::Restart { who, instance }).await
    }

    async fn new_invite(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        uses: u32,
        expires_secs: u64,
        note: String,
    ) -> Result<String, Refusal> {
        self.check(&header, connection, "").await?;
        self.text(Request::NewInvite { uses, expires_secs, note }).await
    }

    async fn list_invites(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
    ) -> Result<String, Refusal> {
        self.check(&header, connection, "").await?;
        self.text(Request::ListInvites).await
    }

    async fn revoke_invite(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        id: String,
    ) -> Result<(), Refusal> {
        self.check(&header, connection, "").await?;
        self.handle.ask(Request::RevokeInvite { id }).await.map(drop)
    }

    async fn zone(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
    ) -> Result<String, Refusal> {
        // The zone is public; who asks must still be one of the two users.
        self.check(&header, connection, "anybody").await?;
        self.text(Request::Zone).await
    }

    #[zbus(signal)]
    async fn zone_changed(emitter: &SignalEmitter<'_>, serial: u32) -> zbus::Result<()>;

    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> &str {
        &self.version
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn hypervisor(&self) -> &str {
        &self.hypervisor
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn domain(&self) -> &str {
        &self.domain
    }
}

/// Serves the agent on the system bus under its well-known name.
pub async fn serve(face: Face) -> zbus::Result<zbus::Connection> {
    let zone = face.handle.zone.clone();
    let connection = zbus::connection::Builder::system().serve_at(PATH, face).name(NAME).build().await?;
    tokio::spawn(announce(connection.clone(), zone));
    Ok(connection)
}

/// Emits `ZoneChanged` whenever the zone has.
pub async fn announce(connection: zbus::Connection, mut zone: watch::Receiver<std::sync::Arc<crate::bus::Zone>>) {
    let Ok(emitter) = SignalEmitter::new(&connection, PATH) else { return };
    while zone.changed().await.is_ok() {
        let serial = zone.borrow_and_update().serial;
        if let Err(error) = Face::zone_changed(&emitter, serial).await {
            tracing::warn!(%error, "could not announce the zone");
        }
    }
}
