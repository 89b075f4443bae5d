//! What measures: strace for counts, control groups and /proc for CPU time and memory.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// Where a program of this machine is.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).map(|place| Path::new(place).join(name)).find(|path| path.is_file())
}

/// System calls by name: how many, and how many of them failed.
#[derive(Debug, Default)]
pub struct Calls(pub BTreeMap<String, (u64, u64)>);

impl Calls {
    /// Those of these names that succeeded.
    pub fn done(&self, names: &[&str]) -> f64 {
        names.iter().filter_map(|name| self.0.get(*name)).map(|(all, failed)| all - failed).sum::<u64>() as f64
    }
    pub fn all(&self) -> f64 {
        self.0.values().map(|(all, _)| all).sum::<u64>() as f64
    }
    /// New programs.
    pub fn execs(&self) -> f64 {
        self.done(&["execve", "execveat"])
    }
    /// Whatever waits for the disk.
    pub fn syncs(&self) -> f64 {
        self.done(&["fsync", "fdatasync", "sync_file_range", "msync", "syncfs", "sync"])
    }
    /// The five most frequent, for a note.
    pub fn top(&self, per: f64) -> String {
        let mut calls: Vec<(&String, u64)> = self.0.iter().map(|(name, (all, _))| (name, *all)).collect();
        calls.sort_by_key(|(_, all)| std::cmp::Reverse(*all));
        let words: Vec<String> = calls.iter().take(6).map(|(name, all)| format!("{name} {:.1}", *all as f64 / per)).collect();
        words.join(", ")
    }
}

/// Attaches strace to processes (and all their children), does something, and returns what strace wrote: with `-c` a summary, else a
/// line a call.
pub fn traced(pids: &[u32], options: &[&str], deed: impl FnOnce()) -> String {
    assert!(!pids.is_empty(), "there is nothing to trace");
    let out = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new("strace");
    command.arg("-f").args(options).arg("-o").arg(out.path()).stdin(Stdio::null()).stderr(Stdio::piped());
    for pid in pids {
        command.args(["-p", &pid.to_string()]);
    }
    let mut strace = command.spawn().expect("strace runs");
    let mut said = BufReader::new(strace.stderr.take().unwrap());
    let mut line = String::new();
    for _ in pids {
        said.read_line(&mut line).unwrap();
    }
    assert!(line.contains("attached"), "strace: {line}");
    // It attaches to the other threads right after.
    std::thread::sleep(Duration::from_millis(300));
    let drained = std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
    deed();
    end(&mut strace);
    drained.join().unwrap().unwrap();
    fs::read_to_string(out.path()).unwrap()
}

/// Counts system calls while something is done.
pub fn counted(pids: &[u32], deed: impl FnOnce()) -> Calls {
    summary(&traced(pids, &["-c"], deed))
}

/// Ends a program that we started, as Ctrl-C does.
pub fn end(child: &mut Child) {
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    child.wait().unwrap();
}

/// Reads the table of `strace -c`: percent, seconds, microseconds, calls, errors if any, name.
pub fn summary(text: &str) -> Calls {
    let mut calls = Calls::default();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (Some(name), Some(Ok(all))) = (words.last(), words.get(3).map(|word| word.parse::<u64>())) else { continue };
        if *name == "total" || words[0].parse::<f64>().is_err() {
            continue;
        }
        let failed = if words.len() == 6 { words[4].parse().unwrap_or(0) } else { 0 };
        let entry = calls.0.entry((*name).to_owned()).or_default();
        *entry = (entry.0 + all, entry.1 + failed);
    }
    calls
}

/// A line `key value` of a file in /proc or a control group.
pub fn field(path: &Path, key: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("no {key} in {}", path.display()));
    line.trim_start_matches(':').split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// CPU time of a process's main thread, in nanoseconds.
pub fn cpu_of(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap()
}

/// How often each thread of a process was put to sleep or aside.
pub fn switches(pid: u32) -> BTreeMap<String, u64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|thread| thread.unwrap());
    let of = |path: PathBuf| field(&path, "voluntary_ctxt_switches") + field(&path, "nonvoluntary_ctxt_switches");
    threads.map(|thread| (thread.file_name().to_string_lossy().into_owned(), of(thread.path().join("status")))).collect()
}

/// Proportional memory of a process, in KiB.
pub fn pss(pid: u32) -> u64 {
    field(Path::new(&format!("/proc/{pid}/smaps_rollup")), "Pss")
}

pub fn median(mut values: Vec<f64>) -> f64 {
    assert!(!values.is_empty(), "no values");
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
