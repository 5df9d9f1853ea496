//! The list: what is sent where, and where it must arrive.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use millrace_engine::packet::Mac;
use millrace_engine::testing::{FrameBuilder, describe, frame};

use crate::far::{Far, TapGuests};
use crate::near::Near;
use crate::tunnels;
use crate::wires::{PROBE, SHARED, TUNNELLED, Underlay, Wires};

/// How long nothing more may come before that is believed.
const QUIET: Duration = Duration::from_millis(60);

/// Our end, the other one, the third, and what is seen between them.
pub(crate) struct Pair {
    pub(crate) near: Near,
    pub(crate) far: Box<dyn Far>,
    third: Near,
    probe: TapGuests,
    pub(crate) underlay: Underlay,
    /// Tunnel ends of the three.
    pub(crate) ends: [IpAddr; 3],
}

/// A line of the list.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// What of the other end it is about.
    pub(crate) needs: Needs,
    pub(crate) run: fn(&mut Pair) -> Result<(), String>,
}

/// What the other end must have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// A wire for untagged frames, and tunnels.
    Nothing,
    /// VLANs on the wire.
    Vlans,
    /// Service tags on the wire.
    ServiceTags,
}

impl Needs {
    /// What an end that is not asked lacks.
    pub(crate) const fn lacking(self) -> &'static str {
        match self {
            Needs::Nothing => "nothing",
            Needs::Vlans => "VLANs (its kernel was built without CONFIG_BRIDGE_VLAN_FILTERING)",
            Needs::ServiceTags => "service tags",
        }
    }
}

const fn plain(name: &'static str, run: fn(&mut Pair) -> Result<(), String>) -> Scenario {
    Scenario { name, needs: Needs::Nothing, run }
}

const fn vlans(name: &'static str, run: fn(&mut Pair) -> Result<(), String>) -> Scenario {
    Scenario { name, needs: Needs::Vlans, run }
}

/// All lines, in the order they are run; stations learned by one stay known to the next.
pub(crate) const ALL: [Scenario; 24] = [
    plain("untagged, in the native VLAN", untagged),
    plain("untagged broadcast and multicast", untagged_floods),
    vlans("access VLAN, tagged on the wire", access),
    vlans("trunk to trunk", trunk),
    vlans("unknown unicast is flooded", unknown),
    vlans("broadcast", broadcast),
    vlans("multicast, IPv4 and IPv6", multicast),
    vlans("priority of a tag", priority),
    vlans("a station moves from there to here", moves_here),
    vlans("a station moves from here to there", moves_there),
    vlans("no frame of one VLAN in another", separation),
    plain("1500 bytes on the wire", |pair| large(pair, ["n1", "f1"], [1, 2], None, 1500)),
    vlans("1500 bytes behind a tag", |pair| large(pair, ["nt", "ft"], [21, 22], Some(20), 1500)),
    Scenario { name: "QinQ: customers' frames in a service VLAN", needs: Needs::ServiceTags, run: service },
    plain("VXLAN, VNI 1, IPv4 and IPv6 inside", |pair| tunnels::both_ways(pair, 0)),
    plain("VXLAN, VNI 4095, IPv4 and IPv6 inside", |pair| tunnels::both_ways(pair, 1)),
    plain("VXLAN, VNI 16777215, IPv4 and IPv6 inside", |pair| tunnels::both_ways(pair, 2)),
    plain("VXLAN, broadcast and unknown unicast", tunnels::flood),
    plain("VXLAN, ARP and multicast", tunnels::arp_and_multicast),
    plain("VXLAN, the longest packet that fits", tunnels::longest),
    plain("VXLAN to two ends, a copy for each", tunnels::replicated),
    plain("DSCP and ECN come out as they went in", tunnels::marks),
    plain("ECN of the outer header, going in", tunnels::marks_outside),
    plain("ECN of both headers, coming out", tunnels::marks_inside),
];

impl Pair {
    /// Ours and the third, beside the other end that is there.
    pub(crate) fn create(wires: &Wires, far: Box<dyn Far>) -> Self {
        let mut probe = None;
        wires.middle_with(|middle| probe = Some(TapGuests::create(middle, &[PROBE])));
        Self {
            near: Near::create(wires),
            far,
            third: Near::third(wires),
            probe: probe.expect("made"),
            underlay: wires.underlay,
            ends: [0, 1, 2].map(|side| wires.end(side)),
        }
    }

    fn send(&mut self, guest: &str, bytes: &[u8]) {
        match guest {
            PROBE => self.probe.send(PROBE, bytes),
            _ if self.near.send(guest, bytes) || self.third.send(guest, bytes) => {}
            _ => self.far.send(guest, bytes),
        }
    }

    /// What went over the hub under this identifier since it was last asked, in words.
    pub(crate) fn tunnelled(&mut self, vni: u32) -> Vec<String> {
        let word = format!("vxlan vni {vni} ");
        let vectors = std::iter::from_fn(|| Some(self.probe.receive()).filter(|vector| !vector.is_empty()));
        vectors.flatten().map(|(_, bytes)| describe(&bytes)).filter(|line| line.contains(&word)).collect()
    }

    fn receive(&mut self) -> Vec<(&'static str, Vec<u8>)> {
        let mut all = self.near.receive();
        all.extend(self.far.receive());
        all.extend(self.third.receive());
        // What the kernel's or the other switch's own ports say is none of the test's.
        all.retain(|(_, bytes)| bytes.get(6..9) == Some(&[2, 0, 0x5e]));
        all
    }

    /// Lets everything come to rest: links, next hops of tunnels, and what daemons still have to do.
    pub(crate) fn settle(&mut self) {
        let end = Instant::now() + self.far.patience();
        let probe = from(0xfe, 0xff).to(Mac::BROADCAST, "10.9.0.255").udp();
        let probes = [("f1", "n1", probe.clone().build()), ("ft", "t33", probe.vlan(SHARED.0).build())];
        // The other end forwards once its ports are up and it knows who is who; how long that takes it does not say.
        for (sender, receiver, bytes) in probes {
            while Instant::now() < end {
                self.send(sender, &bytes);
                std::thread::sleep(QUIET);
                if self.receive().iter().any(|(guest, _)| *guest == receiver) {
                    break;
                }
            }
        }
        std::thread::sleep(QUIET);
        self.receive();
    }

    /// Sends a frame; exactly the listed guests must get exactly these bytes.
    pub(crate) fn exchange(
        &mut self,
        guest: &str,
        bytes: &[u8],
        expected: &[(&'static str, Vec<u8>)],
    ) -> Result<(), String> {
        self.send(guest, bytes);
        let (mut got, mut wanted) = (Vec::new(), expected.to_vec());
        wanted.sort();
        let (end, mut quiet) = (Instant::now() + self.far.patience(), Instant::now());
        loop {
            let more = self.receive();
            if !more.is_empty() {
                got.extend(more);
                got.sort();
                quiet = Instant::now();
            }
            let settled = quiet.elapsed() > QUIET;
            if settled && (got == wanted || Instant::now() > end || got.len() > wanted.len()) {
                break;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        if got == wanted {
            return Ok(());
        }
        let text = |frames: &[(&str, Vec<u8>)]| {
            let lines = frames.iter().map(|(guest, bytes)| format!("{guest} gets {}", describe(bytes)));
            lines.collect::<Vec<_>>().join("; ")
        };
        let counted = self.near.moved();
        Err(format!("{guest} sent {}: [{}] instead of [{}]; {counted}", describe(bytes), text(&got), text(&wanted)))
    }
}

/// MAC address of station `number`.
pub(crate) fn mac(number: u8) -> Mac {
    Mac([2, 0, 0x5e, 0, 0, number])
}

/// A frame from one station to another, IPv4.
pub(crate) fn from(source: u8, destination: u8) -> FrameBuilder {
    let address = |number: u8| format!("10.9.0.{number}");
    frame().from(mac(source), address(source).as_str()).to(mac(destination), address(destination).as_str())
}

/// The same over IPv6.
pub(crate) fn from_v6(source: u8, destination: u8) -> FrameBuilder {
    let address = |number: u8| format!("fd00::{number:x}");
    frame().from(mac(source), address(source).as_str()).to(mac(destination), address(destination).as_str())
}

pub(crate) fn bytes(builder: FrameBuilder) -> Vec<u8> {
    builder.udp().payload_of(100).build()
}

fn untagged(pair: &mut Pair) -> Result<(), String> {
    let (there, back) = (bytes(from(1, 2)), bytes(from(2, 1)));
    pair.exchange("n1", &there, &[("f1", there.clone())])?;
    pair.exchange("f1", &back, &[("n1", back.clone())])?;
    pair.exchange("n1", &there, &[("f1", there.clone())])
}

fn untagged_floods(pair: &mut Pair) -> Result<(), String> {
    let groups = [(Mac::BROADCAST, "10.9.0.255"), (Mac([1, 0, 0x5e, 1, 2, 3]), "239.1.2.3")];
    for (group, address) in groups {
        let (there, back) = (bytes(from(1, 0).to(group, address)), bytes(from(2, 0).to(group, address)));
        pair.exchange("n1", &there, &[("f1", there.clone())])?;
        pair.exchange("f1", &back, &[("n1", back.clone())])?;
    }
    Ok(())
}

fn access(pair: &mut Pair) -> Result<(), String> {
    let (there, back) = (from(11, 12), from(12, 11));
    let tagged = |builder: &FrameBuilder| bytes(builder.clone().vlan(10));
    let plain = |builder: &FrameBuilder| bytes(builder.clone());
    let everyone = [("f10", plain(&there)), ("ft", tagged(&there)), ("nt", tagged(&there))];
    pair.exchange("n10", &plain(&there), &everyone)?;
    pair.exchange("f10", &plain(&back), &[("n10", plain(&back))])?;
    pair.exchange("n10", &plain(&there), &[("f10", plain(&there))])
}

fn trunk(pair: &mut Pair) -> Result<(), String> {
    let (there, back) = (bytes(from(21, 22).vlan(20)), bytes(from(22, 21).vlan(20)));
    pair.exchange("nt", &there, &[("ft", there.clone())])?;
    pair.exchange("ft", &back, &[("nt", back.clone())])?;
    pair.exchange("nt", &there, &[("ft", there.clone())])
}

fn unknown(pair: &mut Pair) -> Result<(), String> {
    let (plain, tagged) = (bytes(from(11, 99)), bytes(from(11, 99).vlan(10)));
    let everyone = [("f10", plain.clone()), ("ft", tagged.clone()), ("nt", tagged)];
    pair.exchange("n10", &plain, &everyone)?;
    let (plain, tagged) = (bytes(from(12, 99)), bytes(from(12, 99).vlan(10)));
    pair.exchange("f10", &plain, &[("n10", plain.clone()), ("ft", tagged.clone()), ("nt", tagged)])
}

fn broadcast(pair: &mut Pair) -> Result<(), String> {
    let arp = |number: u8| from(number, 0).to(Mac::BROADCAST, "10.9.0.77").arp_request("10.9.0.77");
    let (plain, tagged) = (arp(11).build(), arp(11).vlan(10).build());
    pair.exchange("n10", &plain, &[("f10", plain.clone()), ("ft", tagged.clone()), ("nt", tagged)])?;
    let (plain, tagged) = (arp(12).build(), arp(12).vlan(10).build());
    pair.exchange("f10", &plain, &[("n10", plain.clone()), ("ft", tagged.clone()), ("nt", tagged)])
}

fn multicast(pair: &mut Pair) -> Result<(), String> {
    let four = |number: u8| from(number, 0).to(Mac([1, 0, 0x5e, 1, 2, 3]), "239.1.2.3");
    let six = |number: u8| from_v6(number, 0).to(Mac([0x33, 0x33, 0, 0, 0, 7]), "ff05::7");
    for make in [&four as &dyn Fn(u8) -> FrameBuilder, &six] {
        let (plain, tagged) = (bytes(make(11)), bytes(make(11).vlan(10)));
        pair.exchange("n10", &plain, &[("f10", plain.clone()), ("ft", tagged.clone()), ("nt", tagged)])?;
        let (plain, tagged) = (bytes(make(12)), bytes(make(12).vlan(10)));
        pair.exchange("f10", &plain, &[("n10", plain.clone()), ("ft", tagged.clone()), ("nt", tagged)])?;
    }
    Ok(())
}

fn priority(pair: &mut Pair) -> Result<(), String> {
    let there = bytes(from(21, 22).tag(0x8100, 0xa000 | 20));
    pair.exchange("nt", &there, &[("ft", there.clone())])?;
    let back = bytes(from(22, 21).tag(0x8100, 0x6000 | 20));
    pair.exchange("ft", &back, &[("nt", back.clone())])
}

fn moves_here(pair: &mut Pair) -> Result<(), String> {
    let (plain, tagged) = (|from_: u8, to| bytes(from(from_, to)), |from_: u8, to| bytes(from(from_, to).vlan(10)));
    pair.exchange("f10", &plain(50, 11), &[("n10", plain(50, 11))])?;
    pair.exchange("n10", &plain(11, 50), &[("f10", plain(11, 50))])?;
    // It speaks to everybody from its new place, as a machine that moved does.
    let gratuitous = |tag: bool| {
        let built = from(50, 0).to(Mac::BROADCAST, "10.9.0.50");
        bytes(if tag { built.vlan(10) } else { built })
    };
    let everyone = [("n10", gratuitous(false)), ("f10", gratuitous(false)), ("ft", gratuitous(true))];
    pair.exchange("nt", &gratuitous(true), &everyone)?;
    pair.exchange("n10", &plain(11, 50), &[("nt", tagged(11, 50))])?;
    pair.exchange("f10", &plain(12, 50), &[("nt", tagged(12, 50))])
}

fn moves_there(pair: &mut Pair) -> Result<(), String> {
    let gratuitous = |tag: bool| {
        let built = from(50, 0).to(Mac::BROADCAST, "10.9.0.50");
        bytes(if tag { built.vlan(10) } else { built })
    };
    let everyone = [("n10", gratuitous(false)), ("f10", gratuitous(false)), ("nt", gratuitous(true))];
    pair.exchange("ft", &gratuitous(true), &everyone)?;
    pair.exchange("n10", &bytes(from(11, 50)), &[("ft", bytes(from(11, 50).vlan(10)))])
}

/// A packet of this many bytes, there and back.
pub(crate) fn large(
    pair: &mut Pair,
    guests: [&'static str; 2],
    stations: [u8; 2],
    vlan: Option<u16>,
    length: usize,
) -> Result<(), String> {
    let ([near, far], [one, other]) = (guests, stations);
    let sized = |source: u8, destination: u8| {
        let built = from(source, destination);
        vlan.map_or(built.clone(), |vlan| built.vlan(vlan)).udp().payload_of(length - 28).build()
    };
    let (there, back) = (sized(one, other), sized(other, one));
    pair.exchange(near, &there, &[(far, there.clone())])?;
    pair.exchange(far, &back, &[(near, back.clone())])?;
    pair.exchange(near, &there, &[(far, there.clone())])
}

fn separation(pair: &mut Pair) -> Result<(), String> {
    // The station of VLAN 10 is asked for in VLAN 20, in a tunnel and without a tag.
    let wrong = bytes(from(21, 12).vlan(20));
    pair.exchange("nt", &wrong, &[("ft", wrong.clone())])?;
    let wrong = bytes(from(60, 12).vlan(TUNNELLED[0].0));
    pair.exchange("nt", &wrong, &[("ft", wrong.clone())])?;
    let wrong = bytes(from(1, 12));
    pair.exchange("n1", &wrong, &[("f1", wrong.clone())])?;
    pair.exchange("nt", &bytes(from(21, 12).vlan(77)), &[])
}

fn service(pair: &mut Pair) -> Result<(), String> {
    let plain = |source, destination| bytes(from(source, destination));
    let tagged = |source, destination| bytes(from(source, destination).vlan(7));
    for make in [&plain as &dyn Fn(u8, u8) -> Vec<u8>, &tagged] {
        pair.exchange("nq", &make(71, 72), &[("fq", make(71, 72))])?;
        pair.exchange("fq", &make(72, 71), &[("nq", make(72, 71))])?;
        pair.exchange("nq", &make(71, 72), &[("fq", make(71, 72))])?;
    }
    Ok(())
}
