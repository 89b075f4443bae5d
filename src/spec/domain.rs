//! Names of a tenant's own: what proves that one is theirs, and what becomes of a claim with each look at the DNS. Pure: what was seen and
//! the time are arguments.
//!
//! | stage | a look finds a proof | a look finds none |
//! |---|---|---|
//! | `Pending` | `Held`, or `Waiting` if another namespace holds it | stays; looked at less and less often |
//! | `Waiting` | `Held` once the other has lost it | `Pending` |
//! | `Held` | stays | `Pending` after [`LOST`]; after [`CONTESTED`], if another has proven it as long |
//!
//! Nothing is first come: a claim without a proof keeps nobody away. What could not be looked up (no answer, SERVFAIL) changes nothing.

use std::collections::BTreeMap;

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    manifest::Problem,
    name::{CustomDomain, Domain, InstanceId, InstanceName, Namespace},
};

/// The most names of one instance, and of one namespace.
pub const OF_INSTANCE: usize = 16;
pub const OF_NAMESPACE: usize = 64;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// How long a name is kept whose proof is gone.
pub const LOST: u64 = 3 * DAY;
/// The same, if all that time another namespace has proven that it is theirs.
pub const CONTESTED: u64 = HOUR;
/// How often a name is looked at that is not proven: at first, and with time.
const FIRST: u64 = MINUTE;
const SLOWEST: u64 = HOUR;
/// How often, if another namespace has proven it, too.
const RIVALS: u64 = 5 * MINUTE;

/// A namespace's wish to have a name. Its worth is its stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Claim {
    pub instance: InstanceName,
    pub origin: Origin,
    /// Seconds since 1970.
    pub at: u64,
    pub stage: Stage,
    /// When it is to be looked at next.
    pub next: u64,
    /// How many looks in a row have found no proof.
    pub tries: u32,
    /// What the last look saw, in words; empty before the first.
    pub saw: String,
    /// Whether a certificate authority that looks for `_acme-challenge.<name>` is led to this host.
    pub delegated: bool,
}

/// Where a claim comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// `seed.domains`; goes when the flake no longer says it.
    Flake,
    /// `domain add`; goes with its instance, or with `domain remove`.
    Added,
}

/// How far a claim is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Stage {
    /// Not proven, or no longer.
    Pending,
    /// Proven since then, while another namespace has it.
    Waiting { since: u64 },
    /// The namespace has it; and since when looks find no proof any more, if they do not.
    Held { since: u64, failing: Option<u64> },
}

/// What a look at the DNS saw of one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sight {
    /// The names that it leads to by CNAMEs, in order, in lower case and without a final dot.
    pub cname: Looked,
    /// The TXT records of `_seed-challenge.<name>`.
    pub txt: Looked,
    /// As `cname`, of `_acme-challenge.<name>`.
    pub acme: Looked,
}

/// What came of one question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Looked {
    Found(Vec<String>),
    /// There is definitely nothing.
    Nothing,
    /// It could not be found out, for this reason.
    Unknown(String),
}

/// What a name's records have to say for one claim. Names are without a final dot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Records {
    /// Either this name is where the CNAME leads,
    pub cname: String,
    /// or the TXT record of this name
    pub txt_name: String,
    /// says this.
    pub txt: String,
    /// For certificates: a CNAME of this name
    pub acme_name: String,
    /// leads here.
    pub acme: String,
}

impl Records {
    /// The records for the claim of `instance`, in the zone of `zone`. `secret` is the host's own, `owner` tells apart whom the namespace
    /// belongs to: the hash of its flake, and when its repository was made.
    pub fn of(name: &CustomDomain, instance: &InstanceId, zone: &Domain, secret: &str, owner: &str) -> Self {
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
        mac.update(format!("{owner}\n{name}").as_bytes());
        let proof = data_encoding::BASE32_NOPAD.encode(&mac.finalize().into_bytes()).to_lowercase();
        Self {
            cname: format!("{}.{}.{zone}", instance.name, instance.namespace),
            txt_name: format!("_seed-challenge.{name}"),
            txt: format!("seed-{}", &proof[..32]),
            acme_name: format!("_acme-challenge.{name}"),
            acme: acme_alias(name, &instance.namespace, zone),
        }
    }

    /// What to set, a line each. `certificates` if those are wanted.
    pub fn lines(&self, name: &CustomDomain, certificates: bool) -> Vec<String> {
        let mut lines = vec![format!("{name}. CNAME {}.", self.cname), format!("or {}. TXT \"{}\"", self.txt_name, self.txt)];
        if certificates {
            lines.push(format!("and for certificates {}. CNAME {}.", self.acme_name, self.acme));
        }
        lines
    }
}

/// The name in this host's zone at which a certificate authority finds the proof for a name outside of it: always the same for a
/// namespace, so that the tenant sets a CNAME once. No instance can be called so.
pub fn acme_alias(name: &CustomDomain, namespace: &Namespace, zone: &Domain) -> String {
    let hash = data_encoding::BASE32_NOPAD.encode(&Sha256::digest(name.as_str().as_bytes())).to_lowercase();
    format!("_acme-{}.{namespace}.{zone}", &hash[..16])
}

/// Why a name cannot be somebody's own on the host of `zone`; `None`: it can.
pub fn refused(name: &CustomDomain, zone: &Domain) -> Option<String> {
    let inside = name.as_str() == zone.as_str() || name.as_str().ends_with(&format!(".{zone}"));
    inside.then(|| format!("{name} is in this host's own zone {zone}, in which names come by themselves: write one of your own"))
}

/// What is wrong with the names of a flake's instances, apart from each name by itself.
pub fn check<'a>(names: impl IntoIterator<Item = (&'a InstanceName, &'a CustomDomain)>, zone: &Domain) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut first: BTreeMap<&CustomDomain, &InstanceName> = BTreeMap::new();
    for (instance, name) in names {
        let place = format!("seeds.{instance}.meta.domains");
        if let Some(what) = refused(name, zone) {
            problems.push(Problem::new(place.clone(), what));
        }
        match first.get(name) {
            Some(other) => {
                let what = format!("{name} is seeds.{other}'s already: a name belongs to one instance");
                problems.push(Problem::new(place, what));
            }
            None => drop(first.insert(name, instance)),
        }
    }
    if first.len() > OF_NAMESPACE {
        let what = format!("{} names are given in domains: one flake may have {OF_NAMESPACE}", first.len());
        problems.push(Problem::new("seeds", what));
    }
    problems
}

/// What a look means for one claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Proof,
    /// There is definitely none.
    None,
    Unknown,
}

/// Judges a look, and says in words what there was.
pub fn judge(records: &Records, sight: &Sight) -> (Verdict, String) {
    let by_cname = matches!(&sight.cname, Looked::Found(names) if names.contains(&records.cname));
    let by_txt = matches!(&sight.txt, Looked::Found(texts) if texts.contains(&records.txt));
    if by_cname || by_txt {
        return (Verdict::Proof, if by_cname { "proven by its CNAME" } else { "proven by the TXT record" }.to_owned());
    }
    if let (Looked::Unknown(why), _) | (_, Looked::Unknown(why)) = (&sight.cname, &sight.txt) {
        return (Verdict::Unknown, format!("the DNS could not be asked: {}", short(why)));
    }
    let cname = match &sight.cname {
        Looked::Found(names) => format!("it is a CNAME of {}", names.last().map_or_else(String::new, |name| short(name))),
        _ => "it is no CNAME".to_owned(),
    };
    let txt = match &sight.txt {
        Looked::Found(texts) => format!("{} says {:?}", records.txt_name, short(&texts.join(" "))),
        _ => format!("{} has no TXT record", records.txt_name),
    };
    (Verdict::None, format!("{cname}, and {txt}"))
}

/// Whether a certificate authority is led here; `None` if that could not be found out.
pub fn delegated(alias: &str, acme: &Looked) -> Option<bool> {
    match acme {
        Looked::Found(names) => Some(names.iter().any(|name| name == alias)),
        Looked::Nothing => Some(false),
        Looked::Unknown(_) => None,
    }
}

/// Somebody else's words, cut short.
fn short(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(100).collect()
}

impl Claim {
    /// A claim that was made just now. It is due for a look.
    pub fn new(instance: InstanceName, origin: Origin, now: u64) -> Self {
        Self { instance, origin, at: now, stage: Stage::Pending, next: now, tries: 0, saw: String::new(), delegated: false }
    }

    /// Whether the namespace has the name.
    pub fn is_held(&self) -> bool {
        matches!(self.stage, Stage::Held { .. })
    }

    /// Whether the namespace has the name, and the last look found its proof: only then may a certificate be made.
    pub fn is_proven(&self) -> bool {
        matches!(self.stage, Stage::Held { failing: None, .. })
    }

    /// The same claim, to be looked at now.
    pub fn due(&self, now: u64) -> Self {
        Self { next: now, tries: 0, ..self.clone() }
    }

    fn with(&self, stage: Stage, next: u64, tries: u32) -> Self {
        Self { stage, next, tries, ..self.clone() }
    }

    /// Not proven; asked for again later, and later each time.
    fn pending(&self, now: u64) -> Self {
        let pause = FIRST.saturating_mul(1 << self.tries.min(10)).min(SLOWEST);
        self.with(Stage::Pending, now + pause, self.tries.saturating_add(1))
    }
}

/// The names that are held, and whose they are.
pub fn held<'a>(
    claims: impl IntoIterator<Item = (&'a CustomDomain, &'a BTreeMap<Namespace, Claim>)>,
) -> impl Iterator<Item = (CustomDomain, InstanceId)> {
    claims.into_iter().filter_map(|(name, claims)| {
        let (namespace, claim) = claims.iter().find(|(_, claim)| claim.is_held())?;
        Some((name.clone(), InstanceId { namespace: namespace.clone(), name: claim.instance.clone() }))
    })
}

/// What becomes of all claims to one name with a look at it. Of the claims in, at most one is held; of those that come out, too.
pub fn settle(
    claims: &BTreeMap<Namespace, Claim>,
    verdicts: &BTreeMap<Namespace, Verdict>,
    now: u64,
) -> BTreeMap<Namespace, Claim> {
    let verdict = |namespace: &Namespace| verdicts.get(namespace).copied().unwrap_or(Verdict::Unknown);
    let holder = claims.iter().find(|(_, claim)| claim.is_held()).map(|(namespace, _)| namespace);
    let mut settled = BTreeMap::new();
    let mut held = false;
    if let Some((namespace, claim)) = holder.and_then(|namespace| claims.get_key_value(namespace)) {
        // Others that have proven it at this look as well, and since when the first of them had.
        let rivals = claims.iter().filter(|(other, _)| *other != namespace && verdict(other) == Verdict::Proof);
        let rival = rivals.map(|(_, rival)| if let Stage::Waiting { since } = rival.stage { since } else { now }).min();
        let after = after_held(claim, verdict(namespace), rival, now);
        held = after.is_held();
        settled.insert(namespace.clone(), after);
    }
    // Who has waited longest comes first.
    let mut others: Vec<(&Namespace, &Claim)> = claims.iter().filter(|(namespace, _)| Some(*namespace) != holder).collect();
    others.sort_by_key(|(namespace, claim)| match claim.stage {
        Stage::Waiting { since } => (0, since, *namespace),
        Stage::Pending | Stage::Held { .. } => (1, claim.at, *namespace),
    });
    for (namespace, claim) in others {
        let after = match (verdict(namespace), claim.stage) {
            (Verdict::Proof, _) if !held => {
                held = true;
                claim.with(Stage::Held { since: now, failing: None }, now + DAY, 0)
            }
            (Verdict::Proof | Verdict::Unknown, Stage::Waiting { .. }) => claim.with(claim.stage, now + RIVALS, 0),
            (Verdict::Proof, _) => claim.with(Stage::Waiting { since: now }, now + RIVALS, 0),
            (Verdict::None | Verdict::Unknown, _) => claim.pending(now),
        };
        settled.insert(namespace.clone(), after);
    }
    settled
}

/// What becomes of the claim that has the name; `rival`: since when another has proven it.
fn after_held(claim: &Claim, verdict: Verdict, rival: Option<u64>, now: u64) -> Claim {
    let Stage::Held { since, failing } = claim.stage else { return claim.clone() };
    let held = |failing, pause: u64, tries| claim.with(Stage::Held { since, failing }, now + pause, tries);
    let retry = if rival.is_some() { RIVALS } else { HOUR };
    match verdict {
        Verdict::Proof => held(None, DAY, 0),
        // Neither for it nor against it.
        Verdict::Unknown => held(failing, retry, claim.tries),
        Verdict::None => {
            let first = failing.unwrap_or(now);
            let lost =
                now.saturating_sub(first) >= LOST || rival.is_some_and(|rival| now.saturating_sub(first.max(rival)) >= CONTESTED);
            if lost { claim.with(Stage::Pending, now + FIRST, 0) } else { held(Some(first), retry, claim.tries.saturating_add(1)) }
        }
    }
}

#[cfg(test)]
mod tests;
