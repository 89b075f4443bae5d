//! The ACME door: an RFC 8555 server for the instances, at the gateway. It knows its caller by the tap, so nothing has to be proven to it;
//! what a caller may have is the agent's to say. Towards the CA it is one client with one account, which proves names in the host's own
//! DNS. The guest's key never leaves the guest: its CSR is passed on as it is.

mod account;
mod alias;
mod csr;
mod facade;
#[cfg(any(test, feature = "fuzz"))]
pub(super) mod fuzz;
mod jws;
mod key;
mod nonce;
pub mod own;
mod requests;
mod upstream;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    body::{Body, to_bytes},
    http::{Method, Request, Response, StatusCode, header},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Instant, sleep, timeout},
};

use self::facade::Facade;
use super::dns::Names;
use crate::bus::acme::{AcmeProxy, Problem};

/// What the ACME door needs to know of this host. From the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// Where instances are. Others are not even listened to.
    pub instances: Vec<IpNet>,
    /// `None`: there is no CA, and everybody is told so.
    pub ca: Option<Ca>,
}

/// The CA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ca {
    /// The address of its directory.
    pub directory: String,
    /// Whom it may write to.
    pub email: Option<String>,
    /// For external account binding: the id of a key, and the file that holds it in base64url.
    pub binding: Option<(String, PathBuf)>,
    /// The certificate that signs its HTTPS, if this host does not trust it anyway.
    pub root: Option<PathBuf>,
    /// The directory in which the account is kept.
    pub account: PathBuf,
}

/// Connections of one instance at a time, and of all.
const CONNECTIONS_OF_ONE: usize = 16;
const CONNECTIONS: usize = 1024;
/// Requests of one instance: as many at once, then so many a second.
const BURST: f64 = 100.0;
const PER_SECOND: f64 = 20.0;
/// The largest request; a CSR with an RSA key of 4096 bits and 100 names is half of it.
const LARGEST: usize = 32 * 1024;
/// How long a client may take for a request, and keep an idle connection.
const PATIENCE: Duration = Duration::from_secs(20);

/// What one address is doing.
#[derive(Debug)]
struct Visitor {
    connections: usize,
    tokens: f64,
    at: Instant,
}

/// The door, with everything behind it.
#[derive(Debug)]
pub struct Door {
    instances: Vec<IpNet>,
    agent: AcmeProxy<'static>,
    facade: Facade,
    visitors: Mutex<BTreeMap<IpAddr, Visitor>>,
}

impl Door {
    /// A door; `names` is the DNS door, in which the CA looks.
    pub fn new(settings: Settings, agent: AcmeProxy<'static>, names: Arc<Names>) -> Arc<Self> {
        let issuer = settings.ca.map(|ca| upstream::Issuer::new(ca, agent.clone(), names));
        let facade = Facade::new(agent.clone(), issuer);
        Arc::new(Self { instances: settings.instances, agent, facade, visitors: Mutex::default() })
    }

    /// Carries orders to the CA, those of an earlier life first. Never returns.
    pub async fn issue(self: Arc<Self>) {
        match self.facade.issuer() {
            Some(issuer) => issuer.run().await,
            None => std::future::pending().await,
        }
    }

    /// Who keeps the certificate of this host itself, and where it is seen; `look`: how often the agent is asked whether it is due.
    pub fn keeper(&self, names: BTreeSet<String>, look: Duration) -> (own::Keeper, watch::Receiver<own::Tls>) {
        let (tls, seen) = watch::channel(None);
        (own::Keeper { agent: self.agent.clone(), issuer: self.facade.issuer(), names, look, tls }, seen)
    }

    /// Counts a connection in, if its address may have one more.
    fn enter(self: &Arc<Self>, client: IpAddr) -> Option<Inside> {
        if !self.instances.iter().any(|net| net.contains(&client)) {
            return None;
        }
        let mut visitors = self.visitors.lock().unwrap_or_else(PoisonError::into_inner);
        if visitors.values().map(|visitor| visitor.connections).sum::<usize>() >= CONNECTIONS {
            return None;
        }
        visitors.retain(|_, visitor| visitor.connections > 0 || visitor.at.elapsed() < Duration::from_secs(60));
        let visitor = visitors.entry(client).or_insert_with(|| Visitor { connections: 0, tokens: BURST, at: Instant::now() });
        if visitor.connections >= CONNECTIONS_OF_ONE {
            return None;
        }
        visitor.connections += 1;
        Some(Inside { door: Arc::clone(self), client })
    }

    /// Whether an address may ask once more now.
    fn may_ask(&self, client: IpAddr) -> bool {
        let mut visitors = self.visitors.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(visitor) = visitors.get_mut(&client) else { return false };
        visitor.tokens = (visitor.tokens + visitor.at.elapsed().as_secs_f64() * PER_SECOND).min(BURST);
        visitor.at = Instant::now();
        if visitor.tokens < 1.0 {
            return false;
        }
        visitor.tokens -= 1.0;
        true
    }

    async fn answer(&self, client: IpAddr, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let mut answer = match self.facade.base(&parts) {
            Ok(base) => {
                let asked = self.ask(client, &base, &parts, body).await;
                let mut answer = asked.unwrap_or_else(|problem| facade::refuse(&problem));
                let index = format!("<{base}/acme/directory>;rel=\"index\"");
                facade::set(&mut answer, header::LINK, &index);
                answer
            }
            Err(problem) => facade::refuse(&problem),
        };
        // The directory is not asked twice for the same, and refusals need one to be answered.
        let wants = parts.method == Method::POST || parts.uri.path() == "/acme/new-nonce";
        if wants {
            facade::set(&mut answer, header::HeaderName::from_static("replay-nonce"), &self.facade.nonce(client));
        }
        facade::set(&mut answer, header::CACHE_CONTROL, "no-store");
        answer
    }

    async fn ask(
        &self,
        client: IpAddr,
        base: &str,
        parts: &axum::http::request::Parts,
        body: Body,
    ) -> Result<Response<Body>, Problem> {
        if !self.may_ask(client) {
            return Err(Problem::limited(format!("more than {PER_SECOND} requests a second: wait a little"), 2));
        }
        let path = parts.uri.path();
        let words: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        match (&parts.method, words.as_slice()) {
            (&Method::GET | &Method::HEAD, ["acme", "directory"]) => self.facade.directory(base),
            (&Method::HEAD, ["acme", "new-nonce"]) => Ok(facade::empty(StatusCode::OK)),
            (&Method::GET, ["acme", "new-nonce"]) => Ok(facade::empty(StatusCode::NO_CONTENT)),
            (&Method::GET, ["acme", "renewal-info", ari]) => self.facade.renewal(client, ari).await,
            (&Method::POST, ["acme", resource @ ..]) => {
                let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
                if kind != Some("application/jose+json") {
                    return Err(Problem::new(415, "malformed", "send a JWS, as application/jose+json"));
                }
                let body = timeout(PATIENCE, to_bytes(body, LARGEST)).await;
                let body = body.map_err(|_| Problem::new(408, "malformed", "the request did not come to its end"))?;
                let body = body.map_err(|_| Problem::new(413, "malformed", format!("a request has at most {LARGEST} bytes")))?;
                let call = facade::Call { client, base, url: format!("{base}{path}") };
                self.facade.post(&call, resource, &body).await
            }
            (&Method::GET, ["acme", ..]) => Err(Problem::new(405, "malformed", "ask with POST-as-GET")),
            _ => Err(Problem::new(404, "malformed", "there is no such resource: begin at /acme/directory")),
        }
    }
}

/// One connection's place; given back when dropped.
struct Inside {
    door: Arc<Door>,
    client: IpAddr,
}

impl Drop for Inside {
    fn drop(&mut self) {
        let mut visitors = self.door.visitors.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(visitor) = visitors.get_mut(&self.client) {
            visitor.connections -= 1;
        }
    }
}

/// Answers on a listener.
pub async fn listen(door: Arc<Door>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let client = peer.ip().to_canonical();
                let Some(inside) = door.enter(client) else { continue };
                tokio::spawn(async move {
                    converse(&inside, stream).await;
                    drop(inside);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "could not accept a connection");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(inside: &Inside, stream: TcpStream) {
    // Answers are one packet; waiting for more to send would only cost time.
    drop(stream.set_nodelay(true));
    let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async {
        Ok::<_, std::convert::Infallible>(inside.door.answer(inside.client, request.map(Body::new)).await)
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    // Whatever went wrong, the client sees that the connection ended.
    drop(connection.await);
}

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// How many cases a property is tried with: `SEED_CASES` for a long night.
#[cfg(test)]
fn cases() -> u32 {
    std::env::var("SEED_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(256)
}
