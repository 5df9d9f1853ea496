// SPDX-License-Identifier: Apache-2.0
//
// Which frames of an interface reach user space; all others go on to the host's kernel untouched.
//
// Three programs ask the same question, `is_ours`: `millrace_steering` (XDP) redirects such frames to AF_XDP sockets. For
// packet sockets, which the kernel gives a copy of each frame, `millrace_admit` (socket filter) lets such frames into the
// socket, and `millrace_withhold` (tcx, which comes after the sockets) keeps them from the kernel.
//
// Ours are:
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
// redirect itself falls back to passing, and with its links all of this ends, so a node whose agent is dead keeps its own
// network.
//
// The program is checked in compiled (steering.bpf.o, made by rebuild-steering.sh), so that a build needs no clang.
// Only headers up to UDP are read; they are in the first buffer of a multi-buffer frame (section "xdp.frags").
// A VLAN tag that the device strips is not seen by XDP; such a frame counts as untagged and the engine judges it. The
// others see it, and leave the frame to the interface of that VLAN.
// Kernel interfaces used: include/uapi/linux/bpf.h (enum numbers below are ABI), kernel 5.18 or later, 6.6 for tcx.

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
enum { TCX_NEXT = -1, TCX_DROP = 2 };
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

// The beginning of struct __sk_buff.
struct sk_buff_context {
    u32 len;
    u32 pkt_type;
    u32 mark;
    u32 queue_mapping;
    u32 protocol;
    u32 vlan_present;
};

static void *(*const map_lookup)(void *map, const void *key) = (void *)1;
static long (*const load_bytes)(const void *skb, u32 offset, void *to, u32 count) = (void *)26;
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

// A frame: in memory that can be read directly, or of an skb.
struct frame {
    const u8 *data;
    const u8 *end;
    const void *skb; // 0 if it can be read directly
};

INLINE int load(const struct frame *frame, u64 offset, u8 *to, int count)
{
    if (frame->skb)
        return load_bytes(frame->skb, offset, to, count) == 0;
    const u8 *from = frame->data + offset;
    if (from + count > frame->end)
        return 0;
    copy(to, from, count);
    return 1;
}

// What the program reads of a packet.
struct packet {
    struct address source;
    struct address target;
    u8 protocol;
    u8 fragment;   // 1: of any kind
    u64 transport; // first byte behind the IP header; in eight bytes the verifier remembers its bounds
};

INLINE int read_ipv4(const struct frame *frame, struct packet *packet)
{
    u8 header[20];
    if (!load(frame, 14, header, 20) || (header[0] >> 4) != 4)
        return 0;
    u32 length = (header[0] & 15) * 4;
    if (length < 20)
        return 0;
    packet->source.family = packet->target.family = 4;
    copy(packet->source.bytes, header + 12, 4);
    copy(packet->target.bytes, header + 16, 4);
    packet->protocol = header[9];
    packet->fragment = ((u16)(header[6] << 8 | header[7]) & 0x3fff) != 0;
    packet->transport = 14 + (u64)length;
    return 1;
}

INLINE int read_ipv6(const struct frame *frame, struct packet *packet)
{
    u8 header[8];
    if (!load(frame, 14, header, 8) || (header[0] >> 4) != 6)
        return 0;
    if (!load(frame, 14 + 8, packet->source.bytes, 16) || !load(frame, 14 + 24, packet->target.bytes, 16))
        return 0;
    packet->source.family = packet->target.family = 6;
    packet->protocol = header[6];
    packet->fragment = header[6] == FRAGMENT_HEADER;
    packet->transport = 14 + 40;
    return 1;
}

INLINE int read_packet(const struct frame *frame, struct packet *packet)
{
    u8 type[2];
    if (!load(frame, 12, type, 2))
        return 0;
    if (type[0] == 0x08 && type[1] == 0x00)
        return read_ipv4(frame, packet);
    if (type[0] == 0x86 && type[1] == 0xdd)
        return read_ipv6(frame, packet);
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
INLINE int is_our_port(const struct configuration *rules, const struct frame *frame, const struct packet *packet, u8 kind)
{
    u8 header[8];
    if (!load(frame, packet->transport, header, 8))
        return 0;
    u16 port = (u16)(header[3] << 8 | header[2]); // as it stands in the packet
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
INLINE int asks_for_announced(const struct frame *frame)
{
    u8 type[2];
    if (!load(frame, 12, type, 2))
        return 0;
    struct address asked = {};
    if (type[0] == 0x08 && type[1] == 0x06) {
        u8 operation[2];
        if (!load(frame, 14 + 6, operation, 2) || operation[0] != 0 || operation[1] != ARP_REQUEST)
            return 0;
        asked.family = 4;
        if (!load(frame, 14 + ARP_BYTES - 4, asked.bytes, 4))
            return 0;
    } else if (type[0] == 0x86 && type[1] == 0xdd) {
        u8 protocol, message;
        if (!load(frame, 14 + 6, &protocol, 1) || protocol != ICMPV6)
            return 0;
        if (!load(frame, 14 + 40, &message, 1) || message != SOLICITATION)
            return 0;
        asked.family = 6;
        if (!load(frame, 14 + 40 + 8, asked.bytes, 16))
            return 0;
    } else {
        return 0;
    }
    const u8 *kind = map_lookup(&addresses, &asked);
    return kind && (*kind & ANNOUNCED);
}

INLINE int is_ours(const struct frame *frame)
{
    u32 zero = 0;
    const struct configuration *rules = map_lookup(&configuration, &zero);
    if (!rules)
        return 0;
    if (rules->flags & EVERYTHING)
        return 1;
    struct packet packet = {};
    if ((rules->flags & ANNOUNCES) && asks_for_announced(frame))
        return 1;
    if (!read_packet(frame, &packet))
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
        return is_our_port(rules, frame, &packet, *kind);
    case ICMP:
        return handed_back && packet.target.family == 4;
    case ICMPV6: {
        u8 type;
        if (!handed_back || packet.target.family == 4 || !load(frame, packet.transport, &type, 1))
            return 0;
        return type < ROUTER_SOLICITATION || type > REDIRECT;
    }
    default:
        return 0;
    }
}

SECTION("xdp.frags")
int millrace_steering(struct xdp_md *context)
{
    struct frame frame = { .data = (const u8 *)(long)context->data, .end = (const u8 *)(long)context->data_end };
    if (!is_ours(&frame))
        return XDP_PASS;
    return redirect_map(&xsks_map, context->rx_queue_index, XDP_PASS);
}

INLINE int is_ours_of_skb(const struct sk_buff_context *skb)
{
    struct frame frame = { .skb = skb };
    return !skb->vlan_present && is_ours(&frame);
}

SECTION("classifier")
int millrace_withhold(struct sk_buff_context *skb)
{
    return is_ours_of_skb(skb) ? TCX_DROP : TCX_NEXT;
}

// How many bytes of the frame the socket gets.
SECTION("socket")
int millrace_admit(struct sk_buff_context *skb)
{
    return is_ours_of_skb(skb) ? -1 : 0;
}

char steering_license[] SECTION("license") = "Apache-2.0";
