//! Network namespaces and veth pairs for tests, made by the test itself over rtnetlink: nothing but the kernel and
//! root is needed.
//!
//! A namespace has no name: a file descriptor holds it, and it vanishes with its interfaces when the test ends in
//! whatever way. Work inside one is done by a thread of its own that enters it first.
#![allow(unsafe_code, dead_code)]

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// A network namespace of this test.
pub(crate) struct Namespace(OwnedFd);

impl Namespace {
    /// A new namespace with `lo` up and without IPv6 of its own accord: no router solicitations in the counts.
    pub(crate) fn new() -> Self {
        std::thread::spawn(|| {
            // SAFETY: only this thread changes its network namespace; it shares no descriptor table.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("unshare");
            std::fs::write("/proc/sys/net/ipv6/conf/default/addr_gen_mode", "1").expect("addr_gen_mode");
            std::fs::write("/proc/sys/net/ipv6/conf/default/router_solicitations", "0").expect("router_solicitations");
            set_up("lo", true);
            Namespace(std::fs::File::open("/proc/thread-self/ns/net").expect("namespace").into())
        })
        .join()
        .expect("namespace thread")
    }

    /// Runs `work` on a thread inside the namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            self.spawn(scope, work).join().unwrap_or_else(|cause| std::panic::resume_unwind(cause))
        })
    }

    /// Starts `work` on a thread inside the namespace.
    pub(crate) fn spawn<'scope, T: Send + 'scope>(
        &'scope self,
        scope: &'scope std::thread::Scope<'scope, '_>,
        work: impl FnOnce() -> T + Send + 'scope,
    ) -> std::thread::ScopedJoinHandle<'scope, T> {
        scope.spawn(move || {
            move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).expect("enter namespace");
            work()
        })
    }
}

/// One end of a veth pair.
pub(crate) struct End<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: [u8; 6],
    pub(crate) mtu: u32,
}

/// Makes a veth pair: `near` in the calling thread's namespace, `far` in `namespace`. Both are down.
pub(crate) fn make_veth(near: &End<'_>, far: &End<'_>, namespace: &Namespace) {
    make_veth_with_queues(near, far, namespace, 1);
}

/// As [`make_veth`], with several queues in each direction.
pub(crate) fn make_veth_with_queues(near: &End<'_>, far: &End<'_>, namespace: &Namespace, queues: u32) {
    let mut request = Request::link(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL, 0, 0);
    request.end(near, queues);
    request.nested(libc::IFLA_LINKINFO, |info| {
        info.attribute(libc::IFLA_INFO_KIND, b"veth");
        info.nested(libc::IFLA_INFO_DATA, |data| {
            const VETH_INFO_PEER: u16 = 1;
            data.nested(VETH_INFO_PEER, |peer| {
                peer.bytes.extend_from_slice(&[0; 16]); // struct ifinfomsg
                peer.end(far, queues);
                peer.attribute(libc::IFLA_NET_NS_FD, &(namespace.0.as_raw_fd() as u32).to_ne_bytes());
            });
        });
    });
    request.send("make veth");
}

/// Sets an interface up or down.
pub(crate) fn set_up(name: &str, up: bool) {
    let flag = libc::IFF_UP as u32;
    let mut request = Request::link(libc::RTM_NEWLINK, 0, if up { flag } else { 0 }, flag);
    request.attribute(libc::IFLA_IFNAME, &text(name));
    request.send("set up");
}

/// Gives an interface an address, usable at once.
pub(crate) fn add_address(name: &str, address: IpAddr, prefix: u8) {
    let (family, octets) = octets(address);
    const IFA_F_NODAD: u8 = 2;
    let mut request = Request::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
    request.bytes.extend_from_slice(&[family, prefix, IFA_F_NODAD, 0]);
    request.bytes.extend_from_slice(&index(name).to_ne_bytes());
    request.attribute(libc::IFA_LOCAL, &octets);
    request.attribute(libc::IFA_ADDRESS, &octets);
    request.send("add address");
}

/// Enters a permanent neighbour, so that no ARP or ND is in the counts.
pub(crate) fn add_neighbour(name: &str, address: IpAddr, mac: [u8; 6]) {
    let (family, octets) = octets(address);
    const NUD_PERMANENT: u16 = 0x80;
    const NDA_DST: u16 = 1;
    const NDA_LLADDR: u16 = 2;
    let mut request = Request::new(libc::RTM_NEWNEIGH, libc::NLM_F_CREATE | libc::NLM_F_REPLACE);
    request.bytes.extend_from_slice(&[family, 0, 0, 0]);
    request.bytes.extend_from_slice(&index(name).to_ne_bytes());
    request.bytes.extend_from_slice(&NUD_PERMANENT.to_ne_bytes());
    request.bytes.extend_from_slice(&[0, 0]);
    request.attribute(NDA_DST, &octets);
    request.attribute(NDA_LLADDR, &mac);
    request.send("add neighbour");
}

fn octets(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (libc::AF_INET as u8, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6 as u8, address.octets().to_vec()),
    }
}

fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn index(name: &str) -> u32 {
    let name = std::ffi::CString::new(name).expect("interface name");
    // SAFETY: the name ends with a zero byte and lives through the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert_ne!(index, 0, "no interface {name:?}");
    index
}

/// A netlink message being built.
struct Request {
    bytes: Vec<u8>,
}

impl Request {
    fn new(kind: u16, flags: i32) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&((flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        Self { bytes }
    }

    /// A message that starts with a struct ifinfomsg.
    fn link(kind: u16, flags: i32, interface_flags: u32, change: u32) -> Self {
        let mut request = Self::new(kind, flags);
        request.bytes.extend_from_slice(&[0; 8]);
        request.bytes.extend_from_slice(&interface_flags.to_ne_bytes());
        request.bytes.extend_from_slice(&change.to_ne_bytes());
        request
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.bytes.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let at = self.bytes.len();
        self.attribute(kind, &[]);
        fill(self);
        let length = (self.bytes.len() - at) as u16;
        self.bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn end(&mut self, end: &End<'_>, queues: u32) {
        self.attribute(libc::IFLA_IFNAME, &text(end.name));
        self.attribute(libc::IFLA_ADDRESS, &end.mac);
        self.attribute(libc::IFLA_MTU, &end.mtu.to_ne_bytes());
        self.attribute(libc::IFLA_NUM_TX_QUEUES, &queues.to_ne_bytes());
        self.attribute(libc::IFLA_NUM_RX_QUEUES, &queues.to_ne_bytes());
    }

    fn send(mut self, what: &str) {
        let length = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        let code = self.exchange().unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(code, 0, "{what}: {}", io::Error::from_raw_os_error(-code));
    }

    fn exchange(&self) -> io::Result<i32> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None, // NETLINK_ROUTE
        )?;
        rustix::net::send(&socket, &self.bytes, SendFlags::empty())?;
        let mut answer = [0u8; 4096];
        let (length, _) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
        // struct nlmsghdr, then the error code of struct nlmsgerr.
        let code = answer[..length].get(16..20).ok_or_else(|| io::Error::other("short answer"))?;
        Ok(i32::from_ne_bytes(code.try_into().map_err(io::Error::other)?))
    }
}
