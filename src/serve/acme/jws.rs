//! Requests as they are signed: a flattened JWS (RFC 7515) with the header of RFC 8555, section 6.2. Pure: whether the nonce is one of ours
//! and the address the one that was asked is for others to check.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::Deserialize;

use super::key::{Algorithm, Key};
use crate::bus::acme::Problem;

/// A request that was taken apart; its signature is not checked yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jws {
    pub algorithm: Algorithm,
    pub nonce: Option<String>,
    pub url: String,
    pub signer: Signer,
    pub payload: Vec<u8>,
    signed: String,
    signature: Vec<u8>,
}

/// Who says to have signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signer {
    /// The owner of this key.
    Key(Box<Key>),
    /// The account at this address.
    Account(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    protected: String,
    payload: String,
    signature: String,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    nonce: Option<String>,
    url: Option<String>,
    jwk: Option<serde_json::Value>,
    kid: Option<String>,
    crit: Option<serde_json::Value>,
}

fn malformed(detail: impl Into<String>) -> Problem {
    Problem::new(400, "malformed", detail)
}

impl Jws {
    /// Takes a body apart.
    pub fn parse(body: &[u8]) -> Result<Self, Problem> {
        let envelope: Envelope =
            serde_json::from_slice(body).map_err(|error| malformed(format!("the body is no flattened JWS: {error}")))?;
        Self::open(envelope)
    }

    fn open(envelope: Envelope) -> Result<Self, Problem> {
        let decode =
            |what: &str, text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| malformed(format!("{what} is no base64url")));
        let header = decode("the protected header", &envelope.protected)?;
        let header: Header =
            serde_json::from_slice(&header).map_err(|error| malformed(format!("the protected header: {error}")))?;
        let algorithm = Algorithm::NAMES.iter().find(|(name, _)| *name == header.alg).map(|(_, algorithm)| *algorithm);
        let algorithm = algorithm.ok_or_else(|| {
            let names = Algorithm::NAMES.map(|(name, _)| name).join(", ");
            Problem::new(400, "badSignatureAlgorithm", format!("sign with one of {names}"))
        })?;
        if header.crit.is_some() {
            return Err(malformed("no extension of JWS is understood here"));
        }
        let signer = match (header.jwk, header.kid) {
            (Some(jwk), None) => Signer::Key(Box::new(Key::from_jwk(&jwk)?)),
            (None, Some(kid)) => Signer::Account(kid),
            _ => return Err(malformed("the protected header needs either jwk or kid")),
        };
        Ok(Self {
            algorithm,
            nonce: header.nonce,
            url: header.url.ok_or_else(|| malformed("the protected header has no url"))?,
            signer,
            payload: decode("the payload", &envelope.payload)?,
            signature: decode("the signature", &envelope.signature)?,
            signed: format!("{}.{}", envelope.protected, envelope.payload),
        })
    }

    /// Whether `key` has signed it.
    pub fn verify(&self, key: &Key) -> Result<(), Problem> {
        key.verify(self.algorithm, self.signed.as_bytes(), &self.signature)
    }

    /// What it says, as a document.
    pub fn document<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Problem> {
        serde_json::from_slice(&self.payload).map_err(|error| malformed(format!("the payload: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn body(header: &Value, payload: &str) -> Vec<u8> {
        let encode = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
        json!({ "protected": encode(&header.to_string()), "payload": encode(payload), "signature": encode("x") }).to_string().into()
    }

    #[test]
    fn what_the_rfc_forbids_is_refused_by_its_type() {
        let key = json!({ "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" });
        let good = json!({ "alg": "EdDSA", "nonce": "n", "url": "u", "jwk": key });
        let parsed = Jws::parse(&body(&good, "{}")).unwrap();
        assert_eq!((parsed.nonce.as_deref(), parsed.url.as_str(), parsed.payload.as_slice()), (Some("n"), "u", &b"{}"[..]));
        let with = |name: &str, value: Value| {
            let mut header = good.clone();
            header[name] = value;
            Jws::parse(&body(&header, "")).unwrap_err().kind
        };
        assert_eq!(with("alg", json!("none")), "badSignatureAlgorithm");
        assert_eq!(with("alg", json!("HS256")), "badSignatureAlgorithm");
        assert_eq!(with("kid", json!("http://x/1")), "malformed");
        assert_eq!(with("jwk", Value::Null), "malformed");
        assert_eq!(with("crit", json!(["b64"])), "malformed");
        assert_eq!(with("url", Value::Null), "malformed");
        assert_eq!(with("jwk", json!({ "kty": "oct" })), "badPublicKey");
        for wrong in ["", "[]", "{}", r#"{"protected":"","payload":"","signature":"","header":{}}"#, r#"{"signatures":[]}"#] {
            assert_eq!(Jws::parse(wrong.as_bytes()).unwrap_err().kind, "malformed", "{wrong}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(crate::serve::acme::cases()))]

        #[test]
        fn no_body_is_more_than_refused(body in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(Jws::parse(&body).is_err());
        }

        /// Bodies that are nearly right: any header of JSON values, any payload, any signature.
        #[test]
        fn no_header_is_more_than_refused(
            alg in prop_oneof![Just("ES256"), Just("ES384"), Just("RS256"), Just("EdDSA"), Just("none")],
            kty in prop_oneof![Just("EC"), Just("RSA"), Just("OKP")],
            crv in prop_oneof![Just("P-256"), Just("P-384"), Just("Ed25519"), Just("")],
            x in proptest::collection::vec(any::<u8>(), 0..70),
            y in proptest::collection::vec(any::<u8>(), 0..70),
            n in proptest::collection::vec(any::<u8>(), 0..600),
            payload in ".{0,80}",
        ) {
            let text = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
            let jwk = json!({ "kty": kty, "crv": crv, "x": text(&x), "y": text(&y), "n": text(&n), "e": text(&y) });
            let body = body(&json!({ "alg": alg, "nonce": "n", "url": "u", "jwk": jwk }), &payload);
            if let Ok(jws) = Jws::parse(&body) {
                let Signer::Key(key) = &jws.signer else { panic!("there was a jwk") };
                prop_assert!(jws.verify(key).is_err());
                prop_assert_eq!(Key::from_canonical(key.canonical()), Ok((**key).clone()));
            }
        }
    }
}
