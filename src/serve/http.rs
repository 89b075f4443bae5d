//! The HTTP and the HTTPS door: what forges say over their webhooks. A request has a deadline for its head, one for its body, and a limit
//! for its size; a connection counts among the strangers of its neighbourhood. What a delivery is about is read here, where a parser can do
//! no harm; whether it is signed, and what comes of it, the agent decides.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{
    Extension, Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    Doors,
    acme::own::Tls,
    ask,
    crowd::{Crowd, Place},
    https::{Counted, Hello},
    proxy, smart_http,
    sockets::Listener,
};
use crate::{
    bus::{Refusal, github::GitHubProxy},
    spec::name::RefName,
};

/// The largest delivery. GitHub's are a few thousand bytes, unless somebody pushes hundreds of commits at once: then the branch is looked at
/// when it is its time.
const MAX_BODY: usize = 1 << 20;
/// How long a client may take for the head of a request, and then for its body.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection may last; with a clone on it, longer.
const LONGEST: Duration = Duration::from_secs(60);
const LONGEST_CLONE: Duration = Duration::from_secs(3600);
/// A connection over which nothing goes for this long is given up.
const STALLED: Duration = Duration::from_secs(60);

/// How long whatever stands in front of the door may take to say whose a connection is.
const PROXY_PATIENCE: Duration = Duration::from_secs(5);

/// What requests share.
#[derive(Clone)]
struct Shared {
    doors: Arc<Doors>,
    /// So many deliveries are with the agent at a time: anybody may send one.
    turns: Arc<Semaphore>,
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client(pub IpAddr);

/// The HTTP door or the HTTPS door.
pub(super) struct Door {
    doors: Arc<Doors>,
    // One of its own: who floods one door keeps nobody from the other.
    crowd: Arc<Crowd>,
    router: Router,
    /// What is said before anything else; `None`: nothing, it is plain HTTP.
    hello: Option<Hello>,
}

impl Door {
    /// The HTTP door. Pages of the git hosting are elsewhere once there is a certificate.
    pub(super) fn plain(doors: &Arc<Doors>, tls: watch::Receiver<Tls>) -> Arc<Self> {
        let silo = format!("silo.{}", doors.settings.domain);
        let moved = axum::middleware::from_fn(move |request: Request<Body>, next: Next| {
            let elsewhere = elsewhere(&request, &silo).filter(|_| tls.borrow().is_some());
            async move {
                match elsewhere {
                    Some(url) => (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, url)]).into_response(),
                    None => next.run(request).await,
                }
            }
        });
        Arc::new(Self { doors: Arc::clone(doors), crowd: Arc::default(), router: router(doors).layer(moved), hello: None })
    }

    /// The HTTPS door.
    pub(super) fn secret(doors: &Arc<Doors>, hello: Hello) -> Arc<Self> {
        let router = router(doors).merge(smart_http::router(doors));
        Arc::new(Self { doors: Arc::clone(doors), crowd: Arc::default(), router, hello: Some(hello) })
    }
}

fn router(doors: &Arc<Doors>) -> Router {
    let shared = Shared { doors: Arc::clone(doors), turns: Arc::new(Semaphore::new(8)) };
    let what = format!(
        "This is {}, a Seed host: git push it a NixOS flake, and it boots. https://github.com/loomtex/seed\n",
        doors.settings.domain
    );
    Router::new().route("/webhook/github", post(webhook)).route("/", get(async move || what)).with_state(shared)
}

/// The same page over HTTPS, of what is asked of the git hosting.
fn elsewhere(request: &Request<Body>, silo: &str) -> Option<String> {
    let host = field(request.headers(), "host");
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let path = request.uri().path_and_query()?;
    (request.method() == Method::GET && name.eq_ignore_ascii_case(silo)).then(|| format!("https://{silo}{path}"))
}

/// Whose a connection is, and its place among the strangers of its neighbourhood.
struct Taken {
    client: IpAddr,
    close: CancellationToken,
    _place: Place,
}

impl Taken {
    fn new(door: &Door, client: IpAddr) -> Self {
        let close = CancellationToken::new();
        let place = door.crowd.enter(client, close.clone());
        Self { client, close, _place: place }
    }
}

/// A connection as it comes.
enum Arrived {
    /// In the order in which they came: else a newcomer could be taken for the one that has waited longest.
    Tcp(TcpStream, Taken),
    Unix(UnixStream),
}

async fn accept(door: &Door, listener: &Listener) -> std::io::Result<Arrived> {
    Ok(match listener {
        Listener::Tcp(listener) => {
            let (stream, peer) = listener.accept().await?;
            Arrived::Tcp(stream, Taken::new(door, peer.ip()))
        }
        Listener::Unix(listener) => Arrived::Unix(listener.accept().await?.0),
    })
}

/// Takes connections until the doors close.
pub(super) async fn listen(door: Arc<Door>, listener: Listener) {
    loop {
        let accepted = tokio::select! {
            // Cancel-safe: a connection that is not taken waits in its queue.
            accepted = accept(&door, &listener) => accepted,
            () = door.doors.stopping.cancelled() => return,
        };
        match accepted {
            Ok(arrived) => drop(tokio::spawn(receive(Arc::clone(&door), arrived))),
            Err(error) => {
                // Out of descriptors, most likely: give some time to come back.
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn receive(door: Arc<Door>, arrived: Arrived) {
    match arrived {
        Arrived::Tcp(stream, taken) => connection(&door, stream, taken).await,
        Arrived::Unix(mut stream) => match timeout(PROXY_PATIENCE, proxy::client(&mut stream)).await {
            Ok(Ok(client)) => {
                let taken = Taken::new(&door, client.unwrap_or(Ipv4Addr::LOCALHOST.into()));
                connection(&door, stream, taken).await;
            }
            Ok(Err(error)) => tracing::warn!(%error, "refused a connection that was not passed on as it should"),
            Err(_) => tracing::warn!("a connection was passed on without saying whose it is"),
        },
    }
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(door: &Door, stream: S, taken: Taken) {
    let Taken { client, close, _place } = taken;
    let Some(hello) = &door.hello else { return converse(door, stream, client, &close).await };
    let begun = tokio::select! {
        begun = timeout(PATIENCE, hello.begin(stream)) => begun.ok().flatten(),
        () = close.cancelled() => None,
        () = door.doors.stopping.cancelled() => None,
    };
    if let Some(stream) = begun {
        converse(door, stream, client, &close).await;
    }
}

async fn converse<S>(door: &Door, stream: S, client: IpAddr, close: &CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (stream, bytes) = Counted::new(stream);
    let stalled = async {
        let mut before = 0;
        loop {
            tokio::time::sleep(STALLED).await;
            match bytes.load(Ordering::Relaxed) {
                now if now == before => return,
                now => before = now,
            }
        }
    };
    let longest = if door.hello.is_some() { LONGEST_CLONE } else { LONGEST };
    let router = door.router.clone().layer(Extension(Client(client)));
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(16 << 10);
    let serving = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(serving);
    tokio::select! {
        // An error is the client's, and nobody is left to be told.
        served = &mut serving => drop(served),
        () = close.cancelled() => {}
        () = tokio::time::sleep(longest) => {}
        () = stalled => {}
        () = door.doors.stopping.cancelled() => {
            // What was asked is still answered.
            serving.as_mut().graceful_shutdown();
            drop(timeout(PATIENCE, serving).await);
        }
    }
}

/// `{"version":1,"result":…}`, or an error in the form of the shell's.
fn answer(status: StatusCode, document: &serde_json::Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{document}\n")).into_response()
}

fn result(word: &str) -> Response {
    answer(StatusCode::OK, &serde_json::json!({ "version": 1, "result": word }))
}

fn error(status: StatusCode, text: &str) -> Response {
    answer(status, &serde_json::json!({ "version": 1, "error": { "text": text } }))
}

fn field<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

async fn webhook(State(shared): State<Shared>, request: Request<Body>) -> Result<Response, Infallible> {
    Ok(heard(&shared, request).await.unwrap_or_else(|refused| refused))
}

/// One delivery. `Err` is an answer too.
async fn heard(shared: &Shared, request: Request<Body>) -> Result<Response, Response> {
    let (head, body) = request.into_parts();
    let signature = field(&head.headers, "x-hub-signature-256").to_owned();
    let event = field(&head.headers, "x-github-event").to_owned();
    if signature.is_empty() {
        return Err(error(StatusCode::UNAUTHORIZED, "there is no signature: give the webhook the plant's secret"));
    }
    let body = timeout(PATIENCE, axum::body::to_bytes(body, MAX_BODY)).await;
    let body = body.map_err(|_| error(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"))?;
    // Its length is the only thing that can be wrong with a body whose client is still there.
    let body =
        body.map_err(|_| error(StatusCode::PAYLOAD_TOO_LARGE, "more than 1 MiB: the branch is looked at when it is its time"))?;
    let told = match told(&event, field(&head.headers, "content-type"), &body) {
        Ok(Some(told)) => told,
        Ok(None) => return Ok(result("ignored")),
        Err(what) => return Err(error(StatusCode::BAD_REQUEST, what)),
    };
    let busy = || error(StatusCode::SERVICE_UNAVAILABLE, "this host is hearing as many deliveries as it can: send it again");
    let turn = timeout(PATIENCE, shared.turns.acquire()).await.map_err(|_| busy())?;
    let bus = shared.doors.agent.inner().connection();
    let asked = async {
        let proxy = GitHubProxy::builder(bus).cache_properties(zbus::proxy::CacheProperties::No).build().await?;
        proxy.hook(&told.repository, &told.branch, &signature, &body).await
    };
    let heard = match ask::text(&told.repository).and(ask::text(&told.branch)) {
        Ok(_) => ask::within(asked).await,
        Err(refusal) => Err(refusal),
    };
    drop(turn);
    match heard {
        Ok(word) => {
            tracing::info!(repository = told.repository, branch = told.branch, result = word, "heard a delivery");
            Ok(result(&word))
        }
        Err(refusal) => {
            let status = match &refusal {
                Refusal::Denied(_) => StatusCode::UNAUTHORIZED,
                Refusal::NotFound(_) | Refusal::Invalid(_) => StatusCode::BAD_REQUEST,
                Refusal::Failed(_) | Refusal::ZBus(_) => StatusCode::SERVICE_UNAVAILABLE,
            };
            Err(error(status, &ask::words(&refusal)))
        }
    }
}

/// What a delivery is about.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// `user/repo`
    pub repository: String,
    /// Empty for a ping.
    pub branch: String,
}

#[derive(Deserialize)]
struct Payload {
    #[serde(default)]
    r#ref: String,
    #[serde(default)]
    deleted: bool,
    repository: PayloadRepository,
}

#[derive(Deserialize)]
struct PayloadRepository {
    full_name: String,
}

/// Reads a delivery. `None` if it is of no interest: not a push, or not of a branch that could be deployed.
pub(super) fn told(event: &str, kind: &str, body: &Bytes) -> Result<Option<Told>, &'static str> {
    if !matches!(event, "push" | "ping") {
        return Ok(None);
    }
    let form = kind.starts_with("application/x-www-form-urlencoded");
    let json = if form { payload(body).ok_or("the form has no payload")? } else { body.to_vec() };
    let Payload { r#ref, deleted, repository } =
        serde_json::from_slice(&json).map_err(|_| "this is no delivery of a forge: there is no repository.full_name in it")?;
    let repository = repository.full_name;
    if repository.len() > 300 || !repository.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("the repository has no name that could be planted");
    }
    if event == "ping" {
        return Ok(Some(Told { repository, branch: String::new() }));
    }
    let branch = r#ref.parse::<RefName>().ok().filter(|branch| branch.is_branch() && !deleted);
    Ok(branch.map(|branch| Told { repository, branch: branch.to_string() }))
}

/// The value of `payload` in a form.
fn payload(form: &[u8]) -> Option<Vec<u8>> {
    let value = form.split(|b| *b == b'&').find_map(|pair| pair.strip_prefix(b"payload="))?;
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.iter();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(*rest.next()?).to_digit(16);
                (digit()? * 16 + digit()?) as u8
            }
            byte => *byte,
        });
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PUSH: &str =
        r#"{"ref":"refs/heads/main","before":"0","after":"1","repository":{"id":1,"full_name":"ann/app"},"commits":[]}"#;

    fn read(event: &str, kind: &str, body: &str) -> Result<Option<Told>, &'static str> {
        told(event, kind, &Bytes::copy_from_slice(body.as_bytes()))
    }

    #[test]
    fn a_delivery_is_read_whichever_way_it_comes() {
        let main = || Ok(Some(Told { repository: "ann/app".into(), branch: "refs/heads/main".into() }));
        assert_eq!(read("push", "application/json", PUSH), main());
        let form: String = PUSH.bytes().map(|b| format!("%{b:02X}")).collect();
        assert_eq!(read("push", "application/x-www-form-urlencoded", &format!("x=1&payload={form}")), main());
        let ping = r#"{"zen":"x","repository":{"full_name":"ann/app"}}"#;
        assert_eq!(read("ping", "application/json", ping), Ok(Some(Told { repository: "ann/app".into(), branch: String::new() })));
        for ignored in [
            PUSH.replace("refs/heads/main", "refs/tags/v1"),
            PUSH.replace("refs/heads/main", "refs/heads/-x"),
            PUSH.replace("\"ref\"", "\"deleted\":true,\"ref\""),
        ] {
            assert_eq!(read("push", "application/json", &ignored), Ok(None), "{ignored}");
        }
        assert_eq!(read("issues", "application/json", PUSH), Ok(None));
        for bad in ["", "[]", "{}", r#"{"repository":{"full_name":"a b"}}"#, r#"{"repository":"x"}"#] {
            assert!(read("push", "application/json", bad).is_err(), "{bad}");
        }
        for bad in ["", "payload", "payload=%7", "payload=%zz"] {
            assert!(read("push", "application/x-www-form-urlencoded", bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_body_is_read_as_what_it_is_not(bytes: Vec<u8>, form: bool) {
            let kind = if form { "application/x-www-form-urlencoded" } else { "application/json" };
            if let Ok(Some(told)) = told("push", kind, &Bytes::from(bytes)) {
                prop_assert!(told.branch.parse::<RefName>().is_ok() && !told.repository.contains(' '));
            }
        }
    }
}
