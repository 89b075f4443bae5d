//! `seed cp`: files into an instance and out of it, by the sftp server there.
//!
//! The guest is its tenant's, and not trusted: names that it gives are those of files in one folder or nothing, and what it answers is
//! bounded. Links and devices are left out, so that nothing is read or written through one that it has.

mod sftp;

use std::{
    fs::{self, File},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    process::ExitCode,
};

use self::sftp::{Attributes, Kind, Sftp};
use crate::{
    bus::{Refusal, SeedProxy, shell},
    serve::{command, progress::plain},
};

const USAGE: &str = "cp needs a file and a place, one of them in an instance: cp page.html web:/srv/, or cp web:/etc/hosts .";
const FOLDER: &str = "that is a folder: cp -r copies it with all that is in it";
/// Folders in folders, at most: the guest may say that there is no end to them.
const DEEPEST: usize = 64;

#[derive(Debug, PartialEq, Eq)]
pub struct Copy {
    instance: String,
    /// Its path there.
    there: Vec<u8>,
    here: PathBuf,
    into: bool,
    recursive: bool,
}

/// What was done.
#[derive(Debug, Default)]
struct Count {
    files: u64,
    bytes: u64,
    /// What was left out.
    left_out: Vec<String>,
}

impl Count {
    fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }
}

fn failed(what: &Path, error: &std::io::Error) -> Refusal {
    Refusal::Failed(format!("{}: {error}", plain(&what.display().to_string())))
}

fn shown(path: &[u8]) -> String {
    plain(&String::from_utf8_lossy(path))
}

fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    let folder = folder.strip_suffix(b"/").unwrap_or(folder);
    [folder, b"/", name].concat()
}

/// The last part of a path, if it is a name.
fn last(path: &[u8]) -> Option<&[u8]> {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    path.rsplit(|byte| *byte == b'/').next().filter(|name| !matches!(*name, b"" | b"." | b".."))
}

impl Copy {
    pub fn parse(words: &[String]) -> Result<Self, Refusal> {
        let usage = || Refusal::Invalid(USAGE.to_owned());
        let (mut recursive, mut paths, mut options) = (false, Vec::new(), true);
        for word in words {
            match word.as_str() {
                "--" if options => options = false,
                "-r" | "--recursive" if options => recursive = true,
                "--json" if options => {}
                other if options && other.starts_with('-') && other.len() > 1 => {
                    return Err(Refusal::Invalid(format!("cp knows no option {other:?}: there are -r and --json")));
                }
                path => paths.push(path),
            }
        }
        let [from, to] = paths[..] else { return Err(usage()) };
        let (place, here, into) = match (command::place(from.as_bytes()), command::place(to.as_bytes())) {
            (Some(place), None) => (place, to, false),
            (None, Some(place)) => (place, from, true),
            (Some(_), Some(_)) => {
                return Err(Refusal::Invalid(
                    "cp is between this host and an instance: copy it here first (./a:b is a file here)".into(),
                ));
            }
            (None, None) => return Err(usage()),
        };
        let (instance, there) = (place.0.to_owned(), place.1.to_vec());
        Ok(Self { instance, there, here: PathBuf::from(here), into, recursive })
    }

    pub async fn run(self, agent: &SeedProxy<'_>, json: bool) -> Result<ExitCode, Refusal> {
        let way = if self.into { format!("cp to {}", shown(&self.there)) } else { format!("cp from {}", shown(&self.there)) };
        // What is not there is said before the guest is bothered.
        let here = match self.into {
            true => Some(fs::metadata(&self.here).map_err(|error| failed(&self.here, &error))?),
            false => None,
        };
        let mut sftp = Sftp::start(agent, &self.instance, &way).await?;
        let mut count = Count::default();
        match here {
            Some(here) => self.send(&mut sftp, &here, &mut count).await?,
            None => self.fetch(&mut sftp, &mut count).await?,
        }
        for path in &count.left_out {
            eprintln!("left out: {path} is neither a file nor a folder");
        }
        if json {
            let Count { files, bytes, left_out } = &count;
            print!("{}", shell::line(&shell::Copied { version: 1, files: *files, bytes: *bytes, left_out: left_out.clone() }));
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn send(&self, sftp: &mut Sftp, here: &fs::Metadata, count: &mut Count) -> Result<(), Refusal> {
        let there = sftp.stat(&self.there).await?;
        let name = last(self.here.as_os_str().as_bytes()).map(<[u8]>::to_vec);
        let target = match there {
            Some(Attributes { kind: Kind::Folder, .. }) => {
                let name = match name {
                    Some(name) => name,
                    // `.` and the like have a name of their own.
                    None => fs::canonicalize(&self.here)
                        .ok()
                        .and_then(|path| last(path.as_os_str().as_bytes()).map(<[u8]>::to_vec))
                        .ok_or_else(|| Refusal::Invalid(format!("{} has no name to have there", self.here.display())))?,
                };
                join(&self.there, &name)
            }
            _ if self.there.ends_with(b"/") && !here.is_dir() => {
                return Err(Refusal::NotFound(format!("there is no folder {} in {}", shown(&self.there), self.instance)));
            }
            _ => self.there.clone(),
        };
        if !here.is_dir() {
            let file = File::open(&self.here).map_err(|error| failed(&self.here, &error))?;
            let bytes = sftp.write(&target, file, here.mode()).await?;
            count.add(bytes);
            return Ok(());
        }
        if !self.recursive {
            return Err(Refusal::Invalid(FOLDER.to_owned()));
        }
        let mut folders = vec![(self.here.clone(), target, here.mode(), 0)];
        while let Some((from, to, mode, depth)) = folders.pop() {
            sftp.make_folder(&to, mode).await?;
            let entries = fs::read_dir(&from).map_err(|error| failed(&from, &error))?;
            for entry in entries {
                let path = entry.map_err(|error| failed(&from, &error))?.path();
                let found = fs::symlink_metadata(&path).map_err(|error| failed(&path, &error))?;
                let to = join(&to, path.file_name().unwrap_or_default().as_bytes());
                if found.is_dir() && depth < DEEPEST {
                    folders.push((path, to, found.mode(), depth + 1));
                } else if found.is_file() {
                    let file = File::open(&path).map_err(|error| failed(&path, &error))?;
                    let bytes = sftp.write(&to, file, found.mode()).await?;
                    count.add(bytes);
                } else {
                    count.left_out.push(plain(&path.display().to_string()));
                }
            }
        }
        Ok(())
    }

    async fn fetch(&self, sftp: &mut Sftp, count: &mut Count) -> Result<(), Refusal> {
        let missing = || Refusal::NotFound(format!("there is no {} in {}", shown(&self.there), self.instance));
        let there = sftp.stat(&self.there).await?.ok_or_else(missing)?;
        let target = match self.here.is_dir() {
            true => {
                let name = last(&self.there)
                    .ok_or_else(|| Refusal::Invalid(format!("{} has no name to have here", shown(&self.there))))?;
                self.here.join(std::ffi::OsStr::from_bytes(name))
            }
            false => self.here.clone(),
        };
        match there.kind {
            Kind::File => {}
            Kind::Folder if self.recursive => {}
            Kind::Folder => return Err(Refusal::Invalid(FOLDER.to_owned())),
            Kind::Other => return Err(Refusal::Invalid(format!("{} is neither a file nor a folder", shown(&self.there)))),
        }
        let mut rest = vec![(self.there.clone(), target, there, 0)];
        while let Some((from, to, found, depth)) = rest.pop() {
            match found.kind {
                Kind::File => {
                    let options = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(found.mode & 0o777).open(&to);
                    let bytes = sftp.read(&from, &options.map_err(|error| failed(&to, &error))?, &to).await?;
                    count.add(bytes);
                }
                Kind::Folder if depth < DEEPEST => {
                    // Who copies has to be able to write into it.
                    match fs::DirBuilder::new().mode(found.mode & 0o777 | 0o700).create(&to) {
                        Err(error) if !to.is_dir() => return Err(failed(&to, &error)),
                        _ => {}
                    }
                    for (name, found) in sftp.list(&from).await? {
                        let (from, to) = (join(&from, &name), to.join(std::ffi::OsString::from_vec(name)));
                        rest.push((from, to, found, depth + 1));
                    }
                }
                Kind::Folder | Kind::Other => count.left_out.push(shown(&from)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_two_paths_is_in_an_instance() {
        let parse = |line: &str| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            Copy::parse(&words).map_err(|refusal| refusal.to_string())
        };
        let made = |instance: &str, there: &str, here: &str, into, recursive| {
            Ok(Copy { instance: instance.to_owned(), there: there.as_bytes().to_vec(), here: here.into(), into, recursive })
        };
        assert_eq!(parse("page.html web:/srv/"), made("web", "/srv/", "page.html", true, false));
        assert_eq!(parse("app/web:/etc/hosts . --json"), made("app/web", "/etc/hosts", ".", false, false));
        assert_eq!(parse("-r ./a:b web:"), made("web", ".", "./a:b", true, true));
        assert_eq!(parse("-- -x web:y"), made("web", "y", "-x", true, false));
        for (line, why) in [
            ("", "cp needs a file"),
            ("a", "cp needs a file"),
            ("a b", "cp needs a file"),
            ("web:/a api:/b", "between this host and an instance"),
            ("-p a web:/b", "no option \"-p\""),
            ("a web:/b c", "cp needs a file"),
        ] {
            assert!(parse(line).is_err_and(|error| error.contains(why)), "{line}: {:?}", parse(line));
        }
        for (path, name) in [("/a/b/", Some("b")), ("b", Some("b")), ("/", None), ("..", None), ("a/..", None), (".", None)] {
            assert_eq!(last(path.as_bytes()), name.map(str::as_bytes), "{path}");
        }
    }
}
