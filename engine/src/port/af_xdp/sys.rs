//! The kernel calls of AF_XDP that std has not: thin, one call each, errors as `io::Error`.
//!
//! Structures and most constants come from libc; what it lacks stands here with its place in the kernel's headers.
//! Nothing here keeps state. Called when a queue opens or closes, except [`kick_transmit`] and [`kick_receive`],
//! which a worker calls at most a few times a turn.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

/// `XDP_MAX_TX_SKB_BUDGET` (include/uapi/linux/if_xdp.h, kernel 6.17): descriptors sent in one call in copy mode.
pub(super) const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// Options of busy polling (include/uapi/asm-generic/socket.h).
const SO_BUSY_POLL: libc::c_int = 46;
const SO_PREFER_BUSY_POLL: libc::c_int = 69;
const SO_BUSY_POLL_BUDGET: libc::c_int = 70;

/// `BPF_LINK_CREATE` and `BPF_OBJ_GET_INFO_BY_FD` (enum bpf_cmd, include/uapi/linux/bpf.h).
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
/// `BPF_PROG_LOAD`.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
/// `BPF_XDP` and `BPF_TCX_INGRESS` (enum bpf_attach_type).
const BPF_XDP: u32 = 37;
const BPF_TCX_INGRESS: u32 = 46;
/// `BPF_LINK_TYPE_XDP` and `BPF_LINK_TYPE_TCX` (enum bpf_link_type).
const BPF_LINK_TYPE_XDP: u32 = 6;
const BPF_LINK_TYPE_TCX: u32 = 11;

/// `XDP_FLAGS_SKB_MODE` and `XDP_FLAGS_DRV_MODE` (include/uapi/linux/if_link.h).
pub(super) const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
pub(super) const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// `ETHTOOL_GTXCSUM` (include/uapi/linux/ethtool.h).
const ETHTOOL_GTXCSUM: u32 = 0x16;
/// `ETHTOOL_GTSO`.
const ETHTOOL_GTSO: u32 = 0x1e;
/// `ETHTOOL_STXCSUM` (include/uapi/linux/ethtool.h).
const ETHTOOL_STXCSUM: u32 = 0x17;
/// `ETHTOOL_SGRO`.
const ETHTOOL_SGRO: u32 = 0x2c;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn own(descriptor: libc::c_int) -> io::Result<OwnedFd> {
    let descriptor = check(descriptor)?;
    // SAFETY: the kernel just gave us this descriptor, and nothing else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// A new AF_XDP socket; needs CAP_NET_RAW.
pub(super) fn socket() -> io::Result<OwnedFd> {
    // SAFETY: socket(2) touches no memory of ours.
    own(unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })
}

/// Sets a socket option whose value is a plain C structure.
pub(super) fn set_option<T: Copy>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointer is to `length` readable bytes; the kernel only reads them.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), length) })?;
    Ok(())
}

/// Marks C structures of which every bit pattern is a value.
///
/// # Safety
/// All fields are integers.
pub(super) unsafe trait PlainInteger: Copy {}
// SAFETY: four structures of four u64 each.
unsafe impl PlainInteger for libc::xdp_mmap_offsets {}
// SAFETY: six u64.
unsafe impl PlainInteger for libc::xdp_statistics {}
// SAFETY: one u32.
unsafe impl PlainInteger for libc::xdp_options {}

/// Reads an option of level `SOL_XDP`; bytes the kernel does not write are zero.
pub(super) fn xdp_option<T: PlainInteger>(socket: BorrowedFd<'_>, name: libc::c_int) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointer is to `length` writable bytes, and the kernel writes no more than that.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_XDP, name, value.as_mut_ptr().cast(), &mut length) };
    check(result)?;
    // SAFETY: zeroed before the call, and any bits are a value of a PlainInteger.
    Ok(unsafe { value.assume_init() })
}

/// Binds to a queue of an interface.
pub(super) fn bind(socket: BorrowedFd<'_>, ifindex: u32, queue: u32, flags: u16, share: RawFd) -> io::Result<()> {
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: flags,
        sxdp_ifindex: ifindex,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: u32::try_from(share).unwrap_or(0),
    };
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address is `length` readable bytes that live through the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), std::ptr::from_ref(&address).cast(), length) })?;
    Ok(())
}

/// Has the calls of the socket's owner run the driver's receive loop, for at most `budget` packets each, instead of an
/// interrupt (Documentation/networking/napi.rst, "Busy polling"). More than 8 needs CAP_NET_ADMIN.
pub(super) fn prefer_busy_poll(socket: BorrowedFd<'_>, microseconds: u32, budget: u16) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, SO_PREFER_BUSY_POLL, &1u32)?;
    set_option(socket, libc::SOL_SOCKET, SO_BUSY_POLL, &microseconds)?;
    set_option(socket, libc::SOL_SOCKET, SO_BUSY_POLL_BUDGET, &u32::from(budget))
}

/// Asks the kernel to send what stands in the transmit ring.
#[inline]
pub(super) fn kick_transmit(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no buffer and no address are passed; the kernel reads the ring.
    let sent =
        unsafe { libc::sendto(socket.as_raw_fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Asks the driver to look at the fill ring.
#[inline]
pub(super) fn kick_receive(socket: BorrowedFd<'_>) {
    // SAFETY: no buffer and no address are passed. Any error means that there was nothing to wake.
    let _ = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            std::ptr::null_mut(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    };
}

/// A mapping that ends with this value.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping is plain memory; who may touch it is the business of the ring that owns it.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `length` bytes of a ring of `socket`, `page_offset` saying which.
    pub(super) fn ring(socket: BorrowedFd<'_>, length: usize, page_offset: libc::off_t) -> io::Result<Self> {
        Self::map(length, libc::MAP_SHARED | libc::MAP_POPULATE, socket.as_raw_fd(), page_offset)
    }

    /// Maps `length` zeroed bytes.
    pub(super) fn anonymous(length: usize) -> io::Result<Self> {
        Self::map(length, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE, -1, 0)
    }

    fn map(length: usize, flags: libc::c_int, descriptor: RawFd, offset: libc::off_t) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping at an address the kernel chooses; no existing memory is touched.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, descriptor, offset) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok(Self { base, length })
    }

    /// First byte.
    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Bytes mapped.
    pub(super) fn length(&self) -> usize {
        self.length
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping made in `map`; whoever held pointers into it owned `self`.
        let _ = unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

/// The number of a network interface in this thread's namespace.
pub(super) fn interface_index(interface: &str) -> io::Result<u32> {
    let name = CString::new(interface).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the name ends with a zero byte and lives through the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 { Err(io::Error::last_os_error()) } else { Ok(index) }
}

/// An `ifreq` with the interface's name and nothing else.
fn interface_request(interface: &str) -> io::Result<libc::ifreq> {
    let mut name = [0 as libc::c_char; libc::IFNAMSIZ];
    if interface.is_empty() || interface.len() >= libc::IFNAMSIZ {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_ifindex: 0 } })
}

fn interface_call(request: libc::c_ulong, argument: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: socket(2) touches no memory of ours.
    let socket = own(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: both requests we make read and write one ifreq, which lives through the call; what its union points to
    // lives as long by the word of the caller in this file.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), request as _, std::ptr::from_mut(argument)) })?;
    Ok(())
}

/// The interface's MTU: bytes behind the Ethernet header.
pub(super) fn interface_mtu(interface: &str) -> io::Result<usize> {
    let mut request = interface_request(interface)?;
    interface_call(libc::SIOCGIFMTU as libc::c_ulong, &mut request)?;
    // SAFETY: SIOCGIFMTU filled this member, and any bits are an integer.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    Ok(usize::try_from(mtu).unwrap_or(0))
}

/// `SIOCETHTOOL` (include/uapi/linux/sockios.h).
const SIOCETHTOOL: libc::c_ulong = 0x8946;

/// Switches transmit checksum offload of `interface` on or off, in this thread's network namespace.
///
/// A kernel that sends over a veth leaves layer-4 checksums to a wire that does not exist; who reads its frames by
/// AF_XDP sees them unfinished. Off makes that kernel finish them.
///
/// # Errors
/// What the kernel said to the request: no such interface, or no right to change it.
pub fn set_transmit_checksum(interface: &str, on: bool) -> io::Result<()> {
    set_offload(interface, ETHTOOL_STXCSUM, on)
}

/// Switches on or off that the kernel gathers what comes in by an interface, packets of one flow into one (GRO). Cards have
/// it on, veth pairs off.
///
/// # Errors
/// As [`set_transmit_checksum`].
pub fn set_receive_gathering(interface: &str, on: bool) -> io::Result<()> {
    set_offload(interface, ETHTOOL_SGRO, on)
}

/// What an interface leaves to whoever takes its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftToReceiver {
    /// Checksums of layer 4.
    pub checksums: bool,
    /// Cutting TCP units into segments.
    pub tcp_segmentation: bool,
}

/// What `interface` leaves to whoever takes its frames, in this thread's network namespace: its transmit offloads, as
/// `ethtool -k` shows them.
///
/// # Errors
/// What the kernel said to the request: no such interface.
pub fn left_to_receiver(interface: &str) -> io::Result<LeftToReceiver> {
    let is_on = |command| offload(interface, command, 0).map(|value| value != 0);
    Ok(LeftToReceiver { checksums: is_on(ETHTOOL_GTXCSUM)?, tcp_segmentation: is_on(ETHTOOL_GTSO)? })
}

fn set_offload(interface: &str, command: u32, on: bool) -> io::Result<()> {
    offload(interface, command, u32::from(on)).map(drop)
}

/// Asks for an offload or sets it; the value as the kernel leaves it.
fn offload(interface: &str, command: u32, data: u32) -> io::Result<u32> {
    #[repr(C)]
    struct EthtoolValue {
        command: u32,
        data: u32,
    }
    let mut value = EthtoolValue { command, data };
    let mut request = interface_request(interface)?;
    request.ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_data: std::ptr::from_mut(&mut value).cast() };
    interface_call(SIOCETHTOOL, &mut request)?;
    Ok(value.data)
}

/// How many receive queues `interface` has in use, in this thread's network namespace.
///
/// # Errors
/// What the kernel said; drivers with one queue often do not know the question (EOPNOTSUPP).
pub fn receive_queues(interface: &str) -> io::Result<usize> {
    /// `struct ethtool_channels` (include/uapi/linux/ethtool.h): what may be set, then what is set.
    #[repr(C)]
    #[derive(Default)]
    struct EthtoolChannels {
        command: u32,
        most: [u32; 4],
        receive: u32,
        transmit: u32,
        other: u32,
        combined: u32,
    }
    const ETHTOOL_GCHANNELS: u32 = 0x3c;
    let mut channels = EthtoolChannels { command: ETHTOOL_GCHANNELS, ..EthtoolChannels::default() };
    let mut request = interface_request(interface)?;
    request.ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_data: std::ptr::from_mut(&mut channels).cast() };
    interface_call(SIOCETHTOOL, &mut request)?;
    Ok(channels.receive as usize + channels.combined as usize)
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: bpf(2) reads as many attribute bytes as it is told; what they point to lives through the call by the
    // word of the callers in this file.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    check(result as libc::c_int)
}

/// Loads a classifier that drops every packet.
pub(super) fn load_drop_program() -> io::Result<OwnedFd> {
    /// `BPF_PROG_TYPE_SCHED_CLS`.
    const CLASSIFIER: u32 = 3;
    /// `r0 = TCX_DROP; exit` as `struct bpf_insn` of a little-endian machine: the code, then the immediate value above.
    const DROP_ALL: [u64; 2] = [0xb7 | 2 << 32, 0x95];
    const LICENSE: &std::ffi::CStr = c"Apache-2.0";
    #[repr(C)]
    struct ProgramLoad {
        kind: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
    }
    let mut attributes = ProgramLoad {
        kind: CLASSIFIER,
        instruction_count: DROP_ALL.len() as u32,
        instructions: DROP_ALL.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
    };
    own(bpf(BPF_PROG_LOAD, &mut attributes)?)
}

/// Attaches an XDP program to an interface as a BPF link, which ends with the descriptor.
pub(super) fn attach_xdp_link(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    attach_link(program, ifindex, BPF_XDP, flags)
}

/// Attaches a classifier to what an interface receives as a BPF link, behind those that are there (kernel 6.6).
pub(super) fn attach_tcx_link(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<OwnedFd> {
    attach_link(program, ifindex, BPF_TCX_INGRESS, 0)
}

fn attach_link(program: BorrowedFd<'_>, ifindex: u32, attach_type: u32, flags: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct LinkCreate {
        program: u32,
        target_ifindex: u32,
        attach_type: u32,
        flags: u32,
    }
    let mut attributes =
        LinkCreate { program: program.as_raw_fd() as u32, target_ifindex: ifindex, attach_type, flags };
    own(bpf(BPF_LINK_CREATE, &mut attributes)?)
}

/// The interface an XDP or tcx link is attached to; `None` if the descriptor is a link of another kind, zero if the
/// interface is gone.
pub(super) fn link_interface(link: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    // struct bpf_link_info: type, id, program id, padding, then the union, of which both use the first u32.
    let mut info = [0u32; 16];
    #[repr(C)]
    struct InfoByDescriptor {
        descriptor: u32,
        length: u32,
        info: u64,
    }
    let mut attributes = InfoByDescriptor {
        descriptor: link.as_raw_fd() as u32,
        length: size_of_val(&info) as u32,
        info: info.as_mut_ptr() as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok([BPF_LINK_TYPE_XDP, BPF_LINK_TYPE_TCX].contains(&info[0]).then_some(info[4]))
}
