//! The resources of RFC 8555, section 7. A request is checked in the RFC's order; then it is a question to the agent.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, Response, StatusCode, header, request::Parts},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::{
    csr::{self, Csr},
    jws::{Jws, Signer},
    key::{Algorithm, Key},
    nonce::Nonces,
    requests::{Finalize, KeyChange, NewAccount, NewOrder, Revoke, Update, contacts},
    upstream::Issuer,
};
use crate::{
    bus::acme::{Account, AcmeProxy, Order, Problem, Question, Stage, Told},
    serve::{ask, shell::instant},
};

/// How long an answer about an order waits for its certificate: asking again costs both sides more.
const WAIT: Duration = Duration::from_secs(5);
/// How often a client is to ask when to renew.
const RENEWAL_EVERY: u64 = 6 * 3600;

/// The server, without its sockets.
#[derive(Debug)]
pub struct Facade {
    agent: AcmeProxy<'static>,
    issuer: Option<Arc<Issuer>>,
    nonces: Nonces,
}

/// One request.
pub struct Call<'a> {
    pub client: IpAddr,
    /// `http://10.83.0.1:9876`
    pub base: &'a str,
    pub url: String,
}

type Answer = Result<Response<Body>, Problem>;

fn malformed(detail: &str) -> Problem {
    Problem::new(400, "malformed", detail)
}

/// An answer without a body.
pub fn empty(status: StatusCode) -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = status;
    answer
}

/// Sets a header. A value that cannot stand in one is left out: it can only have come from a client.
pub fn set(answer: &mut Response<Body>, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers_mut().append(name, value);
    }
}

fn document(status: StatusCode, kind: &'static str, text: String) -> Response<Body> {
    let mut answer = Response::new(Body::from(text));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

fn object(status: StatusCode, value: &Value) -> Response<Body> {
    document(status, "application/json", value.to_string())
}

/// A problem as a document (RFC 7807, RFC 8555 section 6.7).
fn problem_object(problem: &Problem) -> Value {
    let mut value = json!({
        "type": format!("urn:ietf:params:acme:error:{}", problem.kind),
        "detail": problem.detail,
        "status": problem.status,
    });
    if problem.kind == "badSignatureAlgorithm" {
        value["algorithms"] = json!(Algorithm::NAMES.map(|(name, _)| name));
    }
    if !problem.names.is_empty() {
        let sub = |(name, problem): &(String, Problem)| {
            let mut value = problem_object(problem);
            value["identifier"] = json!({ "type": "dns", "value": name });
            value
        };
        value["subproblems"] = problem.names.iter().map(sub).collect();
    }
    value
}

/// A refusal as an answer.
pub fn refuse(problem: &Problem) -> Response<Body> {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut answer = document(status, "application/problem+json", problem_object(problem).to_string());
    if let Some(secs) = problem.retry_after {
        set(&mut answer, header::RETRY_AFTER, &secs.to_string());
    }
    answer
}

impl Facade {
    pub fn new(agent: AcmeProxy<'static>, issuer: Option<Arc<Issuer>>) -> Self {
        Self { agent, issuer, nonces: Nonces::default() }
    }

    /// Who asks the CA.
    pub fn issuer(&self) -> Option<Arc<Issuer>> {
        self.issuer.clone()
    }

    /// A new nonce for a client.
    pub fn nonce(&self, client: IpAddr) -> String {
        self.nonces.issue(client)
    }

    /// The address by which the client has come, to begin others with.
    pub fn base(&self, parts: &Parts) -> Result<String, Problem> {
        let host = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".:-[]".contains(&byte);
        if host.is_empty() || host.len() > 255 || !host.bytes().all(plain) {
            return Err(malformed("the request needs the header Host"));
        }
        Ok(format!("http://{host}"))
    }

    fn need_issuer(&self) -> Result<&Arc<Issuer>, Problem> {
        let none = || Problem::new(503, "serverInternal", "this host has no CA: its operator sets [acme] directory in seed.toml");
        self.issuer.as_ref().ok_or_else(none)
    }

    pub fn directory(&self, base: &str) -> Answer {
        self.need_issuer()?;
        let at = |resource: &str| format!("{base}/acme/{resource}");
        Ok(object(
            StatusCode::OK,
            &json!({
                "newNonce": at("new-nonce"), "newAccount": at("new-account"), "newOrder": at("new-order"),
                "revokeCert": at("revoke-cert"), "keyChange": at("key-change"), "renewalInfo": at("renewal-info"),
                "meta": { "externalAccountRequired": false },
            }),
        ))
    }

    async fn ask(&self, client: IpAddr, question: &Question) -> Result<Told, Problem> {
        let text = serde_json::to_string(question).expect("plain data is JSON");
        match ask::document(self.agent.ask(&client.to_string(), &text)).await {
            Ok(Told::Problem(problem)) => Err(problem),
            Ok(told) => Ok(told),
            Err(refusal) => Err(Problem { retry_after: Some(2), ..Problem::new(503, "serverInternal", ask::words(&refusal)) }),
        }
    }

    /// Answers a signed request for a resource, given as the words of its path.
    pub async fn post(&self, call: &Call<'_>, resource: &[&str], body: &[u8]) -> Answer {
        self.need_issuer()?;
        let jws = Jws::parse(body)?;
        if jws.url != call.url {
            return Err(Problem::new(401, "unauthorized", "the signed url is not the one that was asked"));
        }
        if !jws.nonce.as_deref().is_some_and(|nonce| self.nonces.spend(call.client, nonce)) {
            return Err(Problem::new(400, "badNonce", "the nonce is not good any more: take the one of this answer"));
        }
        match (resource, &jws.signer) {
            (["new-account"], Signer::Key(key)) => {
                jws.verify(key)?;
                self.new_account(call, &jws, key).await
            }
            (["revoke-cert"], Signer::Key(key)) => {
                jws.verify(key)?;
                self.revoke(call, &jws, Some(key)).await
            }
            (_, Signer::Key(_)) => Err(malformed("sign with the account: the header needs kid, and no jwk")),
            (["new-account"], Signer::Account(_)) => Err(malformed("sign with the new key: the header needs jwk, and no kid")),
            (_, Signer::Account(kid)) => {
                let id = kid.strip_prefix(&format!("{}/acme/account/", call.base)).unwrap_or_default().to_owned();
                let Told::Account(account, _) = self.ask(call.client, &Question::Account { id }).await? else { return Err(bug()) };
                jws.verify(&Key::from_canonical(&account.key)?)?;
                self.of_account(call, resource, &jws, account).await
            }
        }
    }

    async fn of_account(&self, call: &Call<'_>, resource: &[&str], jws: &Jws, account: Account) -> Answer {
        let get = jws.payload.is_empty();
        let id = account.id.clone();
        match resource {
            ["account", own, rest @ ..] if *own != id => {
                let _ = rest;
                Err(Problem::new(403, "unauthorized", "this is another's account"))
            }
            ["account", _] if get => Ok(account_object(call, StatusCode::OK, &account)),
            ["account", _] => self.update(call, jws, id).await,
            ["account", _, "orders"] => {
                let Told::Orders(orders) = self.ask(call.client, &Question::Orders { account: id }).await? else {
                    return Err(bug());
                };
                let orders: Vec<String> = orders.iter().map(|order| format!("{}/acme/order/{order}", call.base)).collect();
                Ok(object(StatusCode::OK, &json!({ "orders": orders })))
            }
            ["key-change"] => self.change_key(call, jws, account).await,
            ["new-order"] => self.new_order(call, jws, id).await,
            ["order", order, "finalize"] => self.finalize(call, jws, &account, order).await,
            ["revoke-cert"] => self.revoke(call, jws, None).await,
            _ if !get => match resource {
                // What the host knows of its instances needs no proof; a client that goes on to prove it all the same is told so.
                ["challenge", order, n] => self.challenge(call, id, order, n).await,
                ["authz", ..] => Err(Problem::new(403, "unauthorized", "what this host knows of its instances cannot be given up")),
                _ => Err(malformed("ask for this with POST-as-GET: an empty payload")),
            },
            ["order", order] => {
                let order = self.order(call, id, order, WAIT).await?;
                Ok(order_object(call, StatusCode::OK, &order))
            }
            ["authz", order, n] => {
                let order = self.order(call, id, order, Duration::ZERO).await?;
                let name = nth(&order, n)?;
                Ok(object(
                    StatusCode::OK,
                    &json!({
                        "status": "valid", "expires": instant(order.expires), "identifier": { "type": "dns", "value": name },
                        "challenges": [challenge_object(call, &order, n)],
                    }),
                ))
            }
            ["challenge", order, n] => self.challenge(call, id, order, n).await,
            ["certificate", certificate] => {
                let question = Question::Certificate { account: id, id: (*certificate).to_owned() };
                let Told::Certificate(certificate) = self.ask(call.client, &question).await? else { return Err(bug()) };
                Ok(document(StatusCode::OK, "application/pem-certificate-chain", certificate.chain))
            }
            _ => Err(Problem::new(404, "malformed", "there is no such resource: begin at /acme/directory")),
        }
    }

    async fn new_account(&self, call: &Call<'_>, jws: &Jws, key: &Key) -> Answer {
        let asked: NewAccount = jws.document()?;
        let contact = contacts(asked.contact)?;
        let question = Question::Register { key: key.canonical().to_owned(), contact, existing: asked.only_return_existing };
        let Told::Account(account, new) = self.ask(call.client, &question).await? else { return Err(bug()) };
        Ok(account_object(call, if new { StatusCode::CREATED } else { StatusCode::OK }, &account))
    }

    async fn update(&self, call: &Call<'_>, jws: &Jws, account: String) -> Answer {
        let asked: Update = jws.document()?;
        let deactivate = match asked.status.as_deref() {
            None | Some("" | "valid") => false,
            Some("deactivated") => true,
            Some(other) => return Err(malformed(&format!("an account cannot be set to {other:.40}"))),
        };
        let contact = asked.contact.map(|contact| contacts(Some(contact))).transpose()?;
        let question = Question::Update { account, contact, deactivate };
        let Told::Account(account, _) = self.ask(call.client, &question).await? else { return Err(bug()) };
        Ok(account_object(call, StatusCode::OK, &account))
    }

    async fn change_key(&self, call: &Call<'_>, jws: &Jws, account: Account) -> Answer {
        let inner = Jws::parse(&jws.payload)?;
        let Signer::Key(new) = &inner.signer else { return Err(malformed("the inner JWS needs the new key as jwk")) };
        inner.verify(new)?;
        let asked: KeyChange = inner.document()?;
        let own = format!("{}/acme/account/{}", call.base, account.id);
        let old = Key::from_jwk(&asked.old_key)?;
        if inner.url != call.url || inner.nonce.is_some() || asked.account != own || old.canonical() != account.key {
            return Err(malformed("the inner JWS names another url, account or old key than the outer one, or has a nonce"));
        }
        let question = Question::ChangeKey { account: account.id, key: new.canonical().to_owned() };
        let Told::Account(account, _) = self.ask(call.client, &question).await? else { return Err(bug()) };
        Ok(account_object(call, StatusCode::OK, &account))
    }

    async fn new_order(&self, call: &Call<'_>, jws: &Jws, account: String) -> Answer {
        let asked: NewOrder = jws.document()?;
        let question =
            Question::NewOrder { account, names: asked.names()?, replaces: asked.replaces.filter(|ari| ari.len() < 200) };
        let Told::Order(order) = self.ask(call.client, &question).await? else { return Err(bug()) };
        // Said now rather than after the CA was asked in vain.
        self.need_issuer()?.led_here(&order).await?;
        Ok(order_object(call, StatusCode::CREATED, &order))
    }

    async fn order(&self, call: &Call<'_>, account: String, id: &str, wait: Duration) -> Result<Order, Problem> {
        let question = Question::Order { account, id: id.to_owned() };
        let Told::Order(order) = self.ask(call.client, &question).await? else { return Err(bug()) };
        if wait.is_zero() || !matches!(order.stage, Stage::Working(_)) {
            return Ok(order);
        }
        self.need_issuer()?.wait(&order.id, wait).await;
        let Told::Order(order) = self.ask(call.client, &question).await? else { return Err(bug()) };
        Ok(order)
    }

    async fn finalize(&self, call: &Call<'_>, jws: &Jws, account: &Account, id: &str) -> Answer {
        let asked: Finalize = jws.document()?;
        let der = BASE64_URL_SAFE_NO_PAD.decode(&asked.csr);
        let der = der.map_err(|_| Problem::new(400, "badCSR", "the CSR is no base64url"))?;
        let csr = Csr::parse(&der, &Key::from_canonical(&account.key)?)?;
        let issuer = self.need_issuer()?;
        let question =
            Question::Finalize { account: account.id.clone(), id: id.to_owned(), csr: asked.csr, key: csr.key, names: csr.names };
        let Told::Order(mut order) = self.ask(call.client, &question).await? else { return Err(bug()) };
        if matches!(order.stage, Stage::Working(_)) {
            issuer.pursue(order);
            order = self.order(call, account.id.clone(), id, WAIT).await?;
        }
        Ok(order_object(call, StatusCode::OK, &order))
    }

    async fn challenge(&self, call: &Call<'_>, account: String, order: &str, n: &str) -> Answer {
        let order = self.order(call, account, order, Duration::ZERO).await?;
        nth(&order, n)?;
        let mut answer = object(StatusCode::OK, &challenge_object(call, &order, n));
        let up = format!("<{}/acme/authz/{}/{n}>;rel=\"up\"", call.base, order.id);
        set(&mut answer, header::LINK, &up);
        Ok(answer)
    }

    /// Revokes for the account of the instance that has the certificate, or for whoever has its key: `key`.
    async fn revoke(&self, call: &Call<'_>, jws: &Jws, key: Option<&Key>) -> Answer {
        let asked: Revoke = jws.document()?;
        let der = BASE64_URL_SAFE_NO_PAD.decode(&asked.certificate).map_err(|_| malformed("the certificate is no base64url"))?;
        let denied = || Problem::new(403, "unauthorized", "this certificate was not issued to this instance");
        if key.is_some_and(|key| !csr::is_key_of(key, &der)) {
            return Err(Problem::new(403, "unauthorized", "this is not the certificate's key"));
        }
        let question = Question::Issued { fingerprint: csr::fingerprint(&der) };
        let told =
            self.ask(call.client, &question).await.map_err(|problem| if problem.status == 404 { denied() } else { problem })?;
        let Told::Certificate(certificate) = told else { return Err(bug()) };
        if certificate.revoked {
            return Err(Problem::new(400, "alreadyRevoked", "the certificate was revoked before"));
        }
        self.need_issuer()?.revoke(&certificate, der, asked.reason).await?;
        Ok(empty(StatusCode::OK))
    }

    /// When to renew (RFC 9773).
    pub async fn renewal(&self, client: IpAddr, ari: &str) -> Answer {
        let issuer = self.need_issuer()?;
        let Told::Certificate(certificate) = self.ask(client, &Question::Renewal { ari: ari.to_owned() }).await? else {
            return Err(bug());
        };
        let asked = if certificate.revoked { None } else { issuer.window(&certificate).await };
        let window = asked.unwrap_or_else(|| certificate.window());
        let value = json!({ "suggestedWindow": { "start": instant(window.start), "end": instant(window.end) } });
        let mut answer = object(StatusCode::OK, &value);
        set(&mut answer, header::RETRY_AFTER, &RENEWAL_EVERY.to_string());
        Ok(answer)
    }
}

fn bug() -> Problem {
    Problem::new(500, "serverInternal", "this is a bug in Seed: the agent has answered something else")
}

/// The name that an authorization is about.
fn nth<'a>(order: &'a Order, n: &str) -> Result<&'a str, Problem> {
    let found = n.parse().ok().and_then(|n| order.names.iter().nth(n));
    found.map(String::as_str).ok_or_else(|| Problem::new(404, "malformed", "the order has no such authorization"))
}

fn challenge_object(call: &Call<'_>, order: &Order, n: &str) -> Value {
    json!({
        "type": "dns-01", "status": "valid", "url": format!("{}/acme/challenge/{}/{n}", call.base, order.id),
        // Nobody is asked for it; clients want one of this length.
        "token": csr::fingerprint(order.id.as_bytes())[..43],
        "validated": instant(order.at),
    })
}

fn account_object(call: &Call<'_>, status: StatusCode, account: &Account) -> Response<Body> {
    let url = format!("{}/acme/account/{}", call.base, account.id);
    let standing = if account.deactivated { "deactivated" } else { "valid" };
    let value = json!({ "status": standing, "contact": account.contact, "orders": format!("{url}/orders") });
    let mut answer = object(status, &value);
    set(&mut answer, header::LOCATION, &url);
    answer
}

fn order_object(call: &Call<'_>, status: StatusCode, order: &Order) -> Response<Body> {
    let url = format!("{}/acme/order/{}", call.base, order.id);
    let standing = match &order.stage {
        Stage::Ready => "ready",
        Stage::Working(_) => "processing",
        Stage::Valid(_) => "valid",
        Stage::Invalid(..) => "invalid",
    };
    let authorizations = (0..order.names.len()).map(|n| format!("{}/acme/authz/{}/{n}", call.base, order.id));
    let mut value = json!({
        "status": standing,
        "expires": instant(order.expires),
        "identifiers": order.names.iter().map(|name| json!({ "type": "dns", "value": name })).collect::<Vec<_>>(),
        "authorizations": authorizations.collect::<Vec<_>>(),
        "finalize": format!("{url}/finalize"),
    });
    match &order.stage {
        Stage::Valid(certificate) => value["certificate"] = json!(format!("{}/acme/certificate/{certificate}", call.base)),
        Stage::Invalid(_, problem) => value["error"] = problem_object(problem),
        Stage::Ready | Stage::Working(_) => {}
    }
    if let Some(replaces) = &order.replaces {
        value["replaces"] = json!(replaces);
    }
    let mut answer = object(status, &value);
    set(&mut answer, header::LOCATION, &url);
    if matches!(order.stage, Stage::Working(_)) {
        set(&mut answer, header::RETRY_AFTER, "2");
    }
    answer
}
