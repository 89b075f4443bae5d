//! The text of a unit file, so made that no value can become anything but the value it is.
//!
//! Section and key names are the program's own (`&'static str`); values may hold what a tenant wrote. A value cannot end its line, go
//! on to the next, name a specifier (`%`) or a variable (`$`), or become a second word or a second command. Nothing is refused here:
//! what systemd's syntax cannot say is replaced by U+FFFD, so that rendering is total.

use std::fmt::{self, Display, Write};

/// A unit file that is being written. `Display` gives its text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnitFile {
    text: String,
}

impl UnitFile {
    /// An empty file.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a section: what follows belongs to it.
    pub fn section(&mut self, name: &'static str) -> &mut Self {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.line(format_args!("[{name}]"))
    }

    /// Assigns a value that is taken as it stands: a number, a unit name, a description.
    pub fn set(&mut self, key: &'static str, value: impl Display) -> &mut Self {
        let value = literal(&value.to_string());
        self.line(format_args!("{key}={value}"))
    }

    /// Assigns a command line. `argv[0]` is the absolute path of a program.
    pub fn exec(&mut self, key: &'static str, argv: &[impl AsRef<str>]) -> &mut Self {
        let words: Vec<String> = argv.iter().map(|argument| quote(argument.as_ref())).collect();
        self.line(format_args!("{key}={}", words.join(" ")))
    }

    /// The same, run as root outside of the unit's sandbox; its failure is nothing to the unit.
    pub fn exec_privileged(&mut self, key: &'static str, argv: &[impl AsRef<str>]) -> &mut Self {
        let words: Vec<String> = argv.iter().map(|argument| quote(argument.as_ref())).collect();
        self.line(format_args!("{key}=-+{}", words.join(" ")))
    }

    fn line(&mut self, line: fmt::Arguments<'_>) -> &mut Self {
        self.text.write_fmt(line).expect("writing to a String cannot fail");
        self.text.push('\n');
        self
    }
}

impl Display for UnitFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A value of a plain assignment. systemd strips blanks at both ends, joins a line that ends in a backslash with the next, and knows
/// no escape that all keys share: so control characters and backslashes have no place in it.
fn literal(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for c in value.trim().chars() {
        match c {
            '%' => text.push_str("%%"),
            '\\' => text.push(char::REPLACEMENT_CHARACTER),
            c if c.is_control() => text.push(char::REPLACEMENT_CHARACTER),
            c => text.push(c),
        }
    }
    text
}

/// One word of a command line, after systemd.service(5), "Command lines".
fn quote(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        return argument.to_owned();
    }
    let mut text = String::with_capacity(argument.len() + 2);
    text.push('"');
    for c in argument.chars() {
        match c {
            '%' => text.push_str("%%"),
            '$' => text.push_str("$$"),
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            // An argument cannot hold it, and systemd refuses the escape.
            '\0' => text.push(char::REPLACEMENT_CHARACTER),
            c if c.is_control() => {
                for byte in c.to_string().bytes() {
                    write!(text, "\\x{byte:02x}").expect("writing to a String cannot fail");
                }
            }
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

/// A reader of systemd's own syntax, for tests: what was written must be read back as what was meant.
#[cfg(test)]
pub(crate) mod reader {
    /// `(section, key, value)` of every assignment, after systemd.syntax(7). Panics on any line that is none.
    pub(crate) fn assignments(text: &str) -> Vec<(String, String, String)> {
        let mut found = Vec::new();
        let mut section = String::new();
        let mut pending = String::new();
        for line in text.split('\n') {
            if pending.is_empty() && line.trim_start().starts_with(['#', ';']) {
                continue;
            }
            if let Some(begun) = line.strip_suffix('\\') {
                pending.push_str(begun);
                pending.push(' ');
                continue;
            }
            let line = std::mem::take(&mut pending) + line;
            let line = line.trim();
            if let Some(name) = line.strip_prefix('[') {
                section = name.strip_suffix(']').expect("a section header ends").to_owned();
            } else if !line.is_empty() {
                let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("no assignment: {line:?}"));
                found.push((section.clone(), key.trim().to_owned(), value.trim().to_owned()));
            }
        }
        assert!(pending.is_empty(), "the last line is continued");
        found
    }

    /// The commands of an Exec value, each a list of arguments: words are split, unquoted and unescaped, and `%%` and `$$` undone. Panics
    /// on any specifier or variable.
    pub(crate) fn commands(value: &str) -> Vec<Vec<String>> {
        let mut commands = vec![Vec::new()];
        let mut rest = value.trim_start();
        while !rest.is_empty() {
            if rest == ";" || rest.starts_with("; ") {
                commands.push(Vec::new());
                rest = rest[1..].trim_start();
                continue;
            }
            let (word, after) = word(rest);
            commands.last_mut().unwrap().push(plain(&word));
            rest = after.trim_start();
        }
        commands
    }

    /// The text of a plain assignment: `%%` undone.
    pub(crate) fn unspecify(value: &str) -> String {
        let mut text = String::new();
        let mut chars = value.chars();
        while let Some(c) = chars.next() {
            if c == '%' {
                assert_eq!(chars.next(), Some('%'), "a specifier in {value:?}");
            }
            text.push(c);
        }
        text
    }

    fn word(text: &str) -> (Vec<u8>, &str) {
        let mut bytes = Vec::new();
        let mut quote = None;
        let mut chars = text.char_indices();
        while let Some((at, c)) = chars.next() {
            match (c, quote) {
                ('\\', _) => match chars.next().expect("an escape goes on").1 {
                    'n' => bytes.push(b'\n'),
                    't' => bytes.push(b'\t'),
                    'x' => {
                        let digits: String = chars.by_ref().take(2).map(|(_, c)| c).collect();
                        bytes.push(u8::from_str_radix(&digits, 16).expect("two digits"));
                    }
                    c @ ('"' | '\\') => bytes.push(c as u8),
                    other => panic!("an escape that systemd does not know: {other:?}"),
                },
                ('"' | '\'', None) => quote = Some(c),
                (c, Some(open)) if c == open => quote = None,
                (c, None) if c.is_ascii_whitespace() => return (bytes, &text[at..]),
                (c, _) => bytes.extend(c.to_string().bytes()),
            }
        }
        assert!(quote.is_none(), "a quote that does not end");
        (bytes, "")
    }

    fn plain(word: &[u8]) -> String {
        let text = unspecify(std::str::from_utf8(word).expect("a word is UTF-8"));
        let mut plain = String::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            if c == '$' {
                assert_eq!(chars.next(), Some('$'), "a variable in {text:?}");
            }
            plain.push(c);
        }
        plain
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        reader::{assignments, commands, unspecify},
        *,
    };

    fn unit(description: &str, argv: &[String]) -> String {
        let mut file = UnitFile::new();
        file.section("Unit").set("Description", description).section("Service").exec("ExecStart", argv).set("Type", "exec");
        file.to_string()
    }

    /// What a value is read back as: only what the syntax cannot say is lost.
    fn sayable(text: &str) -> String {
        text.replace('\0', "\u{fffd}")
    }

    #[test]
    fn exec_lines_look_as_people_write_them() {
        let argv = ["/bin/vmm", "--memory=512M", "quiet init=/x", "100%", "$HOME", "a\"b\\c", "", "\n;\u{7}", ";"];
        let mut file = UnitFile::new();
        file.section("Service").exec("ExecStart", &argv);
        let want = r#"ExecStart=/bin/vmm --memory=512M "quiet init=/x" "100%%" "$$HOME" "a\"b\\c" "" "\n;\x07" ";""#;
        assert_eq!(file.to_string(), format!("[Service]\n{want}\n"));
        assert_eq!(commands(&want["ExecStart=".len()..]), [argv]);
    }

    #[test]
    fn the_reader_sees_an_injection_when_there_is_one() {
        // Otherwise the properties below would prove nothing.
        assert_eq!(assignments("[Service]\nExecStart=/bin/a\nUser=root\n").len(), 2);
        assert_eq!(commands("/bin/a ; /bin/b").len(), 2);
        assert_eq!(assignments("[A]\nB=c\\\nD=e").len(), 1);
        assert!(std::panic::catch_unwind(|| commands("/bin/a %h")).is_err());
        assert!(std::panic::catch_unwind(|| commands("/bin/a $HOME")).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn what_is_written_is_read_back_and_nothing_else(
            description in hostile(),
            arguments in prop::collection::vec(hostile(), 0..6),
        ) {
            let mut argv = vec!["/bin/program".to_owned()];
            argv.extend(arguments);
            let text = unit(&description, &argv);
            let read = assignments(&text);
            let keys: Vec<(&str, &str)> = read.iter().map(|(section, key, _)| (section.as_str(), key.as_str())).collect();
            prop_assert_eq!(keys, [("Unit", "Description"), ("Service", "ExecStart"), ("Service", "Type")]);
            let lost = |c: char| if c == '\\' || c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
            prop_assert_eq!(unspecify(&read[0].2), description.trim().chars().map(lost).collect::<String>());
            let argv: Vec<String> = argv.iter().map(|argument| sayable(argument)).collect();
            prop_assert_eq!(commands(&read[1].2), vec![argv]);
        }
    }

    /// Any text, most of it made of what means something to systemd.
    fn hostile() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("\n".to_owned()),
            Just("\\".to_owned()),
            Just("%".to_owned()),
            Just("%n".to_owned()),
            Just("$".to_owned()),
            Just("${HOME}".to_owned()),
            Just("\"".to_owned()),
            Just("'".to_owned()),
            Just(" ; ".to_owned()),
            Just(";".to_owned()),
            Just("#".to_owned()),
            Just("\r\n[Service]\nUser=root\n".to_owned()),
            Just("\0".to_owned()),
            Just("\\x0a".to_owned()),
            Just("=".to_owned()),
            Just(" ".to_owned()),
            Just("\t".to_owned()),
            Just("\u{85}".to_owned()),
            Just("\u{2028}".to_owned()),
            "[ -~]{0,8}",
            "\\PC{0,4}",
            ".{0,4}",
        ];
        prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
    }
}
