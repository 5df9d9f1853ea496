//! What peers may put into a tunnel: a frame of any bytes in a sound outer packet, and an outer packet that is not.

use std::cell::RefCell;

use millrace_engine::port::memory::WireFrame;
use millrace_engine::testing::{FrameBuilder, frame};

use super::{frame_of, packets, with_length};
use crate::anything::AnyNode;

thread_local! {
    static NODE: RefCell<AnyNode> = RefCell::new(AnyNode::new());
}

/// VNIs: of pods, of the bridged segment, of nobody.
const VNIS: [u32; 4] = [1, 7, 2, 0x00ff_ffff];

/// Frames, each behind a byte that says how it travels and its length in two bytes.
///
/// ```text
/// bits 0-1  VNI            bit 4     outer UDP checksum absent
/// bit 2     over IPv6      bits 5-6  VXLAN's flags: right, none, all, with a reserved word
/// bit 3     unknown peer   bit 7     a length of UDP that is not the datagram's
/// ```
///
/// # Panics
/// If the switch breaks a promise.
pub fn run(mut input: &[u8]) {
    NODE.with_borrow_mut(|node| {
        while let [choice, rest @ ..] = input
            && let Some((inner, behind)) = frame_of(rest)
        {
            node.queue(AnyNode::UPLINK, WireFrame::plain(tunnelled(*choice, inner)));
            input = behind;
        }
        node.rest();
        node.assert_whole();
    });
}

fn tunnelled(choice: u8, inner: &[u8]) -> Vec<u8> {
    let flags = [0x0800_0000, 0, 0xffff_ffff, 0x0800_0001][usize::from(choice >> 5 & 3)];
    let mut payload = u32::to_be_bytes(flags).to_vec();
    payload.extend_from_slice(&(VNIS[usize::from(choice & 3)] << 8).to_be_bytes());
    payload.extend_from_slice(inner);
    let outer = between(choice & 4 != 0, choice & 8 != 0);
    let outer = if choice & 16 != 0 { outer.udp_without_checksum() } else { outer.udp() };
    let outer = outer.ports(50_000, 8472).payload(&payload);
    if choice & 128 != 0 { outer.with_udp_length(8 + 8 + 20).build() } else { outer.build() }
}

fn between(ipv6: bool, unknown: bool) -> FrameBuilder {
    let (peer, own) = if ipv6 { ("2001:db8:f::2", "2001:db8:f::1") } else { ("192.0.2.2", "192.0.2.1") };
    let stranger = if ipv6 { "2001:db8:f::99" } else { "192.0.2.99" };
    frame().from("02:ff:00:00:00:01", if unknown { stranger } else { peer }).to("02:ff:00:00:00:02", own)
}

/// One packet of every kind as inner frame, over both families, of both segments.
#[must_use]
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let input = |bytes: Vec<u8>| {
        [0, 1, 4, 5]
            .into_iter()
            .flat_map(|choice| std::iter::once(choice).chain(with_length(&bytes)).collect::<Vec<u8>>())
            .collect()
    };
    let inner = AnyNode::inner_packets().into_iter().map(|(name, bytes)| (name.to_owned(), bytes));
    inner.chain(packets::short_packets()).map(|(name, bytes)| (name, input(bytes))).collect()
}
