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

/// A whole number from 1 to `most`.
pub(super) fn number(option: &str, text: &str, most: u32) -> Result<u32, Refusal> {
    let found = text.parse().ok().filter(|n| (1..=most).contains(n));
    found.ok_or_else(|| Refusal::Invalid(format!("{option} {text:?} is no number from 1 to {most}")))
}

/// A moment in seconds since 1970: so long ago (`10m`, `2h`, `7d`), or a time in UTC (`2026-11-21`, `2026-11-21T10:31`).
pub(super) fn moment(text: &str, now: u64) -> Result<u64, Refusal> {
    let refuse = || {
        Refusal::Invalid(format!("{text:?} is no time: write how long ago it was (10m, 2h, 7d), or 2026-11-21T10:31:02Z (in UTC)"))
    };
    if !text.contains('-') && text != "never" {
        return seconds(text).map(|ago| now.saturating_sub(ago).max(1)).map_err(|_| refuse());
    }
    date(text.strip_suffix('Z').unwrap_or(text)).ok_or_else(refuse)
}

/// `2026-11-21`, `2026-11-21T10:31` or `2026-11-21 10:31:02`, in seconds since 1970.
fn date(text: &str) -> Option<u64> {
    fn field(text: &str, digits: usize, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let plain = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|n| plain && range.contains(n))
    }
    let (day, time) = text.split_once(['T', ' ']).unwrap_or((text, "00:00"));
    let mut parts = day.split('-');
    let (year, month) = (field(parts.next()?, 4, 1970..=9999)?, field(parts.next()?, 2, 1..=12)?);
    let day = field(parts.next()?, 2, 1..=31)?;
    let mut clock = time.split(':');
    let (hour, minute) = (field(clock.next()?, 2, 0..=23)?, field(clock.next()?, 2, 0..=59)?);
    let second = clock.next().map_or(Some(0), |text| field(text, 2, 0..=60))?;
    if parts.next().is_some() || clock.next().is_some() {
        return None;
    }
    // Days from a date, after Howard Hinnant's `days_from_civil`: years begin in March, so that the leap day is the last.
    let shifted_year = year - u64::from(month <= 2);
    let (era, year_of_era) = (shifted_year / 400, shifted_year % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    days.checked_sub(719_468).map(|days| days * 86_400 + hour * 3_600 + minute * 60 + second)
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
    fn moments_are_ago_or_a_date() {
        let table = [
            ("90s", 99_910),
            ("2h", 92_800),
            ("7d", 1),
            ("1970-01-01T00:00:07Z", 7),
            ("2000-02-29", 951_782_400),
            ("2000-02-28 23:59:59", 951_782_399),
            ("2026-11-21T10:31:02Z", 1_795_257_062),
            ("2100-03-01T00:00Z", 4_107_542_400),
        ];
        for (text, expected) in table {
            assert_eq!(moment(text, 100_000).unwrap(), expected, "{text}");
        }
        for text in [
            "",
            "never",
            "soon",
            "-1d",
            "2026-13-01",
            "2026-1-1",
            "2026-01-01T25:00",
            "2026-01-01T10",
            "2026-01-01T1:2:3:4",
            "+026-01-01",
        ] {
            assert!(moment(text, 100_000).is_err(), "{text}");
        }
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
