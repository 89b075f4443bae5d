//! Waiting for a guest that was started.

use std::time::Duration;

use super::{Shared, chain};
use crate::{
    build::Builder,
    host::{Guest, Host},
    spec::name::SetId,
};

/// Where to look if one of the units beside the virtual machine's does not start.
const HELPERS: &str = "its TPM, its store or its vsock; this host's operator sees which: systemctl list-units --failed 'seed-*'";

/// Waits until a guest that was just started is ready. Says each step through `say`; fails with the reason.
pub(super) async fn wait_for_guest<H: Host, B: Builder>(
    shared: &Shared<H, B>,
    id: &SetId,
    mut say: impl FnMut(&str),
) -> Result<Guest, String> {
    let mut changed = shared.changed.subscribe();
    let mut said = String::new();
    let limit = Duration::from_secs(u64::from(shared.settings.layout.boot_timeout_secs) + 30);
    let deadline = tokio::time::Instant::now() + limit;
    let mut idle_since = None;
    loop {
        changed.mark_unchanged();
        let guests = shared.host.inspect(std::slice::from_ref(id)).await.map_err(|error| chain(&error))?;
        let guest = guests.into_iter().next().unwrap_or_default();
        if guest.status_text != said && guest.active_state == "activating" {
            said.clone_from(&guest.status_text);
            say(&said);
        }
        match guest.active_state.as_str() {
            "active" => return Ok(guest),
            "failed" => return Err(failure(&guest)),
            // The first boot of this version ended before it was ready: systemd would try again, but the answer is known.
            "activating" if guest.sub_state.starts_with("auto-restart") || guest.restarts > 0 => return Err(failure(&guest)),
            "inactive" if guest.result != "success" && !guest.result.is_empty() => return Err(failure(&guest)),
            _ => {}
        }
        // While its helpers start, the unit is still inactive; for longer only if one of them does not, or somebody stopped it.
        let now = tokio::time::Instant::now();
        let idle = *idle_since.get_or_insert(now);
        match guest.active_state.as_str() {
            // systemd would wait for the helpers; one that has failed is all there is to wait for.
            "inactive" if now - idle > Duration::from_secs(2) && helper_failed(shared, id).await => {
                return Err(format!("{}: {}", reason("dependency"), HELPERS));
            }
            "inactive" | "deactivating" if now - idle > Duration::from_secs(20) => return Err(failure(&guest)),
            "inactive" | "deactivating" => {}
            _ => idle_since = None,
        }
        if now >= deadline {
            return Err(format!("not ready after {} s", limit.as_secs()));
        }
        tokio::select! {
            // Cancel-safe: the turn is compared, not consumed.
            _ = changed.changed() => {}
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

/// Whether one of the units that a guest needs is what keeps it from starting.
async fn helper_failed<H: Host, B: Builder>(shared: &Shared<H, B>, id: &SetId) -> bool {
    // What cannot be looked at now is looked at again, or the time is up.
    let observed = shared.host.observe().await;
    observed.is_ok_and(|observed| observed.instances.get(id).is_some_and(|instance| instance.helper_failed))
}

fn failure(guest: &Guest) -> String {
    let what = reason(&guest.result);
    if guest.status_text.is_empty() { what.to_owned() } else { format!("{what}; it had come as far as: {}", guest.status_text) }
}

/// Why a vm unit is not active, from systemd's word for it.
pub(super) fn reason(result: &str) -> &'static str {
    match result {
        "timeout" => "the guest did not get ready in time",
        "protocol" => "the guest stopped before it was ready (it panicked, or powered off)",
        "oom-kill" => "it ran out of memory: take a larger seed.size",
        "exit-code" | "signal" | "core-dump" => "the virtual machine ended before the guest was ready",
        "start-limit-hit" => "it failed too often in a short time",
        "dependency" => "a helper of the virtual machine did not start",
        _ => "the guest did not get ready",
    }
}
