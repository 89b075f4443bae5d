//! A real guest: its time to READY through Seed against the same QEMU started by hand; and from a clone of this repository to a page.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use crate::{
    meter,
    place::{Measured, Place},
    table::{Row, Sheet},
};

const ROUNDS: usize = 3;

pub fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "ready",
            "READY",
            "a guest's time to READY through Seed, helpers included",
            "the same QEMU and helpers by hand",
            "x",
            1.1,
        ),
        Row::new(
            "exec",
            "tenants",
            "`exec web -- true` through Seed, wall time",
            "raw ssh over vsock into the same guest",
            "x",
            1.3,
        ),
    ]
}

/// So many times each, in turns.
const EXECS: usize = 9;

/// Milliseconds of each `true`: first the door's, then those of an ssh whose connection is the guest's vsock itself, with a certificate of
/// the same authority.
const EXEC: &str = r#"
instance=$1 vsock=$2 rounds=$3
[[ -e /root/raw_key ]] || ssh-keygen -q -t ed25519 -N '' -f /root/raw_key
seed-bench worker certify "$instance" /root/raw_key.pub
ours=(ssh -F /root/bench_ssh -i /root/ann/key -p 2222 seed@127.0.0.1 exec web -- true)
raw=(ssh -F /root/bench_ssh -i /root/raw_key -o "ProxyCommand=seed-bench worker vsock $vsock" root@guest true)
time_of() { local began=$(date +%s%N); "$@" </dev/null; echo "$(((($(date +%s%N) - began)) / 1000))"; }
"${ours[@]}"; "${raw[@]}"
for ((n = 0; n < rounds; n++)); do echo "took $(time_of "${ours[@]}") $(time_of "${raw[@]}")"; done
"#;

/// A real guest is got into, both ways.
fn exec(host: &Measured, sheet: &mut Sheet, namespace: &str) {
    host.openssh();
    std::fs::write(host.path("/root/exec"), EXEC).unwrap();
    let vsock = format!("/run/seed/{namespace}/web/vsock");
    let instance = format!("{namespace}-web");
    let said = host.run(&["bash", "-eu", "/root/exec", &instance, &vsock, &EXECS.to_string()]);
    let pair = |line: &str| -> Option<(f64, f64)> {
        let (ours, raw) = line.strip_prefix("took ")?.split_once(' ')?;
        Some((ours.parse().ok()?, raw.parse().ok()?))
    };
    let rounds: Vec<(f64, f64)> = said.lines().filter_map(pair).collect();
    assert_eq!(rounds.len(), EXECS, "{said}");
    let median = |of: fn(&(f64, f64)) -> f64| meter::median(rounds.iter().map(of).collect());
    let note = format!(
        "ms: {:.0} against {:.0}, medians of {EXECS} in turns; an emulated guest",
        median(|round| round.0) / 1e3,
        median(|round| round.1) / 1e3
    );
    sheet.set("exec", median(|round| round.0 / round.1), note);
}

pub fn demo_rows() -> Vec<Row> {
    vec![Row::new("demo", "PAGE", "clone to page: `make demo CHECK=1`, warm", "-", "s", 120.0)]
}

/// Helpers and QEMU as root, without units and without a sandbox; prints the milliseconds until the guest says READY=1.
const BY_HAND: &str = r#"
run=$1; ns=$2; cd /root/hand
rm -f $run/{store,tpm,vhost-vsock}.sock $run/vsock $run/qmp $run/vsock_*
began=$(date +%s%N)
for path in $(cat $run/closure); do
  if [[ ! -e view/${path##*/} ]]; then
    if [[ -d $path ]]; then mkdir -p view/${path##*/}; else touch view/${path##*/}; fi
    mount --bind -o ro $path view/${path##*/}
  fi
done
seed-bench worker notify $run/vsock_9001 & notify=$!
/usr/libexec/virtiofsd --readonly --sandbox=namespace --seccomp=kill --cache=always --log-level=off \
  --socket-path $run/store.sock --shared-dir /root/hand/view & pids=$!
for kind in tpm vsock journal; do mapfile -t argv <$kind; "${argv[@]}" </dev/null & pids+=" $!"; done
for socket in store.sock tpm.sock vhost-vsock.sock vsock_9001 vsock_9002; do while [[ ! -S $run/$socket ]]; do sleep 0.002; done; done
mapfile -t argv <vm
"${argv[@]}" </dev/null >console & pids+=" $!"
wait $notify
echo "ms $((($(date +%s%N) - began) / 1000000))"
kill -9 $pids
sleep 0.3
# What was made here is root's: the units would stumble over it.
rm -f $run/{store,tpm,vhost-vsock}.sock* $run/vsock* $run/qmp
for place in /var/lib/seed/{tpm,log}/$ns/web; do chown -R --reference=$place $place; done
"#;

/// Milliseconds from the first unit of an instance to READY.
fn through_seed(host: &Measured, instance: &str) -> f64 {
    host.run(&["systemctl", "start", &format!("seed-vm@{instance}.service")]);
    let stamp = |kind: &str, name: &str| -> f64 {
        host.machine.property(&format!("seed-{kind}@{instance}.service"), name).parse().unwrap_or(0.0)
    };
    let first = ["store", "tpm", "vsock", "journal", "vm"].map(|kind| stamp(kind, "InactiveExitTimestampMonotonic"));
    (stamp("vm", "ActiveEnterTimestampMonotonic") - first.into_iter().fold(f64::INFINITY, f64::min)) / 1e3
}

pub fn measure(place: &mut Place, sheet: &mut Sheet) {
    let host = place.plain();
    let tenant = host.machine.tenant("ann", "my-app");
    let (_, namespace) = tenant.plant();
    let instance = format!("{namespace}-web");
    exec(host, sheet, &namespace);
    host.script("mkdir -p /root/hand/view");
    // The very arguments that Seed has given to QEMU and its helpers.
    for kind in ["tpm", "vsock", "journal", "vm"] {
        let main = host.machine.main_pid(&format!("seed-{kind}@{instance}.service"));
        let pick = if kind == "vm" { format!("$(pgrep -P {main})") } else { main };
        host.script(&format!("tr '\\0' '\\n' </proc/{pick}/cmdline >/root/hand/{kind}"));
    }
    std::fs::write(host.path("/root/hand/start"), BY_HAND).unwrap();
    let vm = format!("seed-vm@{instance}.service");
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        host.run(&["systemctl", "stop", &vm]);
        std::thread::sleep(std::time::Duration::from_secs(1));
        // Into a file: a pipe would be held open by whatever of this outlives it.
        let start = format!("timeout 120 bash -eu /root/hand/start /run/seed/{namespace}/web {namespace}");
        host.script(&format!("{start} >/root/hand/said 2>&1 || true"));
        let said = std::fs::read_to_string(host.path("/root/hand/said")).unwrap();
        let hand = said.lines().find_map(|line| line.strip_prefix("ms ")).and_then(|line| line.trim().parse::<f64>().ok());
        let hand = hand.unwrap_or_else(|| panic!("by hand: {}", said.lines().last().unwrap_or("nothing was said")));
        rounds.push((through_seed(host, &instance), hand));
    }
    let seconds = |value: f64| format!("{:.1}", value / 1e3);
    let each: Vec<String> =
        rounds.iter().map(|(ours, hand)| format!("{} s against {} s", seconds(*ours), seconds(*hand))).collect();
    sheet.set("ready", meter::median(rounds.iter().map(|(ours, hand)| ours / hand).collect()), each.join("; "));
}

pub fn measure_demo(_: &mut Place, sheet: &mut Sheet) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/host/demo");
    let began = Instant::now();
    let output = Command::new(script).env("CHECK", "1").stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "the demo failed: {}", text.lines().last().unwrap_or_default());
    sheet.set("demo", began.elapsed().as_secs_f64(), "seed built, roots cached; a guest that is emulated, not KVM");
}
