//! `[acme]`: the CA that certificates come from, and how often it may be asked.

use std::path::PathBuf;

use super::{directory, reader::Reader};

/// Where certificates come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acme {
    /// The address of the CA's directory; `None`: this host has no CA.
    pub directory: Option<String>,
    /// Whom the CA may write to.
    pub email: Option<String>,
    /// For a CA that knows its customers: the id of the key, and the file that holds the key in base64url.
    pub eab_kid: Option<String>,
    pub eab_key_file: Option<PathBuf>,
    /// The certificate (PEM) that signs the CA's own HTTPS, if it is none that this host trusts.
    pub ca_root: Option<PathBuf>,
    /// Certificates for new names in 7 days, in all and of one namespace.
    pub per_week: u32,
    pub per_namespace_week: u32,
}

impl Default for Acme {
    fn default() -> Self {
        Self {
            directory: None,
            email: None,
            eab_kid: None,
            eab_key_file: None,
            ca_root: None,
            per_week: 40,
            per_namespace_week: 10,
        }
    }
}

pub(super) fn read(reader: &mut Reader<'_>) -> Acme {
    let base = Acme::default();
    let file = |text: &str| if text.is_empty() { Ok(None) } else { directory(text).map(Some) };
    let acme = Acme {
        directory: reader.parsed("acme", "directory", None, url),
        email: reader.parsed("acme", "email", None, email),
        eab_kid: reader.parsed("acme", "eab_kid", None, |text| word(text, 200)),
        eab_key_file: reader.parsed("acme", "eab_key_file", None, file),
        ca_root: reader.parsed("acme", "ca_root", None, file),
        per_week: reader.number("acme", "per_week", base.per_week, 1..=100_000),
        per_namespace_week: reader.number("acme", "per_namespace_week", base.per_namespace_week, 1..=100_000),
    };
    if acme.eab_kid.is_some() != acme.eab_key_file.is_some() {
        reader.demand("acme", "eab_kid", "and eab_key_file belong together: write both or neither");
    }
    acme
}

fn url(text: &str) -> Result<Option<String>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let plain = text.len() <= 500 && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"');
    if plain
        && text
            .strip_prefix("https://")
            .is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '['))
    {
        Ok(Some(text.to_owned()))
    } else {
        Err("is no address of a directory: write one as in https://acme-v02.api.letsencrypt.org/directory".to_owned())
    }
}

fn email(text: &str) -> Result<Option<String>, String> {
    let wrong = || "is no email address: write one, as in operator@example.com".to_owned();
    let word = word(text, 200).map_err(|_| wrong())?;
    let fits = |text: &String| {
        text.split_once('@').is_some_and(|(name, host)| !name.is_empty() && host.contains('.') && !host.contains('@'))
    };
    if word.as_ref().is_none_or(fits) { Ok(word) } else { Err(wrong()) }
}

fn word(text: &str, most: usize) -> Result<Option<String>, String> {
    let plain = text.len() <= most && text.bytes().all(|byte| byte.is_ascii_graphic());
    if !plain {
        return Err(format!("must be one word of at most {most} plain characters"));
    }
    Ok((!text.is_empty()).then(|| text.to_owned()))
}
