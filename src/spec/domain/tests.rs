//! Every way that a claim can go, and that a name is never two namespaces'.

use proptest::prelude::*;

use super::*;

const NOW: u64 = 1_800_000_000;

fn ns(letter: char) -> Namespace {
    format!("s-{}", letter.to_string().repeat(12)).parse().unwrap()
}

fn claim(stage: Stage) -> Claim {
    Claim { stage, ..Claim::new("web".parse().unwrap(), Origin::Added, NOW - 10 * DAY) }
}

fn held(failing: Option<u64>) -> Claim {
    claim(Stage::Held { since: NOW - 9 * DAY, failing })
}

/// One claim alone.
fn alone(claim: &Claim, verdict: Verdict) -> (Stage, u64) {
    let after = &settle(&[(ns('a'), claim.clone())].into(), &[(ns('a'), verdict)].into(), NOW)[&ns('a')];
    (after.stage, after.next - NOW)
}

/// `a` has it, `b` wants it.
fn both(a: &Claim, b: &Claim, seen: (Verdict, Verdict)) -> (Stage, Stage) {
    let claims = [(ns('a'), a.clone()), (ns('b'), b.clone())].into();
    let after = settle(&claims, &[(ns('a'), seen.0), (ns('b'), seen.1)].into(), NOW);
    (after[&ns('a')].stage, after[&ns('b')].stage)
}

#[test]
fn a_claim_alone() {
    let new = Stage::Held { since: NOW, failing: None };
    let kept = |failing| Stage::Held { since: NOW - 9 * DAY, failing };
    let pending = claim(Stage::Pending);
    let table = [
        (&pending, Verdict::Proof, new, DAY),
        (&pending, Verdict::None, Stage::Pending, MINUTE),
        (&pending, Verdict::Unknown, Stage::Pending, MINUTE),
        // A rival of before is gone.
        (&claim(Stage::Waiting { since: NOW - HOUR }), Verdict::Proof, new, DAY),
        (&claim(Stage::Waiting { since: NOW - HOUR }), Verdict::None, Stage::Pending, MINUTE),
        (&held(None), Verdict::Proof, kept(None), DAY),
        (&held(None), Verdict::Unknown, kept(None), HOUR),
        (&held(None), Verdict::None, kept(Some(NOW)), HOUR),
        (&held(Some(NOW - 2 * DAY)), Verdict::Proof, kept(None), DAY),
        (&held(Some(NOW - LOST + 1)), Verdict::None, kept(Some(NOW - LOST + 1)), HOUR),
        (&held(Some(NOW - LOST)), Verdict::None, Stage::Pending, MINUTE),
        // What could not be looked up takes nothing away, however long.
        (&held(Some(NOW - 9 * DAY)), Verdict::Unknown, kept(Some(NOW - 9 * DAY)), HOUR),
    ];
    for (claim, verdict, stage, pause) in table {
        assert_eq!(alone(claim, verdict), (stage, pause), "{claim:?} {verdict:?}");
    }
}

#[test]
fn what_is_not_proven_is_looked_at_less_and_less_often() {
    let mut one = claim(Stage::Pending);
    let pauses: Vec<u64> = (0..9)
        .map(|_| {
            one = settle(&[(ns('a'), one.clone())].into(), &[(ns('a'), Verdict::None)].into(), NOW).remove(&ns('a')).unwrap();
            (one.next - NOW) / MINUTE
        })
        .collect();
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    assert_eq!((one.due(NOW).next, one.due(NOW).tries), (NOW, 0));
}

#[test]
fn another_gets_a_name_once_its_holder_has_lost_it() {
    use Verdict::{None as No, Proof, Unknown};
    let kept = |failing| Stage::Held { since: NOW - 9 * DAY, failing };
    let new = Stage::Held { since: NOW, failing: None };
    let wants = claim(Stage::Pending);
    let waits = |since| claim(Stage::Waiting { since });
    let table = [
        // A claim alone is worth nothing.
        (held(None), wants.clone(), (Proof, No), (kept(None), Stage::Pending)),
        // Both prove it: who has it keeps it.
        (held(None), wants.clone(), (Proof, Proof), (kept(None), Stage::Waiting { since: NOW })),
        (held(None), waits(NOW - 99 * DAY), (Proof, Proof), (kept(None), Stage::Waiting { since: NOW - 99 * DAY })),
        // The DNS points to the other now.
        (held(None), wants.clone(), (No, Proof), (kept(Some(NOW)), Stage::Waiting { since: NOW })),
        (
            held(Some(NOW - HOUR + 1)),
            waits(NOW - DAY),
            (No, Proof),
            (kept(Some(NOW - HOUR + 1)), Stage::Waiting { since: NOW - DAY }),
        ),
        (held(Some(NOW - HOUR)), waits(NOW - HOUR), (No, Proof), (Stage::Pending, new)),
        // The hour begins when both are so.
        (
            held(Some(NOW - DAY)),
            waits(NOW - HOUR + 1),
            (No, Proof),
            (kept(Some(NOW - DAY)), Stage::Waiting { since: NOW - HOUR + 1 }),
        ),
        (held(Some(NOW - DAY)), wants.clone(), (No, Proof), (kept(Some(NOW - DAY)), Stage::Waiting { since: NOW })),
        // The other's proof is gone again, or nobody knows.
        (held(Some(NOW - DAY)), waits(NOW - DAY), (No, No), (kept(Some(NOW - DAY)), Stage::Pending)),
        (held(Some(NOW - DAY)), waits(NOW - DAY), (No, Unknown), (kept(Some(NOW - DAY)), Stage::Waiting { since: NOW - DAY })),
        (held(Some(NOW - DAY)), waits(NOW - DAY), (Unknown, Proof), (kept(Some(NOW - DAY)), Stage::Waiting { since: NOW - DAY })),
        // Lost without a rival before: who proves it at that moment has it.
        (held(Some(NOW - LOST)), wants, (No, Proof), (Stage::Pending, new)),
    ];
    for (a, b, seen, after) in table {
        assert_eq!(both(&a, &b, seen), after, "{a:?} {b:?} {seen:?}");
    }
    // Of two that wait, the one that has waited longest.
    let claims = [(ns('a'), waits(NOW - 5)), (ns('b'), waits(NOW - 9)), (ns('c'), waits(NOW - 7))].into();
    let after = settle(&claims, &['a', 'b', 'c'].map(|one| (ns(one), Proof)).into(), NOW);
    assert_eq!(after.iter().filter(|(_, claim)| claim.is_held()).map(|(ns, _)| ns.clone()).collect::<Vec<_>>(), [ns('b')]);
}

fn records() -> Records {
    let id: InstanceId = format!("{}/web", ns('a')).parse().unwrap();
    Records::of(&"www.example.com".parse().unwrap(), &id, &"seed.example".parse().unwrap(), "secret", "hash")
}

#[test]
fn a_look_is_judged() {
    use Looked::{Nothing, Unknown};
    let ours = records();
    let found = |text: &str| Looked::Found(vec![text.to_owned()]);
    let other = format!("api.{}.seed.example", ns('a'));
    let table = [
        (found(&ours.cname), Nothing, Verdict::Proof, "by its CNAME"),
        (Looked::Found(vec!["cdn.example.net".into(), ours.cname.clone()]), Nothing, Verdict::Proof, "by its CNAME"),
        (Nothing, found(&ours.txt), Verdict::Proof, "by the TXT record"),
        (Nothing, Looked::Found(vec!["v=spf1".into(), ours.txt.clone()]), Verdict::Proof, "by the TXT record"),
        // One is enough, whatever the other is.
        (Unknown("x".into()), found(&ours.txt), Verdict::Proof, "by the TXT record"),
        (found(&ours.cname), Unknown("x".into()), Verdict::Proof, "by its CNAME"),
        (Nothing, Nothing, Verdict::None, "it is no CNAME, and _seed-challenge.www.example.com has no TXT record"),
        (found(&other), Nothing, Verdict::None, &format!("it is a CNAME of {other}")),
        (Nothing, found("seed-\x07other"), Verdict::None, "says \"seed-\u{fffd}other\""),
        (found(&format!("x{}", ours.cname)), found(&ours.txt[1..]), Verdict::None, "it is a CNAME"),
        // To be told no, both must have said so.
        (Nothing, Unknown("a resolver says SERVFAIL".into()), Verdict::Unknown, "SERVFAIL"),
        (Unknown("timed out".into()), Nothing, Verdict::Unknown, "timed out"),
    ];
    for (cname, txt, verdict, words) in table {
        let (judged, said) = judge(&ours, &Sight { cname, txt, acme: Nothing });
        assert_eq!(judged, verdict, "{said}");
        assert!(said.contains(words) && said.len() < 400, "{said}");
    }
    assert_eq!(delegated(&ours.acme, &found(&ours.acme)), Some(true));
    assert_eq!(delegated(&ours.acme, &found(&ours.cname)), Some(false));
    assert_eq!(delegated(&ours.acme, &Nothing), Some(false));
    assert_eq!(delegated(&ours.acme, &Unknown("x".into())), None);
}

#[test]
fn a_proof_is_of_one_owner_and_one_name_and_cannot_be_made_without_the_secret() {
    let of = |name: &str, namespace: char, secret: &str, owner: &str| {
        let id: InstanceId = format!("{}/web", ns(namespace)).parse().unwrap();
        Records::of(&name.parse().unwrap(), &id, &"seed.example".parse().unwrap(), secret, owner)
    };
    let ours = records();
    assert_eq!(ours, of("www.example.com", 'a', "secret", "hash"), "always the same");
    assert_eq!(ours.txt.len(), 37);
    for other in [
        of("example.com", 'a', "secret", "hash"),
        of("www.example.com", 'b', "secret", "other"),
        of("www.example.com", 'a', "another", "hash"),
    ] {
        assert_ne!(other.txt, ours.txt);
    }
    assert_ne!(of("www.example.com", 'b', "secret", "hash").acme, ours.acme, "each namespace has a place of its own");
    assert!(ours.acme.parse::<CustomDomain>().is_err(), "no instance and no name of anybody's can be called so");
    let lines = ours.lines(&"www.example.com".parse().unwrap(), true).join("\n");
    assert!(lines.contains(&ours.txt) && lines.contains(&ours.cname) && lines.contains(&ours.acme), "{lines}");
}

#[test]
fn the_names_of_a_flake_are_checked_together() {
    let zone: Domain = "seed.example".parse().unwrap();
    let (web, api): (InstanceName, InstanceName) = ("web".parse().unwrap(), "api".parse().unwrap());
    let name = |text: &str| text.parse::<CustomDomain>().unwrap();
    let (www, own, apex, near) = (name("www.example.com"), name("x.seed.example"), name("seed.example"), name("xseed.example"));
    assert_eq!(check([(&web, &www), (&api, &near)], &zone), []);
    let said = check([(&api, &www), (&web, &www), (&web, &own), (&api, &apex)], &zone);
    let said: Vec<String> = said.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(said[0].starts_with("seeds.web.meta.domains: www.example.com is seeds.api's already"), "{said:?}");
    assert!(said[1].contains("x.seed.example is in this host's own zone") && said[2].contains("seed.example is in"), "{said:?}");
    let many: Vec<CustomDomain> = (0..=OF_NAMESPACE).map(|n| name(&format!("n{n}.example.com"))).collect();
    assert!(check(many.iter().map(|name| (&web, name)), &zone)[0].to_string().contains("one flake may have 64"));
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![Just(Verdict::Proof), Just(Verdict::None), Just(Verdict::Unknown)]
}

proptest! {
    /// Whatever is seen, and when: a name has one holder at most, who had it proven when it got it, and does not lose it without a
    /// definite word that the proof is gone, said long enough before.
    #[test]
    fn a_name_has_one_holder_and_nobody_loses_it_by_accident(
        looks in proptest::collection::vec((1u64..2 * DAY, [verdict(), verdict(), verdict()]), 1..60),
    ) {
        let spaces = ['a', 'b', 'c'].map(ns);
        let mut claims: BTreeMap<Namespace, Claim> = spaces.iter().map(|one| (one.clone(), claim(Stage::Pending))).collect();
        let (mut now, mut denied) = (NOW, BTreeMap::<Namespace, u64>::new());
        for (pause, seen) in looks {
            now += pause;
            let verdicts: BTreeMap<Namespace, Verdict> = spaces.iter().cloned().zip(seen).collect();
            for (one, verdict) in &verdicts {
                match verdict {
                    Verdict::Proof => drop(denied.remove(one)),
                    Verdict::None => drop(denied.entry(one.clone()).or_insert(now)),
                    Verdict::Unknown => {}
                }
            }
            let after = settle(&claims, &verdicts, now);
            prop_assert_eq!(after.keys().collect::<Vec<_>>(), claims.keys().collect::<Vec<_>>());
            prop_assert!(after.values().filter(|claim| claim.is_held()).count() <= 1);
            for (one, claim) in &after {
                prop_assert!(claim.next > now && claim.next <= now + DAY);
                match (claims[one].is_held(), claim.is_held()) {
                    (false, true) => prop_assert_eq!(verdicts[one], Verdict::Proof),
                    (true, false) => {
                        prop_assert_eq!(verdicts[one], Verdict::None);
                        prop_assert!(now - denied[one] >= CONTESTED);
                        let rival = verdicts.values().any(|verdict| *verdict == Verdict::Proof);
                        prop_assert!(rival || now - denied[one] >= LOST);
                    }
                    _ => {}
                }
            }
            claims = after;
        }
    }
}
