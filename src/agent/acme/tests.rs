//! What is told and remembered, with a ledger and a clock made by hand.

use std::collections::{BTreeMap, BTreeSet};

use super::{budget::Limits, decide::Case, report};
use crate::{
    bus::acme::{Question, Report, Told},
    spec::{
        acme::{Ledger, Order, Problem, Stage, Window, names_of},
        name::InstanceId,
    },
    state::{Batch, Change, Memory},
};

const DAY: u64 = 24 * 3600;

/// A ledger that follows what is decided.
struct Book {
    memory: Memory,
    instance: InstanceId,
    now: u64,
    ids: u32,
    aliases: BTreeMap<String, String>,
}

impl Book {
    fn new() -> Self {
        Self {
            memory: Memory::default(),
            instance: "s-aaaaaaaaaaaa/web".parse().unwrap(),
            now: 1_800_000_000,
            ids: 0,
            aliases: BTreeMap::new(),
        }
    }
    fn ledger(&self) -> &Ledger {
        &self.memory.acme
    }
    fn take(&mut self, batch: Batch) {
        batch.into_iter().for_each(|change| self.memory.apply(change));
    }
    fn ask(&mut self, question: Question) -> Result<Told, Problem> {
        self.ids += 1;
        let case = Case {
            ledger: &self.memory.acme,
            instance: &self.instance,
            names: self.names(),
            aliases: self.aliases.clone(),
            unproven: BTreeMap::new(),
            limits: Limits::default(),
            now: self.now,
            id: format!("id{}", self.ids),
        };
        let (told, batch) = case.answer(question)?;
        self.take(batch);
        Ok(told)
    }
    fn names(&self) -> BTreeSet<String> {
        names_of(&self.instance, &"seed.example".parse().unwrap())
    }
    fn account(&mut self, key: &str) -> String {
        let question = Question::Register { key: key.into(), contact: vec![], existing: false };
        let Told::Account(account, _) = self.ask(question).unwrap() else { panic!("an account") };
        account.id
    }
    fn order(&mut self, account: &str) -> Order {
        let question = Question::NewOrder { account: account.into(), names: self.names(), replaces: None };
        let Told::Order(order) = self.ask(question).unwrap() else { panic!("an order") };
        order
    }
    fn finalize(&mut self, account: &str, order: &Order, key: &str) -> Result<Order, Problem> {
        let (csr, names) = (format!("csr of {key}"), self.names());
        let question = Question::Finalize { account: account.into(), id: order.id.clone(), csr, key: key.into(), names };
        match self.ask(question)? {
            Told::Order(order) => Ok(order),
            other => panic!("{other:?}"),
        }
    }
    fn report(&mut self, report: Report) -> Result<(), String> {
        let batch = report::apply(&self.memory.acme, report, |_| true, self.now)?;
        self.take(batch);
        Ok(())
    }
    fn issued(&mut self, order: &Order) {
        let (not_before, not_after) = (self.now, self.now + 90 * DAY);
        let report = Report::Issued {
            order: order.id.clone(),
            chain: "chain".into(),
            fingerprint: format!("print of {}", order.id),
            ari: format!("a.{}", order.id),
            not_before,
            not_after,
        };
        self.report(report).unwrap();
    }
}

#[test]
fn the_same_names_and_key_get_the_same_certificate_until_it_is_due() {
    let mut book = Book::new();
    let account = book.account("k");
    let first = book.order(&account);
    let working = book.finalize(&account, &first, "key").unwrap();
    assert!(matches!(working.stage, Stage::Working(_)) && working.begun == Some(book.now) && !working.renewal);
    assert_eq!(book.finalize(&account, &first, "key").unwrap(), working, "asked again, nothing is spent");
    book.issued(&first);

    // Another account of the same instance: a guest that kept its key and nothing else.
    let other = book.account("k2");
    let second = book.order(&other);
    // The CA has told this namespace to wait.
    let refused = Order {
        id: "refused".into(),
        names: names_of(&"s-aaaaaaaaaaaa/api".parse().unwrap(), &"seed.example".parse().unwrap()),
        stage: Stage::Invalid(book.now, Problem::limited("x", 3600)),
        ..first.clone()
    };
    book.memory.apply(Change::AcmeOrder(refused.id.clone(), Some(refused)));
    let kept = book.finalize(&other, &second, "key").unwrap();
    assert_eq!((&kept.stage, kept.begun), (&Stage::Valid(first.id.clone()), None), "even when the CA wants to be left alone");
    let third = book.order(&other);
    let limited = book.finalize(&other, &third, "new key").unwrap_err();
    assert_eq!((limited.kind.as_str(), limited.retry_after), ("rateLimited", Some(3600)));
    book.memory.apply(Change::AcmeOrder("refused".into(), None));

    // Two thirds of its life later; or when the CA says so; or when it was revoked.
    for change in 0..3 {
        let mut book = Book { memory: book.memory.clone(), instance: book.instance.clone(), ..Book::new() };
        match change {
            0 => book.now += 60 * DAY,
            1 => {
                let window = Window { start: book.now - 1, end: book.now + DAY };
                book.report(Report::Window { certificate: first.id.clone(), window }).unwrap();
            }
            _ => book.report(Report::Revoked { certificate: first.id.clone() }).unwrap(),
        }
        book.ids = 100;
        let fourth = book.order(&other);
        let again = book.finalize(&other, &fourth, "key").unwrap();
        assert!(matches!(again.stage, Stage::Working(_)) && again.renewal, "{change}");
    }
}

#[test]
fn an_instance_leaves_only_so_much_behind() {
    let mut book = Book::new();
    let accounts: Vec<String> = (0..40)
        .map(|n| {
            book.now += 1;
            book.account(&format!("k{n}"))
        })
        .collect();
    assert_eq!(book.ledger().accounts.len(), 16, "the oldest go");
    assert!(!book.ledger().accounts.contains_key(&accounts[0]) && book.ledger().accounts.contains_key(&accounts[39]));
    let (account, issued) = (accounts[39].clone(), book.order(&accounts[39]));
    book.finalize(&account, &issued, "key").unwrap();
    book.issued(&issued);
    for _ in 0..100 {
        book.now += 1;
        let order = book.order(&account);
        book.finalize(&account, &order, "key").unwrap();
    }
    assert!(book.ledger().orders.len() <= 33, "{}", book.ledger().orders.len());
    assert!(book.ledger().orders[&issued.id].begun.is_some(), "what was spent is kept");
    book.now += 9 * DAY;
    let last = book.order(&account);
    assert_eq!(book.ledger().orders.keys().collect::<Vec<_>>(), [&last.id], "after a week nothing counts any more");
    book.now += 120 * DAY;
    book.order(&account);
    assert!(book.ledger().certificates.is_empty());
}

#[test]
fn a_report_is_about_what_is_under_way_and_shows_only_its_own_names() {
    let mut book = Book::new();
    let account = book.account("k");
    let order = book.order(&account);
    let id = || order.id.clone();
    assert!(book.report(Report::Begun { order: id(), upstream: "u".into() }).is_err(), "nobody has finalized it");
    book.finalize(&account, &order, "key").unwrap();
    book.report(Report::Begun { order: id(), upstream: "u".into() }).unwrap();
    let challenge = |name: &str, value: &str| Report::Challenge { order: id(), name: name.into(), value: value.into() };
    let value = "x".repeat(43);
    let own = "_acme-challenge.web.s-aaaaaaaaaaaa.seed.example";
    for (name, value) in [
        ("_acme-challenge.web.s-bbbbbbbbbbbb.seed.example", value.as_str()),
        ("_acme-challenge.seed.example", &value),
        ("web.s-aaaaaaaaaaaa.seed.example", &value),
        (own, "short"),
        (own, &"\"".repeat(43)),
    ] {
        assert!(book.report(challenge(name, value)).is_err(), "{name} {value}");
    }
    let gone = report::apply(book.ledger(), challenge(own, &value), |_| false, book.now);
    assert!(gone.is_err(), "its instance is gone");
    book.report(challenge(own, &value)).unwrap();
    assert_eq!(book.ledger().challenges(), BTreeMap::from([(own.to_owned(), vec![value])]));
    book.report(Report::Failed { order: id(), problem: Problem::new(403, "unauthorized", "no") }).unwrap();
    assert!(book.ledger().challenges().is_empty(), "gone with the order");
    assert!(book.report(Report::Begun { order: id(), upstream: "u".into() }).is_err());
    let told = book.ask(Question::Order { account, id: id() }).unwrap();
    assert!(matches!(told, Told::Order(Order { stage: Stage::Invalid(..), .. })));
}

#[test]
fn documents_survive_being_written() {
    let mut book = Book::new();
    let account = book.account("k");
    let order = book.order(&account);
    book.finalize(&account, &order, "key").unwrap();
    book.issued(&order);
    let open = book.order(&account);
    let ledger = book.ledger();
    let changes = [
        Change::AcmeAccount(account.clone(), Some(ledger.accounts[&account].clone())),
        Change::AcmeOrder(order.id.clone(), Some(ledger.orders[&order.id].clone())),
        Change::AcmeOrder(open.id.clone(), Some(open)),
        Change::AcmeCertificate(order.id.clone(), Some(ledger.certificates[&order.id].clone())),
        Change::AcmeRegistrations(Some(vec![7, 8])),
    ];
    for change in changes {
        let (key, value) = crate::state::record::encode(&change);
        assert_eq!(crate::state::record::decode(&key, &value.unwrap()).unwrap(), change, "{key}");
    }
}

#[test]
fn accounts_at_the_ca_are_made_five_times_in_three_hours_whatever_becomes_of_them() {
    let mut book = Book::new();
    let began = book.now;
    for minute in 0..5 {
        book.now = began + minute * 60;
        book.report(Report::Registering).unwrap();
        // What the CA refused was none.
        if minute < 4 {
            book.report(Report::Registering).unwrap();
            book.report(Report::NotRegistered).unwrap();
        }
    }
    let refused = book.report(Report::Registering).unwrap_err();
    assert!(refused.starts_with("5 accounts were made at the CA in 3 hours, the next may be in 176 minutes"), "{refused}");
    assert!(refused.contains("/var/lib/seed/acme has to be kept"), "{refused}");
    book.now = began + 3 * 3600;
    book.report(Report::Registering).unwrap();
    assert_eq!(book.ledger().registrations.len(), 5, "what is over is forgotten");
    book.report(Report::Registering).unwrap_err();
}
