//! A flood with somebody else's address on it, and who is not held to the limit for it.

use hickory_proto::{
    op::{Edns, Message, Query},
    rr::{
        Name, RecordType,
        rdata::opt::{EdnsCode, EdnsOption},
    },
};

use super::*;

fn names() -> Names {
    let near =
        Near { pool4: "10.88.0.0/24".parse().unwrap(), pool6: "fd5e::/64".parse().unwrap(), gateways: vec![], inside: vec![] };
    let settings = Settings { near, upstream: vec![], rate: 10, zone_key: None, secondaries: vec![], transfer_key: None };
    let names = Names::new(settings).unwrap();
    let host4 = (0..60).map(|n| [192, 0, 2, n].into()).collect();
    names.take(&Zone { serial: 1, domain: "seed.example".into(), host4, ..Zone::default() });
    names
}

fn question(cookie: Option<&[u8]>) -> Vec<u8> {
    let mut asked = Message::query();
    asked.queries.push(Query::query(Name::from_ascii("seed.example.").unwrap(), RecordType::A));
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    if let Some(cookie) = cookie {
        edns.options_mut().insert(EdnsOption::Unknown(EdnsCode::Cookie.into(), cookie.to_vec()));
    }
    asked.edns = Some(edns);
    asked.to_vec().unwrap()
}

#[test]
fn past_the_limit_nobody_is_sent_more_than_was_sent_in_his_name() {
    let (names, mut limiter, now) = (names(), Limiter::new(10), Now { millis: 7, seconds: 1_800_000_000 });
    let table = names.read();
    let mut say = |packet: &[u8], host: u8| {
        let mut out = Vec::new();
        names.over_udp(&table, packet, [198, 51, 100, host].into(), &mut limiter, now, &mut out);
        out
    };
    let plain = question(None);
    let (mut sent, mut came, mut cut) = (0, 0, 0);
    for turn in 0..1000u32 {
        let answer = say(&plain, turn.to_le_bytes()[0]);
        if turn < 50 {
            assert!(answer.len() > 900, "a burst is answered in full");
            continue;
        }
        came += plain.len();
        sent += answer.len();
        if let Ok(message) = Message::from_vec(&answer) {
            assert!(message.metadata.truncation);
            cut += 1;
        }
        // What is no question gets nothing at all.
        assert!(say(&plain[..20], 1).is_empty());
    }
    assert!(sent <= came, "{sent} bytes for {came}");
    assert!(cut > 400, "over TCP it could ask again: {cut}");
    // Who has a cookie of ours has shown that he is there; a cookie that he made himself shows nothing.
    let made_up = question(Some(&[9; 24]));
    assert!((0..10).all(|_| say(&made_up, 1).len() <= made_up.len()));
    let good = names.cookies.bake([9; 8], [198, 51, 100, 1].into(), now.cookie());
    assert!((0..100).all(|_| say(&question(Some(&good)), 1).len() > 900));
    assert!(say(&question(Some(&good)), 2).len() < 100, "it is another's");
    // Whoever is inside cannot pretend.
    let mut out = Vec::new();
    for _ in 0..100 {
        names.over_udp(&table, &plain, [127, 0, 0, 1].into(), &mut limiter, now, &mut out);
        assert!(out.len() > 900);
    }
}
