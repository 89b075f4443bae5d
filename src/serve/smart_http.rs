//! The git hosting over HTTPS, for reading and for anybody: clone and fetch by git's smart HTTP protocol, and a branch or tag as an archive.
//! Each request has a git of its own, which ends with the request, however that ends; so many run at a time, for all and for one
//! neighbourhood. Who pushes shows a key, over SSH.

use std::{io::Read, path::PathBuf, process::Stdio, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    body::{Body, Bytes},
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::stream::try_unfold;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdout, Command},
    task::JoinHandle,
    time::timeout,
};

use super::{
    Doors, ask, git,
    http::Client,
    pktline,
    slots::{Full, Slot, Slots},
    ssh,
};
use crate::{
    bus::Refusal,
    spec::{
        caller::ANYBODY,
        name::{RefName, RepoName},
    },
};

/// How many gits run at a time, in all and for one neighbourhood. Those of SSH are counted apart.
const AT_ONCE: usize = 16;
const AT_ONCE_OF_ONE: usize = 4;
/// How long a request waits for its body.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a client may say it wants and has: as it is sent, and in full. 50 bytes are a commit.
const MAX_SENT: usize = 1 << 20;
const MAX_ASKED: u64 = 4 << 20;

/// What requests share.
#[derive(Clone)]
struct Hosting {
    doors: Arc<Doors>,
    slots: Arc<Slots>,
}

/// What the HTTPS door serves beside what the HTTP door does.
pub(super) fn router(doors: &Arc<Doors>) -> Router {
    let hosting = Hosting { doors: Arc::clone(doors), slots: Arc::new(Slots::new(AT_ONCE, AT_ONCE_OF_ONE)) };
    Router::new()
        .route("/{name}/info/refs", get(refs))
        .route("/{name}/git-upload-pack", post(upload_pack))
        .route("/{name}/git-receive-pack", post(push))
        .route("/{name}/archive/{*file}", get(archive))
        .with_state(hosting)
}

fn refuse(status: StatusCode, text: impl std::fmt::Display) -> Response {
    (status, format!("{text}\n")).into_response()
}

impl Hosting {
    fn no_push(&self) -> Response {
        refuse(StatusCode::FORBIDDEN, format_args!("push over SSH: git push {}:NAME", self.doors.settings.domain))
    }

    /// The repository that a part of a path names, if anybody may read it.
    async fn repository(&self, name: &str) -> Result<(RepoName, PathBuf), Response> {
        let name = name.strip_suffix(".git").unwrap_or(name);
        let name: RepoName = name.parse().map_err(|error| refuse(StatusCode::NOT_FOUND, error))?;
        git::open(&self.doors, ANYBODY, &name, "read").await.map_err(|refusal| {
            let status = match &refusal {
                Refusal::NotFound(_) | Refusal::Denied(_) | Refusal::Invalid(_) => StatusCode::NOT_FOUND,
                Refusal::Failed(_) | Refusal::ZBus(_) => StatusCode::SERVICE_UNAVAILABLE,
            };
            refuse(status, ask::words(&refusal))
        })?;
        let path = git::path_of(&self.doors.settings.repositories, &name);
        match path.is_dir() {
            true => Ok((name, path)),
            false => Err(refuse(StatusCode::NOT_FOUND, format_args!("{name} is empty: nothing was pushed to it yet"))),
        }
    }

    async fn slot(&self, Client(client): Client) -> Result<Slot, Response> {
        self.slots.take(Some(client)).await.map_err(|full| {
            let status = match full {
                Full::Neighbourhood => StatusCode::TOO_MANY_REQUESTS,
                Full::All => StatusCode::SERVICE_UNAVAILABLE,
            };
            (status, [(header::RETRY_AFTER, "60")], format!("{full}\n")).into_response()
        })
    }

    fn spawn(&self, command: &mut Command) -> Result<Child, Box<Response>> {
        command.spawn().map_err(|error| {
            tracing::error!(%error, git = %self.doors.settings.git.display(), "could not start git");
            Box::new(refuse(StatusCode::INTERNAL_SERVER_ERROR, "this host could not start git: tell its operator"))
        })
    }
}

fn field<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// `git upload-pack` for one request, in the protocol that the client asks for.
fn upload_pack_of(doors: &Doors, path: &std::path::Path, headers: &HeaderMap) -> Command {
    let mut command = git::git(doors, path, &["uploadpack.allowFilter=true", "uploadpack.keepAlive=5"]);
    command.args(["upload-pack", "--strict", "--timeout=600", "--stateless-rpc"]);
    let protocol = field(headers, "git-protocol");
    if ssh::git_protocol(protocol) {
        command.env("GIT_PROTOCOL", protocol);
    }
    command
}

/// A git that answers, until it has ended or nobody listens any more.
struct Answering {
    name: RepoName,
    child: Child,
    stdout: ChildStdout,
    complaints: JoinHandle<String>,
    /// How many more bytes it may say.
    left: u64,
    _slot: Slot,
}

impl Answering {
    fn new(name: RepoName, mut child: Child, most: u64, slot: Slot) -> Option<Self> {
        let complaints = git::collect(&mut child);
        Some(Self { name, stdout: child.stdout.take()?, child, complaints, left: most, _slot: slot })
    }

    /// What it says from now on. An end that is no good one breaks the connection off, so that nobody takes half for the whole.
    fn body(self) -> Body {
        Body::from_stream(try_unfold(self, |mut here: Self| async move {
            let mut buffer = vec![0; 32 << 10];
            let n = here.stdout.read(&mut buffer).await?;
            if n == 0 {
                return match git::finish(here.child, here.complaints, &here.name).await {
                    0 => Ok(None),
                    code => Err(std::io::Error::other(format!("git ended with {code}"))),
                };
            }
            here.left = here.left.checked_sub(n as u64).ok_or_else(|| std::io::Error::other("more than may be sent"))?;
            buffer.truncate(n);
            Ok(Some((Bytes::from(buffer), here)))
        }))
    }
}

fn answer(kind: &'static str, body: Body) -> Response {
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")], body).into_response()
}

/// What there is to fetch.
async fn refs(
    State(hosting): State<Hosting>,
    Extension(client): Extension<Client>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Response> {
    match request.uri().query() {
        Some("service=git-upload-pack") => {}
        Some("service=git-receive-pack") => return Err(hosting.no_push()),
        _ => return Err(refuse(StatusCode::FORBIDDEN, "this host speaks git's smart protocol only")),
    }
    let (name, path) = hosting.repository(&name).await?;
    let slot = hosting.slot(client).await?;
    let mut command = upload_pack_of(&hosting.doors, &path, request.headers());
    let child = hosting.spawn(command.arg("--http-backend-info-refs").arg(&path)).map_err(|refused| *refused)?;
    let git = Answering::new(name, child, u64::MAX, slot).ok_or_else(bug)?;
    let before = match field(request.headers(), "git-protocol").contains("version=2") {
        true => Vec::new(),
        false => [&pktline::data(b"# service=git-upload-pack\n")[..], b"0000"].concat(),
    };
    let before = futures_util::stream::iter((!before.is_empty()).then(|| Ok(Bytes::from(before))));
    let body = futures_util::StreamExt::chain(before, git.body().into_data_stream());
    Ok(answer("application/x-git-upload-pack-advertisement", Body::from_stream(body)))
}

async fn push(State(hosting): State<Hosting>) -> Response {
    hosting.no_push()
}

/// What is fetched.
async fn upload_pack(
    State(hosting): State<Hosting>,
    Extension(client): Extension<Client>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Response> {
    let (head, body) = request.into_parts();
    if field(&head.headers, "content-type") != "application/x-git-upload-pack-request" {
        return Err(refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send application/x-git-upload-pack-request"));
    }
    let (name, path) = hosting.repository(&name).await?;
    let sent = timeout(PATIENCE, axum::body::to_bytes(body, MAX_SENT)).await;
    let sent = sent.map_err(|_| refuse(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"))?;
    let sent = sent.map_err(|_| refuse(StatusCode::PAYLOAD_TOO_LARGE, "more than 1 MiB: fetch over SSH"))?;
    let asked = match field(&head.headers, "content-encoding") {
        "" | "identity" => sent,
        "gzip" | "x-gzip" => unpacked(&sent).map_err(|refused| *refused)?,
        _ => return Err(refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send it as it is, or with gzip")),
    };
    let slot = hosting.slot(client).await?;
    let mut command = upload_pack_of(&hosting.doors, &path, &head.headers);
    let mut child = hosting.spawn(command.arg(&path).stdin(Stdio::piped())).map_err(|refused| *refused)?;
    let mut stdin = child.stdin.take().ok_or_else(bug)?;
    // A task of its own, for git answers before it has read everything. It ends with git.
    drop(tokio::spawn(async move { stdin.write_all(&asked).await }));
    let git = Answering::new(name, child, u64::MAX, slot).ok_or_else(bug)?;
    Ok(answer("application/x-git-upload-pack-result", git.body()))
}

fn bug() -> Response {
    refuse(StatusCode::INTERNAL_SERVER_ERROR, "this is a bug in Seed: git without its streams")
}

/// A request that git has packed: it does so from 1 KiB on.
fn unpacked(sent: &[u8]) -> Result<Bytes, Box<Response>> {
    let mut asked = Vec::new();
    let read = flate2::read::GzDecoder::new(sent).take(MAX_ASKED + 1).read_to_end(&mut asked);
    match read {
        Ok(n) if n as u64 <= MAX_ASKED => Ok(asked.into()),
        Ok(_) => Err(Box::new(refuse(StatusCode::PAYLOAD_TOO_LARGE, "more than 4 MiB: fetch over SSH"))),
        Err(_) => Err(Box::new(refuse(StatusCode::BAD_REQUEST, "the body is no gzip"))),
    }
}

/// The files of a branch or a tag, in one folder that is called as the repository.
async fn archive(
    State(hosting): State<Hosting>,
    Extension(client): Extension<Client>,
    Path((name, file)): Path<(String, String)>,
) -> Result<Response, Response> {
    let wanted = file.strip_suffix(".tar.gz");
    let wanted = wanted.ok_or_else(|| refuse(StatusCode::NOT_FOUND, "archives are called BRANCH.tar.gz or TAG.tar.gz"))?;
    let (name, path) = hosting.repository(&name).await?;
    let mut known = ["heads", "tags"].iter().filter_map(|kind| format!("refs/{kind}/{wanted}").parse::<RefName>().ok());
    let known = known.find(|reference| git::exists(&path, reference));
    let reference = known.ok_or_else(|| refuse(StatusCode::NOT_FOUND, format_args!("{name} has no branch or tag of this name")))?;
    let slot = hosting.slot(client).await?;
    // Large files are passed on piece by piece.
    let mut command = git::git(&hosting.doors, &path, &["core.bigFileThreshold=8m"]);
    command.arg(format!("--git-dir={}", path.display()));
    command.args(["archive", "--format=tar.gz"]).arg(format!("--prefix={name}/")).arg(reference.as_str());
    let child = hosting.spawn(&mut command).map_err(|refused| *refused)?;
    let git = Answering::new(name, child, hosting.doors.settings.max_pack.0, slot).ok_or_else(bug)?;
    Ok(answer("application/gzip", git.body()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(bytes).unwrap();
        gzip.finish().unwrap()
    }

    #[test]
    fn a_packed_request_is_unpacked_and_a_bomb_is_not() {
        let asked = b"0032want 0123456789abcdef0123456789abcdef01234567\n".repeat(100);
        assert_eq!(&unpacked(&packed(&asked)).unwrap()[..], asked);
        let status = |sent: &[u8]| unpacked(sent).unwrap_err().status();
        let bomb = packed(&vec![0; 64 << 20]);
        assert!(bomb.len() < MAX_SENT);
        assert_eq!(status(&bomb), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(status(&packed(&asked)[..40]), StatusCode::BAD_REQUEST);
        assert_eq!(status(b"want"), StatusCode::BAD_REQUEST);
    }
}
