//! The `.authorized_keys` of a repository, in the format of `sshd(8)`: stock OpenSSH accepts every line that is accepted here.
//!
//! ```text
//! ssh-ed25519 AAAA… ann                                                       may deploy
//! environment="SEED_ROLE=read" ssh-ed25519 AAAA… bob                          may look
//! environment="SEED_ROLE=admin",expiry-time="20300101Z" ssh-ed25519 AAAA… eve may all, until then
//! restrict,environment="SEED_INSTANCE=web" ssh-ed25519 AAAA… robot            may restart and enter web, and nothing else
//! ```
//!
//! A line that cannot be kept to the letter gives nothing and is named with the reason: a key with `from=` may not come from elsewhere.
//! Times are UTC, with and without the `Z`.

use super::access::{Grant, Role, fingerprint};

/// The most lines that are read.
const MAX_LINES: usize = 1000;

/// A line that gives nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    /// From 1.
    pub line: usize,
    pub why: String,
}

/// What a file gives, in its order and each grant once; and the lines that give nothing.
pub fn read(text: &str) -> (Vec<Grant>, Vec<Passed>) {
    let mut grants = Vec::new();
    let mut passed = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_matches([' ', '\t', '\r']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if index >= MAX_LINES {
            passed.push(Passed { line: index + 1, why: format!("only the first {MAX_LINES} lines count") });
            break;
        }
        match read_line(line) {
            Ok(grant) if !grants.contains(&grant) => grants.push(grant),
            Ok(_) => {}
            Err(why) => passed.push(Passed { line: index + 1, why }),
        }
    }
    (grants, passed)
}

/// As sshd does: a line is a key, or options and a key.
fn read_line(line: &str) -> Result<Grant, String> {
    let (first, rest) = word(line);
    if let Some(grant) = key(first, rest) {
        return Ok(Grant::deploy(fingerprint(&grant)));
    }
    let (kind, rest) = word(rest);
    let blob = key(kind, rest).ok_or("is no key: write the line of a .pub file, with options before it if any")?;
    let mut grant = Grant::deploy(fingerprint(&blob));
    let mut said_role = false;
    let mut commanded = false;
    for (name, value) in options(first)? {
        let name = name.to_ascii_lowercase();
        match (name.as_str(), value.as_deref()) {
            ("environment", Some(value)) => match value.split_once('=') {
                Some(("SEED_ROLE", role)) if !said_role => (grant.role, said_role) = (role_of(role)?, true),
                Some(("SEED_INSTANCE", instance)) if grant.instance.is_none() => {
                    grant.instance = Some(instance.parse().map_err(|error| format!("{error}"))?);
                }
                Some(("SEED_ROLE" | "SEED_INSTANCE", _)) => {
                    return Err("says SEED_ROLE or SEED_INSTANCE twice: write a line for each".to_owned());
                }
                Some((name, _)) if name.starts_with("SEED_") => {
                    return Err(format!("sets {}: there are SEED_ROLE and SEED_INSTANCE", short(name)));
                }
                // Another program's.
                Some((name, _)) if !name.is_empty() => {}
                _ => return Err("has environment= without NAME=VALUE".to_owned()),
            },
            // Of several, sshd takes the earliest.
            ("expiry-time", Some(value)) => {
                let until = time(value).ok_or_else(|| format!("has no time in expiry-time={}: write 20300101Z", short(value)))?;
                grant.until = Some(grant.until.map_or(until, |other| other.min(until)));
            }
            ("from", Some(_)) => return Err("has from=, which is not kept here".to_owned()),
            ("cert-authority" | "principals", _) => return Err("is for certificates: write the keys themselves".to_owned()),
            ("verify-required", None) => return Err("has verify-required, which is not kept here".to_owned()),
            ("command", Some(_)) => commanded = true,
            // What these forbid is not there, or is what the role says.
            (
                "restrict"
                | "pty"
                | "no-pty"
                | "agent-forwarding"
                | "no-agent-forwarding"
                | "port-forwarding"
                | "no-port-forwarding"
                | "x11-forwarding"
                | "no-x11-forwarding"
                | "user-rc"
                | "no-user-rc"
                | "no-touch-required",
                None,
            )
            | ("permitopen" | "permitlisten" | "tunnel", Some(_)) => {}
            _ => return Err(format!("has {}, which sshd does not know", short(&name))),
        }
    }
    if commanded && !said_role {
        return Err("has command=, which is not run here: add environment=\"SEED_ROLE=…\" to say what it may do".to_owned());
    }
    Ok(grant)
}

fn role_of(text: &str) -> Result<Role, String> {
    match text {
        "read" => Ok(Role::Read),
        "deploy" => Ok(Role::Deploy),
        "admin" => Ok(Role::Admin),
        other => Err(format!("has the role {}: there are read, deploy and admin", short(other))),
    }
}

/// A tenant's text in a message: quoted, and not too much of it.
fn short(text: &str) -> String {
    format!("{:?}", text.chars().take(40).collect::<String>())
}

/// The blob of the key of a line without options: a `.pub` file.
pub fn blob(line: &str) -> Option<Vec<u8>> {
    let (kind, rest) = word(line);
    key(kind, rest)
}

/// The blob of a key whose type was the word before, if `rest` begins with one.
fn key(kind: &str, rest: &str) -> Option<Vec<u8>> {
    let blob = data_encoding::BASE64.decode(word(rest).0.as_bytes()).ok()?;
    let length = usize::try_from(u32::from_be_bytes(blob.get(..4)?.try_into().ok()?)).ok()?;
    (blob.get(4..4usize.checked_add(length)?)? == kind.as_bytes() && !kind.is_empty()).then_some(blob)
}

/// The first word, and what follows it. Quoted blanks belong to a word.
fn word(text: &str) -> (&str, &str) {
    let text = text.trim_start_matches([' ', '\t']);
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in text.char_indices() {
        match c {
            '"' if !escaped => quoted = !quoted,
            ' ' | '\t' if !quoted => return (&text[..at], &text[at..]),
            _ => {}
        }
        escaped = c == '\\' && !escaped;
    }
    (text, "")
}

/// `a,b="c",…`, each with its value without quotes.
fn options(text: &str) -> Result<Vec<(String, Option<String>)>, String> {
    let mut found = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        let mut name = String::new();
        while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '-') {
            name.push(c);
        }
        if name.is_empty() {
            return Err("is no key: write the line of a .pub file, with options before it if any".to_owned());
        }
        let mut value = None;
        if chars.next_if_eq(&'=').is_some() {
            if chars.next() != Some('"') {
                return Err(format!("has {name}= without quotes"));
            }
            let mut quoted = String::new();
            loop {
                match chars.next() {
                    Some('"') => break,
                    Some('\\') if chars.peek() == Some(&'"') => quoted.extend(chars.next()),
                    Some(c) => quoted.push(c),
                    None => return Err(format!("has {name}= whose quote does not end")),
                }
            }
            value = Some(quoted);
        }
        found.push((name, value));
        match chars.next() {
            Some(',') => {}
            None => return Ok(found),
            Some(_) => return Err("has options that are not separated by commas".to_owned()),
        }
    }
}

/// Seconds since 1970 of `YYYYMMDD` or `YYYYMMDDHHMM[SS]`, with or without `Z`.
fn time(text: &str) -> Option<u64> {
    let digits = text.strip_suffix('Z').unwrap_or(text);
    if !matches!(digits.len(), 8 | 12 | 14) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number = |range: std::ops::Range<usize>| digits.get(range).map_or(Some(0), |text| text.parse::<u64>().ok());
    let (year, month, day) = (number(0..4)?, number(4..6)?, number(6..8)?);
    let (hour, minute, second) = (number(8..10)?, number(10..12)?, number(12..14)?);
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let length = *lengths.get(usize::try_from(month).ok()?.checked_sub(1)?)?;
    if !(1970..=9999).contains(&year) || !(1..=length).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let years = year - 1970;
    // Leap years from 1970 up to the year before.
    let before = year - 1;
    let leaps = (before / 4 - before / 100 + before / 400) - (1969 / 4 - 1969 / 100 + 1969 / 400);
    let months: u64 = lengths[..usize::try_from(month).ok()? - 1].iter().sum();
    let days = years * 365 + leaps + months + day - 1;
    Some(days * 86_400 + hour * 3_600 + minute * 60 + second)
}

/// `20300101Z`, or `203001011530Z` if it is not midnight: what [`time`] reads.
pub(super) fn date(at: u64) -> String {
    let (mut days, rest) = (at / 86_400, at % 86_400);
    let mut year = 1970;
    let length =
        |year: u64| if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) { 366 } else { 365 };
    while days >= length(year) && year < 9999 {
        days -= length(year);
        year += 1;
    }
    let lengths = [31, if length(year) == 366 { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while month < 11 && days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    let day = format!("{year}{:02}{:02}", month + 1, days + 1);
    match (rest / 3_600, rest % 3_600 / 60, rest % 60) {
        (0, 0, 0) => format!("{day}Z"),
        (hour, minute, 0) => format!("{day}{hour:02}{minute:02}Z"),
        (hour, minute, second) => format!("{day}{hour:02}{minute:02}{second:02}Z"),
    }
}

/// `2030-01-01 15:30:00`, for people.
pub fn time_text(at: u64) -> String {
    let day = date(at - at % 86_400);
    let (year, month, day) = (&day[..4], &day[4..6], &day[6..8]);
    let rest = at % 86_400;
    format!("{year}-{month}-{day} {:02}:{:02}:{:02}", rest / 3_600, rest % 3_600 / 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0ZWTmzNGYBGYHcRl5mS7a1Zkp6Yz2hT3l8e7o0dHQk";

    fn one(options: &str) -> Result<Grant, String> {
        let (grants, passed) = read(&format!("{options} {KEY} somebody\n"));
        passed.into_iter().next().map_or_else(|| Ok(grants[0].clone()), |passed| Err(passed.why))
    }

    #[test]
    fn keys_are_found_behind_options_and_comments_are_passed_over() {
        let text = format!("# people\n\n{KEY} ann@home\r\nno-pty,restrict\t{KEY}\nnonsense\n{KEY} again\n");
        let (grants, passed) = read(&text);
        assert_eq!(grants.len(), 1, "{grants:?}");
        assert_eq!(passed.iter().map(|passed| passed.line).collect::<Vec<_>>(), [5]);
        assert!(grants[0].key.as_str().starts_with("SHA256:"));
    }

    #[test]
    fn options_say_what_a_key_is_for() {
        let plain = one("").unwrap();
        let web = Some("web".parse().unwrap());
        let table = [
            ("restrict", plain.clone()),
            ("environment=\"SEED_ROLE=read\"", Grant { role: Role::Read, ..plain.clone() }),
            ("Environment=\"SEED_ROLE=admin\",no-pty", Grant { role: Role::Admin, ..plain.clone() }),
            ("environment=\"SEED_INSTANCE=web\"", Grant { instance: web.clone(), ..plain.clone() }),
            ("environment=\"A=b\",command=\"a \\\"b\\\", c\",environment=\"SEED_ROLE=deploy\"", plain.clone()),
            ("expiry-time=\"19700102Z\"", Grant { until: Some(86_400), ..plain.clone() }),
            ("expiry-time=\"20300101\",expiry-time=\"197001020000\"", Grant { until: Some(86_400), ..plain.clone() }),
            (
                "environment=\"SEED_ROLE=admin\",environment=\"SEED_INSTANCE=web\",expiry-time=\"20300101\"",
                Grant { role: Role::Admin, instance: web, until: Some(1_893_456_000), ..plain },
            ),
        ];
        for (options, expected) in table {
            assert_eq!(one(options).unwrap(), expected, "{options}");
        }
    }

    #[test]
    fn a_line_that_cannot_be_kept_to_the_letter_gives_nothing() {
        let table = [
            ("environment=\"SEED_ROLE=root\"", "read, deploy and admin"),
            ("environment=\"SEED_ROLE=\"", "read, deploy and admin"),
            ("environment=\"SEED_ROLES=read\"", "SEED_ROLES"),
            ("environment=\"SEED_ROLE=read\",environment=\"SEED_ROLE=admin\"", "twice"),
            ("environment=\"SEED_INSTANCE=../x\"", "instance name"),
            ("environment=\"x\"", "NAME=VALUE"),
            ("expiry-time=\"tomorrow\"", "expiry-time"),
            ("expiry-time=\"20301301\"", "expiry-time"),
            ("expiry-time=\"20300229\"", "expiry-time"),
            ("from=\"10.0.0.0/8\"", "from="),
            ("cert-authority", "certificates"),
            ("command=\"/bin/date\"", "SEED_ROLE"),
            ("no-such-thing", "no-such-thing"),
            ("environment=SEED_ROLE=read", "quotes"),
            ("environment=\"SEED_ROLE=read", "no key"),
            ("a,,b", "no key"),
            ("verify-required", "verify-required"),
        ];
        for (options, said) in table {
            let why = one(options).expect_err(options);
            assert!(why.contains(said), "{options}: {why}");
        }
    }

    #[test]
    fn times_are_read_and_written() {
        for (text, at) in [
            ("19700101", 0),
            ("20000229Z", 951_782_400),
            ("20000301", 951_868_800),
            ("21000301Z", 4_107_542_400),
            ("202611211330Z", 1_795_267_800),
            ("20380119031408Z", 1 << 31),
        ] {
            assert_eq!(time(text), Some(at), "{text}");
            assert_eq!(time(&date(at)), Some(at), "{}", date(at));
        }
        for text in [
            "",
            "Z",
            "2030",
            "2030-01-01",
            "20300100",
            "20300132",
            "21000229",
            "2030010124",
            "203001012400",
            "19691231",
            "+2030101",
        ] {
            assert_eq!(time(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_passed_over(text in "(.{0,40}|[a-z=\",\\\\ \n]{0,80}){0,4}") {
            let (grants, passed) = read(&text);
            proptest::prop_assert!(grants.is_empty() && passed.len() <= text.lines().count());
        }

        #[test]
        fn every_time_that_is_written_is_read(at in 0u64..250_000_000_000) {
            proptest::prop_assert_eq!(time(&date(at)), Some(at));
        }
    }
}
