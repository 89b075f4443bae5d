//! C-P7: a push of one commit by a real git, through Seed's door against OpenSSH and git.

use crate::{
    meter,
    place::{Measured, Place},
    table::{Row, Sheet},
};

const ROUNDS: usize = 4;
const PUSHES: usize = 6;
const SEED: &[&str] = &["seed-serve.service", "seed-agent.service", "dbus.service"];
const PEER: &[&str] = &["peer-sshd.service"];

pub fn rows() -> Vec<Row> {
    vec![
        Row::new("push-cpu", "C-P7", "git push of a commit: server CPU, with agent and bus", "OpenSSH and git", "x", 0.25),
        Row::new("push-execs", "C-P7", "git push of a commit: programs started", "OpenSSH and git: see the note", "execs", 0.0),
        Row::new("push-syncs", "C-P7", "git push of a commit: waits for the disk", "OpenSSH and git: see the note", "fsync", 2.0),
    ]
}

/// Pushes commits one by one to a remote.
fn push(host: &Measured, remote: &str) {
    host.script(&format!(
        r#"cd /root/pushed; export GIT_SSH_COMMAND="ssh -F /root/bench_ssh"
        for n in {{1..{PUSHES}}}; do
            echo $RANDOM$RANDOM >file; git commit -qam change; git push -q {remote} HEAD:refs/heads/main 2>/dev/null
        done"#
    ));
}

pub fn measure(place: &mut Place, sheet: &mut Sheet) {
    let host = place.plain();
    host.openssh();
    host.script(
        r#"git init -q --bare -b main /root/peer.git
        git init -q -b main /root/pushed; cd /root/pushed
        git config user.name t; git config user.email t@example.org
        for n in {1..200}; do echo $n >f$n; done; echo 0 >file; git add -A; git commit -qm first
        git remote add peer ssh://root@127.0.0.1:2200/root/peer.git
        git remote add seed ssh://seed@127.0.0.1:2222/pushed.git
        export GIT_SSH_COMMAND="ssh -F /root/bench_ssh"
        git push -q peer HEAD:refs/heads/main; git push -q seed HEAD:refs/heads/main"#,
    );
    push(host, "peer");
    push(host, "seed");
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let ours = host.cpu_while(SEED, || push(host, "seed")) / PUSHES as f64;
        rounds.push((ours, host.cpu_while(PEER, || push(host, "peer")) / PUSHES as f64));
    }
    let ms = |values: Vec<f64>| meter::median(values) / 1e3;
    let note = format!(
        "ms: {:.1} against {:.1}",
        ms(rounds.iter().map(|round| round.0).collect()),
        ms(rounds.iter().map(|round| round.1).collect())
    );
    sheet.set("push-cpu", meter::median(rounds.iter().map(|round| round.0 / round.1).collect()), note);

    let seed = meter::counted(&host.all_pids(&SEED[..2]), || push(host, "seed"));
    let peer = meter::counted(&host.all_pids(PEER), || push(host, "peer"));
    let per = PUSHES as f64;
    sheet.set("push-execs", seed.execs() / per, format!("OpenSSH and git: {:.1}", peer.execs() / per));
    let kinds = |calls: &meter::Calls| {
        let each = ["fsync", "fdatasync", "sync_file_range"].map(|name| format!("{name} {:.1}", calls.done(&[name]) / per));
        each.join(", ")
    };
    sheet.set(
        "push-syncs",
        seed.syncs() / per,
        format!("{}; OpenSSH and git: {:.1}, which is not durable", kinds(&seed), peer.syncs() / per),
    );
}
