//! The agent's face on the system bus: turns calls into requests, and checks that a caller may speak for whom it speaks.
#![allow(clippy::disallowed_types, reason = "zbus asks for a HashMap where the order of properties means nothing")]

mod access;
mod acme;
mod callers;
mod domain;
mod github;
mod guest;
mod history;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use zbus::{fdo, message::Header, object_server::SignalEmitter};

pub use self::callers::Trust;
use self::{
    access::AccessFace, acme::AcmeFace, callers::Callers, domain::DomainFace, github::GitHubFace, guest::GuestFace,
    history::HistoryFace,
};
use super::{
    Handle,
    request::{Reply, Request},
};
use crate::{
    bus::{NAME, PATH, Refusal, Zone, ZoneChange, ZoneEntry},
    spec::{name::InstanceId, rollout},
};

/// The object that is served.
#[derive(Clone)]
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
        self.handle.text(request).await
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
        self.text(Request::Push { who, repository, reference, old, new, mode, read: None }).await
    }

    #[expect(clippy::too_many_arguments, reason = "each is one word of the method's signature on the bus")]
    async fn push_read(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &zbus::Connection,
        who: String,
        repository: String,
        reference: String,
        old: String,
        new: String,
        mode: String,
        read: String,
    ) -> Result<String, Refusal> {
        self.check(&header, connection, &who).await?;
        let read = serde_json::from_str(&read).map_err(|error| Refusal::Invalid(format!("what was read is none: {error}")))?;
        self.text(Request::Push { who, repository, reference, old, new, mode, read: Some(read) }).await
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
        // Not by way of the loop, which may be writing to the disk.
        serde_json::to_string(self.handle.zone.borrow().zone()).map_err(|error| Refusal::Failed(error.to_string()))
    }

    #[zbus(signal)]
    async fn zone_changed(emitter: &SignalEmitter<'_>, serial: u32, change: &str) -> zbus::Result<()>;

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
        self.handle.text(Request::Restart { who: String::new(), instance: self.id.to_string() }).await
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
        let slot = rollout::serving(self.handle.rolling.borrow().get(&self.id));
        crate::render::vm_unit(&self.id.set(slot))
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
    let acme = AcmeFace { handle: face.handle.clone(), callers: face.callers.clone() };
    let domains = DomainFace { handle: face.handle.clone(), callers: face.callers.clone() };
    let github = GitHubFace { handle: face.handle.clone(), callers: face.callers.clone() };
    let history = HistoryFace { handle: face.handle.clone(), callers: face.callers.clone() };
    let bus = bus.serve_at(PATH, face).serve_at(PATH, guest).serve_at(PATH, history).serve_at(PATH, access);
    let bus = bus.serve_at(PATH, github).serve_at(PATH, acme).serve_at(PATH, domains);
    let connection = bus.name(NAME).build().await?;
    tokio::spawn(domain::announce(connection.clone(), handle.clone()));
    tokio::spawn(announce(connection.clone(), handle));
    Ok(connection)
}

/// Emits `ZoneChanged` whenever the zone has changed, with what has, and keeps the objects of the instances.
pub async fn announce(connection: zbus::Connection, handle: Handle) {
    let Ok(emitter) = SignalEmitter::new(&connection, PATH) else { return };
    let mut zone = handle.zone.clone();
    let mut shown: BTreeSet<InstanceId> = BTreeSet::new();
    let mut last = 0;
    loop {
        let (serial, changes, whole) = {
            let book = zone.borrow_and_update();
            let changes = book.since(last);
            let whole = changes.is_none().then(|| instances(book.zone()));
            (book.zone().serial, changes, whole)
        };
        last = serial;
        // What answers comes first, what is looked at after it.
        if let Err(error) = tell(&emitter, serial, changes.as_deref()).await {
            tracing::warn!(%error, "could not announce the zone");
        }
        let (gone, new) = match (whole, changes) {
            (Some(whole), _) => (shown.iter().cloned().collect(), whole),
            (None, changes) => news(&changes.unwrap_or_default()),
        };
        if let Err(error) = show_instances(&connection, &handle, &gone, new, &mut shown).await {
            tracing::warn!(%error, "could not show the instances on the bus");
        }
        if zone.changed().await.is_err() {
            return;
        }
    }
}

async fn tell(emitter: &SignalEmitter<'_>, serial: u32, changes: Option<&[Arc<ZoneChange>]>) -> zbus::Result<()> {
    let Some(changes) = changes else { return Face::zone_changed(emitter, serial, "").await };
    for change in changes {
        let text = serde_json::to_string(&**change).map_err(|error| zbus::Error::Failure(error.to_string()))?;
        Face::zone_changed(emitter, change.serial, &text).await?;
    }
    Ok(())
}

type Shown = Vec<(InstanceId, ZoneEntry)>;

fn instances(zone: &Zone) -> Shown {
    let all = zone.namespaces.iter().flat_map(|(namespace, instances)| {
        instances.iter().map(move |(name, entry)| (format!("{namespace}/{name}"), entry.clone()))
    });
    all.filter_map(|(id, entry)| Some((id.parse().ok()?, entry))).collect()
}

/// The instances that changes take away or have changed, and those that there are instead.
fn news(changes: &[Arc<ZoneChange>]) -> (Vec<InstanceId>, Shown) {
    let mut last: BTreeMap<InstanceId, Option<ZoneEntry>> = BTreeMap::new();
    for (id, entry) in changes.iter().flat_map(|change| &change.instances) {
        if let Ok(id) = id.parse() {
            last.insert(id, entry.clone());
        }
    }
    let gone = last.keys().cloned().collect();
    (gone, last.into_iter().filter_map(|(id, entry)| Some((id, entry?))).collect())
}

/// Takes away the objects of some instances, and puts up others.
async fn show_instances(
    connection: &zbus::Connection,
    handle: &Handle,
    gone: &[InstanceId],
    new: Shown,
    shown: &mut BTreeSet<InstanceId>,
) -> zbus::Result<()> {
    let domain = handle.zone.borrow().zone().domain.clone();
    let server = connection.object_server();
    for id in gone {
        if shown.remove(id) {
            server.remove::<InstanceFace, _>(instance_path(id)).await?;
        }
    }
    for (id, entry) in new {
        let face = InstanceFace { id: id.clone(), entry, domain: domain.clone(), handle: handle.clone() };
        server.at(instance_path(&id), face).await?;
        shown.insert(id);
    }
    Ok(())
}
