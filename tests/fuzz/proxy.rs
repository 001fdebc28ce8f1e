//! Whatever stands at the beginning of a connection of a proxy's: read in any pieces it says the same, and not a byte behind the
//! header is asked for.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidings::wire::proxy::{Broken, Header, Proxied, read};

fuzz_target!(|bytes: &[u8]| {
    let Some((&piece, stream)) = bytes.split_first() else { return };
    let whole = by_pieces(stream, usize::MAX);
    assert_eq!(by_pieces(stream, usize::from(piece).max(1)), whole);
    assert_eq!(by_pieces(stream, 1), whole);
});

/// What it says, and how many bytes were read for it. `None`: it wants more than there are.
fn by_pieces(stream: &[u8], most: usize) -> Option<Result<(Proxied, usize), Broken>> {
    let mut came = 0;
    loop {
        match read(&stream[..came]) {
            Ok(Header::More(n)) => {
                assert!(n > 0);
                if came == stream.len() {
                    return None;
                }
                came = (came + n.min(most)).min(stream.len());
            }
            Ok(Header::Whole(said)) => {
                let len = 16 + usize::from(u16::from_be_bytes([stream[14], stream[15]]));
                assert_eq!(came, len);
                return Some(Ok((said, came)));
            }
            Err(Broken) => return Some(Err(Broken)),
        }
    }
}
