// SPDX-License-Identifier: Apache-2.0
//
// Which frames of an interface reach user space; all others go on to the host's kernel untouched.
//
// Redirected:
// - VXLAN (UDP to the configured port) over IPv4 or IPv6 to one of this node's tunnel addresses from the outer address
//   of a known node;
// - with HAND_BACK, which says that user space gives the kernel what turns out not to be its own: TCP, UDP and SCTP to
//   a known destination (address, protocol, port) or to a port range of an own address; all fragments to own addresses,
//   since later ones carry no port; and ICMP to them, since an error says only inside whose it is. Neighbour discovery
//   stays with the kernel. Of WHOLE addresses, such as those of pods, everything is taken.
// - with ANNOUNCES too, ARP requests and neighbour solicitations for addresses that user space answers for.
//
// Tagged frames, IPv6 with other extension headers than a leading fragment header, link-local addresses (never in
// `addresses`) and whatever else cannot be told for certain pass. Where no socket is bound to the receiving queue the
// redirect itself falls back to passing, so a node whose agent is dead keeps its own network.
//
// The program is checked in compiled (steering.bpf.o, made by rebuild-steering.sh), so that a build needs no clang.
// Only headers up to UDP are read; they are in the first buffer of a multi-buffer frame (section "xdp.frags").
// A VLAN tag that the device strips is not seen here; such a frame counts as untagged and the engine judges it.
// Kernel interfaces used: include/uapi/linux/bpf.h (enum numbers below are ABI), kernel 5.18 or later.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SECTION(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define MAP_UINT(name, value) int(*name)[value]
#define MAP_TYPE(name, value) value *name

enum { MAP_HASH = 1, MAP_ARRAY = 2, MAP_XSKMAP = 17 };
enum { MAP_NO_PREALLOCATION = 1 };
enum { XDP_PASS = 2 };
enum { ARP_BYTES = 28, ARP_REQUEST = 1, SOLICITATION = 135 };
enum { ICMP = 1, TCP = 6, UDP = 17, FRAGMENT_HEADER = 44, ICMPV6 = 58, SCTP = 132 };
enum { ROUTER_SOLICITATION = 133, REDIRECT = 137 };

// Bits of `configuration.flags`.
enum {
    EVERYTHING = 1,   // redirect every frame
    HAND_BACK = 2,    // the host's port is there to take back what is not ours
    DESTINATIONS = 4, // `destinations` has entries
    ANNOUNCES = 8,    // some of `addresses` is announced
};

// Bits of a value in `addresses`.
enum {
    TUNNEL_END = 1, // VXLAN to it is ours
    OWN = 2,        // fragments and ICMP to it are taken
    RANGES = 4,     // the port ranges are ours at this address
    WHOLE = 8,      // whatever it is, it is for user space
    ANNOUNCED = 16, // user space answers for it on the link
};

#define PORT_RANGES 4

struct xdp_md {
    u32 data;
    u32 data_end;
    u32 data_meta;
    u32 ingress_ifindex;
    u32 rx_queue_index;
    u32 egress_ifindex;
};

static void *(*const map_lookup)(void *map, const void *key) = (void *)1;
static long (*const redirect_map)(void *map, u64 key, u64 fallback) = (void *)51;

// One outer address. IPv4 stands in the first four bytes. Same layout as `AddressKey` in steering.rs.
struct address {
    u32 family; // 4 or 6
    u8 bytes[16];
};

// One destination. Same layout as `DestinationKey` in steering.rs.
struct destination {
    struct address address;
    u8 protocol;
    u8 reserved;
    u16 port; // network byte order
};

// Ports `first` to `last`; nothing if `protocol` is 0.
struct range {
    u8 protocol;
    u8 reserved;
    u16 first; // host byte order, as `last`
    u16 last;
};

// Same layout as `configuration` in steering.rs.
struct configuration {
    u16 vxlan_port; // network byte order; 0 for no tunnels
    u8 flags;
    u8 reserved;
    struct range ranges[PORT_RANGES];
};

struct {
    MAP_UINT(type, MAP_ARRAY);
    MAP_UINT(max_entries, 1);
    MAP_TYPE(key, u32);
    MAP_TYPE(value, struct configuration);
} configuration SECTION(".maps");

struct {
    MAP_UINT(type, MAP_HASH);
    MAP_UINT(max_entries, 65536);
    MAP_UINT(map_flags, MAP_NO_PREALLOCATION);
    MAP_TYPE(key, struct address);
    MAP_TYPE(value, u8);
} addresses SECTION(".maps");

struct {
    MAP_UINT(type, MAP_HASH);
    MAP_UINT(max_entries, 131072);
    MAP_UINT(map_flags, MAP_NO_PREALLOCATION);
    MAP_TYPE(key, struct destination);
    MAP_TYPE(value, u8);
} destinations SECTION(".maps");

struct {
    MAP_UINT(type, MAP_HASH);
    MAP_UINT(max_entries, 16384);
    MAP_UINT(map_flags, MAP_NO_PREALLOCATION);
    MAP_TYPE(key, struct address);
    MAP_TYPE(value, u8);
} known_peers SECTION(".maps");

struct {
    MAP_UINT(type, MAP_XSKMAP);
    MAP_UINT(max_entries, 256);
    MAP_TYPE(key, u32);
    MAP_TYPE(value, u32);
} xsks_map SECTION(".maps");

INLINE u16 network_order(u16 value) { return __builtin_bswap16(value); }

// Copies `count` bytes; the loop unrolls into loads and stores the verifier can follow.
INLINE void copy(u8 *to, const u8 *from, int count)
{
#pragma unroll
    for (int index = 0; index < count; index++)
        to[index] = from[index];
}

// What the program reads of a packet.
struct packet {
    struct address source;
    struct address target;
    u8 protocol;
    u8 fragment;         // 1: of any kind
    const u8 *transport; // first byte behind the IP header
};

INLINE int read_ipv4(const u8 *header, const u8 *end, struct packet *packet)
{
    if (header + 20 > end || (header[0] >> 4) != 4)
        return 0;
    u32 length = (header[0] & 15) * 4;
    if (length < 20)
        return 0;
    packet->source.family = packet->target.family = 4;
    copy(packet->source.bytes, header + 12, 4);
    copy(packet->target.bytes, header + 16, 4);
    packet->protocol = header[9];
    packet->fragment = ((u16)(header[6] << 8 | header[7]) & 0x3fff) != 0;
    packet->transport = header + length;
    return 1;
}

INLINE int read_ipv6(const u8 *header, const u8 *end, struct packet *packet)
{
    if (header + 40 > end || (header[0] >> 4) != 6)
        return 0;
    packet->source.family = packet->target.family = 6;
    copy(packet->source.bytes, header + 8, 16);
    copy(packet->target.bytes, header + 24, 16);
    packet->protocol = header[6];
    packet->fragment = header[6] == FRAGMENT_HEADER;
    packet->transport = header + 40;
    return 1;
}

INLINE int read_packet(const u8 *frame, const u8 *end, struct packet *packet)
{
    if (frame + 14 > end)
        return 0;
    u16 type = *(const u16 *)(frame + 12);
    if (type == network_order(0x0800))
        return read_ipv4(frame + 14, end, packet);
    if (type == network_order(0x86dd))
        return read_ipv6(frame + 14, end, packet);
    return 0;
}

INLINE int in_ranges(const struct configuration *rules, u8 protocol, u16 port)
{
#pragma unroll
    for (int index = 0; index < PORT_RANGES; index++) {
        const struct range *range = &rules->ranges[index];
        if (range->protocol && range->protocol == protocol && range->first <= port && port <= range->last)
            return 1;
    }
    return 0;
}

// What has ports. They stand at the same place in all three protocols.
INLINE int is_our_port(const struct configuration *rules, const u8 *end, const struct packet *packet, u8 kind)
{
    if (packet->transport + 8 > end)
        return 0;
    u16 port = *(const u16 *)(packet->transport + 2);
    if (packet->protocol == UDP && port == rules->vxlan_port && (kind & TUNNEL_END))
        return map_lookup(&known_peers, &packet->source) != 0;
    if (!(rules->flags & HAND_BACK))
        return 0;
    if ((kind & RANGES) && in_ranges(rules, packet->protocol, network_order(port)))
        return 1;
    if (!(rules->flags & DESTINATIONS))
        return 0;
    struct destination destination = { .address = packet->target, .protocol = packet->protocol, .port = port };
    return map_lookup(&destinations, &destination) != 0;
}

// Whether it asks who has an address that user space answers for.
INLINE int asks_for_announced(const u8 *frame, const u8 *end)
{
    struct address asked = {};
    if (frame + 14 + ARP_BYTES > end)
        return 0;
    const u8 *header = frame + 14;
    u16 type = *(const u16 *)(frame + 12);
    if (type == network_order(0x0806)) {
        if (header[6] != 0 || header[7] != ARP_REQUEST)
            return 0;
        asked.family = 4;
        copy(asked.bytes, header + 24, 4);
    } else if (type == network_order(0x86dd)) {
        if (header + 40 + 24 > end || header[6] != ICMPV6 || header[40] != SOLICITATION)
            return 0;
        asked.family = 6;
        copy(asked.bytes, header + 40 + 8, 16);
    } else {
        return 0;
    }
    const u8 *kind = map_lookup(&addresses, &asked);
    return kind && (*kind & ANNOUNCED);
}

INLINE int is_ours(const u8 *frame, const u8 *end, const struct configuration *rules)
{
    struct packet packet = {};
    if ((rules->flags & ANNOUNCES) && asks_for_announced(frame, end))
        return 1;
    if (!read_packet(frame, end, &packet))
        return 0;
    const u8 *kind = map_lookup(&addresses, &packet.target);
    if (!kind)
        return 0;
    u8 handed_back = (rules->flags & HAND_BACK) && (*kind & OWN);
    if ((rules->flags & HAND_BACK) && (*kind & WHOLE))
        return 1;
    if (packet.fragment)
        return handed_back;
    switch (packet.protocol) {
    case TCP:
    case UDP:
    case SCTP:
        return is_our_port(rules, end, &packet, *kind);
    case ICMP:
        return handed_back && packet.target.family == 4;
    case ICMPV6:
        if (!handed_back || packet.target.family == 4 || packet.transport + 1 > end)
            return 0;
        return packet.transport[0] < ROUTER_SOLICITATION || packet.transport[0] > REDIRECT;
    default:
        return 0;
    }
}

SECTION("xdp.frags")
int millrace_steering(struct xdp_md *context)
{
    const u8 *frame = (const u8 *)(long)context->data;
    const u8 *end = (const u8 *)(long)context->data_end;
    u32 zero = 0;
    const struct configuration *rules = map_lookup(&configuration, &zero);
    if (!rules)
        return XDP_PASS;
    if (!(rules->flags & EVERYTHING) && !is_ours(frame, end, rules))
        return XDP_PASS;
    return redirect_map(&xsks_map, context->rx_queue_index, XDP_PASS);
}

char steering_license[] SECTION("license") = "Apache-2.0";
