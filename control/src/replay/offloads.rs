//! What a pod's interface leaves to others, read back out of captured frames.
//!
//! A capture taken at a pod's interface has frames as the pod's kernel handed them over: TCP units longer than the MTU, and
//! checksums that hold the pseudo header's sum only. The file does not say so, so it is told from the frame: what is longer
//! than the interface's MTU was a unit of segments that fill the MTU; a TCP or UDP checksum that is just the pseudo header's
//! sum was to be completed. Only for ports of that kind: what comes off a wire is complete.

use millrace_engine::packet::checksum::{fold, pseudo_header_v4, pseudo_header_v6};
use millrace_engine::packet::parse::{flag, parse};
use millrace_engine::packet::{Gso, GsoKind, Headers, Network};
use millrace_engine::port::memory::WireFrame;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// The frame with its metadata; `mtu` is that of a port whose sender leaves work to it, `None` for wires.
pub(super) fn read_back(bytes: &[u8], mtu: Option<u32>) -> WireFrame {
    let plain = WireFrame::plain(bytes.to_vec());
    let headers = parse(bytes, bytes.len()).ok().filter(|headers| headers.flags & flag::FRAGMENT == 0);
    match (mtu, headers) {
        (Some(mtu), Some(headers)) => with_metadata(plain, &headers, mtu),
        _ => plain,
    }
}

fn with_metadata(mut frame: WireFrame, headers: &Headers, mtu: u32) -> WireFrame {
    let start = headers.transport_offset;
    let transport = headers.network_length - u32::from(start - headers.network_offset);
    let sum = match headers.network {
        Network::Ipv4 => {
            let address = |bytes: &[u8; 16]| [bytes[0], bytes[1], bytes[2], bytes[3]];
            let (source, destination) = (address(&headers.source), address(&headers.destination));
            pseudo_header_v4(source, destination, headers.protocol, transport)
        }
        Network::Ipv6 => pseudo_header_v6(&headers.source, &headers.destination, headers.protocol, transport),
        _ => return frame,
    };
    let (offset, kind) = match (headers.protocol, headers.network) {
        (TCP, Network::Ipv4) => (16, Some(GsoKind::TcpIpv4)),
        (TCP, _) => (16, Some(GsoKind::TcpIpv6)),
        (UDP, _) => (6, None),
        _ => return frame,
    };
    let Some(field) = frame.bytes.get_mut(usize::from(start + offset)..usize::from(start + offset) + 2) else {
        return frame;
    };
    let sum = fold(u64::from(sum)).to_be_bytes();
    let before_payload = u32::from(headers.payload_offset - headers.network_offset);
    let size = mtu.checked_sub(before_payload).and_then(|size| u16::try_from(size).ok()).filter(|size| *size > 0);
    frame.gso = match (kind, size) {
        (Some(kind), Some(size)) if headers.network_length > mtu => Some(Gso { kind, size, ecn: false }),
        _ => None,
    };
    if frame.gso.is_some() || *field == sum {
        field.copy_from_slice(&sum);
        frame.partial_checksum = Some((start, offset));
    }
    frame
}

#[cfg(test)]
mod tests {
    use millrace_engine::testing::{ACK, FrameBuilder, frame};

    use super::*;

    fn packet() -> FrameBuilder {
        frame().from("02:00:00:00:00:01", "10.1.0.5").to("02:00:00:00:00:02", "10.1.0.6").tcp(ACK).ports(1, 2)
    }

    #[test]
    fn units_and_partial_checksums_come_back_as_they_were_sent() {
        let unit = packet().payload_of(4_000).gso(1_410).wire();
        assert_eq!(read_back(&unit.bytes, Some(1_450)), unit);
        // A capture may have completed the checksum: it is a unit all the same.
        assert_eq!(read_back(&packet().payload_of(4_000).build(), Some(1_450)), unit);
        let partial = packet().payload_of(100).partial_checksum().wire();
        assert_eq!(read_back(&partial.bytes, Some(1_450)), partial);
        let datagram = frame().udp().ports(1, 2).payload_of(9).partial_checksum().wire();
        assert_eq!(read_back(&datagram.bytes, Some(1_450)), datagram);
    }

    #[test]
    fn complete_frames_and_those_of_wires_stay_as_they_are() {
        for bytes in [packet().payload_of(100).build(), packet().payload_of(4_000).fragment(0, true).build()] {
            assert_eq!(read_back(&bytes, Some(1_450)), WireFrame::plain(bytes.clone()));
        }
        let long = packet().payload_of(4_000).build();
        assert_eq!(read_back(&long, None), WireFrame::plain(long.clone()));
        let cut = packet().cut_at(30).build();
        assert_eq!(read_back(&cut, Some(1_450)), WireFrame::plain(cut.clone()));
    }
}
