//! A pod's namespace with as little as a TAP needs to carry packets, set up by ioctls: the control plane's netlink
//! is not this crate's.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use millrace_engine::port::namespace::{NamespaceHandle, in_new_namespace};
use rustix::net::{AddressFamily, SocketType};

/// Address of the pod.
pub(crate) const POD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Address the pod believes is on its link.
pub(crate) const SWITCH: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const POD_MAC: [u8; 6] = [0x02, 0, 0x5e, 0, 0, 1];
const SWITCH_MAC: [u8; 6] = [0x02, 0, 0x5e, 0, 0, 2];

/// A namespace without a name, gone with this value.
pub(crate) struct PodNamespace {
    handle: NamespaceHandle,
    _file: File,
}

impl PodNamespace {
    pub(crate) fn create() -> Self {
        let file = in_new_namespace(|| File::open("/proc/thread-self/ns/net")).expect("made").expect("opened");
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        Self { handle: NamespaceHandle::open(path).expect("handle"), _file: file }
    }

    pub(crate) fn handle(&self) -> &NamespaceHandle {
        &self.handle
    }

    /// MAC, MTU 9000, address, up, and a fixed neighbour entry for the switch. No IPv6, so that only the test talks.
    pub(crate) fn configure(&self, name: &str) {
        self.inside(|socket| {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1")
                .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
            interface(socket, libc::SIOCSIFHWADDR, name, |request| {
                request.ifru_hwaddr = hardware(POD_MAC);
            })?;
            interface(socket, libc::SIOCSIFMTU, name, |request| request.ifru_mtu = 9000)?;
            interface(socket, libc::SIOCSIFADDR, name, |request| request.ifru_addr = internet(POD))?;
            interface(socket, libc::SIOCSIFNETMASK, name, |request| {
                request.ifru_netmask = internet(Ipv4Addr::new(255, 255, 255, 0));
            })?;
            set_up(socket, name, true)?;
            let entry = libc::arpreq {
                arp_pa: internet(SWITCH),
                arp_ha: hardware(SWITCH_MAC),
                arp_flags: libc::ATF_COM | libc::ATF_PERM,
                arp_netmask: internet(Ipv4Addr::UNSPECIFIED),
                arp_dev: name_field(name),
            };
            call(socket, libc::SIOCSARP, &entry)
        });
    }

    pub(crate) fn set_down(&self, name: &str) {
        self.inside(|socket| set_up(socket, name, false));
    }

    /// Deletes the interface under the queues' feet, as the end of a namespace does.
    pub(crate) fn delete(&self, name: &str) {
        self.inside(|_| {
            // RTM_DELLINK by index: a netlink header and an ifinfomsg (rtnetlink(7)).
            let index = {
                let any = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
                rustix::net::netdevice::name_to_index(&any, name)?
            };
            let mut request = vec![32, 0, 0, 0, 17, 0, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            request.extend(index.to_ne_bytes());
            request.extend([0; 8]);
            let socket = rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
            rustix::net::send(&socket, &request, rustix::net::SendFlags::empty())?;
            let mut answer = [0u8; 64];
            let (length, _) = rustix::net::recv(&socket, &mut answer[..], rustix::net::RecvFlags::empty())?;
            assert!(length >= 20 && answer[16..20] == [0; 4], "{:?}", &answer[..length]);
            Ok(())
        });
    }

    /// A socket of the pod that waits two seconds at most.
    pub(crate) fn udp(&self) -> UdpSocket {
        let socket = self.handle.enter(|| UdpSocket::bind((POD, 0))).expect("entered").expect("socket");
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("timeout");
        socket
    }

    /// Sends `frame` from inside with a virtio-net header of its own, as any process with a raw socket can.
    pub(crate) fn inject(&self, name: &str, header: &[u8], frame: &[u8]) {
        self.inside(|any| {
            let index = rustix::net::netdevice::name_to_index(any, name)?;
            // SAFETY: socket(2) touches no memory of ours.
            let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
            if raw < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the kernel has just given us this descriptor.
            let socket = unsafe { OwnedFd::from_raw_fd(raw) };
            set_option(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
            // SAFETY: an address of zeros is a valid one.
            let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = 0x0800u16.to_be();
            address.sll_ifindex = index as libc::c_int;
            let bytes = [header, frame].concat();
            let length = size_of::<libc::sockaddr_ll>() as u32;
            let (start, count) = (bytes.as_ptr().cast(), bytes.len());
            // SAFETY: bytes and address live until the call returns, with their lengths given.
            let sent = unsafe { libc::sendto(raw, start, count, 0, (&raw const address).cast(), length) };
            if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
        });
    }

    fn inside(&self, act: impl FnOnce(&OwnedFd) -> io::Result<()> + Send) {
        let outcome = self.handle.enter(|| {
            let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
            act(&socket)
        });
        outcome.expect("entered").expect("configured");
    }
}

/// Makes the socket send units of datagrams of `size` bytes.
pub(crate) fn set_udp_segment(socket: &UdpSocket, size: libc::c_int) {
    set_option(socket, libc::SOL_UDP, libc::UDP_SEGMENT, size).expect("option");
}

/// Sets an option that is a number.
pub(crate) fn set_option(
    socket: &impl AsRawFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let (start, length) = ((&raw const value).cast(), size_of::<libc::c_int>() as u32);
    // SAFETY: the option's value lives until the call returns, with its length given.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, start, length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// An Ethernet frame with a UDP datagram to the pod. `partial` leaves the sum of the pseudo header in the checksum
/// field, otherwise it is zero: none.
pub(crate) fn udp_frame(from: Ipv4Addr, to: Ipv4Addr, ports: [u16; 2], payload: &[u8], partial: bool) -> Vec<u8> {
    let udp_length = 8 + payload.len();
    let mut frame = [POD_MAC, SWITCH_MAC].concat();
    frame.extend([8, 0, 0x45, 0]);
    frame.extend(((20 + udp_length) as u16).to_be_bytes());
    frame.extend([0, 1, 0, 0, 64, 17, 0, 0]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    let checksum = !sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    let mut pseudo = [from.octets(), to.octets()].concat();
    pseudo.extend([0, 17]);
    pseudo.extend((udp_length as u16).to_be_bytes());
    frame.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
    frame.extend((udp_length as u16).to_be_bytes());
    frame.extend((if partial { sum(&pseudo) } else { 0 }).to_be_bytes());
    frame.extend(payload);
    frame
}

fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let total: u32 = words.sum();
    ((total & 0xffff) + (total >> 16)) as u16
}

fn internet(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (target, byte) in data[2..].iter_mut().zip(address.octets()) {
        *target = byte as libc::c_char;
    }
    libc::sockaddr { sa_family: libc::AF_INET as u16, sa_data: data }
}

fn hardware(mac: [u8; 6]) -> libc::sockaddr {
    let mut data = [0; 14];
    for (target, byte) in data.iter_mut().zip(mac) {
        *target = byte as libc::c_char;
    }
    libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: data }
}

fn name_field(name: &str) -> [libc::c_char; 16] {
    let mut field = [0; 16];
    for (target, byte) in field.iter_mut().zip(name.bytes()) {
        *target = byte as libc::c_char;
    }
    field
}

fn set_up(socket: &OwnedFd, name: &str, up: bool) -> io::Result<()> {
    let flags = if up { libc::IFF_UP | libc::IFF_RUNNING } else { 0 };
    interface(socket, libc::SIOCSIFFLAGS, name, |request| request.ifru_flags = flags as libc::c_short)
}

fn interface(
    socket: &OwnedFd,
    request: libc::Ioctl,
    name: &str,
    fill: impl FnOnce(&mut libc::__c_anonymous_ifr_ifru),
) -> io::Result<()> {
    let mut argument = libc::ifreq {
        ifr_name: name_field(name),
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_map: libc::__c_anonymous_ifru_map { mem_start: 0, mem_end: 0, base_addr: 0, irq: 0, dma: 0, port: 0 },
        },
    };
    fill(&mut argument.ifr_ifru);
    call(socket, request, &argument)
}

fn call<T>(socket: &OwnedFd, request: libc::Ioctl, argument: &T) -> io::Result<()> {
    // SAFETY: each request reads an argument of the type its callers pass, which lives until the call returns.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), request, std::ptr::from_ref(argument)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
