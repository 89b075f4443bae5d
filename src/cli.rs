//! argv to calls. The only room that knows all the others, and the only user of `anyhow`: elsewhere an error has a type.
//!
//! Exit codes: 0 done, 1 failed, 2 wrongly asked, 3 not found, 4 denied, 5 the agent does not answer on the bus, 78 the configuration
//! cannot be used (systemd does not try that again).
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is where the program speaks")]
#![allow(clippy::disallowed_methods, reason = "this room meets the environment")]

mod inside;
mod log;
mod manual;

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    agent::{
        self, Agent,
        authority::Authority,
        bus::{Face, Trust},
    },
    build::{
        self,
        fetch::{Credential, Fetcher},
        nix::{NixBuilder, NixSettings},
    },
    bus::{Refusal, SeedProxy},
    config::{self, Config, ConfigError},
    host::{Machine, hypervisor},
    launch,
    render::{Layout, zone::Apex},
    serve,
    state::sled::SledState,
};

/// A NixOS host as a small cloud: git push a NixOS module, get a microVM
#[derive(Debug, Parser)]
#[command(name = "seed", version, max_term_width = 100, disable_help_subcommand = true)]
#[command(after_help = "`seed help` shows the verbs: status, logs, deploys, … They are the same as over SSH.")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show what the zone above this host's needs to have: name servers, their addresses, and the DS record if this zone is signed
    Dns(ConfigFlag),
    /// Check a configuration and say every problem with it
    CheckConfig {
        /// The file to check
        #[arg(default_value = config::DEFAULT_PATH)]
        file: PathBuf,
    },
    /// Run the process that decides and does; seed-agent.service starts it
    Agent(ConfigFlag),
    /// Run the doors (SSH, git, DNS); seed-serve.service starts it
    Serve(ConfigFlag),
    /// Bring back pushes that a power cut took; seed-recover.service starts it
    #[command(hide = true)]
    Recover(ConfigFlag),
    /// Run a virtual machine; seed-vm@….service starts it
    #[command(hide = true)]
    Vm(launch::vm::Args),
    /// Tell machinectl of a virtual machine; seed-vm@….service runs it
    #[command(hide = true)]
    Machine(launch::machine::Args),
    /// Answer one question about a repository; the agent starts it, as the user of the doors
    #[command(hide = true)]
    ReadRepository {
        path: PathBuf,
        /// head, keys COMMIT, or export COMMIT
        what: Vec<String>,
    },
    /// Fetch a repository from elsewhere; the agent starts it, as a user of its own
    #[command(hide = true)]
    FetchRepository(build::fetch::Args),
    /// Remove a repository that was fetched; the agent starts it, as the user who has fetched it
    #[command(hide = true)]
    ForgetRepository { path: PathBuf },
    /// Become virtiofsd with a view of one closure; seed-store@….service starts it
    #[command(hide = true)]
    StoreView(launch::store_view::Args),
    /// Print what a shell needs to complete the command line: source <(seed completion bash)
    Completion { shell: clap_complete::Shell },
    /// Write the manual pages into a folder
    #[command(hide = true)]
    Man { folder: PathBuf },
    /// The same as over SSH: `crate::serve::shell` reads the words.
    #[command(external_subcommand)]
    Shell(Vec<String>),
}

#[derive(Debug, Args)]
struct ConfigFlag {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
}

/// Runs the program.
pub fn main() -> ExitCode {
    if let Ok(settings) = std::env::var(build::git_ssh::VARIABLE) {
        let words: Vec<String> = std::env::args().skip(1).collect();
        return ExitCode::from(build::git_ssh::main(&settings, &words));
    }
    let cli = Cli::parse();
    match run(cli.verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", chain(&error));
            ExitCode::from(exit_code(&error))
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Shell(words) => ask(&words),
        Verb::Completion { shell } => {
            clap_complete::generate(shell, &mut manual::completed(), "seed", &mut std::io::stdout().lock());
            Ok(ExitCode::SUCCESS)
        }
        Verb::Man { folder } => {
            std::fs::create_dir_all(&folder).with_context(|| format!("could not make {}", folder.display()))?;
            manual::write(&folder).with_context(|| format!("could not write to {}", folder.display()))?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::CheckConfig { file } => {
            Config::load(&file)?;
            println!("{} can be used", file.display());
            Ok(ExitCode::SUCCESS)
        }
        Verb::Dns(flag) => {
            print!("{}", delegation(&Config::load(&flag.config)?)?);
            Ok(ExitCode::SUCCESS)
        }
        // One loop decides; what takes long is beside it, in threads and programs of its own.
        Verb::Agent(flag) => daemon(&flag.config, tokio::runtime::Builder::new_current_thread(), agent),
        Verb::Serve(flag) => daemon(&flag.config, tokio::runtime::Builder::new_multi_thread(), serve),
        Verb::Recover(flag) => daemon(&flag.config, tokio::runtime::Builder::new_current_thread(), async |config| {
            serve::recover(&config.repositories()).context("could not bring back the last pushes")
        }),
        Verb::Vm(args) => Ok(launch::vm::main(args)),
        Verb::Machine(args) => Ok(launch::machine::main(&args)),
        Verb::ReadRepository { path, what } => {
            let question = build::source::Question::parse(&what).context("no question about a repository")?;
            build::source::answer(&path, &question, &mut std::io::stdout().lock())?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::FetchRepository(args) => {
            let shown = Credential::given().map(|credential| credential.shown()).transpose();
            let found = build::fetch::fetch(&args, shown.context("could not read the credential")?.as_ref())?;
            println!("{}", serde_json::to_string(&found).context("could not say what was found")?);
            Ok(ExitCode::SUCCESS)
        }
        Verb::ForgetRepository { path } => {
            build::fetch::forget(&path).with_context(|| format!("could not remove {}", path.display()))?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::StoreView(args) => Ok(launch::store_view::main(args)),
    }
}

/// Loads the configuration and runs a process that lasts.
fn daemon<F: Future<Output = anyhow::Result<()>>>(
    path: &Path,
    mut threads: tokio::runtime::Builder,
    main: impl FnOnce(Config) -> F,
) -> anyhow::Result<ExitCode> {
    let config = Config::load(path)?;
    log::to_stderr();
    let runtime = threads.enable_all().build().context("could not start the runtime")?;
    runtime.block_on(main(config))?;
    Ok(ExitCode::SUCCESS)
}

/// Wires the agent up and runs it until it is told to stop.
async fn agent(config: Config) -> anyhow::Result<()> {
    let found = config::tools::find(&config.paths, &std::env::var("PATH").unwrap_or_default());
    // The VMMs are the choice's business: only what is chosen has to be there.
    for missing in found.missing.iter().filter(|missing| !matches!(missing.key, "qemu" | "cloud_hypervisor" | "vhost_device_vsock"))
    {
        tracing::error!("{missing}");
    }
    let choice = config::tools::choose(&config.hypervisor, &found, hypervisor::probe_kvm());
    let (vmm, why) = choice.map_err(NoHypervisor)?;
    tracing::info!(hypervisor = why, "chosen");
    let authority = Authority::load_or_make(&config.guest_ca()).context("no guest could be entered")?;
    let ingress = config.ingress.enable.then(|| user("seed-ingress", "ingress cannot be opened"));
    let layout = Layout { guest_ca: authority.public(), ingress, ..config.layout(vmm, found.tools.clone()) };
    let machine = Machine::new(layout.clone()).await.context("could not reach the machine")?;
    machine.prepare().await.context("could not prepare the machine")?;
    build::nix::say_version(&found.nix).await;

    let work = config.paths.run.join("work");
    // Archives of an earlier life: their deploys begin anew.
    match std::fs::remove_dir_all(&work) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => tracing::warn!(%error, "old archives are kept"),
        _ => {}
    }
    std::fs::create_dir_all(&work).with_context(|| format!("could not make {}", work.display()))?;
    let builder = NixBuilder::new(NixSettings {
        nix: found.nix,
        systemd_run: "systemd-run".into(),
        roots: "/nix/var/nix/gcroots/seed".into(),
        eval_timeout_secs: config.build.eval_timeout_secs,
        eval_memory: config.build.eval_memory,
        build_timeout_secs: config.build.build_timeout_secs,
        allow_addresses: config.build.allow_addresses.clone(),
        hidden: vec![config.storage.directory.clone(), config.paths.run.clone(), "/etc/seed".into()],
    });
    let remotes = agent::remote::Settings {
        fetcher: Fetcher::Unit {
            systemd_run: "systemd-run".into(),
            // The file itself: where it fetches, /etc is hidden, and with it links there.
            seed: std::env::current_exe().unwrap_or_else(|_| found.tools.seed.clone().into()),
            git: found.git,
            allow: config.build.allow_addresses.clone(),
            timeout_secs: config.github.fetch_timeout_secs,
            max_pack: config.ssh.max_pack,
        },
        credentials: agent::credentials::Credentials(config.credentials_directory()),
        github: config.github.server.clone(),
        github_ssh: config.github_ssh(),
        webhook: config.webhook(),
        every: Duration::from_secs(config.github.fetch_every_secs.into()),
        pause: Duration::from_secs(1),
    };
    let state = SledState::open(&config.state_directory()).context("could not open the state")?;
    let (host4, host6) = config.public_addresses();
    let settings = agent::Settings {
        layout,
        repositories: config.repositories(),
        reader: build::source::Reader::Unit {
            systemd_run: "systemd-run".into(),
            seed: found.tools.seed.clone().into(),
            user: "seed".to_owned(),
        },
        remotes,
        work,
        parallel: config.build.parallel as usize,
        drain_secs: config.rollout.drain_secs,
        keep: config.build.keep_generations as usize,
        quota: config.quota.clone(),
        reserved: config.reserved(),
        audit: config.audit_directory(),
        audit_keep: config.audit.keep.0,
        apex: Apex { host4, host6, nameservers: config.dns.nameservers.clone(), caa: config.dns.caa.clone() },
        acme: agent::acme::budget::Limits {
            per_week: config.acme.per_week as usize,
            per_namespace_week: config.acme.per_namespace_week as usize,
        },
        hypervisor: why.clone(),
        authority,
    };
    let (agent, handle) = Agent::new(machine, state, builder, settings).await.context("could not read the state")?;
    let trust = Trust::Users { door: user("seed", "doors cannot be opened") };
    let face = Face::new(handle.clone(), trust, why, config.domain.to_string());
    let mut running = tokio::spawn(agent.run());
    let _bus = agent::bus::serve(face).await.context("could not take the name farm.loom.Seed1 on the system bus")?;
    // Not being under systemd is no reason to stop.
    drop(sd_notify::notify(&[sd_notify::NotifyState::Ready]));
    let mut terminate = signal(SignalKind::terminate()).context("could not listen for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("could not listen for signals")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = &mut running => {
            ended.context("the agent died")?;
            anyhow::bail!("the agent ended by itself: this is a bug in Seed");
        }
    }
    handle.quit().await;
    running.await.context("the agent died")
}

/// The number of a user that units run as; nobody's, if there is none.
fn user(name: &str, without: &str) -> u32 {
    let user = nix::unistd::User::from_name(name).ok().flatten();
    if user.is_none() {
        tracing::error!("there is no user {name}: the {without}; systemd-sysusers makes it from sysusers.d/seed.conf");
    }
    user.map_or(u32::MAX, |user| user.uid.as_raw())
}

/// What the zone above is to have of this host's.
fn delegation(config: &Config) -> anyhow::Result<String> {
    let key = config.zone_key();
    let signer = match config.dns.dnssec.then(|| serve::dns::Signer::load(&key)) {
        Some(signer) => Some(signer.context("the zone is to be signed, but has no key yet: seed-serve.service makes it")?),
        None => None,
    };
    let (host4, host6) = config.public_addresses();
    let apex = Apex { host4, host6, nameservers: config.dns.nameservers.clone(), caa: Vec::new() };
    Ok(serve::dns::delegation(&config.domain, &apex, signer.as_ref()))
}

/// Opens the doors until they are told to close.
async fn serve(config: Config) -> anyhow::Result<()> {
    let sockets = serve::Sockets::from_systemd()?;
    let found = config::tools::find(&config.paths, &std::env::var("PATH").unwrap_or_default());
    let host_key = config.ssh_directory().join("host_ed25519");
    let addressing = config.addressing();
    let dns = serve::dns::Settings {
        near: serve::dns::Near {
            pool4: config.network.pool4,
            pool6: config.network.pool6,
            gateways: vec![addressing.gateway4().into(), addressing.gateway6().into()],
            inside: config.dns.inside.clone(),
        },
        upstream: config.upstream_dns(),
        rate: config.dns.answers_per_second,
        zone_key: config.dns.dnssec.then(|| config.zone_key()),
        secondaries: config.dns.secondaries.clone(),
        transfer_key: config.dns.transfer_key.clone(),
    };
    let mut settings = serve::Settings::new(config.domain.clone(), config.repositories(), host_key, dns);
    settings.git = found.git;
    settings.max_pack = config.ssh.max_pack;
    settings.ssh_port = Some(config.ssh.port);
    settings.acme = acme(&config);
    let bus = zbus::Connection::system().await.context("could not reach the system bus")?;
    let agent = SeedProxy::builder(&bus).build().await.context("could not reach the system bus")?;
    Ok(serve::run(settings, agent, sockets).await?)
}

/// What the ACME door needs of the configuration.
fn acme(config: &Config) -> serve::acme::Settings {
    let ca = config.acme.directory.clone().map(|directory| serve::acme::Ca {
        directory,
        email: config.acme.email.clone(),
        binding: config.acme.eab_kid.clone().zip(config.acme.eab_key_file.clone()),
        root: config.acme.ca_root.clone(),
        account: config.acme_directory(),
    });
    serve::acme::Settings { instances: vec![config.network.pool4.into(), config.network.pool6.into()], ca }
}

/// Runs a verb as the operator, over the bus. It prints its own errors.
fn ask(words: &[String]) -> anyhow::Result<ExitCode> {
    match serve::shell::alone(words, true) {
        Some(Ok(text)) => {
            print!("{text}");
            return Ok(ExitCode::SUCCESS);
        }
        Some(Err(refusal)) => {
            return Ok(refused(words, &refusal));
        }
        None => {}
    }
    let visit = match inside::Visit::is(words).then(|| inside::Visit::parse(words)).transpose() {
        Ok(visit) => visit,
        Err(refusal) => return Ok(refused(words, &refusal)),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("could not start the runtime")?;
    runtime.block_on(async {
        let reached = async { SeedProxy::new(&zbus::Connection::system().await?).await };
        let agent = match reached.await {
            Ok(agent) => agent,
            Err(error) => {
                let error = anyhow::Error::from(error).context("could not reach the system bus");
                eprintln!("{}", serve::shell::error_text("away", &chain(&error), json(words)));
                return Ok(ExitCode::from(exit_code(&error)));
            }
        };
        if let Some(visit) = visit {
            return Ok(visit
                .run(&agent, json(words))
                .await
                .unwrap_or_else(|refusal| refused(words, &serve::shell::on_host(refusal))));
        }
        let terminal = std::io::stdout().is_terminal();
        let colour = terminal && std::env::var_os("NO_COLOR").is_none();
        let asking = match terminal && std::io::stdin().is_terminal() {
            true => serve::shell::Asking::Line,
            false => serve::shell::Asking::Nobody,
        };
        let columns = if terminal { inside::columns() } else { 0 };
        let look = serve::shell::Look { terminal, colour, columns, asking };
        let (input, out, errors) = (tokio::io::stdin(), tokio::io::stdout(), tokio::io::stderr());
        let code = serve::shell::run(words, None, &agent, input, out, errors, look).await;
        Ok(ExitCode::from(code))
    })
}

/// Whether documents are asked for. What stands behind the instance of `exec` is not for us.
fn json(words: &[String]) -> bool {
    !matches!(words.first().map(String::as_str), Some("exec" | "shell")) && words.iter().any(|word| word == "--json")
}

/// Says why a verb about the inside of an instance was not done.
fn refused(words: &[String], refusal: &Refusal) -> ExitCode {
    eprintln!("{}", serve::shell::error_line(refusal, json(words)));
    ExitCode::from(refusal.exit_code())
}

/// An error and what led to it, each once: some of those underneath say what is under them themselves.
fn chain(error: &anyhow::Error) -> String {
    error.chain().skip(1).fold(error.to_string(), |said, cause| {
        let cause = cause.to_string();
        if said.ends_with(&cause) { said } else { format!("{said}: {cause}") }
    })
}

/// What the configuration asks for is not on this host: trying again each second would not bring it.
#[derive(Debug, thiserror::Error)]
#[error("no hypervisor can be used: {0}")]
struct NoHypervisor(String);

/// The exit code of an error that no verb has turned into one.
fn exit_code(error: &anyhow::Error) -> u8 {
    let of = |cause: &(dyn std::error::Error + 'static)| match cause.is::<ConfigError>() || cause.is::<NoHypervisor>() {
        true => Some(78),
        false => cause.is::<zbus::Error>().then_some(5),
    };
    error.chain().find_map(of).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn verbs_of_the_shell_get_their_words_as_they_are() {
        for line in [
            "status",
            "status --json",
            "status --help",
            "help logs",
            "logs web -f --lines 20",
            "invite new --uses 3",
            "logs --lines=1 -- -x",
        ] {
            let given: Vec<&str> = line.split(' ').collect();
            let cli = Cli::try_parse_from(std::iter::once("seed").chain(line.split(' '))).expect("understood");
            let Verb::Shell(words) = cli.verb else { panic!("{line} is no verb of the shell") };
            assert_eq!(words, given, "{line}");
        }
    }

    #[test]
    fn what_needs_nobody_is_answered_alone() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for (line, expected) in [("help", "rollback"), ("help rollback", "GENERATION"), ("rollback --help", "GENERATION")] {
            let text = serve::shell::alone(&words(line), true).expect("answered").expect("help");
            assert!(text.contains(expected), "{text}");
        }
        assert!(serve::shell::alone(&words("statsu"), true).is_some_and(|answer| answer.is_err()));
        assert!(serve::shell::alone(&words("status"), true).is_none());
    }

    #[test]
    fn an_error_ends_with_the_code_that_says_its_kind() {
        let config: anyhow::Error = Config::load(Path::new("/nonexistent")).expect_err("nothing is there").into();
        let bus = anyhow::Error::new(zbus::Error::Failure("gone".to_owned())).context("could not reach the agent");
        assert_eq!((exit_code(&config), exit_code(&bus), exit_code(&anyhow::anyhow!("x"))), (78, 5, 1));
        assert_eq!(exit_code(&NoHypervisor("there is no /dev/kvm".to_owned()).into()), 78);
    }
}
