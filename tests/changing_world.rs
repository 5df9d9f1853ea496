//! Tables with everything that decisions rest on, changed piece by piece, and every flow there can be.
//!
//! For the test that a warm cache forwards as a fresh node would, and for fuzzing: which world, and which change, is
//! the caller's source of numbers to say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use millrace_engine::packet::{Mac, PortIndex};
use millrace_engine::port::memory::{MemoryQueue, WireFrame};
use millrace_engine::switch::SwitchOptions;
use millrace_engine::tables::policy::{
    Action, Direction, DirectionPolicy, Identity, PeerSet, Peers, PodPolicy, PolicyInfo, PolicyTable, Ports, Rule,
    RuleCounts, RuleList,
};
use millrace_engine::tables::{
    BridgedPort, BridgedSegment, HandBack, HostPort, Location, Member, NextHop, Peer, PodPort, Port, PortRange,
    PortRole, Route, RouteTarget, RoutedSegment, Segment, SegmentIndex, SegmentKind, Snapshot, UplinkPort, Vni, Vtep,
    address_bits,
};
use millrace_engine::testing::node::{GATEWAY_MAC, Node, uplink_mac};
use millrace_engine::testing::{ACK, frame};

use crate::random::Random;

const UPLINK: u16 = 100;
const HOST: u16 = 101;
const PODS: u16 = 4;
const MEMBERS: [u16; 3] = [10, 11, 12];
const TUNNEL_MAC: Mac = Mac([2, 0, 0, 0, 0, 200]);
const HOST_MAC: Mac = Mac([2, 0, 0, 0, 0, 201]);
/// Sets that rules of policies may speak of: of addresses, and of networks.
const ADDRESS_SETS: [&str; 2] = ["red", "blue"];
const NETWORK_SETS: [&str; 2] = ["wide", "narrow"];

/// Everything tables are made of, to be changed piece by piece.
#[derive(Clone, Debug)]
pub struct World {
    pods: BTreeMap<u16, PodPort>,
    pod_mtu: u32,
    routes: BTreeMap<IpNet, RouteTarget>,
    peers: BTreeMap<IpAddr, Peer>,
    gateway_mac: Mac,
    vni: u32,
    members: Vec<u16>,
    remotes: Vec<IpAddr>,
    udp_port: u16,
    own: IpAddr,
    /// Where each station of the bridged segment speaks: at a member, or behind a peer.
    stations: BTreeMap<u8, u16>,
    /// What isolates a pod in a direction, or denies it something, and the set of its one rule.
    policies: BTreeMap<(u16, Direction), (Action, &'static str)>,
    /// The sets each known address is in, and those it may be in.
    identities: BTreeMap<IpAddr, [Vec<&'static str>; 2]>,
    /// Where pods have their addresses.
    pod_ranges: BTreeSet<IpNet>,
    /// The sets each network is in.
    networks: BTreeMap<IpNet, Vec<&'static str>>,
    /// MAC addresses of the routers to the outside, by the last byte of the address.
    routers: BTreeMap<u8, Mac>,
    /// Where the silent station lives, if the configuration says.
    configured: Option<u16>,
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn peer_address(number: usize) -> IpAddr {
    ip(&format!("192.0.2.{}", 10 + number))
}

/// Networks that only ever lie outside: what leads there is masqueraded for as long as the connection lives.
const OUTSIDE: [&str; 2] = ["198.51.100.0/24", "2001:db8:77::/48"];

fn router(ipv4: bool, last: u8) -> IpAddr {
    ip(&if ipv4 { format!("192.0.2.{}", 100 + last) } else { format!("2001:db8::{last}") })
}

fn router_mac(last: u8) -> Mac {
    Mac([2, 0xee, 0, 0, 0, last])
}

/// The station that never sends: nobody can learn where it lives.
const SILENT: u8 = 4;

fn station(number: u8) -> Mac {
    Mac([2, 0xaa, 0, 0, 0, number])
}

fn pod(port: u16) -> PodPort {
    let addresses = vec![ip(&format!("10.1.0.{port}")), ip(&format!("fd00:1::{port}"))];
    PodPort { segment: SegmentIndex(0), mac: Mac([2, 0, 0, 0, 0, port as u8]), addresses }
}

fn peer_mac(number: u8) -> Mac {
    Mac([2, 0xff, 0, 0, 0, number])
}

fn peer(address: IpAddr, mac: u8) -> Peer {
    let hop = NextHop { port: PortIndex(UPLINK), source_mac: uplink_mac(UPLINK), destination_mac: peer_mac(mac) };
    Peer { name: address.to_string().into(), address, source: ip("192.0.2.1"), next_hop: Some(hop), mtu: 1500 }
}

impl World {
    /// A world with pods, peers, routes and ways out.
    #[must_use]
    pub fn new(random: &mut Random) -> Self {
        let pods: BTreeMap<u16, PodPort> = (1..=PODS).map(|port| (port, pod(port))).collect();
        let peers = (0..3).map(|number| (peer_address(number), peer(peer_address(number), number as u8)));
        let mut world = Self {
            pods,
            pod_mtu: 1450,
            routes: BTreeMap::new(),
            peers: peers.collect(),
            gateway_mac: GATEWAY_MAC,
            vni: 1,
            members: MEMBERS.to_vec(),
            remotes: vec![peer_address(0)],
            udp_port: 8472,
            own: ip("192.0.2.1"),
            stations: (1..=3).map(|number| (number, MEMBERS[usize::from(number) - 1])).collect(),
            policies: BTreeMap::new(),
            identities: BTreeMap::new(),
            pod_ranges: BTreeSet::new(),
            networks: BTreeMap::new(),
            routers: BTreeMap::from([(1, router_mac(1)), (2, router_mac(2))]),
            configured: None,
        };
        for prefix in ["10.2.0.0/16", "10.3.0.0/16", "fd00:2::/32", "fd00:3::/32", "10.0.0.0/8"] {
            world.route(random, prefix.parse().expect("prefix"));
        }
        (0..4).for_each(|_| world.way_out(random));
        world
    }

    fn route(&mut self, random: &mut Random, prefix: IpNet) {
        let known: Vec<IpAddr> = self.peers.keys().copied().collect();
        let target = match random.below(6) {
            0 => RouteTarget::Unreachable,
            _ if known.is_empty() => RouteTarget::Unreachable,
            1 | 2 => RouteTarget::Direct { peer: *random.pick(&known) },
            _ => RouteTarget::Tunnel { peer: *random.pick(&known), mac: Mac([2, 0, 0, 0, 1, random.below(3) as u8]) },
        };
        self.routes.insert(prefix, target);
    }

    /// A way out by one of the routers.
    fn way_out(&mut self, random: &mut Random) {
        let prefix: IpNet = random.pick(&OUTSIDE).parse().expect("prefix");
        let ipv4 = prefix.addr().is_ipv4();
        let gateway = Some(router(ipv4, random.below(3) as u8 + 1));
        let source = if ipv4 { self.own } else { ip("2001:db8::100") };
        let mtu = [1500, 600][random.below(2)];
        self.routes.insert(prefix, RouteTarget::Outside { port: PortIndex(UPLINK), gateway, source, mtu });
    }

    /// As the control plane would compile it.
    #[must_use]
    pub fn tables(&self) -> Snapshot {
        let mut tables = Snapshot::default();
        let mut routed = RoutedSegment {
            gateway_mac: self.gateway_mac,
            gateway_addresses: vec![ip("169.254.1.1"), ip("fe80::1")],
            router_addresses: Vec::new(),
            masquerade_ports: PortRange::default(),
            known_outside: true,
            connected: Default::default(),
            tunnel_mac: TUNNEL_MAC,
            routes_ipv4: Default::default(),
            routes_ipv6: Default::default(),
        };
        let mut add = |prefix: IpNet, target: RouteTarget| {
            let route = Route { name: prefix.to_string().into(), target };
            routed.routes_mut(prefix.addr()).insert(address_bits(prefix.network()), prefix.prefix_len(), route);
        };
        for (port, pod) in &self.pods {
            for address in &pod.addresses {
                add(IpNet::from(*address), RouteTarget::Port { port: PortIndex(*port), mac: pod.mac });
            }
            let role = PortRole::Pod(pod.clone());
            let name = format!("pod-{port}").into();
            tables.ports.insert(Port { index: PortIndex(*port), name, mtu: self.pod_mtu, role });
        }
        self.routes.iter().for_each(|(prefix, target)| add(*prefix, target.clone()));
        for member in &self.members {
            let role = PortRole::Bridged(BridgedPort::access(SegmentIndex(1)));
            let name = format!("member-{member}").into();
            tables.ports.insert(Port { index: PortIndex(*member), name, mtu: 1500, role });
        }
        let host = HostPort { segment: SegmentIndex(0), mac: HOST_MAC, addresses: vec![self.own] };
        let role = PortRole::Host(host);
        tables.ports.insert(Port { index: PortIndex(HOST), name: "host".into(), mtu: 1500, role });
        let hand_back = Some(HandBack { port: PortIndex(HOST), mac: HOST_MAC });
        let role = PortRole::Uplink(UplinkPort { mac: uplink_mac(UPLINK), hand_back });
        tables.ports.insert(Port { index: PortIndex(UPLINK), name: "uplink".into(), mtu: 1500, role });
        let members = self.members.iter().map(|member| Member::new(PortIndex(*member), None)).collect();
        let configured = self.configured.map(|port| (station(SILENT), Location::Port(PortIndex(port))));
        let stations = configured.into_iter().collect();
        let bridged = BridgedSegment { members, remotes: self.remotes.clone(), stations, ..BridgedSegment::default() };
        for (index, vni, kind) in [(0, self.vni, SegmentKind::Routed(routed)), (1, 7, SegmentKind::Bridged(bridged))] {
            let vni = Vni::new(vni);
            tables.segments.insert(Segment { index: SegmentIndex(index), name: "s".into(), vni, kind });
        }
        self.peers.values().for_each(|peer| tables.tunnels.insert_peer(peer.clone()));
        tables.tunnels.udp_port = self.udp_port;
        tables.tunnels.local = Arc::new(vec![Vtep { address: self.own, port: PortIndex(UPLINK) }]);
        let both =
            self.routers.iter().flat_map(|(last, mac)| [(router(true, *last), *mac), (router(false, *last), *mac)]);
        tables.outside.set_neighbours(both.map(|(address, mac)| ((PortIndex(UPLINK), address), mac)));
        tables.policy = self.policy_table();
        tables
    }

    /// As the control plane makes it: identities and networks know of sets that some rule speaks of, and no others.
    fn policy_table(&self) -> PolicyTable {
        let mut table = PolicyTable::default();
        let spoken_of = |sets: &[&str]| {
            let known = sets.iter().filter(|set| self.policies.values().any(|(_, spoken)| spoken == *set));
            let mut sets: Vec<PeerSet> = known.map(|set| PeerSet::new(set)).collect();
            sets.sort_unstable();
            sets.dedup();
            sets
        };
        table.sets = spoken_of(&[ADDRESS_SETS, NETWORK_SETS].concat()).into();
        for port in 1..=PODS {
            let judges =
                [Direction::Ingress, Direction::Egress].map(|direction| match self.policies.get(&(port, direction)) {
                    None => DirectionPolicy::default(),
                    Some((Action::Accept, set)) => {
                        let isolating = [rules(Action::Accept, set)].into();
                        DirectionPolicy { isolating, ..DirectionPolicy::default() }
                    }
                    Some((action, set)) => {
                        DirectionPolicy { admin: vec![rules(*action, set)], ..DirectionPolicy::default() }
                    }
                });
            let [ingress, egress] = judges;
            table.pods.set(PortIndex(port), Some(Arc::new(PodPolicy { ingress, egress })));
        }
        table.pod_ranges = self.pod_ranges.iter().map(|range| (SegmentIndex(0), *range)).collect();
        for (address, [sets, possible]) in &self.identities {
            let [sets, possible] = [sets, possible].map(|sets| spoken_of(sets).into());
            let identity = Identity { sets, possible, ..Identity::default() };
            table.identities.set(SegmentIndex(0), *address, Some(Arc::new(identity)));
        }
        for network in self.networks.keys() {
            let covering = self.networks.iter().filter(|(wider, _)| wider.contains(network));
            let sets: Vec<&str> = covering.flat_map(|(_, sets)| sets.iter().copied()).collect();
            let tree = table.networks_mut(network.addr());
            tree.insert(address_bits(network.network()), network.prefix_len(), spoken_of(&sets).into());
        }
        table
    }

    fn change_policies(&mut self, random: &mut Random) -> &'static str {
        match random.below(4) {
            0 | 1 => {
                let direction = *random.pick(&[Direction::Ingress, Direction::Egress]);
                let key = (random.below(usize::from(PODS)) as u16 + 1, direction);
                let action = *random.pick(&[Action::Accept, Action::Deny, Action::Pass]);
                match random.below(3) {
                    0 => drop(self.policies.remove(&key)),
                    1 => drop(self.policies.insert(key, (action, *random.pick(&ADDRESS_SETS)))),
                    _ => drop(self.policies.insert(key, (action, *random.pick(&NETWORK_SETS)))),
                }
                "another policy of a pod"
            }
            2 => {
                let own = (1..=PODS).flat_map(|port| pod(port).addresses);
                let known: Vec<IpAddr> = own.chain(["10.2.0.2", "fd00:2::2"].map(ip)).collect();
                let address = *random.pick(&known);
                if random.below(4) == 0 {
                    self.identities.remove(&address);
                    return "an address that is not known any more";
                }
                let (mut sets, mut possible) = (Vec::new(), Vec::new());
                for set in ADDRESS_SETS {
                    match random.below(3) {
                        0 => sets.push(set),
                        1 => possible.push(set),
                        _ => {}
                    }
                }
                self.identities.insert(address, [sets, possible]);
                "other labels"
            }
            _ if random.below(3) == 0 => {
                let range = random.pick(&["10.1.0.0/16", "10.2.0.0/16", "fd00:2::/64"]).parse().expect("network");
                if !self.pod_ranges.remove(&range) {
                    self.pod_ranges.insert(range);
                }
                "other ranges of pods"
            }
            _ => {
                let networks = ["10.0.0.0/8", "10.2.0.0/16", "10.1.0.2/32", "fd00::/16", "fd00:2::/64", "0.0.0.0/0"];
                let network = random.pick(&networks).parse().expect("network");
                if self.networks.remove(&network).is_none() {
                    self.networks.insert(network, vec![*random.pick(&NETWORK_SETS)]);
                }
                "another network of rules"
            }
        }
    }

    /// One random change, in words.
    pub fn change(&mut self, random: &mut Random) -> &'static str {
        let peer_at = peer_address(random.below(4));
        match random.below(24) {
            0 => {
                let port = random.below(usize::from(PODS)) as u16 + 1;
                if self.pods.remove(&port).is_none() {
                    self.pods.insert(port, pod(port));
                }
                "a pod comes or goes"
            }
            1 => {
                self.pod_mtu = [1450, 1400, 500][random.below(3)];
                "another MTU"
            }
            2 => {
                let (port, other) = (random.below(4) as u16 + 1, random.below(4) as u16 + 1);
                if let Some(pod) = self.pods.get_mut(&port) {
                    pod.mac = Mac([2, 0, 0, 0, 7, other as u8]);
                }
                "another MAC address of a pod"
            }
            3 | 4 => {
                let prefix = ["10.2.0.0/17", "10.2.0.2/32", "10.3.3.0/24", "fd00:2::/64", "fd00:3::3/128", "0.0.0.0/0"];
                self.route(random, random.clone().pick(&prefix).parse().expect("prefix"));
                "a longer prefix"
            }
            5 => {
                let known: Vec<IpNet> = self.routes.keys().copied().collect();
                if !known.is_empty() {
                    self.routes.remove(random.pick(&known));
                }
                "a prefix goes"
            }
            6 => {
                let known: Vec<IpNet> = self.routes.keys().copied().collect();
                if !known.is_empty() {
                    let prefix = *random.clone().pick(&known);
                    let is_outside = OUTSIDE.iter().any(|outside| outside.parse() == Ok(prefix));
                    if is_outside { self.way_out(random) } else { self.route(random, prefix) }
                }
                "a prefix leads elsewhere"
            }
            7 => {
                self.peers.insert(peer_at, peer(peer_at, random.below(5) as u8));
                "a peer comes or is reached otherwise"
            }
            8 => {
                self.peers.remove(&peer_at);
                "a peer goes"
            }
            9 => {
                if let Some(peer) = self.peers.get_mut(&peer_at) {
                    peer.next_hop = None;
                }
                "a next hop is lost"
            }
            10 => {
                self.vni = 1 + random.below(2) as u32;
                "another VNI"
            }
            11 => {
                self.gateway_mac = Mac([2, 0, 0x5e, 0, 1, random.below(2) as u8 + 1]);
                "another gateway"
            }
            12 => {
                let member = *random.pick(&MEMBERS);
                match self.members.iter().position(|known| *known == member) {
                    Some(at) => drop(self.members.remove(at)),
                    None => self.members.push(member),
                }
                "a member comes or goes"
            }
            13 => {
                self.remotes = (0..random.below(3)).map(peer_address).collect();
                "other remotes"
            }
            14 => {
                self.udp_port = [8472, 4789][random.below(2)];
                "another tunnel port"
            }
            15..=18 => self.change_policies(random),
            19 => {
                self.way_out(random);
                "the outside is reached otherwise"
            }
            20 | 21 => {
                let last = random.below(3) as u8 + 1;
                if self.routers.remove(&last).is_none() {
                    self.routers.insert(last, router_mac(last + 10 * random.below(2) as u8));
                }
                "a router comes or goes"
            }
            22 => {
                let place = *random.pick(&MEMBERS);
                if self.configured.take() != Some(place) {
                    self.configured = Some(place);
                }
                "a configured station comes, goes or moves"
            }
            _ => {
                // Where it can be heard: else nodes with another past rightly know other places.
                let heard = self.peers.contains_key(&peer_address(0)).then_some(UPLINK);
                let places: Vec<u16> = self.members.iter().copied().chain(heard).collect();
                if !places.is_empty() {
                    self.stations.insert(random.below(3) as u8 + 1, *random.pick(&places));
                }
                "a station moves"
            }
        }
    }

    /// A frame of each station, so that a node knows where it lives.
    pub fn speak(&self, node: &mut Node) {
        for (number, port) in &self.stations {
            let hello = frame().from(station(*number), "10.9.0.1").to(Mac::BROADCAST, "10.9.0.2").udp();
            let hello = hello.ports(9, u16::from(*number));
            let packet = if *port == UPLINK { self.tunnelled(hello.wire(), 7, peer_address(0)) } else { hello.wire() };
            node.inject(*port, packet);
        }
        drop(outputs(node));
    }

    /// The frame as a peer sends it through the tunnel.
    #[must_use]
    pub fn tunnelled(&self, inner: WireFrame, vni: u32, from: IpAddr) -> WireFrame {
        let mut payload = vec![8, 0, 0, 0];
        payload.extend_from_slice(&(vni << 8).to_be_bytes());
        payload.extend_from_slice(&inner.bytes);
        let outer = frame().from(Mac([2, 0xff, 0, 0, 0, 1]), from).to(uplink_mac(UPLINK), self.own);
        outer.udp_without_checksum().ports(50_000, self.udp_port).payload(&payload).wire()
    }

    /// Every flow there can be, present or not: pods to everywhere, peers to pods, stations to stations.
    #[must_use]
    pub fn flows(&self) -> Vec<(u16, WireFrame)> {
        let mut flows = Vec::new();
        let inside = ["10.2.0.2", "10.2.200.1", "10.3.3.3", "10.77.0.1", "fd00:2::2", "fd00:3::3", "fd00:2:0:1::1"];
        let far = [&inside[..], &["198.51.100.7", "2001:db8:77::7"]].concat();
        for port in 1..=PODS {
            let own = self.pods.get(&port).cloned().unwrap_or_else(|| pod(port));
            for address in &own.addresses {
                let near = (1..=PODS).flat_map(|port| pod(port).addresses);
                let targets = far.iter().map(|text| ip(text)).chain(near);
                for target in targets.filter(|target| target.is_ipv4() == address.is_ipv4()) {
                    let packet = frame().from(own.mac, *address).to(self.gateway_mac, target).tcp(ACK).ports(1, 2);
                    flows.push((port, packet.payload_of(700).wire()));
                }
            }
            for (source, from) in
                [("10.2.0.2", 0), ("10.3.3.3", 1), ("fd00:2::2", 0), ("fd00:3::3", 2), ("10.2.0.2", 3)]
            {
                let target = own.addresses[usize::from(source.contains(':'))];
                let inner = frame().from(Mac([2, 0, 0, 0, 1, 1]), source).to(TUNNEL_MAC, target).udp().ports(3, 4);
                flows.push((UPLINK, self.tunnelled(inner.wire(), self.vni, peer_address(from))));
                let direct = frame().from(peer_mac(from as u8), source).to(uplink_mac(UPLINK), target).udp();
                flows.push((UPLINK, direct.ports(7, 8).wire()));
            }
        }
        for from in 1..=3 {
            for to in (1..=SILENT).filter(|to| *to != from) {
                let packet = frame().from(station(from), "10.9.0.1").to(station(to), "10.9.0.2").tcp(ACK).ports(5, 6);
                let port = self.stations[&from];
                let at_uplink = port == UPLINK;
                let packet = if at_uplink { self.tunnelled(packet.wire(), 7, peer_address(0)) } else { packet.wire() };
                flows.push((port, packet));
            }
        }
        flows
    }
}

/// A policy whose one rule lets members of a set pass.
fn rules(action: Action, set: &str) -> Arc<RuleList> {
    let policy = PolicyInfo { name: set.into(), keeps_established: false, logs_denied: false };
    let (mut pods, mut networks) = (Vec::new(), Vec::new());
    if NETWORK_SETS.contains(&set) { &mut networks } else { &mut pods }.push(PeerSet::new(set));
    let peers = Peers::In { pods: pods.into(), networks: networks.into() };
    let rule = Rule { number: 1, name: None, action, peers, ports: Ports::Any };
    Arc::new(RuleList { policy, rules: vec![rule], counts: Arc::new(RuleCounts::new(1)) })
}

/// Every port there is.
pub fn ports() -> impl Iterator<Item = u16> {
    (1..=PODS).chain(MEMBERS).chain([UPLINK, HOST])
}

/// A node of one worker with these tables that has seen nothing yet.
///
/// # Panics
/// If the machine gives no memory.
#[must_use]
pub fn fresh(tables: Snapshot) -> Node {
    fresh_with(tables, Node::options(1))
}

/// The same of other sizes.
///
/// # Panics
/// If the machine gives no memory.
#[must_use]
pub fn fresh_with(tables: Snapshot, options: SwitchOptions) -> Node {
    let workers = options.workers;
    let mut node = Node::with_options(options);
    for (number, port) in ports().enumerate() {
        let like = if port == UPLINK { MemoryQueue::LIKE_AF_XDP } else { MemoryQueue::LIKE_TAP };
        node.attach(port, like, number % workers);
    }
    node.switch.publish(tables);
    node.settle();
    node
}

/// What a node has sent, and where.
#[must_use]
pub fn outputs(node: &Node) -> Vec<(u16, WireFrame)> {
    ports().flat_map(|port| node.all_sent(port).into_iter().map(move |frame| (port, frame))).collect()
}
