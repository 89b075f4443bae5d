//! Asking the agent: every question has an end, and every answer that is no answer becomes a sentence.

use std::time::Duration;

use crate::bus::Refusal;

/// An answer of the agent.
pub type Asked<T> = Result<T, Refusal>;

/// Longer than any answer takes: the agent answers at once and works afterwards.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for an answer.
pub async fn within<T>(question: impl Future<Output = zbus::Result<T>>) -> Asked<T> {
    match tokio::time::timeout(PATIENCE, question).await {
        Ok(answer) => answer.map_err(Refusal::from),
        Err(_) => Err(Refusal::Failed("the agent did not answer within a minute: try again".into())),
    }
}

/// A text of a stranger's, for a question. The bus takes no text with a byte 0 in it, and hangs up on whoever sends one: on all of us.
pub fn text(given: &str) -> Asked<&str> {
    match given.contains('\0') {
        true => Err(Refusal::Invalid(format!("{given:?} has a byte 0 in it: leave it out"))),
        false => Ok(given),
    }
}

/// Waits for an answer that is a document.
pub async fn document<T: serde::de::DeserializeOwned>(question: impl Future<Output = zbus::Result<String>>) -> Asked<T> {
    let text = within(question).await?;
    serde_json::from_str(&text).map_err(|error| {
        tracing::error!(%error, text, "the agent's answer could not be read");
        Refusal::Failed("the agent's answer could not be read: the agent and the doors are of different versions".into())
    })
}

/// What to tell whoever asked.
pub fn words(refusal: &Refusal) -> String {
    match refusal {
        Refusal::NotFound(text) | Refusal::Denied(text) | Refusal::Invalid(text) | Refusal::Failed(text) => text.clone(),
        Refusal::ZBus(error) if away(refusal) => {
            tracing::warn!(%error, "the agent is away");
            "the agent is restarting: try again in a moment".into()
        }
        Refusal::ZBus(error) => {
            tracing::error!(%error, "the agent did not answer as it should");
            "the agent did not answer as it should: try again, and tell the operator if it stays so".into()
        }
    }
}

/// Whether an agent answered that does not know this question: an older one.
pub fn unknown(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::ZBus(zbus::Error::FDO(error)) if matches!(**error, zbus::fdo::Error::UnknownMethod(_)))
        || matches!(refusal, Refusal::ZBus(zbus::Error::MethodError(name, ..)) if name.as_str() == "org.freedesktop.DBus.Error.UnknownMethod")
}

/// Whether the bus itself did not let it through.
fn forbidden(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::ZBus(zbus::Error::FDO(error)) if matches!(**error, zbus::fdo::Error::AccessDenied(_)))
        || matches!(refusal, Refusal::ZBus(zbus::Error::MethodError(name, ..)) if name.as_str() == "org.freedesktop.DBus.Error.AccessDenied")
}

/// What a refusal means to whoever typed a verb on the host: that somebody else than root did is the likeliest reason for one of the bus.
pub fn on_host(refusal: Refusal) -> Refusal {
    match forbidden(&refusal) {
        true => Refusal::Denied("only root is the operator of this host: sudo seed …, or with a key of your own ssh HOST …".into()),
        false => refusal,
    }
}

/// Whether nobody answered, so that asking again later may help.
pub fn away(refusal: &Refusal) -> bool {
    use zbus::fdo::Error as Fdo;
    match refusal {
        Refusal::ZBus(zbus::Error::FDO(error)) => matches!(
            **error,
            Fdo::ServiceUnknown(_)
                | Fdo::NameHasNoOwner(_)
                | Fdo::NoReply(_)
                | Fdo::Disconnected(_)
                | Fdo::NoServer(_)
                | Fdo::UnknownObject(_)
                | Fdo::SpawnChildExited(_)
                | Fdo::TimedOut(_)
                | Fdo::Timeout(_)
        ),
        Refusal::ZBus(zbus::Error::InputOutput(_)) => true,
        _ => false,
    }
}
