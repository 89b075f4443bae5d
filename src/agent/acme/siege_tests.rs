//! C-R9: fifty tenants that want all of it, with every trick there is, for a week. However they ask, the CA is asked for no more than four
//! fifths of what Let's Encrypt allows, and who only renews does not notice.

use std::collections::{BTreeMap, BTreeSet};

use super::{budget::Limits, decide::Case, report};
use crate::{
    bus::acme::{Question, Report, Told},
    spec::{
        acme::{Certificate, Holder, Problem, Stage, names_of},
        name::InstanceId,
    },
    state::{Change, Memory},
};

const HOUR: u64 = 3600;
const REQUESTS: u32 = 100_000;
const TENANTS: usize = 50;
const INSTANCES: usize = 6;
/// The honest tenant renews its certificate every other day.
const RENEWALS: u32 = 3;

/// Numbers that look like chance, the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

fn instance(tenant: usize, n: usize) -> InstanceId {
    let label: String = format!("{tenant:012}").bytes().map(|digit| char::from(digit - b'0' + b'a')).collect();
    format!("s-{label}/i{n}").parse().unwrap()
}

fn names(of: &InstanceId) -> BTreeSet<String> {
    names_of(of, &"seed.example".parse().unwrap())
}

/// A host in a week of trouble.
struct Siege {
    memory: Memory,
    now: u64,
    ids: u64,
    /// Every time that the CA was asked: when, for which names, and whether they had a certificate.
    asked: Vec<(u64, BTreeSet<String>, bool)>,
    failed: Vec<(u64, BTreeSet<String>)>,
    limits: Limits,
    /// What the questions have cost: documents that were written, and removed.
    written: usize,
    removed: usize,
}

impl Siege {
    fn new() -> Self {
        let (asked, failed) = (Vec::new(), Vec::new());
        Self {
            memory: Memory::default(),
            now: 1_800_000_000,
            ids: 0,
            asked,
            failed,
            limits: Limits::default(),
            written: 0,
            removed: 0,
        }
    }

    fn ask(&mut self, from: &InstanceId, question: Question) -> Result<Told, Problem> {
        self.ids += 1;
        let (ledger, limits, id) = (&self.memory.acme, self.limits, format!("id{}", self.ids));
        let case = Case {
            ledger,
            instance: from,
            names: names(from),
            aliases: BTreeMap::new(),
            unproven: BTreeMap::new(),
            limits,
            now: self.now,
            id,
        };
        let (told, batch) = case.answer(question)?;
        let removed = batch.iter().filter(|change| matches!(change, Change::AcmeOrder(_, None))).count();
        self.removed += removed;
        self.written += batch.len() - removed;
        batch.into_iter().for_each(|change| self.memory.apply(change));
        Ok(told)
    }

    fn account(&mut self, from: &InstanceId, key: &str) -> String {
        match self.ask(from, Question::Register { key: key.into(), contact: vec![], existing: false }).unwrap() {
            Told::Account(account, _) => account.id,
            other => panic!("{other:?}"),
        }
    }

    /// Orders and finalizes with a key; the order's id if the CA is asked for it.
    fn order(&mut self, from: &InstanceId, account: &str, key: &str) -> Result<Option<String>, Problem> {
        let own = names(from);
        let account = account.to_owned();
        let question = Question::NewOrder { account: account.clone(), names: own.clone(), replaces: None };
        let Told::Order(order) = self.ask(from, question)? else { panic!("an order") };
        let (id, csr) = (order.id, format!("csr of {key}"));
        let question = Question::Finalize { account, id: id.clone(), csr, key: key.into(), names: own.clone() };
        let Told::Order(order) = self.ask(from, question)? else { panic!("an order") };
        if order.begun != Some(self.now) || !matches!(order.stage, Stage::Working(_)) {
            return Ok(None);
        }
        self.asked.push((self.now, own, order.renewal));
        Ok(Some(id))
    }

    fn answered(&mut self, order: String, well: bool) {
        let (not_before, not_after) = (self.now, self.now + 90 * 24 * HOUR);
        let names = self.memory.acme.orders[&order].names.clone();
        let report = if well {
            let (chain, fingerprint, ari) = (String::new(), format!("print of {order}"), format!("a.{order}"));
            Report::Issued { order, chain, fingerprint, ari, not_before, not_after }
        } else {
            self.failed.push((self.now, names));
            Report::Failed { order, problem: Problem::new(403, "unauthorized", "no") }
        };
        let batch = report::apply(&self.memory.acme, report, |_| true, self.now).unwrap();
        batch.into_iter().for_each(|change| self.memory.apply(change));
    }
}

/// The most of these times that are within one window.
fn most(times: impl IntoIterator<Item = u64>, window: u64) -> usize {
    let mut times: Vec<u64> = times.into_iter().collect();
    times.sort_unstable();
    (0..times.len()).map(|n| times[n..].partition_point(|at| *at < times[n] + window)).max().unwrap_or(0)
}

#[test]
fn fifty_greedy_tenants_spend_four_fifths_and_nothing_of_an_honest_one() {
    let mut siege = Siege::new();
    let mut dice = Dice(7);
    let honest = instance(TENANTS, 0);
    let all: Vec<InstanceId> = (0..TENANTS).flat_map(|tenant| (0..INSTANCES).map(move |n| instance(tenant, n))).collect();
    // Most have had a certificate before, so that they may renew, which needs nothing of the week's.
    for (n, from) in all.iter().enumerate().filter(|(n, _)| n % 4 != 0).chain([(all.len(), &honest)]) {
        let id = format!("old{n}");
        let certificate = Certificate {
            id: id.clone(),
            holder: Holder::Instance(from.clone()),
            names: names(from),
            key: "old".into(),
            chain: String::new(),
            fingerprint: id.clone(),
            ari: format!("a.{id}"),
            not_before: siege.now - 80 * 24 * HOUR,
            not_after: siege.now + 10 * 24 * HOUR,
            window: None,
            revoked: false,
        };
        siege.memory.acme.certificates.insert(id, certificate);
    }
    let accounts: Vec<String> = all.iter().map(|from| siege.account(from, "k")).collect();
    let own = siege.account(&honest, "k");
    let (mut renewed, mut refused) = (0, BTreeMap::<String, u32>::new());
    for turn in 0..REQUESTS {
        siege.now += dice.below(12) as u64;
        let who = dice.below(all.len());
        let (from, account) = (&all[who], &accounts[who]);
        let mut note = |problem: Problem| *refused.entry(problem.kind).or_default() += 1;
        match dice.below(20) {
            // A new key each time, so that nothing is had from before.
            0..=1 => match siege.order(from, account, &turn.to_string()) {
                Ok(Some(order)) => siege.answered(order, dice.below(3) > 0),
                Ok(None) => {}
                Err(problem) => note(problem),
            },
            2..=6 => {
                let victim = &all[dice.below(all.len())];
                let names: BTreeSet<String> = match dice.below(4) {
                    0 => names(victim),
                    1 => names(&honest),
                    2 => ["seed.example".to_owned()].into(),
                    _ => names(from).into_iter().chain(["*.seed.example".to_owned()]).collect(),
                };
                if names != self::names(from) {
                    note(siege.ask(from, Question::NewOrder { account: account.clone(), names, replaces: None }).unwrap_err());
                }
            }
            7..=11 => {
                let other = if dice.below(2) == 0 { &own } else { &accounts[(who + 1) % accounts.len()] };
                note(siege.ask(from, Question::Orders { account: other.clone() }).unwrap_err());
            }
            12..=15 => {
                let ari = format!("a.old{}", all.len());
                note(siege.ask(from, Question::Renewal { ari }).unwrap_err());
            }
            _ => {
                let update = Question::Update { account: account.clone(), contact: Some(vec![]), deactivate: false };
                siege.ask(from, update).unwrap();
            }
        }
        // In the middle of it, somebody who wants only what is due.
        if turn % (REQUESTS / RENEWALS) == REQUESTS / RENEWALS - 1 {
            let order = siege.order(&honest, &own, &turn.to_string()).expect("there is something left").expect("the CA is asked");
            siege.answered(order, true);
            renewed += 1;
        }
    }
    assert_eq!(renewed, RENEWALS);
    for kind in ["rejectedIdentifier", "accountDoesNotExist", "rateLimited", "malformed"] {
        assert!(refused.get(kind).is_some_and(|count| *count > 1000), "{refused:?}");
    }
    // What Let's Encrypt publishes: 50 and 300, and five of the same.
    let new = most(siege.asked.iter().filter(|(_, _, renewal)| !renewal).map(|(at, ..)| *at), 7 * 24 * HOUR);
    let burst = most(siege.asked.iter().map(|(at, ..)| *at), 3 * HOUR);
    assert!(new <= 40 && burst <= 240, "{new} new names in a week, {burst} orders in three hours");
    assert!(new >= 20 && burst >= 100, "the siege was none: {new}, {burst}");
    for from in all.iter().chain([&honest]) {
        let own = names(from);
        let same = most(siege.asked.iter().filter(|(_, names, _)| *names == own).map(|(at, ..)| *at), 7 * 24 * HOUR);
        let failed = most(siege.failed.iter().filter(|(_, names)| *names == own).map(|(at, _)| *at), HOUR);
        assert!(same <= 4 && failed <= 4, "{from}: {same} of the same, {failed} failures in an hour");
    }
}

/// A thousand instances that all order at once, and ask again when they were told to: nine hundred are of one namespace, and ask first. The
/// domain is one for which the CA gives out more than it does to everybody, else they would take two years.
#[test]
fn a_thousand_that_order_at_once_all_get_theirs_and_nine_hundred_keep_nobody_waiting() {
    let mut siege = Siege::new();
    siege.limits = Limits { per_week: 4000, per_namespace_week: 1000 };
    let began = siege.now;
    let all: Vec<InstanceId> = (0..900).map(|n| instance(0, n)).chain((1..=100).map(|tenant| instance(tenant, 0))).collect();
    let accounts: Vec<String> = all.iter().map(|from| siege.account(from, "k")).collect();
    let mut orders = BTreeMap::new();
    let mut due: BTreeSet<(u64, usize)> = (0..all.len()).map(|who| (began, who)).collect();
    let (mut looks, mut given, mut written) = (vec![0; all.len()], BTreeMap::<u64, usize>::new(), BTreeSet::new());
    while let Some((at, who)) = due.pop_first() {
        siege.now = at;
        looks[who] += 1;
        let (account, names) = (accounts[who].clone(), names(&all[who]));
        let before = siege.written;
        let order = orders.entry(who).or_insert_with(|| {
            let question = Question::NewOrder { account: account.clone(), names: names.clone(), replaces: None };
            let Told::Order(order) = siege.ask(&all[who], question).unwrap() else { panic!("an order") };
            order.id
        });
        let id = order.clone();
        let question = Question::Finalize { account, id: id.clone(), csr: "csr".into(), key: "key".into(), names: names.clone() };
        match siege.ask(&all[who], question) {
            Ok(_) => {
                siege.asked.push((at, names, false));
                *given.entry(at).or_default() += usize::from(who < 900);
                siege.answered(id, true);
            }
            Err(problem) if problem.kind == "rateLimited" => {
                due.insert((at + problem.retry_after.expect("it is told when"), who));
            }
            // A day has gone by: it orders anew.
            Err(problem) => {
                assert_eq!((problem.status, at >= began + 24 * HOUR), (404, true), "{problem}");
                orders.remove(&who);
                due.insert((at, who));
            }
        }
        if looks[who] == 1 {
            written.insert(siege.written - before);
        }
    }
    assert_eq!(siege.memory.acme.certificates.len(), 1000);
    assert!(looks[900..].iter().all(|looks| *looks == 1), "whoever orders one certificate gets it at once");
    // The nine hundred have what is theirs, without a pause: 24 in three hours.
    assert_eq!(given.values().copied().collect::<BTreeSet<_>>(), [12, 24].into(), "{given:?}");
    assert_eq!((siege.now - began) / HOUR, 900 / 24 * 3);
    let burst = |of: std::ops::Range<usize>| {
        let of: BTreeSet<BTreeSet<String>> = all[of].iter().map(names).collect();
        most(siege.asked.iter().filter(|(_, names, _)| of.contains(names)).map(|(at, ..)| *at), 3 * HOUR)
    };
    assert_eq!((burst(0..1000), burst(0..900)), (124, 24));
    // A look costs what it writes, however many wait: the order, and that it was finalized, unless that was refused.
    assert_eq!(written, [1, 2].into());
    assert!(siege.removed <= siege.written);
}
