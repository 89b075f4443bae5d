//! Who calls: every interface of the agent asks here first.
#![allow(clippy::disallowed_types, reason = "unique names have no order that means anything")]

use std::collections::HashMap;

use tokio::sync::Mutex;
use zbus::{fdo, message::Header, names::UniqueName};

use crate::bus::Refusal;

/// Who may speak: on the bus, callers are told apart by their Unix user; a peer on a private socket (in tests) is who it says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// root may ask anything; this user may ask on behalf of keys.
    Users {
        door: u32,
    },
    Peer,
}

/// What is known of callers.
#[derive(Debug)]
pub struct Callers {
    trust: Trust,
    /// Unix users of callers, by unique name: a name is never used twice on one bus.
    users: Mutex<HashMap<String, u32>>,
}

impl Callers {
    pub fn new(trust: Trust) -> Self {
        Self { trust, users: Mutex::default() }
    }

    /// Refuses callers that may not speak for `who`.
    pub async fn check(&self, header: &Header<'_>, connection: &zbus::Connection, who: &str) -> Result<(), Refusal> {
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
}
