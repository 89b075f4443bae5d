//! What the zone above this one has to have for the world to find it, in words that a registrar takes.

use super::{Signer, wire};
use crate::{render::zone::Apex, spec::name::Domain};

/// The records, a line each.
pub fn delegation(domain: &Domain, apex: &Apex, signer: Option<&Signer>) -> String {
    let mut lines = vec![format!("{domain}. NS ns1.{domain}.")];
    lines.extend(apex.nameservers.iter().map(|name| format!("{domain}. NS {name}.")));
    lines.extend(apex.host4.iter().map(|address| format!("ns1.{domain}. A {address}")));
    lines.extend(apex.host6.iter().map(|address| format!("ns1.{domain}. AAAA {address}")));
    if apex.host4.is_empty() && apex.host6.is_empty() {
        lines.push("; ns1 has no address: write those of this host into network.public_addresses".to_owned());
    }
    match signer {
        Some(signer) => lines.push(format!("{domain}. DS {}", signer.ds(&wire(domain.as_str()).unwrap_or_default()))),
        None => lines.push("; the zone is not signed: dns.dnssec = true signs it".to_owned()),
    }
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zone_above_is_told_what_it_needs() {
        let domain: Domain = "seed.example".parse().unwrap();
        let apex = Apex {
            host4: vec![[192, 0, 2, 1].into()],
            host6: vec!["2001:db8::1".parse().unwrap()],
            nameservers: vec!["ns2.example.net".into()],
            caa: vec![],
        };
        let signer = Signer::new(&Signer::generate().unwrap()).unwrap();
        let text = delegation(&domain, &apex, Some(&signer));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..4],
            [
                "seed.example. NS ns1.seed.example.",
                "seed.example. NS ns2.example.net.",
                "ns1.seed.example. A 192.0.2.1",
                "ns1.seed.example. AAAA 2001:db8::1",
            ]
        );
        assert!(lines[4].starts_with("seed.example. DS ") && lines[4].contains(" 13 2 "), "{text}");
        let bare = delegation(&domain, &Apex::default(), None);
        assert!(bare.contains("network.public_addresses") && bare.contains("dns.dnssec"), "{bare}");
    }
}
