//! One answer to one question, from one view of the zone. Pure.

use std::net::IpAddr;

use hickory_proto::{
    op::{Edns, Message, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, HINFO, NS, SOA, TXT},
    },
};

use super::View;
use crate::bus::ZoneEntry;

/// How long an instance's address may be remembered, in seconds; and that a name does not exist.
const TTL: u32 = 30;
/// The same for what belongs to the host itself.
const HOST_TTL: u32 = 3600;
/// The most that travels in one UDP packet without being cut on its way.
const UDP_MAX: u16 = 1232;

/// How a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// What to do about a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Message(Vec<u8>),
    /// Ask the host's resolvers.
    Forward,
    /// It was no question.
    Nothing,
}

/// Answers `question`, the bytes of a message that came from `from`.
pub fn answer(view: &View, from: IpAddr, question: &[u8], transport: Transport) -> Answer {
    // Never answer an answer: two servers could keep each other busy for ever.
    if question.len() < 12 || question[2] & 0x80 != 0 {
        return Answer::Nothing;
    }
    let Ok(asked) = Message::from_vec(question) else { return encode(&error(question, ResponseCode::FormErr), UDP_MAX) };
    let mut answer = Message::response(asked.metadata.id, asked.metadata.op_code);
    answer.metadata.recursion_desired = asked.metadata.recursion_desired;
    let mut room = 512;
    if let Some(edns) = &asked.edns {
        let mut ours = Edns::new();
        ours.set_max_payload(UDP_MAX).set_version(0);
        room = edns.max_payload().clamp(512, UDP_MAX);
        if edns.version() > 0 {
            ours.set_rcode_high(ResponseCode::BADVERS.high());
            answer.metadata.response_code = ResponseCode::BADVERS;
        }
        answer.edns = Some(ours);
    }
    if transport == Transport::Tcp {
        room = u16::MAX;
    }
    if answer.metadata.response_code == ResponseCode::NoError {
        match (asked.metadata.op_code, asked.queries.as_slice()) {
            (OpCode::Query, [query]) => {
                answer.queries.push(query.clone());
                let owner = view.owners.get(&from);
                answer.metadata.recursion_available = owner.is_some();
                if resolve(view, owner.map(String::as_str), query, &mut answer) {
                    return Answer::Forward;
                }
            }
            (OpCode::Query, _) => answer.metadata.response_code = ResponseCode::FormErr,
            _ => answer.metadata.response_code = ResponseCode::NotImp,
        }
    }
    encode(&answer, room)
}

/// The answer to a question that could not be answered.
pub fn failed(question: &[u8]) -> Option<Vec<u8>> {
    let asked = Message::from_vec(question).ok()?;
    let mut answer = error(question, ResponseCode::ServFail);
    answer.metadata.recursion_desired = asked.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.queries = asked.queries;
    match encode(&answer, UDP_MAX) {
        Answer::Message(bytes) => Some(bytes),
        Answer::Forward | Answer::Nothing => None,
    }
}

fn error(question: &[u8], code: ResponseCode) -> Message {
    Message::error_msg(u16::from_be_bytes([question[0], question[1]]), OpCode::Query, code)
}

fn encode(answer: &Message, room: u16) -> Answer {
    let encoded = match answer.to_vec() {
        Ok(bytes) if bytes.len() > room.into() => answer.truncate().to_vec(),
        encoded => encoded,
    };
    match encoded {
        Ok(bytes) => Answer::Message(bytes),
        Err(error) => {
            tracing::warn!(%error, "could not write an answer");
            Answer::Nothing
        }
    }
}

/// What there is under a name.
enum Found<'a> {
    Apex,
    /// `ns1`, `silo`
    Host,
    /// A namespace: there is something below it.
    Empty,
    Instance(&'a ZoneEntry),
    /// A proof for a certificate authority.
    Texts(&'a [String]),
    Nothing,
}

/// Fills in the answer to one query. True if it should be forwarded instead.
fn resolve(view: &View, owner: Option<&str>, query: &Query, answer: &mut Message) -> bool {
    let refuse = |answer: &mut Message, code| {
        answer.metadata.response_code = code;
        false
    };
    if !matches!(query.query_class(), DNSClass::IN | DNSClass::ANY) {
        return refuse(answer, ResponseCode::Refused);
    }
    if matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR) {
        return refuse(answer, ResponseCode::Refused);
    }
    let Some(domain) = &view.domain else { return refuse(answer, ResponseCode::ServFail) };
    let name = query.name().to_lowercase();
    let labels: Vec<&[u8]> = name.iter().collect();

    // A bare name means the asker's own namespace, wherever the zone is.
    if let (Some(owner), [label]) = (owner, labels.as_slice()) {
        let entry = std::str::from_utf8(label).ok().and_then(|label| view.zone.namespaces.get(owner)?.get(label));
        answer.metadata.authoritative = true;
        match entry {
            Some(entry) => addresses(answer, query, &[entry.ipv4], &[entry.ipv6], TTL),
            None => answer.metadata.response_code = ResponseCode::NXDomain,
        }
        return false;
    }
    if !domain.zone_of(&name) {
        return if owner.is_some() { true } else { refuse(answer, ResponseCode::Refused) };
    }

    answer.metadata.authoritative = true;
    let below = &labels[..labels.len() - usize::from(domain.num_labels())];
    let zone = &view.zone;
    let challenge = || zone.challenges.get(name.to_ascii().trim_end_matches('.'));
    let found = match find(view, below) {
        Found::Nothing => challenge().map_or(Found::Nothing, |texts| Found::Texts(texts)),
        found => found,
    };
    match found {
        Found::Nothing => answer.metadata.response_code = ResponseCode::NXDomain,
        Found::Empty => {}
        Found::Instance(entry) => addresses(answer, query, &[entry.ipv4], &[entry.ipv6], TTL),
        Found::Host => addresses(answer, query, &zone.host4, &zone.host6, HOST_TTL),
        Found::Texts(texts) => {
            if query.query_type() == RecordType::TXT {
                let record = |text: &String| Record::from_rdata(query.name().clone(), 0, RData::TXT(TXT::new(vec![text.clone()])));
                answer.answers.extend(texts.iter().map(record));
            }
        }
        Found::Apex => match query.query_type() {
            RecordType::SOA => answer.answers.push(soa(view, query.name())),
            RecordType::NS => {
                if let Ok(server) = domain.prepend_label("ns1") {
                    answer.answers.push(Record::from_rdata(query.name().clone(), HOST_TTL, RData::NS(NS(server.clone()))));
                    answer.additionals.extend(records(&server, &zone.host4, &zone.host6, HOST_TTL));
                }
            }
            _ => addresses(answer, query, &zone.host4, &zone.host6, HOST_TTL),
        },
    }
    if answer.answers.is_empty() {
        let mut soa = soa(view, domain);
        soa.ttl = TTL;
        answer.authorities.push(soa);
    }
    false
}

fn find<'a>(view: &'a View, below: &[&[u8]]) -> Found<'a> {
    let text = |label: &[u8]| std::str::from_utf8(label).unwrap_or("\u{0}").to_owned();
    let namespaces = &view.zone.namespaces;
    match below {
        [] => Found::Apex,
        [b"ns1" | b"silo"] => Found::Host,
        [namespace] if namespaces.contains_key(&text(namespace)) => Found::Empty,
        [instance, namespace] => {
            let entry = namespaces.get(&text(namespace)).and_then(|instances| instances.get(&text(instance)));
            entry.map_or(Found::Nothing, Found::Instance)
        }
        _ => Found::Nothing,
    }
}

/// Adds what was asked for of some addresses. To ANY the answer is as short as RFC 8482 has it.
fn addresses(answer: &mut Message, query: &Query, v4: &[std::net::Ipv4Addr], v6: &[std::net::Ipv6Addr], ttl: u32) {
    let name = query.name();
    match query.query_type() {
        RecordType::A => answer.answers.extend(records(name, v4, &[], ttl)),
        RecordType::AAAA => answer.answers.extend(records(name, &[], v6, ttl)),
        RecordType::ANY => {
            let hinfo = HINFO::new("RFC8482".to_owned(), String::new());
            answer.answers.push(Record::from_rdata(name.clone(), HOST_TTL, RData::HINFO(hinfo)));
        }
        _ => {}
    }
}

fn records(name: &Name, v4: &[std::net::Ipv4Addr], v6: &[std::net::Ipv6Addr], ttl: u32) -> Vec<Record> {
    let v4 = v4.iter().map(|address| RData::A(A(*address)));
    let v6 = v6.iter().map(|address| RData::AAAA(AAAA(*address)));
    v4.chain(v6).map(|data| Record::from_rdata(name.clone(), ttl, data)).collect()
}

fn soa(view: &View, name: &Name) -> Record {
    let domain = view.domain.clone().unwrap_or_else(Name::root);
    let below = |label: &str| domain.prepend_label(label).unwrap_or_else(|_| domain.clone());
    let serial = view.zone.serial;
    let minimum = TTL;
    let data = SOA::new(below("ns1"), below("hostmaster"), serial, 3600, 600, 604_800, minimum);
    let mut record = Record::from_rdata(name.clone(), HOST_TTL, RData::SOA(data));
    record.dns_class = DNSClass::IN;
    record
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use hickory_proto::op::MessageType;

    use crate::bus::Zone;

    const STRANGER: &str = "198.51.100.1";
    const WEB: &str = "10.88.0.2";

    fn view() -> View {
        let entry = |n: u8| ZoneEntry { ipv4: [10, 88, 0, n].into(), ipv6: format!("fd5e::{n}").parse().unwrap() };
        let mut zone = Zone { serial: 7, domain: "seed.example".into(), host4: vec![[192, 0, 2, 1].into()], ..Zone::default() };
        zone.namespaces.insert("s-aaaaaaaaaaaa".into(), [("web".to_owned(), entry(2)), ("api".to_owned(), entry(3))].into());
        zone.namespaces.insert("s-bbbbbbbbbbbb".into(), [("db".to_owned(), entry(4))].into());
        View::new(zone)
    }

    fn ask(from: &str, name: &str, kind: RecordType) -> Option<Message> {
        let mut asked = Message::query();
        asked.queries.push(Query::query(Name::from_ascii(name).unwrap(), kind));
        match answer(&view(), from.parse().unwrap(), &asked.to_vec().unwrap(), Transport::Udp) {
            Answer::Message(bytes) => Some(Message::from_vec(&bytes).unwrap()),
            Answer::Forward => None,
            Answer::Nothing => panic!("no answer"),
        }
    }

    #[test]
    fn the_zone_is_answered() {
        use RecordType as T;
        use ResponseCode as R;
        // name, type, code, answers, whether a SOA says that there is none
        let table = [
            ("seed.example.", T::SOA, R::NoError, vec!["SOA"], false),
            ("seed.example.", T::NS, R::NoError, vec!["ns1.seed.example."], false),
            ("seed.example.", T::A, R::NoError, vec!["192.0.2.1"], false),
            ("seed.example.", T::AAAA, R::NoError, vec![], true),
            ("seed.example.", T::MX, R::NoError, vec![], true),
            ("SEED.example.", T::A, R::NoError, vec!["192.0.2.1"], false),
            ("silo.seed.example.", T::A, R::NoError, vec!["192.0.2.1"], false),
            ("ns1.seed.example.", T::A, R::NoError, vec!["192.0.2.1"], false),
            ("web.s-aaaaaaaaaaaa.seed.example.", T::A, R::NoError, vec!["10.88.0.2"], false),
            ("Web.S-aaaaaaaaaaaa.seed.example.", T::AAAA, R::NoError, vec!["fd5e::2"], false),
            ("web.s-aaaaaaaaaaaa.seed.example.", T::TXT, R::NoError, vec![], true),
            ("web.s-aaaaaaaaaaaa.seed.example.", T::ANY, R::NoError, vec!["HINFO"], false),
            ("s-aaaaaaaaaaaa.seed.example.", T::A, R::NoError, vec![], true),
            ("s-cccccccccccc.seed.example.", T::A, R::NXDomain, vec![], true),
            ("db.s-aaaaaaaaaaaa.seed.example.", T::A, R::NXDomain, vec![], true),
            ("a.web.s-aaaaaaaaaaaa.seed.example.", T::A, R::NXDomain, vec![], true),
            ("seed.example.", T::AXFR, R::Refused, vec![], false),
            ("example.", T::A, R::Refused, vec![], false),
            ("notseed.example.", T::A, R::Refused, vec![], false),
            ("web.", T::A, R::Refused, vec![], false),
            (".", T::NS, R::Refused, vec![], false),
        ];
        for (name, kind, code, expected, negative) in table {
            let answer = ask(STRANGER, name, kind).unwrap();
            assert_eq!(answer.metadata.response_code, code, "{name} {kind}");
            assert_eq!(answer.metadata.authoritative, code != R::Refused, "{name} {kind}");
            assert!(!answer.metadata.recursion_available);
            assert_eq!(answer.queries[0].name().to_ascii(), name, "the question's letters are kept");
            let got: Vec<String> = answer
                .answers
                .iter()
                .map(|record| match &record.data {
                    RData::SOA(_) => "SOA".into(),
                    RData::HINFO(_) => "HINFO".into(),
                    data => data.to_string(),
                })
                .collect();
            assert_eq!(got, expected, "{name} {kind}");
            assert_eq!(answer.authorities.iter().any(|record| record.record_type() == T::SOA), negative, "{name} {kind}");
            assert!(answer.authorities.iter().all(|record| record.ttl == TTL));
        }
    }

    #[test]
    fn an_instance_sees_its_namespace_and_the_world() {
        for (name, expected) in [("web.", Some("10.88.0.2")), ("API.", Some("10.88.0.3")), ("db.", None), ("localhost.", None)] {
            let answer = ask(WEB, name, RecordType::A).unwrap();
            assert_eq!(answer.answers.first().map(|record| record.data.to_string()).as_deref(), expected, "{name}");
            assert_eq!(answer.metadata.response_code == ResponseCode::NXDomain, expected.is_none());
            assert!(answer.metadata.recursion_available);
        }
        assert_eq!(ask("fd5e::2", "api.", RecordType::AAAA).unwrap().answers[0].data.to_string(), "fd5e::3");
        assert_eq!(ask("fd5e::4", "api.", RecordType::AAAA).unwrap().metadata.response_code, ResponseCode::NXDomain);
        assert!(ask(WEB, "example.org.", RecordType::A).is_none(), "is forwarded");
        assert!(ask(WEB, "db.s-bbbbbbbbbbbb.seed.example.", RecordType::A).is_some(), "is ours");
    }

    #[test]
    fn odd_messages_get_the_code_they_deserve() {
        let stranger: IpAddr = STRANGER.parse().unwrap();
        let code = |message: &Message| match answer(&view(), stranger, &message.to_vec().unwrap(), Transport::Udp) {
            Answer::Message(bytes) => Some(Message::from_vec(&bytes).unwrap()),
            Answer::Forward | Answer::Nothing => None,
        };
        let query = Query::query(Name::from_ascii("seed.example.").unwrap(), RecordType::A);
        let mut response = Message::response(1, OpCode::Query);
        response.queries.push(query.clone());
        assert!(code(&response).is_none(), "answers are not answered");
        let mut two = Message::query();
        two.queries.extend([query.clone(), query.clone()]);
        assert_eq!(code(&two).unwrap().metadata.response_code, ResponseCode::FormErr);
        let mut update = Message::new(3, MessageType::Query, OpCode::Update);
        update.queries.push(query.clone());
        assert_eq!(code(&update).unwrap().metadata.response_code, ResponseCode::NotImp);
        let mut new = Message::query();
        new.queries.push(query.clone());
        let mut edns = Edns::new();
        edns.set_version(1).set_max_payload(4096);
        new.edns = Some(edns);
        let answered = code(&new).unwrap();
        assert_eq!(answered.edns.as_ref().unwrap().rcode_high(), ResponseCode::BADVERS.high());
        assert_eq!(answered.edns.unwrap().max_payload(), UDP_MAX);
        let mut chaos = Message::query();
        chaos.queries.push(query);
        chaos.queries[0].set_query_class(DNSClass::CH);
        assert_eq!(code(&chaos).unwrap().metadata.response_code, ResponseCode::Refused);
        assert!(matches!(answer(&View::default(), stranger, &new.to_vec().unwrap(), Transport::Udp), Answer::Message(_)));
    }

    #[test]
    fn what_does_not_fit_is_cut_and_said_so() {
        let mut zone = view().zone;
        zone.host4 = (0..100).map(|n| [192, 0, 2, n].into()).collect();
        let view = View::new(zone);
        let mut asked = Message::query();
        asked.queries.push(Query::query(Name::from_ascii("seed.example.").unwrap(), RecordType::A));
        for (transport, cut) in [(Transport::Udp, true), (Transport::Tcp, false)] {
            let Answer::Message(bytes) = answer(&view, STRANGER.parse().unwrap(), &asked.to_vec().unwrap(), transport) else {
                panic!()
            };
            assert_eq!(Message::from_vec(&bytes).unwrap().metadata.truncation, cut);
            assert_eq!(bytes.len() <= 512, cut);
        }
    }

    proptest! {
        #[test]
        fn no_packet_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            answer(&view(), STRANGER.parse().unwrap(), &bytes, Transport::Udp);
            answer(&view(), WEB.parse().unwrap(), &bytes, Transport::Tcp);
            failed(&bytes);
        }
    }
}
