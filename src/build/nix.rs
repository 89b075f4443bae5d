//! The real [`Builder`]: nix, evaluating and building as a user that exists only meanwhile.
//!
//! A tenant's flake is a hostile program. It is evaluated by an unprivileged nix in a transient unit that sees no state of Seed's, no
//! private network and no home, with limits of time and memory; what is built is built by nix's own daemon in nix's own sandbox.
//! Nothing that a flake says reaches an argument list or a path unless it was parsed as a [`StorePath`] first. No shell is involved.
//!
//! Results are protected from garbage collection from before they exist: the root is a link to the path that is going to be built,
//! and a collector that runs meanwhile is told of the path by the build itself.

mod system;
mod unit;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;
use tokio::{process::Command, sync::mpsc};

use super::{BuildError, Builder, Evaluated, Job, Realised};
use crate::spec::{
    name::{Namespace, StorePath},
    quantity::Bytes,
};
use unit::{Finished, Unit};

/// What evaluation and builds may take, and what they must not see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NixSettings {
    /// The nix program; `nix-store` lies beside it.
    pub nix: PathBuf,
    /// Where nix looks for roots: /nix/var/nix/gcroots/seed
    pub roots: PathBuf,
    /// Seed's run directory, which is hidden. It must exist.
    pub run: PathBuf,
    /// Other folders that are hidden: the state directory, /etc/seed.
    pub hidden: Vec<PathBuf>,
    pub eval_timeout_secs: u32,
    pub eval_memory: Bytes,
    pub build_timeout_secs: u32,
    /// Addresses and prefixes that an evaluation may reach although they are not public.
    pub allow_addresses: Vec<String>,
}

/// Runs nix for tenants.
#[derive(Debug, Clone)]
pub struct NixBuilder {
    settings: NixSettings,
}

/// The function that makes of `seeds` what the agent reads. It throws what a tenant has to read; forcing `meta` and two paths of
/// `toplevel` must not force the system.
const READ_SEEDS: &str = r#"seeds:
let
  kind = value: let type = builtins.typeOf value; in if type == "set" then "an attribute set" else if type == "int" then "an integer" else "a ${type}";
  read = name: seed:
    if !builtins.isAttrs seed then
      throw "seeds.${name} is ${kind seed}: write seeds.${name} = { meta = { … }; toplevel = …; }"
    else if !(seed ? meta) then
      throw "seeds.${name} has no meta: write seeds.${name}.meta = { version = 1; name = \"${name}\"; }"
    else if !builtins.isAttrs seed.meta then
      throw "seeds.${name}.meta is ${kind seed.meta}: write an attribute set of plain data"
    else if !(seed ? toplevel) then
      throw "seeds.${name} has no toplevel: write the system's derivation, as config.system.build.toplevel"
    else if (seed.toplevel.type or null) != "derivation" then
      throw "seeds.${name}.toplevel is ${kind seed.toplevel} and no derivation: write the system's derivation, as config.system.build.toplevel"
    else {
      inherit (seed) meta;
      drv = builtins.unsafeDiscardStringContext seed.toplevel.drvPath;
      out = builtins.unsafeDiscardStringContext seed.toplevel.outPath;
    };
in
if !builtins.isAttrs seeds then
  throw "the output seeds is ${kind seeds}: write seeds.<name> = { meta = { … }; toplevel = …; }"
else
  builtins.mapAttrs read seeds
"#;

/// Evaluation yields at most this much.
const ANSWER_MAX: usize = 8 << 20;
/// A namespace has at most this many instances.
const SEEDS_MAX: usize = 100;

/// One attribute of what [`READ_SEEDS`] yields.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    meta: Value,
    drv: String,
    out: String,
}

impl NixBuilder {
    /// Makes a builder; starts nothing.
    pub fn new(settings: NixSettings) -> Self {
        Self { settings }
    }

    /// The version of nix, and a warning if it is one that is known to give builders root.
    pub async fn version(&self) -> Result<(String, Option<String>), BuildError> {
        let said = self.run(&self.settings.nix, &["--version".to_owned()]).await?;
        let version = said.trim().rsplit(' ').next().unwrap_or_default().to_owned();
        let warning = known_bad(&version).then(|| {
            format!(
                "nix {version} is known to give those who build root (CVE-2026-39860): update it to 2.28.6, 2.29.3, 2.30.4, 2.31.4, 2.32.7, \
                 2.33.4, 2.34.5 or later"
            )
        });
        Ok((version, warning))
    }

    /// Runs one of nix's programs as root, with arguments that are Seed's own.
    async fn run(&self, program: &Path, arguments: &[String]) -> Result<String, BuildError> {
        let mut command = Command::new(program);
        command.args(arguments).env_clear().env("HOME", "/var/empty").envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        let output = command.kill_on_drop(true).output().await;
        let output = output.map_err(|error| BuildError::Host(format!("{} cannot be run: {error}", program.display())))?;
        if !output.status.success() {
            let said = words::clean(&String::from_utf8_lossy(&output.stderr));
            return Err(BuildError::Host(format!("{} failed: {}", program.display(), said.trim())));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn root_of(&self, namespace: &Namespace, name: &str, path: &StorePath) -> PathBuf {
        self.settings.roots.join(namespace.as_str()).join(name).join(&path.base_name()[..12])
    }

    async fn closure(&self, toplevel: &StorePath) -> Result<Vec<StorePath>, BuildError> {
        let nix_store = self.settings.nix.with_file_name("nix-store");
        let said = self.run(&nix_store, &["--query".into(), "--requisites".into(), toplevel.to_string()]).await?;
        let parsed: Result<BTreeSet<StorePath>, _> = said.lines().map(str::parse).collect();
        parsed
            .map(|closure| closure.into_iter().collect())
            .map_err(|error| BuildError::Host(format!("nix-store answered what is no store path: {error}")))
    }
}

impl Builder for NixBuilder {
    async fn eval(&self, job: &Job, log: mpsc::Sender<String>) -> Result<BTreeMap<String, Evaluated>, BuildError> {
        let unreadable = |error| BuildError::Host(format!("the source {} cannot be handed out: {error}", job.source.display()));
        // The unit's user reads it where it is bound to; nobody else can reach it where it is.
        fs::set_permissions(&job.source, fs::Permissions::from_mode(0o444)).map_err(unreadable)?;
        let settings = &self.settings;
        let unit = Unit::eval(settings, job)?;
        let flake = format!("tarball+file://{}#seeds", unit.source().display());
        let mut argv = self.nix("eval");
        argv.extend(["--json".into(), "--no-write-lock-file".into(), flake, "--apply".into(), READ_SEEDS.into()]);
        let finished = unit.run(&argv, ANSWER_MAX, &log).await?;
        if !finished.succeeded() {
            return Err(words::eval_error(&finished, settings));
        }
        read_answer(&finished)
    }

    async fn realise(
        &self,
        job: &Job,
        wanted: &BTreeMap<String, Evaluated>,
        log: mpsc::Sender<String>,
    ) -> Result<BTreeMap<String, Realised>, BuildError> {
        for (name, evaluated) in wanted {
            let root = self.root_of(&job.namespace, name, &evaluated.out);
            protect(&root, &evaluated.out)
                .map_err(|error| BuildError::Host(format!("the root {} cannot be made: {error}", root.display())))?;
        }
        let mut argv = self.nix("build");
        argv.extend(["--no-link".into(), "--print-build-logs".into()]);
        argv.extend(["--option".into(), "timeout".into(), self.settings.build_timeout_secs.to_string()]);
        argv.extend(wanted.values().map(|evaluated| format!("{}^*", evaluated.drv)));
        let finished = Unit::build(&self.settings, job)?.run(&argv, 0, &log).await?;
        if !finished.succeeded() {
            return Err(words::build_error(&finished, &self.settings));
        }
        let mut realised = BTreeMap::new();
        for (name, evaluated) in wanted {
            let closure = self.closure(&evaluated.out).await?;
            let kernel_params = system::check(name, &evaluated.out, &closure)?;
            realised.insert(name.clone(), Realised { toplevel: evaluated.out.clone(), closure, kernel_params });
        }
        Ok(realised)
    }

    async fn retain(&self, namespace: &Namespace, keep: &[StorePath]) -> Result<(), BuildError> {
        let folder = self.settings.roots.join(namespace.as_str());
        release(&folder, keep)
            .map_err(|error| BuildError::Host(format!("the roots in {} cannot be dropped: {error}", folder.display())))
    }
}

impl NixBuilder {
    /// The beginning of a nix command line.
    fn nix(&self, verb: &str) -> Vec<String> {
        let mut argv = vec![self.settings.nix.display().to_string(), verb.to_owned()];
        argv.extend(["--extra-experimental-features".into(), "nix-command flakes".into()]);
        for (name, value) in [
            ("pure-eval", "true"),
            ("accept-flake-config", "false"),
            ("allow-import-from-derivation", "false"),
            ("eval-cache", "false"),
            ("warn-dirty", "false"),
            ("show-trace", "false"),
        ] {
            argv.extend(["--option".into(), name.to_owned(), value.to_owned()]);
        }
        argv
    }
}

fn read_answer(finished: &Finished) -> Result<BTreeMap<String, Evaluated>, BuildError> {
    let refuse = |what: String, remedy: &str| BuildError::Failed { what, lines: Vec::new(), remedy: remedy.to_owned() };
    if finished.stdout.len() >= ANSWER_MAX {
        let remedy = "meta is a description of the instance: leave out what is not part of it";
        return Err(refuse(format!("the meta of all instances is longer than {}", Bytes(ANSWER_MAX as u64)), remedy));
    }
    let answers: BTreeMap<String, Answer> = serde_json::from_slice(&finished.stdout)
        .map_err(|error| BuildError::Host(format!("nix answered what is not expected of it: {error}")))?;
    if answers.len() > SEEDS_MAX {
        return Err(refuse(format!("seeds has {} instances", answers.len()), "a flake may have up to 100: split it in two"));
    }
    let mut evaluated = BTreeMap::new();
    for (name, answer) in answers {
        // Derivations may say anything of themselves; only nix's own have paths of this form.
        let path = |text: &str, key: &str| {
            text.parse::<StorePath>().map_err(|error| {
                let remedy = "write the system's derivation itself, as config.system.build.toplevel";
                refuse(format!("seeds.{name}.toplevel.{key} is refused: {error}"), remedy)
            })
        };
        let (drv, out) = (path(&answer.drv, "drvPath")?, path(&answer.out, "outPath")?);
        if !drv.as_str().ends_with(".drv") {
            return Err(refuse(format!("seeds.{name}.toplevel.drvPath is {drv}, which is no derivation"), "write a derivation"));
        }
        evaluated.insert(name, Evaluated { meta: answer.meta, drv, out });
    }
    Ok(evaluated)
}

/// Makes a garbage collection root, whole or not at all.
fn protect(root: &Path, path: &StorePath) -> io::Result<()> {
    if fs::read_link(root).is_ok_and(|target| target == Path::new(path.as_str())) {
        return Ok(());
    }
    let folder = root.parent().unwrap_or(root);
    fs::create_dir_all(folder)?;
    let new = root.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(path.as_str(), &new)?;
    fs::rename(&new, root)
}

/// Removes the roots of one namespace that are not among `keep`, and folders that become empty.
fn release(folder: &Path, keep: &[StorePath]) -> io::Result<()> {
    let instances = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        listed => listed?,
    };
    let keep: BTreeSet<&Path> = keep.iter().map(|path| Path::new(path.as_str())).collect();
    for instance in instances {
        let instance = instance?.path();
        for root in fs::read_dir(&instance)? {
            let root = root?.path();
            if !keep.contains(fs::read_link(&root)?.as_path()) {
                fs::remove_file(&root)?;
            }
        }
        remove_if_empty(&instance)?;
    }
    remove_if_empty(folder)
}

fn remove_if_empty(folder: &Path) -> io::Result<()> {
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => Err(error),
        _ => Ok(()),
    }
}

/// Whether a version of nix is known to give those who build root: CVE-2026-39860.
fn known_bad(version: &str) -> bool {
    /// By minor version of nix 2: the first patch level that is good. Older ones were never mended.
    const GOOD: [(u32, u32); 7] = [(28, 6), (29, 3), (30, 4), (31, 4), (32, 7), (33, 4), (34, 5)];
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let (major, minor, patch) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match (major, GOOD.iter().find(|(good, _)| *good == minor)) {
        (2, Some((_, good))) => patch < *good,
        (2, None) => minor < GOOD[0].0,
        (other, _) => other < 2,
    }
}

#[cfg(test)]
#[path = "nix_tests.rs"]
mod tests;
