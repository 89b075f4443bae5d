//! A guest's serial console on its way to the host's journal: whole lines, without control characters, and never more of them than
//! the reader takes. A guest that floods its console loses lines, not its virtual machine.

/// The longest line that is passed on whole, in bytes; the rest goes on the next line. At most this much can be written to a pipe
/// or socket that is ready without waiting.
pub const LINE_MAX: usize = 2048;
/// How much waits for a slow reader, in bytes, before lines are dropped.
const WAITING_MAX: usize = 64 << 10;

/// Where in an escape sequence the console is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Text,
    Escape,
    /// `ESC [` until a letter.
    Control,
    /// `ESC ]`, `ESC P`, … until BEL or `ESC \`.
    String,
}

/// The console between what was read and what is not written yet.
#[derive(Debug)]
pub struct Console {
    line: Vec<u8>,
    at: At,
    waiting: Vec<u8>,
    lost: u64,
}

impl Default for Console {
    fn default() -> Self {
        Self { line: Vec::new(), at: At::Text, waiting: Vec::new(), lost: 0 }
    }
}

impl Console {
    /// Takes what the guest wrote.
    pub fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.at = match (self.at, byte) {
                // A line ends every sequence: an unfinished one hides no more than its own line.
                (_, b'\n') => {
                    self.end_line();
                    At::Text
                }
                (At::Text | At::String, 0x1b) => At::Escape,
                (At::Text, _) => {
                    self.line.push(byte);
                    if self.line.len() >= LINE_MAX {
                        self.end_line();
                    }
                    At::Text
                }
                (At::Escape, b'[') => At::Control,
                (At::Escape, b']' | b'P' | b'X' | b'^' | b'_') => At::String,
                // Intermediate bytes of a short sequence, as in `ESC ( B`.
                (At::Escape, 0x20..=0x2f) => At::Escape,
                (At::Escape, _) => At::Text,
                (At::Control, 0x40..=0x7e) => At::Text,
                (At::Control, _) => At::Control,
                (At::String, 0x07) => At::Text,
                (At::String, _) => At::String,
            };
        }
    }

    /// Ends a line that was begun: a prompt, or the last words.
    pub fn flush(&mut self) {
        if !self.line.is_empty() {
            self.end_line();
        }
    }

    /// Whether a line was begun and not ended.
    pub fn unfinished(&self) -> bool {
        !self.line.is_empty()
    }

    /// What is to be written now; empty if nothing is.
    pub fn waiting(&self) -> &[u8] {
        &self.waiting[..self.waiting.len().min(LINE_MAX)]
    }

    /// Says that the first `count` bytes of [`Console::waiting`] were written.
    pub fn written(&mut self, count: usize) {
        self.waiting.drain(..count);
        if self.waiting.is_empty() {
            self.report_lost();
        }
    }

    fn end_line(&mut self) {
        let text = String::from_utf8_lossy(&self.line);
        let mut clean: String = text.chars().filter(|c| !c.is_control() || *c == '\t').collect();
        self.line.clear();
        let visible = clean.trim_end().len();
        if visible == 0 {
            return;
        }
        clean.truncate(visible);
        clean.push('\n');
        if self.waiting.len() + clean.len() > WAITING_MAX {
            self.lost += 1;
        } else {
            self.report_lost();
            self.waiting.extend_from_slice(clean.as_bytes());
        }
    }

    fn report_lost(&mut self) {
        if self.lost > 0 {
            let text = format!("[seed: {} lines of the console were lost, it writes faster than the journal takes]\n", self.lost);
            self.waiting.extend_from_slice(text.as_bytes());
            self.lost = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(bytes: &[u8]) -> String {
        let mut console = Console::default();
        console.feed(bytes);
        console.flush();
        String::from_utf8(console.waiting.clone()).unwrap()
    }

    #[test]
    fn only_printable_text_passes() {
        for (given, expected) in [
            (&b"plain\r\n"[..], "plain\n"),
            (b"\x1b[1;31mred\x1b[0m text\n", "red text\n"),
            (b"\x1b]0;title\x07after\n", "after\n"),
            (b"\x1b]0;title\x1b\\after\n", "after\n"),
            (b"\x1b]never ended\nnext\n", "next\n"),
            (b"\x1bc\x1b(Bx\x08\x07\x00y\n", "xy\n"),
            ("\u{9b}31mC1\u{85}\n".as_bytes(), "31mC1\n"),
            (b"\xff\xfe raw\n", "\u{fffd}\u{fffd} raw\n"),
            (b"a\tb\n", "a\tb\n"),
            (b"\n\n  \n", ""),
            (b"login: ", "login:\n"),
            ("sch\u{f6}n\n".as_bytes(), "sch\u{f6}n\n"),
        ] {
            assert_eq!(pass(given), expected, "{:?}", String::from_utf8_lossy(given));
        }
    }

    #[test]
    fn long_lines_are_cut_and_floods_are_counted() {
        let cut = pass(&vec![b'x'; 2 * LINE_MAX + 1]);
        assert_eq!(cut.lines().map(str::len).collect::<Vec<_>>(), [LINE_MAX, LINE_MAX, 1]);

        let mut console = Console::default();
        for _ in 0..10_000 {
            console.feed(b"0123456789abcde\n");
        }
        assert!(console.waiting.len() <= WAITING_MAX);
        let mut all = String::new();
        while !console.waiting().is_empty() {
            let part = console.waiting().to_vec();
            all.push_str(std::str::from_utf8(&part).unwrap());
            console.written(part.len());
        }
        let kept = all.lines().filter(|line| *line == "0123456789abcde").count();
        assert_eq!(kept, WAITING_MAX / 16);
        assert!(all.ends_with(&format!(
            "[seed: {} lines of the console were lost, it writes faster than the journal takes]\n",
            10_000 - kept
        )));
    }
}
