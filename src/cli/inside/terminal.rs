//! The terminal that this process was started at.

use std::{io::IsTerminal, os::fd::AsRawFd};

use nix::sys::termios::{self, SetArg, Termios};

nix::ioctl_read_bad!(
    /// How large the window of a terminal is.
    window_size,
    libc::TIOCGWINSZ,
    libc::winsize
);

/// Columns and rows, and the same in pixels, of the terminal at standard input; `None` if that is no terminal.
#[allow(unsafe_code, reason = "an ioctl that only fills in the structure it is given")]
pub fn size() -> Option<[u32; 4]> {
    let input = std::io::stdin();
    if !input.is_terminal() {
        return None;
    }
    let mut found = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open, and the structure is the one that this ioctl fills in.
    unsafe { window_size(input.as_raw_fd(), &raw mut found) }.ok()?;
    Some([found.ws_col, found.ws_row, found.ws_xpixel, found.ws_ypixel].map(u32::from))
}

/// While it lives, the terminal passes on each key as it is pressed, and shows nothing itself.
pub struct Raw(Termios);

impl Raw {
    pub fn enter() -> Option<Self> {
        let input = std::io::stdin();
        let before = termios::tcgetattr(&input).ok()?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&input, SetArg::TCSADRAIN, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing any more.
        let _restored = termios::tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, &self.0);
    }
}
