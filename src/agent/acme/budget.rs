//! How often the CA may be asked: below every limit that Let's Encrypt publishes, and such that no tenant spends another's share. Counted
//! in the orders that are remembered, so that a restart forgets nothing. Pure.
//!
//! | limit of Let's Encrypt | here |
//! |---|---|
//! | 50 certificates for new names of a registered domain in 7 days | [`Limits::per_week`] |
//! | 5 certificates for the same names in 7 days | 4 |
//! | 5 failed validations of a name in an hour | 4 |
//! | 300 orders of an account in 3 hours | 240 |
//! | 10 accounts of an address in 3 hours | 5 |
//!
//! The last quarter of what all share is kept for namespaces that have had nothing of it yet, and a renewal needs nothing of the week's.
//! The certificate of the host itself needs nothing of it either: tenants cannot spend it, and four a week fit between 40 and 50.

use std::collections::BTreeSet;

use crate::spec::acme::{Holder, Ledger, Order, Problem, Stage};

const HOUR: u64 = 3600;
const WEEK: u64 = 7 * 24 * HOUR;
/// For the same names in a week.
const SAME: usize = 4;
/// Failures of a name in an hour.
const FAILURES: usize = 4;
/// In three hours, of all.
const BURST: usize = 240;
/// In three hours, of one namespace.
const BURST_OF_ONE: usize = 24;

/// Accounts of this host in three hours; it needs one in its life.
const REGISTRATIONS: usize = 5;

/// How long the CA is left alone by whom it told that they ask too much.
const QUIET: u64 = HOUR;
/// By all, once it has told so many namespaces: some of its limits are for names and domains, which somebody may have used up elsewhere.
const QUIET_FOR_ALL: usize = 3;

/// What the operator allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Certificates for new names in 7 days, of all namespaces.
    pub per_week: usize,
    /// The same of one namespace.
    pub per_namespace_week: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { per_week: 40, per_namespace_week: 10 }
    }
}

/// Whether the CA has given a certificate for exactly these names before.
pub fn is_renewal(ledger: &Ledger, names: &BTreeSet<String>) -> bool {
    ledger.certificates.values().any(|certificate| certificate.names == *names)
}

/// Refuses an order for which nothing is left, and says when there will be.
pub fn check(ledger: &Ledger, holder: &Holder, names: &BTreeSet<String>, limits: Limits, now: u64) -> Result<(), Problem> {
    let begun = |secs: u64| {
        let since = now.saturating_sub(secs);
        ledger.orders.values().filter_map(move |order| order.begun.filter(|at| *at > since).map(|at| (at, order)))
    };
    let own = |order: &Order| order.holder.namespace() == holder.namespace();
    let shown = || names.iter().cloned().collect::<Vec<_>>().join(", ");

    // What failed is no certificate. Of tenants it counts all the same; a host whose domain was not delegated yet is not kept waiting for a week.
    let spent = |order: &Order| *holder != Holder::Host || !matches!(order.stage, Stage::Invalid(..));
    let same = begun(WEEK).filter(|(_, order)| order.names == *names && spent(order));
    let same: Vec<u64> = same.map(|(at, _)| at).collect();
    full(&same, SAME, WEEK, now).map_err(|wait| {
        let what =
            format!("{SAME} certificates for {} were asked for in 7 days: keep the key and certificate over restarts", shown());
        Problem::limited(what, wait)
    })?;
    quiet(ledger, holder, now).map_err(|wait| Problem::limited("the CA wants this host to wait", wait))?;
    let failed = ledger.orders.values().filter_map(|order| match &order.stage {
        Stage::Invalid(at, _) if order.begun.is_some() && !order.names.is_disjoint(names) => Some(*at),
        _ => None,
    });
    let failed: Vec<u64> = failed.filter(|at| *at > now.saturating_sub(HOUR)).collect();
    full(&failed, FAILURES, HOUR, now)
        .map_err(|wait| Problem::limited(format!("{} failed {FAILURES} times within an hour", shown()), wait))?;
    if *holder == Holder::Host {
        return Ok(());
    }

    let (all, mine): (Vec<u64>, Vec<u64>) = shares(begun(3 * HOUR), own);
    let everybody = "this host has asked its CA as often as it may for the moment";
    full(&mine, BURST_OF_ONE, 3 * HOUR, now)
        .map_err(|wait| Problem::limited(format!("this namespace had {BURST_OF_ONE} orders in 3 hours"), wait))?;
    full(&all, shared(BURST, &mine), 3 * HOUR, now).map_err(|wait| Problem::limited(everybody, wait))?;
    if is_renewal(ledger, names) {
        return Ok(());
    }
    let (all, mine) = shares(begun(WEEK).filter(|(_, order)| !order.renewal), own);
    let most = limits.per_namespace_week;
    full(&mine, most, WEEK, now)
        .map_err(|wait| Problem::limited(format!("this namespace had {most} certificates for new names in 7 days"), wait))?;
    full(&all, shared(limits.per_week, &mine), WEEK, now).map_err(|wait| Problem::limited(everybody, wait))
}

/// The registrations to remember with one of now, or why there may be none.
pub fn register(registrations: &[u64], now: u64) -> Result<Vec<u64>, String> {
    let lately = registrations.iter().copied().filter(|at| *at > now.saturating_sub(3 * HOUR));
    let mut lately: Vec<u64> = lately.collect();
    full(&lately, REGISTRATIONS, 3 * HOUR, now).map_err(|wait| {
        format!(
            "{REGISTRATIONS} accounts were made at the CA in 3 hours, the next may be in {} minutes: see why this one is lost each time; \
             /var/lib/seed/acme has to be kept over restarts, and the user seed has to be able to write there",
            wait.div_ceil(60)
        )
    })?;
    lately.push(now);
    Ok(lately)
}

/// Whether the CA has said within the hour that `holder` asks too much, or all do; and until when.
fn quiet(ledger: &Ledger, holder: &Holder, now: u64) -> Result<(), u64> {
    let told = ledger.orders.values().filter_map(|order| match &order.stage {
        Stage::Invalid(at, problem) if problem.kind == "rateLimited" && *at + QUIET > now => Some((order.holder.namespace(), *at)),
        _ => None,
    });
    let told: Vec<_> = told.collect();
    let all = told.iter().map(|(namespace, _)| namespace).collect::<BTreeSet<_>>().len() >= QUIET_FOR_ALL;
    let last = told.iter().filter(|(namespace, _)| all || *namespace == holder.namespace()).map(|(_, at)| *at).max();
    last.map_or(Ok(()), |at| Err((at + QUIET).saturating_sub(now)))
}

fn shares<'a>(begun: impl Iterator<Item = (u64, &'a Order)>, own: impl Fn(&Order) -> bool) -> (Vec<u64>, Vec<u64>) {
    let (mut all, mut mine) = (Vec::new(), Vec::new());
    for (at, order) in begun {
        all.push(at);
        if own(order) {
            mine.push(at);
        }
    }
    (all, mine)
}

/// How much of what all share a namespace may see spent, given what it has spent itself.
fn shared(limit: usize, mine: &[u64]) -> usize {
    if mine.is_empty() { limit } else { limit - limit / 4 }
}

/// Refuses when there are `limit` times in the window already, with the seconds until one of them leaves it.
fn full(times: &[u64], limit: usize, window: u64, now: u64) -> Result<(), u64> {
    if times.len() < limit {
        return Ok(());
    }
    let mut times = times.to_vec();
    times.sort_unstable();
    // With a limit of nothing there is nothing to wait for.
    let frees = times.get(times.len() - limit.min(times.len())).copied().unwrap_or(now);
    Err((frees + window).saturating_sub(now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{
        acme::{Certificate, names_of, names_of_host},
        name::InstanceId,
    };

    const NOW: u64 = 10 * WEEK;

    fn instance(namespace: u8, name: &str) -> InstanceId {
        format!("s-{}/{name}", char::from(b'a' + namespace).to_string().repeat(12)).parse().unwrap()
    }

    fn order(ledger: &mut Ledger, instance: &InstanceId, begun: u64, stage: Stage) {
        let id = ledger.orders.len().to_string();
        let names = names_of(instance, &"seed.example".parse().unwrap());
        let order = Order {
            id: id.clone(),
            account: String::new(),
            holder: Holder::Instance(instance.clone()),
            names,
            replaces: None,
            aliases: std::collections::BTreeMap::new(),
            at: begun,
            expires: begun,
            begun: Some(begun),
            renewal: false,
            stage,
        };
        ledger.orders.insert(id, order);
    }

    fn ask(ledger: &Ledger, instance: &InstanceId) -> Result<(), u64> {
        let names = names_of(instance, &"seed.example".parse().unwrap());
        check(ledger, &Holder::Instance(instance.clone()), &names, Limits::default(), NOW).map_err(|problem| {
            assert_eq!((problem.kind.as_str(), problem.status), ("rateLimited", 429));
            problem.retry_after.unwrap()
        })
    }

    #[test]
    fn the_same_names_are_ordered_four_times_a_week_and_fail_four_times_an_hour() {
        let web = instance(0, "web");
        let mut ledger = Ledger::default();
        for at in [5, 4, 3, 2] {
            assert_eq!(ask(&ledger, &web), Ok(()));
            order(&mut ledger, &web, NOW - at * 24 * HOUR, Stage::Ready);
        }
        assert_eq!(ask(&ledger, &web), Err(2 * 24 * HOUR), "until the oldest is a week old");
        assert_eq!(ask(&ledger, &instance(0, "api")), Ok(()));

        let mut ledger = Ledger::default();
        for minute in 1..=4 {
            let problem = Problem::new(403, "unauthorized", "");
            order(&mut ledger, &web, NOW - 2 * WEEK, Stage::Invalid(NOW - minute * 60, problem));
        }
        assert_eq!(ask(&ledger, &web), Err(HOUR - 4 * 60));
    }

    #[test]
    fn whom_the_ca_told_to_wait_does_and_all_do_once_many_were_told() {
        let limited = |at| Stage::Invalid(at, Problem::new(429, "rateLimited", ""));
        let host = |ledger: &Ledger| {
            let names = names_of_host(&"seed.example".parse().unwrap());
            check(ledger, &Holder::Host, &names, Limits::default(), NOW).map_err(|problem| problem.retry_after.unwrap())
        };
        let mut ledger = Ledger::default();
        for (told, minute) in [(0, 1), (0, 2), (1, 30)] {
            order(&mut ledger, &instance(told, "web"), NOW - HOUR, limited(NOW - minute * 60));
        }
        assert_eq!(ask(&ledger, &instance(0, "api")), Err(HOUR - 60));
        assert_eq!(ask(&ledger, &instance(1, "api")), Err(HOUR - 30 * 60));
        assert_eq!((ask(&ledger, &instance(2, "web")), host(&ledger)), (Ok(()), Ok(())), "others are not kept from theirs");
        order(&mut ledger, &instance(3, "web"), NOW - HOUR, limited(NOW - 3 * 60));
        assert_eq!((ask(&ledger, &instance(2, "web")), host(&ledger)), (Err(HOUR - 60), Err(HOUR - 60)));
        let mut ledger = Ledger::default();
        order(&mut ledger, &instance(0, "web"), NOW - 2 * HOUR, limited(NOW - HOUR));
        assert_eq!(ask(&ledger, &instance(0, "api")), Ok(()));
    }

    #[test]
    fn tenants_spend_nothing_of_the_hosts_own() {
        let mut ledger = Ledger::default();
        for n in 0..300u32 {
            order(&mut ledger, &instance((n % 20) as u8, &format!("i{n}")), NOW - 60, Stage::Ready);
        }
        let names = names_of_host(&"seed.example".parse().unwrap());
        let host = |ledger: &Ledger| check(ledger, &Holder::Host, &names, Limits::default(), NOW).is_ok();
        assert!(host(&ledger) && ask(&ledger, &instance(21, "web")).is_err());
        for n in 0..4u64 {
            assert!(host(&ledger), "{n}");
            order(&mut ledger, &instance(0, "host"), NOW - 60, Stage::Ready);
            let last = ledger.orders.values_mut().find(|order| order.holder == instance(0, "host")).unwrap();
            (last.holder, last.names) = (Holder::Host, names.clone());
        }
        assert!(!host(&ledger), "it has its own limits");
    }

    #[test]
    fn a_namespace_has_its_share_and_the_last_quarter_is_for_those_who_had_none() {
        let mut ledger = Ledger::default();
        let mut greedy = 0;
        for namespace in 0..10u8 {
            for n in 0..20 {
                let one = instance(namespace, &format!("i{n}"));
                if ask(&ledger, &one).is_ok() {
                    greedy += 1;
                    order(&mut ledger, &one, NOW - 4 * HOUR, Stage::Ready);
                }
            }
            let own = ledger
                .orders
                .values()
                .filter(|order| order.holder.namespace() == Some(&instance(namespace, "x").namespace))
                .count();
            assert!((1..=10).contains(&own), "each had something, and nobody more than its share: {own}");
        }
        assert!(greedy <= 40 && greedy > 30, "{greedy}");
        let new = instance(20, "web");
        assert_eq!(ask(&ledger, &new), Ok(()), "there is something left for a newcomer");
        // A renewal needs nothing of the week's.
        let late = instance(0, "i1");
        for n in 0..10 {
            order(&mut ledger, &instance(11 + n, "web"), NOW - 4 * HOUR, Stage::Ready);
        }
        assert!(ask(&ledger, &new).is_err());
        let names = names_of(&late, &"seed.example".parse().unwrap());
        let certificate = Certificate {
            id: "c".into(),
            holder: Holder::Instance(late.clone()),
            names,
            key: String::new(),
            chain: String::new(),
            fingerprint: String::new(),
            ari: String::new(),
            not_before: 0,
            not_after: NOW,
            window: None,
            revoked: false,
        };
        ledger.certificates.insert("c".into(), certificate);
        assert_eq!(ask(&ledger, &late), Ok(()));
    }

    #[test]
    fn a_burst_of_one_namespace_leaves_the_others_theirs() {
        let mut ledger = Ledger::default();
        let limits = Limits { per_week: 10_000, per_namespace_week: 10_000 };
        let ask = |ledger: &Ledger, instance: &InstanceId| {
            let holder = Holder::Instance(instance.clone());
            check(ledger, &holder, &names_of(instance, &"seed.example".parse().unwrap()), limits, NOW).is_ok()
        };
        let given = (0..100).filter(|n| {
            let one = instance(0, &format!("i{n}"));
            let may = ask(&ledger, &one);
            if may {
                order(&mut ledger, &one, NOW - 60, Stage::Ready);
            }
            may
        });
        assert_eq!(given.count(), BURST_OF_ONE);
        assert!(ask(&ledger, &instance(1, "web")));
    }
}
