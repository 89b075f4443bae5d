//! `seed store-view`: the main process of `seed-store@….service`. It makes a folder that holds one closure and nothing else of the
//! host's store, and becomes virtiofsd, which shows that folder to the guest.
//!
//! The folder is a tmpfs in a mount namespace of its own with one read-only bind mount a store path: systemd's
//! `BindReadOnlyPaths=` would do the same in quadratic time, and none of this shows in the host's mount table. The run directory
//! belongs to the instance's user, so nothing found there is trusted: no link is followed, and the socket is made with that user's
//! rights.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, BufRead, BufReader},
    os::{
        fd::{AsRawFd, IntoRawFd, OwnedFd},
        unix::{
            fs::{MetadataExt, OpenOptionsExt, symlink},
            net::UnixListener,
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use nix::{
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, umask},
    unistd::{Gid, Uid, setfsgid, setfsuid},
};

use crate::spec::name::{NameError, StorePath};

/// Shows one closure to one guest.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The list of store paths, one a line
    #[arg(long, value_name = "FILE")]
    pub closure: PathBuf,
    /// An existing folder to mount the view at, seen by this process only
    #[arg(long, value_name = "FOLDER")]
    pub at: PathBuf,
    /// The vhost-user socket to listen at
    #[arg(long, value_name = "SOCKET")]
    pub socket: PathBuf,
    /// The user (and group) id that may connect
    #[arg(long, value_name = "UID")]
    pub uid: u32,
    /// virtiofsd and its arguments, after `--`; `--fd` and `--shared-dir` are added
    #[arg(last = true, required = true, value_name = "VIRTIOFSD")]
    pub argv: Vec<OsString>,
}

/// Why there is no view.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    #[error("no virtiofsd was given")]
    NoVirtiofsd,
    #[error("could not read the closure {path}")]
    Closure { path: PathBuf, source: io::Error },
    #[error("line {line} of the closure {path} is refused")]
    Path { path: PathBuf, line: usize, source: NameError },
    #[error("the closure {path} belongs to user {owner} and not to root")]
    Owner { path: PathBuf, owner: u32 },
    #[error("could not {deed} {path}")]
    Make { deed: &'static str, path: PathBuf, source: io::Error },
    #[error("could not become {program}")]
    Exec { program: PathBuf, source: io::Error },
}

/// Makes the view and becomes virtiofsd; returns only when that failed.
pub fn main(args: Args) -> ExitCode {
    match run(&args) {
        Ok(never) => match never {},
        Err(error) => super::complain("store-view", &error),
    }
}

fn run(args: &Args) -> Result<std::convert::Infallible, ViewError> {
    let (program, rest) = args.argv.split_first().ok_or(ViewError::NoVirtiofsd)?;
    let closure = read_closure(&args.closure)?;
    make_view(&args.at, &closure)?;
    let socket = listen(&args.socket, args.uid)?;
    let added = added_arguments(&args.at, socket)?;
    // The socket takes connections from now on; virtiofsd finds them in its queue.
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        eprintln!("seed store-view: could not tell systemd that the view is ready: {error}");
    }
    let error = Command::new(program).args(rest).args(added).env_remove("NOTIFY_SOCKET").exec();
    Err(ViewError::Exec { program: program.into(), source: error })
}

/// What virtiofsd gets besides its given arguments. The socket stays open over exec.
fn added_arguments(at: &Path, socket: OwnedFd) -> Result<[OsString; 4], ViewError> {
    let keep = fcntl(&socket, FcntlArg::F_SETFD(FdFlag::empty()));
    keep.map_err(|source| make("hand over the socket for", at, source.into()))?;
    Ok(["--fd".into(), socket.into_raw_fd().to_string().into(), "--shared-dir".into(), at.into()])
}

fn make(deed: &'static str, path: &Path, source: io::Error) -> ViewError {
    ViewError::Make { deed, path: path.into(), source }
}

/// Reads the list and checks each line again. Only root's own list is taken.
fn read_closure(path: &Path) -> Result<Vec<StorePath>, ViewError> {
    let unreadable = |source| ViewError::Closure { path: path.into(), source };
    let no_follow = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = File::options().read(true).custom_flags(no_follow).open(path).map_err(unreadable)?;
    let owner = file.metadata().map_err(unreadable)?.uid();
    if owner != Uid::effective().as_raw() {
        return Err(ViewError::Owner { path: path.into(), owner });
    }
    let mut closure = Vec::new();
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let parsed = line.map_err(unreadable)?.parse();
        closure.push(parsed.map_err(|source| ViewError::Path { path: path.into(), line: index + 1, source })?);
    }
    Ok(closure)
}

/// Leaves the host's mount namespace and mounts the closure at `at`.
fn make_view(at: &Path, closure: &[StorePath]) -> Result<(), ViewError> {
    const NONE: Option<&str> = None;
    let failed = |deed| move |source: nix::Error| make(deed, at, source.into());
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed("leave the host's mount namespace for"))?;
    // What the host mounts later may arrive here; what is mounted here never gets out.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE).map_err(failed("leave the host's mount namespace for"))?;

    let folder = File::options().read(true).custom_flags((OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits()).open(at);
    let folder = folder.map_err(|source| make("open the folder", at, source))?;
    let point = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("store-view"), &point, Some("tmpfs"), quiet, Some("mode=0755,size=16m")).map_err(failed("mount the view at"))?;
    drop(folder);

    for path in closure {
        let source = Path::new(path.as_str());
        let target = at.join(path.base_name());
        let kind = fs::symlink_metadata(source).map_err(|error| make("find", source, error))?.file_type();
        let made = if kind.is_symlink() {
            fs::read_link(source).and_then(|to| symlink(to, &target))
        } else if kind.is_dir() {
            fs::create_dir(&target)
        } else {
            File::create(&target).map(drop)
        };
        made.map_err(|error| make("make a place for", source, error))?;
        if !kind.is_symlink() {
            let show = |source: nix::Error| make("show", &target, source.into());
            mount(Some(source), &target, NONE, MsFlags::MS_BIND, NONE).map_err(show)?;
            // A bind mount takes its flags only when it is mounted again.
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | quiet;
            mount(NONE, &target, NONE, flags, NONE).map_err(show)?;
        }
    }
    mount(NONE, at, NONE, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | quiet, NONE).map_err(failed("close the view at"))
}

/// Makes the listening socket, owned by `uid` and for nobody else. It is made with that user's rights, so that a name which the
/// user has put in the way can lead nowhere that the user could not go.
fn listen(path: &Path, uid: u32) -> Result<OwnedFd, ViewError> {
    let (me, group) = (Uid::effective(), Gid::effective());
    let old = umask(Mode::from_bits_truncate(0o177));
    setfsgid(Gid::from_raw(uid));
    setfsuid(Uid::from_raw(uid));
    let made = match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(make("remove the old socket", path, source)),
        _ => UnixListener::bind(path).map_err(|source| make("listen at", path, source)),
    };
    setfsuid(me);
    setfsgid(group);
    umask(old);
    made.map(OwnedFd::from)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};

    use super::*;

    fn closure_of(text: &[u8]) -> Result<Vec<StorePath>, ViewError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("closure");
        fs::write(&path, text).unwrap();
        read_closure(&path)
    }

    #[test]
    fn only_whole_store_paths_are_shown() {
        let good = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-a\n/nix/store/1123456789abcdfghijklmnpqrsvwxyz-b\n";
        assert_eq!(closure_of(good.as_bytes()).unwrap().len(), 2);
        for bad in ["/etc\n", "\n", "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-a/../../etc\n", "/nix/store/..\n"] {
            let error = closure_of(format!("{good}{bad}").as_bytes()).unwrap_err();
            assert!(matches!(error, ViewError::Path { line: 3, .. }), "{bad:?}: {error}");
        }
        assert!(matches!(closure_of(b"\xff\n"), Err(ViewError::Closure { .. })));
    }

    #[test]
    fn a_closure_behind_a_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("real"), "").unwrap();
        symlink("real", dir.path().join("closure")).unwrap();
        assert!(matches!(read_closure(&dir.path().join("closure")), Err(ViewError::Closure { .. })));
    }

    #[test]
    fn the_socket_is_for_one_user() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.sock");
        let uid = Uid::effective().as_raw();
        for _ in 0..2 {
            let socket = listen(&path, uid).unwrap();
            let meta = fs::symlink_metadata(&path).unwrap();
            assert!(meta.file_type().is_socket());
            assert_eq!((meta.permissions().mode() & 0o777, meta.uid()), (0o600, uid));
            drop(socket);
        }
    }

    #[test]
    fn a_user_cannot_lead_the_socket_elsewhere() {
        if !Uid::effective().is_root() {
            eprintln!("skipped: needs root to be another user");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let root_only = dir.path().join("root");
        fs::create_dir(&root_only).unwrap();
        symlink(&root_only, dir.path().join("run")).unwrap();
        assert!(matches!(listen(&dir.path().join("run/store.sock"), 12_345), Err(ViewError::Make { .. })));
    }
}
