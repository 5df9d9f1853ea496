//! The list's lines about VXLAN.

use millrace_engine::packet::Mac;
use millrace_engine::testing::{FrameBuilder, frame};

use crate::scenarios::{Pair, bytes, from, from_v6, large};
use crate::wires::{PROBE, SHARED, TUNNELLED, VXLAN_PORT, underlay_mac};

/// ECN fields as `describe` names them (RFC 3168 section 5).
const ECN: [&str; 4] = ["not-ect", "ect1", "ect0", "ce"];

impl Pair {
    /// From one end to another, as `describe` has it.
    fn way(&self, from: usize, to: usize) -> String {
        format!("{} > {}", self.ends[from], self.ends[to])
    }
}

/// Through the tunnel of this number, in both directions.
pub(crate) fn both_ways(pair: &mut Pair, number: u8) -> Result<(), String> {
    let (vlan, _) = TUNNELLED[usize::from(number)];
    let (one, other) = (60 + 2 * number, 61 + 2 * number);
    for make in [from as fn(u8, u8) -> FrameBuilder, from_v6] {
        let (there, back) = (bytes(make(one, other).vlan(vlan)), bytes(make(other, one).vlan(vlan)));
        pair.exchange("nt", &there, &[("ft", there.clone())])?;
        pair.exchange("ft", &back, &[("nt", back.clone())])?;
        pair.exchange("nt", &there, &[("ft", there.clone())])?;
    }
    Ok(())
}

pub(crate) fn flood(pair: &mut Pair) -> Result<(), String> {
    let (vlan, _) = TUNNELLED[2];
    let all = bytes(from(64, 0).to(Mac::BROADCAST, "10.9.0.255").vlan(vlan));
    pair.exchange("nt", &all, &[("ft", all.clone())])?;
    let nobody = bytes(from(65, 98).vlan(vlan));
    pair.exchange("ft", &nobody, &[("nt", nobody.clone())])
}

pub(crate) fn arp_and_multicast(pair: &mut Pair) -> Result<(), String> {
    let ask = |number: u8| {
        let built = from(number, 0).to(Mac::BROADCAST, "10.9.0.61").arp_request("10.9.0.61");
        built.vlan(TUNNELLED[0].0).build()
    };
    let four = |number: u8| bytes(from(number, 0).to(Mac([1, 0, 0x5e, 1, 2, 3]), "239.1.2.3").vlan(TUNNELLED[0].0));
    let six = |number: u8| bytes(from_v6(number, 0).to(Mac([0x33, 0x33, 0, 0, 0, 7]), "ff05::7").vlan(TUNNELLED[0].0));
    for make in [&ask as &dyn Fn(u8) -> Vec<u8>, &four, &six] {
        pair.exchange("nt", &make(60), &[("ft", make(60))])?;
        pair.exchange("ft", &make(61), &[("nt", make(61))])?;
    }
    Ok(())
}

pub(crate) fn longest(pair: &mut Pair) -> Result<(), String> {
    let length = pair.underlay.longest_inside();
    large(pair, ["nt", "ft"], [60, 61], Some(TUNNELLED[0].0), length)
}

/// Head-end replication: the sender makes a copy for each other end; what came out of a tunnel goes into none.
pub(crate) fn replicated(pair: &mut Pair) -> Result<(), String> {
    let (vlan, vni) = SHARED;
    let stations = [("nt", 81), ("ft", 82), ("t33", 83)];
    // A trunk's guest sees the VLAN's tag, the third end's guest is at an access port.
    let at = |guest: &str, builder: FrameBuilder| bytes(if guest == "t33" { builder } else { builder.vlan(vlan) });
    for (side, (sender, station)) in stations.into_iter().enumerate() {
        let all = from(station, 0).to(Mac::BROADCAST, "10.9.0.255");
        let others = || stations.into_iter().enumerate().filter(move |(other, _)| *other != side);
        let expected: Vec<_> = others().map(|(_, (guest, _))| (guest, at(guest, all.clone()))).collect();
        pair.tunnelled(vni);
        pair.exchange(sender, &at(sender, all), &expected)?;
        let copies = pair.tunnelled(vni);
        let copy = |other: usize| format!("vxlan vni {vni} {} ", pair.way(side, other));
        let right = others().all(|(other, _)| copies.iter().filter(|line| line.starts_with(&copy(other))).count() == 1);
        if !right || copies.len() != 2 {
            return Err(format!("{sender} sent a broadcast, and the underlay carried {copies:?}"));
        }
    }
    for ((sender, one), (receiver, other)) in [(stations[1], stations[2]), (stations[0], stations[1])] {
        for (here, there, source, destination) in [(sender, receiver, one, other), (receiver, sender, other, one)] {
            let sent = from(source, destination);
            pair.exchange(here, &at(here, sent.clone()), &[(there, at(there, sent))])?;
        }
    }
    Ok(())
}

/// The inner header does not change where no outer one was marked on its way.
pub(crate) fn marks(pair: &mut Pair) -> Result<(), String> {
    let vlan = TUNNELLED[1].0;
    for class in [46 << 2, 10 << 2 | 1, 10 << 2 | 2, 46 << 2 | 3] {
        for make in [from as fn(u8, u8) -> FrameBuilder, from_v6] {
            let there = bytes(make(62, 63).vlan(vlan).traffic_class(class));
            pair.exchange("nt", &there, &[("ft", there.clone())])?;
            let back = bytes(make(63, 62).vlan(vlan).traffic_class(class));
            pair.exchange("ft", &back, &[("nt", back.clone())])?;
        }
    }
    Ok(())
}

/// The outer header gets the inner one's ECN (RFC 6040 section 4.1) and no DSCP. CE goes out as CE, or as ECT(0) where
/// the other end still does as RFC 3168 allowed.
pub(crate) fn marks_outside(pair: &mut Pair) -> Result<(), String> {
    let (vlan, vni) = TUNNELLED[1];
    let directions = [("nt", "ft", 62, 63, pair.way(0, 1)), ("ft", "nt", 63, 62, pair.way(1, 0))];
    for (sender, receiver, source, destination, way) in directions {
        for (inner, make) in
            (0..4).flat_map(|ecn| [from as fn(u8, u8) -> FrameBuilder, from_v6].map(|make| (ecn, make)))
        {
            let sent = bytes(make(source, destination).vlan(vlan).traffic_class(46 << 2 | inner));
            pair.tunnelled(vni);
            pair.exchange(sender, &sent, &[(receiver, sent.clone())])?;
            let outer = |ecn: u8| match ecn {
                0 => format!("vxlan vni {vni} {way} "),
                _ => format!("class 0.{} vxlan vni {vni} {way} ", ECN[usize::from(ecn)]),
            };
            let allowed = [outer(inner), outer(if inner == 3 && sender == "ft" { 2 } else { inner })];
            let lines = pair.tunnelled(vni);
            let [line] = lines.as_slice() else { return Err(format!("{} packets: {lines:?}", lines.len())) };
            if !allowed.iter().any(|start| line.starts_with(start)) {
                return Err(format!("{} went as {line}", ECN[usize::from(inner)]));
            }
        }
    }
    Ok(())
}

/// What leaves the tunnel at the other end for each pair of inner and outer ECN (RFC 6040 section 4.2, figure 4), and at
/// ours. The hub plays the congested router.
pub(crate) fn marks_inside(pair: &mut Pair) -> Result<(), String> {
    let (vlan, vni) = TUNNELLED[1];
    for (side, receiver, source, destination) in [(1, "ft", 62, 63), (0, "nt", 63, 62)] {
        let to = |side: usize| (underlay_mac(side), pair.ends[side].to_string());
        let ((own_mac, own), (peer_mac, peer)) = (to(side), to(1 - side));
        let carries_ect1 = side == 0 || pair.far.hands_ect1_over();
        for (inner, outer) in (0..4).flat_map(|inner| (0..4).map(move |outer| (inner, outer))) {
            let sent = |ecn: u8| from(source, destination).traffic_class(10 << 2 | ecn).udp().payload_of(100);
            let around = frame().from(peer_mac, peer.as_str()).to(own_mac, own.as_str());
            let around = around.ports(50_000, VXLAN_PORT).traffic_class(20 << 2 | outer);
            let packet = sent(inner).inside_vxlan(vni, around).build();
            let leaves = match (inner, outer) {
                (0, 3) => None,
                (0, _) => Some(0),
                (_, 3) => Some(3),
                (2, 1) if carries_ect1 => Some(1),
                _ => Some(inner),
            };
            let expected = leaves.map(|ecn| (receiver, sent(ecn).vlan(vlan).build()));
            let words = || format!("{} in {}", ECN[usize::from(inner)], ECN[usize::from(outer)]);
            pair.exchange(PROBE, &packet, expected.as_slice()).map_err(|why| format!("{}: {why}", words()))?;
        }
    }
    Ok(())
}
