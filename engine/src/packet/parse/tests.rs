//! Each reject, each prefix, many mutations, and the same answers as etherparse.

mod accepts;
mod differential;
mod mutations;
mod rejects;

use super::*;

/// Whether the offsets of an accepted frame lie in order, inside the head, and inside the packet.
fn assert_inside(headers: &Headers, head: &[u8], length: usize, name: &str) {
    let (network, transport, payload) =
        (headers.network_offset as usize, headers.transport_offset as usize, headers.payload_offset as usize);
    let end = network + headers.network_length as usize;
    let inside = network <= transport && transport <= payload && payload <= head.len() && payload <= end;
    assert!(inside && end <= length, "{name}: head {}, length {length}: {headers:?}", head.len());
}
