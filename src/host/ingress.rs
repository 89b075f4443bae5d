//! HAProxy: its files, and what it has in its memory, over its socket for commands. `render::ingress` says what both are to be.
//!
//! Files are written before HAProxy is told: one that is started in between has what it will be told, and one that is killed has it again.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::{sleep, timeout},
};

use super::{HostError, files};
use crate::{
    plan::{MapChange, RunningIngress},
    render::{
        File, Layout,
        ingress::{Ingress, Map, Maps, UNIT, admin_socket},
    },
};

/// How long HAProxy may take for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it may take to put a configuration to use.
const RELOAD_PATIENCE: Duration = Duration::from_secs(20);
/// How many bytes of commands are sent at once: less than HAProxy's buffer of 16 KiB.
const AT_ONCE: usize = 8 << 10;

/// Puts a configuration and empty maps where there are none, so that HAProxy can start before there are instances.
pub fn prepare(layout: &Layout) -> Result<(), HostError> {
    for file in Ingress::empty(layout).files(&Maps::new()) {
        if !file.path.exists() {
            write(&file)?;
        }
    }
    Ok(())
}

/// Writes one of its files: whole, or not at all.
pub fn write(file: &File) -> Result<(), HostError> {
    files::folder(file.path.parent().unwrap_or(&file.path))?;
    files::write(&file.path, &file.text)
}

/// The paths of its files.
pub fn paths(layout: &Layout) -> Vec<PathBuf> {
    let Ingress { config, maps, .. } = Ingress::empty(layout);
    std::iter::once(config.path).chain(maps.into_values()).collect()
}

/// What a running HAProxy has in its memory.
pub async fn running(layout: &Layout) -> io::Result<RunningIngress> {
    let socket = admin_socket(layout);
    let mut running = RunningIngress { digest: described(&socket).await?, ..RunningIngress::default() };
    for map in Map::ALL {
        let text = ask(&socket, &format!("show map {}", map.path(layout).display())).await?;
        let lines: Option<Vec<_>> = text.lines().filter(|line| !line.is_empty()).map(map_line).collect();
        let unknown = || io::Error::new(io::ErrorKind::InvalidData, text.chars().take(200).collect::<String>());
        running.maps.insert(map, lines.ok_or_else(unknown)?);
    }
    Ok(running)
}

/// `0x55af40bffeb0 web.s-….seed.example plain/10.83.0.2/80`
fn map_line(line: &str) -> Option<(String, String)> {
    let mut words = line.splitn(3, ' ');
    let (id, name, value) = (words.next()?, words.next()?, words.next()?);
    id.starts_with("0x").then(|| (name.to_owned(), value.to_owned()))
}

/// What the running configuration says of itself.
async fn described(socket: &Path) -> io::Result<String> {
    let info = ask(socket, "show info").await?;
    Ok(info.lines().find_map(|line| line.strip_prefix("description: ")).unwrap_or_default().to_owned())
}

/// Changes the maps of a running HAProxy.
pub async fn change(layout: &Layout, changes: &[MapChange]) -> Result<(), HostError> {
    let socket = admin_socket(layout);
    for line in lines(layout, changes) {
        let said = ask(&socket, &line).await.map_err(files::error("change the maps of HAProxy at", &socket))?;
        // It says nothing of what went well. What was to be removed and is not there is as it should be.
        let bad = said.lines().map(str::trim).find(|line| !line.is_empty() && !line.to_lowercase().contains("not found"));
        if let Some(bad) = bad {
            return Err(HostError::Command { command: "HAProxy: change of a map".to_owned(), output: bad.to_owned() });
        }
    }
    Ok(())
}

/// The commands of all changes, in order: so many on a line as fit.
fn lines(layout: &Layout, changes: &[MapChange]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for command in changes.iter().map(|change| command(layout, change)) {
        match lines.last_mut().filter(|line| line.len() + command.len() < AT_ONCE) {
            Some(line) => {
                line.push(';');
                line.push_str(&command);
            }
            None => lines.push(command),
        }
    }
    lines
}

/// Names, values and paths have no character that HAProxy's language gives a meaning.
fn command(layout: &Layout, change: &MapChange) -> String {
    let path = |map: &Map| map.path(layout).display().to_string();
    match change {
        MapChange::Add { map, name, value } => format!("add map {} {name} {value}", path(map)),
        MapChange::Set { map, name, value } => format!("set map {} {name} {value}", path(map)),
        MapChange::Remove { map, name } => format!("del map {} {name}", path(map)),
    }
}

/// Waits until HAProxy, which was told to, uses the configuration with this digest.
pub async fn reloaded(layout: &Layout, digest: &str) -> Result<(), HostError> {
    let socket = admin_socket(layout);
    let uses = async {
        while !described(&socket).await.is_ok_and(|now| now == digest) {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(RELOAD_PATIENCE, uses).await.map_err(|_| HostError::Job {
        deed: "use its new configuration",
        unit: UNIT.to_owned(),
        result: "nothing: its journal says more".to_owned(),
    })
}

/// One line of commands, and all that is said to it.
pub async fn ask(socket: &Path, line: &str) -> io::Result<String> {
    let asked = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(line.as_bytes()).await?;
        stream.write_all(b"\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    timeout(PATIENCE, asked).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_map_is_its_name_and_its_value() {
        let line = "0x55af40bffeb0 web.s-a.seed.example plain/10.83.0.2/80";
        assert_eq!(map_line(line), Some(("web.s-a.seed.example".to_owned(), "plain/10.83.0.2/80".to_owned())));
        for other in ["Unknown map identifier. Please use #<id> or <file>.", "0x55af40bffeb0 alone", ""] {
            assert_eq!(map_line(other), None, "{other}");
        }
    }
}
