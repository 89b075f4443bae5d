//! `git receive-pack`, for every push that is not small and plain.

use std::{path::Path, process::Stdio};

use tokio::{
    io::{AsyncWrite, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    task::JoinHandle,
};

use super::{
    super::{
        git::{self, Outlet},
        pktline::{self, Packet},
    },
    Push,
};
use crate::spec::{name::RepoName, quantity::Bytes};

/// A receive-pack that has said what refs there are.
#[derive(Debug)]
pub(super) struct Program {
    child: Child,
    /// What it still listens to.
    pub stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    complaints: JoinHandle<String>,
}

impl Program {
    /// Starts it. What it says of refs goes to `out`, or to nobody if the client knows them. On failure `out` was told of it; returns the
    /// exit code.
    pub async fn start<W: AsyncWrite + Unpin>(
        push: &Push,
        path: &Path,
        most: Bytes,
        mut out: Option<&mut Outlet<W>>,
    ) -> Result<Self, u8> {
        let mut tell = async |packets: &[u8]| {
            if let Some(out) = &mut out {
                out.send(packets).await;
            }
        };
        let mut child = match receive_pack(push, path, most).spawn() {
            Ok(child) => child,
            Err(error) => {
                tracing::error!(%error, git = %push.doors.settings.git.display(), "could not start git");
                tell(&pktline::error("this host could not start git: tell its operator")).await;
                return Err(1);
            }
        };
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else { return Err(1) };
        let complaints = git::collect(&mut child);
        let stdout = BufReader::with_capacity(64 << 10, stdout);
        let mut program = Self { child, stdin: Some(stdin), stdout, complaints };
        match advertised(&mut program.stdout).await {
            Some(refs) => tell(&refs).await,
            None => {
                tell(&pktline::error(&format!("this host could not open {}: tell its operator", push.name))).await;
                return Err(program.end(&push.name).await.max(1));
            }
        }
        Ok(program)
    }

    /// Hands it what the client wants to change.
    pub async fn tell(&mut self, request: &[u8]) -> std::io::Result<()> {
        match &mut self.stdin {
            Some(stdin) => stdin.write_all(request).await,
            None => Err(std::io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Waits for its end, which comes when it hears nothing more.
    pub async fn end(self, name: &RepoName) -> u8 {
        drop(self.stdin);
        git::finish(self.child, self.complaints, name).await
    }

    /// Passes on what it says while it works, and keeps its report, which is returned as packets.
    pub async fn relay<W: AsyncWrite + Unpin>(&mut self, out: &mut Outlet<W>, room: usize) -> Vec<u8> {
        let mut report = Vec::new();
        loop {
            match pktline::read(&mut self.stdout).await {
                Ok(Some(Packet::Data(payload))) if room == 0 => report.extend_from_slice(&pktline::data(&payload)),
                Ok(Some(Packet::Data(payload))) => match payload.split_first() {
                    Some((1, part)) if !part.is_empty() => report.extend_from_slice(part),
                    Some((1, _)) => out.send(pktline::KEEP_ALIVE).await,
                    _ => out.send(&pktline::data(&payload)).await,
                },
                Ok(Some(Packet::Flush)) => {
                    if room == 0 {
                        report.extend_from_slice(pktline::FLUSH);
                    }
                    return report;
                }
                Ok(Some(Packet::Separator) | None) | Err(_) => return report,
            }
            if report.len() > 1 << 20 {
                return report;
            }
        }
    }
}

fn receive_pack(push: &Push, path: &Path, most: Bytes) -> Command {
    let limit = format!("receive.maxInputSize={}", most.0);
    let settings = [
        limit.as_str(),
        "receive.fsckObjects=true",
        "receive.advertisePushOptions=true",
        "receive.autogc=false",
        "receive.denyDeleteCurrent=refuse",
        "receive.denyCurrentBranch=ignore",
        "receive.keepAlive=5",
        // Every push is one pack: one file to sync, not one for each object.
        "receive.unpackLimit=1",
        // It speeds up reads of large packs that hardly happen here, and costs another file to sync.
        "pack.writeReverseIndex=false",
        "core.fsync=all",
        "core.logAllRefUpdates=false",
    ];
    let mut command = git::git(&push.doors, path, &settings);
    command.arg("receive-pack").arg(path).stdin(Stdio::piped());
    command
}

/// What it says before it listens, as packets; `None` if it did not get to the end of it.
async fn advertised(stdout: &mut BufReader<ChildStdout>) -> Option<Vec<u8>> {
    let mut refs = Vec::new();
    loop {
        match pktline::read(stdout).await {
            Ok(Some(Packet::Data(payload))) => refs.extend_from_slice(&pktline::data(&payload)),
            Ok(Some(Packet::Flush)) => break,
            Ok(Some(Packet::Separator) | None) | Err(_) => return None,
        }
    }
    refs.extend_from_slice(pktline::FLUSH);
    Some(refs)
}
