//! Documents as people read them: spans of time, colours on terminals only.

use std::{
    net::SocketAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

pub(super) use super::table::{Cell, DIM, table};
use super::{Look, plain, table::paint};
use crate::{
    bus::{InstanceStatus, LogLine, NamespaceStatus, Planted, Refusal, Status, VolumeStatus},
    spec::quantity::Bytes,
};

pub(super) const RED: &str = "31";
pub(super) const GREEN: &str = "32";
pub(super) const YELLOW: &str = "33";
const BOLD: &str = "1";

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// `5 s`, `12 min`, `3 h`, `9 d`
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

/// All that a status says.
pub(super) fn status(status: &Status, now: u64, look: Look, operator: bool) -> String {
    let mut text = String::new();
    for namespace in &status.namespaces {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&namespace_status(namespace, now, look));
    }
    for name in &status.unplanted {
        text.push_str(&format!("silo:{name}  not planted: plant silo:{name} CODE\n"));
    }
    if text.is_empty() {
        text.push_str(if operator {
            "Nothing is planted on this host. `seed invite new` makes a code to plant with.\n"
        } else {
            "Nothing here is yours yet. `git push HOST:my-app` makes a repository; `help` shows the rest.\n"
        });
    }
    text
}

fn namespace_status(namespace: &NamespaceStatus, now: u64, look: Look) -> String {
    let mut head = format!("{}  {}", paint(&plain(&namespace.flake), BOLD, look), namespace.namespace);
    if namespace.generation.is_empty() {
        head.push_str("  nothing deployed yet");
    } else {
        let commit: String = namespace.commit.chars().take(10).collect();
        head.push_str(&format!("  generation {} of commit {commit}", namespace.generation));
    }
    if !namespace.deploying.is_empty() {
        head.push_str(&paint(&format!("  {}", plain(&namespace.deploying)), YELLOW, look));
    }
    let mut text = format!("{head}\n");
    if !namespace.instances.is_empty() {
        let titles =
            ["INSTANCE", "STATE", "FOR", "RESTARTS", "NAME", "IPV4", "IPV6", "PORTS", "PUBLIC", "SIZE", "VOLUMES", "DETAIL"];
        let mut rows = vec![titles.iter().map(|title| ((*title).to_owned(), Some(DIM))).collect()];
        rows.extend(namespace.instances.iter().map(|instance| instance_row(instance, now)));
        text.push_str(&table(&rows, "  ", look));
    }
    text.push_str(&super::domain::table(namespace.instances.iter().flat_map(|instance| &instance.domains), now, look));
    if !namespace.retired.is_empty() {
        let volumes: Vec<String> = namespace.retired.iter().map(|volume| plain(volume)).collect();
        text.push_str(&format!("  no longer declared, kept: {}\n", volumes.join(", ")));
    }
    text
}

fn instance_row(instance: &InstanceStatus, now: u64) -> Vec<Cell> {
    let colour = match instance.state.as_str() {
        "running" => GREEN,
        "failed" | "degraded" => RED,
        _ => YELLOW,
    };
    let age = if instance.since == 0 { String::new() } else { span(now.saturating_sub(instance.since)) };
    let memory = instance.memory_used.map(|bytes| format!("{} of ", bytes.div_ceil(1 << 20))).unwrap_or_default();
    let cpu = instance.cpu_milli.map(|milli| format!("{:.2} of ", f64::from(milli) / 1000.0)).unwrap_or_default();
    let volumes: Vec<String> = instance.volumes.iter().map(volume).collect();
    let mut detail = plain(&instance.detail);
    if instance.restart_pending {
        detail.push_str(if detail.is_empty() { "restart pending" } else { "; restart pending" });
    }
    vec![
        (instance.name.clone(), None),
        (plain(&instance.state), Some(colour)),
        (age, None),
        (if instance.restarts == 0 { String::new() } else { instance.restarts.to_string() }, Some(YELLOW)),
        (instance.fqdn.clone(), None),
        (instance.ipv4.to_string(), None),
        (instance.ipv6.to_string(), None),
        (instance.ports.join(", "), None),
        (plain(&public_ports(instance)), None),
        (format!("{cpu}{} CPU, {memory}{} MiB", instance.vcpus, instance.memory_mib), None),
        (plain(&volumes.join(", ")), None),
        (detail, None),
    ]
}

/// `192.0.2.7:25/tcp, [2001:db8::7]:25/tcp`
fn public_ports(instance: &InstanceStatus) -> String {
    let each = instance.routes.iter().flat_map(|route| {
        route.addresses.iter().map(|address| format!("{}/{}", SocketAddr::new(*address, route.port), route.protocol))
    });
    each.collect::<Vec<_>>().join(", ")
}

/// `data 12Mi of 64Mi at /seed/storage/data`
fn volume(volume: &VolumeStatus) -> String {
    let used = volume.used.map(|used| format!("{}Mi of ", used.div_ceil(1 << 20))).unwrap_or_default();
    format!("{} {used}{} at {}", volume.name, Bytes(volume.size), volume.mount_point)
}

/// The same text drawn over what is on the terminal.
pub(super) fn redrawn(text: &str) -> String {
    // Home, each line to its end, and the rest of the screen: it does not flicker as clearing does.
    let lines: String = text.lines().map(|line| format!("{line}\x1b[K\n")).collect();
    format!("\x1b[H{lines}\x1b[J")
}

/// What was planted, the names that it will have, and what is left to set up.
pub(super) fn planted(planted: &Planted) -> String {
    let suffix = plain(&planted.suffix);
    let mut text = format!("{} is planted as {}\n", plain(&planted.flake), planted.namespace);
    text.push_str(&format!("  names    INSTANCE.{suffix} for each instance, from its first boot on\n"));
    text.push_str("  DNS      nothing to set up; for a name of your own: domain add INSTANCE www.example.org\n");
    if planted.flake.starts_with("silo:") {
        text.push_str("  webhook  none needed: each push here deploys\n");
    }
    if planted.job.is_empty() {
        text.push_str("It has no commits yet: git push deploys it.\n");
    }
    text
}

/// One line of a log, with its line end.
pub(super) fn log_line(line: &LogLine, look: Look) -> String {
    let colour = match line.priority {
        0..=3 => Some(RED),
        4 => Some(YELLOW),
        _ => None,
    };
    let text = plain(&line.text);
    let text = colour.map_or_else(|| text.clone(), |colour| paint(&text, colour, look));
    format!("{} {}: {text}\n", paint(&instant(line.at / 1_000_000), DIM, look), plain(&line.source))
}

/// One line of progress, with its line end.
pub(super) fn progress_line(line: &str, look: Look) -> String {
    if line.starts_with("error:") { format!("{}\n", paint(line, RED, look)) } else { format!("{line}\n") }
}

/// `2026-11-21T10:31:02Z`
pub(in crate::serve) fn instant(seconds: u64) -> String {
    // Days to a date, after Howard Hinnant's `civil_from_days`: years begin in March, so that the leap day is the last.
    let days = seconds / 86400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

pub(super) fn unreadable<E: std::fmt::Display>(error: E) -> Refusal {
    tracing::error!(%error, "the agent's answer could not be read");
    Refusal::Failed("the agent's answer could not be read: it is of another version than this program".into())
}

/// The steps of a plan, one a line.
pub(super) fn plan(document: &str) -> Result<String, Refusal> {
    let document: Value = serde_json::from_str(document).map_err(unreadable)?;
    let steps = document["steps"].as_array().ok_or_else(|| unreadable("no steps"))?;
    if steps.is_empty() {
        return Ok("Nothing to do: this host is as it should be.\n".into());
    }
    Ok(steps.iter().map(|step| format!("{}\n", plain(step.as_str().unwrap_or_default()))).collect())
}

/// A new code, and what to do with it.
pub(super) fn new_invite(answer: &str, uses: u32, expires: u64) -> String {
    let parsed = serde_json::from_str::<Value>(answer).ok();
    let code = parsed.as_ref().and_then(|document| document["code"].as_str()).unwrap_or(answer).trim();
    let times = if uses == 1 { "once".to_owned() } else { format!("{uses} times") };
    let until = if expires == 0 { "for ever".to_owned() } else { format!("for {}", span(expires)) };
    format!("{}\n\nIt can be used {times}, {until}:  ssh HOST plant silo:REPO {0}\n", plain(code),)
}

/// The row of titles of a table.
pub(super) fn titles(titles: &[&str]) -> Vec<Cell> {
    titles.iter().map(|title| ((*title).to_owned(), Some(BOLD))).collect()
}

/// A row of texts, which may be a tenant's.
pub(super) fn cells(texts: &[&str]) -> Vec<Cell> {
    texts.iter().map(|text| (plain(text), None)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Status {
        let instance = |name: &str, state: &str, detail: &str| InstanceStatus {
            name: name.into(),
            state: state.into(),
            detail: detail.into(),
            since: 1000,
            restarts: 0,
            fqdn: format!("{name}.s-aaaaaaaaaaaa.seed.example"),
            ipv4: "10.88.0.2".parse().unwrap(),
            ipv6: "fd5e::2".parse().unwrap(),
            ports: vec!["http 80/tcp".into()],
            routes: vec![],
            vcpus: 1,
            memory_mib: 512,
            memory_used: None,
            cpu_milli: None,
            volumes: vec![],
            failed_units: vec![],
            stopped_by: String::new(),
            pinned_by: String::new(),
            domains: Vec::new(),
            restart_pending: name == "api",
            beside: None,
        };
        Status {
            version: 1,
            namespaces: vec![NamespaceStatus {
                namespace: "s-aaaaaaaaaaaa".into(),
                flake: "silo:my-app".into(),
                generation: "0123456789ab".into(),
                commit: "1".repeat(40),
                deploying: String::new(),
                instances: vec![instance("web", "running", ""), instance("api", "failed", "nginx.service failed")],
                retired: vec!["web/data (64Mi)".into()],
            }],
            unplanted: vec!["other".into()],
        }
    }

    #[test]
    fn a_status_is_aligned_and_leaves_empty_columns_out() {
        let text = status(&example(), 1300, Look::default(), false);
        assert_eq!(
            text,
            "silo:my-app  s-aaaaaaaaaaaa  generation 0123456789ab of commit 1111111111\n\
             \x20 INSTANCE  STATE    FOR    NAME                             IPV4       IPV6     PORTS        SIZE            DETAIL\n\
             \x20 web       running  5 min  web.s-aaaaaaaaaaaa.seed.example  10.88.0.2  fd5e::2  http 80/tcp  1 CPU, 512 MiB\n\
             \x20 api       failed   5 min  api.s-aaaaaaaaaaaa.seed.example  10.88.0.2  fd5e::2  http 80/tcp  1 CPU, 512 MiB  \
             nginx.service failed; restart pending\n\
             \x20 no longer declared, kept: web/data (64Mi)\n\
             silo:other  not planted: plant silo:other CODE\n"
        );
        let coloured = status(&example(), 1300, Look { terminal: true, colour: true, ..Look::default() }, false);
        assert!(coloured.contains("\x1b[32mrunning\x1b[0m  5 min") && coloured.contains("\x1b[31mfailed\x1b[0m   5 min"));
    }

    #[test]
    fn an_empty_world_says_what_to_do() {
        assert!(status(&Status::default(), 0, Look::default(), false).contains("git push"));
        assert!(status(&Status::default(), 0, Look::default(), true).contains("invite new"));
    }

    #[test]
    fn instants_are_dates() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_257_062, "2026-11-21T10:31:02Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(instant(seconds), expected);
        }
    }

    #[test]
    fn a_log_cannot_write_to_the_terminal() {
        let line = LogLine { at: 0, source: "nginx\x1b[2J".into(), priority: 6, text: "a\rb\x07".into(), ..LogLine::default() };
        assert_eq!(log_line(&line, Look::default()), "1970-01-01T00:00:00Z nginx: ab\n");
    }

    #[test]
    fn new_invites_and_plans_are_read() {
        assert!(new_invite("seed-abc", 1, 604_800).starts_with("seed-abc\n"));
        assert!(
            new_invite(r#"{"version":1,"code":"seed-abc"}"#, 2, 0)
                .contains("2 times, for ever:  ssh HOST plant silo:REPO seed-abc")
        );
        assert_eq!(plan(r#"{"version":1,"steps":["a","b"]}"#).unwrap(), "a\nb\n");
        assert!(plan("{}").is_err());
    }
}
