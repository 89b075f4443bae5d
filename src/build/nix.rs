//! Nix as the builder. Evaluation and builds are started by `systemd-run` in units of their own (`seed-build@<job>-eval.service`,
//! `…-build.service`) as a user that exists only for them, without a view of this host's state, with limits on time and memory. Of what
//! a flake yields only parsed store paths ever reach an argument list.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::Permissions,
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::Command,
    sync::mpsc,
};

use super::{BuildError, Builder, Evaluated, Job, Outputs, Realised, complaint, reach, roots};
use crate::spec::{
    name::{Namespace, StorePath},
    quantity::Bytes,
};

/// The most that an evaluation may print: the metas of 64 instances are far less.
const MAX_OUTPUT: u64 = 8 << 20;
/// How many of the last lines of a log are looked at when it failed.
const KEPT_LINES: usize = 400;

/// Turns the outputs of the flake into `{ seeds.<name> = { meta, drv, out }; ipv4; ipv6 }`, or says precisely what is wrong with the
/// shape of `seeds`. One evaluation for all: what no instance and neither of the two needs is not looked at.
const APPLY: &str = r#"outputs:
let
  describe = name: seed:
    if !(builtins.isAttrs seed) then throw "seeds.${name} is a ${builtins.typeOf seed}: write seeds.${name} = seed.lib.mkSeed { … }, or an attribute set with `meta` and `toplevel`"
    else if !(seed ? meta) then throw "seeds.${name} has no `meta`: use seed.lib.mkSeed, which makes it"
    else if !(seed ? toplevel) then throw "seeds.${name} has no `toplevel`: use seed.lib.mkSeed, which makes it"
    else if !(seed.toplevel ? drvPath) then throw "seeds.${name}.toplevel is no derivation"
    else {
      inherit (seed) meta;
      drv = builtins.unsafeDiscardStringContext seed.toplevel.drvPath;
      out = builtins.unsafeDiscardStringContext seed.toplevel.outPath;
    };
  seeds = outputs.seeds or (throw "the flake does not provide attribute 'seeds'");
  only = name: if outputs ? ${name} then { ${name} = outputs.${name}; } else { };
in
{
  seeds =
    if builtins.isAttrs seeds then builtins.mapAttrs describe seeds
    else throw "`seeds` is a ${builtins.typeOf seeds}: write seeds.<name> = seed.lib.mkSeed { … }";
} // only "ipv4" // only "ipv6""#;

/// How nix is run.
#[derive(Debug, Clone)]
pub struct NixSettings {
    pub nix: PathBuf,
    pub systemd_run: PathBuf,
    /// /nix/var/nix/gcroots/seed
    pub roots: PathBuf,
    pub eval_timeout_secs: u32,
    pub eval_memory: Bytes,
    pub build_timeout_secs: u32,
    /// Addresses that evaluation may reach although they are loopback, private or link-local.
    pub allow_addresses: Vec<IpNet>,
    /// What evaluation may not see: this host's state and configuration.
    pub hidden: Vec<PathBuf>,
}

/// The builder.
#[derive(Debug, Clone)]
pub struct NixBuilder {
    settings: NixSettings,
}

/// What the flake says.
#[derive(Deserialize)]
struct WireOutputs {
    seeds: BTreeMap<String, Wire>,
    // Not `Option<Value>`, of which null is none: what is written and null is a mistake.
    #[serde(default, deserialize_with = "present")]
    ipv4: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    ipv6: Option<Value>,
}

fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// What the flake says of an instance; a derivation can be imitated, so its paths may be any text.
#[derive(Deserialize)]
struct Wire {
    meta: Value,
    drv: String,
    out: String,
}

impl Wire {
    fn check(self, name: &str) -> Result<Evaluated, BuildError> {
        let failed = |what: String| BuildError::Failed {
            what: format!("seeds.{name}.toplevel is no derivation of nix's own: {what}"),
            lines: Vec::new(),
            remedy: "write the system itself, as config.system.build.toplevel".to_owned(),
        };
        let parse = |text: &str| text.parse::<StorePath>().map_err(|error| failed(error.to_string()));
        let (drv, out) = (parse(&self.drv)?, parse(&self.out)?);
        if !drv.as_str().ends_with(".drv") {
            return Err(failed(format!("its drvPath is {drv}")));
        }
        Ok(Evaluated { meta: self.meta, drv, out })
    }
}

/// What a unit left behind.
struct Ended {
    success: bool,
    output: Vec<u8>,
    /// The last lines of standard error, without what systemd-run said.
    lines: Vec<String>,
    /// `exit-code`, `timeout`, `oom-kill`, …; empty if systemd-run did not get so far.
    result: String,
}

impl NixBuilder {
    /// A builder with these settings.
    pub fn new(settings: NixSettings) -> Self {
        Self { settings }
    }

    /// `systemd-run` with all that holds for both units.
    fn unit(&self, job: &Job, step: &str, timeout_secs: u32) -> Command {
        let settings = &self.settings;
        let mut command = Command::new(&settings.systemd_run);
        command.args(["--wait", "--pipe", "--collect", "--service-type=exec"]);
        // What follows is an argument list, not a template.
        command.arg("--expand-environment=no");
        command.arg(format!("--unit={}", unit_name(job, step)));
        command.arg(format!("--description=Seed: {step} for {}", job.namespace));
        let cache = format!("seed-build/{}", job.namespace);
        let mut property = |text: String| {
            command.arg("--property").arg(text);
        };
        property("DynamicUser=yes".into());
        property(format!("CacheDirectory={cache}"));
        property("CacheDirectoryMode=0700".into());
        for variable in ["HOME", "XDG_CACHE_HOME"] {
            property(format!("Environment={variable}=/var/cache/{cache}"));
        }
        property("Environment=NIX_REMOTE=daemon".into());
        property("WorkingDirectory=/".into());
        property(format!("RuntimeMaxSec={timeout_secs}"));
        property("TimeoutStopSec=5".into());
        property(format!("MemoryMax={}", settings.eval_memory.0));
        property("MemorySwapMax=0".into());
        // Where the kernel does not account memory to units, this limit still holds for each process.
        property(format!("LimitDATA={}", settings.eval_memory.0));
        property("LimitCORE=0".into());
        property("TasksMax=256".into());
        property("CPUWeight=50".into());
        property("OOMScoreAdjust=500".into());
        for key in HARDENED {
            property((*key).to_owned());
        }
        for hidden in &settings.hidden {
            property(format!("TemporaryFileSystem={}:ro", hidden.display()));
        }
        for range in reach::properties(&settings.allow_addresses) {
            property(range);
        }
        if let Ok(path) = std::env::var("PATH") {
            // Inputs that are Git repositories are fetched by git.
            property(format!("Environment=PATH={path}"));
        }
        command.env_clear().env("PATH", "/run/current-system/sw/bin:/usr/bin:/bin");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// `nix` with all that holds for both calls.
    fn nix(&self, command: &mut Command) {
        command.arg("--").arg(&self.settings.nix);
        command.args(["--extra-experimental-features", "nix-command flakes"]);
        for (key, value) in [
            ("pure-eval", "true"),
            ("allow-import-from-derivation", "false"),
            ("accept-flake-config", "false"),
            ("flake-registry", ""),
            ("warn-dirty", "false"),
            ("eval-cache", "false"),
        ] {
            command.args(["--option", key, value]);
        }
    }
}

const HARDENED: &[&str] = &[
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectProc=invisible",
    // Inputs are fetched by the evaluator; names are looked up over netlink.
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "KeyringMode=private",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "SystemCallErrorNumber=EPERM",
    "UMask=0077",
    // The bus and the agent's neighbours are none of its business.
    "InaccessiblePaths=-/run/dbus -/run/systemd/private -/run/userdb",
    // A flake may have inputs like path:/etc. What is left of the host for it to find is Nix, and what it takes to fetch: names and
    // certificates. The units of others name their store paths.
    "TemporaryFileSystem=/etc:ro",
    "BindReadOnlyPaths=-/etc/resolv.conf -/etc/hosts -/etc/nsswitch.conf -/etc/passwd -/etc/group -/etc/services -/etc/protocols",
    "BindReadOnlyPaths=-/etc/ssl/certs -/etc/pki/tls/certs -/etc/static/ssl -/etc/ld.so.cache -/etc/localtime",
    "InaccessiblePaths=-/run/systemd/system -/run/systemd/transient -/run/log -/run/credentials -/run/current-system -/run/booted-system",
    "InaccessiblePaths=-/var/lib -/var/log -/var/spool -/var/backups -/var/mail -/srv -/opt -/mnt -/media -/boot -/sys/firmware",
];

impl Builder for NixBuilder {
    async fn eval(&self, job: &Job, log: mpsc::Sender<String>) -> Result<Outputs, BuildError> {
        let timeout = self.settings.eval_timeout_secs;
        // The unit's user reads it where it is bound to; nobody else can reach it where it is.
        std::fs::set_permissions(&job.source, Permissions::from_mode(0o444))
            .map_err(|error| BuildError::Host(format!("could not hand out {}: {error}", job.source.display())))?;
        let mut command = self.unit(job, "eval", timeout);
        // Nix remembers archives by their name for an hour: no two jobs may share one.
        let source = format!("/run/seed/{}.tar", job.name);
        command.arg("--property").arg(format!("BindReadOnlyPaths={}:{source}", job.source.display()));
        self.nix(&mut command);
        command.args(["eval", "--json", "--no-write-lock-file", "--apply", APPLY]);
        // The dot stands for all outputs, and keeps nix from looking among the packages.
        command.arg(format!("tarball+file://{source}#."));
        let ended = run(command, unit_name(job, "eval"), log).await?;
        if !ended.success {
            return Err(complaint::evaluation(&ended.lines, &ended.result, timeout, self.settings.eval_memory));
        }
        let found: WireOutputs = serde_json::from_slice(&ended.output)
            .map_err(|error| BuildError::Host(format!("nix answered with what cannot be read: {error}")))?;
        let checked = |(name, wire): (String, Wire)| wire.check(&name).map(|evaluated| (name, evaluated));
        let seeds = found.seeds.into_iter().map(checked).collect::<Result<_, _>>()?;
        Ok(Outputs { seeds, ipv4: found.ipv4, ipv6: found.ipv6 })
    }

    async fn realise(
        &self,
        job: &Job,
        wanted: &BTreeMap<String, Evaluated>,
        log: mpsc::Sender<String>,
    ) -> Result<BTreeMap<String, Realised>, BuildError> {
        // The roots are there before the results: a result is protected from the moment it is valid.
        for (name, evaluated) in wanted {
            let root = self.root(&job.namespace, name, &evaluated.out);
            roots::make(&root, &evaluated.out)
                .map_err(|error| BuildError::Host(format!("could not make the root {}: {error}", root.display())))?;
        }
        let timeout = self.settings.build_timeout_secs;
        let mut command = self.unit(job, "build", timeout);
        self.nix(&mut command);
        command.args(["build", "--no-link", "--print-build-logs", "--option", "timeout", &timeout.to_string(), "--"]);
        command.args(wanted.values().map(|evaluated| format!("{}^*", evaluated.drv)));
        let ended = run(command, unit_name(job, "build"), log).await?;
        if !ended.success {
            return Err(complaint::build(&ended.lines, &ended.result, timeout));
        }
        let mut realised = BTreeMap::new();
        for (name, evaluated) in wanted {
            // A flake says where its result is, but only the derivation knows. A path of someone else's must not reach its guest.
            if !self.paths(&[&format!("{}^*", evaluated.drv)]).await?.contains(&evaluated.out) {
                return Err(BuildError::Failed {
                    what: format!("seeds.{name}.toplevel says that it is {}, which its derivation does not make", evaluated.out),
                    lines: Vec::new(),
                    remedy: "write the system itself, as config.system.build.toplevel".to_owned(),
                });
            }
            let closure = self.paths(&["--recursive", "--", evaluated.out.as_str()]).await?;
            let toplevel = evaluated.out.clone();
            let place = name.clone();
            let system = tokio::task::spawn_blocking(move || system(&place, toplevel, closure)).await;
            realised.insert(name.clone(), system.map_err(|error| BuildError::Host(error.to_string()))??);
        }
        Ok(realised)
    }

    async fn retain(&self, namespace: &Namespace, keep: &[StorePath]) -> Result<(), BuildError> {
        let (roots, keep) = (self.settings.roots.join(namespace.as_str()), keep.to_vec());
        let done = tokio::task::spawn_blocking(move || roots::retain(&roots, &keep)).await;
        let failed = |error: String| BuildError::Host(format!("could not drop old roots: {error}"));
        done.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
    }
}

impl NixBuilder {
    fn root(&self, namespace: &Namespace, name: &str, out: &StorePath) -> PathBuf {
        // The name was a checked instance name before anything is built.
        self.settings.roots.join(namespace.as_str()).join(name).join(&out.base_name()[..12])
    }

    /// The valid store paths that `nix path-info` lists, sorted.
    async fn paths(&self, arguments: &[&str]) -> Result<Vec<StorePath>, BuildError> {
        let failed = |what: String| BuildError::Host(format!("could not look up {}: {what}", arguments.join(" ")));
        let mut command = Command::new(&self.settings.nix);
        command.args(["--extra-experimental-features", "nix-command", "path-info"]).args(arguments);
        command.env_clear().env("NIX_REMOTE", "daemon").env("HOME", "/var/empty").stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await.map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let mut paths = text
            .lines()
            .map(|line| line.trim().parse::<StorePath>().map_err(|error| failed(error.to_string())))
            .collect::<Result<Vec<_>, _>>()?;
        paths.sort();
        Ok(paths)
    }
}

/// Says in the journal which nix this is, and so loudly if it is one that is known to give builders root (CVE-2026-39860).
pub async fn say_version(nix: &Path) {
    let output = Command::new(nix).arg("--version").env_clear().stdin(Stdio::null()).kill_on_drop(true).output().await;
    let text = match output {
        Ok(output) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Err(error) => return tracing::error!(%error, nix = %nix.display(), "nix cannot be run: nothing can be deployed"),
    };
    match complaint::is_safe(&text) {
        Some(true) => tracing::info!(nix = text, "found"),
        Some(false) => tracing::warn!(
            nix = text,
            "this nix is known to give builders root (CVE-2026-39860): update it before strangers may push"
        ),
        None => tracing::warn!(nix = text, "this is no version of nix that is known"),
    }
}

fn unit_name(job: &Job, step: &str) -> String {
    format!("seed-build@{}-{step}.service", job.name)
}

/// Stops a unit that nobody waits for any more: a newer push has taken its place.
struct StopOnDrop(Option<String>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        let Some(name) = self.0.take() else { return };
        // The runtime collects the child. A unit that could not be stopped ends with its time.
        if let Err(error) = Command::new("systemctl").args(["stop", "--no-block", &name]).stdin(Stdio::null()).spawn() {
            tracing::warn!(unit = name, %error, "could not stop");
        }
    }
}

/// Runs a unit to its end; its standard error goes to `log` line by line. When the future is dropped, the unit is stopped.
async fn run(mut command: Command, unit: String, log: mpsc::Sender<String>) -> Result<Ended, BuildError> {
    let host = |error: io::Error| BuildError::Host(format!("could not run systemd-run: {error}"));
    let mut child = command.spawn().map_err(host)?;
    let mut stop = StopOnDrop(Some(unit));
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(BuildError::Host("systemd-run has no output".to_owned()));
    };
    let output = async {
        let mut bytes = Vec::new();
        let read = stdout.take(MAX_OUTPUT + 1).read_to_end(&mut bytes).await;
        read.map(|_| bytes)
    };
    let errors = async {
        let mut lines: VecDeque<String> = VecDeque::new();
        let mut result = String::new();
        let mut chatter = complaint::Chatter::default();
        let mut reader = BufReader::new(stderr);
        let mut bytes = Vec::new();
        // A line without end is cut, so that a log cannot fill the agent's memory.
        while (&mut reader).take(16 << 10).read_until(b'\n', &mut bytes).await.is_ok_and(|read| read > 0) {
            let line = complaint::plain(&String::from_utf8_lossy(&bytes));
            bytes.clear();
            if let Some(said) = line.trim_start().strip_prefix("Finished with result: ") {
                result = said.trim().to_owned();
            } else if !complaint::of_systemd_run(&line) {
                // A log that nobody reads any more is not worth stopping for.
                if let Some(shown) = chatter.pass(&line) {
                    drop(log.send(shown).await);
                }
                lines.push_back(line);
                if lines.len() > KEPT_LINES {
                    lines.pop_front();
                }
            }
        }
        (lines.into_iter().collect::<Vec<_>>(), result)
    };
    let (output, (lines, result), status) = tokio::join!(output, errors, child.wait());
    stop.0 = None;
    let (output, status) = (output.map_err(host)?, status.map_err(host)?);
    if let Some(code @ 200..=243) = status.code() {
        return Err(BuildError::Host(format!("systemd could not set up the unit (code {code}); its journal says why")));
    }
    if output.len() as u64 > MAX_OUTPUT {
        return Err(BuildError::Failed {
            what: format!("the metas of this flake are larger than {} MiB", MAX_OUTPUT >> 20),
            lines: Vec::new(),
            remedy: "keep `meta` as seed.lib.mkSeed makes it".to_owned(),
        });
    }
    Ok(Ended { success: status.success(), output, lines, result })
}

/// Checks that `toplevel` is a system: `kernel`, `initrd` and `init` are files of its own closure, `kernel-params` is one line.
fn system(name: &str, toplevel: StorePath, closure: Vec<StorePath>) -> Result<Realised, BuildError> {
    let failed = |what: String| BuildError::Failed {
        what: format!("seeds.{name}.toplevel is no system: {what}"),
        lines: Vec::new(),
        remedy: "it must hold kernel, initrd, init and kernel-params, as config.system.build.toplevel of NixOS does".to_owned(),
    };
    let top = Path::new(toplevel.as_str());
    for part in ["kernel", "initrd", "init"] {
        let place = top.join(part).canonicalize().map_err(|error| failed(format!("{part}: {error}")))?;
        let inside = closure.iter().any(|path| place.starts_with(path.as_str()));
        if !inside || !place.is_file() {
            return Err(failed(format!("{part} is no file of its own closure")));
        }
    }
    let params = top.join("kernel-params");
    let inside = params.canonicalize().is_ok_and(|place| closure.iter().any(|path| place.starts_with(path.as_str())));
    if !inside {
        return Err(failed("kernel-params is no file of its own closure".to_owned()));
    }
    let mut bytes = Vec::new();
    let read = std::fs::File::open(&params).and_then(|file| io::Read::read_to_end(&mut io::Read::take(file, 4096), &mut bytes));
    read.map_err(|error| failed(format!("kernel-params: {error}")))?;
    let params = String::from_utf8_lossy(&bytes).trim().to_owned();
    if params.len() > 1500 || !params.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        return Err(failed("kernel-params must be one line of printable ASCII, at most 1500 characters".to_owned()));
    }
    Ok(Realised { toplevel, closure, kernel_params: params })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(tag: &str) -> StorePath {
        format!("/nix/store/{}-{tag}", tag.repeat(32).chars().take(32).collect::<String>()).parse().expect("a path")
    }

    #[test]
    fn a_flake_finds_little_of_the_host() {
        let all = HARDENED.join("\n");
        for hidden in ["TemporaryFileSystem=/etc:ro", "-/run/systemd/system", "-/var/lib", "-/var/log", "-/srv", "ProtectHome=yes"]
        {
            assert!(all.contains(hidden), "{hidden}");
        }
        assert!(!all.contains("/etc/nix") && !all.contains("/etc/shadow"), "nix.conf may hold tokens");
    }

    #[test]
    fn only_store_paths_are_taken_from_a_flake() {
        let good = path("a");
        let check = |drv: &str, out: &str| Wire { meta: Value::Null, drv: drv.into(), out: out.into() }.check("web");
        let drv = format!("{good}.drv");
        assert_eq!(check(&drv, good.as_str()).unwrap().out, good);
        for (drv, out) in [
            ("--help", good.as_str()),
            ("/etc/passwd", good.as_str()),
            (good.as_str(), good.as_str()),
            (&format!("{drv}^*"), good.as_str()),
            (&drv, "/nix/store/../etc"),
            (&drv, &format!("{good}/bin")),
            (&drv, ""),
        ] {
            assert!(matches!(check(drv, out), Err(BuildError::Failed { .. })), "{drv} {out}");
        }
    }
}
