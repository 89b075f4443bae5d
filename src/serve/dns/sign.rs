//! DNSSEC: signatures made as they are asked for, with one key for the whole zone (ECDSA P-256, algorithm 13). What is asked for often is
//! signed once a day.
#![allow(clippy::disallowed_types, reason = "signatures are looked up by what they sign; nothing is printed from here")]

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, Hasher, RandomState},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use sha2::{Digest, Sha256};

use super::answer::Set;
use crate::secret_file;

/// Signatures are good for this long before they are made, for clocks that are late, and after, in seconds.
const BEFORE: u64 = 3600;
const AFTER: u64 = 4 * 86_400;
/// And used for this long.
const USED: u64 = 86_400;
/// How many are kept.
const KEPT: usize = 8192;
const ALGORITHM: u8 = 13;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("could not {deed} the key of the zone {path}")]
    File { deed: &'static str, path: PathBuf, source: std::io::Error },
    #[error(
        "{path} holds no key of a zone: restore it, or move it away, start seed-serve and give the new DS record to the parent"
    )]
    Broken { path: PathBuf },
}

/// The key of the zone.
pub struct Signer {
    pair: EcdsaKeyPair,
    /// The data of the DNSKEY record.
    key: Vec<u8>,
    tag: u16,
    random: RandomState,
    made: Mutex<HashMap<u64, (u64, Arc<[u8]>)>>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", self.tag)
    }
}

impl Signer {
    /// Takes a key in PKCS#8.
    pub fn new(pkcs8: &[u8]) -> Option<Self> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8).ok()?;
        // A key that signs both itself and the zone; the point without the byte that says that it is not compressed.
        let mut key = vec![1, 1, 3, ALGORITHM];
        key.extend(pair.public_key().as_ref().get(1..)?);
        let sum = key.iter().enumerate().map(|(n, byte)| u32::from(*byte) << if n % 2 == 0 { 8 } else { 0 }).sum::<u32>();
        #[expect(clippy::cast_possible_truncation, reason = "the carry is added, then dropped (RFC 4034, appendix B)")]
        let tag = (sum + (sum >> 16)) as u16;
        Some(Self { pair, key, tag, random: RandomState::new(), made: Mutex::default() })
    }

    /// Makes a key.
    pub fn generate() -> Option<Vec<u8>> {
        Some(EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).ok()?.as_ref().to_vec())
    }

    /// Reads the key.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let bytes = std::fs::read(path).map_err(|source| KeyError::File { deed: "read", path: path.to_owned(), source })?;
        Self::new(&bytes).ok_or_else(|| KeyError::Broken { path: path.to_owned() })
    }

    /// Reads the key, or makes one if there is none.
    pub fn load_or_make(path: &Path) -> Result<Self, KeyError> {
        match Self::load(path) {
            Err(KeyError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                let failed = |source| KeyError::File { deed: "make", path: path.to_owned(), source };
                let bytes = Self::generate().ok_or_else(|| failed(std::io::Error::other("the library gave none")))?;
                secret_file::write(path, &bytes).map_err(failed)?;
                tracing::info!(path = %path.display(), "made the key of the zone: `seed dns` shows its DS record for the parent zone");
                Self::load(path)
            }
            loaded => loaded,
        }
    }

    /// The data of the DNSKEY record.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The data of the DS record that the parent zone is to have, as it is written there.
    pub fn ds(&self, domain: &[u8]) -> String {
        let digest = Sha256::digest([domain, &self.key].concat());
        format!("{} {ALGORITHM} 2 {}", self.tag, data_encoding::HEXUPPER.encode(&digest))
    }

    /// The data of the record that signs a set. `now` is in seconds since 1970.
    pub fn signature(&self, set: &Set<'_>, domain: &[u8], now: u64) -> Arc<[u8]> {
        let mut hasher = self.random.build_hasher();
        (set.owner, set.kind, set.signed_ttl).hash(&mut hasher);
        set.data.each(|data| data.hash(&mut hasher));
        let key = hasher.finish();
        if let Some((at, made)) = self.made().get(&key)
            && now.wrapping_sub(*at) < USED
        {
            return Arc::clone(made);
        }
        let made: Arc<[u8]> = self.sign(set, domain, now).into();
        let mut all = self.made();
        if all.len() >= KEPT {
            all.clear();
        }
        all.insert(key, (now, Arc::clone(&made)));
        made
    }

    fn made(&self) -> std::sync::MutexGuard<'_, HashMap<u64, (u64, Arc<[u8]>)>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sign(&self, set: &Set<'_>, domain: &[u8], now: u64) -> Vec<u8> {
        let labels = super::table::labels(set.owner);
        let mut data = Vec::with_capacity(18 + domain.len() + 64);
        data.extend(set.kind.to_be_bytes());
        data.extend([ALGORITHM, labels]);
        data.extend(set.signed_ttl.to_be_bytes());
        #[expect(clippy::cast_possible_truncation, reason = "times of signatures go round in a circle")]
        let times = [now + AFTER, now.saturating_sub(BEFORE)].map(|time| (time as u32).to_be_bytes());
        data.extend(times.concat());
        data.extend(self.tag.to_be_bytes());
        data.extend(domain);
        let mut all: Vec<Vec<u8>> = Vec::new();
        set.data.each(|data| all.push(data.to_vec()));
        // The order of RFC 4034 is that of the data alone.
        all.sort();
        let mut signed = data.clone();
        for one in all {
            super::answer::record(&mut signed, None, set.owner, set.kind, set.signed_ttl, &one);
        }
        match self.pair.sign(&SystemRandom::new(), &signed) {
            Ok(signature) => data.extend(signature.as_ref()),
            // A record without its signature is refused by whoever checks, and that is right.
            Err(error) => tracing::error!(%error, "could not sign an answer"),
        }
        data
    }
}
