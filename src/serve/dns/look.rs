//! Looking a name up in the world's DNS, by way of the host's resolvers, for what the host itself wants to know: nothing of it is kept, and
//! what is definitely not there is told apart from what could not be found out.

use std::net::SocketAddr;

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType},
};

use super::{
    Names,
    forward::Resolvers,
    question::{self, Read},
};
use crate::spec::domain::{Looked, Sight};

/// CNAMEs that are followed, one after the other.
const HOPS: usize = 8;
/// Texts that are read of one name, and how much of each.
const TEXTS: usize = 16;
const LONGEST: usize = 255;

impl Names {
    /// What a tenant's own name shows to the world.
    pub async fn sight(&self, name: &str) -> Sight {
        let (txt_name, acme_name) = (format!("_seed-challenge.{name}"), format!("_acme-challenge.{name}"));
        let (cname, txt, acme) = tokio::join!(self.leads_to(name), self.texts(&txt_name), self.leads_to(&acme_name));
        Sight { cname, txt, acme }
    }

    /// The names that a name leads to by CNAMEs, up to the first of this host's own zone.
    pub async fn leads_to(&self, name: &str) -> Looked {
        let zone = self.zone_name();
        let mut names: Vec<String> = Vec::new();
        while names.len() < HOPS {
            let at = names.last().map_or(name, String::as_str);
            let target = match self.resolvers.records(at, RecordType::CNAME).await {
                Ok(records) => records.iter().find_map(|record| target(record, at)),
                Err(why) => return Looked::Unknown(why),
            };
            let Some(target) = target else { break };
            let inside = zone.as_deref().is_some_and(|zone| target.ends_with(zone));
            names.push(target);
            if inside {
                break;
            }
        }
        if names.is_empty() { Looked::Nothing } else { Looked::Found(names) }
    }

    /// The TXT records of a name, or of that which it leads to.
    async fn texts(&self, name: &str) -> Looked {
        let records = match self.resolvers.records(name, RecordType::TXT).await {
            Ok(records) => records,
            Err(why) => return Looked::Unknown(why),
        };
        let texts: Vec<String> = texts(&records, name).take(TEXTS).collect();
        if texts.is_empty() { Looked::Nothing } else { Looked::Found(texts) }
    }

    /// Whether every secondary has this TXT record already; those that do not answer have not.
    pub async fn secondaries_say(&self, name: &str, text: &str) -> bool {
        let servers = self.secondaries.iter().flat_map(|secondaries| &secondaries.servers);
        let said = servers.map(async |server| match ask(*server, name, RecordType::TXT).await {
            Ok(records) => texts(&records, name).any(|said| said == text),
            Err(_) => false,
        });
        futures_util::future::join_all(said).await.into_iter().all(|said| said)
    }

    /// The zone as names in it end, with a dot in front.
    fn zone_name(&self) -> Option<String> {
        let table = self.read();
        let (mut text, mut at) = (String::new(), 0);
        while let Some(length) = table.domain.get(at).copied().map(usize::from).filter(|length| *length > 0) {
            text.push('.');
            text.push_str(&String::from_utf8_lossy(table.domain.get(at + 1..at + 1 + length)?));
            at += 1 + length;
        }
        (!text.is_empty()).then_some(text)
    }
}

impl Resolvers {
    /// The records of an answer; none if there definitely are none.
    async fn records(&self, name: &str, kind: RecordType) -> Result<Vec<Record>, String> {
        let mut why = "this host has no resolvers".to_owned();
        for server in self.turns() {
            match ask(server, name, kind).await {
                Ok(records) => return Ok(records),
                Err(error) => why = error,
            }
        }
        Err(why)
    }
}

/// The records that one server answers with; none if there definitely are none.
async fn ask(server: SocketAddr, name: &str, kind: RecordType) -> Result<Vec<Record>, String> {
    let asked = Name::from_ascii(format!("{name}.")).map_err(|error| error.to_string())?;
    let mut message = Message::query();
    message.add_query(Query::query(asked, kind));
    let packet = message.to_vec().map_err(|error| error.to_string())?;
    let Read::Question(asked) = question::read(&packet) else { return Err("it cannot be asked for".to_owned()) };
    let answer = Resolvers::exchange(server, &asked).await.map_err(|error| error.to_string())?;
    match answer.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => Ok(answer.answers),
        code => Err(format!("a resolver says {code}")),
    }
}

/// The TXT records of a name in an answer, or of that which it leads to.
fn texts(records: &[Record], name: &str) -> impl Iterator<Item = String> {
    let mut at = name.to_owned();
    for _ in 0..HOPS {
        let Some(next) = records.iter().find_map(|record| target(record, &at)) else { break };
        at = next;
    }
    records.iter().filter(move |record| plain(&record.name) == at).filter_map(|record| match &record.data {
        RData::TXT(txt) => {
            let bytes: Vec<u8> = txt.txt_data.iter().flat_map(|part| part.iter().copied()).take(LONGEST).collect();
            Some(String::from_utf8_lossy(&bytes).into_owned())
        }
        _ => None,
    })
}

/// What `name` is a CNAME of, if this record says so.
fn target(record: &Record, name: &str) -> Option<String> {
    match &record.data {
        RData::CNAME(target) if plain(&record.name) == name => Some(plain(target)),
        _ => None,
    }
}

/// In lower case, without a final dot.
fn plain(name: &Name) -> String {
    let text = name.to_lowercase().to_ascii();
    text.strip_suffix('.').unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use hickory_proto::rr::rdata::TXT;
    use tokio::net::UdpSocket;

    use super::*;
    use crate::serve::dns::{Near, Secondaries, Settings, tsig::Key};

    #[tokio::test]
    async fn a_secondary_has_a_proof_once_it_answers_with_it() {
        let (late, at) = {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let at = socket.local_addr().unwrap();
            (socket, at)
        };
        let transferred = Arc::new(AtomicUsize::new(0));
        let has = Arc::clone(&transferred);
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            loop {
                let (length, peer) = late.recv_from(&mut buffer).await.unwrap();
                let asked = Message::from_vec(&buffer[..length]).unwrap();
                let mut answer = Message::response(asked.metadata.id, asked.metadata.op_code);
                answer.queries.clone_from(&asked.queries);
                let texts = ["old", "new"].into_iter().take(has.load(Ordering::Relaxed));
                let name = asked.queries[0].name().clone();
                answer.answers =
                    texts.map(|text| Record::from_rdata(name.clone(), 1, RData::TXT(TXT::new(vec![text.to_owned()])))).collect();
                if answer.answers.is_empty() {
                    answer.metadata.response_code = ResponseCode::NXDomain;
                }
                late.send_to(&answer.to_vec().unwrap(), peer).await.unwrap();
            }
        });
        let near = Near {
            pool4: "10.88.0.0/24".parse().unwrap(),
            pool6: "fd5e::/64".parse().unwrap(),
            gateways: Vec::new(),
            inside: Vec::new(),
        };
        let settings =
            Settings { near, upstream: Vec::new(), rate: 1, zone_key: None, secondaries: Vec::new(), transfer_key: None };
        let mut names = Names::new(settings).unwrap();
        let name = "_acme-challenge.web.s-aaaaaaaaaaaa.seed.example";
        assert!(names.secondaries_say(name, "new").await, "there is none");
        let key = Key::parse("hmac-sha256:transfer:c2VlZCBvZiBhIGtleSB0aGF0IGlzIGxvbmc=").unwrap();
        names.secondaries = Some(Secondaries { servers: vec![at], key });
        for (transfers, expected) in [(0, false), (1, false), (2, true)] {
            transferred.store(transfers, Ordering::Relaxed);
            assert_eq!(names.secondaries_say(name, "new").await, expected, "{transfers}");
        }
    }
}
