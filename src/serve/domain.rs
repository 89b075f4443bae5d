//! Looking at names of tenants' own in the DNS, when the agent says that they are due: the agent speaks with nobody outside, and decides
//! what it means.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{sync::Semaphore, time::sleep};

use super::{ask, dns::Names};
use crate::bus::domain::{DomainsProxy, Due, Seen};

/// Names that are looked at at a time.
const AT_ONCE: usize = 32;
/// How long an agent is left alone that does not answer.
const AWAY: Duration = Duration::from_secs(10);

/// Looks at what is due. Returns when the bus is gone.
pub async fn look(agent: DomainsProxy<'static>, names: Arc<Names>) -> zbus::Result<()> {
    let mut changes = agent.receive_changed().await?;
    let mut owners = agent.inner().receive_owner_changed().await?;
    let slots = Semaphore::new(AT_ONCE);
    let (mut looks, mut under_way) = (FuturesUnordered::new(), BTreeSet::new());
    loop {
        let pause = match ask::document::<Due>(agent.due()).await {
            Ok(due) => {
                for name in due.names.into_iter().filter(|name| under_way.insert(name.clone())) {
                    looks.push(one(&agent, &names, &slots, name, due.turn));
                }
                Duration::from_secs(due.pause.max(1))
            }
            Err(refusal) => {
                tracing::debug!(%refusal, "the agent does not say which names are due");
                AWAY
            }
        };
        tokio::select! {
            // Also after each report: then the agent says when the next is due.
            change = changes.next() => if change.is_none() { return Ok(()) },
            owner = owners.next() => if owner.is_none() { return Ok(()) },
            Some(name) = looks.next(), if !looks.is_empty() => drop(under_way.remove(&name)),
            () = sleep(pause) => {}
        }
    }
}

/// Looks at one name, and says what was seen.
async fn one(agent: &DomainsProxy<'_>, names: &Names, slots: &Semaphore, name: String, turn: u64) -> String {
    // It is never closed.
    let slot = slots.acquire().await;
    let seen = Seen { name: name.clone(), turn, sight: names.sight(&name).await };
    drop(slot);
    let text = serde_json::to_string(&seen).expect("plain data is JSON");
    if let Err(refusal) = ask::within(agent.seen(&text)).await {
        tracing::debug!(name, %refusal, "the agent does not take what was seen of a name");
        sleep(AWAY).await;
    }
    name
}
