//! The line that an SSH client asks to run, taken apart by our own rules. No shell ever sees it.
//!
//! Words are split at spaces; single quotes, double quotes and backslashes work as a person expects of a shell (git sends `'name'`,
//! and `'\''` for a quote inside); nothing is expanded.

use crate::spec::name::{NameError, RepoName};

/// Lines longer than this are refused.
pub const MAX_LINE: usize = 8 << 10;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// git push
    ReceivePack(RepoName),
    /// git clone, git fetch
    UploadPack(RepoName),
    /// git archive --remote
    UploadArchive(RepoName),
    /// A verb of the shell, and its arguments.
    Verb(Vec<String>),
}

impl Command {
    /// What was asked, without what may be secret in it.
    pub fn summary(&self) -> String {
        match self {
            Self::ReceivePack(name) => format!("push {name}"),
            Self::UploadPack(name) => format!("fetch {name}"),
            Self::UploadArchive(name) => format!("archive {name}"),
            Self::Verb(words) => words.first().map(|verb| verb.chars().take(20).collect()).unwrap_or_default(),
        }
    }
}

/// Why a line cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error("the command is longer than 8192 bytes")]
    TooLong,
    #[error("the command is not UTF-8 text without control characters")]
    NotText,
    #[error("a quote in the command is not closed")]
    OpenQuote,
    #[error("{0} takes the name of one repository")]
    OneRepository(&'static str),
    #[error("{given:?} is no repository here: {source} (write ssh://HOST/my-app.git or HOST:my-app.git)")]
    NoRepository { given: String, source: NameError },
}

/// Takes a line apart.
pub fn parse(line: &[u8]) -> Result<Command, CommandError> {
    if line.len() > MAX_LINE {
        return Err(CommandError::TooLong);
    }
    let line = std::str::from_utf8(line).map_err(|_| CommandError::NotText)?;
    if line.chars().any(|c| c.is_control() && c != '\t' && c != '\n') {
        return Err(CommandError::NotText);
    }
    let mut words = split(line)?;
    // git has two spellings: `git-upload-pack` and `git upload-pack`.
    if words.len() > 1 && words[0] == "git" {
        words.remove(0);
        words[0] = format!("git-{}", words[0]);
    }
    let (program, command): (&'static str, fn(RepoName) -> Command) = match words.first().map(String::as_str) {
        Some("git-receive-pack") => ("git-receive-pack", Command::ReceivePack),
        Some("git-upload-pack") => ("git-upload-pack", Command::UploadPack),
        Some("git-upload-archive") => ("git-upload-archive", Command::UploadArchive),
        _ => return Ok(Command::Verb(words)),
    };
    match &words[1..] {
        [path] => Ok(command(repository(path)?)),
        _ => Err(CommandError::OneRepository(program)),
    }
}

/// The repository that a path names: `my-app`, `my-app.git`, `/my-app.git`, `/my-app.git/`.
pub fn repository(path: &str) -> Result<RepoName, CommandError> {
    let name = path.strip_prefix('/').unwrap_or(path);
    let name = name.strip_suffix('/').unwrap_or(name);
    let name = name.strip_suffix(".git").unwrap_or(name);
    name.parse().map_err(|source| CommandError::NoRepository { given: path.chars().take(80).collect(), source })
}

/// Splits a line into words.
pub fn split(line: &str) -> Result<Vec<String>, CommandError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, c) if c.is_ascii_whitespace() => words.extend(word.take()),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some(open), c) if c == open => quote = None,
            (None | Some('"'), '\\') => word.get_or_insert_default().push(chars.next().ok_or(CommandError::OpenQuote)?),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err(CommandError::OpenQuote);
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_git_and_people_send_is_understood() {
        let name: RepoName = "my-app".parse().unwrap();
        let table = [
            ("git-receive-pack 'my-app'", Command::ReceivePack(name.clone())),
            ("git-receive-pack '/my-app.git'", Command::ReceivePack(name.clone())),
            ("git upload-pack '/my-app.git/'", Command::UploadPack(name.clone())),
            ("git-upload-pack my-app.git", Command::UploadPack(name.clone())),
            ("git-upload-archive \"my-app\"", Command::UploadArchive(name)),
            ("status  --json", Command::Verb(vec!["status".into(), "--json".into()])),
            ("logs 'a b' c\\ d", Command::Verb(vec!["logs".into(), "a b".into(), "c d".into()])),
            ("x '' 'it'\\''s'", Command::Verb(vec!["x".into(), String::new(), "it's".into()])),
            ("", Command::Verb(vec![])),
            ("git", Command::Verb(vec!["git".into()])),
        ];
        for (line, expected) in table {
            assert_eq!(parse(line.as_bytes()), Ok(expected), "{line}");
        }
    }

    #[test]
    fn what_is_no_repository_is_refused() {
        for path in
            ["'../etc'", "'/etc/passwd'", "'~/x'", "'-x'", "''", "'a b'", "'A'", "'.git'", "'x.git.git'", "'//x'", "'x' 'y'", ""]
        {
            assert!(parse(format!("git-receive-pack {path}").as_bytes()).is_err(), "{path}");
        }
        assert_eq!(parse(b"git-upload-pack 'x"), Err(CommandError::OpenQuote));
        assert_eq!(parse(b"status\0x"), Err(CommandError::NotText));
        assert_eq!(parse(&[b'a'; 8193]), Err(CommandError::TooLong));
        assert_eq!(parse(b"\xff"), Err(CommandError::NotText));
    }

    proptest! {
        #[test]
        fn quoting_as_git_does_survives(words in proptest::collection::vec("[ -~é]{0,12}", 0..5)) {
            let line: Vec<String> = words.iter().map(|word| format!("'{}'", word.replace('\'', "'\\''").replace('!', "'\\!'"))).collect();
            prop_assert_eq!(split(&line.join(" ")).unwrap(), words);
        }

        #[test]
        fn no_line_makes_it_panic(line in proptest::collection::vec(any::<u8>(), 0..100)) {
            drop(parse(&line));
        }
    }
}
