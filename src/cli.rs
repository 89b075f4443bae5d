//! argv to calls. The only room that knows all the others, and the only user of `anyhow`: elsewhere an error has a type.
//!
//! Exit codes: 0 done, 1 failed, 2 wrongly asked, 3 not found, 4 denied, 5 the agent does not answer on the bus, 78 the configuration
//! cannot be used (systemd does not try that again).
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is where the program speaks")]
#![allow(clippy::disallowed_methods, reason = "this room meets the environment")]

use std::{
    io::IsTerminal,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use tracing_subscriber::{
    EnvFilter,
    fmt::{FmtContext, FormatEvent, FormatFields, format},
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use crate::config::{self, Config, ConfigError};

/// A NixOS host as a small cloud: git push a NixOS module, get a microVM
#[derive(Debug, Parser)]
#[command(name = "seed", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show every instance, or those of one namespace
    #[command(disable_help_flag = true)]
    Status(Words),
    /// Show what the agent would change now
    #[command(disable_help_flag = true)]
    Plan(Words),
    /// Show the journal and console of an instance
    #[command(disable_help_flag = true)]
    Logs(Words),
    /// Power an instance off and start it again
    #[command(disable_help_flag = true)]
    Restart(Words),
    /// Make, list and revoke invite codes: invite new, invite list, invite revoke ID
    #[command(disable_help_flag = true)]
    Invite(Words),
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
}

/// The words of a verb that is the same over SSH: `crate::serve::shell` reads them.
#[derive(Debug, Args)]
struct Words {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

#[derive(Debug, Args)]
struct ConfigFlag {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Status(words) => ask("status", words),
        Verb::Plan(words) => ask("plan", words),
        Verb::Logs(words) => ask("logs", words),
        Verb::Restart(words) => ask("restart", words),
        Verb::Invite(words) => ask("invite", words),
        Verb::CheckConfig { file } => {
            Config::load(&file)?;
            println!("{} can be used", file.display());
            Ok(ExitCode::SUCCESS)
        }
        Verb::Agent(flag) => daemon(&flag.config, agent),
        Verb::Serve(flag) => daemon(&flag.config, serve),
    }
}

/// Loads the configuration and runs a process that lasts.
fn daemon<F: Future<Output = anyhow::Result<()>>>(path: &Path, main: impl FnOnce(Config) -> F) -> anyhow::Result<ExitCode> {
    let config = Config::load(path)?;
    log();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("could not start the runtime")?;
    runtime.block_on(main(config))?;
    Ok(ExitCode::SUCCESS)
}

async fn agent(config: Config) -> anyhow::Result<()> {
    anyhow::bail!("the agent of {} is not wired up yet", config.domain)
}

async fn serve(config: Config) -> anyhow::Result<()> {
    anyhow::bail!("the doors of {} are not wired up yet", config.domain)
}

/// Runs a verb as the operator, over the bus. It prints its own errors.
fn ask(verb: &str, words: Words) -> anyhow::Result<ExitCode> {
    let words: Vec<String> = std::iter::once(verb.to_owned()).chain(words.words).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("could not start the runtime")?;
    runtime.block_on(async {
        let bus = zbus::Connection::system().await.context("could not reach the system bus")?;
        let agent = crate::bus::SeedProxy::new(&bus).await.context("could not reach the agent")?;
        let terminal = std::io::stdout().is_terminal();
        let colour = terminal && std::env::var_os("NO_COLOR").is_none();
        let code = shell(&words, &agent, terminal, colour).await;
        Ok(ExitCode::from(code))
    })
}

async fn shell(words: &[String], _agent: &crate::bus::SeedProxy<'_>, _terminal: bool, _colour: bool) -> u8 {
    eprintln!("error: {} is not wired up yet", words[0]);
    1
}

/// The exit code of an error that no verb has turned into one.
fn exit_code(error: &anyhow::Error) -> u8 {
    let of = |cause: &(dyn std::error::Error + 'static)| {
        if cause.is::<ConfigError>() { Some(78) } else { cause.is::<zbus::Error>().then_some(5) }
    };
    error.chain().find_map(of).unwrap_or(1)
}

/// Starts logging to standard error. In the journal each line has its priority, and no time or colour of its own.
fn log() {
    let filter = EnvFilter::try_from_env("SEED_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    if stderr_is_journal() {
        registry
            .with(lines.with_ansi(false).event_format(Journal(format().without_time().with_level(false).with_target(false))))
            .init();
    } else {
        registry.with(lines.with_target(false).with_ansi(std::io::stderr().is_terminal())).init();
    }
}

/// Whether systemd has connected standard error to the journal: it says the device and inode of what it connected.
fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stderr) = std::fs::metadata("/proc/self/fd/2") else { return false };
    stream == format!("{}:{}", stderr.dev(), stderr.ino())
}

/// Lines for the journal: the priority as sd-daemon(3) writes it, then the line with its fields, which a journal field of their own
/// would hide from whoever reads `journalctl -u seed-agent`.
struct Journal<F>(F);

impl<S, N, F> FormatEvent<S, N> for Journal<F>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: format::Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> std::fmt::Result {
        let priority = match *event.metadata().level() {
            tracing::Level::ERROR => 3,
            tracing::Level::WARN => 4,
            tracing::Level::INFO => 6,
            tracing::Level::DEBUG | tracing::Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(context, writer, event)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn words(line: &str) -> Vec<String> {
        let cli = Cli::try_parse_from(std::iter::once("seed").chain(line.split(' '))).expect("understood");
        match cli.verb {
            Verb::Status(words) | Verb::Plan(words) | Verb::Logs(words) | Verb::Restart(words) | Verb::Invite(words) => words.words,
            other => panic!("{other:?} is no verb of the shell"),
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn verbs_of_the_shell_get_their_words_as_they_are() {
        for line in
            ["status", "status --json", "status --help", "logs web -f --lines 20", "invite new --uses 3", "logs --lines=1 -- -x"]
        {
            let given: Vec<&str> = line.split(' ').skip(1).collect();
            assert_eq!(words(line), given, "{line}");
        }
    }

    #[test]
    fn an_error_ends_with_the_code_that_says_its_kind() {
        let config: anyhow::Error = Config::load(Path::new("/nonexistent")).expect_err("nothing is there").into();
        let bus = anyhow::Error::new(zbus::Error::Failure("gone".to_owned())).context("could not reach the agent");
        assert_eq!((exit_code(&config), exit_code(&bus), exit_code(&anyhow::anyhow!("x"))), (78, 5, 1));
    }

    #[test]
    fn a_line_in_the_journal_has_its_priority_and_its_fields() {
        use std::sync::{Arc, Mutex};
        #[derive(Clone, Default)]
        struct Lines(Arc<Mutex<Vec<u8>>>);
        impl std::io::Write for Lines {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().expect("no panic").extend(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .event_format(Journal(format().without_time().with_level(false).with_target(false)));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let _span = tracing::info_span!("deploy", repo = "app").entered();
            tracing::warn!(unit = "seed-vm@x.service", "did not start");
        });
        let text = String::from_utf8(lines.0.lock().expect("no panic").clone()).expect("text");
        assert_eq!(text, "<4>deploy{repo=\"app\"}: did not start unit=\"seed-vm@x.service\"\n");
    }
}
