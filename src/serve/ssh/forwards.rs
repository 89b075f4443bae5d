//! Ports of guests for a client's own machine: `ssh -L 8080:web:80`. The host's name is an instance that the client may enter, and
//! nothing else.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use russh::{Channel, ChannelOpenFailure, client, server};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        Doors, ask,
        command::instance_of_host,
        guest::{self, Guest},
        relay::{self, Client},
    },
    drain::drain,
    flow::Tide,
};
use crate::{
    bus::{Refusal, guest::Act},
    spec::caller::Caller,
};

/// For so long a way into a guest serves new connections. Then the agent is asked again: a key may have been taken out.
const FRESH: Duration = Duration::from_secs(60);
/// Ways of one client that are kept while nobody uses them.
const MAX_KEPT: usize = 16;

/// One client's ways into guests that nobody uses right now. Each serves one connection at a time, so that one which nobody reads holds
/// up no other.
#[derive(Default)]
pub struct Forwards(Mutex<Vec<Way>>);

struct Way {
    instance: String,
    since: Instant,
    guest: Guest,
}

impl Way {
    fn fresh(&self) -> bool {
        self.since.elapsed() < FRESH && !self.guest.is_closed()
    }
}

impl Forwards {
    async fn way(&self, doors: &Doors, who: &Caller, instance: &str, port: u16) -> Result<Way, Refusal> {
        let kept = {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.retain(Way::fresh);
            kept.iter().position(|way| way.instance == instance).map(|at| kept.swap_remove(at))
        };
        if let Some(way) = kept {
            return Ok(way);
        }
        let guest = guest::enter(&doors.agent, who.as_str(), instance, Act::Forward, &format!("port {port}")).await?;
        Ok(Way { instance: instance.to_owned(), since: Instant::now(), guest })
    }

    fn keep(&self, way: Way) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if way.fresh() && kept.len() < MAX_KEPT {
            kept.push(way);
        }
    }

    async fn open(&self, doors: &Doors, who: &Caller, host: &str, port: u32) -> Result<(Way, Channel<client::Msg>), Refusal> {
        let instance = instance_of_host(host, doors.settings.domain.as_str())
            .ok_or_else(|| Refusal::Denied("only ports of your own instances are forwarded: -L 8080:web:80".to_owned()))?;
        let port = u16::try_from(port).ok().filter(|port| *port > 0);
        let port = port.ok_or_else(|| Refusal::Invalid("a port is a number from 1 to 65535".to_owned()))?;
        let way = self.way(doors, who, &instance, port).await?;
        match way.guest.port(port).await {
            Ok(channel) => Ok((way, channel)),
            Err(error) => Err(Refusal::Failed(format!("nothing in {instance} listens on port {port} ({error})"))),
        }
    }
}

/// A connection that a client wants to have forwarded.
pub struct Forward {
    pub doors: Arc<Doors>,
    pub who: Caller,
    pub forwards: Arc<Forwards>,
    pub tide: Arc<Tide>,
    pub host: String,
    pub port: u32,
}

impl Forward {
    /// Serves it to its end; sets `through` once it was let through.
    pub async fn run(self, channel: Channel<server::Msg>, reply: server::ChannelOpenHandle, through: &AtomicBool) {
        let Self { doors, who, forwards, tide, host, port } = self;
        let opened = tokio::select! {
            opened = forwards.open(&doors, &who, &host, port) => opened,
            () = doors.stopping.cancelled() => return,
        };
        let (way, inside) = match opened {
            Ok(opened) => opened,
            Err(refusal) => {
                let reason = ask::words(&refusal);
                tracing::debug!(%who, host, port, reason, "a port was not forwarded");
                // 1: prohibited, 2: could not connect. ssh shows the words with either.
                let code = if matches!(refusal, Refusal::Denied(_)) { 1 } else { 2 };
                reply.reject(ChannelOpenFailure::Other { code, reason }).await;
                return;
            }
        };
        reply.accept().await;
        through.store(true, Ordering::Relaxed);
        let (read, write) = channel.split();
        let (inlet, input) = tide.channel();
        let gone = CancellationToken::new();
        let (controls, controlled) = mpsc::channel(1);
        tokio::spawn(drain(read, inlet, controls, gone.clone(), false));
        let client = Client { input, controls: controlled, write: &write, gone, stalled: doors.settings.stalled };
        tokio::select! {
            _ = relay::relay(client, inside) => forwards.keep(way),
            () = doors.stopping.cancelled() => {}
        }
        // If the client is gone, there is nobody to tell.
        drop(write.close().await);
    }
}
