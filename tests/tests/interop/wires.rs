//! Namespaces and veth pairs of one column: three sides and a middle.
//!
//! Two wires go from our side to the other one's: one carries VLANs, one carries service tags. The underlay is a hub in
//! the middle: a bridge of the kernel that forgets at once, so that whatever a tunnel end sends is seen at `probe`, too.

use std::fs;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use millrace_control::kernel::{LinkChange, Namespace, Netlink};
use millrace_engine::packet::Mac;
use millrace_engine::port::af_xdp::set_transmit_checksum;
use millrace_engine::port::namespace::NamespaceHandle;

/// The wire that carries VLANs.
pub(crate) const WIRE: &str = "wire";
/// The wire that carries service tags.
pub(crate) const SERVICE_WIRE: &str = "swire";
/// Each side's end of the underlay.
pub(crate) const UNDERLAY: &str = "up0";
/// The middle's TAP at the hub.
pub(crate) const PROBE: &str = "probe";
/// UDP port of VXLAN.
pub(crate) const VXLAN_PORT: u16 = 8472;
/// VLAN and VNI of each segment that goes through tunnels between our side and the other one.
pub(crate) const TUNNELLED: [(u16, u32); 3] = [(30, 1), (31, 4095), (32, 16_777_215)];
/// VLAN and VNI of the segment that has members on all three sides.
pub(crate) const SHARED: (u16, u32) = (33, 5020);

/// Protocol of the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Underlay {
    Ipv4,
    Ipv6,
}

impl Underlay {
    /// Tunnel ends: ours, the other one's, the third one's.
    const fn ends(self) -> [&'static str; 3] {
        match self {
            Underlay::Ipv4 => ["192.0.2.1", "192.0.2.2", "192.0.2.3"],
            Underlay::Ipv6 => ["2001:db8::1", "2001:db8::2", "2001:db8::3"],
        }
    }

    /// Longest packet that fits into a tunnel of an underlay of 1500 bytes (RFC 7348 section 4.3 leaves that to us).
    pub(crate) const fn longest_inside(self) -> usize {
        match self {
            Underlay::Ipv4 => 1450,
            Underlay::Ipv6 => 1430,
        }
    }
}

/// What carries our tunnels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    AfXdp,
    Udp,
}

/// The sides and what joins them.
pub(crate) struct Wires {
    /// Ours, the other one's, the third one's.
    pub(crate) sides: [Namespace; 3],
    middle: Namespace,
    pub(crate) underlay: Underlay,
    pub(crate) lane: Lane,
    /// A word that no other process and no other test uses.
    pub(crate) unique: String,
}

/// MAC address of an end of the underlay.
pub(crate) fn underlay_mac(side: usize) -> Mac {
    Mac([2, 0xee, 0, 0, 0, side as u8 + 1])
}

impl Wires {
    pub(crate) fn create(underlay: Underlay, lane: Lane) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("millrace-interop-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let namespace = |name: &str| Namespace::create_named(&format!("{unique}-{name}")).expect("namespace");
        let sides = ["near", "far", "third"].map(namespace);
        let wires = Self { sides, middle: namespace("middle"), underlay, lane, unique };
        for side in wires.sides.iter().chain([&wires.middle]) {
            // No router solicitations and reports of the kernel's own: every frame that is seen was sent by the test.
            let quiet = || {
                fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1")?;
                fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")
            };
            side.handle().enter(quiet).expect("entered").expect("IPv6 off");
            Netlink::open_in(side.handle()).expect("netlink").change_link("lo", &LinkChange::up()).expect("up");
        }
        for name in [WIRE, SERVICE_WIRE] {
            let mut netlink = Netlink::open_in(wires.sides[0].handle()).expect("netlink");
            netlink.create_veth((name, None), (name, Some(wires.sides[1].handle()))).expect("veth");
            wires.sides[..2].iter().for_each(|side| raise(side.handle(), name, None));
        }
        wires.join_underlay();
        wires
    }

    fn join_underlay(&self) {
        let middle = |line: &str| run_in(self.middle.handle(), line).expect("the underlay's hub");
        middle("ip link add hub type bridge ageing_time 0 mcast_snooping 0");
        middle("ip link set hub up");
        for (number, side) in self.sides.iter().enumerate() {
            let port = format!("side{number}");
            let mut netlink = Netlink::open_in(side.handle()).expect("netlink");
            netlink.create_veth((UNDERLAY, None), (&port, Some(self.middle.handle()))).expect("veth");
            raise(side.handle(), UNDERLAY, Some(underlay_mac(number)));
            middle(&format!("ip link set {port} master hub up"));
        }
    }

    /// Puts a TAP of the middle, which is there already, at the hub.
    pub(crate) fn middle_with(&self, tap: impl FnOnce(&NamespaceHandle)) {
        tap(self.middle.handle());
        run_in(self.middle.handle(), &format!("ip link set {PROBE} master hub")).expect("a port of the hub");
    }

    /// A tunnel end's address.
    pub(crate) fn end(&self, side: usize) -> IpAddr {
        self.underlay.ends()[side].parse().expect("address")
    }

    /// Gives a side its tunnel end's address, at an interface of it.
    pub(crate) fn address(&self, side: usize, interface: &str) {
        let handle = self.sides[side].handle();
        let length = match self.underlay {
            Underlay::Ipv4 => 24,
            Underlay::Ipv6 => {
                let on = || fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "0");
                handle.enter(on).expect("entered").expect("IPv6 on");
                64
            }
        };
        let mut netlink = Netlink::open_in(handle).expect("netlink");
        netlink
            .add_address(interface, format!("{}/{length}", self.end(side)).parse().expect("prefix"))
            .expect("address");
    }

    /// Runs a program on the other side; what it said if it failed.
    pub(crate) fn run_far(&self, line: &str) -> Result<(), String> {
        run_in(self.sides[1].handle(), line)
    }
}

/// Sets an end of a veth pair up. A kernel would leave checksums to a wire that does not exist.
fn raise(side: &NamespaceHandle, name: &str, mac: Option<Mac>) {
    side.enter(|| set_transmit_checksum(name, false)).expect("entered").expect("set");
    let mut netlink = Netlink::open_in(side).expect("netlink");
    netlink.change_link(name, &LinkChange { mac, ..LinkChange::up() }).expect("up");
}

fn run_in(namespace: &NamespaceHandle, line: &str) -> Result<(), String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null());
    run(namespace.enter(|| command.output()).expect("entered"), line)
}

/// What a program said if it failed.
pub(crate) fn run(output: std::io::Result<std::process::Output>, line: &str) -> Result<(), String> {
    let output = output.map_err(|error| format!("{line}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{line}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
