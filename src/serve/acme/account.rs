//! This host's account at the CA: its key is a file that only the doors can read, one for each CA.

use std::{fs, io::ErrorKind};

use instant_acme::{Account, AccountCredentials, ExternalAccountKey, Key, NewAccount};

use super::{Ca, upstream::account_file};
use crate::{
    bus::{
        Refusal,
        acme::{AcmeProxy, Report},
    },
    secret_file,
    serve::ask,
};

/// Why there is no account.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    #[error("could not {deed} {path}")]
    File { deed: &'static str, path: std::path::PathBuf, source: std::io::Error },
    #[error("{path} cannot be read: move it away to make a new account")]
    Broken { path: std::path::PathBuf, source: serde_json::Error },
    #[error("{path} does not hold a key in base64url")]
    Binding { path: std::path::PathBuf },
    #[error("no account was made at the CA: {0}")]
    Agent(String),
    #[error("the CA")]
    Ca(#[source] instant_acme::Error),
}

/// Takes up the account, or makes one, if the agent has nothing against it: CAs count them by address. A kill between the CA's answer and the file leaves an account there that nobody uses.
pub async fn load_or_make(ca: &Ca, agent: &AcmeProxy<'_>) -> Result<Account, AccountError> {
    let builder = || match &ca.root {
        Some(root) => Account::builder_with_root(root).map_err(AccountError::Ca),
        None => Account::builder().map_err(AccountError::Ca),
    };
    let path = account_file(ca);
    match fs::read(&path) {
        Ok(bytes) => {
            let broken = |source| AccountError::Broken { path: path.clone(), source };
            let credentials: AccountCredentials = serde_json::from_slice(&bytes).map_err(broken)?;
            builder()?.from_credentials(credentials).await.map_err(AccountError::Ca)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let binding = ca.binding.as_ref().map(|(id, file)| binding(id, file)).transpose()?;
            let contact = ca.email.as_ref().map(|email| format!("mailto:{email}"));
            let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
            let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
            // One that could not be kept would be made again at each attempt.
            let probe = path.with_extension("probe");
            let kept = secret_file::write(&probe, b"").and_then(|()| fs::remove_file(&probe));
            kept.map_err(|source| AccountError::File { deed: "write", path: path.clone(), source })?;
            // A CA that is away makes none: that it shows its directory is seen with a key that nobody uses.
            let (_, nobody) = Key::generate_pkcs8().map_err(AccountError::Ca)?;
            builder()?.from_parts(String::new(), nobody, ca.directory.clone()).await.map_err(AccountError::Ca)?;
            tell(agent, &Report::Registering).await?;
            let (account, credentials) = match builder()?.create(&new, ca.directory.clone(), binding.as_ref()).await {
                Ok(made) => made,
                Err(error) => {
                    if matches!(error, instant_acme::Error::Api(_)) {
                        tell(agent, &Report::NotRegistered).await?;
                    }
                    return Err(AccountError::Ca(error));
                }
            };
            let text = serde_json::to_vec(&credentials).map_err(|source| AccountError::Broken { path: path.clone(), source })?;
            secret_file::write(&path, &text).map_err(|source| AccountError::File { deed: "write", path: path.clone(), source })?;
            tracing::info!(directory = ca.directory, "made an account at the CA");
            Ok(account)
        }
        Err(source) => Err(AccountError::File { deed: "read", path, source }),
    }
}

async fn tell(agent: &AcmeProxy<'_>, report: &Report) -> Result<(), AccountError> {
    let text = serde_json::to_string(report).expect("plain data is JSON");
    ask::within(agent.report(&text)).await.map_err(|refusal| {
        let why = ask::words(&refusal);
        if matches!(refusal, Refusal::Invalid(_)) {
            tracing::error!(why, "no account is made at the CA");
        }
        AccountError::Agent(why)
    })
}

/// Puts an account aside that the CA does not know any more.
pub fn forget(ca: &Ca) {
    let path = account_file(ca);
    if let Err(error) = fs::rename(&path, path.with_extension("old")) {
        tracing::warn!(%error, "could not put the old account aside");
    }
}

fn binding(id: &str, file: &std::path::Path) -> Result<ExternalAccountKey, AccountError> {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
    let text = fs::read_to_string(file).map_err(|source| AccountError::File { deed: "read", path: file.to_owned(), source })?;
    let key = BASE64_URL_SAFE_NO_PAD.decode(text.trim().trim_end_matches('='));
    let key = key.map_err(|_| AccountError::Binding { path: file.to_owned() })?;
    Ok(ExternalAccountKey::new(id.to_owned(), &key))
}
