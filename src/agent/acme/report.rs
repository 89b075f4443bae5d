//! What came of asking the CA, as changes to the ledger. Pure.

use super::budget;
use crate::{
    bus::acme::Report,
    spec::acme::{Certificate, Ledger, Order, Stage, Work},
    state::{Batch, Change},
};

/// The changes that a report makes, or why it cannot be about anything that is under way.
pub fn apply(ledger: &Ledger, report: Report, wanted: impl Fn(&Order) -> bool, now: u64) -> Result<Batch, String> {
    let working = |id: &str| -> Result<(Order, Work), String> {
        let order = ledger.orders.get(id).ok_or_else(|| format!("there is no order {id}"))?;
        match &order.stage {
            Stage::Working(work) => Ok((order.clone(), work.clone())),
            _ => Err(format!("order {id} is not being worked on")),
        }
    };
    let put = |mut order: Order, stage: Stage| {
        order.stage = stage;
        Change::AcmeOrder(order.id.clone(), Some(order))
    };
    let certificate = |id: &str| ledger.certificates.get(id).cloned().ok_or_else(|| format!("there is no certificate {id}"));
    let keep = |certificate: Certificate| vec![Change::AcmeCertificate(certificate.id.clone(), Some(certificate))];
    Ok(match report {
        Report::Registering => {
            let lately = budget::register(&ledger.registrations, now)?;
            vec![Change::AcmeRegistrations(Some(lately))]
        }
        Report::NotRegistered => {
            let lately = ledger.registrations.split_last().map(|(_, before)| before.to_vec());
            vec![Change::AcmeRegistrations(lately)]
        }
        Report::Begun { order, upstream } => {
            let (order, mut work) = working(&order)?;
            work.upstream = Some(upstream);
            work.challenges.clear();
            vec![put(order, Stage::Working(work))]
        }
        Report::Challenge { order, name, value } => {
            let (order, mut work) = working(&order)?;
            let of = name.strip_prefix("_acme-challenge.").filter(|of| order.names.contains(*of));
            let of = of.ok_or_else(|| format!("{name} is not what order {} is about", order.id))?;
            if !wanted(&order) {
                return Err(format!("{of} is no longer the name of what it was ordered for"));
            }
            // A CA is led there by a CNAME that the tenant has set.
            let name = order.aliases.get(of).cloned().unwrap_or_else(|| name.clone());
            // What a CA looks for is a SHA-256 in base64url.
            if value.len() != 43 || !value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_') {
                return Err(format!("{value:?} is no answer to a challenge"));
            }
            work.challenges.entry(name).or_default().insert(value);
            vec![put(order, Stage::Working(work))]
        }
        Report::Failed { order, problem } => {
            let (order, _) = working(&order)?;
            tracing::warn!(holder = %order.holder, %problem, "the CA gave no certificate");
            vec![put(order, Stage::Invalid(now, problem))]
        }
        Report::Issued { order, chain, fingerprint, ari, not_before, not_after } => {
            let (order, work) = working(&order)?;
            tracing::info!(holder = %order.holder, not_after, "a certificate was issued");
            let certificate = Certificate {
                id: order.id.clone(),
                holder: order.holder.clone(),
                names: order.names.clone(),
                key: work.key,
                chain,
                fingerprint,
                ari,
                not_before,
                not_after,
                window: None,
                revoked: false,
            };
            let id = certificate.id.clone();
            let mut batch = keep(certificate);
            batch.push(put(order, Stage::Valid(id)));
            batch
        }
        Report::Revoked { certificate: id } => {
            let mut certificate = certificate(&id)?;
            certificate.revoked = true;
            keep(certificate)
        }
        Report::Window { certificate: id, window } => {
            let mut certificate = certificate(&id)?;
            certificate.window = Some(window);
            keep(certificate)
        }
    })
}
