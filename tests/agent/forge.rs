//! A forge: real git behind a small HTTP server on loopback, with or without a password.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use crate::forge_ssh::SshForge;

/// Repositories at `<folder>/<user>/<repo>.git`.
pub struct Forge {
    folder: tempfile::TempDir,
    pub url: String,
    /// The same repositories over SSH.
    pub ssh: SshForge,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    /// The first lines of requests.
    requests: Vec<String>,
    /// What `Authorization:` has to be, if anything.
    wanted: Option<String>,
    /// Where everything has moved to.
    moved: Option<String>,
}

fn git(at: &Path, words: &[&str]) -> String {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main"]);
    let out = command.args(words).current_dir(at).output().expect("git runs");
    assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

impl Forge {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (root, shared) = (folder.path().to_owned(), Arc::clone(&seen));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (root, shared) = (root.clone(), Arc::clone(&shared));
                std::thread::spawn(move || answer(stream, &root, &shared));
            }
        });
        let ssh = SshForge::new(folder.path());
        Self { folder, url, ssh, seen }
    }

    fn bare(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.git"))
    }

    /// Commits to a branch of `user/repo`, which is made if it is not there, and is ann's by its `.authorized_keys`; returns the commit.
    pub fn commit(&self, name: &str, branch: &str, files: &[(&str, &str)]) -> String {
        let (bare, work) = (self.bare(name), self.folder.path().join(name.replace('/', "-")));
        if !bare.exists() {
            std::fs::create_dir_all(bare.parent().unwrap()).unwrap();
            git(self.folder.path(), &["init", "-q", "--bare", bare.to_str().unwrap()]);
            git(self.folder.path(), &["init", "-q", work.to_str().unwrap()]);
            std::fs::write(work.join(".authorized_keys"), crate::desk::person("ann").1).unwrap();
        }
        for (file, text) in files {
            std::fs::write(work.join(file), text).unwrap();
        }
        git(&work, &["add", "-A"]);
        git(&work, &["commit", "-q", "--allow-empty", "-m", "change"]);
        git(&work, &["push", "-q", "--force", bare.to_str().unwrap(), &format!("HEAD:refs/heads/{branch}")]);
        git(&work, &["rev-parse", "HEAD"])
    }

    /// From now on only this user and password may read.
    pub fn lock(&self, pair: &str) {
        let wanted = format!("Basic {}", data_encoding::BASE64.encode(pair.as_bytes()));
        self.seen.lock().unwrap().wanted = Some(wanted);
    }

    /// From now on everything is elsewhere.
    pub fn moves_to(&self, url: &str) {
        self.seen.lock().unwrap().moved = Some(url.to_owned());
    }

    /// How many requests there were for something whose path has `part`.
    pub fn requests(&self, part: &str) -> usize {
        self.seen.lock().unwrap().requests.iter().filter(|line| line.contains(part)).count()
    }
}

/// One request, one connection.
fn answer(stream: TcpStream, root: &Path, seen: &Mutex<Seen>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut to = stream;
    let mut first = String::new();
    reader.read_line(&mut first).ok()?;
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let header = |name: &str| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()).unwrap_or_default();
    let mut words = first.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (wanted, moved) = {
        let mut seen = seen.lock().unwrap();
        seen.requests.push(first.trim().to_owned());
        (seen.wanted.clone(), seen.moved.clone())
    };
    if let Some(url) = moved {
        write!(to, "HTTP/1.1 301 Moved\r\nLocation: {url}{target}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").ok()?;
        return Some(());
    }
    if wanted.is_some_and(|wanted| header("authorization") != wanted) {
        let text =
            "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        to.write_all(text.as_bytes()).ok()?;
        return Some(());
    }
    let mut body = vec![0; header("content-length").parse().unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    let mut child = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("CONTENT_TYPE", header("content-type"))
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("HTTP_GIT_PROTOCOL", header("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    child.stdin.take()?.write_all(&body).ok()?;
    let said = child.wait_with_output().ok()?.stdout;
    let text = String::from_utf8_lossy(&said);
    let status = text.lines().find_map(|line| line.strip_prefix("Status: ")).unwrap_or("200 OK");
    write!(to, "HTTP/1.1 {status}\r\nConnection: close\r\n").ok()?;
    to.write_all(&said).ok()
}
