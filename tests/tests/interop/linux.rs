//! The kernel's bridge, and one VXLAN device for each VNI.
//!
//! A kernel that was built with VLAN filtering has one bridge for all VLANs. Another has one bridge for the wire, without
//! tags, and one for each tunnel; the trunk's guest is then a TAP for each tunnel, and its tags end in this file.

use crate::far::{Far, GUESTS, TapGuests};
use crate::wires::{ENDS, TUNNELLED, UNDERLAY, VXLAN_PORT, WIRE, Wires};

/// TAPs of the trunk's guest, for each tunnel.
const TUNNEL_TAPS: [&str; 3] = ["ft30", "ft31", "ft32"];

/// Where a tag lies in a frame.
const TAG: std::ops::Range<usize> = 12..16;

pub(crate) fn make(wires: &Wires) -> Result<Box<dyn Far>, String> {
    wires.run_far("bridge -V").map_err(|error| format!("{error}; apt-get install iproute2"))?;
    wires.address(1);
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
}

fn with_vlans(wires: &Wires) -> Result<Box<dyn Far>, String> {
    let guests = TapGuests::create(wires, &GUESTS);
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
    for (vlan, vni) in TUNNELLED {
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
        let tunnel = TUNNELLED.iter().position(|(vlan, _)| tag(*vlan) == bytes[TAG]).expect("a tunnel's VLAN");
        self.0.send(TUNNEL_TAPS[tunnel], &[&bytes[..TAG.start], &bytes[TAG.end..]].concat());
    }

    fn receive(&mut self) -> Vec<(&'static str, Vec<u8>)> {
        let tagged = |(name, bytes): (&'static str, Vec<u8>)| match TUNNEL_TAPS.iter().position(|tap| *tap == name) {
            None => (name, bytes),
            Some(tunnel) => ("ft", [&bytes[..TAG.start], &tag(TUNNELLED[tunnel].0), &bytes[TAG.start..]].concat()),
        };
        self.0.receive().into_iter().map(tagged).collect()
    }

    fn has_vlans(&self) -> bool {
        false
    }
}

fn tag(vlan: u16) -> [u8; 4] {
    let [high, low] = vlan.to_be_bytes();
    [0x81, 0, high, low]
}

fn without_vlans(wires: &Wires) -> Result<Box<dyn Far>, String> {
    let guests = TapGuests::create(wires, &["f1", TUNNEL_TAPS[0], TUNNEL_TAPS[1], TUNNEL_TAPS[2]]);
    let bridge = |name: &str, ports: [&str; 2]| {
        wires.run_far(&format!("ip link add {name} type bridge"))?;
        wires.run_far(&format!("ip link set {name} up"))?;
        ports.iter().try_for_each(|port| wires.run_far(&format!("ip link set {port} master {name} up")))
    };
    bridge("br0", [WIRE, "f1"])?;
    for ((vlan, vni), tap) in TUNNELLED.into_iter().zip(TUNNEL_TAPS) {
        let device = vxlan(wires, vlan, vni)?;
        bridge(&format!("br{vlan}"), [&device, tap])?;
    }
    Ok(Box::new(Plain(guests)))
}

fn vxlan(wires: &Wires, vlan: u16, vni: u32) -> Result<String, String> {
    let (device, [remote, local]) = (format!("vx{vlan}"), ENDS);
    wires.run_far(&format!(
        "ip link add {device} type vxlan id {vni} local {local} remote {remote} dstport {VXLAN_PORT} dev {UNDERLAY}"
    ))?;
    Ok(device)
}
