//! One AF_XDP socket bound to one queue of one interface, with its four rings.
//!
//! Opening tries, in this order: zero-copy sharing a live registration, zero-copy with its own, copy sharing, copy
//! with its own; sharing passes no flags of its own, since the kernel takes them from the socket shared from. A queue
//! that is busy is tried again for a second: the kernel frees the queue of a dead process only a moment later.
//! Runs off the packet threads; dropping unmaps the rings before it closes the descriptor, since each mapping alone
//! would keep the socket alive and the queue busy.

use std::fmt;
use std::io;
use std::num::NonZeroU16;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::rings::{ConsumerRing, ProducerRing};
use super::sys;
use super::umem::{Mode, Umem};

const BUSY_RETRY_TIME: Duration = Duration::from_secs(1);
const BUSY_RETRY_PAUSE: Duration = Duration::from_millis(10);

/// Descriptors sent in one call in copy mode. The kernel's default of 32 costs a call for every 32 packets.
const TRANSMIT_BUDGET: u32 = 256;

/// Bytes of packets in flight the kernel charges to the socket; its default holds about 250 packets.
const SEND_BUFFER_BYTES: libc::c_int = 8 << 20;

/// How long a blocking call polls. The worker's calls never block, but without a time the kernel does not poll at all.
const BUSY_POLL_MICROSECONDS: u32 = 20;

/// Slots of each ring; powers of two from 64 to 32768.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSizes {
    /// Received packets that wait for the worker.
    pub receive: u32,
    /// Packets that wait for the kernel.
    pub transmit: u32,
    /// Free frames the kernel receives into.
    pub fill: u32,
    /// Sent frames that come back.
    pub completion: u32,
}

impl Default for RingSizes {
    /// 2048 each: 4 MiB of frames in the fill ring, and 96 KiB of rings.
    fn default() -> Self {
        Self { receive: 2048, transmit: 2048, fill: 2048, completion: 2048 }
    }
}

impl RingSizes {
    /// The first size that is not allowed.
    pub(super) fn illegal(&self) -> Option<u32> {
        let all = [self.receive, self.transmit, self.fill, self.completion];
        all.into_iter().find(|size| !size.is_power_of_two() || !(64..=32_768).contains(size))
    }
}

/// One way that was tried to bind, and what the kernel said.
#[derive(Debug)]
pub struct Attempt {
    /// Copy or zero-copy, shared or own registration.
    pub way: &'static str,
    /// Which step failed.
    pub step: &'static str,
    /// What the kernel said.
    pub error: io::Error,
}

impl Attempt {
    fn is_busy(&self) -> bool {
        self.error.raw_os_error() == Some(libc::EBUSY)
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}: {}", self.way, self.step, self.error)?;
        let hint = match self.error.raw_os_error() {
            Some(libc::EBUSY) => " (another socket holds the queue)",
            Some(libc::EINVAL) if self.step == "bind" => " (no such queue, or a flag this kernel does not know)",
            Some(libc::ENOBUFS) => " (locked-memory limit; CAP_IPC_LOCK lifts it)",
            Some(libc::EPERM) => " (needs CAP_NET_RAW)",
            Some(libc::EAFNOSUPPORT) => " (kernel without AF_XDP)",
            Some(libc::EOPNOTSUPP) => " (not supported by this driver)",
            _ => "",
        };
        formatter.write_str(hint)
    }
}

/// What to bind.
pub(super) struct Request {
    pub(super) ifindex: u32,
    pub(super) queue: u32,
    pub(super) rings: RingSizes,
    pub(super) try_zero_copy: bool,
    pub(super) need_wakeup: bool,
    pub(super) multi_buffer: bool,
    pub(super) busy_poll_budget: Option<NonZeroU16>,
}

/// A bound socket. The fields drop in order: rings first.
pub(super) struct Socket {
    pub(super) fill: ProducerRing<u64>,
    pub(super) completion: ConsumerRing<u64>,
    pub(super) receive: ConsumerRing<libc::xdp_desc>,
    pub(super) transmit: ProducerRing<libc::xdp_desc>,
    descriptor: Arc<OwnedFd>,
    umem: Umem,
    /// As the kernel reports it.
    pub(super) mode: Mode,
    /// Whether the registration is shared with an earlier socket.
    pub(super) shared: bool,
}

impl Drop for Socket {
    fn drop(&mut self) {
        // From here nobody else can share from the descriptor, so dropping the last field closes it.
        self.umem.leave(&self.descriptor);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Socket {
    /// The descriptor, for who must not keep it open.
    pub(super) fn weak(&self) -> Weak<OwnedFd> {
        Arc::downgrade(&self.descriptor)
    }

    /// Binds to the queue in the best way the kernel allows; otherwise everything that was tried.
    pub(super) fn open(request: &Request, umem: &Umem) -> Result<Self, Vec<Attempt>> {
        let deadline = Instant::now() + BUSY_RETRY_TIME;
        loop {
            let attempts = match Self::open_once(request, umem) {
                Ok(socket) => return Ok(socket),
                Err(attempts) => attempts,
            };
            let busy = attempts.last().is_some_and(Attempt::is_busy);
            if !busy || Instant::now() >= deadline {
                return Err(attempts);
            }
            std::thread::sleep(BUSY_RETRY_PAUSE);
        }
    }

    /// Tries each way once. A busy queue ends the round: the next way might find it free a moment later, and the
    /// queue would have got a worse mode by chance.
    fn open_once(request: &Request, umem: &Umem) -> Result<Self, Vec<Attempt>> {
        let mut attempts = Vec::new();
        let copies = if request.try_zero_copy { &[true, false][..] } else { &[false][..] };
        for &zero_copy in copies {
            let mode = Mode { zero_copy, need_wakeup: request.need_wakeup, multi_buffer: request.multi_buffer };
            match umem.share(mode, |lender| Self::bind(request, umem, mode, Some(lender))) {
                Some(Ok(bound)) => return Ok(bound.enter(request)),
                Some(Err(attempt)) => attempts.push(attempt),
                None => {}
            }
            if attempts.last().is_some_and(Attempt::is_busy) {
                break;
            }
            match Self::bind(request, umem, mode, None) {
                Ok(bound) => return Ok(bound.enter(request)),
                Err(attempt) => attempts.push(attempt),
            }
            if attempts.last().is_some_and(Attempt::is_busy) {
                break;
            }
        }
        Err(attempts)
    }

    /// Lists the socket as one to share from. Not part of `bind`, which may run under the list's lock.
    fn enter(self, request: &Request) -> Self {
        self.umem.enter(&self.descriptor, self.mode, request.ifindex, request.queue);
        self
    }

    fn bind(request: &Request, umem: &Umem, mode: Mode, lender: Option<BorrowedFd<'_>>) -> Result<Self, Attempt> {
        let way = match (mode.zero_copy, lender.is_some()) {
            (true, true) => "zero-copy, shared UMEM",
            (true, false) => "zero-copy, own UMEM",
            (false, true) => "copy, shared UMEM",
            (false, false) => "copy, own UMEM",
        };
        let failed = |step| move |error| Attempt { way, step, error };
        let descriptor = sys::socket().map_err(failed("socket"))?;
        let socket = descriptor.as_fd();
        if lender.is_none() {
            umem.register(socket).map_err(failed("register UMEM"))?;
        }
        let sizes = &request.rings;
        set_ring_sizes(socket, sizes).map_err(failed("set ring sizes"))?;
        let offsets = sys::xdp_option::<libc::xdp_mmap_offsets>(socket, libc::XDP_MMAP_OFFSETS)
            .map_err(failed("read ring offsets"))?;
        let fill_page = libc::XDP_UMEM_PGOFF_FILL_RING as libc::off_t;
        let completion_page = libc::XDP_UMEM_PGOFF_COMPLETION_RING as libc::off_t;
        let map = "map rings";
        let fill = ProducerRing::map(socket, &offsets.fr, sizes.fill, fill_page).map_err(failed(map))?;
        let completion =
            ConsumerRing::map(socket, &offsets.cr, sizes.completion, completion_page).map_err(failed(map))?;
        let receive =
            ConsumerRing::map(socket, &offsets.rx, sizes.receive, libc::XDP_PGOFF_RX_RING).map_err(failed(map))?;
        let transmit =
            ProducerRing::map(socket, &offsets.tx, sizes.transmit, libc::XDP_PGOFF_TX_RING).map_err(failed(map))?;
        let (flags, share) = bind_flags(mode, lender);
        sys::bind(socket, request.ifindex, request.queue, flags, share).map_err(failed("bind"))?;
        raise_limits(socket, sizes);
        if let Some(budget) = request.busy_poll_budget {
            let set = sys::prefer_busy_poll(socket, BUSY_POLL_MICROSECONDS, budget.get());
            set.map_err(failed("busy polling"))?;
        }
        let mode = Mode { zero_copy: is_zero_copy(socket).map_err(failed("read mode"))?, ..mode };
        let shared = lender.is_some();
        let descriptor = Arc::new(descriptor);
        Ok(Self { fill, completion, receive, transmit, descriptor, umem: umem.clone(), mode, shared })
    }

    /// Packets lost on the way in: no free frame or too long a packet, and receive ring full. The kernel counts a
    /// packet that found the fill ring empty both as dropped and as fill-ring event, so that event is not added.
    pub(super) fn kernel_drops(&self) -> Option<u64> {
        let statistics = sys::xdp_option::<libc::xdp_statistics>(self.as_fd(), libc::XDP_STATISTICS).ok()?;
        Some(statistics.rx_dropped + statistics.rx_ring_full)
    }
}

fn set_ring_sizes(socket: BorrowedFd<'_>, sizes: &RingSizes) -> io::Result<()> {
    let rings = [
        (libc::XDP_UMEM_FILL_RING, sizes.fill),
        (libc::XDP_UMEM_COMPLETION_RING, sizes.completion),
        (libc::XDP_RX_RING, sizes.receive),
        (libc::XDP_TX_RING, sizes.transmit),
    ];
    rings.iter().try_for_each(|(ring, size)| sys::set_option(socket, libc::SOL_XDP, *ring, size))
}

fn bind_flags(mode: Mode, lender: Option<BorrowedFd<'_>>) -> (u16, i32) {
    if let Some(lender) = lender {
        return (libc::XDP_SHARED_UMEM, lender.as_raw_fd());
    }
    let copy = if mode.zero_copy { libc::XDP_ZEROCOPY } else { libc::XDP_COPY };
    let wakeup = if mode.need_wakeup { libc::XDP_USE_NEED_WAKEUP } else { 0 };
    let multi_buffer = if mode.multi_buffer { libc::XDP_USE_SG } else { 0 };
    (copy | wakeup | multi_buffer, 0)
}

/// Lifts limits where the kernel lets us; without, the socket is only slower.
fn raise_limits(socket: BorrowedFd<'_>, sizes: &RingSizes) {
    let budget = TRANSMIT_BUDGET.min(sizes.transmit);
    let _ = sys::set_option(socket, libc::SOL_XDP, sys::XDP_MAX_TX_SKB_BUDGET, &budget);
    if sys::set_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &SEND_BUFFER_BYTES).is_err() {
        let _ = sys::set_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUF, &SEND_BUFFER_BYTES);
    }
}

fn is_zero_copy(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let options = sys::xdp_option::<libc::xdp_options>(socket, libc::XDP_OPTIONS)?;
    Ok(options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
}
