//! The kernel's bridge, and one VXLAN device for each VNI.
//!
//! A kernel that was built with VLAN filtering has one bridge for all VLANs. Another has one bridge for the wire, without
//! tags, and one for each tunnel; the trunk's guest is then a TAP for each tunnel, and its tags end in this file.

use crate::far::{Far, TapGuests};
use crate::wires::{SHARED, TUNNELLED, UNDERLAY, VXLAN_PORT, WIRE, Wires};

/// TAPs of the trunk's guest, for each tunnel.
const TUNNEL_TAPS: [&str; 4] = ["ft30", "ft31", "ft32", "ft33"];

/// Where a tag lies in a frame.
const TAG: std::ops::Range<usize> = 12..16;

pub(crate) fn make(wires: &Wires) -> Result<Box<dyn Far>, String> {
    wires.run_far("bridge -V").map_err(|error| format!("{error}; apt-get install iproute2"))?;
    wires.address(1, UNDERLAY);
    match wires.run_far("ip link add br0 type bridge vlan_filtering 1 mcast_snooping 0") {
        Ok(()) => with_vlans(wires),
        Err(_) => without_vlans(wires),
    }
}

struct Filtering(TapGuests);

impl Far for Filtering {
    fn send(&mut self, guest: &str, bytes: &[u8]) {
        self.0.send(guest, bytes);
    }

    fn receive(&mut self) -> Vec<(&'static str, Vec<u8>)> {
        self.0.receive()
    }

    fn has_service_tags(&self) -> bool {
        false
    }
}

fn with_vlans(wires: &Wires) -> Result<Box<dyn Far>, String> {
    let guests = TapGuests::create(wires.sides[1].handle(), &["f1", "f10", "ft"]);
    let run = |line: &str| wires.run_far(line);
    run("ip link set br0 up")?;
    for port in [WIRE, "f1", "f10", "ft"] {
        run(&format!("ip link set {port} master br0"))?;
    }
    for vlan in [10, 20] {
        run(&format!("bridge vlan add dev {WIRE} vid {vlan}"))?;
        run(&format!("bridge vlan add dev ft vid {vlan}"))?;
    }
    run("bridge vlan del dev ft vid 1")?;
    run("bridge vlan del dev f10 vid 1")?;
    run("bridge vlan add dev f10 vid 10 pvid untagged")?;
    for (vlan, vni) in tunnels() {
        let device = vxlan(wires, vlan, vni)?;
        run(&format!("ip link set {device} master br0 up"))?;
        run(&format!("bridge vlan del dev {device} vid 1"))?;
        run(&format!("bridge vlan add dev {device} vid {vlan} pvid untagged"))?;
        run(&format!("bridge vlan add dev ft vid {vlan}"))?;
    }
    Ok(Box::new(Filtering(guests)))
}

struct Plain(TapGuests);

impl Far for Plain {
    fn send(&mut self, guest: &str, bytes: &[u8]) {
        if guest != "ft" {
            return self.0.send(guest, bytes);
        }
        let tunnel = tunnels().position(|(vlan, _)| tag(vlan) == bytes[TAG]).expect("a tunnel's VLAN");
        self.0.send(TUNNEL_TAPS[tunnel], &[&bytes[..TAG.start], &bytes[TAG.end..]].concat());
    }

    fn receive(&mut self) -> Vec<(&'static str, Vec<u8>)> {
        let tagged = |(name, bytes): (&'static str, Vec<u8>)| match TUNNEL_TAPS.iter().position(|tap| *tap == name) {
            None => (name, bytes),
            Some(tunnel) => {
                let (vlan, _) = tunnels().nth(tunnel).expect("a TAP for each tunnel");
                ("ft", [&bytes[..TAG.start], &tag(vlan), &bytes[TAG.start..]].concat())
            }
        };
        self.0.receive().into_iter().map(tagged).collect()
    }

    fn has_vlans(&self) -> bool {
        false
    }

    fn has_service_tags(&self) -> bool {
        false
    }
}

fn tag(vlan: u16) -> [u8; 4] {
    let [high, low] = vlan.to_be_bytes();
    [0x81, 0, high, low]
}

fn without_vlans(wires: &Wires) -> Result<Box<dyn Far>, String> {
    let names: Vec<&'static str> = ["f1"].into_iter().chain(TUNNEL_TAPS).collect();
    let guests = TapGuests::create(wires.sides[1].handle(), &names);
    let bridge = |name: &str, ports: [&str; 2]| {
        wires.run_far(&format!("ip link add {name} type bridge"))?;
        wires.run_far(&format!("ip link set {name} up"))?;
        ports.iter().try_for_each(|port| wires.run_far(&format!("ip link set {port} master {name} up")))
    };
    bridge("br0", [WIRE, "f1"])?;
    for ((vlan, vni), tap) in tunnels().zip(TUNNEL_TAPS) {
        let device = vxlan(wires, vlan, vni)?;
        bridge(&format!("br{vlan}"), [&device, tap])?;
    }
    Ok(Box::new(Plain(guests)))
}

/// VLAN and VNI of each tunnel.
fn tunnels() -> impl Iterator<Item = (u16, u32)> {
    TUNNELLED.into_iter().chain([SHARED])
}

fn vxlan(wires: &Wires, vlan: u16, vni: u32) -> Result<String, String> {
    let (device, [near, own, third]) = (format!("vx{vlan}"), [0, 1, 2].map(|side| wires.end(side)));
    wires.run_far(&format!(
        "ip link add {device} type vxlan id {vni} local {own} remote {near} dstport {VXLAN_PORT} dev {UNDERLAY}"
    ))?;
    if vlan == SHARED.0 {
        wires.run_far(&format!("bridge fdb append 00:00:00:00:00:00 dev {device} dst {third}"))?;
    }
    Ok(device)
}
