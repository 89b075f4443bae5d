//! The real CA: one account, orders carried to their end, whatever gets in between. What is to be done is asked of the agent, what came of
//! it is told to the agent, before the next step: so a kill at any point loses nothing, and the next life goes on with the CA's own order.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, ChallengeType, Error, Identifier, NewOrder, OrderStatus, RetryPolicy,
    RevocationReason, RevocationRequest,
};
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, sleep, timeout},
};

use super::{Ca, account, alias, csr};
use crate::{
    bus::{
        Refusal,
        acme::{AcmeProxy, Certificate, Order, Problem, Report, Stage, Window},
    },
    serve::{ask, dns::Names},
};

/// Orders that are worked on at a time, in all and of one namespace: a CA that is slow for one is slow for all.
const AT_ONCE: usize = 16;
const AT_ONCE_OF_ONE: usize = 4;
/// How long one attempt at an order may take; the CA may be slow, but not for ever.
const ATTEMPT: Duration = Duration::from_secs(180);
/// How often an order is attempted; with its pauses, this is about an hour.
const ATTEMPTS: u32 = 12;
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// How long the CA is left alone when it says that it is asked too much.
const QUIET: Duration = Duration::from_secs(3600);
/// How often the CA is asked when a certificate is to be renewed.
const WINDOW_KEPT: Duration = Duration::from_secs(6 * 3600);

/// How long secondaries may take to have a challenge.
const SECONDARIES: Duration = Duration::from_secs(15);

/// Carries orders to the CA.
#[derive(Debug)]
pub struct Issuer {
    ca: Ca,
    agent: AcmeProxy<'static>,
    names: Arc<Names>,
    account: tokio::sync::Mutex<Option<Known>>,
    /// Orders that are worked on; the receiver ends with the work.
    running: Mutex<BTreeMap<String, watch::Receiver<()>>>,
    slots: Semaphore,
    slots_of: Mutex<BTreeMap<String, Arc<Semaphore>>>,
    /// When the CA was last asked about a certificate's renewal.
    windows: Mutex<BTreeMap<String, Instant>>,
}

/// The account, kept out of sight: it holds a private key.
struct Known(Account);

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("account")
    }
}

/// Why an attempt has ended without a certificate.
#[derive(Debug)]
enum Trouble {
    /// The CA says no, and would again.
    Final(Problem),
    /// The next attempt may go well.
    Passing(String),
    /// The agent will not have it: the order is gone.
    Gone(String),
}

impl Issuer {
    /// One for `ca`, which looks into the DNS door for its proofs.
    pub fn new(ca: Ca, agent: AcmeProxy<'static>, names: Arc<Names>) -> Arc<Self> {
        Arc::new(Self {
            ca,
            agent,
            names,
            account: tokio::sync::Mutex::default(),
            running: Mutex::default(),
            slots: Semaphore::new(AT_ONCE),
            slots_of: Mutex::default(),
            windows: Mutex::default(),
        })
    }

    /// Takes up what an earlier life has left, and from then on what was missed.
    pub async fn run(self: Arc<Self>) {
        loop {
            let pause = match ask::document::<Vec<Order>>(self.agent.work()).await {
                Ok(orders) => {
                    orders.into_iter().for_each(|order| self.pursue(order));
                    Duration::from_secs(60)
                }
                Err(refusal) => {
                    tracing::debug!(%refusal, "the agent does not say which orders there are");
                    Duration::from_secs(2)
                }
            };
            sleep(pause).await;
        }
    }

    /// Works on an order in a task of its own, once.
    pub fn pursue(self: &Arc<Self>, order: Order) {
        let (working, done) = watch::channel(());
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.contains_key(&order.id) {
            return;
        }
        running.insert(order.id.clone(), done);
        drop(running);
        let issuer = Arc::clone(self);
        tokio::spawn(async move {
            let id = order.id.clone();
            issuer.work(order).await;
            issuer.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            drop(working);
        });
    }

    /// Waits for the end of the work on an order, but not longer than `patience`.
    pub async fn wait(&self, order: &str, patience: Duration) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).get(order).cloned();
        if let Some(mut running) = running {
            // Its sender says nothing; it is dropped at the end.
            drop(timeout(patience, running.changed()).await);
        }
    }

    /// Where keys are kept that only the doors can read.
    pub fn directory(&self) -> &std::path::Path {
        &self.ca.account
    }

    /// Refuses an order for names of which the CA would find no proof here.
    pub async fn led_here(&self, order: &Order) -> Result<(), Problem> {
        alias::led_here(&self.names, order).await
    }

    async fn work(&self, mut order: Order) {
        // The host itself has a lane of its own.
        let namespace = order.holder.namespace().map(ToString::to_string).unwrap_or_default();
        let own = {
            let mut slots = self.slots_of.lock().unwrap_or_else(PoisonError::into_inner);
            slots.retain(|_, slots| Arc::strong_count(slots) > 1);
            Arc::clone(slots.entry(namespace).or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE_OF_ONE))))
        };
        let mut pause = Duration::from_secs(1);
        // What an earlier life has begun may have failed because the CA looked while nobody answered.
        let mut inherited = matches!(&order.stage, Stage::Working(work) if work.upstream.is_some());
        for attempt in 1..=ATTEMPTS {
            let result = {
                let Ok(_own) = own.acquire().await else { return };
                let Ok(_slot) = self.slots.acquire().await else { return };
                timeout(ATTEMPT, self.attempt(&mut order)).await
            };
            let why = match result {
                Ok(Ok(())) => return,
                Ok(Err(Trouble::Final(problem))) if std::mem::take(&mut inherited) && problem.kind != "rateLimited" => {
                    if let Stage::Working(work) = &mut order.stage {
                        work.upstream = None;
                    }
                    problem.to_string()
                }
                Ok(Err(Trouble::Final(problem))) => return self.fail(&order, problem).await,
                Ok(Err(Trouble::Gone(why))) => return tracing::info!(order = order.id, why, "gave up an order"),
                Ok(Err(Trouble::Passing(why))) => why,
                Err(_) => format!("the CA did not get done within {} s", ATTEMPT.as_secs()),
            };
            tracing::warn!(holder = %order.holder, attempt, why, "the CA gave no certificate yet; trying again");
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.fail(&order, Problem::new(503, "serverInternal", "the CA could not be reached for an hour: order again later")).await;
    }

    async fn fail(&self, order: &Order, problem: Problem) {
        if let Err(trouble) = self.report(&Report::Failed { order: order.id.clone(), problem }).await {
            tracing::warn!(order = order.id, ?trouble, "could not say that an order failed");
        }
    }

    /// Carries an order as far as it goes.
    async fn attempt(&self, order: &mut Order) -> Result<(), Trouble> {
        let result = self.steps(order).await;
        if let Err(Trouble::Passing(why)) = &result
            && why.contains("accountDoesNotExist")
        {
            tracing::warn!("the CA does not know this host's account any more: a new one is made");
            *self.account.lock().await = None;
            account::forget(&self.ca);
        }
        result
    }

    async fn steps(&self, order: &mut Order) -> Result<(), Trouble> {
        let Stage::Working(work) = &order.stage else { return Ok(()) };
        let (request, key) = (BASE64_URL_SAFE_NO_PAD.decode(&work.csr), work.key.clone());
        let request = request.map_err(|_| Trouble::Final(Problem::new(400, "badCSR", "the CSR is no base64url")))?;
        let ca = self.account().await?;
        let known = match &work.upstream {
            Some(url) => match ca.order(url.clone()).await {
                Ok(known) => Some(known),
                // It has forgotten it, or it has expired there.
                Err(Error::Api(problem)) if matches!(problem.status, Some(403 | 404)) || is(&problem, "malformed") => None,
                Err(error) => return Err(self.trouble(error)),
            },
            None => None,
        };
        let mut theirs = match known {
            Some(known) => known,
            None => self.begin(&ca, order).await?,
        };
        // Short at first: a CA near by answers at once; Let's Encrypt says itself how long to wait.
        let patience =
            RetryPolicy::new().initial_delay(Duration::from_millis(60)).backoff(1.5).timeout(ATTEMPT - Duration::from_secs(20));
        if theirs.state().status == OrderStatus::Pending {
            self.prove(order, &mut theirs).await?;
            match theirs.poll_ready(&patience).await {
                Ok(OrderStatus::Invalid) => return Err(Trouble::Final(blame(&mut theirs).await)),
                Ok(_) => {}
                Err(Error::Api(_)) if theirs.state().status == OrderStatus::Invalid => {
                    return Err(Trouble::Final(blame(&mut theirs).await));
                }
                // Of the question and not of the order: a nonce that the CA did not like, a minute in which it is not well.
                Err(error) => return Err(self.trouble(error)),
            }
        }
        if theirs.state().status == OrderStatus::Invalid {
            return Err(Trouble::Final(blame(&mut theirs).await));
        }
        if theirs.state().status == OrderStatus::Ready {
            theirs.finalize_csr(&request).await.map_err(|error| self.trouble(error))?;
        }
        let chain = match theirs.state().status {
            // What is there already need not be waited for.
            OrderStatus::Valid => theirs.certificate().await.map(Option::unwrap_or_default),
            _ => theirs.poll_certificate(&patience).await,
        };
        let chain = chain.map_err(|error| self.trouble(error))?;
        let issued = csr::issued(&chain, &order.names, &key, now()).map_err(|what| {
            tracing::error!(holder = %order.holder, what, "the CA did not issue what was asked for");
            Trouble::Final(Problem::new(500, "serverInternal", format!("the CA sent something else: {what}")))
        })?;
        self.report(&Report::Issued {
            order: order.id.clone(),
            chain,
            fingerprint: issued.fingerprint,
            ari: issued.ari,
            not_before: issued.not_before,
            not_after: issued.not_after,
        })
        .await
    }

    /// Makes an order at the CA, and remembers it before anything else is done with it.
    async fn begin(&self, ca: &Account, order: &mut Order) -> Result<instant_acme::Order, Trouble> {
        self.led_here(order).await.map_err(Trouble::Final)?;
        let names: Vec<Identifier> = order.names.iter().cloned().map(Identifier::Dns).collect();
        let replaces = order.replaces.as_deref().and_then(certificate_id);
        let plain = NewOrder::new(&names);
        let made = match replaces {
            Some(replaces) => match ca.new_order(&NewOrder::new(&names).replaces(replaces)).await {
                // It is a courtesy; a CA that does not know it, or has replaced it already, gets the order without.
                Err(Error::Unsupported(_) | Error::Other(_)) => ca.new_order(&plain).await,
                Err(Error::Api(problem))
                    if is(&problem, "malformed") || is(&problem, "alreadyReplaced") || problem.status == Some(404) =>
                {
                    ca.new_order(&plain).await
                }
                made => made,
            },
            None => ca.new_order(&plain).await,
        };
        let made = made.map_err(|error| self.trouble(error))?;
        let upstream = made.url().to_owned();
        self.report(&Report::Begun { order: order.id.clone(), upstream: upstream.clone() }).await?;
        if let Stage::Working(work) = &mut order.stage {
            work.upstream = Some(upstream);
        }
        Ok(made)
    }

    /// Puts what the CA looks for into the DNS, and tells it to look.
    async fn prove(&self, order: &Order, theirs: &mut instant_acme::Order) -> Result<(), Trouble> {
        let mut authorizations = theirs.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(|error| self.trouble(error))?;
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            let of = match authorization.identifier().identifier {
                Identifier::Dns(name) => name.clone(),
                _ => return Err(Trouble::Final(Problem::new(500, "serverInternal", "the CA wants a proof of what is no name"))),
            };
            let Some(mut challenge) = authorization.challenge(ChallengeType::Dns01) else {
                return Err(Trouble::Final(Problem::new(500, "serverInternal", "the CA does not offer dns-01")));
            };
            let value = challenge.key_authorization().dns_value();
            let name = format!("_acme-challenge.{of}");
            let shown = order.aliases.get(&of).unwrap_or(&name).clone();
            self.report(&Report::Challenge { order: order.id.clone(), name, value: value.clone() }).await?;
            self.visible(&shown, &value).await?;
            match challenge.set_ready().await {
                // An earlier life has said so already; how it went is seen of the order.
                Err(Error::Api(problem)) if is(&problem, "malformed") => {}
                told => told.map_err(|error| self.trouble(error))?,
            }
        }
        Ok(())
    }

    /// Waits until the DNS door answers with a challenge: it learns of it by its own way.
    async fn visible(&self, name: &str, value: &str) -> Result<(), Trouble> {
        let began = Instant::now();
        while !self.names.says(name, value) {
            if began.elapsed() > Duration::from_secs(15) {
                return Err(Trouble::Passing("this host's own DNS does not answer with the challenge".to_owned()));
            }
            // A change takes about a millisecond to get there.
            sleep(Duration::from_millis(1)).await;
        }
        // The CA may ask any of them. One that is away is its reason to ask another.
        let began = Instant::now();
        while !self.names.secondaries_say(name, value).await {
            if began.elapsed() > SECONDARIES {
                tracing::warn!(name, "a secondary does not answer with a challenge: the CA is told to look all the same");
                break;
            }
            sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    /// The account at the CA: known, remembered, or made now.
    async fn account(&self) -> Result<Account, Trouble> {
        let mut known = self.account.lock().await;
        if let Some(known) = &*known {
            return Ok(known.0.clone());
        }
        let account = account::load_or_make(&self.ca, &self.agent).await.map_err(|error| match error {
            account::AccountError::Ca(error) => self.trouble(error),
            error => Trouble::Passing(crate::serve::acme::chain(&error)),
        })?;
        *known = Some(Known(account.clone()));
        Ok(account)
    }

    /// Revokes a certificate.
    pub async fn revoke(&self, certificate: &Certificate, der: Vec<u8>, reason: Option<u8>) -> Result<(), Problem> {
        let reason = match reason {
            None => None,
            Some(0) => Some(RevocationReason::Unspecified),
            Some(1) => Some(RevocationReason::KeyCompromise),
            Some(3) => Some(RevocationReason::AffiliationChanged),
            Some(4) => Some(RevocationReason::Superseded),
            Some(5) => Some(RevocationReason::CessationOfOperation),
            Some(other) => {
                return Err(Problem::new(400, "badRevocationReason", format!("{other} is none of 0, 1, 3, 4, 5")));
            }
        };
        let der = der.into();
        let revoked = async {
            let ca = self.account().await?;
            match ca.revoke(&RevocationRequest { certificate: &der, reason }).await {
                Err(Error::Api(problem)) if is(&problem, "alreadyRevoked") => Ok(()),
                result => result.map_err(|error| self.trouble(error)),
            }?;
            self.report(&Report::Revoked { certificate: certificate.id.clone() }).await
        };
        match timeout(Duration::from_secs(30), revoked).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Trouble::Final(problem))) => Err(problem),
            Ok(Err(Trouble::Passing(why) | Trouble::Gone(why))) => {
                tracing::warn!(certificate = certificate.id, why, "could not revoke a certificate");
                Err(Problem {
                    retry_after: Some(10),
                    ..Problem::new(503, "serverInternal", "the CA could not be asked: try again")
                })
            }
            Err(_) => Err(Problem::new(503, "serverInternal", "the CA did not answer in time: try again")),
        }
    }

    /// When the CA wants a certificate renewed; it is asked a few times a day. `None` if it does not say.
    pub async fn window(&self, certificate: &Certificate) -> Option<Window> {
        let id = certificate_id(&certificate.ari)?;
        {
            let mut asked = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
            asked.retain(|_, at| at.elapsed() < WINDOW_KEPT);
            if asked.contains_key(&certificate.id) {
                return certificate.window;
            }
            asked.insert(certificate.id.clone(), Instant::now());
        }
        let asked = async {
            let ca = self.account().await.ok()?;
            let (info, _) = ca.renewal_info(&id).await.ok()?;
            let secs = |time: i64| u64::try_from(time).unwrap_or(0);
            let window = info.suggested_window;
            let window = Window { start: secs(window.start.unix_timestamp()), end: secs(window.end.unix_timestamp()) };
            // A CA that says nonsense is as good as one that says nothing.
            (window.start < window.end && window.end <= certificate.not_after).then_some(window)
        };
        let window = timeout(Duration::from_secs(10), asked).await.ok().flatten()?;
        if certificate.window != Some(window) {
            let report = Report::Window { certificate: certificate.id.clone(), window };
            if let Err(trouble) = self.report(&report).await {
                tracing::debug!(?trouble, "could not remember when to renew");
            }
        }
        Some(window)
    }

    /// Tells the agent, and waits for one that is away.
    async fn report(&self, report: &Report) -> Result<(), Trouble> {
        let text = serde_json::to_string(report).expect("plain data is JSON");
        for _ in 0..30 {
            match ask::within(self.agent.report(&text)).await {
                Ok(()) => return Ok(()),
                Err(refusal) if ask::away(&refusal) => sleep(Duration::from_secs(1)).await,
                Err(Refusal::Invalid(why)) => return Err(Trouble::Gone(why)),
                Err(refusal) => return Err(Trouble::Passing(ask::words(&refusal))),
            }
        }
        Err(Trouble::Passing("the agent is away".to_owned()))
    }

    /// What an error of the CA means for an order.
    fn trouble(&self, error: Error) -> Trouble {
        let Error::Api(problem) = error else { return Trouble::Passing(crate::serve::acme::chain(&error)) };
        let passing = ["badNonce", "serverInternal", "accountDoesNotExist", "orderNotReady"];
        if is(&problem, "rateLimited") {
            // The agent remembers it with the order, and who else is to wait.
            tracing::error!(%problem, "the CA says that too much was asked of it");
            let detail = "the CA wants this host to wait".to_owned();
            return Trouble::Final(Problem::limited(detail, QUIET.as_secs()));
        }
        if passing.iter().any(|kind| is(&problem, kind)) || problem.status.is_some_and(|status| status >= 500) {
            return Trouble::Passing(problem.to_string());
        }
        Trouble::Final(as_ours(&problem))
    }
}

fn is(problem: &instant_acme::Problem, kind: &str) -> bool {
    problem.r#type.as_deref().and_then(|text| text.strip_prefix("urn:ietf:params:acme:error:")) == Some(kind)
}

/// A problem of the CA's, as it is passed on: its type if it is one of the RFC's, its words cut short.
fn as_ours(problem: &instant_acme::Problem) -> Problem {
    let kind = problem.r#type.as_deref().and_then(|text| text.strip_prefix("urn:ietf:params:acme:error:"));
    let kind = kind.filter(|kind| !kind.is_empty() && kind.len() < 40 && kind.bytes().all(|byte| byte.is_ascii_alphabetic()));
    let detail: String = problem.detail.as_deref().unwrap_or("no reason given").chars().take(500).collect();
    let status = problem.status.filter(|status| (400..600).contains(status)).unwrap_or(403);
    Problem::new(status, kind.unwrap_or("serverInternal"), format!("the CA says: {detail}"))
}

/// Why the CA holds an order for invalid: what it says of the challenges, else of the order.
async fn blame(theirs: &mut instant_acme::Order) -> Problem {
    let mut found = theirs.state().error.as_ref().map(as_ours);
    let mut authorizations = theirs.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if let Ok(state) = authorization.refresh().await
            && let Some(error) = state.challenges.iter().find_map(|challenge| challenge.error.as_ref())
        {
            found = Some(as_ours(error));
        }
    }
    found.unwrap_or_else(|| Problem::new(403, "unauthorized", "the CA holds the order for invalid, and does not say why"))
}

fn certificate_id(ari: &str) -> Option<CertificateIdentifier<'_>> {
    let (authority, serial) = ari.split_once('.')?;
    Some(CertificateIdentifier { authority_key_identifier: authority.into(), serial: serial.into() })
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Where the account is kept.
pub(super) fn account_file(ca: &Ca) -> PathBuf {
    ca.account.join(format!("account-{}.json", &csr::fingerprint(ca.directory.as_bytes())[..12]))
}
