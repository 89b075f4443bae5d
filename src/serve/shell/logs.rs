//! `logs`: which lines are asked for, and how they are shown.

use futures_util::StreamExt;
use tokio::io::AsyncWrite;

use super::{
    Arguments, End, Session,
    arguments::{moment, number},
    ask, progress, show,
};
use crate::bus::{LogLine, LogQuery, Refusal};

/// How many lines are shown if nothing is said.
const LINES: u32 = 100;
/// The most that are.
const MOST: u32 = 100_000;

impl<O: AsyncWrite + Unpin + Send> Session<'_, O> {
    pub(super) async fn logs(&mut self, rest: &[String]) -> Result<u8, End> {
        let flags = ["-f", "--follow", "--boot", "-b", "--build"];
        let valued = ["--lines", "-n", "--since", "-S", "--unit", "-u"];
        let arguments = Arguments::parse("logs", rest, &flags, &valued, 1)?;
        let instance = arguments.required(0, "an instance: logs web, or logs my-app/web")?;
        let query = query(&arguments, show::now())?;
        let text = serde_json::to_string(&query).expect("plain data is JSON");
        let pipe = ask::within(self.agent.logs(self.name(), instance, &text)).await?;
        let mut told = progress::lines_of(pipe)?;
        while let Some(line) = told.next().await {
            let line = line.map_err(|error| Refusal::Failed(format!("could not read the log: {error}")))?;
            let shown = match serde_json::from_str::<LogLine>(&line) {
                Ok(_) if arguments.json => format!("{line}\n"),
                Ok(line) => show::log_line(&line, self.look),
                Err(error) => {
                    tracing::warn!(%error, "the agent wrote a line of a log that is none");
                    continue;
                }
            };
            self.print(&shown).await?;
        }
        Ok(0)
    }
}

fn query(arguments: &Arguments, now: u64) -> Result<LogQuery, Refusal> {
    let either = |long: &str, short: &str| arguments.value(long).or(arguments.value(short));
    let flag = |long: &str, short: &str| arguments.flag(long) || arguments.flag(short);
    let since = either("--since", "-S").map(|text| moment(text, now)).transpose()?.unwrap_or(0);
    let lines = match either("--lines", "-n") {
        Some(text) => number("--lines", text, MOST)?,
        // Whoever names a time wants all of it.
        None if since > 0 => MOST,
        None => LINES,
    };
    let query = LogQuery {
        lines,
        follow: flag("--follow", "-f"),
        since,
        unit: either("--unit", "-u").unwrap_or_default().to_owned(),
        boot: flag("--boot", "-b"),
        build: arguments.flag("--build"),
    };
    if query.build && (query.since > 0 || query.boot || !query.unit.is_empty()) {
        return Err(Refusal::Invalid("--build shows the log of the last deploy: it takes --lines and -f, nothing else".into()));
    }
    Ok(query)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Result<LogQuery, Refusal> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let flags = ["-f", "--follow", "--boot", "-b", "--build"];
        let valued = ["--lines", "-n", "--since", "-S", "--unit", "-u"];
        query(&Arguments::parse("logs", &words, &flags, &valued, 1)?, 10_000)
    }

    #[test]
    fn what_is_asked_for() {
        let plain = LogQuery { lines: 100, ..LogQuery::default() };
        let table = [
            ("web", plain.clone()),
            ("web -n 5 -f", LogQuery { lines: 5, follow: true, ..plain.clone() }),
            ("web --since 1h", LogQuery { lines: 100_000, since: 6_400, ..plain.clone() }),
            ("web -S 10m --lines 7 -u nginx", LogQuery { lines: 7, since: 9_400, unit: "nginx".into(), ..plain.clone() }),
            ("web --boot", LogQuery { boot: true, ..plain.clone() }),
            ("web --build", LogQuery { build: true, ..plain }),
        ];
        for (line, expected) in table {
            assert_eq!(asked(line).unwrap(), expected, "{line}");
        }
        for line in ["web --lines 0", "web --lines many", "web --since soon", "web --build -u nginx", "web --build --boot"] {
            assert!(matches!(asked(line), Err(Refusal::Invalid(_))), "{line}");
        }
    }
}
