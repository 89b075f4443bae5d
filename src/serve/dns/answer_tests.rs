//! Answers, read by another implementation.

use hickory_proto::{
    op::{Edns, Message, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name as Text, RData, RecordType},
};
use proptest::prelude::*;

use super::*;
use crate::{
    bus::{Zone, ZoneEntry},
    serve::dns::{
        question::{Read, read},
        table::Near,
    },
};

const STRANGER: &str = "198.51.100.1";
const WEB: &str = "10.88.0.2";

fn zone() -> Zone {
    let entry = |n: u8| ZoneEntry { ipv4: [10, 88, 0, n].into(), ipv6: format!("fd5e::{n}").parse().unwrap(), beside: Vec::new() };
    let mut zone = Zone { serial: 7, domain: "seed.example".into(), host4: vec![[192, 0, 2, 1].into()], ..Zone::default() };
    zone.nameservers = vec!["ns2.example.net".into()];
    zone.caa = vec!["letsencrypt.org".into()];
    zone.namespaces.insert("s-aaaaaaaaaaaa".into(), [("web".to_owned(), entry(2)), ("api".to_owned(), entry(3))].into());
    zone.namespaces.insert("s-bbbbbbbbbbbb".into(), [("db".to_owned(), entry(4))].into());
    let long = "x".repeat(300);
    zone.challenges.insert("_acme-challenge.web.s-aaaaaaaaaaaa.seed.example".into(), vec!["one".into(), long, "one".into()]);
    zone
}

fn near() -> Near {
    let gateways = vec![[10, 88, 0, 1].into()];
    Near { pool4: "10.88.0.0/24".parse().unwrap(), pool6: "fd5e::/64".parse().unwrap(), gateways, inside: vec![] }
}

fn reply(table: &Table, from: &str, asked: &[u8], udp: bool, signer: Option<&Signer>) -> Result<Vec<u8>, Reply> {
    let mut out = Vec::new();
    let asker = table.asker(&near(), from.parse().unwrap());
    match read(asked) {
        Read::Nothing => Ok(out),
        Read::Broken(code) => {
            broken(asked, code, &mut out);
            Ok(out)
        }
        Read::Question(asked) => {
            let context = Context { table, asker: &asker, signer, now: 1_800_000_000 };
            match answer(context, &asked, room(&asked, udp), None, &mut out) {
                Reply::Written => Ok(out),
                other => Err(other),
            }
        }
    }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut asked = Message::query();
    asked.queries.push(Query::query(Text::from_ascii(name).unwrap(), kind));
    asked
}

fn ask(from: &str, name: &str, kind: RecordType) -> Result<Message, Reply> {
    let asked = question(name, kind).to_vec().unwrap();
    reply(&Table::new(&zone()), from, &asked, true, None).map(|bytes| Message::from_vec(&bytes).unwrap())
}

fn texts(answer: &Message) -> Vec<String> {
    let text = |data: &RData| match data {
        RData::SOA(_) => "SOA".into(),
        RData::HINFO(_) => "HINFO".into(),
        data => data.to_string(),
    };
    answer.answers.iter().map(|record| text(&record.data)).collect()
}

#[test]
fn the_zone_is_answered() {
    use RecordType as T;
    use ResponseCode as R;
    let challenge = "_acme-challenge.web.s-aaaaaaaaaaaa.seed.example.";
    // name, type, code, answers, whether a SOA says that there is none
    let table = [
        ("seed.example.", T::SOA, R::NoError, vec!["SOA"], false),
        ("seed.example.", T::NS, R::NoError, vec!["ns1.seed.example.", "ns2.example.net."], false),
        ("seed.example.", T::A, R::NoError, vec!["192.0.2.1"], false),
        ("seed.example.", T::CAA, R::NoError, vec!["0 issue \"letsencrypt.org\""], false),
        ("seed.example.", T::AAAA, R::NoError, vec![], true),
        ("seed.example.", T::MX, R::NoError, vec![], true),
        ("seed.example.", T::DNSKEY, R::NoError, vec![], true),
        ("SEED.example.", T::A, R::NoError, vec!["192.0.2.1"], false),
        ("silo.seed.example.", T::A, R::NoError, vec!["192.0.2.1"], false),
        ("ns1.seed.example.", T::A, R::NoError, vec!["192.0.2.1"], false),
        ("web.s-aaaaaaaaaaaa.seed.example.", T::A, R::NoError, vec!["192.0.2.1"], false),
        ("Web.S-aaaaaaaaaaaa.seed.example.", T::A, R::NoError, vec!["192.0.2.1"], false),
        ("web.s-aaaaaaaaaaaa.seed.example.", T::AAAA, R::NoError, vec![], true),
        ("web.s-aaaaaaaaaaaa.seed.example.", T::TXT, R::NoError, vec![], true),
        ("web.s-aaaaaaaaaaaa.seed.example.", T::CAA, R::NoError, vec![], true),
        ("web.s-aaaaaaaaaaaa.seed.example.", T::ANY, R::NoError, vec!["HINFO"], false),
        ("s-aaaaaaaaaaaa.seed.example.", T::A, R::NoError, vec![], true),
        ("s-aaaaaaaaaaaa.seed.example.", T::ANY, R::NoError, vec![], true),
        (challenge, T::A, R::NoError, vec![], true),
        ("s-cccccccccccc.seed.example.", T::A, R::NXDomain, vec![], true),
        ("db.s-aaaaaaaaaaaa.seed.example.", T::A, R::NXDomain, vec![], true),
        ("_acme-challenge.db.s-bbbbbbbbbbbb.seed.example.", T::TXT, R::NXDomain, vec![], true),
        ("a.web.s-aaaaaaaaaaaa.seed.example.", T::A, R::NXDomain, vec![], true),
        ("seed.example.", T::RRSIG, R::Refused, vec![], false),
        ("example.", T::A, R::Refused, vec![], false),
        ("notseed.example.", T::A, R::Refused, vec![], false),
        ("web.", T::A, R::Refused, vec![], false),
        (".", T::NS, R::Refused, vec![], false),
    ];
    for (name, kind, code, expected, negative) in table {
        let answer = ask(STRANGER, name, kind).unwrap();
        assert_eq!(answer.metadata.response_code, code, "{name} {kind}");
        assert_eq!(answer.metadata.authoritative, code != R::Refused, "{name} {kind}");
        assert!(!answer.metadata.recursion_available && !answer.metadata.truncation);
        assert_eq!(answer.queries[0].name().to_ascii(), name, "the question's letters are kept");
        assert_eq!(texts(&answer), expected, "{name} {kind}");
        assert_eq!(answer.authorities.iter().any(|record| record.record_type() == T::SOA), negative, "{name} {kind}");
        assert!(answer.authorities.iter().all(|record| record.ttl == TTL));
    }
    let glue = ask(STRANGER, "seed.example.", T::NS).unwrap();
    assert_eq!(glue.additionals[0].data.to_string(), "192.0.2.1");
    let RData::SOA(soa) = &ask(STRANGER, "seed.example.", T::SOA).unwrap().answers[0].data.clone() else { panic!() };
    assert_eq!((soa.serial, soa.minimum, soa.mname.to_ascii().as_str()), (7, TTL, "ns1.seed.example."));
    let proof = ask(STRANGER, challenge, T::TXT).unwrap();
    let RData::TXT(long) = &proof.answers[1].data else { panic!() };
    assert_eq!((proof.answers.len(), long.txt_data.len(), proof.answers[0].ttl), (2, 2, 0));
    assert_eq!(texts(&proof)[0], "one");
}

#[test]
fn an_instance_asks_for_more_than_a_stranger() {
    let all = |from, name| texts(&ask(from, name, RecordType::A).unwrap());
    assert_eq!(all(WEB, "api."), ["10.88.0.3"]);
    assert_eq!(all(WEB, "api.s-aaaaaaaaaaaa.seed.example."), ["10.88.0.3"]);
    assert_eq!(all(WEB, "db.s-bbbbbbbbbbbb.seed.example."), ["192.0.2.1"], "another tenant's, as the world sees it");
    assert_eq!(all("127.0.0.1", "db.s-bbbbbbbbbbbb.seed.example."), ["10.88.0.4"], "this host");
    let missing = ask(WEB, "db.", RecordType::A).unwrap();
    assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
    assert!(missing.metadata.recursion_available);
    assert_eq!(ask(WEB, "example.org.", RecordType::A), Err(Reply::Forward));
    assert_eq!(ask(WEB, ".", RecordType::NS), Err(Reply::Forward));
    // An address that is no instance's any more.
    for name in ["api.", "example.org.", "seed.example."] {
        assert_eq!(ask("10.88.0.77", name, RecordType::A).unwrap().metadata.response_code, ResponseCode::Refused);
    }
    assert_eq!(ask(STRANGER, "seed.example.", RecordType::AXFR), Err(Reply::Transfer));
    let guest = ask(WEB, "seed.example.", RecordType::AXFR).unwrap();
    assert_eq!(guest.metadata.response_code, ResponseCode::Refused);
}

#[test]
fn strange_questions_get_their_codes() {
    let query = Query::query(Text::from_ascii("seed.example.").unwrap(), RecordType::A);
    let code = |message: &Message| {
        let bytes = reply(&Table::new(&zone()), STRANGER, &message.to_vec().unwrap(), true, None).unwrap();
        (!bytes.is_empty()).then(|| Message::from_vec(&bytes).unwrap())
    };
    let mut response = Message::response(1, OpCode::Query);
    response.queries.push(query.clone());
    assert!(code(&response).is_none(), "answers are not answered");
    let mut two = Message::query();
    two.queries.extend([query.clone(), query.clone()]);
    assert_eq!(code(&two).unwrap().metadata.response_code, ResponseCode::FormErr);
    let mut update = Message::new(3, hickory_proto::op::MessageType::Query, OpCode::Update);
    update.queries.push(query.clone());
    let refused = code(&update).unwrap();
    assert_eq!((refused.metadata.response_code, refused.metadata.op_code), (ResponseCode::NotImp, OpCode::Update));
    let mut new = Message::query();
    new.queries.push(query.clone());
    let mut edns = Edns::new();
    edns.set_version(1).set_max_payload(4096);
    new.edns = Some(edns);
    let answered = code(&new).unwrap();
    assert_eq!(answered.edns.as_ref().unwrap().rcode_high(), ResponseCode::BADVERS.high());
    assert_eq!(usize::from(answered.edns.unwrap().max_payload()), UDP_MAX);
    let mut chaos = Message::query();
    chaos.queries.push(query);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&chaos).unwrap().metadata.response_code, ResponseCode::Refused);
    let nothing = reply(&Table::default(), STRANGER, &question("seed.example.", RecordType::A).to_vec().unwrap(), true, None);
    assert_eq!(Message::from_vec(&nothing.unwrap()).unwrap().metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn what_does_not_fit_is_cut_and_said_so() {
    let mut zone = zone();
    zone.host4 = (0..100).map(|n| [192, 0, 2, n].into()).collect();
    let table = Table::new(&zone);
    let mut asked = question("seed.example.", RecordType::A);
    for (payload, udp, room, cut) in [(None, true, 512, true), (Some(4096), true, UDP_MAX, true), (None, false, 4096, false)] {
        asked.edns = payload.map(|payload| {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            edns
        });
        let bytes = reply(&table, STRANGER, &asked.to_vec().unwrap(), udp, None).unwrap();
        let answer = Message::from_vec(&bytes).unwrap();
        assert_eq!((answer.metadata.truncation, answer.answers.is_empty()), (cut, cut));
        assert_eq!(answer.edns.is_some(), payload.is_some());
        assert!(bytes.len() <= room, "{}", bytes.len());
    }
}

#[test]
fn past_the_limit_an_answer_is_no_longer_than_its_question() {
    for edns in [false, true] {
        let mut asked = question("web.s-aaaaaaaaaaaa.seed.example.", RecordType::TXT);
        asked.edns = edns.then(Edns::new);
        let asked = asked.to_vec().unwrap();
        let Read::Question(read) = read(&asked) else { panic!() };
        let mut out = Vec::new();
        cut(&read, &mut out);
        assert!(out.len() <= asked.len());
        let answer = Message::from_vec(&out).unwrap();
        assert!(answer.metadata.truncation && answer.answers.is_empty());
        assert_eq!(answer.edns.is_some(), edns);
    }
}

/// Whether a denial holds: the SOA, and as many NSEC records as there have to be, each signed.
fn signed(answer: &Message, nsecs: usize) {
    let of = |kind| answer.authorities.iter().filter(|record| record.record_type() == kind).count();
    assert_eq!((of(RecordType::SOA), of(RecordType::NSEC)), (1, nsecs), "{answer}");
    assert_eq!(of(RecordType::RRSIG), 1 + nsecs);
}

#[test]
fn a_signed_zone_signs_what_is_asked_for_signed() {
    let signer = Signer::new(&Signer::generate().unwrap()).unwrap();
    let table = Table::new(&zone());
    let ask = |name: &str, kind, secure: bool| {
        let mut asked = question(name, kind);
        let mut edns = Edns::new();
        edns.set_dnssec_ok(true).set_max_payload(1232);
        asked.edns = secure.then_some(edns);
        let bytes = reply(&table, STRANGER, &asked.to_vec().unwrap(), true, Some(&signer)).unwrap();
        let answer = Message::from_vec(&bytes).unwrap();
        assert!(!answer.metadata.truncation, "{name}");
        answer
    };
    assert_eq!(ask("seed.example.", RecordType::A, false).answers.len(), 1);
    for kind in [RecordType::A, RecordType::SOA, RecordType::DNSKEY, RecordType::CAA, RecordType::ANY] {
        let answer = ask("seed.example.", kind, true);
        assert_eq!((answer.answers.len(), answer.answers[1].record_type()), (2, RecordType::RRSIG), "{kind}");
    }
    signed(&ask("web.s-aaaaaaaaaaaa.seed.example.", RecordType::MX, true), 1);
    signed(&ask("s-aaaaaaaaaaaa.seed.example.", RecordType::A, true), 1);
    signed(&ask("x.y.z.seed.example.", RecordType::A, true), 2);
    signed(&ask("*.seed.example.", RecordType::A, true), 1);
}

proptest! {
    #[test]
    fn no_packet_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        for from in [STRANGER, WEB] {
            drop(reply(&Table::new(&zone()), from, &bytes, true, None));
        }
    }

    /// Packets that begin as questions do, and then go wrong; every answer is one that another implementation can read.
    #[test]
    fn every_answer_can_be_read(
        labels in proptest::collection::vec(prop_oneof![
            Just(b"web".to_vec()), Just(b"s-aaaaaaaaaaaa".to_vec()), Just(b"_acme-challenge".to_vec()),
            proptest::collection::vec(any::<u8>(), 1..=63),
        ], 0..5),
        ours in any::<bool>(),
        kind in prop_oneof![0u16..70, 250u16..260, any::<u16>()],
        rest in prop_oneof![Just(vec![0, 0, 41, 4, 0, 0, 0, 128, 0, 0, 0]), proptest::collection::vec(any::<u8>(), 0..30)],
        from in prop_oneof![Just(STRANGER), Just(WEB), Just("127.0.0.1")],
        udp in any::<bool>(),
    ) {
        let mut packet = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(!rest.is_empty())];
        for label in &labels {
            packet.push(u8::try_from(label.len()).unwrap());
            packet.extend(label);
        }
        packet.extend_from_slice(if ours { b"\x04Seed\x07eXample\0" } else { b"\0" });
        packet.extend(kind.to_be_bytes());
        packet.extend([0, 1]);
        packet.extend(rest);
        static SIGNER: std::sync::LazyLock<Signer> = std::sync::LazyLock::new(|| Signer::new(&Signer::generate().unwrap()).unwrap());
        if let Ok(bytes) = reply(&Table::new(&zone()), from, &packet, udp, Some(&SIGNER)) {
            prop_assert!(!bytes.is_empty());
            prop_assert!(!udp || bytes.len() <= UDP_MAX);
            let read = Message::from_vec(&bytes);
            prop_assert!(read.is_ok(), "{:?} {:?}", read, bytes);
        }
    }
}

#[test]
fn an_address_that_the_world_can_reach_is_told_to_it() {
    let mut zone = zone();
    let entry = ZoneEntry { ipv4: [10, 88, 0, 9].into(), ipv6: "2001:db8::9".parse().unwrap(), beside: Vec::new() };
    zone.namespaces.insert("s-cccccccccccc".into(), [("open".to_owned(), entry)].into());
    let table = Table::new(&zone);
    let ask = |name: &str, kind| {
        let asked = question(name, kind).to_vec().unwrap();
        let answer = Message::from_vec(&reply(&table, STRANGER, &asked, true, None).unwrap()).unwrap();
        answer.answers.iter().map(|record| record.data.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(ask("open.s-cccccccccccc.seed.example.", RecordType::AAAA), ["2001:db8::9"]);
    assert_eq!(ask("open.s-cccccccccccc.seed.example.", RecordType::A), ["192.0.2.1"]);
    assert_eq!(ask("web.s-aaaaaaaaaaaa.seed.example.", RecordType::AAAA), [""; 0], "one of a private prefix is not");
    // A host with an ingress at an IPv6 address of its own: who has none that the world can reach is reached there, and nobody else.
    zone.host6 = vec!["2001:db8::1".parse().unwrap()];
    let table = Table::new(&zone);
    let ask = |name: &str| {
        let asked = question(name, RecordType::AAAA).to_vec().unwrap();
        let answer = Message::from_vec(&reply(&table, STRANGER, &asked, true, None).unwrap()).unwrap();
        answer.answers.iter().map(|record| record.data.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(ask("open.s-cccccccccccc.seed.example."), ["2001:db8::9"], "its own, past the ingress");
    assert_eq!(ask("web.s-aaaaaaaaaaaa.seed.example."), ["2001:db8::1"], "the host's, where the ingress is");
}
