//! The certificate of this host itself, for its HTTPS door. Pure: the ledger and the time are arguments.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    budget::{self, Limits},
    decide::prune,
};
use crate::{
    bus::acme::{Asked, Own, State},
    spec::acme::{Certificate, Holder, Ledger, Order, Problem, Stage, Work},
    state::{Batch, Change},
};

/// How long is waited after an order that failed; each more that failed in a row doubles it.
const PAUSE: u64 = 300;
const LONGEST_PAUSE: u64 = 12 * 3600;

/// What the doors are told, and what is remembered of it; or why they ask for what this host is not.
pub fn answer(
    ledger: &Ledger,
    names: &BTreeSet<String>,
    asked: Asked,
    limits: Limits,
    now: u64,
    id: String,
) -> Result<(Own, Batch), String> {
    if asked.names != *names {
        let list = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(", ");
        let (theirs, ours) = (list(&asked.names), list(names));
        return Err(format!("the doors ask for {theirs}, but this host is {ours}: restart seed-agent and seed-serve"));
    }
    let usable = |known: &&Certificate| {
        known.holder == Holder::Host && known.key == asked.key && known.names == *names && !known.revoked && now < known.not_after
    };
    let certificate = ledger.certificates.values().filter(usable).max_by_key(|known| known.not_after).cloned();
    let mut own = Own { certificate, ..Own::default() };
    if own.certificate.as_ref().is_some_and(|known| now < known.renew_at()) {
        return Ok((own, Batch::new()));
    }
    let mut batch = prune(ledger, now);
    for order in orders(ledger) {
        let Stage::Working(work) = &order.stage else { continue };
        if work.key == asked.key && order.names == *names {
            own.order = Some(order.clone());
            return Ok((own, Batch::new()));
        }
        // The key was lost, or the domain is another: nobody would have its certificate.
        let problem = Problem::new(403, "rejectedIdentifier", "the host has another key or other names now");
        batch.push(Change::AcmeOrder(order.id.clone(), Some(Order { stage: Stage::Invalid(now, problem), ..order.clone() })));
    }
    let may = patience(ledger, names, now).and_then(|()| budget::check(ledger, &Holder::Host, names, limits, now));
    if let Err(problem) = may {
        own.problem = Some(problem);
        return Ok((own, batch));
    }
    let order = Order {
        id,
        account: String::new(),
        holder: Holder::Host,
        names: names.clone(),
        aliases: BTreeMap::new(),
        replaces: own.certificate.as_ref().map(|known| known.ari.clone()).filter(|ari| !ari.is_empty()),
        at: now,
        expires: now,
        begun: Some(now),
        renewal: budget::is_renewal(ledger, names),
        stage: Stage::Working(Work { csr: asked.csr, key: asked.key, upstream: None, challenges: BTreeMap::new() }),
    };
    batch.push(Change::AcmeOrder(order.id.clone(), Some(order.clone())));
    own.order = Some(order);
    Ok((own, batch))
}

fn orders(ledger: &Ledger) -> impl Iterator<Item = &Order> {
    ledger.orders.values().filter(|order| order.holder == Holder::Host)
}

/// Refuses to ask the CA again soon after it said no, and longer the more often it did.
fn patience(ledger: &Ledger, names: &BTreeSet<String>, now: u64) -> Result<(), Problem> {
    let mut last: Vec<&Order> = orders(ledger).filter(|order| order.names == *names).collect();
    last.sort_by_key(|order| std::cmp::Reverse((order.at, &order.id)));
    let failed: Vec<(u64, &Problem)> = last
        .into_iter()
        .map_while(|order| if let Stage::Invalid(at, problem) = &order.stage { Some((*at, problem)) } else { None })
        .collect();
    let Some((at, problem)) = failed.first() else { return Ok(()) };
    let again = at + (PAUSE << (failed.len() - 1).min(10)).min(LONGEST_PAUSE);
    if again <= now { Ok(()) } else { Err(Problem { retry_after: Some(again - now), ..(*problem).clone() }) }
}

/// How it is with the certificate, for whoever runs the host.
pub fn state(ledger: &Ledger, names: &BTreeSet<String>) -> State {
    let known =
        ledger.certificates.values().filter(|known| known.holder == Holder::Host && known.names == *names && !known.revoked);
    let known = known.max_by_key(|known| known.not_after);
    let last = orders(ledger).filter(|order| order.names == *names).max_by_key(|order| (order.at, &order.id));
    State {
        version: 1,
        names: names.clone(),
        not_after: known.map_or(0, |known| known.not_after),
        renew_at: known.map_or(0, Certificate::renew_at),
        ordering: last.is_some_and(|order| matches!(order.stage, Stage::Working(_))),
        problem: last.map_or_else(String::new, |order| match &order.stage {
            Stage::Invalid(_, problem) => problem.to_string(),
            _ => String::new(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        agent::acme::report,
        bus::acme::Report,
        spec::acme::{Window, names_of_host},
        state::Memory,
    };

    const DAY: u64 = 24 * 3600;

    /// A ledger that follows what is decided.
    struct Book {
        memory: Memory,
        now: u64,
        ids: u32,
    }

    fn names() -> BTreeSet<String> {
        names_of_host(&"seed.example".parse().unwrap())
    }

    fn asked(key: &str) -> Asked {
        Asked { csr: format!("csr of {key}"), key: key.into(), names: names() }
    }

    impl Book {
        fn new() -> Self {
            Self { memory: Memory::default(), now: 1_800_000_000, ids: 0 }
        }
        fn ask(&mut self, asked: Asked) -> Own {
            self.ids += 1;
            let id = format!("id{}", self.ids);
            let (own, batch) = answer(&self.memory.acme, &names(), asked, Limits::default(), self.now, id).unwrap();
            batch.into_iter().for_each(|change| self.memory.apply(change));
            own
        }
        fn report(&mut self, report: Report) {
            let batch = report::apply(&self.memory.acme, report, |_| true, self.now).unwrap();
            batch.into_iter().for_each(|change| self.memory.apply(change));
        }
        fn issued(&mut self, order: &Order) {
            let (not_before, not_after) = (self.now, self.now + 90 * DAY);
            let (order, fingerprint) = (order.id.clone(), "7fffffff00".to_owned());
            let (chain, ari) = ("chain".to_owned(), format!("ari.{order}"));
            self.report(Report::Issued { order, chain, fingerprint, ari, not_before, not_after });
        }
        fn fail(&mut self, order: &Order) {
            let problem = Problem::new(403, "dns", "no TXT record");
            self.report(Report::Failed { order: order.id.clone(), problem });
        }
    }

    #[test]
    fn one_order_is_made_and_then_nothing_is_asked_until_it_is_due() {
        let mut book = Book::new();
        let own = book.ask(asked("one"));
        let order = own.order.unwrap();
        assert_eq!((&order.holder, &order.names, order.renewal), (&Holder::Host, &names(), false));
        // The CSR of the next life is signed anew; the key is the same.
        let again = book.ask(Asked { csr: "another csr".into(), ..asked("one") });
        assert_eq!(again.order.as_ref(), Some(&order));
        assert!(state(&book.memory.acme, &names()).ordering);
        book.issued(&order);
        let own = book.ask(asked("one"));
        let certificate = own.certificate.unwrap();
        assert_eq!((own.order, own.problem), (None, None));
        let third = Window { start: book.now + 60 * DAY, end: book.now + 90 * DAY / 4 * 3 };
        let at = certificate.renew_at();
        assert!(third.start < at && at < third.end, "somewhere in the window");
        assert_eq!(state(&book.memory.acme, &names()).renew_at, at);
        book.now = at - 1;
        assert_eq!(book.ask(asked("one")).order, None);
        // The CA knows better.
        let window = Window { start: book.now - DAY, end: book.now };
        book.report(Report::Window { certificate: certificate.id.clone(), window });
        let own = book.ask(asked("one"));
        let next = own.order.unwrap();
        assert_eq!(own.certificate.unwrap().id, certificate.id, "the old one is used meanwhile");
        assert_eq!((next.renewal, next.replaces.as_deref()), (true, Some("ari.id1")));
        book.issued(&next);
        assert_eq!(book.ask(asked("one")).certificate.unwrap().id, next.id);
    }

    #[test]
    fn another_key_or_a_certificate_that_has_ended_begins_anew() {
        let mut book = Book::new();
        let first = book.ask(asked("one")).order.unwrap();
        let second = book.ask(asked("two")).order.unwrap();
        assert_ne!(first.id, second.id);
        assert!(matches!(book.memory.acme.orders[&first.id].stage, Stage::Invalid(..)), "nobody has its key");
        book.issued(&second);
        assert_eq!(book.ask(asked("two")).certificate.unwrap().id, second.id);
        book.now += 91 * DAY;
        let own = book.ask(asked("two"));
        assert!(own.certificate.is_none() && own.order.is_some());
        let wrong = Asked { names: ["other.example".to_owned()].into(), ..asked("two") };
        let refused = answer(&book.memory.acme, &names(), wrong, Limits::default(), book.now, "x".into()).unwrap_err();
        assert!(refused.contains("other.example") && refused.contains("silo.seed.example"), "{refused}");
    }

    #[test]
    fn a_ca_that_says_no_is_asked_less_and_less_often_but_never_given_up() {
        let mut book = Book::new();
        let mut waits = Vec::new();
        for _ in 0..10 {
            let order = book.ask(asked("one")).order.unwrap();
            book.fail(&order);
            let problem = book.ask(asked("one")).problem.unwrap();
            assert_eq!(problem.kind, "dns", "it says what the CA said");
            assert!(state(&book.memory.acme, &names()).problem.contains("no TXT record"));
            waits.push(problem.retry_after.unwrap());
            book.now += problem.retry_after.unwrap();
        }
        let doubled = |n: u32| (PAUSE << n).min(LONGEST_PAUSE);
        assert_eq!(waits, (0..10).map(doubled).collect::<Vec<_>>());
        let order = book.ask(asked("one")).order.unwrap();
        book.issued(&order);
        assert!(book.ask(asked("one")).certificate.is_some());
        assert_eq!(state(&book.memory.acme, &names()).problem, "");
    }
}
