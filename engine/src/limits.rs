//! Every fixed bound of the engine, with what it costs in memory.
//!
//! Nothing in the engine grows after start except the published tables, and those are bounded by the
//! objects they are compiled from. A limit that is met makes a counter move and a packet drop with a
//! reason; it never makes an allocation. `docs/limits.md` quotes this file.

use std::time::Duration;

/// Packets taken from a port in one turn, and so the width of every stage.
/// Measured: 64 gives the lowest cost per packet, 8 costs 2.7 times as much, 256 nothing less.
pub const VECTOR_PACKETS: usize = 64;

/// Bytes taken from a port in one turn: four full GSO units, which are still in the core's own cache when they are
/// written; a TAP full of units holds the worker no longer than a vector of small packets from another port would.
pub const VECTOR_BYTES: usize = 1 << 18;

/// Bytes of a head frame. Two to a page, and a legal AF_XDP chunk; a 1500-byte frame with the XDP
/// headroom, the longest encapsulation and a QinQ header fits.
pub const HEAD_FRAME_BYTES: usize = 2048;

/// Bytes before the packet in a head frame that a port leaves free, so that the longest encapsulation
/// (outer Ethernet 14, IPv6 40, UDP 8, VXLAN 8, two VLAN tags 8) can be written in place.
pub const HEADROOM_BYTES: usize = 128;

/// Headroom that the kernel leaves before a received AF_XDP frame (`XDP_PACKET_HEADROOM`, include/uapi/linux/bpf.h).
pub const XDP_HEADROOM_BYTES: usize = 256;

/// Bytes of a big buffer: what follows the head of a GSO unit read from a TAP.
pub const BIG_BUFFER_BYTES: usize = 65536;

/// Longest packet the switch carries, from the first byte of the outermost header: the kernel's IP
/// total length limit plus an Ethernet header with two tags.
pub const PACKET_BYTES: usize = 65535 + 14 + 8;

/// Largest GSO unit a pod may build (`gso_max_size` of its interface), so that unit plus encapsulation
/// stays below 64 KiB.
pub const POD_GSO_BYTES: u32 = 61_500;

/// Segments a packet may be chained from: 65,535 bytes joined from 1,398-byte payloads need 47.
pub const CHAIN_SEGMENTS: usize = 64;

/// IPv6 extension headers read before a packet is refused; real packets have one or two.
pub const IPV6_EXTENSION_HEADERS: usize = 8;
/// Segments cut from one GSO unit, and so the frames one packet may take at once. 64 KiB in segments of 536 bytes, the
/// smallest TCP default, are 123. A pod's interface gets this as its `gso_max_segs`, so that its kernel builds no unit
/// with more when a peer announces a tiny segment size; a unit with more is dropped.
pub const SEGMENTS_PER_UNIT: usize = 128;

/// Head frames of one worker by default: 64 MiB of frame memory.
pub const HEAD_FRAMES: usize = 32_768;

/// Big buffers of one worker by default: 16 MiB of frame memory.
pub const BIG_BUFFERS: usize = 256;

/// Ports of a switch. Port counters cost 64 B for each port and worker, limits of bandwidth 48 B, and their budgets 16 B for
/// each port.
pub const PORTS: usize = 1024;

/// Stations whose frames a packet socket takes in beside groups. Five instructions of its filter for each, of the 4,096
/// that the kernel takes: 32 KiB of the kernel's memory at most.
pub const PACKET_STATIONS: usize = 800;

/// Source ports of one worker's tunnels through UDP sockets, in each family: a socket each.
pub const UDP_SOURCE_PORTS: usize = 16;

/// Messages taken from a UDP socket with one call, each of up to 64 KiB: 1 MiB of memory and 16 head frames for each worker
/// and uplink that has such sockets.
pub const UDP_MESSAGES: usize = 16;

/// Frames taken from a packet socket, or given to it, with one call. While it lasts, so many head frames and big buffers
/// are held.
pub const PACKET_MESSAGES: usize = 16;

/// Segments of a switch; 8 B each. The first is the pods'.
pub const SEGMENTS: usize = 4_096;

/// Worker threads of a switch.
pub const WORKERS: usize = 16;

/// IPv4 entries of one worker's flow cache: 64 B hot, 100 B cold and 20 B of tag and index each, 23 MiB by default.
pub const FLOWS_IPV4: usize = 131_072;

/// IPv6 entries of one worker's flow cache: 128 B hot, 100 B cold and 20 B of tag and index each, 16 MiB by default.
pub const FLOWS_IPV6: usize = 65_536;

/// Distinct rewrites (MAC pair and encapsulation) one worker can refer to from its flow cache; 192 B each, 1.5 MiB.
pub const REWRITES: usize = 8_192;

/// Silence after which a TCP or SCTP flow leaves the cache; its connection lives elsewhere and longer.
pub const FLOW_IDLE_TCP_MS: u32 = 10_000;

/// Silence after which a UDP flow leaves the cache.
pub const FLOW_IDLE_UDP_MS: u32 = 10_000;

/// Silence after which a flow of any other protocol leaves the cache.
pub const FLOW_IDLE_OTHER_MS: u32 = 3_000;

/// Silence after which an established flow may give way to a new one where the cache is full.
pub const FLOW_RECENT_MS: u32 = 1_000;

/// Flow-cache entries examined for one to evict where the whole cache is full: the longest an insert looks.
pub const EVICTION_STEP: usize = 16;

/// Shortest time in which the ageing hand passes over the whole flow cache once: a full cache then costs 0.5 % of
/// a core, and flows leave at most this much late.
pub const AGEING_REVOLUTION_MS: u32 = 1_000;

/// Publishes a flow cache is swept for at the same time; with one more, the sweeps begun are finished at once.
pub const SWEEPS: usize = 8;

/// Flow-cache entries examined in one worker turn by the ageing hand.
pub const AGEING_STEP: usize = 256;

/// Flow-cache entries examined in one worker turn while a change set is being swept.
/// A turn under load is about 64 packets long, so a full cache is swept in under 10 ms.
pub const SWEEP_STEP: usize = 4_096;

/// Packets that wait for room on one port of one worker; beyond it they drop with `transmit_queue_full`.
pub const TRANSMIT_QUEUE_PACKETS: usize = 1_024;

/// Packets in flight between two workers in one direction; beyond it they drop with `lane_full`.
pub const LANE_PACKETS: usize = 1_024;

/// Joins open at one time in one vector towards one port.
pub const OPEN_JOINS: usize = 8;

/// Learned MAC addresses over all segments; 96 B each, 6 MiB.
pub const MAC_TABLE_ENTRIES: usize = 65_536;

/// Learned MAC addresses behind one port unless its configuration says otherwise: so that one port cannot fill the
/// table of all. 4 B of count for each port.
pub const STATIONS_PER_PORT: u32 = 8_192;

/// Time without a frame after which a station is forgotten unless the configuration says otherwise (IEEE 802.1Q
/// section 8.8.3).
pub const STATION_AGE: Duration = Duration::from_secs(300);

/// How often one shard of the learned-MAC table is freed of stations that are forgotten: all shards every 16 s.
pub const STATION_AGEING_STEP: Duration = Duration::from_millis(250);

/// Shortest time for which a storm limit lets a quiet port flood at once, as a share of a second: 100 ms.
pub const STORM_BURST: Duration = Duration::from_millis(100);

/// Shards of the learned-MAC table: the chance that two workers on the slow path meet at one lock.
pub const MAC_TABLE_SHARDS: usize = 64;

/// Connections a switch tracks by default: 128 B of entry and 8 B of index each, 34 MiB for all workers together.
pub const CONNECTIONS: usize = 262_144;

/// Shards of the connection table: the chance that two workers on the slow path meet at one lock.
pub const CONNECTION_SHARDS: usize = 64;

/// Connections examined in one worker turn for having been silent too long.
pub const CONNECTION_SCAN_STEP: usize = 256;

/// Shortest time in which the scan passes over all connections once; they end at most so much late, and as much again
/// as the flow caches need to write back.
pub const CONNECTION_REVOLUTION_MS: u32 = 1_000;

/// Times one packet is decided anew because another worker opened its connection or took its port meanwhile.
pub const CONNECTION_ATTEMPTS: usize = 4;

/// First and last source port of masqueraded connections, where the tables do not say otherwise. Each destination address
/// and port has the whole range to itself.
pub const MASQUERADE_PORTS: (u16, u16) = (32_768, 65_535);

/// First and last source port of connections that leave under an address of an uplink, where the tables do not say
/// otherwise: the range that IANA leaves to clients (RFC 6335 section 6). The host's own sockets keep off it. Each
/// destination address and port has the whole range to itself.
pub const OUTSIDE_PORTS: (u16, u16) = (49_152, 65_535);

/// Routes of the host by its uplinks that the switch knows; about 200 B each.
pub const OUTSIDE_ROUTES: usize = 4_096;

/// Neighbours of uplinks that the switch knows; 32 B each.
pub const OUTSIDE_NEIGHBOURS: usize = 4_096;

/// Networks outside to which pods keep their own addresses; 18 B each, all compared with each packet that opens a
/// connection to the outside.
pub const OUTSIDE_EXEMPT: usize = 64;

/// Prefixes of other segments that one segment has the routes of; 20 B each, all compared with each packet that opens a
/// connection there.
pub const CONNECTED_PREFIXES: usize = 256;

/// Rules of the host's routing for ports at its own addresses; each is asked for every route that the kernel looks up.
pub const OWN_PORT_RULES: usize = 64;

/// Rules of the host's routing that keep the kernel from answering for ports of the switch while there is no agent.
pub const GUARD_RULES: usize = 128;

/// Addresses of Services outside of the ranges of ClusterIPs that the host routes to the switch; about 300 B of the kernel's
/// memory each.
pub const HOST_SERVICE_ROUTES: usize = 4_096;

/// Addresses of load balancers that a node announces on its links; about 100 B each, and a place among the addresses that
/// an uplink's program knows.
pub const ANNOUNCED_ADDRESSES: usize = 1_024;

/// Neighbours that packets waited for and the host's kernel was not asked for yet; 2 KiB, taken at start.
pub const WANTED_NEIGHBOURS: usize = 64;

/// Source ports tried for one connection. With nine tenths of the range taken, all are taken once in 700,000 times.
pub const MASQUERADE_PROBES: u64 = 128;

/// Packets whose fragments are followed or waited for at one time; 64 B each, 512 KiB, taken at start.
pub const FRAGMENTS: usize = 8_192;

/// Shards of the table of fragments: the chance that two workers on the slow path meet at one lock.
pub const FRAGMENT_SHARDS: usize = 16;

/// Places one fragmented packet may stand in.
pub const FRAGMENT_WAYS: usize = 8;

/// Time after its first fragment in which a packet's later ones are followed (RFC 791 and Linux: 30 s to reassemble).
pub const FRAGMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// Later fragments that one worker holds until their first one comes: 120 B of list each, and a head frame of 2 KiB while
/// one is held, 542 KiB in all.
pub const LATE_FRAGMENTS: usize = 256;

/// Of these, those longer than a head frame, of ports with a large MTU: each holds a big buffer or further head frames.
pub const LATE_FRAGMENTS_CHAINED: usize = 32;

/// Time for which a later fragment waits for its first one. Packets overtake each other by milliseconds; and a number that
/// is used again, which takes a second at 65,536 fragmented packets a second, must not meet an old fragment.
pub const LATE_FRAGMENT_TIMEOUT: Duration = Duration::from_secs(1);

/// Denied packets that wait to be logged, over all workers; about 110 KiB. Further ones are only counted.
pub const DENIALS_WAITING: usize = 1_024;

/// Steps in the trail of one decision: two a stage at most.
pub const TRAIL_STEPS: usize = 16;

/// ICMP errors one worker originates each second, all causes together (RFC 1812 section 4.3.2.8 asks for a limit).
pub const ICMP_ERRORS_PER_SECOND: u32 = 1_000;

/// ICMP errors one worker may originate at once after a quiet second.
pub const ICMP_ERRORS_BURST: u32 = 100;

/// Changes of one publish that are swept one by one; a larger change set is indexed before the sweep.
pub const CHANGES_LINEAR: usize = 8;

/// Failures of a worker in a row after which it is not started again; the pauses between them add up to some 6 s.
pub const WORKER_FAILURES: u32 = 16;

/// Workers' command queues: port attachments and sweeps that wait to be taken up.
pub const WORKER_COMMANDS: usize = 1_024;

/// Pairs of peer and VNI that get a number for the flow key; 48 B each. Beyond it, their flows take the slow path.
pub const TUNNEL_INGRESSES: usize = 16_384;

/// Longest capture file that a replay reads; it lies in memory whole while the replay runs.
pub const CAPTURE_BYTES: usize = 1 << 30;

/// Endpoints of one port of a Service, in one family; 48 B each and their names, and 200 B more where Maglev picks.
pub const ENDPOINTS_PER_SERVICE: usize = 65_535;

/// Clients remembered for session affinity, over all Services; some 140 B each, 9 MiB, taken at start.
pub const AFFINITIES: usize = 65_536;

/// Shards of the affinity table: the chance that two workers on the slow path meet at one lock.
pub const AFFINITY_SHARDS: usize = 64;

/// Endpoints whose connections are counted, over all Services; some 28 B each, 4 MiB, taken at start.
pub const ENDPOINT_LOADS: usize = 131_072;

/// Shards of these counts; all endpoints of one Service lie in one, which so bounds their number to 8,192.
pub const ENDPOINT_LOAD_SHARDS: usize = 16;

/// Endpoints whose connections are compared for one pick of least-connections; of more, a run that begins anywhere.
pub const LEAST_CONNECTIONS_LOOKS: usize = 64;
