//! What a client of an instance is told, and what is remembered of it. Pure: the ledger and the time are arguments.

use std::collections::{BTreeMap, BTreeSet};

use super::budget::{self, Limits};
use crate::{
    bus::acme::{Question, Told},
    spec::{
        acme::{Account, Holder, Ledger, Order, Problem, Stage, Work},
        name::InstanceId,
    },
    state::{Batch, Change},
};

/// Accounts of one instance; a guest that forgets its key at every boot makes one each time, and the oldest goes.
const ACCOUNTS: usize = 16;
/// Orders of one instance for which the CA was not asked.
const IDLE_ORDERS: usize = 32;
/// How long an order waits for its CSR.
const ORDER_LIFE: u64 = 24 * 3600;
/// How long an order is remembered for the budgets.
const ORDER_KEPT: u64 = 8 * 24 * 3600;
/// How long a certificate is remembered after its end, so that the next one counts as a renewal.
const CERTIFICATE_KEPT: u64 = 30 * 24 * 3600;

/// Who asks, and everything that an answer depends on.
pub struct Case<'a> {
    pub ledger: &'a Ledger,
    pub instance: &'a InstanceId,
    /// The names of this host's zone that it may have.
    pub names: BTreeSet<String>,
    /// Names of its own that are proven, and where in the zone the CA finds the proof for each.
    pub aliases: BTreeMap<String, String>,
    /// Names of its own that are not proven, and what there is to say of each.
    pub unproven: BTreeMap<String, String>,
    pub limits: Limits,
    pub now: u64,
    /// An id that nothing has yet.
    pub id: String,
}

type Answer = Result<(Told, Batch), Problem>;

impl Case<'_> {
    /// Answers.
    pub fn answer(&self, question: Question) -> Answer {
        match question {
            Question::Register { key, contact, existing } => self.register(key, contact, existing),
            Question::Account { id } => Ok((Told::Account(self.account(&id)?.clone(), false), Batch::new())),
            Question::Update { account, contact, deactivate } => {
                let mut account = self.account(&account)?.clone();
                account.contact = contact.unwrap_or(account.contact);
                account.deactivated = deactivate;
                let change = Change::AcmeAccount(account.id.clone(), Some(account.clone()));
                Ok((Told::Account(account, false), vec![change]))
            }
            Question::ChangeKey { account, key } => {
                let mut account = self.account(&account)?.clone();
                if let Some(other) = self.accounts().find(|other| other.key == key) {
                    return Err(Problem::new(409, "malformed", format!("account {} has this key", other.id)));
                }
                account.key = key;
                let change = Change::AcmeAccount(account.id.clone(), Some(account.clone()));
                Ok((Told::Account(account, false), vec![change]))
            }
            Question::Orders { account } => {
                let account = self.account(&account)?;
                let orders = self.ledger.orders.values().filter(|order| order.account == account.id && !self.is_over(order));
                Ok((Told::Orders(orders.map(|order| order.id.clone()).collect()), Batch::new()))
            }
            Question::NewOrder { account, names, replaces } => self.new_order(&account, names, replaces),
            Question::Order { account, id } => Ok((Told::Order(self.order(&account, &id)?.clone()), Batch::new())),
            Question::Finalize { account, id, csr, key, names } => {
                let work = Work { csr, key, upstream: None, challenges: BTreeMap::new() };
                self.finalize(&account, &id, work, &names)
            }
            Question::Certificate { account, id } => {
                self.account(&account)?;
                self.certificate(|certificate| certificate.id == id)
            }
            Question::Issued { fingerprint } => self.certificate(|certificate| certificate.fingerprint == fingerprint),
            Question::Renewal { ari } => self.certificate(|certificate| certificate.ari == ari),
        }
    }

    fn accounts(&self) -> impl Iterator<Item = &Account> {
        self.ledger.accounts.values().filter(|account| account.instance == *self.instance)
    }

    fn account(&self, id: &str) -> Result<&Account, Problem> {
        let unknown = || Problem::new(400, "accountDoesNotExist", "this instance has no such account: register the key again");
        let account = self.ledger.accounts.get(id).filter(|account| account.instance == *self.instance).ok_or_else(unknown)?;
        if account.deactivated { Err(Problem::new(401, "unauthorized", "the account was deactivated")) } else { Ok(account) }
    }

    fn register(&self, key: String, contact: Vec<String>, existing: bool) -> Answer {
        if let Some(account) = self.accounts().find(|account| account.key == key) {
            return Ok((Told::Account(self.account(&account.id)?.clone(), false), Batch::new()));
        }
        if existing {
            return Err(Problem::new(400, "accountDoesNotExist", "this instance has no account with this key"));
        }
        let mut batch = Batch::new();
        let mut old: Vec<&Account> = self.accounts().collect();
        old.sort_by_key(|account| account.at);
        let surplus = (old.len() + 1).saturating_sub(ACCOUNTS);
        batch.extend(old.into_iter().take(surplus).map(|account| Change::AcmeAccount(account.id.clone(), None)));
        let account =
            Account { id: self.id.clone(), instance: self.instance.clone(), key, contact, deactivated: false, at: self.now };
        batch.push(Change::AcmeAccount(account.id.clone(), Some(account.clone())));
        Ok((Told::Account(account, true), batch))
    }

    fn is_over(&self, order: &Order) -> bool {
        order.stage == Stage::Ready && order.expires <= self.now
    }

    fn new_order(&self, account: &str, names: BTreeSet<String>, replaces: Option<String>) -> Answer {
        let account = self.account(account)?;
        self.allow(&names)?;
        let usable = |order: &&Order| order.stage == Stage::Ready && !self.is_over(order);
        let mut own = self.ledger.orders.values().filter(|order| order.account == account.id);
        if let Some(order) = own.find(|order| usable(order) && order.names == names && order.replaces == replaces) {
            return Ok((Told::Order(order.clone()), Batch::new()));
        }
        // What this host does not know was issued elsewhere; the CA would refuse to have it replaced.
        let known = |ari: &String| {
            let mut known = self.ledger.certificates.values().filter(|certificate| certificate.holder == *self.instance);
            known.any(|certificate| certificate.ari == *ari && !certificate.names.is_disjoint(&names))
        };
        let mut batch = prune(self.ledger, self.now);
        let gone: BTreeSet<String> = batch
            .iter()
            .filter_map(|change| if let Change::AcmeOrder(id, None) = change { Some(id.clone()) } else { None })
            .collect();
        let idle = |order: &&Order| order.holder == *self.instance && order.begun.is_none() && !gone.contains(&order.id);
        let mut idle: Vec<&Order> = self.ledger.orders.values().filter(idle).collect();
        idle.sort_by_key(|order| order.at);
        let surplus = (idle.len() + 1).saturating_sub(IDLE_ORDERS);
        batch.extend(idle.into_iter().take(surplus).map(|order| Change::AcmeOrder(order.id.clone(), None)));
        let order = Order {
            id: self.id.clone(),
            account: account.id.clone(),
            holder: Holder::Instance(self.instance.clone()),
            replaces: replaces.filter(known),
            aliases: self.aliases.iter().filter(|(name, _)| names.contains(*name)).map(|(a, b)| (a.clone(), b.clone())).collect(),
            names,
            at: self.now,
            expires: self.now + ORDER_LIFE,
            begun: None,
            renewal: false,
            stage: Stage::Ready,
        };
        batch.push(Change::AcmeOrder(order.id.clone(), Some(order.clone())));
        Ok((Told::Order(order), batch))
    }

    /// Refuses names that are not the instance's; says so of each.
    fn allow(&self, names: &BTreeSet<String>) -> Result<(), Problem> {
        if names.is_empty() {
            return Err(Problem::new(400, "malformed", "the order has no identifiers"));
        }
        let own = self.names.iter().chain(self.aliases.keys()).cloned().collect::<Vec<_>>().join(", ");
        let refused: Vec<(String, Problem)> = names
            .iter()
            .filter(|name| !self.names.contains(*name) && !self.aliases.contains_key(*name))
            .map(|name| {
                let detail = match self.unproven.get(name) {
                    Some(saw) => format!("{name} is not proven to be this instance's: {saw}; `domain list` says what to set"),
                    None => format!("{name} is not this instance's: it may have {own}"),
                };
                (name.clone(), Problem::new(403, "rejectedIdentifier", detail))
            })
            .collect();
        match refused.first() {
            None => Ok(()),
            Some((_, first)) => Err(Problem { names: refused.clone(), ..first.clone() }),
        }
    }

    fn order(&self, account: &str, id: &str) -> Result<&Order, Problem> {
        let account = self.account(account)?;
        let found = self.ledger.orders.get(id).filter(|order| order.account == account.id && !self.is_over(order));
        found.ok_or_else(|| Problem::new(404, "malformed", "this account has no such order, or it has expired: order again"))
    }

    fn finalize(&self, account: &str, id: &str, asked: Work, names: &BTreeSet<String>) -> Answer {
        let mut order = self.order(account, id)?.clone();
        match &order.stage {
            Stage::Ready => {}
            // The client has not heard the first answer.
            Stage::Working(work) if work.csr == asked.csr => return Ok((Told::Order(order), Batch::new())),
            Stage::Valid(certificate) if self.ledger.certificates.get(certificate).is_some_and(|known| known.key == asked.key) => {
                return Ok((Told::Order(order), Batch::new()));
            }
            _ => return Err(Problem::new(403, "orderNotReady", "the order was finalized before: order again")),
        }
        // They may have been taken from it since it ordered.
        self.allow(&order.names)?;
        if *names != order.names {
            let list = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(", ");
            let detail = format!("the CSR is for {}, the order for {}", list(names), list(&order.names));
            return Err(Problem::new(400, "badCSR", detail));
        }
        let fits = |known: &&crate::spec::acme::Certificate| {
            known.holder == *self.instance && known.key == asked.key && known.names == order.names && known.is_fresh(self.now)
        };
        if let Some(known) = self.ledger.certificates.values().filter(fits).max_by_key(|known| known.not_after) {
            order.stage = Stage::Valid(known.id.clone());
        } else {
            budget::check(self.ledger, &Holder::Instance(self.instance.clone()), names, self.limits, self.now)?;
            order.begun = Some(self.now);
            order.renewal = budget::is_renewal(self.ledger, names);
            order.stage = Stage::Working(asked);
        }
        Ok((Told::Order(order.clone()), vec![Change::AcmeOrder(order.id.clone(), Some(order))]))
    }

    fn certificate(&self, is: impl Fn(&crate::spec::acme::Certificate) -> bool) -> Answer {
        let found = self.ledger.certificates.values().find(|known| known.holder == *self.instance && is(known));
        let found = found.ok_or_else(|| Problem::new(404, "malformed", "this instance has no such certificate"))?;
        Ok((Told::Certificate(Box::new(found.clone())), Batch::new()))
    }
}

/// What need not be remembered any longer.
pub fn prune(ledger: &Ledger, now: u64) -> Batch {
    let stale = |order: &&Order| match order.begun {
        None => order.expires <= now,
        Some(at) => at + ORDER_KEPT <= now,
    };
    let orders = ledger.orders.values().filter(stale).map(|order| Change::AcmeOrder(order.id.clone(), None));
    let ended = ledger.certificates.values().filter(|known| known.not_after + CERTIFICATE_KEPT <= now);
    orders.chain(ended.map(|known| Change::AcmeCertificate(known.id.clone(), None))).collect()
}
