//! The DNS of the world, as a resolver shows it: what a test makes it say of names outside, and Seed's own word on those of its zone.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, UdpSocket},
    sync::{Arc, Mutex},
    time::Duration,
};

use hickory_proto::{
    op::{Message, OpCode, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{CNAME, TXT},
    },
};

/// What is said of one name.
#[derive(Debug, Clone)]
pub enum Said {
    Cname(String),
    Txt(Vec<String>),
    /// As `Txt`, but over TCP only: over UDP there is no room.
    LongTxt(Vec<String>),
    Code(ResponseCode),
    /// Somebody else answers first, with this text and a wrong id, then of another name; the true answer is that there is nothing.
    Forged(String),
    Silence,
}

pub struct Dns {
    said: Arc<Mutex<BTreeMap<String, Said>>>,
    pub at: SocketAddr,
}

struct Server {
    said: Arc<Mutex<BTreeMap<String, Said>>>,
    /// Seed's own DNS.
    seed: SocketAddr,
}

impl Dns {
    pub fn new(seed: SocketAddr) -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()) {
                break (udp, tcp);
            }
        };
        let (said, at) = (Arc::<Mutex<BTreeMap<String, Said>>>::default(), udp.local_addr().unwrap());
        let server = Arc::new(Server { said: said.clone(), seed });
        let of_udp = server.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                let (server, udp, packet) = (of_udp.clone(), udp.try_clone().unwrap(), buffer[..length].to_vec());
                std::thread::spawn(move || {
                    for answer in server.answers(&packet, true) {
                        udp.send_to(&answer, from).unwrap();
                    }
                });
            }
        });
        std::thread::spawn(move || {
            for mut stream in tcp.incoming().map_while(Result::ok) {
                let mut length = [0; 2];
                stream.read_exact(&mut length).unwrap();
                let mut packet = vec![0; u16::from_be_bytes(length).into()];
                stream.read_exact(&mut packet).unwrap();
                for answer in server.answers(&packet, false) {
                    stream.write_all(&[&(answer.len() as u16).to_be_bytes()[..], &answer].concat()).unwrap();
                }
            }
        });
        Self { said, at }
    }

    pub fn say(&self, name: &str, said: Said) {
        self.said.lock().unwrap().insert(name.to_owned(), said);
    }

    pub fn cname(&self, name: &str, target: &str) {
        self.say(name, Said::Cname(target.to_owned()));
    }

    pub fn forget(&self, name: &str) {
        self.said.lock().unwrap().remove(name);
    }
}

fn plain(name: &Name) -> String {
    name.to_lowercase().to_ascii().trim_end_matches('.').to_owned()
}

fn full(name: &str) -> Name {
    Name::from_ascii(format!("{name}.")).unwrap()
}

impl Server {
    fn answers(&self, packet: &[u8], udp: bool) -> Vec<Vec<u8>> {
        let asked = Message::from_vec(packet).unwrap();
        let query = asked.queries[0].clone();
        let mut answer = Message::response(asked.metadata.id, OpCode::Query);
        answer.add_query(query.clone());
        answer.metadata.recursion_desired = true;
        answer.metadata.recursion_available = true;
        answer.metadata.response_code = ResponseCode::NXDomain;
        let (mut at, kind) = (plain(query.name()), query.query_type());
        let txt = |text: &str| RData::TXT(TXT::new(vec![text.to_owned()]));
        for _ in 0..20 {
            if at.ends_with("seed.example") {
                let inside = self.ask_seed(&at, kind);
                answer.metadata.response_code = inside.metadata.response_code;
                answer.answers.extend(inside.answers);
                break;
            }
            let said = self.said.lock().unwrap().get(&at).cloned();
            let Some(said) = said else { break };
            answer.metadata.response_code = ResponseCode::NoError;
            match said {
                Said::Cname(target) => {
                    answer.add_answer(Record::from_rdata(full(&at), 1, RData::CNAME(CNAME(full(&target)))));
                    if kind == RecordType::CNAME {
                        break;
                    }
                    at = target;
                    continue;
                }
                Said::LongTxt(_) if udp => answer.metadata.truncation = true,
                Said::Txt(texts) | Said::LongTxt(texts) if kind == RecordType::TXT => {
                    answer.answers.extend(texts.iter().map(|text| Record::from_rdata(full(&at), 1, txt(text))));
                }
                Said::Txt(_) | Said::LongTxt(_) => {}
                Said::Code(code) => answer.metadata.response_code = code,
                Said::Silence => return Vec::new(),
                Said::Forged(text) => {
                    let mut false_id = answer.clone();
                    false_id.metadata.id = answer.metadata.id.wrapping_add(1);
                    false_id.add_answer(Record::from_rdata(full(&at), 1, txt(&text)));
                    let mut of_another = answer.clone();
                    of_another.queries = vec![Query::query(full("other.example"), kind)];
                    of_another.add_answer(Record::from_rdata(full(&at), 1, txt(&text)));
                    // It also answers with a record of a name that was not asked for.
                    answer.add_answer(Record::from_rdata(full("other.example"), 1, txt(&text)));
                    return [false_id, of_another, answer].iter().map(|message| message.to_vec().unwrap()).collect();
                }
            }
            break;
        }
        vec![answer.to_vec().unwrap()]
    }

    fn ask_seed(&self, name: &str, kind: RecordType) -> Message {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut message = Message::query();
        message.add_query(Query::query(full(name), kind));
        socket.send_to(&message.to_vec().unwrap(), self.seed).unwrap();
        let mut buffer = [0; 4096];
        match socket.recv(&mut buffer) {
            Ok(length) => Message::from_vec(&buffer[..length]).unwrap(),
            Err(_) => {
                let mut silent = Message::response(message.metadata.id, OpCode::Query);
                silent.metadata.response_code = ResponseCode::ServFail;
                silent
            }
        }
    }
}
