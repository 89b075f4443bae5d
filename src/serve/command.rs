//! The line that an SSH client asks to run, taken apart by our own rules. No shell ever sees it.
//!
//! Words are split at spaces; single quotes, double quotes and backslashes work as a person expects of a shell (git sends `'name'`,
//! and `'\''` for a quote inside); nothing is expanded.

use crate::spec::name::{NameError, RepoName};

/// Lines longer than this are refused.
pub const MAX_LINE: usize = 8 << 10;
/// Lines for an instance's shell may be as long as Linux lets an argument be, without the NUL at its end.
pub const MAX_EXEC: usize = (128 << 10) - 1;

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
    /// Something inside of an instance, which is called this.
    Enter(String, Inside),
}

/// What is to be done inside of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inside {
    /// The line is for root's shell there, to the byte.
    Exec(Vec<u8>),
    Shell,
    /// The old protocol of scp: `-r -t '/tmp'`, for the scp there.
    Scp(String),
    /// Input and output are those of a TCP port there.
    Port(u16),
}

impl Command {
    /// What was asked, without what may be secret in it.
    pub fn summary(&self) -> String {
        match self {
            Self::ReceivePack(name) => format!("push {name}"),
            Self::UploadPack(name) => format!("fetch {name}"),
            Self::UploadArchive(name) => format!("archive {name}"),
            Self::Verb(words) => words.first().map(|verb| verb.chars().take(20).collect()).unwrap_or_default(),
            Self::Enter(instance, inside) => {
                let verb = match inside {
                    Inside::Exec(_) => "exec",
                    Inside::Shell => "shell",
                    Inside::Scp(_) => "scp",
                    Inside::Port(_) => "forward",
                };
                format!("{verb} {}", instance.chars().take(80).collect::<String>())
            }
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
    #[error("the command for the instance has a byte 0 in it, which no program can be given")]
    Nul,
    #[error("the command for the instance is longer than {MAX_EXEC} bytes, the most that Linux takes: send it on standard input")]
    ExecTooLong,
    #[error("{0}")]
    Inside(&'static str),
    #[error("scp with {0:?} is not known here")]
    ScpOption(String),
    #[error("{given:?} is no repository here: {source} (write ssh://HOST/my-app.git or HOST:my-app.git)")]
    NoRepository { given: String, source: NameError },
}

/// Takes a line apart.
pub fn parse(line: &[u8]) -> Result<Command, CommandError> {
    if let Some(exec) = exec(line)? {
        return Ok(exec);
    }
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
        Some("scp") => return scp(&words[1..]),
        Some("shell" | "forward") if !words.iter().any(|word| word == "--help" || word == "-h") => return inside(&words),
        _ => return Ok(Command::Verb(words)),
    };
    match &words[1..] {
        [path] => Ok(command(repository(path)?)),
        _ => Err(CommandError::OneRepository(program)),
    }
}

/// `exec INSTANCE -- LINE`, with the line as it was sent: `None` if the line is another command, or asks for help.
fn exec(line: &[u8]) -> Result<Option<Command>, CommandError> {
    const USAGE: CommandError = CommandError::Inside("exec needs an instance and a command: exec web -- ls -l");
    let (verb, rest) = word(line);
    if verb != b"exec" {
        return Ok(None);
    }
    let (instance, rest) = word(rest);
    if instance == b"--help" || instance == b"-h" {
        return Ok(None);
    }
    let line = match word(rest) {
        (b"--", line) => line,
        _ => rest,
    };
    let instance = std::str::from_utf8(instance).map_err(|_| CommandError::NotText)?;
    match line {
        _ if instance.is_empty() || instance.starts_with('-') => Err(USAGE),
        [] => Err(USAGE),
        line if line.len() > MAX_EXEC => Err(CommandError::ExecTooLong),
        line if line.contains(&0) => Err(CommandError::Nul),
        line => Ok(Some(Command::Enter(instance.to_owned(), Inside::Exec(line.to_vec())))),
    }
}

/// The first word of a line, and what follows the blanks after it.
fn word(line: &[u8]) -> (&[u8], &[u8]) {
    let line = line.trim_ascii_start();
    let end = line.iter().position(u8::is_ascii_whitespace).unwrap_or(line.len());
    (&line[..end], line[end..].trim_ascii_start())
}

/// `shell INSTANCE`, `forward INSTANCE PORT`.
fn inside(words: &[String]) -> Result<Command, CommandError> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["shell", instance] if !instance.starts_with('-') => Ok(Command::Enter(instance.to_owned(), Inside::Shell)),
        ["shell", ..] => Err(CommandError::Inside("shell needs one instance: ssh -t HOST shell web")),
        ["forward", instance, port] if !instance.starts_with('-') => match port.parse() {
            Ok(port @ 1..) => Ok(Command::Enter(instance.to_owned(), Inside::Port(port))),
            _ => Err(CommandError::Inside("the port of forward is a number from 1 to 65535")),
        },
        _ => Err(CommandError::Inside(
            "forward needs an instance and a port: ssh HOST forward web 5432, or ssh -L 5432:web:5432 HOST for a port of your own machine",
        )),
    }
}

/// What an old scp, or `scp -O`, asks of a server: `scp -r -t web:/tmp`.
fn scp(words: &[String]) -> Result<Command, CommandError> {
    let mut line = String::new();
    let mut words = words.iter().peekable();
    while let Some(option) = words.next_if(|word| word.starts_with('-') && *word != "--") {
        if !option[1..].bytes().all(|letter| b"tfrpdvq".contains(&letter)) || option.len() < 2 {
            return Err(CommandError::ScpOption(option.chars().take(40).collect()));
        }
        line.push_str(option);
        line.push(' ');
    }
    words.next_if(|word| *word == "--");
    let place = words.next().filter(|_| words.peek().is_none()).and_then(|path| place(path.as_bytes()));
    let Some((instance, path)) = place else {
        return Err(CommandError::Inside("the path of a copy is INSTANCE:/PATH: scp file HOST:web:/tmp/"));
    };
    let path = std::str::from_utf8(path).map_err(|_| CommandError::NotText)?;
    // For root's shell there, so that it stays one word and no option.
    let path = if path.starts_with('-') { format!("./{path}") } else { path.to_owned() };
    line.push_str(&format!("-- '{}'", path.replace('\'', "'\\''")));
    Ok(Command::Enter(instance.to_owned(), Inside::Scp(line)))
}

/// Which instance a path is in, and its path there: `web:/etc/hosts`, `my-app/web:/etc`, either with a slash before it; `web:x` and
/// `web:` are in root's home.
pub fn place(path: &[u8]) -> Option<(&str, &[u8])> {
    let path = path.strip_prefix(b"/").unwrap_or(path);
    let colon = path.iter().position(|byte| *byte == b':')?;
    let (instance, rest) = (std::str::from_utf8(&path[..colon]).ok()?, &path[colon + 1..]);
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let named = |part: &str| part.bytes().next().is_some_and(letter) && part.bytes().all(|b| letter(b) || b"-_.".contains(&b));
    let known = match instance.split_once('/') {
        Some((place, name)) => named(place) && named(name),
        None => named(instance),
    };
    known.then_some((instance, if rest.is_empty() { b"." } else { rest }))
}

/// The instance that the host of a forwarded port names: `web`, `web.my-app` (a slash ends a host's name for ssh), or its full DNS name
/// below `domain`.
pub fn instance_of_host(host: &str, domain: &str) -> Option<String> {
    let host = host.to_ascii_lowercase();
    let host = host.trim_end_matches('.');
    let host = host.strip_suffix(domain).and_then(|rest| rest.strip_suffix('.')).unwrap_or(host);
    if host.is_empty() || host.len() > 200 || host == domain || host.parse::<std::net::IpAddr>().is_ok() {
        return None;
    }
    match host.split_once('.') {
        None => Some(host.to_owned()),
        Some((name, place)) if !name.is_empty() && !place.is_empty() && !place.contains('.') => Some(format!("{place}/{name}")),
        Some(_) => None,
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

    #[test]
    fn a_line_for_an_instance_stays_as_it_is() {
        let exec = |instance: &str, line: &[u8]| Ok(Command::Enter(instance.into(), Inside::Exec(line.to_vec())));
        for (line, expected) in [
            (&b"exec web -- ls -l"[..], exec("web", b"ls -l")),
            (b"  exec  my-app/web  --  'a b' \"$x\" `y` ;|&\n\\ \xff ", exec("my-app/web", b"'a b' \"$x\" `y` ;|&\n\\ \xff ")),
            (b"exec web uptime", exec("web", b"uptime")),
            (b"exec web -- -- x", exec("web", b"-- x")),
            (b"exec ../../etc -- x", exec("../../etc", b"x")),
            (b"exec --help", Ok(Command::Verb(vec!["exec".into(), "--help".into()]))),
            (b"executive", Ok(Command::Verb(vec!["executive".into()]))),
            (b"exec web -- a\0b", Err(CommandError::Nul)),
        ] {
            assert_eq!(parse(line), expected, "{}", String::from_utf8_lossy(line));
        }
        for line in ["exec", "exec web", "exec web --", "exec -- ls", "exec -x web ls"] {
            assert!(matches!(parse(line.as_bytes()), Err(CommandError::Inside(_))), "{line}");
        }
        let long = |length: usize| parse(format!("exec web -- {}", "x".repeat(length)).as_bytes());
        assert!(long(MAX_EXEC).is_ok());
        assert_eq!(long(MAX_EXEC + 1), Err(CommandError::ExecTooLong));
        assert_eq!(long(1 << 20), Err(CommandError::ExecTooLong));
    }

    #[test]
    fn shells_ports_and_copies() {
        let enter = |instance: &str, inside| Ok(Command::Enter(instance.into(), inside));
        for (line, expected) in [
            ("shell web", enter("web", Inside::Shell)),
            ("forward my-app/web 5432", enter("my-app/web", Inside::Port(5432))),
            ("scp -r -p -t web:/tmp/x", enter("web", Inside::Scp("-r -p -t -- '/tmp/x'".into()))),
            ("scp -f -- 'web:it'\\''s $(x)'", enter("web", Inside::Scp("-f -- 'it'\\''s $(x)'".into()))),
            ("scp -t web:", enter("web", Inside::Scp("-t -- '.'".into()))),
            ("scp -t web:-x", enter("web", Inside::Scp("-t -- './-x'".into()))),
            ("scp -t -x web:/tmp", Err(CommandError::ScpOption("-x".into()))),
            ("scp -S/bin/sh -t web:/tmp", Err(CommandError::ScpOption("-S/bin/sh".into()))),
            ("shell --help", Ok(Command::Verb(vec!["shell".into(), "--help".into()]))),
        ] {
            assert_eq!(parse(line.as_bytes()), expected, "{line}");
        }
        for line in [
            "shell",
            "shell a b",
            "shell -x",
            "forward web",
            "forward web 0",
            "forward web 65536",
            "forward web http",
            "forward -x 1",
            "scp -t",
            "scp -t /tmp",
            "scp -t web:/a web:/b",
            "scp -t WEB:/tmp",
            "scp -t a/b/c:/tmp",
        ] {
            assert!(matches!(parse(line.as_bytes()), Err(CommandError::Inside(_))), "{line}");
        }
    }

    #[test]
    fn a_path_names_its_instance() {
        for (path, expected) in [
            (&b"web:/etc/hosts"[..], Some(("web", &b"/etc/hosts"[..]))),
            (b"/web:/etc", Some(("web", b"/etc"))),
            (b"my-app/web:x:y", Some(("my-app/web", b"x:y"))),
            (b"web:", Some(("web", b"."))),
            (b"/web:\xff", Some(("web", b"\xff"))),
            (b"/etc/hosts", None),
            (b"//web:/x", None),
            (b"../web:/x", None),
            (b":/x", None),
            (b"a/b/c:/x", None),
            (b".", None),
        ] {
            assert_eq!(place(path), expected, "{}", String::from_utf8_lossy(path));
        }
    }

    #[test]
    fn a_forwarded_host_names_its_instance() {
        for (host, expected) in [
            ("web", Some("web")),
            ("Web.My-App", Some("my-app/web")),
            ("web.s-aaaaaaaaaaaa.seed.example", Some("s-aaaaaaaaaaaa/web")),
            ("web.s-aaaaaaaaaaaa.seed.example.", Some("s-aaaaaaaaaaaa/web")),
            ("seed.example", None),
            ("web.s-aaaaaaaaaaaa.other.example", None),
            ("127.0.0.1", None),
            ("::1", None),
            ("10.88.0.2", None),
            ("", None),
            (".x", None),
        ] {
            assert_eq!(instance_of_host(host, "seed.example").as_deref(), expected, "{host}");
        }
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
