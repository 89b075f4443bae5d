//! `seed serve`: every door that strangers knock on, in one process without rights. It asks the agent over the bus, and touches
//! nothing but the repositories, its host key and its sockets.
//!
//! While the agent is away the doors stay open: clones go on, DNS answers from the last zone, and who needs the agent is told so.
#![allow(clippy::disallowed_methods, reason = "this room talks to the world and keeps repositories")]

pub mod acme;
pub mod ask;
pub mod command;
mod crowd;
pub mod dns;
mod domain;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod git;
pub mod guest;
mod host_key;
mod http;
mod https;
pub(crate) mod journal;
pub mod pktline;
pub mod progress;
mod proxy;
pub mod receive;
pub mod relay;
pub(crate) mod sftp;
pub mod shell;
mod slots;
mod smart_http;
mod sockets;
pub mod ssh;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::sockets::{Listener, Sockets};
use crate::{
    bus::{SeedProxy, acme::AcmeProxy, domain::DomainsProxy},
    spec::{acme::names_of_host, name::Domain, quantity::Bytes},
};

/// What the doors need to know of this host. From the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The domain of the zone, by which people reach this host.
    pub domain: Domain,
    /// /var/lib/seed/repos; `<name>.git` below it belong to the user of this process.
    pub repositories: PathBuf,
    /// The private key of the SSH door. Made at the first start.
    pub host_key: PathBuf,
    /// The port by which people reach the SSH door; `None`: the one that they came to.
    pub ssh_port: Option<u16>,
    /// The git binary.
    pub git: PathBuf,
    /// The most that one push may send.
    pub max_pack: Bytes,
    pub dns: dns::Settings,
    /// The ACME door.
    pub acme: acme::Settings,
    /// How long a stranger may take to prove a key.
    pub auth_timeout: Duration,
    /// How long a client that has ended its input may take nothing of what a guest sends it.
    pub stalled: Duration,
    /// How often the agent is asked whether this host's own certificate is due.
    pub certificate_look: Duration,
    /// How long after a push all repositories are synced at once.
    pub settle_after: Duration,
    /// How long a stop waits for pushes that the agent has not heard of yet.
    pub stop_timeout: Duration,
}

impl Settings {
    /// Settings with the usual limits.
    pub fn new(domain: Domain, repositories: PathBuf, host_key: PathBuf, dns: dns::Settings) -> Self {
        Self {
            dns,
            domain,
            repositories,
            host_key,
            ssh_port: None,
            git: "/usr/bin/git".into(),
            max_pack: Bytes(2 << 30),
            acme: acme::Settings::default(),
            auth_timeout: Duration::from_secs(30),
            stalled: Duration::from_secs(1800),
            certificate_look: Duration::from_secs(3600),
            settle_after: Duration::from_secs(300),
            stop_timeout: Duration::from_secs(20),
        }
    }
}

/// Why the doors could not be opened, or had to close.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("could not take the sockets that systemd opened: {0}")]
    Sockets(String),
    #[error("could not {deed} the host key {path}")]
    HostKey { deed: &'static str, path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("could not make the directory of repositories {path}")]
    Repositories { path: PathBuf, source: std::io::Error },
    #[error("the repositories in {path} are in use by another process: end it first")]
    InUse { path: PathBuf, source: std::io::Error },
    #[error("could not listen for signals")]
    Signals(#[source] std::io::Error),
    #[error("the names of the zone cannot be served")]
    Dns(#[from] dns::DnsError),
    #[error("the bus is gone")]
    Bus(#[source] Option<zbus::Error>),
}

/// What all doors share.
#[derive(Debug)]
pub struct Doors {
    pub settings: Settings,
    pub agent: SeedProxy<'static>,
    /// One for each git that reads for a client, and one for each that writes: readers may be anybody.
    pub read_slots: slots::Slots,
    pub push_slots: slots::Slots,
    /// One push to a repository at a time, for git trips over two equal packs that arrive together.
    pub turns: git::Turns,
    /// The agent hears of the pushes to a repository one after the other: also if it is away for a while, the last is the last.
    pub tellings: git::Turns,
    /// One repository at a time is packed together.
    pub tidy_slot: Semaphore,
    /// What the last pushes were to change, on the disk.
    pub journals: Arc<journal::Journals>,
    /// Pushes that the agent has to hear of.
    pub pushes: TaskTracker,
    /// Cancelled when the doors are to close.
    pub stopping: CancellationToken,
}

/// Brings back what a power cut took of the last pushes, unless the doors are open, which have done that.
pub fn recover(repositories: &Path) -> Result<(), ServeError> {
    if !repositories.is_dir() {
        return Ok(());
    }
    let journals = journal::Journals::new(repositories.to_owned());
    let _alone = match journals.alone(Duration::ZERO) {
        Ok(alone) => alone,
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            tracing::info!("the doors are open: there is nothing to bring back");
            return Ok(());
        }
        Err(source) => return Err(ServeError::Repositories { path: repositories.to_owned(), source }),
    };
    git::sweep(repositories);
    // Who was not heard of is the doors' to tell.
    drop(journals.recover());
    journals.settle();
    Ok(())
}

/// Opens the doors, and keeps them open until the process is told to stop (SIGTERM, SIGINT).
pub async fn run(settings: Settings, agent: SeedProxy<'static>, sockets: Sockets) -> Result<(), ServeError> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signals)?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    run_until(settings, agent, sockets, stop).await
}

/// The same, until `stop` is ready.
pub async fn run_until(
    settings: Settings,
    agent: SeedProxy<'static>,
    sockets: Sockets,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let status = status(&sockets.missing());
    let repositories = settings.repositories.clone();
    std::fs::create_dir_all(&repositories).map_err(|source| ServeError::Repositories { path: repositories.clone(), source })?;
    let journals = Arc::new(journal::Journals::new(repositories.clone()));
    let alone = journals.alone(Duration::from_secs(30));
    let _alone = alone.map_err(|source| ServeError::InUse { path: repositories.clone(), source })?;
    git::sweep(&repositories);
    let unheard = journals.recover();
    let key = host_key::load_or_make(&settings.host_key)?;
    let stopping = CancellationToken::new();
    let doors = Arc::new(Doors {
        agent: agent.clone(),
        read_slots: slots::Slots::new(64, 24),
        push_slots: slots::Slots::new(32, 12),
        turns: git::Turns::default(),
        tellings: git::Turns::default(),
        tidy_slot: Semaphore::new(1),
        journals: Arc::clone(&journals),
        pushes: TaskTracker::new(),
        stopping: stopping.clone(),
        settings,
    });

    let names = Arc::new(dns::Names::new(doors.settings.dns.clone())?);
    let mut zone_kept = tokio::spawn(dns::keep_zone(agent.clone(), Arc::clone(&names)));
    let listeners = TaskTracker::new();
    listeners.spawn(stoppable(stopping.clone(), journal::tell(Arc::clone(&doors), unheard)));
    let keeping = Arc::clone(&journals).keep_settled(doors.settings.settle_after);
    listeners.spawn(stoppable(stopping.clone(), keeping));
    let crowd = Arc::new(crowd::Crowd::default());
    let config = Arc::new(ssh::config(key));
    for listener in sockets.ssh {
        listeners.spawn(ssh::listen(Arc::clone(&doors), Arc::clone(&config), Arc::clone(&crowd), listener));
    }
    let certificates = AcmeProxy::new(agent.inner().connection()).await.map_err(|error| ServeError::Bus(Some(error)))?;
    let certificates = acme::Door::new(doors.settings.acme.clone(), certificates, Arc::clone(&names));
    listeners.spawn(stoppable(stopping.clone(), Arc::clone(&certificates).issue()));
    for listener in sockets.acme {
        listeners.spawn(stoppable(stopping.clone(), acme::listen(Arc::clone(&certificates), listener)));
    }
    let own_names = names_of_host(&doors.settings.domain);
    let (keeper, tls) = certificates.keeper(own_names.clone(), doors.settings.certificate_look);
    // Without the door nobody would see it.
    if !sockets.https.is_empty() {
        listeners.spawn(stoppable(stopping.clone(), keeper.run()));
    }
    let plain = http::Door::plain(&doors, tls.clone());
    for listener in sockets.http {
        listeners.spawn(http::listen(Arc::clone(&plain), listener));
    }
    let secret = http::Door::secret(&doors, https::Hello { names: own_names, tls });
    for listener in sockets.https {
        listeners.spawn(http::listen(Arc::clone(&secret), listener));
    }
    let domains = DomainsProxy::new(agent.inner().connection()).await.map_err(|error| ServeError::Bus(Some(error)))?;
    let looking = domain::look(domains, Arc::clone(&names));
    listeners.spawn(stoppable(stopping.clone(), async move {
        if let Err(error) = looking.await {
            tracing::error!(%error, "names of tenants' own are not looked at any more");
        }
    }));
    let told = Arc::clone(&names);
    listeners.spawn(stoppable(stopping.clone(), async move { told.tell_secondaries().await }));
    let askers = Arc::new(crowd::Crowd::default());
    for socket in sockets.dns_udp {
        listeners.spawn(stoppable(stopping.clone(), dns::serve_udp(Arc::clone(&names), socket)));
    }
    for listener in sockets.dns_tcp {
        listeners.spawn(stoppable(stopping.clone(), dns::serve_tcp(Arc::clone(&names), Arc::clone(&askers), listener)));
    }
    notify(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status(&status)]);
    tracing::info!(domain = %doors.settings.domain, "opened the doors");

    let ended = tokio::select! {
        () = stop => Ok(()),
        kept = &mut zone_kept => Err(ServeError::Bus(kept.ok().and_then(Result::err))),
    };
    notify(&[sd_notify::NotifyState::Stopping]);
    stopping.cancel();
    zone_kept.abort();
    listeners.close();
    doors.pushes.close();
    let finished = async {
        listeners.wait().await;
        doors.pushes.wait().await;
        journals.settle_beside().await;
    };
    if tokio::time::timeout(doors.settings.stop_timeout, finished).await.is_err() {
        tracing::warn!("stopped although the agent has not heard of every push");
    }
    tracing::info!("closed the doors");
    ended
}

/// What `systemctl status` says of the doors. Those that are closed are also told to the journal, for somebody may miss them.
fn status(missing: &[&str]) -> String {
    for unit in missing {
        tracing::warn!(
            "{unit} is not open: systemctl status {unit} says why, if it should be (another program has its port, mostly)"
        );
    }
    match missing {
        [] => "all doors are open".to_owned(),
        units => format!("open, but not: {}", units.join(", ")),
    }
}

async fn stoppable(stopping: CancellationToken, task: impl Future<Output = ()>) {
    tokio::select! {
        () = stopping.cancelled() => {}
        () = task => {}
    }
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "could not notify systemd");
    }
}
