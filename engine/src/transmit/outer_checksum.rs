//! The outer UDP checksum of an encapsulated packet that is no GSO unit; units get theirs when they are cut.
//!
//! Over IPv4 it is zero, as VXLAN asks (RFC 7348 section 5); over IPv6 zero is legal only between peers that agreed on
//! it (RFC 6935), so it is computed: one pass over the packet. Runs on workers, after the inner checksum is complete.

use super::field;
use super::segmentation::OuterLayout;
use crate::drop_reason::DropReason;
use crate::packet::checksum::{self, sum_from};
use crate::packet::copy_and_checksum::Kernel;
use crate::packet::parse::protocol;
use crate::packet::{FrameMemory, Packet};

/// Writes the outer UDP checksum. The outer lengths and the inner checksum must be final.
///
/// # Errors
/// [`DropReason::GsoMalformed`] if the outer headers lie outside the packet's head; the packet is unchanged.
pub fn write(
    kernel: Kernel,
    memory: &mut FrameMemory,
    packet: &mut Packet,
    outer: &OuterLayout,
) -> Result<(), DropReason> {
    let malformed = DropReason::GsoMalformed;
    let (network, udp) = (usize::from(outer.network_offset), usize::from(outer.udp_offset));
    let at = udp + field::UDP_CHECKSUM;
    memory.head(packet).get(at..at + 2).ok_or(malformed)?;
    let field = if outer.is_ipv6 {
        let head = memory.head(packet);
        let header = head.get(network..network + field::IPV6_BYTES).ok_or(malformed)?;
        let addresses = checksum::sum(&header[field::IPV6_ADDRESSES..]);
        let old = u32::from(!field::read16(head, at));
        let length = (packet.length() - udp) as u32;
        let pseudo = addresses + u32::from(protocol::UDP) + (length >> 16) + (length & 0xffff);
        checksum::finish_udp(pseudo + old + sum_from(kernel, memory, packet, udp).sum())
    } else {
        0
    };
    field::write16(memory.head_mut(packet), at, field);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::frames::{self, Segment, Shape};
    use super::*;
    use crate::packet::FrameMemoryLayout;

    proptest! {
        #[test]
        fn equals_what_etherparse_writes(
            shape in Shape::any(),
            outer_ipv6: bool,
            payload in prop::collection::vec(any::<u8>(), 0..900),
            part in 50usize..400,
            rubbish: [u8; 2],
        ) {
            let shape = Shape { outer_ipv6: Some(outer_ipv6), ..shape };
            let segment =
                Segment { flow: 1, sequence: 5, identification: 6, outer_identification: 7, flags: 0x18, payload };
            let expected = frames::frame(shape, &segment);
            let outer = shape.layout().outer.expect("tunnel");
            let mut bytes = expected.clone();
            let at = usize::from(outer.udp_offset) + 6;
            bytes[at..at + 2].copy_from_slice(&rubbish);
            let mut memory =
                FrameMemory::new(FrameMemoryLayout { head_frames: 64, big_buffers: 0 }).expect("memory");
            for kernel in Kernel::available() {
                let mut packet = frames::packet(&mut memory, &bytes, 150, part, None);
                prop_assert_eq!(write(kernel, &mut memory, &mut packet, &outer), Ok(()));
                prop_assert_eq!(frames::flat(&memory, &packet), expected.clone());
                memory.release(packet);
            }
        }
    }

    #[test]
    fn headers_outside_the_packet_are_refused() {
        let mut memory = FrameMemory::new(FrameMemoryLayout { head_frames: 64, big_buffers: 0 }).expect("memory");
        let mut packet = memory.packet_from(&[7; 60]).expect("packet");
        for (network_offset, udp_offset) in [(14, 54), (30, 50), (u16::MAX, 10), (14, u16::MAX)] {
            let outer = OuterLayout { network_offset, udp_offset, is_ipv6: true };
            assert_eq!(write(Kernel::SCALAR, &mut memory, &mut packet, &outer), Err(DropReason::GsoMalformed));
            assert_eq!(memory.head(&packet), [7; 60]);
        }
        memory.release(packet);
    }
}
