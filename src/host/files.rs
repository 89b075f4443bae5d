//! The files of instances: unit files, run directories and volume folders. Written whole and renamed into place; read again only
//! when they have changed, so that a look at a thousand unchanged instances costs one system call a file.
//!
//! A run directory belongs to root and the instance's group, sticky: the instance's user makes its sockets there, and can neither
//! remove nor replace what root has put beside them.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use super::HostError;
use crate::{
    plan::{Observed, ObservedInstance},
    render::Layout,
    spec::{
        name::{SetId, VolumeName},
        quantity::Bytes,
    },
};

/// Says that the vm unit was started since its files were written.
const STARTED: &str = "started";
/// The folder that a store view is mounted at.
const STORE: &str = "store";
/// More than any file that is rendered; the rest of a larger one is not read.
const TEXT_MAX: u64 = 16 << 20;
/// Where systemd looks for users that are in no /etc/passwd.
const USERDB: &str = "/run/userdb";

pub(super) fn error(deed: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HostError {
    move |source| HostError::File { deed, path: path.to_owned(), source }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// What tells two states of a file apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &fs::Metadata) -> Self {
        Self { inode: meta.ino(), size: meta.size(), changed: (meta.ctime(), meta.ctime_nsec()) }
    }
    /// Whether a change from now on must show in the stamp. The clock of files is coarse: two changes within a tick look like one.
    fn settled(&self) -> bool {
        i64::try_from(now()).is_ok_and(|now| now > self.changed.0 + 1)
    }
}

/// What a folder holds: names, and whether each is a plain file.
type Listing = Arc<Vec<(String, bool)>>;

/// Looks at files, and remembers what it saw.
#[derive(Debug)]
pub struct Files {
    /// Who this process is. Asked once: the answer never changes.
    owner: u32,
    texts: BTreeMap<PathBuf, (Stamp, String)>,
    folders: BTreeMap<PathBuf, (Stamp, Listing)>,
}

impl Default for Files {
    fn default() -> Self {
        Self { owner: nix::unistd::Uid::effective().as_raw(), texts: BTreeMap::new(), folders: BTreeMap::new() }
    }
}

impl Files {
    /// Adds everything about instances that is in files to `observed`.
    pub fn observe(&mut self, layout: &Layout, observed: &mut Observed) -> Result<(), HostError> {
        let at = |observed: &mut Observed, id: SetId, change: &mut dyn FnMut(&mut ObservedInstance)| {
            change(observed.instances.entry(id).or_default());
        };
        for (name, file) in self.list(&layout.units)?.iter() {
            let Some(id) = instance_of_unit(name).filter(|_| *file) else { continue };
            if let Some(text) = self.text(&layout.units.join(name))? {
                at(observed, id, &mut |one| drop(one.units.insert(name.clone(), text.clone())));
            }
        }
        for id in self.instances_below(&layout.run)? {
            let run = layout.run_of(&id);
            let mut files = BTreeMap::new();
            let mut started = false;
            for (name, _) in self.list(&run)?.iter().filter(|(_, file)| *file) {
                if name == STARTED {
                    started = true;
                } else if let Some(text) = self.text(&run.join(name))? {
                    files.insert(run.join(name), text);
                }
            }
            at(observed, id, &mut |one| (one.started, one.files) = (started, std::mem::take(&mut files)));
        }
        let volumes = layout.state.join("volumes");
        for id in self.instances_below(&volumes)? {
            let folder = volumes.join(id.namespace.as_str()).join(id.place());
            for (name, _) in self.list(&folder)?.iter().filter(|(_, file)| *file) {
                let Some(volume) = name.strip_suffix(".img").and_then(|name| name.parse::<VolumeName>().ok()) else { continue };
                let path = folder.join(name);
                let size = match fs::symlink_metadata(&path) {
                    Err(source) if source.kind() == io::ErrorKind::NotFound => continue,
                    looked => Bytes(looked.map_err(error("look at", &path))?.len()),
                };
                at(observed, id.clone(), &mut |one| {
                    one.volumes.insert(volume.clone(), size);
                });
            }
        }
        Ok(())
    }

    /// The texts of those of these files that are there.
    pub fn texts(&mut self, paths: &[PathBuf]) -> Result<BTreeMap<PathBuf, String>, HostError> {
        let mut texts = BTreeMap::new();
        for path in paths {
            if let Some(text) = self.text(path)? {
                texts.insert(path.clone(), text);
            }
        }
        Ok(texts)
    }

    /// The instances that have a folder `<namespace>/<name>` below `top`.
    fn instances_below(&mut self, top: &Path) -> Result<Vec<SetId>, HostError> {
        let mut found = Vec::new();
        for (namespace, _) in self.list(top)?.iter().filter(|(_, file)| !file) {
            for (name, _) in self.list(&top.join(namespace))?.iter().filter(|(_, file)| !file) {
                found.extend(format!("{namespace}/{name}").parse::<SetId>());
            }
        }
        Ok(found)
    }

    /// What a folder holds; nothing if it is not there.
    fn list(&mut self, path: &Path) -> Result<Listing, HostError> {
        let stamp = match fs::symlink_metadata(path) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                self.folders.remove(path);
                return Ok(Listing::default());
            }
            looked => Stamp::of(&looked.map_err(error("look at", path))?),
        };
        if let Some((_, listing)) = self.folders.get(path).filter(|(seen, _)| *seen == stamp) {
            return Ok(listing.clone());
        }
        let mut listing = Vec::new();
        for entry in fs::read_dir(path).map_err(error("list", path))? {
            let entry = entry.map_err(error("list", path))?;
            let kind = entry.file_type().map_err(error("list", path))?;
            if let Some(name) = entry.file_name().to_str() {
                // Neither file nor folder (a socket, a link): nothing that is looked for.
                if kind.is_file() || kind.is_dir() {
                    listing.push((name.to_owned(), kind.is_file()));
                }
            }
        }
        listing.sort();
        let listing = Arc::new(listing);
        if stamp.settled() {
            self.folders.insert(path.to_owned(), (stamp, listing.clone()));
        } else {
            self.folders.remove(path);
        }
        Ok(listing)
    }

    /// The text of a file of root's; `None` if there is none.
    fn text(&mut self, path: &Path) -> Result<Option<String>, HostError> {
        let meta = match fs::symlink_metadata(path) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                self.texts.remove(path);
                return Ok(None);
            }
            looked => looked.map_err(error("look at", path))?,
        };
        if !meta.is_file() || meta.uid() != self.owner {
            return Ok(None);
        }
        let stamp = Stamp::of(&meta);
        if let Some((_, text)) = self.texts.get(path).filter(|(seen, _)| *seen == stamp) {
            return Ok(Some(text.clone()));
        }
        let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(path).map_err(error("read", path))?;
        let mut bytes = Vec::new();
        file.take(TEXT_MAX).read_to_end(&mut bytes).map_err(error("read", path))?;
        // What is no text is not what was rendered, and differs from it in this form as well.
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if stamp.settled() {
            self.texts.insert(path.to_owned(), (stamp, text.clone()));
        }
        Ok(Some(text))
    }
}

/// The instance that a unit file belongs to, if it is one of Seed's for an instance.
pub(super) fn instance_of_unit(name: &str) -> Option<SetId> {
    let (kind, instance) = name.strip_suffix(".service")?.split_once('@')?;
    matches!(kind, "seed-vm" | "seed-store" | "seed-tpm" | "seed-vsock" | "seed-journal")
        .then(|| SetId::from_unit_instance(instance))?
}

/// Writes a file of root's that everyone may read: whole, or not at all. One that holds the text already is left alone.
pub(super) fn write(path: &Path, text: &str) -> Result<(), HostError> {
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file()) && fs::read(path).is_ok_and(|now| now == text.as_bytes()) {
        return Ok(());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!(".{name}.new"));
    remove(&new)?;
    let mut file = File::options().write(true).create_new(true).mode(0o644).open(&new).map_err(error("create", &new))?;
    // /run is memory: there is nothing to sync, and after a power cut nothing is there.
    file.write_all(text.as_bytes()).map_err(error("write", &new))?;
    fs::rename(&new, path).map_err(error("write", path))
}

/// Removes a file, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), HostError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(error("remove", path)(source)),
        _ => Ok(()),
    }
}

/// Makes a folder of root's that everyone may enter.
pub(super) fn folder(path: &Path) -> Result<(), HostError> {
    DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(error("make the folder", path))
}

/// Makes an instance's run directory, and its user.
pub(super) fn make_run(layout: &Layout, id: &SetId, uid: u32) -> Result<(), HostError> {
    make_user(Path::new(USERDB), uid)?;
    let run = layout.run_of(id);
    folder(&run)?;
    chown(&run, Some(0), Some(uid)).map_err(error("give away", &run))?;
    fs::set_permissions(&run, fs::Permissions::from_mode(0o1770)).map_err(error("protect", &run))?;
    let store = run.join(STORE);
    match DirBuilder::new().mode(0o755).create(&store) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(error("make the folder", &store)(source)),
        _ => Ok(()),
    }
}

/// Records the user and group `seed-<uid>` where systemd looks them up: it runs nothing as a number that has no name.
fn make_user(userdb: &Path, uid: u32) -> Result<(), HostError> {
    folder(userdb)?;
    let name = format!("seed-{uid}");
    let user = serde_json::json!({
        "userName": name, "uid": uid, "gid": uid, "realName": "Seed instance", "homeDirectory": "/",
        "shell": "/usr/sbin/nologin", "locked": true, "service": "farm.loom.Seed1",
    });
    let group = serde_json::json!({ "groupName": name, "gid": uid, "service": "farm.loom.Seed1" });
    for (kind, record) in [("user", user), ("group", group)] {
        write(&userdb.join(format!("{name}.{kind}")), &format!("{record}\n"))?;
        let by_number = userdb.join(format!("{uid}.{kind}"));
        match symlink(format!("{name}.{kind}"), &by_number) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => return Err(error("link", &by_number)(source)),
            _ => {}
        }
    }
    Ok(())
}

/// Removes an instance's run directory, and its user, who owns nothing that runs any more.
pub(super) fn remove_run(layout: &Layout, id: &SetId) -> Result<(), HostError> {
    let run = layout.run_of(id);
    let gid = match fs::symlink_metadata(&run) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        looked => looked.map_err(error("look at", &run))?.gid(),
    };
    for path in ["user", "group"].iter().flat_map(|kind| [format!("seed-{gid}.{kind}"), format!("{gid}.{kind}")]) {
        // A group that is not an instance's has no such files.
        remove(&Path::new(USERDB).join(path))?;
    }
    fs::remove_dir_all(&run).map_err(error("remove", &run))?;
    let namespace = run.parent().unwrap_or(&run);
    match fs::remove_dir(namespace) {
        Err(source) if !matches!(source.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => {
            Err(error("remove", namespace)(source))
        }
        _ => Ok(()),
    }
}

/// Makes a folder root's, and shuts it: what is in it stays as it is. Nothing, if it is not there.
pub(super) fn take_back(path: &Path) -> Result<(), HostError> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let folder = match File::options().read(true).custom_flags(flags).open(path) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(error("open", path))?,
    };
    folder.set_permissions(fs::Permissions::from_mode(0o700)).map_err(error("shut", path))?;
    std::os::unix::fs::fchown(&folder, Some(0), Some(0)).map_err(error("take back", path))
}

/// Remembers that the vm unit was started since its files were written.
pub(super) fn mark_started(layout: &Layout, id: &SetId) -> Result<(), HostError> {
    write(&layout.run_of(id).join(STARTED), "")
}

/// Forgets it: its files are about to change.
pub(super) fn clear_started(layout: &Layout, id: &SetId) -> Result<(), HostError> {
    remove(&layout.run_of(id).join(STARTED))
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
