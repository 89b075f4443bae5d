//! What clients ask the CA to sign (PKCS #10), and what comes back (X.509). Pure.

use std::collections::BTreeSet;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use data_encoding::HEXLOWER;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData};
use sha2::{Digest, Sha256};
use x509_parser::{
    certification_request::X509CertificationRequest,
    extensions::{GeneralName, ParsedExtension},
    pem::Pem,
    prelude::{FromDer, X509Certificate},
    public_key::PublicKey,
    x509::SubjectPublicKeyInfo,
};

use super::key::Key;
use crate::bus::acme::Problem;

/// A request for a certificate, as far as it matters here; the CA looks at the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Csr {
    pub names: BTreeSet<String>,
    /// SHA-256 of the SubjectPublicKeyInfo, in hexadecimal.
    pub key: String,
}

fn bad(detail: impl Into<String>) -> Problem {
    Problem::new(400, "badCSR", detail)
}

fn key_hash(info: &SubjectPublicKeyInfo<'_>) -> String {
    HEXLOWER.encode(&Sha256::digest(info.raw))
}

/// The names of a SubjectAltName; an error if one is no DNS name.
fn dns_names(names: &[GeneralName<'_>]) -> Result<BTreeSet<String>, String> {
    let one = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Ok(name.to_ascii_lowercase()),
        other => Err(format!("{other} is no DNS name")),
    };
    names.iter().map(one).collect()
}

impl Csr {
    /// Reads one, and checks that whoever made it has the key. `account` is the key that signed the order: it must be another one.
    pub fn parse(der: &[u8], account: &Key) -> Result<Self, Problem> {
        let (rest, csr) = X509CertificationRequest::from_der(der).map_err(|error| bad(format!("this is no CSR: {error}")))?;
        if !rest.is_empty() {
            return Err(bad("something follows the CSR"));
        }
        let info = &csr.certification_request_info;
        let strong = match info.subject_pki.parsed() {
            Ok(PublicKey::RSA(key)) => (2048..=4096).contains(&key.key_size()),
            Ok(PublicKey::EC(point)) => matches!(point.key_size(), 256 | 384),
            _ => false,
        };
        if !strong {
            return Err(Problem::new(
                400,
                "badPublicKey",
                "certificates are for keys of these kinds: EC P-256, EC P-384, RSA of 2048 to 4096 bits",
            ));
        }
        csr.verify_signature().map_err(|_| bad("the CSR is not signed with its own key"))?;
        if account.is_of(&info.subject_pki) {
            return Err(Problem::new(400, "badCSR", "the key of the account may not be that of a certificate: make another"));
        }
        let mut names = BTreeSet::new();
        for extension in csr.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(alternatives) = extension {
                names.extend(dns_names(&alternatives.general_names).map_err(bad)?);
            }
        }
        for name in info.subject.iter_common_name() {
            let name = name.as_str().map_err(|_| bad("the common name is no text"))?;
            names.insert(name.to_ascii_lowercase());
        }
        Ok(Self { names, key: key_hash(&info.subject_pki) })
    }
}

/// A CSR of this host's own, in DER, and the hash of its key.
pub fn own(key: &KeyPair, names: &BTreeSet<String>) -> Result<(Vec<u8>, String), rcgen::Error> {
    let mut params = CertificateParams::new(names.iter().cloned().collect::<Vec<_>>())?;
    // The names are in the SubjectAltName; a common name is what CAs no longer want.
    params.distinguished_name = DistinguishedName::new();
    let hash = HEXLOWER.encode(&Sha256::digest(key.subject_public_key_info()));
    Ok((params.serialize_request(key)?.der().to_vec(), hash))
}

/// What the CA has issued, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    pub fingerprint: String,
    /// As ARI names it (RFC 9773, section 4.1); empty if the CA gives it no authority key identifier.
    pub ari: String,
    pub not_before: u64,
    pub not_after: u64,
}

/// Reads a chain, and checks that it is what was asked for: a CA that errs or lies must not end in a guest.
pub fn issued(chain: &str, names: &BTreeSet<String>, key: &str, now: u64) -> Result<Issued, String> {
    let leaf = Pem::iter_from_buffer(chain.as_bytes()).next().ok_or("no certificate at all")?.map_err(|error| error.to_string())?;
    let certificate = leaf.parse_x509().map_err(|error| error.to_string())?;
    if key_hash(certificate.public_key()) != key {
        return Err("a certificate for another key".to_owned());
    }
    let alternatives = certificate.subject_alternative_name().map_err(|error| error.to_string())?;
    let given = alternatives.map(|found| dns_names(&found.value.general_names)).transpose()?.unwrap_or_default();
    if given != *names {
        return Err(format!("a certificate for {}", given.into_iter().collect::<Vec<_>>().join(", ")));
    }
    let time = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    let (not_before, not_after) = (time(certificate.validity().not_before), time(certificate.validity().not_after));
    if not_after <= now {
        return Err("a certificate that has ended already".to_owned());
    }
    let authority = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(found) => found.key_identifier.as_ref().map(|id| id.0),
        _ => None,
    });
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let ari = authority.map(|authority| format!("{}.{}", encode(authority), encode(certificate.raw_serial())));
    Ok(Issued { fingerprint: fingerprint(&leaf.contents), ari: ari.unwrap_or_default(), not_before, not_after })
}

/// SHA-256 of a certificate's DER, in hexadecimal.
pub fn fingerprint(der: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(der))
}

/// Whether `key` is the key of a certificate.
pub fn is_key_of(key: &Key, der: &[u8]) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(_, certificate)| key.is_of(certificate.public_key()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};

    use super::*;

    fn leaf(chain: &str) -> Vec<u8> {
        Pem::iter_from_buffer(chain.as_bytes()).next().unwrap().unwrap().contents
    }

    fn account() -> Key {
        Key::from_jwk(&serde_json::json!({ "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" }))
            .unwrap()
    }

    fn csr(names: &[&str], key: &KeyPair) -> Vec<u8> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.serialize_request(key).unwrap().der().to_vec()
    }

    #[test]
    fn a_csr_says_its_names_and_its_key_and_is_signed_with_it() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let der = csr(&["web.X.example"], &key);
        let read = Csr::parse(&der, &account()).unwrap();
        assert_eq!(read.names, BTreeSet::from(["web.x.example".to_owned()]));
        assert_eq!(read.key, Csr::parse(&csr(&["api.x.example"], &key), &account()).unwrap().key, "equal for equal keys");
        let mut forged = der.clone();
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(Csr::parse(&forged, &account()).unwrap_err().kind, "badCSR");
        assert_eq!(Csr::parse(&[&der[..], b"x"].concat(), &account()).unwrap_err().kind, "badCSR");
        assert_eq!(Csr::parse(&csr(&["10.0.0.1"], &key), &account()).unwrap_err().kind, "badCSR");
        let weak = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        assert_eq!(Csr::parse(&csr(&["web.x.example"], &weak), &account()).unwrap_err().kind, "badPublicKey");
    }

    #[test]
    fn a_chain_is_taken_only_for_the_names_and_the_key_that_were_asked_for() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let names = BTreeSet::from(["web.x.example".to_owned()]);
        let hash = Csr::parse(&csr(&["web.x.example"], &key), &account()).unwrap().key;
        let chain = CertificateParams::new(vec!["web.x.example".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
        let read = issued(&chain, &names, &hash, 1_700_000_000).unwrap();
        assert_eq!(read.fingerprint, fingerprint(&leaf(&chain)));
        assert!(read.not_before < read.not_after);
        assert!(issued(&chain, &names, "00", 0).unwrap_err().contains("another key"));
        assert!(issued(&chain, &BTreeSet::new(), &hash, 0).unwrap_err().contains("web.x.example"));
        assert!(issued(&chain, &names, &hash, u64::MAX).unwrap_err().contains("ended"));
        assert!(issued("", &names, &hash, 0).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(crate::serve::acme::cases()))]

        #[test]
        fn no_bytes_are_more_than_refused(at in 0usize..400, byte in any::<u8>(), tail in proptest::collection::vec(any::<u8>(), 0..64)) {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
            let mut der = csr(&["web.x.example"], &key);
            let good = Csr::parse(&der, &account()).unwrap();
            let at = at % der.len();
            der[at] ^= byte;
            // What wraps the signed part may be written in more ways than one; nothing that matters is another for it.
            if let Ok(read) = Csr::parse(&der, &account()) {
                prop_assert_eq!(&read.names, &BTreeSet::from(["web.x.example".to_owned()]));
                prop_assert_eq!(&read.key, &good.key, "a CSR that was changed at {}", at);
            }
            der.truncate(at);
            der.extend(&tail);
            // What it is cannot be said; it must not panic.
            drop(Csr::parse(&der, &account()));
            drop(issued(&String::from_utf8_lossy(&tail), &BTreeSet::new(), "", 0));
        }
    }
}
