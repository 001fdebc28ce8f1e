//! A WebSocket as a client speaks it, with none of the router's code: the upgrade and frames (RFC 6455, RFC 7118).

/// A good request for a WebSocket. `more`: whole header lines.
pub fn request(path: &str, more: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: sip.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: sip\r\n\
         Sec-WebSocket-Version: 13\r\n{more}\r\n"
    )
}

/// What the answer to it must say.
pub const ACCEPT: &str = "\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";

/// A frame of a client's; `first`: FIN, reserved bits and opcode.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        len @ 0..=125 => out.push(0x80 | len as u8),
        len @ 126..=65_535 => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    out.extend_from_slice(&mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

/// A SIP message as a client sends it.
pub fn message(sip: &[u8]) -> Vec<u8> {
    frame(0x81, sip)
}

/// One frame of a server's.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// FIN, reserved bits and opcode.
    pub first: u8,
    pub payload: Vec<u8>,
}

/// Takes the first frame of what came, once it is whole. A server's have no mask.
pub fn take(held: &mut Vec<u8>) -> Option<Frame> {
    let (&first, &short) = (held.first()?, held.get(1)?);
    assert!(short < 128, "a server masks nothing");
    let bytes = |n: usize| {
        let bytes = held.get(2..2 + n)?;
        Some((2 + n, bytes.iter().fold(0, |len, byte| len << 8 | usize::from(*byte))))
    };
    let (head, len) = match short {
        126 => bytes(2)?,
        127 => bytes(8)?,
        len => (2, usize::from(len)),
    };
    let payload = held.get(head..head + len)?.to_vec();
    held.drain(..head + len);
    Some(Frame { first, payload })
}
