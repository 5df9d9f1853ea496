//! Why a packet was dropped: the one list from which counters, trace, CLI, metrics and docs are made.

macro_rules! drop_reasons {
    ($($variant:ident $name:literal $sentence:literal $next:literal;)+) => {
        /// Why the switch dropped a packet. Order is stable within a release; names are stable across releases.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason { $(#[doc = $sentence] $variant,)+ }

        impl DropReason {
            /// All reasons, in order of their number.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)+];

            /// The stable name: what counters, metrics labels and `-o json` print.
            #[must_use]
            pub const fn name(self) -> &'static str { match self { $(DropReason::$variant => $name,)+ } }

            /// What happened, in one sentence.
            #[must_use]
            pub const fn sentence(self) -> &'static str { match self { $(DropReason::$variant => $sentence,)+ } }

            /// What an operator checks next.
            #[must_use]
            pub const fn next_step(self) -> &'static str { match self { $(DropReason::$variant => $next,)+ } }
        }
    };
}

drop_reasons! {
    EthernetTruncated "ethernet_truncated" "The frame ends inside its Ethernet or VLAN header." "Look at the sending interface; a healthy one pads to 60 bytes.";
    VlanTooDeep "vlan_too_deep" "The frame carries more than two VLAN tags." "Millrace reads 802.1Q and QinQ; remove the further tags.";
    ArpMalformed "arp_malformed" "The ARP packet is cut short or not for Ethernet and IPv4." "Capture on the port and look for a faulty sender.";
    Ipv4Truncated "ipv4_truncated" "The frame ends inside its IPv4 header." "Capture on the port; the sender or the path cuts frames.";
    Ipv4HeaderLength "ipv4_header_length" "The IPv4 header length field is below 20 bytes or beyond the packet." "Capture on the port and look for a faulty sender.";
    Ipv4TotalLength "ipv4_total_length" "The IPv4 total length is smaller than the header or larger than the frame." "Capture on the port; often a MTU mismatch that cut the frame.";
    Ipv4Version "ipv4_version" "The EtherType says IPv4, the version field does not." "Capture on the port and look for a faulty sender.";
    Ipv4Checksum "ipv4_checksum" "The IPv4 header checksum is wrong." "Look for a faulty link or sender.";
    Ipv6Truncated "ipv6_truncated" "The frame ends inside its IPv6 header." "Capture on the port; the sender or the path cuts frames.";
    Ipv6Version "ipv6_version" "The EtherType says IPv6, the version field does not." "Capture on the port and look for a faulty sender.";
    Ipv6PayloadLength "ipv6_payload_length" "The IPv6 payload length is larger than the frame." "Capture on the port; often a MTU mismatch that cut the frame.";
    Ipv6Extension "ipv6_extension" "An IPv6 extension header is cut short, repeated too often or out of order." "Look at the sender; hop-by-hop options must come first (RFC 8200 section 4.1).";
    FragmentMalformed "fragment_malformed" "The fragment's length or offset cannot be part of a legal packet." "Look for an attack or a faulty middlebox.";
    TcpTruncated "tcp_truncated" "The packet ends inside its TCP header, or the data offset is illegal." "Capture on the port and look for a faulty sender.";
    UdpTruncated "udp_truncated" "The packet ends inside its UDP header, or the UDP length is illegal." "Capture on the port and look for a faulty sender.";
    SctpTruncated "sctp_truncated" "The packet ends inside its SCTP common header." "Capture on the port and look for a faulty sender.";
    IcmpTruncated "icmp_truncated" "The packet ends inside its ICMP header." "Capture on the port and look for a faulty sender.";
    NeighbourDiscoveryMalformed "neighbour_discovery_malformed" "The ND message breaks a rule of RFC 4861: its length, its options, its addresses, or a hop limit below 255." "Look for an attack from beyond the link, or a faulty sender.";
    GsoMalformed "gso_malformed" "The offload metadata that came with the packet does not fit its headers." "The pod's kernel or a raw socket wrote a bad virtio-net header.";
    VxlanTruncated "vxlan_truncated" "The UDP packet for the VXLAN port ends inside the VXLAN header or the inner Ethernet header." "Find what else sends to the VXLAN port.";
    VxlanFlags "vxlan_flags" "The VXLAN header does not say that its VNI is valid (RFC 7348 section 5)." "The peer speaks VXLAN-GPE or another protocol on this port.";
    VxlanUnknownPeer "vxlan_unknown_peer" "A VXLAN frame came from an address that is no node of this cluster." "Check the Node objects' InternalIP; otherwise somebody injects frames.";
    VxlanUnknownVni "vxlan_unknown_vni" "The VNI belongs to no segment of this node." "Compare the VNI of the two nodes' configuration (`millrace show status`).";
    VxlanChecksum "vxlan_checksum" "The outer UDP checksum is present and wrong, or absent over IPv6." "Look for a faulty link; over IPv6 the peer must send a checksum.";
    EcnNotCapable "ecn_not_capable" "The tunnel met congestion, but the inner packet cannot carry the mark (RFC 6040 section 4.2)." "Harmless now and then; if it grows, the underlay is congested.";
    SctpFragment "sctp_fragment" "The ports of a fragmented SCTP packet were to be translated, but its CRC covers all fragments." "Lower the path MTU of the SCTP endpoint, so that it sends no fragments.";
    NotForUs "not_for_us" "The frame reached an uplink but is neither for a tunnel nor for anything this switch serves." "Harmless where other stations' or group frames are seen; else see `show status` for why the host has no port to get it by.";
    PortUnknown "port_unknown" "The port is attached but the published tables do not know it yet." "Transient while a pod is being added; if it lasts, see `millrace show status`.";
    PortDown "port_down" "The packet's output port has no queue on this node." "`millrace show ports`: the pod may be terminating.";
    SourceMacSpoofed "source_mac_spoofed" "The pod sent from a MAC address that is not its own." "Pods may not change their MAC; macvlan inside a pod is not supported.";
    SourceAddressSpoofed "source_address_spoofed" "A pod or the host sent from an IP address that is not its own." "A container that adds addresses or forwards for others needs its own routes; the host may use the addresses of its interfaces only (`millrace show ports`).";
    TunnelForged "tunnel_forged" "A pod sent a datagram to another node's tunnel port, which under this node's address would pass there for a packet of the tunnel." "Look at what runs in the pod: nothing but an attack or a test does so.";
    TunnelSourceSpoofed "tunnel_source_spoofed" "The inner source address of a tunnelled packet does not belong to the node that sent it." "Routes may be converging; otherwise a node is compromised.";
    MacNotOurs "mac_not_ours" "The frame's destination MAC is neither the gateway, a group address nor a station of this segment." "The pod has a stale neighbour entry; it heals by itself.";
    VlanUnexpected "vlan_unexpected" "The frame's VLAN tag is not allowed on this port." "`millrace show ports` lists the VLANs of the port.";
    EtherTypeUnsupported "ethertype_unsupported" "A routed segment carries only ARP, IPv4 and IPv6." "Use a bridged segment for other protocols.";
    ArpNotForUs "arp_not_for_us" "The pod asked by ARP for an address that is not the gateway's." "Routed pods see no neighbours but the gateway; check the pod's routes.";
    NeighbourSolicitationNotForUs "neighbour_solicitation_not_for_us" "The pod asked by ND for an address that is not the gateway's." "Duplicate address detection does this once; otherwise check the pod's routes.";
    LinkScoped "link_scoped" "A link-local or multicast packet that no router forwards." "Harmless: router solicitations, MLD reports and the like.";
    ConnectionInvalid "connection_invalid" "The packet belongs to no known connection and cannot open one: a reset, a SYN-ACK or an echo reply that nobody asked for." "Harmless now and then, as after a restart; if it grows, packets of one direction take another way.";
    ConnectionRaced "connection_raced" "Other workers opened the packet's connection or took its port meanwhile, several times in a row." "Harmless now and then; the sender repeats it.";
    ConnectionsFull "connections_full" "The packet would open a connection, but there is no room for any more." "`millrace show connections`; raise `connections` in the agent's configuration, or look for a flood.";
    NoRoute "no_route" "No route covers the destination." "`millrace show routes`; is the destination pod's block claimed by a node?";
    Unreachable "unreachable" "The route says unreachable." "An address inside a pod range that no pod holds.";
    TimeExceeded "time_exceeded" "TTL or hop limit ran out here; the sender was told." "A traceroute, or a routing loop.";
    PolicyEgress "policy_egress" "The policies of the sending pod do not allow it." "`millrace show policies --pod NAMESPACE/POD` lists the rules; `millrace trace` names the policy.";
    PolicyIngress "policy_ingress" "The policies of the receiving pod do not allow it." "`millrace show policies --pod NAMESPACE/POD` lists the rules; `millrace trace` names the policy.";
    PolicyPodUnknown "policy_pod_unknown" "A policy may select the pod, or a rule of one may mean its peer, but labels that decide are not known yet." "Transient while a pod or a namespace is being added; if it lasts, the store has no object of it: `millrace trace` says which policy asks.";
    PacketTooBig "packet_too_big" "The packet does not fit the next link and may not be fragmented; the sender was told." "Check the pods' MTU against the uplink's (`millrace show ports`).";
    NeighbourUnresolved "neighbour_unresolved" "The next hop's MAC address is not known yet." "`millrace show neighbours`; is the other node up?";
    SplitHorizon "split_horizon" "The frame would leave through the port or tunnel it came from." "Harmless on bridges; a loop if it grows.";
    NoFloodTarget "no_flood_target" "A frame to be flooded found no other port in its segment." "Harmless when a segment has one member.";
    LinkProtocol "link_protocol" "A frame of a link protocol (STP, LLDP, LACP, pause), which no bridge forwards." "Harmless; the switch takes no part in spanning trees, so mind loops in the wiring.";
    SourceMacInvalid "source_mac_invalid" "The frame's source MAC address is a group or zero." "Look for a faulty sender.";
    StationStatic "station_static" "The sender's MAC address is configured as a station of another port or peer." "Correct the entry under the bridge's `stations`, or look for a forger.";
    StationHeld "station_held" "The sender's MAC address moved too often and is held at its former place for a time." "Two stations with one MAC address, or a loop; `millrace show fdb`.";
    StationLimit "station_limit" "The port has as many stations as it may have, and the sender is none of them." "Raise the port's `stationLimit`, or look for a flood of made-up addresses.";
    Isolated "isolated" "Both ports are isolated or of one split-horizon group, so they exchange no frames." "Intended; see `isolated` and `splitHorizonGroup` of the two Port objects.";
    StormControl "storm_control" "The port has flooded as much as its storm limit allows." "Look for a loop or a broadcasting host; the limits stand in the Port object.";
    MirrorPort "mirror_port" "The frame came in by a port that only gets copies of others' frames." "Harmless: whoever watches a mirror should not send.";
    IcmpNotServed "icmp_not_served" "An ICMP message to the gateway that asks for nothing the gateway answers." "Harmless.";
    GatewayPort "gateway_port" "TCP, UDP or SCTP addressed to the gateway itself, which serves none." "The gateway is an address, not a host.";
    IcmpErrorLimited "icmp_error_limited" "The packet was dropped and the ICMP error for it held back by the rate limit." "Look for a port scan or a routing loop.";
    ServiceNoEndpoints "service_no_endpoints" "The Service has no endpoint that could serve; the sender was told." "`millrace show services`: are its pods ready, does its selector find them?";
    ServiceNoLocalEndpoints "service_no_local_endpoints" "The Service's traffic policy is Local, and none of its endpoints is on this node." "`millrace show services`; a load balancer should have been told by the health check.";
    ServiceWrongPort "service_wrong_port" "The address is a ClusterIP, but its Service has no such port and protocol; the sender was told." "Compare the port with the Service's.";
    ServiceUnallocated "service_unallocated" "The address lies in a range of ClusterIPs and belongs to no Service." "The Service may be gone; look for a client with an old address.";
    ServiceSourceRefused "service_source_refused" "The client is outside the Service's `loadBalancerSourceRanges`." "Compare the client's address with the ranges.";
    MasqueradeUnavailable "masquerade_unavailable" "The connection would have to leave with the node's own address, and the node has none of this family." "`millrace show status`: does the node have an address block of this family? docs/services.md says which connections need it.";
    OutsideUntracked "outside_untracked" "The packet belongs to no connection whose answers could be told from the host's own, so it may not leave by an uplink: an ICMP message that is no echo, or another protocol than TCP, UDP and SCTP." "Pods speak other protocols with pods only.";
    OutsideSourceSpoofed "outside_source_spoofed" "A packet came from outside with a source address of the cluster's own." "Look for an attack, or a route that leads packets of pods around the tunnel.";
    MasqueradePortsExhausted "masquerade_ports_exhausted" "The connection needs a source port of the node's own, and all that were tried are taken towards this destination." "`millrace show connections`: who opens so many to one endpoint? Widen `[masquerade]` in the agent's configuration.";
    FragmentWithoutFirst "fragment_without_first" "A later fragment of a packet whose first one did not come within a second, or went no further." "Harmless in ones and twos; else `fragments.evicted`, or look for what loses packets on the way here.";
    FragmentsHeldFull "fragments_held_full" "A later fragment that waited for its first one gave way, since too many wait." "Look for a flood of fragments (`fragments.held`), or for what reorders packets on the way here.";
    FramesExhausted "frames_exhausted" "No free frame was left in this worker's frame memory." "Raise `frame_memory` in the agent's configuration, or look for a blocked port.";
    TransmitQueueFull "transmit_queue_full" "The output port did not take packets fast enough." "The pod or link is slower than its senders; `millrace show ports`.";
    OverBandwidth "over_bandwidth" "The pod sent or was sent more than its limit of bandwidth lets through." "`millrace show ports` has the limit; it is the pod's annotation `kubernetes.io/ingress-bandwidth` or `kubernetes.io/egress-bandwidth`, or its runtime's.";
    LaneFull "lane_full" "The lane to the worker that owns the output queue was full." "That worker is overloaded; `millrace show workers`.";
    PortRefused "port_refused" "The kernel refused the packet at the output port." "`millrace show ports`: the interface may be down.";
    Oversized "oversized" "The packet is longer than the output port can carry in any form." "Check the MTU of the output port; a bridge tells no sender.";
    WorkerFailed "worker_failed" "The worker failed while it was moving the packet, and was started again." "`millrace show workers` says what it said; report it with the log and a capture.";
}

impl DropReason {
    /// How many reasons there are.
    pub const COUNT: usize = Self::ALL.len();

    /// The reason with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<DropReason> {
        Self::ALL.iter().copied().find(|reason| reason.name() == name)
    }
}

impl std::fmt::Display for DropReason {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found_again() {
        for (number, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, number);
            assert_eq!(DropReason::from_name(reason.name()), Some(*reason));
            assert!(reason.sentence().ends_with('.') && reason.next_step().ends_with(['.', '?', ')']), "{reason}");
        }
    }
}
