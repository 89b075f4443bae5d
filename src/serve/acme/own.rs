//! The certificate of this host itself, for the HTTPS door. Its key is made once and is a file that only the doors can read; the agent
//! remembers orders and certificates, as it does those of instances. What was issued last is also kept beside the key, so that the door
//! answers although the agent is away. New ones are taken into use as they come: connections that are there go on with theirs.

use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use tokio::{sync::watch, time::sleep};
use tokio_rustls::rustls::{
    self, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use super::{
    csr,
    upstream::{Issuer, now},
};
use crate::{
    bus::{
        Refusal,
        acme::{AcmeProxy, Asked, Certificate, Own},
    },
    secret_file,
    serve::ask,
};

/// What new connections are answered with; `None`: there is no certificate.
pub type Tls = Option<Arc<ServerConfig>>;

/// Why there is no key, or no configuration.
#[derive(Debug, thiserror::Error)]
enum OwnError {
    #[error("could not {deed} {path}")]
    File { deed: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{path} cannot be read: move it away to make a new key")]
    Broken { path: PathBuf, source: rcgen::Error },
    #[error("a key or a request could not be made")]
    Make(#[from] rcgen::Error),
    #[error("the certificate cannot be used")]
    Tls(#[from] rustls::Error),
    #[error("the certificate is no PEM")]
    Pem(#[from] rustls::pki_types::pem::Error),
}

/// Keeps the certificate.
pub struct Keeper {
    pub agent: AcmeProxy<'static>,
    pub issuer: Option<Arc<Issuer>>,
    /// The names that it is for.
    pub names: BTreeSet<String>,
    /// How often the agent is asked whether it is due.
    pub look: Duration,
    pub tls: watch::Sender<Tls>,
}

impl Keeper {
    /// Gets the certificate and renews it. Never returns.
    pub async fn run(self) {
        let Some(issuer) = &self.issuer else {
            tracing::info!("HTTPS answers nobody: this host has no CA ([acme] directory)");
            return std::future::pending().await;
        };
        let mut said = String::new();
        let key = loop {
            match key(&issuer.directory().join("host.key")) {
                Ok(key) => break key,
                Err(error) => self.say(&mut said, &super::chain(&error)),
            }
            sleep(Duration::from_secs(60)).await;
        };
        let mut used = Used { file: issuer.directory().join("host.pem"), fingerprint: String::new(), not_after: 0 };
        self.take_kept(&key, &mut used);
        loop {
            if used.not_after <= now() && self.tls.send_replace(None).is_some() {
                tracing::error!("the certificate of this host has ended");
            }
            let pause = match self.turn(issuer, &key, &mut used).await {
                Ok(pause) => pause,
                Err((why, pause)) => {
                    self.say(&mut said, &why);
                    pause
                }
            };
            sleep(pause).await;
        }
    }

    /// Says why there is no certificate, or no newer one, once.
    fn say(&self, said: &mut String, why: &str) {
        if said != why {
            why.clone_into(said);
            match self.tls.borrow().is_some() {
                true => tracing::warn!(why, "the certificate of this host was not renewed yet"),
                false => tracing::warn!(why, "HTTPS answers nobody: this host has no certificate yet"),
            }
        }
    }

    /// Asks the agent once, and does what is to be done; how long to wait then.
    async fn turn(&self, issuer: &Arc<Issuer>, key: &KeyPair, used: &mut Used) -> Result<Duration, (String, Duration)> {
        let short = Duration::from_secs(1);
        let failed = |why: String| (why, self.look.min(Duration::from_secs(60)));
        let (csr, hash) = csr::own(key, &self.names).map_err(|error| failed(super::chain(&OwnError::from(error))))?;
        let csr = BASE64_URL_SAFE_NO_PAD.encode(csr);
        let asked = Asked { csr, key: hash.clone(), names: self.names.clone() };
        let asked = serde_json::to_string(&asked).expect("plain data is JSON");
        let own = match ask::document::<Own>(self.agent.own(&asked)).await {
            Ok(own) => own,
            // It will be back.
            Err(refusal) if ask::away(&refusal) => return Ok(short),
            Err(Refusal::Invalid(why)) => return Err(failed(why)),
            Err(refusal) => return Err(failed(ask::words(&refusal))),
        };
        if let Some(certificate) = &own.certificate
            && certificate.fingerprint != used.fingerprint
        {
            self.take(key, &hash, certificate, used).map_err(failed)?;
        }
        match own {
            Own { order: Some(order), .. } => {
                let id = order.id.clone();
                issuer.pursue(order);
                issuer.wait(&id, self.look.max(short)).await;
                // Whether it became a certificate, the agent knows. One that cannot be worked on must not be asked for all the time.
                Ok(short.min(self.look))
            }
            Own { problem: Some(problem), .. } => {
                let wait = Duration::from_secs(problem.retry_after.unwrap_or(0)).clamp(short, self.look.max(short));
                Err((problem.to_string(), wait))
            }
            Own { certificate: Some(certificate), .. } => {
                // What it says is told to the agent, which decides with it the next time.
                issuer.window(&certificate).await;
                let due = Duration::from_secs(certificate.renew_at().saturating_sub(now()) + 1);
                Ok(due.min(self.look))
            }
            Own { .. } => Ok(self.look),
        }
    }

    /// Takes a certificate into use for new connections, and keeps it beside its key.
    fn take(&self, key: &KeyPair, hash: &str, certificate: &Certificate, used: &mut Used) -> Result<(), String> {
        csr::issued(&certificate.chain, &self.names, hash, now()).map_err(|what| format!("the agent has {what}"))?;
        self.tls.send_replace(Some(configuration(key, &certificate.chain).map_err(|error| super::chain(&error))?));
        used.fingerprint.clone_from(&certificate.fingerprint);
        used.not_after = certificate.not_after;
        if let Err(error) = secret_file::write(&used.file, certificate.chain.as_bytes()) {
            tracing::warn!(%error, path = %used.file.display(), "could not keep the certificate of this host");
        }
        let names = self.names.iter().cloned().collect::<Vec<_>>().join(", ");
        let days = certificate.not_after.saturating_sub(now()) / 86400;
        tracing::info!(
            names,
            days,
            renewed_in_days = certificate.renew_at().saturating_sub(now()) / 86400,
            "HTTPS has a certificate"
        );
        Ok(())
    }

    /// Takes up what an earlier life has kept, if it is still good: the agent may be away.
    fn take_kept(&self, key: &KeyPair, used: &mut Used) {
        let Ok(chain) = fs::read_to_string(&used.file) else { return };
        let Ok((_, hash)) = csr::own(key, &self.names) else { return };
        // What is not good is replaced by what the agent has.
        if let Ok(issued) = csr::issued(&chain, &self.names, &hash, now())
            && let Ok(tls) = configuration(key, &chain)
        {
            tracing::info!(path = %used.file.display(), "HTTPS has the certificate that was kept");
            self.tls.send_replace(Some(tls));
            (used.fingerprint, used.not_after) = (issued.fingerprint, issued.not_after);
        }
    }
}

/// The certificate that is in use.
struct Used {
    file: PathBuf,
    fingerprint: String,
    not_after: u64,
}

/// Reads the key, or makes one. One that is there and cannot be read is an error, as the account's and the SSH door's are.
fn key(path: &Path) -> Result<KeyPair, OwnError> {
    match fs::read_to_string(path) {
        Ok(text) => KeyPair::from_pem(&text).map_err(|source| OwnError::Broken { path: path.to_owned(), source }),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            let written = secret_file::write(path, key.serialize_pem().as_bytes());
            written.map_err(|source| OwnError::File { deed: "write", path: path.to_owned(), source })?;
            Ok(key)
        }
        Err(source) => Err(OwnError::File { deed: "read", path: path.to_owned(), source }),
    }
}

fn configuration(key: &KeyPair, chain: &str) -> Result<Arc<ServerConfig>, OwnError> {
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes())?;
    let mut tls = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(tls))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rcgen::CertificateParams;

    use super::*;

    #[test]
    fn a_key_is_made_once_for_the_doors_alone_and_a_broken_one_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("acme/host.key");
        let made = key(&path).unwrap();
        assert_eq!(key(&path).unwrap().serialize_pem(), made.serialize_pem());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "not a key").unwrap();
        assert!(key(&path).unwrap_err().to_string().contains("move it away"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "not a key");
    }

    #[test]
    fn only_a_chain_of_the_key_can_be_served() {
        let (ours, theirs) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let signed = |key| CertificateParams::new(vec!["seed.example".to_owned()]).unwrap().self_signed(key).unwrap().pem();
        assert_eq!(configuration(&ours, &signed(&ours)).unwrap().alpn_protocols, [b"http/1.1"]);
        assert!(configuration(&ours, &signed(&theirs)).is_err());
        assert!(configuration(&ours, "").is_err());
    }
}
