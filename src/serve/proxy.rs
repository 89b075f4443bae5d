//! The header of the PROXY protocol, version 2: what stands in front of the doors and passes connections on says with it whose they are. It
//! is read on Unix sockets only, where only that can connect; on TCP anybody could say anything.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tokio::io::{AsyncRead, AsyncReadExt};

/// Why a connection does not begin as it should.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyError {
    #[error("it begins with no PROXY header of version 2")]
    Signature,
    #[error("it has version and command {0:#04x}: 0x20 and 0x21 are known")]
    Command(u8),
    #[error("it has family and protocol {0:#04x}: only TCP over IPv4 and IPv6 is passed on")]
    Family(u8),
    #[error("its addresses have {0} bytes")]
    Length(u16),
    #[error("what follows its addresses is no list of values")]
    Values,
    #[error("it ended early")]
    Ended(#[from] std::io::Error),
}

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The most that follows the first 16 bytes: addresses, and values such as a checksum or what TLS was spoken.
const LONGEST: u16 = 512;

/// Reads the header and not a byte more. Returns where the client is; `None`: whoever passes connections on speaks for itself, to see
/// whether the door is open.
pub(super) async fn client(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<IpAddr>, ProxyError> {
    let mut fixed = [0; 16];
    stream.read_exact(&mut fixed).await?;
    let length = begin(&fixed)?;
    let mut rest = vec![0; length.into()];
    stream.read_exact(&mut rest).await?;
    address(fixed[12], fixed[13], &rest)
}

/// How many bytes follow the first 16.
fn begin(fixed: &[u8; 16]) -> Result<u16, ProxyError> {
    if fixed[..12] != SIGNATURE {
        return Err(ProxyError::Signature);
    }
    let length = u16::from_be_bytes([fixed[14], fixed[15]]);
    if length > LONGEST { Err(ProxyError::Length(length)) } else { Ok(length) }
}

fn address(command: u8, family: u8, rest: &[u8]) -> Result<Option<IpAddr>, ProxyError> {
    let length = || ProxyError::Length(u16::try_from(rest.len()).unwrap_or(u16::MAX));
    match (command, family) {
        // What it holds then is to be passed over.
        (0x20, _) => Ok(None),
        (0x21, 0x11) => {
            let (addresses, values) = rest.split_at_checked(12).ok_or_else(length)?;
            check(values)?;
            let client: [u8; 4] = addresses[..4].try_into().map_err(|_| length())?;
            Ok(Some(Ipv4Addr::from(client).into()))
        }
        (0x21, 0x21) => {
            let (addresses, values) = rest.split_at_checked(36).ok_or_else(length)?;
            check(values)?;
            let client: [u8; 16] = addresses[..16].try_into().map_err(|_| length())?;
            Ok(Some(IpAddr::from(Ipv6Addr::from(client)).to_canonical()))
        }
        (0x21, other) => Err(ProxyError::Family(other)),
        (other, _) => Err(ProxyError::Command(other)),
    }
}

/// Values are a byte of kind, two of length, and so many bytes. Nothing of them is used.
fn check(mut values: &[u8]) -> Result<(), ProxyError> {
    while !values.is_empty() {
        let (head, rest) = values.split_at_checked(3).ok_or(ProxyError::Values)?;
        let length = usize::from(u16::from_be_bytes([head[1], head[2]]));
        values = rest.split_at_checked(length).ok_or(ProxyError::Values)?.1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        [&SIGNATURE[..], &[command, family], &(rest.len() as u16).to_be_bytes(), rest].concat()
    }

    /// What a stream with these bytes is read as, and what is left of it.
    fn read(bytes: &[u8]) -> (Result<Option<IpAddr>, ProxyError>, Vec<u8>) {
        let mut stream = bytes;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let read = runtime.block_on(client(&mut stream));
        (read, stream.to_vec())
    }

    fn four(client: [u8; 4]) -> Vec<u8> {
        [&client[..], &[198, 51, 100, 1, 0x30, 0x39, 0, 80]].concat()
    }

    #[test]
    fn a_header_says_where_the_client_is_and_not_a_byte_more_is_taken() {
        let v4 = header(0x21, 0x11, &four([203, 0, 113, 9]));
        let (read_as, left) = read(&[&v4[..], b"GET /"].concat());
        assert_eq!((read_as.unwrap(), left), (Some([203, 0, 113, 9].into()), b"GET /".to_vec()));
        let address: Ipv6Addr = "2001:db8::7".parse().unwrap();
        let v6 = header(0x21, 0x21, &[&address.octets()[..], &[0; 20]].concat());
        assert_eq!(read(&v6).0.unwrap(), Some(address.into()));
        let mapped: Ipv6Addr = "::ffff:203.0.113.9".parse().unwrap();
        let v6 = header(0x21, 0x21, &[&mapped.octets()[..], &[0; 20]].concat());
        assert_eq!(read(&v6).0.unwrap(), Some([203, 0, 113, 9].into()));
        assert_eq!(read(&header(0x20, 0, &[])).0.unwrap(), None, "a look whether the door is open");
        // A checksum and an authority, as HAProxy may send them.
        let values = [&[3, 0, 4, 1, 2, 3, 4][..], &[2, 0, 3], b"web"].concat();
        assert!(read(&header(0x21, 0x11, &[four([203, 0, 113, 9]), values].concat())).0.unwrap().is_some());
    }

    #[test]
    fn what_is_no_such_header_is_refused() {
        let good = header(0x21, 0x11, &four([203, 0, 113, 9]));
        for n in 0..good.len() {
            assert!(matches!(read(&good[..n]).0, Err(ProxyError::Ended(_))), "{n} bytes");
        }
        let v1 = b"PROXY TCP4 203.0.113.9 198.51.100.1 1 80\r\nGET / HTTP/1.1\r\n";
        for (bytes, why) in [
            (v1.to_vec(), "no PROXY header"),
            (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), "no PROXY header"),
            (header(0x11, 0x11, &four([1, 2, 3, 4])), "command 0x11"),
            (header(0x22, 0x11, &four([1, 2, 3, 4])), "command 0x22"),
            (header(0x21, 0x00, &[]), "protocol 0x00"),
            (header(0x21, 0x12, &four([1, 2, 3, 4])), "protocol 0x12"),
            (header(0x21, 0x31, &[0; 216]), "protocol 0x31"),
            (header(0x21, 0x11, &[0; 11]), "11 bytes"),
            (header(0x21, 0x21, &[0; 35]), "35 bytes"),
            (header(0x21, 0x11, &[0; 513]), "513 bytes"),
            (header(0x21, 0x11, &[four([1, 2, 3, 4]), vec![4, 0, 9, 1]].concat()), "no list of values"),
            (header(0x21, 0x11, &[four([1, 2, 3, 4]), vec![4, 0]].concat()), "no list of values"),
        ] {
            let text = read(&bytes).0.unwrap_err().to_string();
            assert!(text.contains(why), "{text} for {why}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_more_than_refused(
            command: u8, family in prop_oneof![Just(0x11u8), Just(0x21), any::<u8>()], rest in proptest::collection::vec(any::<u8>(), 0..600),
            cut in 0usize..700,
        ) {
            let mut bytes = header(command, family, &rest);
            bytes.truncate(cut);
            if let Ok(Some(client)) = read(&bytes).0 {
                prop_assert!(command == 0x21 && rest.len() <= LONGEST.into());
                let prefix = if family == 0x11 { IpAddr::from(<[u8; 4]>::try_from(&rest[..4]).unwrap()) } else {
                    IpAddr::from(<[u8; 16]>::try_from(&rest[..16]).unwrap()).to_canonical()
                };
                prop_assert_eq!(client, prefix);
            }
        }
    }
}
