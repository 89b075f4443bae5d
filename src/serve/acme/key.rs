//! Public keys of clients (RFC 7517, 7518, 8037), and what they have signed. Pure.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
    UnparsedPublicKey,
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::Deserialize;
use x509_parser::{public_key::PublicKey, x509::SubjectPublicKeyInfo};

use crate::bus::acme::Problem;

/// How something was signed; the only four ways there are here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    Es256,
    Es384,
    Rs256,
    EdDsa,
}

impl Algorithm {
    /// Their names in a JWS.
    pub const NAMES: [(&str, Self); 4] =
        [("ES256", Self::Es256), ("ES384", Self::Es384), ("RS256", Self::Rs256), ("EdDSA", Self::EdDsa)];
}

/// A public key that can check signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    material: Material,
    /// The JSON of RFC 7638: required members, in order, without blanks.
    canonical: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Material {
    /// An uncompressed point.
    P256(Vec<u8>),
    P384(Vec<u8>),
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    Ed25519(Vec<u8>),
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(default)]
    crv: String,
    #[serde(default)]
    x: String,
    #[serde(default)]
    y: String,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
}

fn bad(detail: &str) -> Problem {
    Problem::new(400, "badPublicKey", detail)
}

impl Key {
    /// Reads a JWK.
    pub fn from_jwk(jwk: &serde_json::Value) -> Result<Self, Problem> {
        if jwk.get("d").is_some() {
            return Err(bad("this is a private key: make a new one, and keep it to yourself"));
        }
        let jwk = Jwk::deserialize(jwk).map_err(|error| bad(&format!("this is no JWK: {error}")))?;
        let bytes = |text: &str, length: usize| {
            let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok().filter(|bytes| bytes.len() == length);
            bytes.ok_or_else(|| bad("a coordinate of the key is no base64url of its length"))
        };
        let point = |length: usize| Ok::<_, Problem>([&[4][..], &bytes(&jwk.x, length)?, &bytes(&jwk.y, length)?].concat());
        let material = match (jwk.kty.as_str(), jwk.crv.as_str()) {
            ("EC", "P-256") => Material::P256(point(32)?),
            ("EC", "P-384") => Material::P384(point(48)?),
            ("OKP", "Ed25519") => Material::Ed25519(bytes(&jwk.x, 32)?),
            ("RSA", _) => rsa(&jwk)?,
            _ => return Err(bad("use a key of one of these kinds: EC P-256, EC P-384, RSA, OKP Ed25519")),
        };
        // Nothing in these needs escaping: they were decoded as base64url, or are fixed.
        let canonical = match &material {
            Material::P256(_) | Material::P384(_) => {
                format!(r#"{{"crv":"{}","kty":"EC","x":"{}","y":"{}"}}"#, jwk.crv, jwk.x, jwk.y)
            }
            Material::Ed25519(_) => format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, jwk.x),
            Material::Rsa { .. } => format!(r#"{{"e":"{}","kty":"RSA","n":"{}"}}"#, jwk.e, jwk.n),
        };
        Ok(Self { material, canonical })
    }

    /// Reads what [`Key::canonical`] gave.
    pub fn from_canonical(text: &str) -> Result<Self, Problem> {
        let jwk = serde_json::from_str(text).map_err(|_| bad("the account's key cannot be read"))?;
        Self::from_jwk(&jwk)
    }

    /// The JSON that says which key this is; equal for equal keys.
    pub fn canonical(&self) -> &str {
        &self.canonical
    }

    /// Whether the owner of this key has signed `message`.
    pub fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> Result<(), Problem> {
        let verified = match (algorithm, &self.material) {
            (Algorithm::Es256, Material::P256(point)) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature)
            }
            (Algorithm::Es384, Material::P384(point)) => {
                UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point).verify(message, signature)
            }
            (Algorithm::EdDsa, Material::Ed25519(key)) => UnparsedPublicKey::new(&ED25519, key).verify(message, signature),
            (Algorithm::Rs256, Material::Rsa { n, e }) => {
                RsaPublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
            }
            _ => return Err(Problem::new(400, "malformed", "the algorithm is not one for this kind of key")),
        };
        verified.map_err(|_| Problem::new(400, "malformed", "the signature is not one of this key"))
    }

    /// Whether this is the key in a certificate.
    pub fn is_of(&self, info: &SubjectPublicKeyInfo<'_>) -> bool {
        match (&self.material, info.parsed()) {
            (Material::P256(point) | Material::P384(point), Ok(PublicKey::EC(other))) => other.data() == point,
            (Material::Rsa { n, e }, Ok(PublicKey::RSA(other))) => {
                let bare = |bytes: &[u8]| bytes.iter().skip_while(|byte| **byte == 0).copied().collect::<Vec<u8>>();
                bare(other.modulus) == *n && bare(other.exponent) == *e
            }
            (Material::Ed25519(key), _) => info.subject_public_key.data.as_ref() == key.as_slice(),
            _ => false,
        }
    }
}

fn rsa(jwk: &Jwk) -> Result<Material, Problem> {
    let bytes = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| bad("n and e of an RSA key are base64url"));
    let (n, e) = (bytes(&jwk.n)?, bytes(&jwk.e)?);
    // With a large exponent a signature takes seconds to check.
    let fits = (256..=512).contains(&n.len()) && n[0] & 0x80 != 0 && (1..=4).contains(&e.len()) && e[0] != 0;
    if fits { Ok(Material::Rsa { n, e }) } else { Err(bad("use an RSA key of 2048 to 4096 bits, with a small exponent")) }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn a_thumbprint_is_the_one_of_rfc_7638() {
        let n = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";
        let jwk = serde_json::json!({ "kty": "RSA", "n": n, "e": "AQAB", "alg": "RS256", "kid": "2011-04-29" });
        let key = Key::from_jwk(&jwk).unwrap();
        let thumbprint = BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(key.canonical()));
        assert_eq!(thumbprint, "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
        assert_eq!(Key::from_canonical(key.canonical()), Ok(key));
    }

    #[test]
    fn the_signature_of_rfc_8037_is_good_and_no_other() {
        let key = Key::from_jwk(
            &serde_json::json!({ "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" }),
        )
        .unwrap();
        let message = b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
        let signature =
            BASE64_URL_SAFE_NO_PAD.decode("hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg");
        let mut signature = signature.unwrap();
        assert_eq!(key.verify(Algorithm::EdDsa, message, &signature), Ok(()));
        assert_eq!(key.verify(Algorithm::Es256, message, &signature).unwrap_err().kind, "malformed");
        signature[7] ^= 1;
        assert!(key.verify(Algorithm::EdDsa, message, &signature).is_err());
    }

    #[test]
    fn a_good_signature_of_each_kind_is_good_and_no_other() {
        use aws_lc_rs::{
            encoding::AsDer,
            rand::SystemRandom,
            rsa::{KeyPair as RsaPair, KeySize},
            signature::{
                ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
                RSA_PKCS1_SHA256,
            },
        };

        let (random, message) = (SystemRandom::new(), b"what was signed");
        let text = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        let point = |name: &str, public: &[u8]| {
            let (x, y) = public[1..].split_at((public.len() - 1) / 2);
            serde_json::json!({ "kty": "EC", "crv": name, "x": text(x), "y": text(y) })
        };
        let p256 = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let p384 = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
        let edwards = Ed25519KeyPair::generate().unwrap();
        let rsa = RsaPair::generate(KeySize::Rsa2048).unwrap();
        let der: aws_lc_rs::encoding::PublicKeyX509Der<'_> = rsa.public_key().as_der().unwrap();
        let (_, spki) = <SubjectPublicKeyInfo<'_> as x509_parser::prelude::FromDer<'_, _>>::from_der(der.as_ref()).unwrap();
        let PublicKey::RSA(parts) = spki.parsed().unwrap() else { panic!("no RSA key") };
        let modulus = parts.modulus.strip_prefix(&[0]).unwrap_or(parts.modulus);
        let mut of_rsa = vec![0; rsa.public_modulus_len()];
        rsa.sign(&RSA_PKCS1_SHA256, &random, message, &mut of_rsa).unwrap();
        let table = [
            (Algorithm::Es256, point("P-256", p256.public_key().as_ref()), p256.sign(&random, message).unwrap().as_ref().to_vec()),
            (Algorithm::Es384, point("P-384", p384.public_key().as_ref()), p384.sign(&random, message).unwrap().as_ref().to_vec()),
            (Algorithm::Rs256, serde_json::json!({ "kty": "RSA", "n": text(modulus), "e": text(parts.exponent) }), of_rsa),
            (
                Algorithm::EdDsa,
                serde_json::json!({ "kty": "OKP", "crv": "Ed25519", "x": text(edwards.public_key().as_ref()) }),
                edwards.sign(message).as_ref().to_vec(),
            ),
        ];
        for (algorithm, jwk, mut signature) in table {
            let key = Key::from_jwk(&jwk).unwrap();
            assert_eq!(key.verify(algorithm, message, &signature), Ok(()), "{algorithm:?}");
            for (_, other) in Algorithm::NAMES.iter().filter(|(_, other)| *other != algorithm) {
                assert!(key.verify(*other, message, &signature).is_err(), "{algorithm:?} as {other:?}");
            }
            assert!(key.verify(algorithm, b"what was not", &signature).is_err(), "{algorithm:?}");
            signature[9] ^= 1;
            assert!(key.verify(algorithm, message, &signature).is_err(), "{algorithm:?}");
        }
    }

    #[test]
    fn keys_that_are_weak_slow_or_private_are_refused() {
        let n = |bytes: usize| BASE64_URL_SAFE_NO_PAD.encode(vec![0xff; bytes]);
        let table = [
            serde_json::json!({ "kty": "RSA", "n": n(128), "e": "AQAB" }),
            serde_json::json!({ "kty": "RSA", "n": n(1024), "e": "AQAB" }),
            serde_json::json!({ "kty": "RSA", "n": n(256), "e": n(256) }),
            serde_json::json!({ "kty": "EC", "crv": "P-256", "x": n(32), "y": n(31) }),
            serde_json::json!({ "kty": "EC", "crv": "secp256k1", "x": n(32), "y": n(32) }),
            serde_json::json!({ "kty": "oct", "k": n(32) }),
            serde_json::json!({ "kty": "OKP", "crv": "Ed25519", "x": n(32), "d": n(32) }),
            serde_json::json!([]),
        ];
        for jwk in table {
            assert_eq!(Key::from_jwk(&jwk).unwrap_err().kind, "badPublicKey", "{jwk}");
        }
    }
}
