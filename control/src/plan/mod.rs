//! What this node needs: a pure function of the cluster and of what is plugged in here.
//!
//! The same inputs give the same plan, whatever came before; nothing is remembered. Where objects contradict each
//! other (two pods with one address, two blocks of the same addresses) the first in a fixed order counts and the
//! other is a problem. The plan is in the engine's own terms for single ports, routes and peers, so that `compile/`
//! has only to put them in place. Cost: one walk over nodes, blocks and attached pods; of Services those that changed.

mod bandwidth;
mod bridges;
mod broadcast_domains;
mod host;
mod local;
mod outside;
pub mod policy;
mod routes;
mod services;
mod tenant_segments;
mod tenants;
mod tunnels;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use millrace_engine::limits;
use millrace_engine::packet::{Mac, PortIndex};
use millrace_engine::tables::{
    self, Bandwidth, HandBack, Mirror, Peer, PodPort, PolicyTable, PortRange, PortRole, Route, SegmentIndex,
    UplinkPort, Vni, Vtep,
};

use self::policy::PolicyPlanner;
use self::tenant_segments::Surroundings;
pub use bridges::BridgedPlan;
pub use host::HostPlan;
pub use local::{AttachedPod, LocalHost, LocalPort, LocalUplink, LocalView, OutsidePath, OutsideView, UnderlayPath};
pub use outside::OutsidePlan;
pub use services::{
    FrontendKey, HealthCheck, HostServices, Owner, ServiceOptions, ServicePlan, ServicesPlan, Steered,
    WithoutLocalEndpoints,
};
pub(crate) use tenants::Tenants;
pub use tenants::connected_with;

use crate::cluster::{Cluster, NodeName, PODS, PodName, TunnelUse, UplinkRecord};
use crate::observe::{POD, Touched};
use crate::problem::Problem;
use crate::store::ObjectKey;

/// The segment of all pods.
pub const POD_SEGMENT: SegmentIndex = SegmentIndex(0);

/// Its VXLAN identifier unless the configuration says otherwise: flannel's, so that nodes of either can share a
/// cluster.
pub const POD_VNI: u32 = 1;

/// MAC address that the gateway has at every pod of every node, so that a pod may move without learning a new one.
pub const GATEWAY_MAC: Mac = Mac([0x02, 0x00, 0x5e, 0x00, 0x01, 0x01]);

/// The gateway's addresses: link-local, so that they cost no block and are the same everywhere.
pub const GATEWAY_ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)), IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1))];

/// MTU of pods where no uplink bounds it.
pub const MTU_WITHOUT_UPLINK: u32 = 1500;

/// What this node needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePlan {
    /// Its ports.
    pub ports: BTreeMap<PortIndex, tables::Port>,
    /// Its routed segments: the pods', and those of tenants.
    pub segments: BTreeMap<SegmentIndex, SegmentPlan>,
    /// Its bridged segments.
    pub bridged: BTreeMap<SegmentIndex, BridgedPlan>,
    /// Ports whose frames are copied.
    pub mirrors: Vec<Mirror>,
    /// Ports with limits of bandwidth.
    pub bandwidth: BTreeMap<PortIndex, Bandwidth>,
    /// Its tunnels.
    pub tunnels: TunnelPlan,
    /// What is reached outside of tunnels.
    pub outside: OutsidePlan,
    /// What the host's own interface shall have.
    pub host: HostPlan,
    /// MTU for interfaces of pods that are plugged in from now on, and for the host's own.
    pub pod_mtu: u32,
    /// The same for interfaces in tenants' networks, whose packets always go through tunnels.
    pub network_mtu: u32,
    /// Its Services.
    pub services: ServicesPlan,
    /// Who may talk to whom.
    pub policy: PolicyTable,
}

/// A routed segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentPlan {
    /// Its name for people.
    pub name: Arc<str>,
    /// Its identifier between nodes.
    pub vni: Vni,
    /// MAC address of the gateway.
    pub gateway_mac: Mac,
    /// Addresses of the gateway.
    pub gateway_addresses: Vec<IpAddr>,
    /// This node's own addresses in the segment, at most one of each family.
    pub router_addresses: Vec<IpAddr>,
    /// Source ports of masqueraded connections.
    pub masquerade_ports: PortRange,
    /// Whether networks outside that know the way to pods know the way to its members.
    pub known_outside: bool,
    /// Prefixes of segments it is connected with, none inside another.
    pub connected: BTreeMap<IpNet, SegmentIndex>,
    /// MAC address of this node's tunnel end.
    pub tunnel_mac: Mac,
    /// Routes of both families.
    pub routes: BTreeMap<IpNet, Route>,
}

/// Tunnels to other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TunnelPlan {
    /// UDP destination port of VXLAN.
    pub udp_port: u16,
    /// Our own ends, IPv4 first.
    pub local: Vec<Vtep>,
    /// Other nodes, by the address of the tunnel end we use.
    pub peers: BTreeMap<IpAddr, Peer>,
}

/// A plan and what could not be planned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Planned {
    /// The plan.
    pub plan: NodePlan,
    /// Contradictions and gaps, sorted.
    pub problems: Vec<Problem>,
}

/// Says what this node needs.
#[must_use]
pub fn plan(cluster: &Cluster, local: &LocalView) -> Planned {
    Planner::default().plan(cluster, local, &Touched::everything(cluster))
}

/// Plans again and again, and does not do again what it did for the same inputs. What it says is what [`plan`] says.
#[derive(Debug, Default)]
pub struct Planner {
    services: services::Memory,
    policy: PolicyPlanner,
}

impl Planner {
    /// Says what this node needs. `touched` names every object that was applied or deleted since the last call, of the
    /// kinds that policies read.
    #[must_use]
    pub fn plan(&mut self, cluster: &Cluster, local: &LocalView, touched: &Touched) -> Planned {
        let mut problems = Vec::new();
        let tenants = Tenants::of(cluster, local.vni, &mut problems);
        let services = self.services.plan(cluster, local, &tenants, &mut problems);
        let policy = self.policy.update(cluster, local, touched);
        problems.extend(self.policy.problems().cloned());
        unenforced_policies(local, &tenants, &policy, &mut problems);
        let announced = self.services.announced(cluster, local, &mut problems);
        plan_with(cluster, local, &tenants, (services, announced), policy, problems)
    }

    /// Services planned since the start; grows by those whose objects changed.
    #[must_use]
    pub fn services_planned(&self) -> u64 {
        self.services.planned()
    }
}

fn plan_with(
    cluster: &Cluster,
    local: &LocalView,
    tenants: &Tenants,
    (services, announced): (ServicesPlan, BTreeMap<IpAddr, PortIndex>),
    policy: PolicyTable,
    mut problems: Vec<Problem>,
) -> Planned {
    let ends = tunnels::own_ends(cluster, local, &mut problems);
    let remotes = bridges::remotes(cluster, local);
    let reach = tunnels::reach(cluster, &local.node, &ends, &mut problems);
    tenants::overlapping_pools(cluster, &mut problems);
    tenants::report(cluster, &mut problems);
    let peers = tunnels::peers(local, &ends, &reach, &remotes);
    let known: BTreeSet<IpAddr> = peers.keys().copied().collect();
    let bridges = bridges::bridges(cluster, local, tenants, &known, &reach, &mut problems);
    let router_addresses = host::router_addresses(cluster, local);
    let ports = ports(local, tenants, &router_addresses, bridges.ports, &mut problems);
    let around =
        Surroundings { cluster, local, tenants, ports: &ports, reach: &reach, router_addresses: &router_addresses };
    let present = tenant_segments::present(cluster, local, tenants);
    let tenant_segments = present.iter().filter_map(|network| around.segment(network, &mut problems));
    let mut segments: BTreeMap<SegmentIndex, SegmentPlan> = tenant_segments.collect();
    let pods = pod_segment(&around, &mut problems);
    let callable = present.iter().filter(|network| cluster.routed_network(network).is_some_and(|routed| routed.egress));
    let callable = callable.filter_map(|network| tenants.segment(Some(network))).collect();
    let outside = OutsidePlan::new(local, &pods.routes, callable, announced);
    let host = HostPlan::new(cluster, &local.node, &pods.router_addresses);
    segments.insert(POD_SEGMENT, pods);
    let pod_mtu = pod_mtu(cluster, local, &ends, &peers);
    let network_mtu = network_mtu(local, &ends, &peers);
    too_long_units(local, tenants, (pod_mtu, network_mtu), &mut problems);
    let tunnels = TunnelPlan { udp_port: local.vxlan_port, local: ends, peers };
    problems.sort_unstable();
    problems.dedup();
    let (bridged, mirrors) = (bridges.segments, bridges.mirrors);
    let bandwidth = bandwidth::limits(cluster, local);
    let plan = NodePlan {
        ports,
        segments,
        bridged,
        mirrors,
        bandwidth,
        tunnels,
        outside,
        host,
        pod_mtu,
        network_mtu,
        services,
        policy,
    };
    Planned { plan, problems }
}

/// The pods' segment, with the ways to the outside.
fn pod_segment(around: &Surroundings<'_>, problems: &mut Vec<Problem>) -> SegmentPlan {
    let (cluster, local) = (around.cluster, around.local);
    let connected = around.numbered(tenants::connected_with_pods(cluster).into_iter().map(Some).collect());
    let mut routes = around.routes(None, &connected, problems);
    outside::add_routes(local, around.ports, &mut routes);
    SegmentPlan {
        name: PODS.into(),
        vni: local.vni,
        gateway_mac: GATEWAY_MAC,
        gateway_addresses: GATEWAY_ADDRESSES.to_vec(),
        tunnel_mac: tunnels::own_mac(cluster.nodes.get(&local.node), &local.node),
        routes,
        router_addresses: around.router_addresses.to_vec(),
        masquerade_ports: local.masquerade_ports,
        known_outside: true,
        connected: around.prefixes(PODS, &connected, problems),
    }
}

/// Names a pod's object.
fn pod_key(pod: &PodName) -> ObjectKey {
    ObjectKey { kind: POD, namespace: Some(pod.namespace().to_string()), name: pod.name().to_owned() }
}

/// Pods in networks that are not routed meet no policy, whatever selects them: their author must not believe otherwise.
fn unenforced_policies(local: &LocalView, tenants: &Tenants, policy: &PolicyTable, problems: &mut Vec<Problem>) {
    let bridged = local.pods.iter().filter(|(_, pod)| tenants.segment(pod.network.as_ref()).is_none());
    for (port, pod) in bridged {
        let (Some(network), Some(judged)) = (&pod.network, policy.pods.known(*port)) else { continue };
        let lists = [&judged.ingress, &judged.egress].into_iter().flat_map(|direction| direction.isolating.iter());
        let names: BTreeSet<String> = lists.map(|list| list.policy.name.to_string()).collect();
        if !names.is_empty() {
            let names = names.into_iter().collect::<Vec<_>>().join(", ");
            let message = format!("is on the network {network}, where no policy holds, and is selected by {names}");
            problems.push(Problem::new(message).of(&pod_key(&pod.pod)).kind("policy_not_enforced"));
        }
    }
}

/// Pods keep the MTU that they were plugged in with. Where less is carried by now, their longer packets are answered with
/// Too Big, which some paths and programs do not take.
fn too_long_units(local: &LocalView, tenants: &Tenants, (pods, networks): (u32, u32), problems: &mut Vec<Problem>) {
    for pod in local.pods.values().filter(|pod| tenants.segment(pod.network.as_ref()).is_some()) {
        let carried = if pod.network.is_none() { pods } else { networks };
        if pod.mtu > carried {
            let (interface, mtu) = (&pod.interface, pod.mtu);
            let message = format!(
                "{interface} has the MTU {mtu}, and {carried} is carried by now: make the pod anew to lower it"
            );
            problems.push(Problem::new(message).of(&pod_key(&pod.pod)).kind("pod_mtu"));
        }
    }
}

/// The uplinks that this node is to use.
pub fn wanted_uplinks<'a>(cluster: &'a Cluster, node: &'a NodeName) -> impl Iterator<Item = &'a UplinkRecord> {
    cluster.uplinks.values().filter(move |uplink| uplink.is_for(node))
}

/// Addresses of other nodes' tunnel ends to which the underlay path must be followed.
#[must_use]
pub fn underlay_destinations(cluster: &Cluster, local: &LocalView) -> Vec<IpAddr> {
    let ends = tunnels::own_ends(cluster, local, &mut Vec::new());
    let mut destinations = tunnels::reach(cluster, &local.node, &ends, &mut Vec::new()).destinations();
    destinations.extend(bridges::remotes(cluster, local));
    destinations.sort_unstable();
    destinations.dedup();
    destinations
}

fn ports(
    local: &LocalView,
    tenants: &Tenants,
    router_addresses: &[IpAddr],
    bridge_ports: Vec<tables::Port>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<PortIndex, tables::Port> {
    let host = local.host.iter().map(|host| tables::Port {
        index: host.port,
        name: host.interface.as_str().into(),
        mtu: host.mtu,
        role: PortRole::Host(host::role(host, router_addresses)),
    });
    let hand_back = local.host.as_ref().map(|host| HandBack { port: host.port, mac: host.mac });
    let uplinks = local.uplinks.iter().map(|(index, uplink)| tables::Port {
        index: *index,
        name: uplink.interface.as_str().into(),
        mtu: uplink.mtu,
        role: PortRole::Uplink(UplinkPort { mac: uplink.mac, hand_back }),
    });
    let pods = local.pods.iter().filter_map(|(index, pod)| {
        let segment = tenants.segment(pod.network.as_ref())?;
        let role = PortRole::Pod(PodPort { segment, mac: pod.mac, addresses: pod.addresses.clone() });
        Some(tables::Port { index: *index, name: pod.port_name().into(), mtu: pod.mtu, role })
    });
    let mut ports = BTreeMap::new();
    for port in host.chain(uplinks).chain(pods).chain(bridge_ports) {
        if usize::from(port.index.0) >= limits::PORTS {
            problems.push(Problem::new(format!(
                "port {} is beyond the {} ports of a switch",
                port.name,
                limits::PORTS
            )));
        } else if let Some(first) = ports.get(&port.index).map(|first: &tables::Port| Arc::clone(&first.name)) {
            problems.push(Problem::new(format!("ports {first} and {} have the number {}", port.name, port.index.0)));
        } else {
            ports.insert(port.index, port);
        }
    }
    ports
}

/// What an uplink carries, less the tunnel's headers, if any pool uses tunnels; 20 bytes more if an IPv6 tunnel is in use.
fn pod_mtu(cluster: &Cluster, local: &LocalView, ends: &[Vtep], peers: &BTreeMap<IpAddr, Peer>) -> u32 {
    if let Some(configured) = local.pod_mtu {
        return configured;
    }
    let mut pools = cluster.pools_of(None).peekable();
    if pools.peek().is_some() && pools.all(|pool| pool.tunnel == TunnelUse::Never) {
        return uplink_mtu(local, ends).unwrap_or(MTU_WITHOUT_UPLINK);
    }
    network_mtu(local, ends, peers)
}

fn uplink_mtu(local: &LocalView, ends: &[Vtep]) -> Option<u32> {
    let carries = |index: &PortIndex| ends.is_empty() || ends.iter().any(|end| end.port == *index);
    let uplinks = local.uplinks.iter().filter(|(index, _)| carries(index));
    uplinks.map(|(_, uplink)| uplink.mtu).min()
}

/// What an uplink carries, less the tunnel's headers.
fn network_mtu(local: &LocalView, ends: &[Vtep], peers: &BTreeMap<IpAddr, Peer>) -> u32 {
    if let Some(configured) = local.pod_mtu {
        return configured;
    }
    let Some(mtu) = uplink_mtu(local, ends) else { return MTU_WITHOUT_UPLINK };
    let only_ipv6 = !ends.is_empty() && ends.iter().all(|end| end.address.is_ipv6());
    let ipv6 = only_ipv6 || peers.keys().any(IpAddr::is_ipv6);
    mtu.saturating_sub(if ipv6 { TUNNEL_BYTES_IPV6 } else { TUNNEL_BYTES_IPV4 })
}

/// Bytes around an inner packet: inner Ethernet 14, VXLAN 8, UDP 8, IPv4 20.
pub const TUNNEL_BYTES_IPV4: u32 = 50;

/// The same over IPv6, whose header has 40.
pub const TUNNEL_BYTES_IPV6: u32 = 70;
