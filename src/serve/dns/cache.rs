//! What the host's resolvers have answered, for as long as they said. All instances share it.
#![allow(
    clippy::disallowed_types,
    reason = "names are looked up for strangers, in one step whatever they chose; nothing is printed from here"
)]

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::question::{Question, code, kind, record};

/// Answers that are kept, and how long each may be.
const KEPT: usize = 4096;
const LONGEST: usize = 4096;
/// How long at most: for answers, and for there being none, in seconds.
const AT_MOST: u32 = 86_400;
const NOTHING_AT_MOST: u32 = 300;

/// An answer of a resolver, without EDNS.
#[derive(Debug)]
pub struct Answer {
    pub bytes: Vec<u8>,
    /// Where TTLs stand.
    ttls: Vec<u16>,
    /// How long it may be kept, in seconds; 0: not at all.
    pub good: u32,
}

/// Answers by the name, type and class that were asked for, and whether signatures were wanted and checked.
#[derive(Debug, Default)]
pub struct Cache(Mutex<HashMap<Box<[u8]>, (u64, Arc<Answer>)>>);

/// What an answer depends on.
pub fn key(asked: &Question<'_>) -> Box<[u8]> {
    let secure = u8::from(asked.edns.is_some_and(|edns| edns.secure));
    // "Do not check": whoever asks so is told what others are not.
    let unchecked = asked.packet[3] & 0x10;
    let [k0, k1] = asked.kind.to_be_bytes();
    let [c0, c1] = asked.class.to_be_bytes();
    [asked.name.wire(), &[k0, k1, c0, c1, secure | unchecked]].concat().into()
}

impl Answer {
    /// Reads an answer that is whole and has no EDNS. `None` if it is broken.
    pub fn new(bytes: Vec<u8>) -> Option<Self> {
        let count = |at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        if bytes.len() < 12 || count(4) != 1 {
            return None;
        }
        let mut at = super::question::skip_name(&bytes, 12)? + 4;
        let (mut ttls, mut good, mut soa) = (Vec::new(), AT_MOST, None);
        for n in 0..count(6) + count(8) + count(10) {
            let placed = record(&bytes, at)?;
            ttls.push(u16::try_from(placed.ttl_at).ok()?);
            good = good.min(placed.ttl);
            if placed.kind == kind::SOA && n >= count(6) {
                let minimum = bytes.get(placed.end.checked_sub(4)?..placed.end)?;
                soa = Some(placed.ttl.min(u32::from_be_bytes(minimum.try_into().ok()?)));
            }
            at = placed.end;
        }
        if count(6) == 0 {
            // Without a SOA nobody has said how long there is nothing.
            good = soa.unwrap_or(0).min(NOTHING_AT_MOST);
        }
        let said = u16::from(bytes[3] & 0xf);
        if !matches!(said, code::NO_ERROR | code::NX_DOMAIN) || bytes[2] & 2 != 0 || bytes.len() > LONGEST {
            good = 0;
        }
        (at == bytes.len()).then_some(Self { bytes, ttls, good })
    }

    /// The answer `age` seconds later.
    pub fn aged(&self, age: u32) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        for at in self.ttls.iter().map(|at| usize::from(*at)) {
            if let Some(place) = bytes.get_mut(at..at + 4) {
                let ttl = place.iter().fold(0, |ttl, byte| ttl << 8 | u32::from(*byte));
                place.copy_from_slice(&ttl.saturating_sub(age).to_be_bytes());
            }
        }
        bytes
    }
}

impl Cache {
    /// An answer that is still good, and its age. `now` is in seconds and does not go back.
    pub fn get(&self, key: &[u8], now: u64) -> Option<(Arc<Answer>, u32)> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, answer) = all.get(key)?;
        let age = u32::try_from(now.saturating_sub(*at)).unwrap_or(u32::MAX);
        if age >= answer.good {
            all.remove(key);
            return None;
        }
        Some((Arc::clone(answer), age))
    }

    /// Keeps an answer. When there are too many, those go first that have become too old, then whichever.
    pub fn put(&self, key: Box<[u8]>, answer: Arc<Answer>, now: u64) {
        if answer.good == 0 {
            return;
        }
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= KEPT {
            all.retain(|_, (at, answer)| now.saturating_sub(*at) < answer.good.into());
            let surplus: Vec<Box<[u8]>> = all.keys().take((all.len() + KEPT / 8).saturating_sub(KEPT)).cloned().collect();
            surplus.iter().for_each(|key| drop(all.remove(key)));
        }
        all.insert(key, (now, answer));
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::{Message, Query, ResponseCode},
        rr::{Name, RData, Record, RecordType, rdata},
    };

    use super::*;

    fn answer(answers: &[u32], soa: Option<(u32, u32)>, code: ResponseCode) -> Answer {
        let name = Name::from_ascii("www.example.org.").unwrap();
        let mut message = Message::response(7, hickory_proto::op::OpCode::Query);
        message.metadata.response_code = code;
        message.queries.push(Query::query(name.clone(), RecordType::A));
        let a = |ttl: &u32| Record::from_rdata(name.clone(), *ttl, RData::A(rdata::A([203, 0, 113, 1].into())));
        message.answers = answers.iter().map(a).collect();
        message.authorities = soa
            .map(|(ttl, minimum)| {
                let data = rdata::SOA::new(name.clone(), name.clone(), 1, 2, 3, 4, minimum);
                Record::from_rdata(name.clone(), ttl, RData::SOA(data))
            })
            .into_iter()
            .collect();
        Answer::new(message.to_vec().unwrap()).unwrap()
    }

    #[test]
    fn an_answer_is_kept_as_long_as_it_says() {
        use ResponseCode as R;
        assert_eq!(answer(&[60, 30], None, R::NoError).good, 30);
        assert_eq!(answer(&[], Some((900, 20)), R::NXDomain).good, 20);
        assert_eq!(answer(&[], Some((900, 900)), R::NoError).good, 300);
        assert_eq!(answer(&[], None, R::NXDomain).good, 0);
        assert_eq!(answer(&[60], None, R::ServFail).good, 0);
        let (cache, kept) = (Cache::default(), Arc::new(answer(&[60, 30], None, R::NoError)));
        cache.put(Box::from(*b"k"), Arc::clone(&kept), 1000);
        let (found, age) = cache.get(b"k", 1029).unwrap();
        let ttls: Vec<u32> = Message::from_vec(&found.aged(age)).unwrap().answers.iter().map(|record| record.ttl).collect();
        assert_eq!(ttls, [31, 1]);
        assert!(cache.get(b"k", 1030).is_none() && cache.get(b"k", 1001).is_none());
        for n in 0..2 * KEPT {
            cache.put(n.to_be_bytes().into(), Arc::clone(&kept), 1000);
        }
        assert!(cache.0.lock().unwrap().len() <= KEPT);
        assert!(cache.get(&(2 * KEPT - 1).to_be_bytes(), 1001).is_some(), "the newest");
        assert!(Answer::new(vec![0; 11]).is_none());
    }
}
