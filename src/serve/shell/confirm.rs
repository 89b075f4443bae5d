//! Asking a person for a name once more, before what has that name is taken away.

use tokio::io::{AsyncReadExt, AsyncWrite};

use super::{End, Session, plain};
use crate::bus::Refusal;

/// Longer than any name.
const MAX_ANSWER: usize = 256;

/// How a person can be asked something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Asking {
    /// Nobody is there who could answer.
    #[default]
    Nobody,
    /// Their terminal shows what they type, and sends a line once it is as they want it.
    Line,
    /// Each key comes as it is pressed, and is not shown by their terminal.
    Keys,
}

impl<O: AsyncWrite + Unpin + Send> Session<'_, O> {
    /// Asks for `name` once more and returns what was typed; nothing if there is nobody to ask, for which the agent has an answer.
    /// `takes` says what is about to be done to it.
    pub(super) async fn name_again(&mut self, name: &str, takes: &str, json: bool) -> Result<String, End> {
        if self.look.asking == Asking::Nobody || json {
            return Ok(String::new());
        }
        let shown = plain(name);
        self.print(&format!("This {takes} {shown} off this host; volumes are kept. Its name again, if you mean it: ")).await?;
        let typed = match self.look.asking {
            Asking::Keys => self.keys().await?,
            Asking::Line | Asking::Nobody => self.line().await?,
        };
        match typed.trim() == name {
            true => Ok(name.to_owned()),
            false => Err(Refusal::Invalid(format!("that is not {shown}: nothing was changed")).into()),
        }
    }

    async fn line(&mut self) -> Result<String, End> {
        let mut typed = Vec::new();
        // Byte by byte: what follows the line is not ours.
        while let Ok(byte) = self.input.read_u8().await {
            if byte == b'\n' || typed.len() == MAX_ANSWER {
                break;
            }
            typed.push(byte);
        }
        Ok(String::from_utf8_lossy(&typed).into_owned())
    }

    /// As [`Self::line`], and shows it. Names have no other letters than those of ASCII.
    async fn keys(&mut self) -> Result<String, End> {
        let mut typed = String::new();
        while let Ok(byte) = self.input.read_u8().await {
            match byte {
                b'\r' | b'\n' => break,
                // Backspace, and what takes all of the line back.
                8 | 0x7f if !typed.is_empty() => {
                    typed.pop();
                    self.print("\x08 \x08").await?;
                }
                0x15 => {
                    self.print(&"\x08 \x08".repeat(typed.len())).await?;
                    typed.clear();
                }
                b' '..=b'~' if typed.len() < MAX_ANSWER => {
                    typed.push(char::from(byte));
                    self.print(&char::from(byte).to_string()).await?;
                }
                _ => {}
            }
        }
        self.print("\n").await?;
        Ok(typed)
    }
}
