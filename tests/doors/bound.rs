//! An end for a test that hangs: where tests are run for a change, whoever waits for them should not wait for ever.

use std::{sync::mpsc, time::Duration};

/// The slowest of these tests takes a tenth of this on a machine that has nothing else to do.
const LONGEST: Duration = Duration::from_secs(240);

/// While it lives, its test has so long.
pub struct Bound(#[allow(dead_code, reason = "it is dropped, and that is what it is for")] mpsc::Sender<()>);

impl Bound {
    /// Begins with the test of this thread.
    pub fn new() -> Self {
        let (alive, ended) = mpsc::channel::<()>();
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        std::thread::spawn(move || {
            if ended.recv_timeout(LONGEST) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("{test} has not ended within {} s", LONGEST.as_secs());
                std::process::exit(1);
            }
        });
        Self(alive)
    }
}
