//! Letting somebody into a guest: who may, by which stream, with which certificate.

use russh::keys::{Algorithm, PublicKey};
use tokio::sync::Semaphore;

use super::{
    Agent, chain, now,
    request::{Answer, Reply, principal},
    resolve,
};
use crate::{
    build::Builder,
    bus::{
        Refusal,
        guest::{Act, Way},
    },
    host::{Host, HostError},
    render::credentials,
    spec::{access::Verb, name::SetId},
    state::State,
};

/// The vsock port of a guest's sshd.
const SSH_PORT: u32 = 22;
/// Guests that take their time to accept, all in all: they hold a descriptor of the agent's each.
static KNOCKING: Semaphore = Semaphore::const_new(256);

/// A question to be let in, in plain text as it came over the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enter {
    pub who: String,
    pub instance: String,
    pub key: String,
    pub act: String,
    pub what: String,
}

impl<H: Host, S: State, B: Builder> Agent<H, S, B> {
    /// Answers from a task: guests take their time.
    pub(super) fn enter(&self, ask: Enter, answer: Answer) {
        let allowed = self.allow(&ask);
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let reply = match allowed {
                Ok((id, key, act)) => let_in(&shared, &ask, &id, &key, act).await,
                Err(refusal) => Err(refusal),
            };
            drop(answer.send(reply));
        });
    }

    fn allow(&self, ask: &Enter) -> Result<(SetId, PublicKey, Act), Refusal> {
        let id = resolve::instance(&self.memory, &principal(&ask.who)?, Verb::Enter, &ask.instance)?;
        let act = Act::named(&ask.act).ok_or_else(|| Refusal::Invalid(format!("{:?} is nothing to do in a guest", ask.act)))?;
        let key = PublicKey::from_openssh(&ask.key).ok().filter(|key| key.algorithm() == Algorithm::Ed25519);
        let key = key.ok_or_else(|| Refusal::Invalid("what is to be certified is no Ed25519 key".to_owned()))?;
        // A certificate is good for either set of the instance; the way leads to the one that serves.
        Ok((self.serving(&id), key, act))
    }
}

async fn let_in<H: Host, B: Builder>(
    shared: &super::Shared<H, B>,
    ask: &Enter,
    id: &SetId,
    key: &PublicKey,
    act: Act,
) -> Result<Reply, Refusal> {
    let _place = KNOCKING
        .try_acquire()
        .map_err(|_| Refusal::Failed("too many are waiting for guests to let them in: try again in a moment".to_owned()))?;
    let stream = shared.host.connect(id, SSH_PORT).await.map_err(|error| Refusal::Failed(closed(id, &error)))?;
    let holder = if ask.who.is_empty() { "operator" } else { &ask.who };
    let certificate = shared.settings.authority.certify(key, &credentials::principal(&id.instance()), holder, act, now());
    let certificate = certificate.map_err(|error| Refusal::Failed(chain(&error)))?;
    // What it says is a tenant's: as a quoted text it stays one line.
    tracing::info!(who = holder, instance = %id, act = act.name(), what = ?ask.what, "let somebody into a guest");
    let way = Way { version: 1, instance: id.instance().to_string(), user: "root".to_owned(), certificate };
    Ok(Reply::Way(stream, serde_json::to_string(&way).expect("texts and numbers are JSON")))
}

/// Why there is no way in, and what to do.
fn closed(id: &SetId, error: &HostError) -> String {
    use std::io::ErrorKind;
    let name = &id.name;
    let kind = match error {
        HostError::Connect { source, .. } => Some(source.kind()),
        _ => None,
    };
    match kind {
        Some(ErrorKind::ConnectionRefused) => format!(
            "nothing in {name} listens for SSH on vsock: its system has no sshd, has not come that far, or is not running (status, logs {name})"
        ),
        Some(ErrorKind::NotFound) => format!("{name} is not running: status says why"),
        Some(ErrorKind::TimedOut) => {
            format!("{name} did not accept a connection in time: it may still be booting, or hang (logs {name})")
        }
        _ => {
            tracing::warn!(instance = %id, error = chain(error), "could not get into a guest");
            format!("could not get into {name}: {}", chain(error))
        }
    }
}
