//! Two namespaces and two veth pairs between them: one that carries VLANs, one that carries VXLAN.

use std::fs;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use millrace_control::kernel::{LinkChange, Namespace, Netlink};
use millrace_engine::packet::Mac;
use millrace_engine::port::af_xdp::set_transmit_checksum;

/// The wire that carries VLANs.
pub(crate) const WIRE: &str = "wire";
/// The wire that carries VXLAN.
pub(crate) const UNDERLAY: &str = "up0";
/// Tunnel ends: ours, and the other one's.
pub(crate) const ENDS: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
/// UDP port of VXLAN.
pub(crate) const VXLAN_PORT: u16 = 8472;
/// VLAN and VNI of each segment that goes through the tunnel.
pub(crate) const TUNNELLED: [(u16, u32); 3] = [(30, 1), (31, 4095), (32, 16_777_215)];

/// The two sides.
pub(crate) struct Wires {
    /// Ours, then the other one's.
    pub(crate) sides: [Namespace; 2],
    /// A word that no other process and no other test uses.
    pub(crate) unique: String,
}

/// A tunnel end's address.
pub(crate) fn end(side: usize) -> IpAddr {
    ENDS[side].parse().expect("address")
}

/// MAC address of an end of the underlay.
pub(crate) fn underlay_mac(side: usize) -> Mac {
    Mac([2, 0xee, 0, 0, 0, side as u8 + 1])
}

impl Wires {
    pub(crate) fn create() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("millrace-interop-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let sides =
            ["near", "far"].map(|side| Namespace::create_named(&format!("{unique}-{side}")).expect("namespace"));
        for side in &sides {
            // No router solicitations and reports of the kernel's own: every frame that is seen was sent by the test.
            let quiet = || {
                fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1")?;
                fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")
            };
            side.handle().enter(quiet).expect("entered").expect("IPv6 off");
        }
        let mut netlink = Netlink::open_in(sides[0].handle()).expect("netlink");
        for name in [WIRE, UNDERLAY] {
            netlink.create_veth((name, None), (name, Some(sides[1].handle()))).expect("veth");
        }
        for (number, side) in sides.iter().enumerate() {
            let mut netlink = Netlink::open_in(side.handle()).expect("netlink");
            netlink.change_link("lo", &LinkChange::up()).expect("up");
            for name in [WIRE, UNDERLAY] {
                // A kernel would leave checksums to a wire that does not exist.
                side.handle().enter(|| set_transmit_checksum(name, false)).expect("entered").expect("set");
                let mac = (name == UNDERLAY).then(|| underlay_mac(number));
                netlink.change_link(name, &LinkChange { mac, ..LinkChange::up() }).expect("up");
            }
        }
        Self { sides, unique }
    }

    /// Gives a side its tunnel end's address, at the wire itself.
    pub(crate) fn address(&self, side: usize) {
        let mut netlink = Netlink::open_in(self.sides[side].handle()).expect("netlink");
        netlink.add_address(UNDERLAY, format!("{}/24", ENDS[side]).parse().expect("prefix")).expect("address");
    }

    /// Runs a program on the other side; what it said if it failed.
    pub(crate) fn run_far(&self, line: &str) -> Result<(), String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(Stdio::null());
        run(self.sides[1].handle().enter(|| command.output()).expect("entered"), line)
    }
}

/// What a program said if it failed.
pub(crate) fn run(output: std::io::Result<std::process::Output>, line: &str) -> Result<(), String> {
    let output = output.map_err(|error| format!("{line}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{line}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
