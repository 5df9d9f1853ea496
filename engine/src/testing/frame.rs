//! The packet builder's words; `assemble.rs` turns them into bytes.
//!
//! ```
//! use millrace_engine::testing::{SYN, describe, frame};
//! let syn = frame()
//!     .from("02:00:5e:00:53:05", "10.1.0.5")
//!     .to("02:00:5e:00:53:01", "10.96.0.10")
//!     .tcp(SYN)
//!     .ports(40000, 80)
//!     .build();
//! assert_eq!(describe(&syn), "tcp syn 10.1.0.5:40000 > 10.96.0.10:80");
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet::{Mac, parse::ethertype};
use crate::port::memory::WireFrame;

/// What a MAC address can be given as.
pub trait ToMac {
    /// The address.
    fn to_mac(self) -> Mac;
}

impl ToMac for Mac {
    fn to_mac(self) -> Mac {
        self
    }
}

impl ToMac for &str {
    fn to_mac(self) -> Mac {
        self.parse().unwrap_or_else(|error| panic!("{error}"))
    }
}

/// What an IP address can be given as.
pub trait ToAddress {
    /// The address.
    fn to_address(self) -> IpAddr;
}

impl ToAddress for IpAddr {
    fn to_address(self) -> IpAddr {
        self
    }
}

impl ToAddress for Ipv4Addr {
    fn to_address(self) -> IpAddr {
        self.into()
    }
}

impl ToAddress for Ipv6Addr {
    fn to_address(self) -> IpAddr {
        self.into()
    }
}

impl ToAddress for &str {
    fn to_address(self) -> IpAddr {
        self.parse().unwrap_or_else(|error| panic!("{self:?}: {error}"))
    }
}

/// What lies behind the IP header.
#[derive(Clone, Debug)]
pub(super) enum Transport {
    Tcp { flags: u8, sequence: u32, acknowledgement: u32, options: Vec<u8> },
    Udp { zero_checksum: bool },
    Sctp { tag: u32 },
    Icmp { kind: u8, code: u8, rest: [u8; 4] },
    Raw { protocol: u8 },
    Arp { operation: u16, target: Option<Ipv4Addr> },
    Ethernet { ethertype: u16 },
}

/// An IPv6 extension header, in the order of the calls.
#[derive(Clone, Debug)]
pub(super) enum Extension {
    Options { number: u8, body: Vec<u8> },
    Authentication { words: u8 },
    Fragment { offset: u16, more: bool },
}

/// A frame being described.
#[derive(Clone, Debug)]
#[must_use]
pub struct FrameBuilder {
    pub(super) source_mac: Mac,
    pub(super) destination_mac: Option<Mac>,
    pub(super) source: IpAddr,
    pub(super) destination: Option<IpAddr>,
    pub(super) tags: Vec<(u16, u16)>,
    pub(super) ttl: u8,
    pub(super) traffic_class: u8,
    pub(super) identification: u32,
    pub(super) dont_fragment: bool,
    pub(super) fragment: Option<(u16, bool)>,
    pub(super) options: Vec<u8>,
    pub(super) extensions: Vec<Extension>,
    pub(super) transport: Transport,
    pub(super) ports: (u16, u16),
    pub(super) payload: Vec<u8>,
    pub(super) ip_length: Option<u16>,
    pub(super) udp_length: Option<u16>,
    pub(super) bad_checksum: bool,
    pub(super) bad_ip_checksum: bool,
    pub(super) partial: bool,
    pub(super) gso: Option<u16>,
    pub(super) ecn: bool,
    pub(super) pad_to: usize,
    pub(super) cut_at: usize,
}

/// A frame with documentation addresses and an empty UDP datagram, to be changed by calls.
pub fn frame() -> FrameBuilder {
    FrameBuilder {
        source_mac: Mac([2, 0, 0x5e, 0, 0x53, 1]),
        destination_mac: None,
        source: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        destination: None,
        tags: Vec::new(),
        ttl: 64,
        traffic_class: 0,
        identification: 0,
        dont_fragment: false,
        fragment: None,
        options: Vec::new(),
        extensions: Vec::new(),
        transport: Transport::Udp { zero_checksum: false },
        ports: (40_000, 80),
        payload: Vec::new(),
        ip_length: None,
        udp_length: None,
        bad_checksum: false,
        bad_ip_checksum: false,
        partial: false,
        gso: None,
        ecn: false,
        pad_to: 0,
        cut_at: usize::MAX,
    }
}

impl FrameBuilder {
    /// Who sends; the address decides between IPv4 and IPv6.
    pub fn from(mut self, mac: impl ToMac, address: impl ToAddress) -> Self {
        (self.source_mac, self.source) = (mac.to_mac(), address.to_address());
        self
    }

    /// Who receives.
    pub fn to(mut self, mac: impl ToMac, address: impl ToAddress) -> Self {
        (self.destination_mac, self.destination) = (Some(mac.to_mac()), Some(address.to_address()));
        self
    }

    /// Adds an 802.1Q tag behind those that are there.
    pub fn vlan(self, id: u16) -> Self {
        self.tag(ethertype::VLAN, id)
    }

    /// Adds an 802.1ad service tag and an 802.1Q customer tag.
    pub fn qinq(self, service: u16, customer: u16) -> Self {
        self.tag(ethertype::QINQ, service).vlan(customer)
    }

    /// Adds a tag of any protocol, with all of its control information.
    pub fn tag(mut self, protocol: u16, control: u16) -> Self {
        self.tags.push((protocol, control));
        self
    }

    /// TTL or hop limit; else 64, and 255 for neighbour discovery.
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// DSCP and ECN.
    pub fn traffic_class(mut self, traffic_class: u8) -> Self {
        self.traffic_class = traffic_class;
        self
    }

    /// IPv4 identification, also that of IPv6 fragment headers.
    pub fn identification(mut self, identification: u32) -> Self {
        self.identification = identification;
        self
    }

    /// Sets IPv4 "don't fragment".
    pub fn dont_fragment(mut self) -> Self {
        self.dont_fragment = true;
        self
    }

    /// IPv4 options, a multiple of four bytes.
    pub fn options(mut self, options: &[u8]) -> Self {
        assert!(options.len().is_multiple_of(4) && options.len() <= 40, "IPv4 options come in words, up to ten");
        self.options = options.to_vec();
        self
    }

    /// Marks the packet as one fragment at `offset` bytes. One with an offset carries the payload without any
    /// layer-4 header. For IPv6 the fragment header comes behind the extension headers named before this call.
    pub fn fragment(mut self, offset: u16, more: bool) -> Self {
        assert!(offset.is_multiple_of(8), "fragment offsets are multiples of eight");
        self.fragment = Some((offset, more));
        if self.source.is_ipv6() {
            self.extensions.push(Extension::Fragment { offset, more });
        }
        self
    }

    /// Adds an IPv6 extension header of the options form (hop-by-hop, routing, destination) with this body, which is
    /// padded to a whole header with zeros.
    pub fn extension(mut self, number: u8, body: &[u8]) -> Self {
        self.extensions.push(Extension::Options { number, body: body.to_vec() });
        self
    }

    /// Adds an IPv6 authentication header with `words` 32-bit words of integrity value.
    pub fn authentication(mut self, words: u8) -> Self {
        self.extensions.push(Extension::Authentication { words });
        self
    }

    /// A TCP segment with these flags.
    pub fn tcp(mut self, flags: u8) -> Self {
        self.transport = Transport::Tcp { flags, sequence: 1000, acknowledgement: 0, options: Vec::new() };
        self
    }

    /// Sequence and acknowledgement number of a TCP segment.
    pub fn sequence(mut self, number: u32, acknowledged: u32) -> Self {
        let Transport::Tcp { sequence, acknowledgement, .. } = &mut self.transport else { panic!("not TCP") };
        (*sequence, *acknowledgement) = (number, acknowledged);
        self
    }

    /// TCP options, a multiple of four bytes.
    pub fn tcp_options(mut self, bytes: &[u8]) -> Self {
        assert!(bytes.len().is_multiple_of(4) && bytes.len() <= 40, "TCP options come in words, up to ten");
        let Transport::Tcp { options, .. } = &mut self.transport else { panic!("not TCP") };
        *options = bytes.to_vec();
        self
    }

    /// A UDP datagram.
    pub fn udp(mut self) -> Self {
        self.transport = Transport::Udp { zero_checksum: false };
        self
    }

    /// A UDP datagram without a checksum.
    pub fn udp_without_checksum(mut self) -> Self {
        self.transport = Transport::Udp { zero_checksum: true };
        self
    }

    /// An SCTP packet with this verification tag; the payload is its chunks.
    pub fn sctp(mut self, tag: u32) -> Self {
        self.transport = Transport::Sctp { tag };
        self
    }

    /// Source and destination port; else 40000 and 80.
    pub fn ports(mut self, source: u16, destination: u16) -> Self {
        self.ports = (source, destination);
        self
    }

    /// An ICMP or ICMPv6 message: the four bytes behind the checksum are `rest`, the payload follows.
    pub fn icmp(mut self, kind: u8, code: u8, rest: [u8; 4]) -> Self {
        self.transport = Transport::Icmp { kind, code, rest };
        self
    }

    /// An echo request.
    pub fn echo_request(self, identifier: u16, sequence: u16) -> Self {
        let kind = if self.source.is_ipv6() { 128 } else { 8 };
        self.icmp(kind, 0, echo_rest(identifier, sequence))
    }

    /// An echo reply.
    pub fn echo_reply(self, identifier: u16, sequence: u16) -> Self {
        let kind = if self.source.is_ipv6() { 129 } else { 0 };
        self.icmp(kind, 0, echo_rest(identifier, sequence))
    }

    /// An ICMP or ICMPv6 Time Exceeded about the untagged frame `about`.
    pub fn time_exceeded(self, about: &[u8]) -> Self {
        let kind = if self.source.is_ipv6() { 3 } else { 11 };
        self.icmp(kind, 0, [0; 4]).quote(about)
    }

    /// An ICMP or ICMPv6 Destination Unreachable about the untagged frame `about`.
    pub fn unreachable(self, code: u8, about: &[u8]) -> Self {
        let kind = if self.source.is_ipv6() { 1 } else { 3 };
        self.icmp(kind, code, [0; 4]).quote(about)
    }

    /// A Fragmentation Needed or Packet Too Big about the untagged frame `about`.
    pub fn too_big(self, mtu: u16, about: &[u8]) -> Self {
        let [high, low] = mtu.to_be_bytes();
        let (kind, code) = if self.source.is_ipv6() { (2, 0) } else { (3, 4) };
        self.icmp(kind, code, [0, 0, high, low]).quote(about)
    }

    fn quote(self, about: &[u8]) -> Self {
        let longest = if self.source.is_ipv6() { 1280 - 48 } else { 576 - 28 };
        let packet = &about[14..];
        self.payload(&packet[..packet.len().min(longest)])
    }

    /// An ARP request for `address`, to everybody unless a receiver is named.
    pub fn arp_request(mut self, address: impl ToAddress) -> Self {
        let IpAddr::V4(target) = address.to_address() else { panic!("ARP is for IPv4") };
        self.transport = Transport::Arp { operation: 1, target: Some(target) };
        self
    }

    /// An ARP reply by the sender to the receiver.
    pub fn arp_reply(mut self) -> Self {
        self.transport = Transport::Arp { operation: 2, target: None };
        self
    }

    /// A neighbour solicitation for `address`, to its solicited-node group unless a receiver is named. An
    /// unspecified sender probes for duplicates.
    pub fn nd_solicitation(mut self, address: impl ToAddress) -> Self {
        let IpAddr::V6(target) = address.to_address() else { panic!("ND is for IPv6") };
        let octets = target.octets();
        let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, octets[13], octets[14], octets[15]]);
        self.destination.get_or_insert(group.into());
        self.destination_mac.get_or_insert(Mac([0x33, 0x33, 0xff, octets[13], octets[14], octets[15]]));
        self.payload = octets.to_vec();
        if !self.source.is_unspecified() {
            self.payload.extend_from_slice(&[1, 1]);
            self.payload.extend_from_slice(&self.source_mac.0);
        }
        self.ttl(255).icmp(135, 0, [0; 4])
    }

    /// A solicited, overriding neighbour advertisement: the sender's MAC address has `address`.
    pub fn nd_advertisement(mut self, address: impl ToAddress) -> Self {
        let IpAddr::V6(target) = address.to_address() else { panic!("ND is for IPv6") };
        self.payload = target.octets().to_vec();
        self.payload.extend_from_slice(&[2, 1]);
        self.payload.extend_from_slice(&self.source_mac.0);
        self.ttl(255).icmp(136, 0, [0x60, 0, 0, 0])
    }

    /// Any other layer-4 protocol; the payload follows the IP header at once.
    pub fn protocol(mut self, protocol: u8) -> Self {
        self.transport = Transport::Raw { protocol };
        self
    }

    /// No IP at all: the payload follows the Ethernet header.
    pub fn ethertype(mut self, ethertype: u16) -> Self {
        self.transport = Transport::Ethernet { ethertype };
        self
    }

    /// The payload.
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// A payload of `length` bytes that differ from their neighbours.
    pub fn payload_of(mut self, length: usize) -> Self {
        self.payload = (0..length).map(|number| (number % 251) as u8).collect();
        self
    }

    /// Puts the frame as it is so far into a VXLAN packet; `outer` says from whom to whom. Later calls speak of the
    /// outer packet. Port 4789 unless `outer` named ports; the outer UDP checksum is zero over IPv4, computed over
    /// IPv6.
    pub fn inside_vxlan(self, vni: u32, mut outer: FrameBuilder) -> FrameBuilder {
        let mut payload = vec![8, 0, 0, 0];
        payload.extend_from_slice(&(vni << 8).to_be_bytes());
        payload.extend_from_slice(&self.build());
        if outer.ports == frame().ports {
            outer.ports = (49_152, 4789);
        }
        outer.payload = payload;
        outer.transport = Transport::Udp { zero_checksum: outer.source.is_ipv4() };
        outer
    }

    /// The IP length field says this.
    pub fn with_ip_length(mut self, length: u16) -> Self {
        self.ip_length = Some(length);
        self
    }

    /// The UDP length field says this.
    pub fn with_udp_length(mut self, length: u16) -> Self {
        self.udp_length = Some(length);
        self
    }

    /// The layer-4 checksum is wrong.
    pub fn with_bad_checksum(mut self) -> Self {
        self.bad_checksum = true;
        self
    }

    /// The IPv4 header checksum is wrong.
    pub fn with_bad_ip_checksum(mut self) -> Self {
        self.bad_ip_checksum = true;
        self
    }

    /// The layer-4 checksum field holds the pseudo-header sum, as a kernel with checksum offload leaves it.
    pub fn partial_checksum(mut self) -> Self {
        self.partial = true;
        self
    }

    /// Makes the frame a GSO unit with `size` payload bytes a segment; its checksum is partial.
    pub fn gso(mut self, size: u16) -> Self {
        self.gso = Some(size);
        self.partial_checksum()
    }

    /// Says in the GSO metadata that CWR goes on the first segment only.
    pub fn gso_ecn(mut self) -> Self {
        self.ecn = true;
        self
    }

    /// Appends zeros up to this length, as a NIC does up to 60 bytes.
    pub fn padded_to(mut self, length: usize) -> Self {
        self.pad_to = length;
        self
    }

    /// Keeps only the first `length` bytes.
    pub fn cut_at(mut self, length: usize) -> Self {
        self.cut_at = length;
        self
    }

    /// The frame's bytes.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        self.assemble().bytes
    }

    /// The frame as a memory port takes it, with checksum and GSO metadata.
    #[must_use]
    pub fn wire(&self) -> WireFrame {
        let assembled = self.assemble();
        let partial_checksum = self.partial.then(|| (assembled.transport_offset as u16, self.checksum_offset() as u16));
        WireFrame { bytes: assembled.bytes, partial_checksum, gso: self.gso_metadata() }
    }
}

fn echo_rest(identifier: u16, sequence: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (identifier.to_be_bytes(), sequence.to_be_bytes());
    [a, b, c, d]
}
