//! Names that are not of this host's zone: a CA finds its proof for them in the zone all the same, if the tenant leads it there by a CNAME.

use crate::{
    bus::acme::{Order, Problem},
    serve::dns::Names,
    spec::domain,
};

/// Refuses an order for names of which it is certain that the CA would not be led here, and says what to set. What cannot be looked up is
/// left to the CA.
pub async fn led_here(names: &Names, order: &Order) -> Result<(), Problem> {
    let mut missing = Vec::new();
    for (name, alias) in &order.aliases {
        let at = format!("_acme-challenge.{name}");
        if domain::delegated(alias, &names.leads_to(&at).await) == Some(false) {
            let detail = format!("a CA that looks for {at} is not led to this host: set {at}. CNAME {alias}. and order again");
            missing.push((name.clone(), Problem::new(400, "dns", detail)));
        }
    }
    match missing.first() {
        None => Ok(()),
        Some((_, first)) => Err(Problem { names: missing.clone(), ..first.clone() }),
    }
}
