//! The section `[dns]`.

use std::{net::SocketAddr, path::PathBuf};

use ipnet::IpNet;

use super::{Reader, directory, net, server};
use crate::spec::name::Domain;

/// How the zone is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// Name servers besides `ns1` of the domain.
    pub nameservers: Vec<String>,
    /// The values of CAA records of the apex that let an authority issue certificates.
    pub caa: Vec<String>,
    /// Networks that are told the inside addresses of all instances.
    pub inside: Vec<IpNet>,
    /// Answers a second over UDP to one neighbourhood of addresses; 0 for no limit.
    pub answers_per_second: u32,
    /// Servers that may take the whole zone, and the file of the key that they have to know.
    pub secondaries: Vec<SocketAddr>,
    pub transfer_key: Option<PathBuf>,
    /// Whether the zone is signed.
    pub dnssec: bool,
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            nameservers: Vec::new(),
            caa: Vec::new(),
            inside: Vec::new(),
            answers_per_second: 200,
            secondaries: Vec::new(),
            transfer_key: None,
            dnssec: false,
        }
    }
}

pub(super) fn read(reader: &mut Reader<'_>, domain: &Domain) -> Dns {
    let base = Dns::default();
    let dns = Dns {
        nameservers: reader.list("dns", "nameservers", name_server),
        caa: reader.list("dns", "caa", issuer),
        inside: reader.list("dns", "inside", net),
        answers_per_second: reader.number("dns", "answers_per_second", base.answers_per_second, 0..=100_000),
        secondaries: reader.list("dns", "secondaries", server),
        transfer_key: reader
            .parsed("dns", "transfer_key", None, |text| if text.is_empty() { Ok(None) } else { directory(text).map(Some) }),
        dnssec: reader.flag("dns", "dnssec", base.dnssec),
    };
    if let Some(inside) = dns.nameservers.iter().find(|name| is_within(name, domain)) {
        let what = format!("names {inside}, which is in the zone itself, where it has no address: take a name outside of {domain}");
        reader.demand("dns", "nameservers", &what);
    }
    if !dns.secondaries.is_empty() && dns.transfer_key.is_none() {
        let what = "is missing, and there are secondaries: write the path of a file with hmac-sha256:NAME:SECRET, readable by seed";
        reader.demand("dns", "transfer_key", what);
    }
    if !dns.secondaries.is_empty() && dns.dnssec {
        let what = "cannot stand together with secondaries: signatures are made for each answer, and a copy of the zone has none; \
                    leave one of the two out";
        reader.demand("dns", "dnssec", what);
    }
    dns
}

fn is_within(name: &str, domain: &Domain) -> bool {
    name.strip_suffix(domain.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn name_server(text: &str) -> Result<String, String> {
    let name = text.trim_end_matches('.').to_ascii_lowercase();
    let domain = name.parse::<Domain>().map(|_| name);
    domain.map_err(|_| "is no name of a server: write one, as in \"ns2.example.net\"".to_owned())
}

/// The value of `issue`: a domain, and parameters of the authority's own behind it.
fn issuer(text: &str) -> Result<String, String> {
    let printable = text.len() <= 200 && text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    let domain = text.split(';').next().unwrap_or_default().trim();
    // A lone semicolon lets nobody issue.
    if printable && (text.trim() == ";" || domain.parse::<Domain>().is_ok()) {
        Ok(text.to_owned())
    } else {
        Err("is no authority: write its domain, as in \"letsencrypt.org\", or \"letsencrypt.org; validationmethods=dns-01\""
            .to_owned())
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn problems(lines: &[&str]) -> Vec<String> {
        let text = format!("domain = \"seed.example\"\n[dns]\n{}\n", lines.join("\n"));
        match Config::parse(&text) {
            Ok(_) => Vec::new(),
            Err(problems) => problems.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn a_secondary_needs_a_key_and_a_zone_that_is_not_signed() {
        let (servers, key) = ("secondaries = [\"192.0.2.53\"]", "transfer_key = \"/etc/seed/transfer.key\"");
        assert_eq!(problems(&[servers, key, "dnssec = false"]), [""; 0]);
        assert!(problems(&[servers])[0].contains("dns.transfer_key: is missing"));
        assert!(problems(&[servers, key, "dnssec = true"])[0].contains("cannot stand together"));
        assert!(problems(&["dnssec = \"yes\""])[0].contains("is a text: write true or false"));
    }

    #[test]
    fn a_name_server_in_the_zone_would_have_no_address() {
        for inside in ["ns2.seed.example", "NS2.Seed.Example.", "a.b.seed.example", "seed.example"] {
            let said = problems(&[&format!("nameservers = [\"ns.example.net\", \"{inside}\"]")]);
            assert!(said.len() == 1 && said[0].contains("in the zone itself"), "{inside}: {said:?}");
        }
        assert_eq!(problems(&["nameservers = [\"ns.otherseed.example\"]"]), [""; 0]);
    }

    #[test]
    fn an_authority_is_a_domain_and_what_stands_behind_it() {
        let good = "caa = [\"letsencrypt.org\", \"ca.example; validationmethods=dns-01\", \";\"]";
        assert_eq!(problems(&[good, "nameservers = [\"ns2.example.net.\"]"]), [""; 0]);
        for bad in ["caa = [\"no name\"]", "caa = [\"\"]", "caa = [\"ca.example; \\n\"]", "nameservers = [\"-\"]"] {
            assert_eq!(problems(&[bad]).len(), 1, "{bad}");
        }
    }
}
