//! Packets of SFTP, version 3: what everybody speaks.

use tokio_util::bytes::{Buf, BufMut, Bytes, BytesMut};

/// The longest packet, as OpenSSH has it.
const MAX_PACKET: usize = 256 << 10;

pub const INIT: u8 = 1;
pub const VERSION: u8 = 2;
pub const OPEN: u8 = 3;
pub const LSTAT: u8 = 7;
pub const SETSTAT: u8 = 9;
pub const OPENDIR: u8 = 11;
pub const REMOVE: u8 = 13;
pub const MKDIR: u8 = 14;
pub const RMDIR: u8 = 15;
pub const REALPATH: u8 = 16;
pub const STAT: u8 = 17;
pub const RENAME: u8 = 18;
pub const READLINK: u8 = 19;
pub const SYMLINK: u8 = 20;
pub const CLOSE: u8 = 4;
pub const READ: u8 = 5;
pub const WRITE: u8 = 6;
pub const READDIR: u8 = 12;
pub const STATUS: u8 = 101;
pub const HANDLE: u8 = 102;
pub const DATA: u8 = 103;
pub const NAME: u8 = 104;
pub const ATTRS: u8 = 105;
pub const EXTENDED: u8 = 200;

pub const OK: u32 = 0;
pub const EOF: u32 = 1;
pub const NO_SUCH_FILE: u32 = 2;
pub const PERMISSION_DENIED: u32 = 3;
pub const FAILURE: u32 = 4;
pub const UNSUPPORTED: u32 = 8;

/// Packets out of a stream of bytes.
#[derive(Debug, Default)]
pub struct Packets(BytesMut);

impl Packets {
    pub fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next packet without its length, if it is there whole. `Err` if what is there is none.
    pub fn next(&mut self) -> Result<Option<Bytes>, ()> {
        let Some(head) = self.0.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*head) as usize;
        if length == 0 || length > MAX_PACKET {
            return Err(());
        }
        if self.0.len() < 4 + length {
            return Ok(None);
        }
        self.0.advance(4);
        Ok(Some(self.0.split_to(length).freeze()))
    }
}

/// A packet, with its length before it.
pub fn packet(kind: u8, body: &[u8]) -> Bytes {
    let mut made = BytesMut::with_capacity(5 + body.len());
    made.put_u32(1 + body.len() as u32);
    made.put_u8(kind);
    made.put_slice(body);
    made.freeze()
}

/// Appends a string.
pub fn string(into: &mut BytesMut, text: &[u8]) {
    into.put_u32(text.len() as u32);
    into.put_slice(text);
}

/// Takes a string off the front.
pub fn take<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u32::from_be_bytes(*from.first_chunk()?) as usize;
    let text = from.get(4..4usize.checked_add(length)?)?;
    *from = &from[4 + length..];
    Some(text)
}
