//! Looking a name up in the world's DNS, by way of the host's resolvers, for what the host itself wants to know: nothing of it is kept, and
//! what is definitely not there is told apart from what could not be found out.

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
        let mut at = name.to_owned();
        for _ in 0..HOPS {
            let Some(next) = records.iter().find_map(|record| target(record, &at)) else { break };
            at = next;
        }
        let texts = records.iter().filter(|record| plain(&record.name) == at).filter_map(|record| match &record.data {
            RData::TXT(txt) => {
                let bytes: Vec<u8> = txt.txt_data.iter().flat_map(|part| part.iter().copied()).take(LONGEST).collect();
                Some(String::from_utf8_lossy(&bytes).into_owned())
            }
            _ => None,
        });
        let texts: Vec<String> = texts.take(TEXTS).collect();
        if texts.is_empty() { Looked::Nothing } else { Looked::Found(texts) }
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
        let asked = Name::from_ascii(format!("{name}.")).map_err(|error| error.to_string())?;
        let mut message = Message::query();
        message.add_query(Query::query(asked, kind));
        let packet = message.to_vec().map_err(|error| error.to_string())?;
        let Read::Question(asked) = question::read(&packet) else { return Err("it cannot be asked for".to_owned()) };
        let mut why = "this host has no resolvers".to_owned();
        for server in self.turns() {
            match Self::exchange(server, &asked).await {
                Ok(answer) => match answer.metadata.response_code {
                    ResponseCode::NoError | ResponseCode::NXDomain => return Ok(answer.answers),
                    code => why = format!("a resolver says {code}"),
                },
                Err(error) => why = error.to_string(),
            }
        }
        Err(why)
    }
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
