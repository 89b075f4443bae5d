//! Requests of ACME clients, for a fuzzer: what `serve/fuzz.rs` says.

use std::{collections::BTreeSet, sync::LazyLock};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use super::{
    csr::{self, Csr},
    jws::{Jws, Signer},
    key::Key,
    requests::{Finalize, KeyChange, NewAccount, NewOrder, Revoke, Update, contacts},
};

static ACCOUNT: LazyLock<Key> = LazyLock::new(|| {
    Key::from_canonical(r#"{"crv":"Ed25519","kty":"OKP","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#).expect("a key")
});

/// A request as it is signed; one that begins with a dot is a header, a line's end, and a payload, which are put into one. Nobody
/// who has no key has signed it.
pub fn jws(bytes: &[u8]) {
    let read = match bytes.strip_prefix(b".") {
        None => Jws::parse(bytes),
        Some(parts) => {
            let (header, payload) = parts.split_at(parts.iter().position(|byte| *byte == b'\n').unwrap_or(parts.len()));
            let [header, payload] = [header, payload].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part));
            Jws::parse(format!(r#"{{"protected":"{header}","payload":"{payload}","signature":"AAAA"}}"#).as_bytes())
        }
    };
    match read {
        Ok(jws) => {
            assert!(jws.verify(&ACCOUNT).is_err(), "with a key that nobody here has");
            if let Signer::Key(key) = &jws.signer {
                assert!(jws.verify(key).is_err() || !bytes.starts_with(b"."), "with a signature of three bytes");
                assert_eq!(Key::from_canonical(key.canonical()).as_ref(), Ok(&**key));
            }
        }
        Err(problem) => assert!(matches!(problem.status, 400..=499) && !problem.detail.is_empty(), "{problem}"),
    }
}

/// A payload of a request: names that are asked for can stand in a certificate, addresses in a letter's head.
pub fn order(bytes: &[u8]) {
    if let Ok(order) = serde_json::from_slice::<NewOrder>(bytes)
        && let Ok(names) = order.names()
    {
        let letter = |byte: u8| byte.is_ascii_graphic() && !byte.is_ascii_uppercase() && byte != b'/';
        assert!(names.len() <= order.identifiers.len() && names.iter().all(|name| name.bytes().all(letter)), "{names:?}");
    }
    if let Ok(account) = serde_json::from_slice::<NewAccount>(bytes)
        && let Ok(contacts) = contacts(account.contact)
    {
        assert!(contacts.iter().all(|contact| contact.bytes().all(|byte| byte.is_ascii_graphic())), "{contacts:?}");
    }
    drop(serde_json::from_slice::<Update>(bytes));
    if let Ok(change) = serde_json::from_slice::<KeyChange>(bytes) {
        drop(Key::from_jwk(&change.old_key));
    }
    let der = match (serde_json::from_slice::<Finalize>(bytes), serde_json::from_slice::<Revoke>(bytes)) {
        (Ok(finalize), _) => finalize.csr,
        (_, Ok(revoke)) => revoke.certificate,
        _ => return,
    };
    if let Ok(der) = BASE64_URL_SAFE_NO_PAD.decode(der) {
        csr(&der);
    }
}

/// What a client wants to be signed, and the same bytes as what a CA has signed.
pub fn csr(bytes: &[u8]) {
    match Csr::parse(bytes, &ACCOUNT) {
        Ok(csr) => {
            assert!(csr.names.iter().all(|name| !name.bytes().any(|byte| byte.is_ascii_uppercase())));
            assert_eq!(csr.key.len(), 64, "a hash");
        }
        Err(problem) => assert!(matches!(problem.kind.as_str(), "badCSR" | "badPublicKey"), "{problem}"),
    }
    assert!(!csr::is_key_of(&ACCOUNT, bytes), "nobody has certified that key");
    assert!(csr::issued(&String::from_utf8_lossy(bytes), &BTreeSet::new(), "no hash", 0).is_err());
}
