//! The signature of a message with a key that two servers share (TSIG, RFC 8945), with HMAC-SHA256. Nothing else may take the whole zone.

use aws_lc_rs::hmac;

use super::{
    question::{Question, code, kind, record, skip_name},
    table::wire,
};

/// How far two clocks may be apart, in seconds.
const FUDGE: u16 = 300;
const ALGORITHM: &[u8] = b"\x0bhmac-sha256\0";
const BAD_SIG: u16 = 16;
const BAD_KEY: u16 = 17;
const BAD_TIME: u16 = 18;

/// A key and its name.
pub struct Key {
    name: Box<[u8]>,
    key: hmac::Key,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({})", String::from_utf8_lossy(&self.name))
    }
}

/// A message as it was before it was signed, and what its signature says.
struct Signed {
    message: Vec<u8>,
    mac: Vec<u8>,
    time: u64,
    fudge: u16,
    error: u16,
    other: Vec<u8>,
}

/// What the answer to a signed message has to be signed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The signature of the message before this one.
    mac: Vec<u8>,
    first: bool,
}

/// Why a signature does not count. The answer says so, and is signed only if the clocks are all that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unproven {
    error: u16,
    proof: Option<Proof>,
}

impl Key {
    /// Reads a key as `kdig -y` and `dig -y` take it: `hmac-sha256:NAME:SECRET`, the secret in base64. Lines that begin with # or are empty
    /// are passed over. The error says what to write.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let (Some(line), None) = (lines.next(), lines.next()) else {
            return Err(
                "holds no line or more than one: write hmac-sha256:NAME:SECRET, as `tsig-keygen` and `keymgr -t` make them",
            );
        };
        let mut parts = line.split(':');
        let (Some("hmac-sha256"), Some(name), Some(secret), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err("holds no key: write hmac-sha256:NAME:SECRET");
        };
        let secret = data_encoding::BASE64.decode(secret.as_bytes()).map_err(|_| "holds a key whose secret is no base64")?;
        if secret.len() < 16 {
            return Err("holds a key of less than 16 bytes: make a longer one, as in `openssl rand -base64 32`");
        }
        let name = wire(name).ok_or("holds a key whose name is no DNS name")?;
        Ok(Self { name, key: hmac::Key::new(hmac::HMAC_SHA256, &secret) })
    }

    /// What is signed besides the message.
    fn variables(&self, time: u64, fudge: u16, error: u16, other: &[u8]) -> Vec<u8> {
        let length = u16::try_from(other.len()).unwrap_or(0);
        let class = [0, 255, 0, 0, 0, 0];
        let parts: [&[u8]; 8] = [
            &self.name,
            &class,
            ALGORITHM,
            &time.to_be_bytes()[2..],
            &fudge.to_be_bytes(),
            &error.to_be_bytes(),
            &length.to_be_bytes(),
            other,
        ];
        parts.concat()
    }

    /// Checks the signature of a question. `now` is in seconds since 1970.
    pub fn verify(&self, asked: &Question<'_>, now: u64) -> Result<Proof, Unproven> {
        let unproven = |error| Unproven { error, proof: None };
        self.read(asked).map_or(Err(unproven(BAD_KEY)), |Signed { message, mac, time, fudge, error, other }| {
            let signed = [message, self.variables(time, fudge, error, &other)].concat();
            if hmac::verify(&self.key, &signed, &mac).is_err() {
                return Err(unproven(BAD_SIG));
            }
            let proof = Proof { mac, first: true };
            if now.abs_diff(time) > u64::from(fudge.min(FUDGE)) {
                return Err(Unproven { error: BAD_TIME, proof: Some(proof) });
            }
            Ok(proof)
        })
    }

    /// What was signed, and the signature. `None` if it is of another key.
    fn read(&self, asked: &Question<'_>) -> Option<Signed> {
        let (packet, at) = (asked.packet, asked.tsig?);
        let placed = record(packet, at)?;
        let name = packet.get(at..skip_name(packet, at)?)?.to_ascii_lowercase();
        let data = &packet[placed.data..placed.end];
        let rest =
            data.get(..ALGORITHM.len()).filter(|name| name.eq_ignore_ascii_case(ALGORITHM)).map(|name| &data[name.len()..])?;
        if *name != *self.name || placed.class != 255 || placed.ttl != 0 || rest.len() < 16 {
            return None;
        }
        let number = |at: usize| rest.get(at..at + 2).map(|word| u16::from_be_bytes([word[0], word[1]]));
        let time = rest[..6].iter().fold(0, |time, byte| time << 8 | u64::from(*byte));
        let length = usize::from(number(8)?);
        let mac = rest.get(10..10 + length)?.to_vec();
        let id = rest.get(10 + length..12 + length)?;
        let other = rest.get(16 + length..)?;
        if usize::from(number(14 + length)?) != other.len() {
            return None;
        }
        let mut message = packet[..at].to_vec();
        message[..2].copy_from_slice(id);
        let count = u16::from_be_bytes([message[10], message[11]]).checked_sub(1)?;
        message[10..12].copy_from_slice(&count.to_be_bytes());
        Some(Signed { message, mac, time, fudge: number(6)?, error: number(12 + length)?, other: other.to_vec() })
    }

    /// Signs an answer, and keeps the signature for the next of the same stream.
    pub fn sign(&self, proof: &mut Proof, message: &mut Vec<u8>, now: u64) {
        self.append(Some(proof), message, now, 0);
    }

    /// Writes why a signature did not count at the end of an answer.
    pub fn refuse(&self, unproven: &mut Unproven, message: &mut Vec<u8>, now: u64) {
        let error = unproven.error;
        self.append(unproven.proof.as_mut(), message, now, error);
    }

    /// Signs a question of ours.
    pub fn sign_first(&self, message: &mut Vec<u8>, now: u64) {
        let mac = hmac::sign(&self.key, &[message, &self.variables(now, FUDGE, 0, &[])[..]].concat());
        self.write(message, mac.as_ref(), now, 0, &[]);
    }

    fn append(&self, proof: Option<&mut Proof>, message: &mut Vec<u8>, now: u64, error: u16) {
        let other = if error == BAD_TIME { now.to_be_bytes()[2..].to_vec() } else { Vec::new() };
        let mac = match proof {
            Some(proof) => {
                let length = u16::try_from(proof.mac.len()).unwrap_or(0);
                let end = if proof.first {
                    self.variables(now, FUDGE, error, &other)
                } else {
                    [&now.to_be_bytes()[2..], &FUDGE.to_be_bytes()[..]].concat()
                };
                let signed = [&length.to_be_bytes()[..], &proof.mac, message, &end].concat();
                proof.mac = hmac::sign(&self.key, &signed).as_ref().to_vec();
                proof.first = false;
                proof.mac.clone()
            }
            None => Vec::new(),
        };
        self.write(message, &mac, now, error, &other);
    }

    fn write(&self, message: &mut Vec<u8>, mac: &[u8], now: u64, error: u16, other: &[u8]) {
        let id = [message[0], message[1]];
        let number = |length: usize| u16::try_from(length).unwrap_or(0).to_be_bytes();
        let data = [
            ALGORITHM,
            &now.to_be_bytes()[2..],
            &FUDGE.to_be_bytes(),
            &number(mac.len()),
            mac,
            &id,
            &error.to_be_bytes(),
            &number(other.len()),
            other,
        ]
        .concat();
        message.extend_from_slice(&self.name);
        message.extend(kind::TSIG.to_be_bytes());
        message.extend([0, 255, 0, 0, 0, 0]);
        message.extend(number(data.len()));
        message.extend(data);
        let count = u16::from_be_bytes([message[10], message[11]]) + 1;
        message[10..12].copy_from_slice(&count.to_be_bytes());
    }
}

/// The code of an answer to a question whose signature does not count.
pub const CODE: u16 = code::NOT_AUTH;
/// How long a signature is at most, with its record.
pub const ROOM: usize = 400;
