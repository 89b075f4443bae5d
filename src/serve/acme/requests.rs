//! The payloads of RFC 8555 that clients send, and the checks that need nobody's word. Fields that are not known are passed over, as the
//! RFC asks: clients send empty and zero ones. Pure.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::bus::acme::Problem;

/// To make or find an account.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NewAccount {
    pub contact: Option<Vec<String>>,
    pub only_return_existing: bool,
}

/// To change an account.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Update {
    pub contact: Option<Vec<String>>,
    pub status: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewOrder {
    pub identifiers: Vec<Identifier>,
    #[serde(default)]
    pub not_before: Option<String>,
    #[serde(default)]
    pub not_after: Option<String>,
    #[serde(default)]
    pub replaces: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct Identifier {
    #[serde(rename = "type")]
    pub kind: String,
    pub value: String,
}

#[derive(Debug, Deserialize)]
pub struct Finalize {
    pub csr: String,
}

#[derive(Debug, Deserialize)]
pub struct Revoke {
    pub certificate: String,
    #[serde(default)]
    pub reason: Option<u8>,
}

/// The payload of the inner JWS of a key change.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyChange {
    pub account: String,
    pub old_key: serde_json::Value,
}

/// The most names that an order may have.
const NAMES: usize = 100;
/// The most contacts of an account.
const CONTACTS: usize = 8;

/// Checks addresses that a client wants to be reached at; nobody writes to them but the operator.
pub fn contacts(contacts: Option<Vec<String>>) -> Result<Vec<String>, Problem> {
    let contacts = contacts.unwrap_or_default();
    if contacts.len() > CONTACTS {
        return Err(Problem::new(400, "invalidContact", format!("at most {CONTACTS} contacts")));
    }
    for contact in &contacts {
        let Some(address) = contact.strip_prefix("mailto:") else {
            return Err(Problem::new(400, "unsupportedContact", format!("{contact:.80} is no mailto: address")));
        };
        let plain = address.len() <= 200 && address.bytes().all(|byte| byte.is_ascii_graphic() && !b",?".contains(&byte));
        if !plain || !address.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty()) {
            return Err(Problem::new(400, "invalidContact", format!("{contact:.80} is no address of one person")));
        }
    }
    Ok(contacts)
}

impl NewOrder {
    /// The names that are asked for, in lower case. Whether the client may have them is for the agent to say.
    pub fn names(&self) -> Result<BTreeSet<String>, Problem> {
        // Go's clients send the zero of time for "none".
        let set = |time: &Option<String>| time.as_ref().is_some_and(|time| !time.is_empty() && !time.starts_with("0001-"));
        if set(&self.not_before) || set(&self.not_after) {
            return Err(Problem::new(
                400,
                "malformed",
                "the CA says how long a certificate lasts: leave notBefore and notAfter away",
            ));
        }
        if self.identifiers.len() > NAMES {
            return Err(Problem::new(400, "malformed", format!("at most {NAMES} identifiers")));
        }
        if let Some(other) = self.identifiers.iter().find(|identifier| identifier.kind != "dns") {
            let detail = format!("certificates are for DNS names, not for {:.40}", other.kind);
            return Err(Problem::new(400, "unsupportedIdentifier", detail));
        }
        let name = |identifier: &Identifier| {
            let name = identifier.value.to_ascii_lowercase();
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_*".contains(&byte);
            if name.is_empty() || name.len() > 253 || !name.bytes().all(plain) {
                return Err(Problem::new(400, "rejectedIdentifier", format!("{:.80?} is no DNS name", identifier.value)));
            }
            Ok(name)
        };
        self.identifiers.iter().map(name).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_real_clients_send_is_understood() {
        let caddy = json!({ "status": "", "expires": "0001-01-01T00:00:00Z", "identifiers": [{ "type": "dns", "value": "Web.x.example" }],
            "notBefore": "0001-01-01T00:00:00Z", "notAfter": "0001-01-01T00:00:00Z", "authorizations": null, "finalize": "", "certificate": "" });
        let order: NewOrder = serde_json::from_value(caddy).unwrap();
        assert_eq!(order.names().unwrap(), BTreeSet::from(["web.x.example".to_owned()]));
        let account: NewAccount =
            serde_json::from_value(json!({ "contact": null, "termsOfServiceAgreed": true, "orders": "" })).unwrap();
        assert!(!account.only_return_existing && contacts(account.contact).unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_its_type() {
        let order = |kind: &str, value: &str| {
            let order: NewOrder = serde_json::from_value(json!({ "identifiers": [{ "type": kind, "value": value }] })).unwrap();
            order.names().map_err(|problem| problem.kind)
        };
        assert_eq!(order("ip", "10.0.0.1"), Err("unsupportedIdentifier".to_owned()));
        assert_eq!(order("dns", "a b"), Err("rejectedIdentifier".to_owned()));
        assert_eq!(order("dns", ""), Err("rejectedIdentifier".to_owned()));
        assert_eq!(order("dns", "bücher.example"), Err("rejectedIdentifier".to_owned()));
        let contact = |text: &str| contacts(Some(vec![text.to_owned()])).map_err(|problem| problem.kind);
        assert!(contact("mailto:ann@x.example").is_ok());
        assert_eq!(contact("tel:112"), Err("unsupportedContact".to_owned()));
        for wrong in ["mailto:", "mailto:a@x,b@x", "mailto:a@x?bcc=b@x", "mailto:@x", "mailto:a\n@x"] {
            assert_eq!(contact(wrong), Err("invalidContact".to_owned()), "{wrong}");
        }
        let late: NewOrder = serde_json::from_value(json!({ "identifiers": [], "notAfter": "2030-01-01T00:00:00Z" })).unwrap();
        assert_eq!(late.names().unwrap_err().kind, "malformed");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(crate::serve::acme::cases()))]

        #[test]
        fn any_order_is_names_or_a_problem(kind in ".{0,5}", value in ".{0,300}", contact in ".{0,60}", text in ".{0,200}") {
            let document = json!({ "identifiers": [{ "type": "dns", "value": value }, { "type": kind, "value": value }], "contact": [contact] });
            let order: NewOrder = serde_json::from_value(document).unwrap();
            if let Ok(names) = order.names() {
                prop_assert!(names.iter().all(|name| name.is_ascii() && !name.contains('/')));
            }
            drop(contacts(Some(vec![contact.clone(), format!("mailto:{contact}")])));
            drop(serde_json::from_str::<NewOrder>(&text));
        }
    }
}
