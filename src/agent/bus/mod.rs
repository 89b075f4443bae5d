//! The agent's face on the system bus: turns calls into requests, and checks that a caller may speak for whom it speaks.
#![allow(clippy::disallowed_types, reason = "zbus asks for a HashMap where the order of properties means nothing")]

mod access;
mod callers;
mod github;
mod guest;
mod history;

use std::{collections::BTreeMap, sync::Arc};

use zbus::{fdo, message::Header, object_server::SignalEmitter};

pub use self::callers::Trust;
use self::{access::AccessFace, callers::Callers, github::GitHubFace, guest::GuestFace, history::HistoryFace};
use super::{
    Handle,
    request::{Reply, Request},
};
use crate::{
    bus::{NAME, PATH, Refusal, Zone, ZoneEntry},
    spec::name::InstanceId,
};

/// The object that is served.
pub struct Face {
    handle: Handle,
    callers: Arc<Callers>,
    version: String,
    hypervisor: String,
    domain: String,
}

impl Face {
    /// A face for a running agent.
    pub fn new(handle: Handle, trust: Trust, hypervisor: String, domain: String) -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self { handle, callers: Arc::new(Callers::new(trust)), version, hypervisor, domain }
    }

    async fn check(&self, header: &Header<'_>, connection: &zbus::Connection, who: &str) -> Result<(), Refusal> {
        self.callers.check(header, connection, who).await
    }

    async fn text(&self, request: Request) -> Result<String, Refusal> {
        match self.handle.ask(request).await? {
            Reply::Text(text) => Ok(text),
            Reply::Pipe(_) | Reply::Way(..) | Reply::Nothing => {
                Err(Refusal::Failed("this is a bug in Seed: not a text".to_owned()))
            }
        }
    }

    async fn pipe(&self, request: Request) -> Result<zbus::OwnedFd, Refusal> {
        match self.handle.ask(request).await? {
            Reply::Pipe(fd) => Ok(fd.into()),
            Reply::Text(_) | Reply::Way(..) | Reply::Nothing => {
                Err(Refusal::Failed("this is a bug in Seed: not a pipe".to_owned()))
            }
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

    async fn deploy(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        repository: String,
    ) -> Result<String, Refusal> {
        self.check(&header, connection, &who).await?;
        self.text(Request::Deploy { who, repository }).await
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
        query: String,
    ) -> Result<zbus::OwnedFd, Refusal> {
        self.check(&header, connection, &who).await?;
        self.pipe(Request::Logs { who, instance, query }).await
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

/// One instance, as an object below the agent's: `/farm/loom/Seed1/instance/<ns>_<name>` with `-` as `_`.
struct InstanceFace {
    id: InstanceId,
    entry: ZoneEntry,
    domain: String,
    handle: Handle,
}

#[zbus::interface(name = "farm.loom.Seed1.Instance")]
impl InstanceFace {
    /// Powers it off and starts it again; for root. Returns the name of a job to follow.
    async fn restart(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
    ) -> Result<String, Refusal> {
        let bus = fdo::DBusProxy::new(connection).await.map_err(Refusal::ZBus)?;
        let sender = header.sender().ok_or_else(|| Refusal::Denied("a call without a sender".to_owned()))?;
        if bus.get_connection_unix_user(sender.clone().into()).await.ok() != Some(0) {
            return Err(Refusal::Denied("only root may ask this".to_owned()));
        }
        match self.handle.ask(Request::Restart { who: String::new(), instance: self.id.to_string() }).await? {
            Reply::Text(job) => Ok(job),
            Reply::Pipe(_) | Reply::Way(..) | Reply::Nothing => {
                Err(Refusal::Failed("this is a bug in Seed: not a text".to_owned()))
            }
        }
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> String {
        self.id.name.to_string()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn namespace(&self) -> String {
        self.id.namespace.to_string()
    }

    /// The systemd unit that tells how it is doing.
    #[zbus(property(emits_changed_signal = "const"))]
    fn unit(&self) -> String {
        crate::render::vm_unit(&self.id)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn fqdn(&self) -> String {
        format!("{}.{}.{}", self.id.name, self.id.namespace, self.domain)
    }

    #[zbus(property(emits_changed_signal = "const"), name = "IPv4")]
    fn ipv4(&self) -> String {
        self.entry.ipv4.to_string()
    }

    #[zbus(property(emits_changed_signal = "const"), name = "IPv6")]
    fn ipv6(&self) -> String {
        self.entry.ipv6.to_string()
    }
}

fn instance_path(id: &InstanceId) -> String {
    format!("{PATH}/instance/{}_{}", id.namespace, id.name).replace('-', "_")
}

/// Serves the agent on the system bus under its well-known name.
pub async fn serve(face: Face) -> zbus::Result<zbus::Connection> {
    serve_on(zbus::connection::Builder::system(), face).await
}

/// Serves the agent on a bus of the caller's choice.
pub async fn serve_on(bus: zbus::connection::Builder<'_>, face: Face) -> zbus::Result<zbus::Connection> {
    let handle = face.handle.clone();
    let guest = GuestFace { handle: face.handle.clone(), callers: face.callers.clone() };
    let access = AccessFace { handle: face.handle.clone(), callers: face.callers.clone() };
    let github = GitHubFace { handle: face.handle.clone(), callers: face.callers.clone() };
    let history = HistoryFace { handle: face.handle.clone(), callers: face.callers.clone() };
    let bus = bus.serve_at(PATH, face).serve_at(PATH, guest).serve_at(PATH, history).serve_at(PATH, access).serve_at(PATH, github);
    let connection = bus.name(NAME).build().await?;
    tokio::spawn(announce(connection.clone(), handle));
    Ok(connection)
}

/// Keeps the objects of the instances, and emits `ZoneChanged` whenever the zone has changed.
pub async fn announce(connection: zbus::Connection, handle: Handle) {
    let Ok(emitter) = SignalEmitter::new(&connection, PATH) else { return };
    let mut zone = handle.zone.clone();
    let mut shown: BTreeMap<InstanceId, ZoneEntry> = BTreeMap::new();
    loop {
        let now = zone.borrow_and_update().clone();
        if let Err(error) = show_instances(&connection, &handle, &now, &mut shown).await {
            tracing::warn!(%error, "could not show the instances on the bus");
        }
        if let Err(error) = Face::zone_changed(&emitter, now.serial).await {
            tracing::warn!(%error, "could not announce the zone");
        }
        if zone.changed().await.is_err() {
            return;
        }
    }
}

/// Brings the objects of instances in line with the zone, which has them all.
async fn show_instances(
    connection: &zbus::Connection,
    handle: &Handle,
    zone: &Zone,
    shown: &mut BTreeMap<InstanceId, ZoneEntry>,
) -> zbus::Result<()> {
    let mut wanted: BTreeMap<InstanceId, ZoneEntry> = BTreeMap::new();
    for (namespace, instances) in &zone.namespaces {
        for (name, entry) in instances {
            if let Ok(id) = format!("{namespace}/{name}").parse() {
                wanted.insert(id, entry.clone());
            }
        }
    }
    let server = connection.object_server();
    let gone: Vec<InstanceId> = shown.keys().filter(|id| wanted.get(*id) != shown.get(*id)).cloned().collect();
    for id in gone {
        shown.remove(&id);
        server.remove::<InstanceFace, _>(instance_path(&id)).await?;
    }
    for (id, entry) in wanted {
        if shown.contains_key(&id) {
            continue;
        }
        let face = InstanceFace { id: id.clone(), entry: entry.clone(), domain: zone.domain.clone(), handle: handle.clone() };
        server.at(instance_path(&id), face).await?;
        shown.insert(id, entry);
    }
    Ok(())
}
