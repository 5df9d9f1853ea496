// SPDX-License-Identifier: Apache-2.0
//
// Which frames of an interface reach user space; all others go on to the host's kernel untouched.
//
// Redirected: VXLAN (UDP to the configured port) over IPv4 or IPv6 to one of this node's tunnel addresses from the
// outer address of a known node. Fragments, tagged frames, IPv6 with extension headers and whatever else cannot be
// told for certain pass. Where no socket is bound to the receiving queue the redirect itself falls back to passing,
// so a node whose agent is dead keeps its own network.
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

// Same layout as `Configuration` in steering.rs.
struct configuration {
    u16 vxlan_port; // network byte order; 0 steers nothing
    u8 everything;  // 1: redirect every frame
    u8 reserved;
};

struct {
    MAP_UINT(type, MAP_ARRAY);
    MAP_UINT(max_entries, 1);
    MAP_TYPE(key, u32);
    MAP_TYPE(value, struct configuration);
} configuration SECTION(".maps");

struct {
    MAP_UINT(type, MAP_HASH);
    MAP_UINT(max_entries, 64);
    MAP_TYPE(key, struct address);
    MAP_TYPE(value, u8);
} local_addresses SECTION(".maps");

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

// Offset of the UDP header of an unfragmented IPv4 packet; 0 if it is anything else.
INLINE u32 ipv4_udp(const u8 *header, const u8 *end, struct address *source, struct address *target)
{
    if (header + 20 > end || (header[0] >> 4) != 4)
        return 0;
    u32 length = (header[0] & 15) * 4;
    u16 fragment = (u16)(header[6] << 8 | header[7]);
    if (length < 20 || header[9] != 17 || (fragment & 0x3fff))
        return 0;
    source->family = target->family = 4;
    copy(source->bytes, header + 12, 4);
    copy(target->bytes, header + 16, 4);
    return length;
}

// Offset of the UDP header of an IPv6 packet without extension headers; 0 if it is anything else.
INLINE u32 ipv6_udp(const u8 *header, const u8 *end, struct address *source, struct address *target)
{
    if (header + 40 > end || (header[0] >> 4) != 6 || header[6] != 17)
        return 0;
    source->family = target->family = 6;
    copy(source->bytes, header + 8, 16);
    copy(target->bytes, header + 24, 16);
    return 40;
}

INLINE int is_ours(const u8 *frame, const u8 *end, u16 vxlan_port)
{
    struct address source = {}, target = {};
    if (!vxlan_port || frame + 14 > end)
        return 0;
    u32 length = 0;
    u16 type = *(const u16 *)(frame + 12);
    if (type == network_order(0x0800))
        length = ipv4_udp(frame + 14, end, &source, &target);
    else if (type == network_order(0x86dd))
        length = ipv6_udp(frame + 14, end, &source, &target);
    if (!length)
        return 0;
    const u8 *udp = frame + 14 + length;
    if (udp + 8 > end || *(const u16 *)(udp + 2) != vxlan_port)
        return 0;
    return map_lookup(&local_addresses, &target) && map_lookup(&known_peers, &source);
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
    if (!rules->everything && !is_ours(frame, end, rules->vxlan_port))
        return XDP_PASS;
    return redirect_map(&xsks_map, context->rx_queue_index, XDP_PASS);
}

char steering_license[] SECTION("license") = "Apache-2.0";
