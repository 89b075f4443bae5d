//! C-P4: one authenticated command over SSH, by real clients: Seed's door against OpenSSH's sshd, and against russh with nothing
//! behind it.

use crate::{
    meter,
    place::{Measured, Place, WORKER},
    table::{Row, Sheet},
};

const ROUNDS: usize = 4;
const SESSIONS: usize = 20;
/// `whoami` the door answers alone.
const SERVE: &[&str] = &["seed-serve.service"];
/// `status` it asks the agent about.
const ALL: &[&str] = &["seed-serve.service", "seed-agent.service", "dbus.service"];

pub fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "ssh-openssh",
            "C-P4",
            "SSH command: server CPU, whoami, as a part of sshd's `true`",
            "OpenSSH sshd",
            "x",
            1.0 / 12.0,
        ),
        Row::new("ssh-status", "C-P4", "SSH command: status, with agent and bus, likewise", "OpenSSH sshd", "x", 1.0 / 12.0),
        Row::new("ssh-russh", "C-P4", "SSH command: server CPU, whoami", "russh alone", "x", 1.3),
        Row::new("ssh-calls", "C-P4", "SSH command: system calls, whoami", "OpenSSH: see the note", "calls", 110.0),
        Row::known("ssh-status-calls", "C-P4", "SSH command: system calls, status, with the agent's", "-", "calls"),
        Row::new("ssh-execs", "C-P4", "SSH command: programs started, status", "OpenSSH: see the note", "execs", 0.0),
    ]
}

/// A server under test.
struct Server {
    port: u16,
    words: &'static str,
    units: &'static [&'static str],
}

impl Server {
    fn sessions(&self, host: &Measured) {
        let Self { port, words, .. } = self;
        host.script(&format!(
            "for n in {{1..{SESSIONS}}}; do ssh -F /root/bench_ssh -p {port} root@127.0.0.1 {words} >/dev/null </dev/null; done"
        ));
    }
    /// Microseconds of server CPU per session.
    fn cpu(&self, host: &Measured) -> f64 {
        host.cpu_while(self.units, || self.sessions(host)) / SESSIONS as f64
    }
    fn calls(&self, host: &Measured) -> meter::Calls {
        meter::counted(&host.all_pids(self.units), || self.sessions(host))
    }
}

pub fn measure(place: &mut Place, sheet: &mut Sheet) {
    let host = place.plain();
    host.openssh();
    host.run(&["systemd-run", "--quiet", "--unit=peer-russh", WORKER, "worker", "russh", "2201"]);
    let whoami = Server { port: 2222, words: "whoami", units: SERVE };
    let status = Server { port: 2222, words: "status", units: ALL };
    let openssh = Server { port: 2200, words: "true", units: &["peer-sshd.service"] };
    let russh = Server { port: 2201, words: "true", units: &["peer-russh.service"] };

    let servers = [&whoami, &status, &openssh, &russh];
    servers.iter().for_each(|server| server.sessions(host));
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push(servers.map(|server| server.cpu(host)));
    }
    let of = |which: usize| meter::median(rounds.iter().map(|round| round[which]).collect());
    let ratio = |a: usize, b: usize| meter::median(rounds.iter().map(|round| round[a] / round[b]).collect());
    let told = format!("µs: whoami {:.0}, status {:.0}, sshd {:.0}, russh alone {:.0}", of(0), of(1), of(2), of(3));
    sheet.set("ssh-openssh", ratio(0, 2), told);
    sheet.set("ssh-status", ratio(1, 2), "");
    sheet.set("ssh-russh", ratio(0, 3), "");

    let per = SESSIONS as f64;
    let calls = whoami.calls(host);
    let (bare, peer) = (russh.calls(host), openssh.calls(host));
    let note = format!("russh alone {:.0}, sshd {:.0}; most: {}", bare.all() / per, peer.all() / per, calls.top(per));
    sheet.set("ssh-calls", calls.all() / per, note);
    let all = Server { units: &["seed-serve.service", "seed-agent.service"], ..status }.calls(host);
    sheet.set("ssh-status-calls", all.all() / per, format!("most: {}", all.top(per)));
    sheet.set("ssh-execs", all.execs() / per, format!("sshd: {:.1} a session", peer.execs() / per));
}
