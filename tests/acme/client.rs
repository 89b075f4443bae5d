//! A client of our own, that can come from any address and do everything wrong.

use std::{
    io::{Read, Write},
    net::Ipv4Addr,
    time::Duration,
};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use serde_json::{Value, json};

use crate::world::World;

pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    head: String,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines();
        lines
            .find_map(|line| line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()))
    }
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
    /// The type of the problem, without what all begin with; empty if it is none.
    pub fn problem(&self) -> String {
        if self.header("content-type") != Some("application/problem+json") {
            return String::new();
        }
        let value = self.json();
        assert_eq!(value["status"], self.status, "{value}");
        value["type"].as_str().unwrap().strip_prefix("urn:ietf:params:acme:error:").unwrap().to_owned()
    }
    #[track_caller]
    pub fn ok(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }
}

/// A client with its key.
pub struct Client {
    pub from: Ipv4Addr,
    pub base: String,
    pub port: u16,
    pub key: Ed25519KeyPair,
    pub account: Option<String>,
}

impl Client {
    /// One that comes from an address. The first tenant's is 127.0.0.1, the second's 127.0.0.2.
    pub fn new(world: &World, from: [u8; 4]) -> Self {
        let key = Ed25519KeyPair::generate().unwrap();
        Self { from: from.into(), base: format!("http://127.0.0.1:{}", world.port), port: world.port, key, account: None }
    }

    /// The same with an account.
    pub fn registered(world: &World, from: [u8; 4]) -> Self {
        let mut client = Self::new(world, from);
        client.register().ok(201);
        client
    }

    pub fn send(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> Answer {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.port,
            body.len()
        );
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let stream = runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind((self.from, 0).into()).unwrap();
            socket.connect((Ipv4Addr::LOCALHOST, self.port).into()).await.unwrap().into_std().unwrap()
        });
        let mut stream = stream;
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut text = Vec::new();
        // A door that hangs up says nothing.
        drop(stream.write_all(&[head.as_bytes(), body].concat()));
        drop(stream.read_to_end(&mut text));
        let text = String::from_utf8_lossy(&text).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Answer { status, head: head.to_owned(), body: body.to_owned() }
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "text/plain", b"")
    }

    pub fn nonce(&self) -> String {
        self.send("HEAD", "/acme/new-nonce", "text/plain", b"").header("replay-nonce").unwrap().to_owned()
    }

    pub fn jwk(key: &Ed25519KeyPair) -> Value {
        json!({ "kty": "OKP", "crv": "Ed25519", "x": encode(key.public_key().as_ref()) })
    }

    /// A JWS with exactly this header.
    pub fn sign(key: &Ed25519KeyPair, header: &Value, payload: &str) -> Value {
        let (protected, payload) = (encode(header.to_string()), encode(payload));
        let signature = encode(key.sign(format!("{protected}.{payload}").as_bytes()));
        json!({ "protected": protected, "payload": payload, "signature": signature })
    }

    /// The header of a good request.
    pub fn header(&self, url: &str) -> Value {
        let mut header = json!({ "alg": "EdDSA", "nonce": self.nonce(), "url": url });
        match &self.account {
            Some(account) => header["kid"] = json!(account),
            None => header["jwk"] = Self::jwk(&self.key),
        }
        header
    }

    /// A good request, where `url` is whole. An empty payload is POST-as-GET.
    pub fn post(&self, url: &str, payload: &str) -> Answer {
        let body = Self::sign(&self.key, &self.header(url), payload);
        self.post_body(url, &body.to_string())
    }

    pub fn post_body(&self, url: &str, body: &str) -> Answer {
        self.send("POST", url.strip_prefix(&self.base).unwrap(), "application/jose+json", body.as_bytes())
    }

    pub fn at(&self, resource: &str) -> String {
        format!("{}/acme/{resource}", self.base)
    }

    pub fn register(&mut self) -> Answer {
        self.account = None;
        let payload = json!({ "termsOfServiceAgreed": true, "contact": ["mailto:ann@x.example"] });
        let answer = self.post(&self.at("new-account"), &payload.to_string());
        self.account = answer.header("location").map(str::to_owned);
        answer
    }

    pub fn order(&self, names: &[&str]) -> Answer {
        let names: Vec<Value> = names.iter().map(|name| json!({ "type": "dns", "value": name })).collect();
        self.post(&self.at("new-order"), &json!({ "identifiers": names }).to_string())
    }

    pub fn finalize(&self, order: &str, names: &[&str], key: &KeyPair) -> Answer {
        let mut csr = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        csr.distinguished_name = DistinguishedName::new();
        let csr = csr.serialize_request(key).unwrap();
        self.post(&format!("{order}/finalize"), &json!({ "csr": encode(csr.der()) }).to_string())
    }

    /// Asks for an order until it is over.
    pub fn finish(&self, order: &str) -> Value {
        for _ in 0..12 {
            let answer = self.post(order, "");
            if answer.status == 200 && answer.json()["status"] != "processing" {
                return answer.json();
            }
            // An agent that was killed is back in a moment.
            std::thread::sleep(Duration::from_millis(if answer.status == 200 { 0 } else { 500 }));
        }
        panic!("{order} never ended")
    }

    /// All of it: the chain for `name`.
    pub fn certificate(&self, name: &str, key: &KeyPair) -> String {
        let order = self.order(&[name]).ok(201).header("location").unwrap().to_owned();
        self.finalize(&order, &[name], key).ok(200);
        let done = self.finish(&order);
        assert_eq!(done["status"], "valid", "{done}");
        self.post(done["certificate"].as_str().unwrap(), "").ok(200).body
    }
}
