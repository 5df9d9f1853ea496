//! Bridges of this node: each VLAN in use is a segment, each plugged-in port a member. A network is planned as the bridge
//! it is, with its pods as members that have one station each, their own.
//!
//! A segment's number follows from its name, so that adding a bridge leaves the others' numbers, flows and stations
//! alone; only two names that hash alike are kept apart by their order.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use millrace_engine::limits;
use millrace_engine::packet::{Mac, PortIndex};
use millrace_engine::tables::{
    BridgedPort, BridgedSegment, Location, Member, Mirror, Port, PortRole, SegmentIndex, Tag, VlanMember, Vni,
};

use super::broadcast_domains;
use super::local::{AttachedPod, LocalView};
use super::tenants::Tenants;
use super::tunnels::Reach;
use crate::cluster::{
    BridgeName, BridgePortRecord, BridgeRecord, Cluster, DEFAULT_VLAN, Membership, PODS, PortName, PortVlans,
    StationPlace, VlanId,
};
use crate::observe::{BRIDGE, PORT};
use crate::problem::Problem;
use crate::stable_hash::hash_64;
use crate::store::ObjectKey;

/// A bridged segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgedPlan {
    /// Its name for people: the bridge's, with the VLAN behind a dot unless it is the default one.
    pub name: Arc<str>,
    /// Its identifier between nodes.
    pub vni: Option<Vni>,
    /// Its members, remotes and rules.
    pub segment: BridgedSegment,
}

/// What bridges need on this node.
#[derive(Debug, Default)]
pub(super) struct Bridges {
    pub(super) ports: Vec<Port>,
    pub(super) segments: BTreeMap<SegmentIndex, BridgedPlan>,
    pub(super) mirrors: Vec<Mirror>,
}

/// A VLAN of a bridge.
type Vlan<'a> = (&'a BridgeName, VlanId);

/// Tunnel ends that bridges of this node copy floods to, without our own.
pub(super) fn remotes(cluster: &Cluster, local: &LocalView) -> BTreeSet<IpAddr> {
    let own: BTreeSet<IpAddr> = local.uplinks.values().flat_map(|uplink| uplink.addresses.iter().copied()).collect();
    let bridges = cluster.bridges.values().filter(|bridge| bridge.is_for(&local.node) && !bridge.vnis.is_empty());
    let floods = bridges.flat_map(|bridge| {
        let stations = bridge.stations.iter().filter_map(|station| match &station.place {
            StationPlace::Remote(remote) => Some(*remote),
            StationPlace::Port(_) => None,
        });
        bridge.remotes.iter().copied().chain(stations)
    });
    floods.filter(|remote| !own.contains(remote)).collect()
}

/// Whether this node has a bridge.
pub(super) fn any(cluster: &Cluster, local: &LocalView) -> bool {
    cluster.bridges.values().any(|bridge| bridge.is_for(&local.node))
}

/// Plans bridges and the ports that are plugged in.
pub(super) fn bridges(
    cluster: &Cluster,
    local: &LocalView,
    tenants: &Tenants,
    peers: &BTreeSet<IpAddr>,
    reach: &Reach<'_>,
    problems: &mut Vec<Problem>,
) -> Bridges {
    let objects = Objects::of(cluster, local, broadcast_domains::bridges(cluster, local, tenants, reach));
    let mut planner = Planner {
        objects: &objects,
        cluster,
        local,
        tenants,
        problems,
        members: BTreeMap::new(),
        places: BTreeMap::new(),
        pods: BTreeMap::new(),
    };
    planner.find_members();
    planner.find_pods();
    let numbers = planner.numbers();
    let ports = planner.ports(&numbers);
    let segments = planner.segments(&numbers, peers);
    let mirrors = planner.mirrors();
    Bridges { ports, segments, mirrors }
}

/// Bridges and ports of this node: those that have objects, and those that networks are made of.
struct Objects<'a> {
    bridges: Cow<'a, BTreeMap<BridgeName, BridgeRecord>>,
    ports: Cow<'a, BTreeMap<PortName, BridgePortRecord>>,
}

impl<'a> Objects<'a> {
    /// Of a bridge or port of the same name as a network's the network's counts: its pods are plugged in.
    fn of(cluster: &'a Cluster, local: &LocalView, tenants: Vec<BridgeRecord>) -> Self {
        let mut objects = Self { bridges: Cow::Borrowed(&cluster.bridges), ports: Cow::Borrowed(&cluster.ports) };
        for bridge in tenants {
            objects.bridges.to_mut().insert(bridge.name.clone(), bridge);
        }
        for network in cluster.networks.values().filter(|network| network.is_for(&local.node)) {
            let Some(ports) = network.wire_ports() else { continue };
            objects.bridges.to_mut().insert(network.bridge_name(), network.bridge());
            for port in ports {
                objects.ports.to_mut().insert(port.name.clone(), port);
            }
        }
        objects
    }
}

struct Planner<'a, 'b> {
    objects: &'a Objects<'a>,
    cluster: &'a Cluster,
    local: &'a LocalView,
    tenants: &'a Tenants,
    problems: &'b mut Vec<Problem>,
    members: BTreeMap<Vlan<'a>, Vec<Member>>,
    /// Numbers of the ports that are plugged in.
    places: BTreeMap<&'a PortName, PortIndex>,
    /// Pods that are plugged into a network, with their place in it.
    pods: BTreeMap<PortIndex, (Vlan<'a>, &'a AttachedPod)>,
}

impl<'a> Planner<'a, '_> {
    fn bridge(&self, name: &BridgeName) -> Option<&'a BridgeRecord> {
        self.objects.bridges.get(name).filter(|bridge| bridge.is_for(&self.local.node))
    }

    /// The ports that are plugged in and still wanted, with their numbers.
    fn plugged(&self) -> impl Iterator<Item = (PortIndex, &'a BridgePortRecord)> + use<'a> {
        let (objects, local) = (self.objects, self.local);
        local.bridge_ports.iter().filter_map(move |(index, plugged)| {
            let record = objects.ports.get(&plugged.name).filter(|record| record.is_for(&local.node))?;
            Some((*index, record))
        })
    }

    fn find_members(&mut self) {
        for (index, record) in self.plugged() {
            self.places.insert(&record.name, index);
            let Some(membership) = &record.membership else { continue };
            if self.bridge(&membership.bridge).is_none() {
                let message = format!("there is no bridge {} on this node", membership.bridge);
                self.problems.push(Problem::new(message).of(&key(record)).at("spec.bridge"));
                continue;
            }
            for (vlan, tagged) in membership.vlans.all() {
                let tag = Tag { protocol: membership.tag_protocol, identifier: vlan.number() };
                self.members.entry((&membership.bridge, vlan)).or_default().push(Member {
                    port: index,
                    tag: tagged.then_some(tag),
                    isolated: membership.isolated,
                    group: membership.group,
                });
            }
        }
        // A VLAN that goes on elsewhere is there before its first member, so that its identifier is known.
        for bridge in self.objects.bridges.values().filter(|bridge| bridge.is_for(&self.local.node)) {
            for vlan in bridge.vnis.keys() {
                self.members.entry((&bridge.name, *vlan)).or_default();
            }
        }
    }

    fn find_pods(&mut self) {
        for (index, pod) in &self.local.pods {
            let Some(name) = pod.network.as_ref().filter(|name| self.tenants.segment(Some(*name)).is_none()) else {
                continue;
            };
            let network = self.cluster.networks.get(name).filter(|network| network.is_for(&self.local.node));
            let known = network.and_then(|network| {
                let (bridge, _) = self.objects.bridges.get_key_value(&network.bridge_name())?;
                Some((bridge, network.segment_vlan()))
            });
            let Some(vlan) = known else {
                let message = format!("pod {} is plugged into network {name}, which is not on this node", pod.pod);
                self.problems.push(Problem::new(message));
                continue;
            };
            self.members.entry(vlan).or_default().push(Member::new(*index, None));
            self.pods.insert(*index, (vlan, pod));
        }
        self.members.values_mut().for_each(|members| members.sort_unstable_by_key(|member| member.port));
    }

    fn numbers(&self) -> BTreeMap<Vlan<'a>, SegmentIndex> {
        let mut used = self.tenants.numbers();
        let mut numbers = BTreeMap::new();
        let last = limits::SEGMENTS as u64 - 1;
        for vlan in self.members.keys().copied().take(last as usize - used.len()) {
            // The first number is the pods' segment.
            let segment = |number: u64| SegmentIndex(number as u16 + 1);
            let mut number = hash_64(&name_of(vlan)) % last;
            while !used.insert(segment(number)) {
                number = (number + 1) % last;
            }
            numbers.insert(vlan, segment(number));
        }
        numbers
    }

    fn ports(&self, numbers: &BTreeMap<Vlan<'a>, SegmentIndex>) -> Vec<Port> {
        let role = |record: &'a BridgePortRecord| match &record.membership {
            Some(membership) => PortRole::Bridged(bridged_port(membership, numbers)),
            None => PortRole::Mirror,
        };
        let port = |(index, record): (PortIndex, &'a BridgePortRecord)| {
            let mtu = self.local.bridge_ports.get(&index)?.mtu;
            Some(Port { index, name: record.name.as_str().into(), mtu, role: role(record) })
        };
        // A pod speaks from its own MAC address, which is known without learning, and from no other.
        let of_network = |(index, (vlan, pod)): (&PortIndex, &(Vlan<'a>, &'a AttachedPod))| {
            let untagged = Some(*numbers.get(vlan)?);
            let role = PortRole::Bridged(BridgedPort { untagged, station_limit: 0, ..BridgedPort::default() });
            Some(Port { index: *index, name: pod.port_name().into(), mtu: pod.mtu, role })
        };
        self.plugged().filter_map(port).chain(self.pods.iter().filter_map(of_network)).collect()
    }

    fn segments(
        &mut self,
        numbers: &BTreeMap<Vlan<'a>, SegmentIndex>,
        peers: &BTreeSet<IpAddr>,
    ) -> BTreeMap<SegmentIndex, BridgedPlan> {
        let mut taken: BTreeMap<Vni, Arc<str>> = BTreeMap::from([(self.local.vni, Arc::from(PODS))]);
        let networks = self.cluster.networks.values().filter_map(|network| Some((network.vni()?, network)));
        for (vni, network) in networks {
            let name =
                if network.routed().is_some() { network.name.to_string() } else { network.bridge_name().to_string() };
            taken.entry(vni).or_insert_with(|| name.into());
        }
        let mut segments = BTreeMap::new();
        for (vlan, members) in std::mem::take(&mut self.members) {
            let (Some(bridge), Some(number)) = (self.bridge(vlan.0), numbers.get(&vlan)) else { continue };
            let name: Arc<str> = name_of(vlan).into();
            let vni = bridge.vnis.get(&vlan.1).copied().filter(|vni| self.is_free(bridge, *vni, &name, &mut taken));
            let remotes = bridge.remotes.iter().copied().filter(|remote| vni.is_some() && peers.contains(remote));
            let segment = BridgedSegment {
                members,
                remotes: remotes.collect(),
                stations: self.stations(bridge, vlan.1, vni.is_some()),
                ageing: bridge.ageing,
                moves: bridge.moves,
            };
            segments.insert(*number, BridgedPlan { name, vni, segment });
        }
        segments
    }

    fn is_free(
        &mut self,
        bridge: &BridgeRecord,
        vni: Vni,
        name: &Arc<str>,
        taken: &mut BTreeMap<Vni, Arc<str>>,
    ) -> bool {
        let first = taken.entry(vni).or_insert_with(|| Arc::clone(name));
        let free = first == name;
        if !free {
            let key = ObjectKey::cluster_scoped(BRIDGE, bridge.name.as_str());
            let message = format!("VNI {vni} belongs to segment {first} already");
            self.problems.push(Problem::new(message).of(&key).at("spec.vnis"));
        }
        free
    }

    fn stations(&mut self, bridge: &BridgeRecord, vlan: VlanId, tunnelled: bool) -> Vec<(Mac, Location)> {
        let key = ObjectKey::cluster_scoped(BRIDGE, bridge.name.as_str());
        let own = self.pods.iter().filter(|(_, ((name, place), _))| (*name, *place) == (&bridge.name, vlan));
        let mut stations: BTreeMap<_, _> = own.map(|(index, (_, pod))| (pod.mac, Location::Port(*index))).collect();
        for station in bridge.stations.iter().filter(|station| station.vlan == vlan) {
            let location = match &station.place {
                StationPlace::Port(port) => self.places.get(port).map(|index| Location::Port(*index)),
                StationPlace::Remote(remote) => tunnelled.then_some(Location::Peer(*remote)),
            };
            // A port that is not plugged in yet says so itself.
            let Some(location) = location else { continue };
            if stations.insert(station.mac.mac(), location).is_some() {
                let message = format!("station {} of VLAN {vlan} stands twice", station.mac);
                self.problems.push(Problem::new(message).of(&key).at("spec.stations"));
            }
        }
        stations.into_iter().collect()
    }

    fn mirrors(&mut self) -> Vec<Mirror> {
        let mut mirrors = Vec::new();
        for (source, record) in self.plugged() {
            let Some(mirror) = &record.mirror else { continue };
            match self.objects.ports.get(&mirror.to) {
                Some(to) if to.membership.is_none() => {}
                Some(_) => {
                    let message = format!("port {} is in a bridge; a mirror ends at a port without one", mirror.to);
                    self.problems.push(Problem::new(message).of(&key(record)).at("spec.mirror.to"));
                    continue;
                }
                None => {
                    let message = format!("there is no port {}", mirror.to);
                    self.problems.push(Problem::new(message).of(&key(record)).at("spec.mirror.to"));
                    continue;
                }
            }
            let Some(to) = self.places.get(&mirror.to).copied() else { continue };
            let [ingress, egress] = [mirror.ingress, mirror.egress].map(|on| on.then_some(to));
            mirrors.push(Mirror { source, ingress, egress });
        }
        mirrors
    }
}

fn bridged_port(membership: &Membership, numbers: &BTreeMap<Vlan<'_>, SegmentIndex>) -> BridgedPort {
    let mut port = BridgedPort {
        transparent: matches!(membership.vlans, PortVlans::Service(_)),
        tag_protocol: membership.tag_protocol,
        station_limit: membership.station_limit,
        storm: membership.storm,
        ..BridgedPort::default()
    };
    for (vlan, tagged) in membership.vlans.all() {
        let Some(segment) = numbers.get(&(&membership.bridge, vlan)).copied() else { continue };
        if tagged {
            port.tagged.push(VlanMember { identifier: vlan.number(), segment });
        } else {
            port.untagged = Some(segment);
        }
    }
    port.tagged.sort_unstable_by_key(|member| member.identifier);
    port
}

fn name_of((bridge, vlan): Vlan<'_>) -> String {
    if vlan == DEFAULT_VLAN { bridge.to_string() } else { format!("{bridge}.{vlan}") }
}

fn key(record: &BridgePortRecord) -> ObjectKey {
    ObjectKey::cluster_scoped(PORT, record.name.as_str())
}
