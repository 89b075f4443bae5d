//! A transient unit for one nix command of a tenant's: who it runs as, what it sees, what it may take.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
    sync::mpsc,
};

use super::{NixSettings, words};
use crate::build::{BuildError, Job};

/// How many lines of standard error are kept for an error message; the first are dropped first.
const LINES_KEPT: usize = 400;
/// The longest line of a log; what is longer is cut.
const LINE_MAX: usize = 4000;
/// What no evaluation reaches unless the configuration allows it: this host, its neighbours, and everybody's cloud metadata.
const PRIVATE: [&str; 12] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "224.0.0.0/4",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
    "ff00::/8",
];

/// A unit before it runs.
#[derive(Debug)]
pub(super) struct Unit {
    name: String,
    source: PathBuf,
    properties: Vec<String>,
    environment: Vec<String>,
}

/// How a unit ended.
#[derive(Debug, Default)]
pub(super) struct Finished {
    pub code: Option<i32>,
    /// In systemd's words: `success`, `exit-code`, `timeout`, `oom-kill`, `signal`; empty if the unit did not run.
    pub result: String,
    /// Cut at the limit that was given.
    pub stdout: Vec<u8>,
    /// The last lines, cleaned.
    pub stderr: Vec<String>,
}

impl Finished {
    pub(super) fn succeeded(&self) -> bool {
        self.code == Some(0)
    }
}

impl Unit {
    /// The unit of an evaluation: the source and the public network, and little else.
    pub(super) fn eval(settings: &NixSettings, job: &Job) -> Result<Self, BuildError> {
        let mut unit = Self::new(settings, job, "eval", settings.eval_timeout_secs)?;
        let memory = settings.eval_memory.0;
        // The limit on addresses is for kernels that account no memory. nix maps files and a heap in reserve: it gets more of those.
        unit.set(format!("MemoryMax={memory}"))
            .set("MemorySwapMax=0".into())
            .set(format!("LimitAS={}", memory.saturating_add(1 << 30)));
        unit.set(format!("BindReadOnlyPaths={}:{}", job.source.display(), unit.source.display()));
        Ok(unit)
    }

    /// The unit of a build. Only the client runs in it; nix's daemon builds in its own sandbox.
    pub(super) fn build(settings: &NixSettings, job: &Job) -> Result<Self, BuildError> {
        let mut unit = Self::new(settings, job, "build", settings.build_timeout_secs)?;
        unit.set("MemoryMax=1G".into());
        Ok(unit)
    }

    fn new(settings: &NixSettings, job: &Job, kind: &str, timeout_secs: u32) -> Result<Self, BuildError> {
        let name_ok = !job.name.is_empty() && job.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !name_ok {
            return Err(BuildError::Host(format!("{:?} is no name of a job", job.name)));
        }
        let namespace = job.namespace.as_str().trim_start_matches("s-");
        let cache = format!("seed-build/{namespace}");
        // nix remembers what it fetched by its address: the same one must never stand for two sources.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let mut unit = Self {
            name: format!("seed-build@{}-{kind}.service", job.name),
            source: settings.run.join(format!("{}-{now}.tar", job.name)),
            properties: Vec::new(),
            environment: Vec::new(),
        };
        for property in [
            "DynamicUser=yes",
            "CacheDirectoryMode=0700",
            "UMask=0077",
            "ProtectSystem=strict",
            "ProtectHome=yes",
            "PrivateTmp=yes",
            "PrivateDevices=yes",
            "ProtectProc=invisible",
            "ProtectClock=yes",
            "ProtectControlGroups=yes",
            "ProtectHostname=yes",
            "ProtectKernelLogs=yes",
            "ProtectKernelModules=yes",
            "ProtectKernelTunables=yes",
            "NoNewPrivileges=yes",
            "CapabilityBoundingSet=",
            "LockPersonality=yes",
            "RestrictNamespaces=yes",
            "RestrictRealtime=yes",
            "RestrictSUIDSGID=yes",
            "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
            "SystemCallArchitectures=native",
            "SystemCallFilter=@system-service",
            "SystemCallErrorNumber=EPERM",
            "LimitCORE=0",
            "TasksMax=256",
            "CPUWeight=20",
            "TimeoutStopSec=1s",
        ] {
            unit.set(property.to_owned());
        }
        unit.set(format!("User=seed-build-{namespace}")).set(format!("CacheDirectory={cache}"));
        unit.set(format!("RuntimeMaxSec={timeout_secs}s"));
        unit.set(format!("IPAddressDeny={}", PRIVATE.join(" ")));
        unit.set(format!("IPAddressAllow={}", [settings.allow_addresses.clone(), resolvers()].concat().join(" ")));
        let hidden: Vec<String> = settings.hidden.iter().map(|path| format!("-{}", path.display())).collect();
        unit.set(format!("InaccessiblePaths={}", hidden.join(" ")))
            .set(format!("TemporaryFileSystem={}:ro", settings.run.display()));
        let home = format!("/var/cache/{cache}");
        unit.environment.extend([
            format!("HOME={home}"),
            format!("XDG_CACHE_HOME={home}/cache"),
            "GC_INITIAL_HEAP_SIZE=67108864".into(),
        ]);
        unit.environment.extend(std::env::var("PATH").ok().map(|path| format!("PATH={path}")));
        Ok(unit)
    }

    fn set(&mut self, property: String) -> &mut Self {
        self.properties.push(property);
        self
    }

    /// Where the source is for whoever runs in the unit.
    pub(super) fn source(&self) -> &Path {
        &self.source
    }

    fn arguments(&self, argv: &[String]) -> Vec<String> {
        let mut arguments: Vec<String> =
            ["--wait", "--pipe", "--collect", "--expand-environment=no", "--slice=seed-build.slice"].map(str::to_owned).into();
        arguments.push(format!("--unit={}", self.name));
        arguments.extend(self.properties.iter().map(|property| format!("--property={property}")));
        arguments.extend(self.environment.iter().map(|variable| format!("--setenv={variable}")));
        arguments.push("--".to_owned());
        arguments.extend_from_slice(argv);
        arguments
    }

    /// Runs the command to its end. When the future is dropped, the unit is stopped.
    pub(super) async fn run(self, argv: &[String], stdout_max: usize, log: &mpsc::Sender<String>) -> Result<Finished, BuildError> {
        let mut child = Command::new("systemd-run")
            .args(self.arguments(argv))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| BuildError::Host(format!("systemd-run cannot be run: {error}")))?;
        let mut guard = StopOnDrop(Some(self.name));
        let stdout = child.stdout.take().expect("standard output was asked for as a pipe");
        let stderr = child.stderr.take().expect("standard error was asked for as a pipe");
        let (stdout, stderr) = tokio::join!(read_some(stdout, stdout_max), read_lines(stderr, log));
        let status = child.wait().await.map_err(|error| BuildError::Host(format!("systemd-run was lost: {error}")))?;
        guard.0 = None;
        let mut finished = Finished { code: status.code(), result: String::new(), stdout, stderr };
        finished.take_systemd_words();
        Ok(finished)
    }
}

impl Finished {
    /// Takes the lines that systemd-run has said itself, which are the first and the last ones, from those of the command.
    fn take_systemd_words(&mut self) {
        self.stderr.retain(|line| !line.starts_with("Running as unit: "));
        let Some(at) = self.stderr.iter().rposition(|line| line.starts_with("Finished with result: ")) else { return };
        self.result = self.stderr[at]["Finished with result: ".len()..].trim().to_owned();
        self.stderr.truncate(at);
    }
}

/// Stops a unit whose client has gone.
struct StopOnDrop(Option<String>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        let Some(name) = self.0.take() else { return };
        let stop = Command::new("systemctl").args(["stop", "--no-block", &name]).stdin(Stdio::null()).spawn();
        // tokio collects the child. A unit that is not stopped ends with its time.
        if let Err(error) = stop {
            tracing::warn!(unit = name, %error, "a build that nobody waits for could not be stopped");
        }
    }
}

/// The servers that names are looked up at: without them nothing public can be fetched either.
fn resolvers() -> Vec<String> {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers = text.lines().filter_map(|line| line.strip_prefix("nameserver"));
    servers.filter_map(|server| server.trim().parse::<std::net::IpAddr>().ok()).map(|server| server.to_string()).collect()
}

async fn read_some(mut from: impl AsyncRead + Unpin, max: usize) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = vec![0; 16 << 10];
    // The end of the pipe and an error of it mean the same: there is no more.
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let room = max.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..count.min(room)]);
    }
    kept
}

async fn read_lines(mut from: impl AsyncRead + Unpin, log: &mpsc::Sender<String>) -> Vec<String> {
    let mut kept = std::collections::VecDeque::new();
    let mut line = Vec::new();
    let mut buffer = vec![0; 16 << 10];
    loop {
        let count = from.read(&mut buffer).await.unwrap_or(0);
        let mut ended: Vec<Vec<u8>> = Vec::new();
        for &byte in &buffer[..count] {
            if byte == b'\n' {
                ended.push(std::mem::take(&mut line));
            } else if line.len() < LINE_MAX {
                line.push(byte);
            }
        }
        if count == 0 && !line.is_empty() {
            ended.push(std::mem::take(&mut line));
        }
        for line in ended {
            let text = words::clean(&String::from_utf8_lossy(&line));
            if !text.starts_with("Running as unit: ") && !words::is_systemd_tail(&text) {
                // Nobody may be listening any more; the build goes on.
                drop(log.send(text.clone()).await);
            }
            kept.push_back(text);
            if kept.len() > LINES_KEPT {
                kept.pop_front();
            }
        }
        if count == 0 {
            return kept.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::quantity::Bytes;

    fn unit() -> Unit {
        let settings = NixSettings {
            nix: "/usr/bin/nix".into(),
            roots: "/r".into(),
            run: "/run/seed".into(),
            hidden: vec!["/var/lib/seed".into(), "/etc/seed".into()],
            eval_timeout_secs: 60,
            eval_memory: Bytes(1 << 30),
            build_timeout_secs: 600,
            allow_addresses: vec!["127.0.0.1".into()],
        };
        let job =
            Job { name: "app-3".into(), namespace: "s-gaydazldmnsg".parse().unwrap(), source: "/run/seed/jobs/app-3.tar".into() };
        Unit::eval(&settings, &job).unwrap()
    }

    #[test]
    fn the_unit_hides_the_host_and_ends() {
        let unit = unit();
        let arguments = unit.arguments(&["nix".into(), "--version".into()]);
        let text = arguments.join("\n");
        for part in [
            "--unit=seed-build@app-3-eval.service",
            "--expand-environment=no",
            "--property=DynamicUser=yes",
            "--property=InaccessiblePaths=-/var/lib/seed -/etc/seed",
            "--property=TemporaryFileSystem=/run/seed:ro",
            "--property=RuntimeMaxSec=60s",
            "--property=MemoryMax=1073741824",
            "--property=IPAddressAllow=127.0.0.1",
            "--property=CacheDirectory=seed-build/gaydazldmnsg",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert_eq!(arguments[arguments.len() - 3..], ["--", "nix", "--version"]);
        assert!(unit.source().starts_with("/run/seed/"));
    }

    #[test]
    fn a_job_with_another_name_is_refused() {
        let settings = NixSettings {
            nix: "/usr/bin/nix".into(),
            roots: "/r".into(),
            run: "/run/seed".into(),
            hidden: Vec::new(),
            eval_timeout_secs: 1,
            eval_memory: Bytes(1),
            build_timeout_secs: 1,
            allow_addresses: Vec::new(),
        };
        for name in ["", "a b", "a/b", "A", "a.service", "a@b"] {
            let job = Job { name: name.into(), namespace: "s-gaydazldmnsg".parse().unwrap(), source: "/s".into() };
            assert!(Unit::build(&settings, &job).is_err(), "{name:?}");
        }
    }

    #[tokio::test]
    async fn lines_are_cut_kept_and_passed_on() {
        let (log, mut lines) = mpsc::channel(2000);
        let mut text =
            format!("Running as unit: x.service; invocation ID: y\n{}\n\x1b[31mred\x1b[0m\r\n", "x".repeat(LINE_MAX + 10));
        text.extend((0..LINES_KEPT).map(|n| format!("{n}\n")));
        text.push_str("no newline");
        let kept = read_lines(text.as_bytes(), &log).await;
        assert_eq!((kept.len(), kept[LINES_KEPT - 1].as_str()), (LINES_KEPT, "no newline"));
        assert_eq!(lines.recv().await.unwrap().len(), LINE_MAX);
        assert_eq!(lines.recv().await.unwrap(), "red");
        assert_eq!(read_some(&[1u8; 100][..], 7).await, [1; 7]);
    }

    #[test]
    fn what_systemd_says_is_told_from_what_nix_says() {
        let lines = [
            "Running as unit: u.service",
            "error: x",
            "Finished with result: timeout",
            "Main processes terminated with: code=killed",
        ];
        let mut finished = Finished { stderr: lines.map(str::to_owned).into(), ..Finished::default() };
        finished.take_systemd_words();
        assert_eq!((finished.result.as_str(), finished.stderr), ("timeout", vec!["error: x".to_owned()]));
    }
}
