//! An uplink whose tunnels go through UDP sockets of the kernel, and all else through another port.
//!
//! Where AF_XDP can only copy, sockets are the faster wire: the segments of a unit leave with one call (`UDP_SEGMENT`) and
//! stay together in the kernel as long as the card allows, and what the kernel gathers of one sender comes in with one call
//! (`UDP_GRO`). The kernel makes the outer headers, chooses the way and keeps the neighbour; everything else of the switch
//! stays as with any uplink, since outer headers stand before each packet here, too (`outer.rs`): those that the edit put on
//! are read and left out, those that the kernel took off are written again. A mark on the packet
//! ([`Packet::is_tunnelled`](crate::packet::Packet::is_tunnelled)) tells the packets of tunnels from others, which go to the
//! plain port: a pod's own datagrams to the same UDP port among them.
//!
//! **Which worker.** Each worker has a socket for each family at the VXLAN port (`SO_REUSEPORT`). The kernel chooses by a
//! hash of outer addresses and ports; the sender's source port depends on the inner flow alone, so each direction of a flow
//! stays with one worker as long as the sockets are the same. Both directions may be with different ones.
//!
//! **Source ports.** Sixteen sockets a worker and family, which never receive; a flow's hash chooses. Not connected, so that
//! no error of one peer is told to packets of another, and `IP_RECVERR` is off, so that none waits: what the kernel cannot
//! send it says at once. The path's MTU is the kernel's ("don't fragment" is set): a packet that is longer than the path
//! takes drops as `oversized`, where a card's queue would have sent it to a router that drops it. Routes and interfaces
//! with a smaller MTU are told to senders before, as with any uplink, from the tables.
//!
//! Checksums: the outer one is on (the kernel refuses to cut without, and a receiving kernel gathers only with it) and is
//! verified by the receiving kernel. Inner ones are complete; those that came in are looked at by whoever uses them, see
//! `transmit/joining.rs`; partial ones of a kernel behind a veth pair are known (`inner.rs`).
//!
//! A datagram that came in fragments is put together by the kernel, unless the plain port takes fragments: then it is lost as
//! with any uplink (RFC 7348 section 4.3 forbids senders to fragment). A firewall of the host sees tunnels: it must let the
//! VXLAN port in.
//!
//! Sources: udp(7), ip(7), ipv6(7), Linux net/ipv4/udp.c, net/ipv4/udp_offload.c. Measured: `docs/benchmarking.md`.

mod batch;
mod inner;
mod outer;
mod queue;
mod sending;
mod sys;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use thiserror::Error;

use super::packet_socket;
use super::socket::{set_buffers, set_option};
use crate::limits;
pub use queue::UdpQueue;

/// Hop limit of what this switch originates, as the edit writes it (RFC 1700).
const HOP_LIMIT: libc::c_int = 64;

/// Why sockets could not be opened.
#[derive(Debug, Error)]
pub enum UdpError {
    /// The interface does not exist in this thread's network namespace.
    #[error("tunnels by UDP sockets on {interface}: no such interface: {error}")]
    Interface {
        /// The interface's name.
        interface: String,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// Somebody else has the VXLAN port: a VXLAN device of the kernel, or another agent.
    #[error(
        "tunnels by UDP sockets on {interface}: UDP port {port} is taken, by a VXLAN device or another agent: {error}"
    )]
    Occupied {
        /// The interface's name.
        interface: String,
        /// The port.
        port: u16,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// The kernel refused a step; CAP_NET_RAW is needed.
    #[error("tunnels by UDP sockets on {interface}: could not {attempt}: {error}")]
    System {
        /// The interface's name.
        interface: String,
        /// What was attempted, as an infinitive.
        attempt: &'static str,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
}

/// The sockets of one worker.
#[derive(Debug)]
pub struct UdpSockets {
    index: u32,
    mtu: usize,
    udp_port: u16,
    ipv4: Family,
    /// None where the kernel has no IPv6.
    ipv6: Option<Family>,
}

/// Those of one family.
#[derive(Debug)]
struct Family {
    receiving: OwnedFd,
    sending: Vec<OwnedFd>,
}

impl UdpSockets {
    /// Opens sockets for `count` workers, for tunnels through an interface of this thread's network namespace. `mtu` is the
    /// interface's, `udp_port` is VXLAN's.
    ///
    /// # Errors
    /// [`UdpError`], naming the interface.
    pub fn open_group(interface: &str, mtu: u32, udp_port: u16, count: usize) -> Result<Vec<Self>, UdpError> {
        let opening = Opening { interface, udp_port, shared: count > 1 };
        let mut group = Vec::with_capacity(count);
        for _ in 0..count {
            let ipv4 = opening.family(AddressFamily::INET)?;
            let index = rustix::net::netdevice::name_to_index(&ipv4.receiving, interface);
            let index =
                index.map_err(|error| UdpError::Interface { interface: interface.to_owned(), error: error.into() })?;
            let ipv6 = opening.has_ipv6().then(|| opening.family(AddressFamily::INET6)).transpose()?;
            group.push(Self { index, mtu: mtu as usize, udp_port, ipv4, ipv6 });
        }
        Ok(group)
    }

    /// Those that another process opened, `(index, mtu, udp_port)` as it did; `None` if their number is not right.
    pub(super) fn handed(
        (index, mtu, udp_port): (u32, u32, u16),
        has_ipv6: bool,
        descriptors: Vec<OwnedFd>,
    ) -> Option<Self> {
        const OF_FAMILY: usize = 1 + limits::UDP_SOURCE_PORTS;
        if descriptors.len() != OF_FAMILY * (1 + usize::from(has_ipv6)) {
            return None;
        }
        let mut descriptors = descriptors.into_iter();
        let mut family = || {
            let receiving = descriptors.next()?;
            Some(Family { receiving, sending: descriptors.by_ref().take(limits::UDP_SOURCE_PORTS).collect() })
        };
        let ipv4 = family()?;
        Some(Self { index, mtu: mtu as usize, udp_port, ipv4, ipv6: if has_ipv6 { family() } else { None } })
    }

    /// All descriptors, as [`UdpSockets::handed`] takes them.
    fn descriptors(&self) -> io::Result<Vec<OwnedFd>> {
        let of = |family: &Family| {
            std::iter::once(&family.receiving).chain(&family.sending).map(OwnedFd::try_clone).collect::<Vec<_>>()
        };
        self.families().flat_map(of).collect()
    }

    fn family(&self, is_ipv4: bool) -> Option<&Family> {
        if is_ipv4 { Some(&self.ipv4) } else { self.ipv6.as_ref() }
    }

    fn families(&self) -> impl Iterator<Item = &Family> {
        std::iter::once(&self.ipv4).chain(&self.ipv6)
    }

    fn interface_index(&self) -> u32 {
        self.index
    }

    /// Datagrams that the kernel dropped before they were taken.
    fn dropped(&self) -> u64 {
        self.families().map(|family| sys::dropped(&family.receiving).unwrap_or(0)).sum()
    }
}

impl Family {
    /// The socket for a flow, by what makes its outer headers differ from those of others.
    #[inline]
    fn source_port(&self, entropy: u16) -> &OwnedFd {
        &self.sending[usize::from(entropy) % limits::UDP_SOURCE_PORTS]
    }
}

/// Whether the kernel cuts datagrams on their way out of an interface of this thread's network namespace: one call is made,
/// to a group that this host is in, with a hop limit of zero, so that nothing reaches the wire.
///
/// # Errors
/// What the kernel said: EIO where it does not cut.
pub fn probe_segmentation(interface: &str) -> io::Result<()> {
    /// All systems (RFC 1112 section 4): every interface is in it without saying so. Of other groups a packet with a hop limit
    /// of zero would go out.
    const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, FLAGS, None)?;
    let index = rustix::net::netdevice::name_to_index(&socket, interface)?;
    sockopt::set_ip_multicast_ttl(&socket, 0)?;
    sockopt::set_ip_multicast_loop(&socket, false)?;
    let departure = sys::Departure {
        source: Ipv4Addr::UNSPECIFIED.into(),
        destination: (GROUP, 9).into(),
        interface: index,
        traffic_class: 0,
        segment: Some(8),
    };
    sys::send(&socket, &departure, &[io::IoSlice::new(&[0; 16])])
}

const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

/// Opens sockets of one interface.
struct Opening<'a> {
    interface: &'a str,
    udp_port: u16,
    /// Whether several workers share the port.
    shared: bool,
}

impl Opening<'_> {
    fn failed(&self, attempt: &'static str) -> impl Fn(io::Error) -> UdpError {
        let interface = self.interface.to_owned();
        move |error| UdpError::System { interface: interface.clone(), attempt, error }
    }

    fn has_ipv6(&self) -> bool {
        rustix::net::socket_with(AddressFamily::INET6, SocketType::DGRAM, FLAGS, None).is_ok()
    }

    fn family(&self, family: AddressFamily) -> Result<Family, UdpError> {
        let sending = (0..limits::UDP_SOURCE_PORTS).map(|_| self.sending(family)).collect::<Result<_, _>>()?;
        Ok(Family { receiving: self.receiving(family)?, sending })
    }

    fn socket(&self, family: AddressFamily) -> Result<OwnedFd, UdpError> {
        let socket = rustix::net::socket_with(family, SocketType::DGRAM, FLAGS, None);
        let socket = socket.map_err(io::Error::from).map_err(self.failed("make a socket"))?;
        if family == AddressFamily::INET6 {
            let only = sockopt::set_ipv6_v6only(&socket, true).map_err(io::Error::from);
            only.map_err(self.failed("set a socket up"))?;
        }
        set_buffers(&socket).map_err(self.failed("set the sizes of buffers"))?;
        Ok(socket)
    }

    fn receiving(&self, family: AddressFamily) -> Result<OwnedFd, UdpError> {
        let socket = self.socket(family)?;
        let options: &[(libc::c_int, libc::c_int)] = match family {
            AddressFamily::INET6 => {
                &[(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO), (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS)]
            }
            _ => &[(libc::IPPROTO_IP, libc::IP_PKTINFO), (libc::IPPROTO_IP, libc::IP_RECVTOS)],
        };
        for (level, option) in options.iter().chain(&[(libc::IPPROTO_UDP, sys::UDP_GRO)]) {
            set_option(&socket, *level, *option, 1).map_err(self.failed("ask for what stands beside datagrams"))?;
        }
        if self.shared {
            let shared = sockopt::set_socket_reuseport(&socket, true).map_err(io::Error::from);
            shared.map_err(self.failed("share the port among workers"))?;
        }
        sys::bind_to_interface(&socket, self.interface).map_err(|error| match error.raw_os_error() {
            Some(libc::ENODEV) => UdpError::Interface { interface: self.interface.to_owned(), error },
            _ => self.failed("tie a socket to the interface")(error),
        })?;
        bind(&socket, family, self.udp_port).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => {
                UdpError::Occupied { interface: self.interface.to_owned(), port: self.udp_port, error }
            }
            _ => self.failed("bind to the VXLAN port")(error),
        })?;
        Ok(socket)
    }

    /// A socket of a source port that the kernel chooses; what is sent to it is not taken.
    fn sending(&self, family: AddressFamily) -> Result<OwnedFd, UdpError> {
        let socket = self.socket(family)?;
        packet_socket::take_nothing(&socket).map_err(self.failed("set a filter"))?;
        let options: &[(libc::c_int, libc::c_int, libc::c_int)] = match family {
            AddressFamily::INET6 => &[
                (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO),
                (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, HOP_LIMIT),
            ],
            _ => &[
                (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
                (libc::IPPROTO_IP, libc::IP_TTL, HOP_LIMIT),
            ],
        };
        for (level, option, value) in options {
            set_option(&socket, *level, *option, *value).map_err(self.failed("forbid fragments"))?;
        }
        bind(&socket, family, 0).map_err(self.failed("bind to a source port"))?;
        Ok(socket)
    }
}

fn bind(socket: &OwnedFd, family: AddressFamily, port: u16) -> io::Result<()> {
    match family {
        AddressFamily::INET6 => rustix::net::bind(socket, &SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0))?,
        _ => rustix::net::bind(socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))?,
    }
    Ok(())
}
