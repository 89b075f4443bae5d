//! What a system must be made of before a virtual machine is started from it. The host's VMM reads its kernel and initrd, so they must
//! be files of the store, whatever links say.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{build::BuildError, spec::name::StorePath};

/// The longest kernel command line that is taken; Linux itself takes 2047 characters on x86.
const PARAMS_MAX: u64 = 1500;

/// Checks the parts of a system. Returns the text of its `kernel-params`, trimmed.
pub(super) fn check(name: &str, toplevel: &StorePath, closure: &[StorePath]) -> Result<String, BuildError> {
    let refuse = |part: &str, why: String| BuildError::Failed {
        what: format!("seeds.{name}.toplevel is no system that can be started: {part} {why}"),
        lines: Vec::new(),
        remedy:
            "its folder must hold kernel, initrd, init and kernel-params, as config.system.build.toplevel of a NixOS system does"
                .into(),
    };
    for part in ["kernel", "initrd", "init"] {
        place(toplevel, part, closure).map_err(|why| refuse(part, why))?;
    }
    let path = place(toplevel, "kernel-params", closure).map_err(|why| refuse("kernel-params", why))?;
    params(&path).map_err(|why| refuse("kernel-params", why))
}

/// Where a part of the system really is: a file of a path of its closure.
fn place(toplevel: &StorePath, part: &str, closure: &[StorePath]) -> Result<PathBuf, String> {
    let path = match Path::new(toplevel.as_str()).join(part).canonicalize() {
        Ok(path) => path,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err("is missing".into()),
        Err(error) => return Err(format!("cannot be reached: {error}")),
    };
    if !closure.iter().any(|one| path.starts_with(one.as_str())) {
        return Err("is a link that leaves the system's own store paths".into());
    }
    match fs::metadata(&path) {
        Ok(meta) if meta.is_file() && meta.len() > 0 => Ok(path),
        Ok(_) => Err("is no file, or an empty one".into()),
        Err(error) => Err(format!("cannot be reached: {error}")),
    }
}

fn params(path: &Path) -> Result<String, String> {
    if fs::metadata(path).is_ok_and(|meta| meta.len() > PARAMS_MAX) {
        return Err(format!("has more than {PARAMS_MAX} characters"));
    }
    let text = fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}"))?;
    let text = text.trim();
    if !text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
        return Err("is not one line of printable ASCII".into());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_parameters_are_one_plain_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel-params");
        for (text, expected) in [
            (" quiet loglevel=4\n", Ok("quiet loglevel=4")),
            ("a\nb", Err("is not one line")),
            ("a\tb", Err("is not one line")),
            ("\u{e4}", Err("is not one line")),
            (&"x".repeat(2000), Err("has more than")),
        ] {
            fs::write(&path, text).unwrap();
            match (params(&path), expected) {
                (Ok(got), Ok(expected)) => assert_eq!(got, expected),
                (Err(got), Err(expected)) => assert!(got.starts_with(expected), "{got}"),
                (got, expected) => panic!("{got:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn a_system_that_is_not_there_is_missing_its_kernel() {
        let path: StorePath = "/nix/store/00000000000000000000000000000000-none".parse().unwrap();
        match check("web", &path, std::slice::from_ref(&path)) {
            Err(BuildError::Failed { what, .. }) => assert!(what.ends_with("kernel is missing"), "{what}"),
            other => panic!("{other:?}"),
        }
    }
}
