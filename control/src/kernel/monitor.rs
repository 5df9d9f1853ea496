//! What changes in the kernel: links, addresses, routes and neighbours, as they change.
//!
//! Subscribe first and list afterwards, so that nothing falls between. When changes come faster than they are read
//! the kernel drops some and says so ([`Change::Lost`]): list everything again then.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteHeader;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::netlink::split;
use super::{KernelError, Link, NamespaceHandle, Neighbour, Route};

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A link appeared or changed.
    Link(Link),
    /// A link disappeared.
    LinkRemoved(Link),
    /// A neighbour appeared or changed.
    Neighbour(Neighbour),
    /// A neighbour entry disappeared.
    NeighbourRemoved(Neighbour),
    /// A route of the main table appeared or changed: lookups may have other answers now.
    Route(Route),
    /// A route of the main table disappeared.
    RouteRemoved(Route),
    /// An address of link number `0` appeared or disappeared.
    Addresses(u32),
    /// Changes were lost; list everything again.
    Lost,
}

/// A subscription to the changes of one namespace.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
}

/// Multicast groups of rtnetlink (include/uapi/linux/rtnetlink.h, `enum rtnetlink_groups`).
const GROUPS: [u32; 6] = [
    1,  // RTNLGRP_LINK
    3,  // RTNLGRP_NEIGH
    5,  // RTNLGRP_IPV4_IFADDR
    7,  // RTNLGRP_IPV4_ROUTE
    9,  // RTNLGRP_IPV6_IFADDR
    11, // RTNLGRP_IPV6_ROUTE
];

/// Room for changes that wait to be read; some thousand of them.
const RECEIVE_BUFFER_BYTES: i32 = 4 << 20;

impl Monitor {
    /// Subscribes in the namespace of the calling thread.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open() -> Result<Self, KernelError> {
        let attempt = || KernelError::file("subscribe to changes of the network".to_owned());
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(attempt())?;
        socket.bind(&SocketAddr::new(0, 0)).map_err(attempt())?;
        socket.set_non_blocking(true).map_err(attempt())?;
        let _ = socket.set_rx_buf_sz(RECEIVE_BUFFER_BYTES); // the default works too, with more `Lost`
        for group in GROUPS {
            socket.add_membership(group).map_err(attempt())?;
        }
        Ok(Self { socket })
    }

    /// Subscribes in `namespace`.
    ///
    /// # Errors
    /// If the namespace cannot be entered, or what the kernel said.
    pub fn open_in(namespace: &NamespaceHandle) -> Result<Self, KernelError> {
        namespace.enter(Self::open)?
    }

    /// Waits at most `timeout` for changes and returns those that came; none if time ran out.
    ///
    /// # Errors
    /// If the socket broke.
    pub fn wait(&mut self, timeout: Duration) -> Result<Vec<Change>, KernelError> {
        let refused = || KernelError::file("wait for changes of the network".to_owned());
        let timeout = Timespec::try_from(timeout).map_err(|_| refused()(std::io::ErrorKind::InvalidInput.into()))?;
        let borrowed = PollFd::new(self, PollFlags::IN);
        match rustix::event::poll(&mut [borrowed], Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Ok(_) => {}
            Err(error) => return Err(refused()(error.into())),
        }
        self.drain()
    }

    /// The changes that wait to be read, without blocking.
    ///
    /// # Errors
    /// If the socket broke.
    pub fn drain(&mut self) -> Result<Vec<Change>, KernelError> {
        let mut changes = Vec::new();
        loop {
            match self.socket.recv_from_full() {
                Ok((bytes, _)) => {
                    let bodies = split(&bytes).filter_map(Result::ok).filter_map(|(_, body)| body);
                    changes.extend(bodies.filter_map(change));
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(changes),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => changes.push(Change::Lost),
                Err(error) => return Err(KernelError::file("read changes of the network".to_owned())(error)),
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn change(body: NetlinkPayload<RouteNetlinkMessage>) -> Option<Change> {
    let NetlinkPayload::InnerMessage(message) = body else { return None };
    match message {
        RouteNetlinkMessage::NewLink(link) => Some(Change::Link(Link::read(&link))),
        RouteNetlinkMessage::DelLink(link) => Some(Change::LinkRemoved(Link::read(&link))),
        RouteNetlinkMessage::NewNeighbour(message) => Neighbour::read(&message).map(Change::Neighbour),
        RouteNetlinkMessage::DelNeighbour(message) => Neighbour::read(&message).map(Change::NeighbourRemoved),
        RouteNetlinkMessage::NewAddress(message) | RouteNetlinkMessage::DelAddress(message) => {
            Some(Change::Addresses(message.header.index))
        }
        RouteNetlinkMessage::NewRoute(message) if message.header.table == RouteHeader::RT_TABLE_MAIN => {
            Route::read(&message).map(Change::Route)
        }
        RouteNetlinkMessage::DelRoute(message) if message.header.table == RouteHeader::RT_TABLE_MAIN => {
            Route::read(&message).map(Change::RouteRemoved)
        }
        _ => None,
    }
}
