//! Walks a TOML document by hand, so that one pass finds every problem and each knows its line.

use std::{collections::BTreeMap, fmt, ops::Range, str::FromStr};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// One thing that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// From 1; 0 if there is no line to point at.
    pub line: usize,
    /// `network.pool4`; empty if the text is no TOML at this point.
    pub key: String,
    /// What stands there, cut to 60 characters; empty if nothing does.
    pub given: String,
    /// What is wrong and what to write instead.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}: ", self.line)?;
        }
        f.write_str(&self.key)?;
        if !self.given.is_empty() {
            write!(f, "{}{}", if self.key.is_empty() { "" } else { " = " }, self.given)?;
        }
        write!(f, "{}{}", if self.key.is_empty() && self.given.is_empty() { "" } else { ": " }, self.what)
    }
}

/// A document that is being read, and the problems found so far.
pub(super) struct Reader<'a> {
    text: &'a str,
    root: DeTable<'a>,
    /// The keys that were asked for, by section; the empty section holds the top level.
    known: BTreeMap<&'static str, Vec<&'static str>>,
    problems: Vec<Problem>,
    well_formed: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let (root, errors) = DeTable::parse_recoverable(text);
        let mut reader = Self {
            text,
            root: root.into_inner(),
            known: BTreeMap::from([("", Vec::new())]),
            problems: Vec::new(),
            well_formed: errors.is_empty(),
        };
        for error in errors {
            let span = error.span().unwrap_or(0..0);
            let line = reader.line(&span);
            let given = text.lines().nth(line.saturating_sub(1)).unwrap_or("").trim().chars().take(60).collect();
            reader.problems.push(Problem { line, key: String::new(), given, what: error.message().to_owned() });
        }
        reader
    }

    /// A text that a type can be made of, or `default`.
    pub(super) fn text<T>(&mut self, section: &'static str, key: &'static str, default: T) -> T
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        self.parsed(section, key, default, |text| text.parse().map_err(|error: T::Err| error.to_string()))
    }

    /// A text that `parse` makes a value of, or `default`. The error of `parse` says what is wrong and what to write.
    pub(super) fn parsed<T>(
        &mut self,
        section: &'static str,
        key: &'static str,
        default: T,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> T {
        let Some(value) = self.get(section, key) else { return default };
        let result = match value.get_ref().as_str() {
            Some(text) => parse(text),
            None => Err(format!("is {}: write a text in double quotes", kind(value.get_ref()))),
        };
        result.unwrap_or_else(|what| {
            self.refuse(section, key, value.span(), what);
            default
        })
    }

    /// A list of texts, each of which `parse` makes a value of.
    pub(super) fn list<T>(
        &mut self,
        section: &'static str,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let Some(value) = self.get(section, key) else { return Vec::new() };
        let Some(items) = value.get_ref().as_array() else {
            self.refuse(section, key, value.span(), format!("is {}: write a list, as in {key} = [\"…\"]", kind(value.get_ref())));
            return Vec::new();
        };
        let mut made = Vec::new();
        for item in items.iter() {
            let result = match item.get_ref().as_str() {
                Some(text) => parse(text),
                None => Err(format!("is {}: write texts in double quotes", kind(item.get_ref()))),
            };
            match result {
                Ok(one) => made.push(one),
                Err(what) => self.refuse(section, key, item.span(), what),
            }
        }
        made
    }

    /// A whole number within `range`, or `default`.
    pub(super) fn number(
        &mut self,
        section: &'static str,
        key: &'static str,
        default: u32,
        range: std::ops::RangeInclusive<u32>,
    ) -> u32 {
        let Some(value) = self.get(section, key) else { return default };
        let number = match value.get_ref() {
            DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        match number.and_then(|number| u32::try_from(number).ok()).filter(|number| range.contains(number)) {
            Some(number) => number,
            None => {
                let what = format!("must be a whole number from {} to {}", range.start(), range.end());
                self.refuse(section, key, value.span(), what);
                default
            }
        }
    }

    /// `true` or `false`, or `default`.
    pub(super) fn flag(&mut self, section: &'static str, key: &'static str, default: bool) -> bool {
        let Some(value) = self.get(section, key) else { return default };
        let given = value.get_ref().as_bool();
        if given.is_none() {
            self.refuse(section, key, value.span(), format!("is {}: write true or false", kind(value.get_ref())));
        }
        given.unwrap_or(default)
    }

    /// A problem with a key that must be there, or with the sum of several keys.
    pub(super) fn demand(&mut self, section: &'static str, key: &'static str, what: &str) {
        let span = self.get(section, key).map(|value| value.span());
        match span {
            Some(span) => self.refuse(section, key, span, what.to_owned()),
            // Half a file says nothing about what is missing.
            None if !self.well_formed => {}
            None => self.problems.push(Problem { line: 0, key: path(section, key), given: String::new(), what: what.to_owned() }),
        }
    }

    /// Whether a key is there.
    pub(super) fn has(&mut self, section: &'static str, key: &'static str) -> bool {
        self.get(section, key).is_some()
    }

    /// All problems in the order of their lines, those of unknown keys included.
    pub(super) fn finish(mut self) -> Vec<Problem> {
        for (key, value) in self.root.clone() {
            let (name, span) = (key.get_ref().as_ref(), key.span());
            let section = self.known.keys().copied().find(|section| !section.is_empty() && *section == name);
            match (section, value.get_ref().as_table()) {
                (Some(section), Some(table)) => {
                    let known = self.known[section].clone();
                    for key in table.keys().filter(|key| !known.contains(&key.get_ref().as_ref())) {
                        let what = self.unknown(section, key.get_ref());
                        self.report(key.span(), format!("{section}.{}", key.get_ref()), what);
                    }
                }
                (Some(section), None) => {
                    self.report(span, name.to_owned(), format!("is a section: write [{section}] and its keys below it"));
                }
                (None, _) if self.known[""].contains(&name) => {}
                (None, _) => {
                    let what = self.unknown("", name);
                    self.report(span, name.to_owned(), what);
                }
            }
        }
        self.problems.sort_by_key(|problem| problem.line);
        self.problems
    }

    /// Every key that was asked for, as `section.key`.
    #[cfg(test)]
    pub(super) fn keys(&self) -> Vec<String> {
        self.known.iter().flat_map(|(section, keys)| keys.iter().map(move |key| path(section, key))).collect()
    }

    fn get(&mut self, section: &'static str, key: &'static str) -> Option<Spanned<DeValue<'a>>> {
        let known = self.known.entry(section).or_default();
        if !known.contains(&key) {
            known.push(key);
        }
        let table = if section.is_empty() { &self.root } else { self.root.get(section)?.get_ref().as_table()? };
        table.get(key).cloned()
    }

    /// What to say of a key that nobody asked for: the key that was meant, if one is near, or where it belongs.
    fn unknown(&self, section: &str, key: &str) -> String {
        let here = self.known[section]
            .iter()
            .copied()
            .chain(self.known.keys().copied().filter(|name| section.is_empty() && !name.is_empty()));
        let nearest = here.map(|known| (distance(key, known), known)).min();
        if let Some((_, known)) = nearest.filter(|(distance, known)| *distance <= 2.min(known.len() / 2)) {
            return format!("there is no such key: did you mean {known}?");
        }
        if let Some((other, _)) = self.known.iter().find(|(other, keys)| **other != section && keys.contains(&key)) {
            let place = if other.is_empty() { "above the first section".to_owned() } else { format!("in [{other}]") };
            return format!("there is no such key here: it belongs {place}");
        }
        let (what, names) = match section {
            "" => (
                "key or section",
                self.known.keys().copied().filter(|name| !name.is_empty()).chain(self.known[""].clone()).collect(),
            ),
            section => ("key", self.known[section].clone()),
        };
        let names: Vec<&str> = names;
        format!("there is no such {what}: remove it, or write one of {}", names.join(", "))
    }

    fn refuse(&mut self, section: &str, key: &str, span: Range<usize>, what: String) {
        let given = self.text.get(span.clone()).unwrap_or("").split('\n').next().unwrap_or("").chars().take(60).collect();
        self.problems.push(Problem { line: self.line(&span), key: path(section, key), given, what });
    }

    fn report(&mut self, span: Range<usize>, key: String, what: String) {
        self.problems.push(Problem { line: self.line(&span), key, given: String::new(), what });
    }

    fn line(&self, span: &Range<usize>) -> usize {
        let before = self.text.as_bytes().get(..span.start).unwrap_or(self.text.as_bytes());
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }
}

fn path(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}

/// How many letters must be changed, added, removed or swapped with their neighbour to make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(40).collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = change.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    #[test]
    fn words_that_a_slip_of_the_finger_makes_are_near() {
        for (a, b, far) in [("pool4", "pool4", 0), ("pol4", "pool4", 1), ("domian", "domain", 1), ("", "abc", 3), ("uid", "ssh", 3)]
        {
            assert_eq!(super::distance(a, b), far, "{a} {b}");
        }
    }
}
