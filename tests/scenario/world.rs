//! Performs a scenario: builds its cluster, does what stands under `when`, and tells everything that happens.
//!
//! ```text
//! client sends PACKET             at a pod, the host (`host-a`) or a member port of a bridged segment
//! underlay sends a PACKET         at the uplink of node a; outside of tunnels it is sent `to uplink-a`
//! time passes 10 s                on every node's clock
//! ```
//! and any line of `given`, as a change. What happens is told as
//! ```text
//! trace a   TRAIL                 for each frame that comes in at node a: the slow path's reasons
//! uplink a  PACKET                a frame leaves by the uplink; it goes on at the node whose uplink it is sent to
//! web gets  PACKET ; ttl 63       a frame leaves by a pod's or member's port
//! moved a   NAME +N, ...          every counter that moved, all workers together
//! ```
//! Frames that leave together go on together, so that segments may be joined; equal lines in a row are counted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use millrace_control::cluster::{NetworkName, NodeName, StationMac};
use millrace_control::observe::{IP_BLOCK, KINDS, NETWORK_POLICY, NODE, POD, PORT};
use millrace_control::plan::{GATEWAY_MAC, LocalView, OutsidePath, OutsideView};
use millrace_control::store::{DirectoryStore, Kind, ObjectKey, ObjectStore};
use millrace_engine::packet::{Mac, PortIndex};
use millrace_engine::port::memory::WireFrame;
use millrace_engine::testing::{checksums_valid, describe};

use super::given::{self, Given, Presence, number};
use super::packet_text::{Link, frame_of};
use crate::cluster::{ClusterNode, UNDERLAY_MTU, UPLINK, uplink_mac};
use crate::memory_store::MemoryStore;

/// Source of what the underlay sends.
const UNDERLAY_STATION: Mac = Mac([2, 0, 0, 0, 0, 0xee]);

/// Frames that leave switches in one step, at most: a scenario beyond it is a loop between nodes.
const FRAMES: usize = 10_000;

/// A pod or member port.
#[derive(Clone, Copy, Debug)]
struct End {
    node: usize,
    port: u16,
    mac: Mac,
    routed: bool,
}

/// A running scenario.
#[derive(Debug, Default)]
pub(super) struct World {
    store: MemoryStore,
    nodes: Vec<ClusterNode>,
    next_hops: BTreeMap<IpAddr, Mac>,
    /// The ways to the outside, by node.
    outside: BTreeMap<String, OutsideView>,
    addresses: BTreeMap<String, Vec<IpAddr>>,
    ends: BTreeMap<String, End>,
    /// Networks that are routed.
    tenants: BTreeSet<String>,
}

/// A directory that goes with its value.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

impl World {
    /// The world that `given` lines describe.
    pub(super) fn new(lines: &[String]) -> Result<Self, String> {
        let mut world = Self::default();
        world.write(given::POOLS)?;
        let givens = lines.iter().map(|line| Given::parse(line)?.ok_or(format!("{line:?} is not known under given")));
        let problems = world.change(&givens.collect::<Result<Vec<_>, _>>()?)?;
        if problems.is_empty() { Ok(world) } else { Err(problems.join("\n")) }
    }

    /// Does what `lines` say; all that happens, a line each.
    pub(super) fn perform(&mut self, lines: &[String]) -> Result<Vec<String>, String> {
        let before: Vec<_> = self.nodes.iter().map(|node| node.switch().moved()).collect();
        let mut happened = Vec::new();
        for line in lines {
            match Given::parse(line)? {
                Some(given) => happened.extend(self.change(&[given])?),
                None => self.send_or_wait(line, &mut happened).map_err(|error| format!("{line}: {error}"))?,
            }
        }
        for (node, before) in self.nodes.iter().zip(before) {
            let after = node.switch().moved();
            let moved = after.iter().filter_map(|(name, count)| {
                let more = count - before.get(name).unwrap_or(&0);
                (more > 0).then(|| format!("{name} +{more}"))
            });
            let moved: Vec<String> = moved.collect();
            if !moved.is_empty() {
                happened.push(format!("moved {} {}", node.name, moved.join(", ")));
            }
        }
        Ok(happened)
    }

    fn send_or_wait(&mut self, line: &str, happened: &mut Vec<String>) -> Result<(), String> {
        if let Some(time) = line.strip_prefix("time passes ") {
            return self.wait(time);
        }
        let (who, packet) = line.split_once(" sends ").ok_or("is not known under when")?;
        let (node, port, link, packet) = if who == "underlay" {
            let (name, packet) = packet.split_once(' ').ok_or("the underlay sends a node a packet")?;
            let own = StationMac::of_node(&NodeName::new(name).map_err(|error| error.to_string())?).mac();
            let link = Link { source: UNDERLAY_STATION, destination: own };
            (self.node(name)?, UPLINK, link, packet)
        } else {
            let end = self.ends.get(who).ok_or(format!("{who} is neither a pod nor a port"))?;
            let destination = if end.routed { GATEWAY_MAC } else { Mac::BROADCAST };
            (end.node, end.port, Link { source: end.mac, destination }, packet)
        };
        let station = |name: &str| match name {
            "gateway" => Some(GATEWAY_MAC),
            name if let Some(node) = name.strip_prefix("uplink-") => {
                self.nodes.iter().find(|known| known.name == node).map(|node| node.uplink_mac)
            }
            name => self.ends.get(name).map(|end| end.mac),
        };
        let frame = frame_of(packet, link, station)?;
        let sound = !packet.contains("bad checksum") && !packet.contains("; cut ");
        self.carry(node, port, frame, sound, happened)
    }

    fn wait(&mut self, time: &str) -> Result<(), String> {
        let time = match time.split_once(' ') {
            Some((count, "s")) => Duration::from_secs(number(count)?),
            Some((count, "ms")) => Duration::from_millis(number(count)?),
            _ => return Err("time is N s or N ms".to_owned()),
        };
        for node in &self.nodes {
            node.switch().clock.advance(time);
            node.switch().finish_sweeps();
        }
        Ok(())
    }

    fn node(&self, name: &str) -> Result<usize, String> {
        self.nodes.iter().position(|node| node.name == name).ok_or(format!("no switch runs as node {name}"))
    }

    /// Follows a frame from node to node until nothing moves.
    fn carry(
        &mut self,
        node: usize,
        port: u16,
        frame: WireFrame,
        sound: bool,
        happened: &mut Vec<String>,
    ) -> Result<(), String> {
        let mut batches = VecDeque::from([(node, port, vec![frame])]);
        let (mut log, mut frames) = (Log { lines: happened, last: None, count: 0 }, 0);
        while let Some((node, port, batch)) = batches.pop_front() {
            let mut switch = self.nodes[node].switch();
            for frame in batch {
                log.say(format!("trace {} {}", self.nodes[node].name, switch.explain(port, &frame)));
                switch.queue(port, frame);
            }
            switch.settle();
            let left = switch.all_sent(UPLINK);
            frames += left.len();
            let mut onwards: BTreeMap<usize, Vec<WireFrame>> = BTreeMap::new();
            for frame in left {
                log.say(format!("uplink {} {}", self.nodes[node].name, describe(&frame.bytes)));
                checked(&frame, sound)?;
                let next = self.nodes.iter().position(|node| node.uplink_mac == Mac::read(&frame.bytes));
                next.into_iter().for_each(|next| onwards.entry(next).or_default().push(frame.clone()));
            }
            batches.extend(onwards.into_iter().map(|(next, frames)| (next, UPLINK, frames)));
            for (name, end) in self.ends.iter().filter(|(_, end)| end.node == node) {
                for frame in switch.all_sent(end.port) {
                    frames += 1;
                    log.say(format!("{name} gets {}", delivered(&frame, end)?));
                    checked(&frame, sound)?;
                }
            }
            if frames > FRAMES {
                return Err("the frames go round and round".to_owned());
            }
            if switch.switch.lost_frames() != 0 {
                return Err(format!("node {} lost {} frames", self.nodes[node].name, switch.switch.lost_frames()));
            }
        }
        log.flush();
        Ok(())
    }

    /// Applies changes; what is wrong afterwards.
    fn change(&mut self, givens: &[Given]) -> Result<Vec<String>, String> {
        givens.iter().for_each(|given| self.add_node(given));
        for given in givens {
            if let Given::Tenant { name, fields, .. } = given
                && !fields.contains("layer: 2")
            {
                self.tenants.insert(name.clone());
            }
        }
        self.write(&givens.iter().map(|given| given::yaml(given, &self.addresses)).collect::<String>())?;
        givens.iter().try_for_each(|given| self.remove(given))?;
        givens.iter().for_each(|given| self.change_outside(given));
        for node in &mut self.nodes {
            let own = node.uplink_mac;
            let others = self.next_hops.iter().filter(|(_, mac)| **mac != own);
            node.tell_underlay(others.map(|(address, mac)| (*address, *mac)));
            node.tell_outside(self.outside.get(&node.name).cloned().unwrap_or_default());
        }
        givens.iter().try_for_each(|given| self.add_port(given))?;
        givens.iter().try_for_each(|given| self.add_network(given))?;
        givens.iter().try_for_each(|given| self.add_host(given))?;
        self.follow();
        givens.iter().try_for_each(|given| self.add_pod(given))?;
        Ok(self.follow())
    }

    fn follow(&mut self) -> Vec<String> {
        let mut problems = Vec::new();
        for node in &mut self.nodes {
            let settled = node.follow(usize::MAX);
            node.switch().finish_sweeps();
            problems.extend(settled.error.iter().map(|error| format!("problem {} {error}", node.name)));
            problems.extend(settled.problems.iter().map(|problem| format!("problem {} {problem}", node.name)));
        }
        problems
    }

    /// Reads YAML as an object directory would and writes the objects to the store that all nodes follow.
    fn write(&self, text: &str) -> Result<(), String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("millrace-scenario-{}-{number}", std::process::id()));
        let directory = Directory(path);
        let written =
            std::fs::create_dir_all(&directory.0).and_then(|()| std::fs::write(directory.0.join("objects.yaml"), text));
        written.map_err(|error| error.to_string())?;
        let read = DirectoryStore::open(&directory.0).map_err(|error| error.to_string())?;
        for kind in &KINDS {
            for object in read.list(kind).map_err(|error| error.to_string())? {
                let json = object.to_json();
                let known = self.store.get(&object.key).map_err(|error| error.to_string())?;
                let done = match known {
                    Some(known) => self.store.update(&json, &known.resource_version),
                    None => self.store.create(&json),
                };
                done.map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    fn remove(&mut self, given: &Given) -> Result<(), String> {
        match given {
            Given::NoBlock(cidr) => self.delete(&ObjectKey::cluster_scoped(IP_BLOCK, given::block_name(cidr))),
            Given::NoNode(name) => self.delete(&ObjectKey::cluster_scoped(NODE, name)),
            Given::NoPolicy(name) => self.delete(&object_of(NETWORK_POLICY, name)),
            Given::NoPort(name) => {
                let end = self.ends.remove(name).ok_or(format!("there is no port {name}"))?;
                self.nodes[end.node].pull_bridge_port_out(end.port);
                self.delete(&ObjectKey::cluster_scoped(PORT, name))
            }
            Given::NoPod(name) => {
                let end = self.ends.remove(name).ok_or(format!("there is no pod {name}"))?;
                self.nodes[end.node].pull_out(end.port);
                let object = object_of(POD, name);
                match self.store.get(&object).map_err(|error| error.to_string())? {
                    Some(_) => self.delete(&object),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    fn delete(&self, key: &ObjectKey) -> Result<(), String> {
        let known = self.store.get(key).map_err(|error| error.to_string())?;
        let known = known.ok_or(format!("{key} does not exist"))?;
        self.store.delete(key, &known.resource_version).map_err(|error| error.to_string())
    }

    fn add_node(&mut self, given: &Given) {
        let Given::Node { name, addresses, presence, exempt } = given else { return };
        let number = self.addresses.len() as u8 + 1;
        self.addresses.insert(name.clone(), addresses.clone());
        if *presence != Presence::Absent {
            self.next_hops.extend(addresses.iter().map(|address| (*address, uplink_mac(number))));
        }
        if *presence == Presence::Running {
            let mut local = LocalView::new(NodeName::new(name).expect("node name"));
            local.exempt = exempt.iter().copied().collect();
            self.nodes.push(ClusterNode::configured(number, local, addresses, 1, &self.store));
        }
    }

    fn change_outside(&mut self, given: &Given) {
        let port = PortIndex(UPLINK);
        match given {
            Given::Outside { prefix, node, gateway, source } => {
                let view = self.outside.entry(node.clone()).or_default();
                let path = OutsidePath { port, gateway: *gateway, source: *source, mtu: UNDERLAY_MTU };
                view.routes.insert(*prefix, path);
                view.neighbours.extend(gateway.map(|gateway| ((port, gateway), UNDERLAY_STATION)));
            }
            Given::NoNeighbour(address) => {
                self.outside
                    .values_mut()
                    .for_each(|view| view.neighbours.retain(|known, _| *known != (port, *address)));
            }
            _ => {}
        }
    }

    fn add_host(&mut self, given: &Given) -> Result<(), String> {
        let Given::Host { node: name, addresses } = given else { return Ok(()) };
        let node = self.node(name)?;
        let (port, mac) = self.nodes[node].plug_host(addresses);
        self.ends.insert(format!("host-{name}"), End { node, port, mac, routed: true });
        Ok(())
    }

    fn add_pod(&mut self, given: &Given) -> Result<(), String> {
        let Given::Pod { name, node, addresses, network, .. } = given else { return Ok(()) };
        let node = self.node(node)?;
        let routed = network.as_ref().is_none_or(|network| self.tenants.contains(network));
        let network = network.as_deref().map(NetworkName::new).transpose().map_err(|error| error.to_string())?;
        let (port, mac) = self.nodes[node].plug_in_network(name, addresses, network);
        self.ends.insert(name.clone(), End { node, port, mac, routed });
        Ok(())
    }

    /// The wire and the host's interface of a network.
    fn add_network(&mut self, given: &Given) -> Result<(), String> {
        let Given::Network { name, node, .. } = given else { return Ok(()) };
        let node = self.node(node)?;
        for end in ["wire", "host"] {
            let number = self.nodes[node].plug_bridge_port_in(&format!("network-{name}-{end}"));
            let mac = Mac([2, 0, 0, 0, node as u8 + 1, number as u8]);
            self.ends.insert(format!("{name}-{end}"), End { node, port: number, mac, routed: false });
        }
        Ok(())
    }

    fn add_port(&mut self, given: &Given) -> Result<(), String> {
        let Given::Port { name, node, .. } = given else { return Ok(()) };
        let node = self.node(node)?;
        if self.ends.contains_key(name) {
            return Ok(());
        }
        let number = self.nodes[node].plug_bridge_port_in(name);
        let mac = Mac([2, 0, 0, 0, node as u8 + 1, number as u8]);
        self.ends.insert(name.clone(), End { node, port: number, mac, routed: false });
        Ok(())
    }
}

fn object_of(kind: Kind, name: &str) -> ObjectKey {
    let (namespace, name) = given::pod_name(name);
    ObjectKey { kind, namespace: Some(namespace.to_owned()), name: name.to_owned() }
}

/// Checksums of a frame that leaves a switch must be right, unless they are partial or were wrong from the start.
fn checked(frame: &WireFrame, sound: bool) -> Result<(), String> {
    if !sound || frame.partial_checksum.is_some() {
        return Ok(());
    }
    checksums_valid(&frame.bytes).map_err(|error| format!("{}: {error}", describe(&frame.bytes)))
}

/// What a pod or member gets, in words; a pod's frames must come from the gateway to the pod, those of the host may also be
/// ones that the underlay sent.
fn delivered(frame: &WireFrame, end: &End) -> Result<String, String> {
    let mut text = describe(&frame.bytes);
    if let Some(gso) = frame.gso {
        text += &format!(" ; gso {}", gso.size);
    }
    if !end.routed {
        return Ok(text);
    }
    let macs = (Mac::read(&frame.bytes), Mac::read(frame.bytes.get(6..).unwrap_or_default()));
    if macs.0 != end.mac || ![GATEWAY_MAC, UNDERLAY_STATION].contains(&macs.1) {
        return Err(format!("{text}: sent from {} to {}, the pod is {}", macs.1, macs.0, end.mac));
    }
    let ttl = match frame.bytes.get(12..14) {
        Some([0x08, 0x00]) => frame.bytes.get(22),
        Some([0x86, 0xdd]) => frame.bytes.get(21),
        _ => None,
    };
    ttl.iter().for_each(|ttl| text += &format!(" ; ttl {ttl}"));
    Ok(text)
}

/// Lines, equal ones in a row counted.
struct Log<'a> {
    lines: &'a mut Vec<String>,
    last: Option<String>,
    count: usize,
}

impl Log<'_> {
    fn say(&mut self, line: String) {
        if self.last.as_ref() != Some(&line) {
            self.flush();
        }
        self.last = Some(line);
        self.count += 1;
    }

    fn flush(&mut self) {
        let Some(line) = self.last.take() else { return };
        self.lines.push(if self.count == 1 { line } else { format!("{} times {line}", self.count) });
        self.count = 0;
    }
}
