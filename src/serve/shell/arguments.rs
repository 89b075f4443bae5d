//! The arguments of a verb.

use crate::bus::Refusal;

/// What follows a verb: words in order, and options anywhere between them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Arguments {
    pub words: Vec<String>,
    pub json: bool,
    verb: String,
    options: Vec<(String, String)>,
}

impl Arguments {
    /// Sorts the words after a verb. `flags` stand alone, `valued` take a value (`--lines 5`, `--lines=5`); `--json` is always known.
    pub fn parse(verb: &str, rest: &[String], flags: &[&str], valued: &[&str], at_most: usize) -> Result<Self, Refusal> {
        let mut arguments = Self { verb: verb.to_owned(), ..Self::default() };
        let mut rest = rest.iter();
        let mut options_over = false;
        while let Some(word) = rest.next() {
            let (option, attached) = match word.split_once('=') {
                Some((option, value)) if word.starts_with("--") => (option, Some(value)),
                _ => (word.as_str(), None),
            };
            if options_over || !word.starts_with('-') || word == "-" {
                arguments.words.push(word.clone());
            } else if word == "--" {
                options_over = true;
            } else if word == "--json" {
                arguments.json = true;
            } else if flags.contains(&option) && attached.is_none() {
                arguments.options.push((option.to_owned(), String::new()));
            } else if valued.contains(&option) {
                let value = attached
                    .map(str::to_owned)
                    .or_else(|| rest.next().cloned())
                    .ok_or_else(|| Refusal::Invalid(format!("{option} needs a value")))?;
                arguments.options.push((option.to_owned(), value));
            } else {
                let known: Vec<&str> = flags.iter().chain(valued).copied().chain(["--json"]).collect();
                return Err(Refusal::Invalid(format!("{verb} knows no option {word:?}: there are {}", known.join(", "))));
            }
        }
        match arguments.words.get(at_most) {
            Some(extra) => Err(Refusal::Invalid(format!(
                "{verb} does not take {extra:?}: see `help {}`",
                verb.split(' ').next().unwrap_or(verb)
            ))),
            None => Ok(arguments),
        }
    }

    /// The word at `index`, which the verb cannot do without.
    pub fn required(&self, index: usize, what: &str) -> Result<&str, Refusal> {
        match self.words.get(index) {
            Some(word) if !word.is_empty() => Ok(word),
            _ => Err(Refusal::Invalid(format!("{} needs {what}", self.verb))),
        }
    }

    pub fn flag(&self, name: &str) -> bool {
        self.options.iter().any(|(option, _)| option == name)
    }

    /// The last value given to an option.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.options.iter().rev().find(|(option, _)| option == name).map(|(_, value)| value.as_str())
    }
}

/// A span of time in seconds: `90s`, `30m`, `12h`, `7d`; `never` is 0.
pub(super) fn seconds(text: &str) -> Result<u64, Refusal> {
    let refuse = || Refusal::Invalid(format!("{text:?} is no span of time: write 30m, 12h, 7d or never"));
    if text == "never" {
        return Ok(0);
    }
    let factor = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86400,
        _ => return Err(refuse()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| refuse())?;
    number.checked_mul(factor).filter(|seconds| (1..=10 * 366 * 86400).contains(seconds)).ok_or_else(refuse)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn options_stand_anywhere() {
        for line in ["web -f --lines 5 --json", "--json --lines=5 -f web", "-f --lines 7 web --lines 5 --json"] {
            let arguments = Arguments::parse("logs", &words(line), &["-f"], &["--lines"], 1).unwrap();
            assert_eq!(arguments.required(0, "x").unwrap(), "web");
            assert_eq!((arguments.json, arguments.flag("-f"), arguments.value("--lines")), (true, true, Some("5")), "{line}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        for (line, named) in [("web --follw", "--follw"), ("web api", "api"), ("web --lines", "--lines"), ("-f=x", "-f=x")] {
            let Err(Refusal::Invalid(text)) = Arguments::parse("logs", &words(line), &["-f"], &["--lines"], 1) else {
                panic!("{line}")
            };
            assert!(text.contains(named), "{text}");
        }
        assert!(Arguments::parse("logs", &words("-- -x"), &[], &[], 1).is_ok());
    }

    #[test]
    fn spans_of_time() {
        for (text, expected) in [("90s", 90), ("30m", 1800), ("7d", 604_800), ("never", 0)] {
            assert_eq!(seconds(text).unwrap(), expected);
        }
        for text in ["", "7", "d", "-1d", "0s", "1y", "99999999999999d", "7é"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
