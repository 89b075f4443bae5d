//! Volumes as sparse files: `volumes/<namespace>/<instance>/<volume>.img`, each an ext4 file system that belongs to the instance's
//! user. Retired ones lie in `volumes/retired/`, named `<namespace>.<instance>.<volume>.<seconds since 1970>.img` (dots, because no
//! name has one) and belong to root.
//!
//! A crash leaves: a `.new` file, which the next attempt replaces; or a volume in exactly one of its two places.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, fchown},
    path::{Path, PathBuf},
    process::Command,
};

use nix::sys::statvfs::statvfs;

use super::{Retired, VolumeError};
use crate::spec::{
    name::{InstanceId, VolumeName},
    quantity::Bytes,
};

fn error(deed: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VolumeError {
    move |source| VolumeError::File { deed, path: path.to_owned(), source }
}

/// Makes a volume with an empty file system. One that is there already is left alone.
pub fn create(image: &Path, size: Bytes, uid: u32) -> Result<(), VolumeError> {
    if image.try_exists().map_err(error("look for", image))? {
        return Ok(());
    }
    let folder = folder_of(image);
    // Everyone may pass, so that a user reaches its own image; nobody may list.
    fs::DirBuilder::new().recursive(true).mode(0o711).create(folder).map_err(error("make the folder", folder))?;
    check_room(image, size)?;
    let new = image.with_extension("new");
    remove_leftover(&new)?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).map_err(error("create", &new))?;
    file.set_len(size.0).map_err(error("size", &new))?;
    format(&new)?;
    fchown(&file, Some(uid), Some(uid)).map_err(error("give away", &new))?;
    file.sync_all().map_err(error("sync", &new))?;
    fs::rename(&new, image).map_err(error("name", image))?;
    sync_folder(folder)?;
    // The folders above may be new as well.
    folder.ancestors().skip(1).take(2).try_for_each(sync_folder)
}

/// Makes a volume larger; its file system follows when the guest mounts it.
pub fn grow(image: &Path, size: Bytes) -> Result<(), VolumeError> {
    let file = OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(image).map_err(error("open", image))?;
    let has = file.metadata().map_err(error("look at", image))?.len();
    if has > size.0 {
        return Err(VolumeError::Shrink { path: image.into(), has: Bytes(has), wanted: size });
    }
    check_room(image, Bytes(size.0 - has))?;
    file.set_len(size.0).map_err(error("grow", image))?;
    file.sync_all().map_err(error("sync", image))
}

/// Takes a volume from its instance and keeps it. `now` is in seconds since 1970. A volume that is not there was retired before.
pub fn retire(image: &Path, kept: &Path, id: &InstanceId, name: &VolumeName, now: u64) -> Result<(), VolumeError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(kept).map_err(error("make the folder", kept))?;
    // Retired twice in one second: the later one steps aside, never over the other.
    let free = (now..).map(|at| kept.join(format!("{}.{}.{name}.{at}.img", id.namespace, id.name))).find(|path| !path.exists());
    let target = free.expect("there are more seconds than files");
    match fs::rename(image, &target) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        done => done.map_err(error("retire", image))?,
    }
    chown(&target, Some(0), Some(0)).map_err(error("take back", &target))?;
    sync_folder(kept)?;
    let folder = folder_of(image);
    sync_folder(folder)?;
    remove_if_empty(folder)?;
    folder.parent().map_or(Ok(()), remove_if_empty)
}

/// The volumes that were retired, oldest first.
pub fn retired(kept: &Path) -> Result<Vec<Retired>, VolumeError> {
    let mut found = Vec::new();
    let listed = match fs::read_dir(kept) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(found),
        listed => listed.map_err(error("list", kept))?,
    };
    for entry in listed {
        let entry = entry.map_err(error("list", kept))?;
        let Some((id, name, at)) = entry.file_name().to_str().and_then(parse_retired) else { continue };
        let size = Bytes(entry.metadata().map_err(error("look at", &entry.path()))?.len());
        found.push(Retired { id, name, size, at, path: entry.path() });
    }
    found.sort_by(|a, b| (a.at, &a.id, &a.name).cmp(&(b.at, &b.id, &b.name)));
    Ok(found)
}

fn parse_retired(name: &str) -> Option<(InstanceId, VolumeName, u64)> {
    let mut parts = name.strip_suffix(".img")?.split('.');
    let id = InstanceId { namespace: parts.next()?.parse().ok()?, name: parts.next()?.parse().ok()? };
    let volume = parts.next()?.parse().ok()?;
    let at = parts.next()?.parse().ok()?;
    parts.next().is_none().then_some((id, volume, at))
}

fn folder_of(image: &Path) -> &Path {
    image.parent().expect("an image lies in its instance's folder")
}

fn check_room(image: &Path, needed: Bytes) -> Result<(), VolumeError> {
    let folder = folder_of(image);
    let room = statvfs(folder).map_err(|source| error("measure the room in", folder)(source.into()))?;
    let free = room.blocks_available().saturating_mul(room.fragment_size());
    // For people: whole mebibytes.
    let free = Bytes(free & !((1 << 20) - 1));
    if free < needed {
        return Err(VolumeError::Full { path: image.into(), needed, free });
    }
    Ok(())
}

fn remove_leftover(path: &Path) -> Result<(), VolumeError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(error("remove the leftover", path)(source)),
        _ => Ok(()),
    }
}

/// An ext4 file system for a guest: nothing set aside for root, tables written when they are first needed.
fn format(path: &Path) -> Result<(), VolumeError> {
    let arguments = ["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"];
    let output = Command::new("mkfs.ext4").args(arguments).arg(path).output().map_err(error("run mkfs.ext4 for", path))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().chars().take(1000).collect();
    Err(VolumeError::Format { path: path.into(), output: said })
}

fn sync_folder(path: &Path) -> Result<(), VolumeError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(error("sync the folder", path))
}

fn remove_if_empty(path: &Path) -> Result<(), VolumeError> {
    match fs::remove_dir(path) {
        Err(source) if matches!(source.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => Ok(()),
        done => done.map_err(error("remove the folder", path)),
    }
}

/// Makes the folder that retired volumes lie in.
pub fn prepare(volumes: &Path) -> Result<PathBuf, VolumeError> {
    let kept = volumes.join("retired");
    fs::DirBuilder::new().recursive(true).mode(0o711).create(volumes).map_err(error("make the folder", volumes))?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&kept).map_err(error("make the folder", &kept))?;
    fs::set_permissions(volumes, fs::Permissions::from_mode(0o711)).map_err(error("protect", volumes))?;
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const SIZE: Bytes = Bytes(8 << 20);

    fn id() -> InstanceId {
        "s-gaydazldmnsg/web-a".parse().unwrap()
    }

    fn uid() -> u32 {
        nix::unistd::Uid::effective().as_raw()
    }

    #[test]
    fn a_volume_lives_grows_and_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let kept = prepare(dir.path()).unwrap();
        let name: VolumeName = "b-data".parse().unwrap();
        let folder = dir.path().join("s-gaydazldmnsg/web-a");
        let image = folder.join("b-data.img");
        // What a crash in the middle of the making leaves.
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("b-data.new"), "half").unwrap();

        create(&image, SIZE, uid()).unwrap();
        let made = fs::metadata(&image).unwrap();
        assert_eq!((made.len(), made.mode() & 0o777), (SIZE.0, 0o600));
        assert!(made.blocks() * 512 < SIZE.0 / 2, "it is sparse");
        assert_eq!(fs::read(&image).unwrap()[1080..1082], [0x53, 0xef], "it is an ext4 file system");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);

        let ino = made.ino();
        create(&image, SIZE, uid()).unwrap();
        assert_eq!(fs::metadata(&image).unwrap().ino(), ino, "what is there is not made again");
        grow(&image, Bytes(2 * SIZE.0)).unwrap();
        assert_eq!(fs::metadata(&image).unwrap().len(), 2 * SIZE.0);
        assert!(matches!(grow(&image, SIZE), Err(VolumeError::Shrink { .. })));

        if !nix::unistd::Uid::effective().is_root() {
            return;
        }
        retire(&image, &kept, &id(), &name, 1000).unwrap();
        assert!(!folder.exists());
        retire(&image, &kept, &id(), &name, 1000).unwrap();
        create(&image, SIZE, uid()).unwrap();
        retire(&image, &kept, &id(), &name, 1000).unwrap();
        let list = retired(&kept).unwrap();
        let told: Vec<_> = list.iter().map(|one| (one.id.to_string(), one.name.to_string(), one.size.0, one.at)).collect();
        let entry = |size, at| ("s-gaydazldmnsg/web-a".to_owned(), "b-data".to_owned(), size, at);
        assert_eq!(told, [entry(2 * SIZE.0, 1000), entry(SIZE.0, 1001)]);
        assert_eq!(fs::metadata(&list[0].path).unwrap().ino(), ino, "its bytes are kept");
    }

    #[test]
    fn a_volume_that_does_not_fit_is_refused_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("s-x/web/big.img");
        let said = create(&image, Bytes(1 << 60), uid()).unwrap_err().to_string();
        assert!(said.starts_with("there is no room for ") && said.contains("needs 1048576Ti"), "{said}");
        assert!(!image.exists());
    }
}
