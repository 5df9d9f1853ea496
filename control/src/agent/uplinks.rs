//! Uplinks: interfaces of the host that tunnels leave by, taken and given back.
//!
//! The steering program takes only what is ours from the interface; everything else stays with the host's kernel, as
//! does everything when the agent is gone. By AF_XDP each receive queue must have a socket, and each queue belongs to one
//! worker; what cannot be taken so is taken by other sockets (`taking.rs`), and what is wrong says what mends it
//! (`problem.rs`). Where UDP sockets carry the tunnels, these stay with the kernel.

mod problem;
mod taking;

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use millrace_engine::packet::PortIndex;
use millrace_engine::packet::parse::protocol;
use millrace_engine::port::af_xdp::{
    Destination, STEERED_ADDRESSES, STEERED_DESTINATIONS, SharedRules, SteeredPorts, Steering, SteeringRules,
    VxlanRules,
};
use millrace_engine::tables::{PortRange, PortRole, RouteTarget};

use super::pods::FIRST_POD_PORT;
use super::shared::Shared;
use crate::api::model;
use crate::cluster::{Cluster, InterfaceName, UplinkPort};
use crate::kernel::{KernelError, Link, Netlink};
use crate::plan::{self, LocalUplink, NodePlan, POD_SEGMENT, Steered};
use problem::UplinkProblem;

struct Uplink {
    port: PortIndex,
    taken_by: UplinkPort,
    link: u32,
    /// MTU of the interface when it was taken: its queues take no longer frames.
    mtu: u32,
    steering: Steering,
    /// Whether tunnels come in by sockets of their own instead of being steered.
    has_tunnel_sockets: bool,
    problem: Option<UplinkProblem>,
}

/// The uplinks of this node.
pub(super) struct Uplinks {
    shared: Arc<Shared>,
    taken: BTreeMap<InterfaceName, Uplink>,
    refused: BTreeMap<InterfaceName, UplinkProblem>,
    steering_problem: Option<UplinkProblem>,
    /// The plan that was asked last for what of Services is steered, and its answer.
    steered: Option<(Arc<NodePlan>, HashSet<Destination>)>,
}

impl Uplinks {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, taken: BTreeMap::new(), refused: BTreeMap::new(), steering_problem: None, steered: None }
    }

    /// Takes and gives back interfaces as the objects say; returns those in use.
    pub(super) fn follow(
        &mut self,
        cluster: &Cluster,
        vxlan_port: u16,
        netlink: &mut Netlink,
    ) -> BTreeMap<PortIndex, LocalUplink> {
        let node = self.shared.node.clone();
        let wanted: BTreeMap<InterfaceName, UplinkPort> =
            plan::wanted_uplinks(cluster, &node).map(|uplink| (uplink.interface.clone(), uplink.port)).collect();
        let stays = |name: &InterfaceName, uplink: &Uplink| wanted.get(name) == Some(&uplink.taken_by);
        let gone: Vec<InterfaceName> =
            self.taken.iter().filter(|(name, uplink)| !stays(name, uplink)).map(|(name, _)| name.clone()).collect();
        gone.iter().for_each(|name| self.release(name));
        self.refused.retain(|name, _| wanted.contains_key(name));
        let mut in_use = BTreeMap::new();
        for (name, by) in &wanted {
            match self.follow_one(name, *by, vxlan_port, netlink) {
                Ok((port, uplink)) => {
                    self.refused.remove(name);
                    in_use.insert(port, uplink);
                }
                Err(problem) => drop(self.refused.insert(name.clone(), problem)),
            }
        }
        in_use
    }

    fn follow_one(
        &mut self,
        name: &InterfaceName,
        by: UplinkPort,
        vxlan_port: u16,
        netlink: &mut Netlink,
    ) -> Result<(PortIndex, LocalUplink), UplinkProblem> {
        let interface = || name.as_str().to_owned();
        let unknown = |error: KernelError| UplinkProblem::Refused { interface: interface(), said: error.to_string() };
        let found = netlink.link(name.as_str()).map_err(unknown)?;
        let is_other = |uplink: &Uplink| {
            // Deleted, and perhaps made again under the same name; or its frames may be longer by now.
            found.as_ref().is_none_or(|link| link.index != uplink.link || link.mtu > uplink.mtu)
        };
        if self.taken.get(name).is_some_and(is_other) {
            self.release(name);
        }
        let link = found.ok_or_else(|| UplinkProblem::Absent { interface: interface() })?;
        let port = match self.taken.get(name) {
            Some(uplink) => uplink.port,
            None => self.take(name, by, vxlan_port, &link)?,
        };
        let addresses = netlink.addresses(name.as_str()).map_err(unknown)?;
        let addresses = addresses.iter().map(|address| address.addr()).filter(|address| !is_link_local(*address));
        let uplink = LocalUplink {
            interface: name.clone(),
            mac: link.mac,
            mtu: link.mtu,
            addresses: addresses.collect(),
            link_up: link.up && link.carrier,
        };
        Ok((port, uplink))
    }

    fn take(
        &mut self,
        name: &InterfaceName,
        by: UplinkPort,
        vxlan_port: u16,
        link: &Link,
    ) -> Result<PortIndex, UplinkProblem> {
        let interface = || name.as_str().to_owned();
        let used: HashSet<u16> = self.taken.values().map(|uplink| uplink.port.0).collect();
        let port = (1..FIRST_POD_PORT).find(|number| !used.contains(number)).map(PortIndex);
        let port = port.ok_or_else(|| UplinkProblem::TooMany { interface: interface(), limit: used.len() })?;
        let umems: Vec<_> = self
            .shared
            .switch
            .with(|switch| (0..switch.options().workers).filter_map(|worker| switch.umem(worker).cloned()).collect());
        let refused =
            |error: std::io::Error| UplinkProblem::Refused { interface: interface(), said: error.to_string() };
        let taken = match self.shared.inherited.take_uplink(name.as_str(), port).map_err(refused)? {
            Some(inherited) => taking::inherit(inherited, link, &self.shared.inherited)?,
            None => taking::take(by, link, port, vxlan_port, &umems)?,
        };
        let taking::Taken { queues, steering, has_tunnel_sockets, chosen, problem, .. } = taken;
        let attached = self.shared.switch.with(|switch| switch.attach(port, queues));
        attached.map_err(|error| UplinkProblem::Refused { interface: interface(), said: error.to_string() })?;
        self.shared.uplink_chosen(port, chosen);
        let (link, mtu) = (link.index, link.mtu);
        let uplink = Uplink { port, taken_by: by, link, mtu, steering, has_tunnel_sockets, problem };
        self.taken.insert(name.clone(), uplink);
        Ok(port)
    }

    /// First the program, so that the kernel gets its packets again, then the sockets.
    fn release(&mut self, name: &InterfaceName) {
        if let Some(uplink) = self.taken.remove(name) {
            drop(uplink.steering);
            self.shared.uplink_chosen(uplink.port, None);
            self.shared.switch.with(|switch| switch.detach(uplink.port));
        }
    }

    /// Gives all interfaces back.
    pub(super) fn release_all(&mut self) {
        let names: Vec<InterfaceName> = self.taken.keys().cloned().collect();
        names.iter().for_each(|name| self.release(name));
    }

    /// The port of the uplink that is link number `link` of the kernel.
    pub(super) fn by_link(&self, link: u32) -> Option<PortIndex> {
        self.taken.values().find(|uplink| uplink.link == link).map(|uplink| uplink.port)
    }

    /// The number of an uplink's link.
    pub(super) fn link(&self, port: PortIndex) -> Option<u32> {
        self.taken.values().find(|uplink| uplink.port == port).map(|uplink| uplink.link)
    }

    /// Tells the steering programs what is ours: the tunnels of `peers`, and with a port of the host also what the plan
    /// says of Services, what answers masqueraded connections, and fragments and ICMP to the addresses of the uplinks.
    pub(super) fn steer(
        &mut self,
        peers: impl Iterator<Item = IpAddr>,
        uplinks: &BTreeMap<PortIndex, LocalUplink>,
        plan: Option<&Arc<NodePlan>>,
    ) {
        let Some(plan) = plan else { return };
        if self.steered.as_ref().is_none_or(|(known, _)| !Arc::ptr_eq(known, plan)) {
            self.steered = Some((Arc::clone(plan), destinations(plan)));
        }
        let destinations = self.steered.iter().flat_map(|(_, destinations)| destinations.iter().copied());
        let local = plan.tunnels.local.iter().map(|end| end.address).collect();
        let vxlan = VxlanRules { port: plan.tunnels.udp_port, local, peers: peers.collect() };
        let shared = SharedRules {
            own: uplinks.values().flat_map(|uplink| uplink.addresses.iter().copied()).collect(),
            destinations: destinations.collect(),
            ranges: RANGED_PROTOCOLS.map(|protocol| steered_ports(protocol, plan.outside.ports)).to_vec(),
            ranged: plan.outside.sources.iter().copied().collect(),
            whole: directly_reached(plan),
            announced: plan.outside.announced.keys().copied().collect(),
        };
        self.steering_problem = None;
        for uplink in self.taken.values_mut() {
            let rules = SteeringRules {
                vxlan: if uplink.has_tunnel_sockets { VxlanRules::default() } else { vxlan.clone() },
                shared: hands_back(plan, uplink.port).then(|| shared.clone()),
            };
            if *uplink.steering.rules() != rules
                && let Err(error) = uplink.steering.set_rules(&rules)
            {
                self.steering_problem = Some(UplinkProblem::Steering { said: error.to_string() });
            }
        }
    }

    /// Whether, by this plan, packets of Services will be steered away from the kernel.
    pub(super) fn will_steer_services(plan: &NodePlan) -> bool {
        plan.ports.keys().any(|port| hands_back(plan, *port))
    }

    /// What is wrong with uplinks.
    pub(super) fn problems(&self) -> Vec<model::Problem> {
        let of_taken = self.taken.values().filter_map(|uplink| uplink.problem.as_ref());
        self.refused.values().chain(of_taken).chain(&self.steering_problem).map(UplinkProblem::told).collect()
    }
}

/// Protocols whose connections leave with a port of the node's own.
const RANGED_PROTOCOLS: [u8; 3] = [protocol::TCP, protocol::UDP, protocol::SCTP];

fn steered_ports(protocol: u8, ports: PortRange) -> SteeredPorts {
    SteeredPorts { protocol, first: ports.first(), last: ports.last() }
}

/// Addresses of pods of the pods' segment, where networks outside or nodes on the link know the way to them; of the latter also the node's own
/// among pods, which answers to it and to connections that were masqueraded find.
fn directly_reached(plan: &NodePlan) -> HashSet<IpAddr> {
    let mut routes = plan.segments.values().flat_map(|segment| segment.routes.values());
    let by_nodes = routes.any(|route| matches!(route.target, RouteTarget::Direct { .. }));
    let is_reached = by_nodes || !plan.outside.exempt.is_empty();
    let pods = plan.ports.values().filter_map(|port| match &port.role {
        PortRole::Pod(pod) if is_reached && pod.segment == POD_SEGMENT => Some(pod.addresses.iter().copied()),
        _ => None,
    });
    let own = plan
        .segments
        .get(&POD_SEGMENT)
        .filter(|_| by_nodes)
        .into_iter()
        .flat_map(|segment| segment.router_addresses.iter().copied());
    pods.flatten().chain(own).collect()
}

/// What of Services is steered, as much as the program holds beside addresses of the node and its pods.
fn destinations(plan: &NodePlan) -> HashSet<Destination> {
    let (mut addresses, mut destinations) = (HashSet::new(), HashSet::new());
    for Steered { address, protocol, port } in plan.services.steered() {
        if addresses.len() == STEERED_ADDRESSES / 2 || destinations.len() == STEERED_DESTINATIONS {
            break;
        }
        addresses.insert(address);
        destinations.insert(Destination { address, protocol, port });
    }
    destinations
}

/// Whether the workers know where the host takes back what reached this uplink and is not ours. Without, they would drop
/// it.
fn hands_back(plan: &NodePlan, port: PortIndex) -> bool {
    let role = plan.ports.get(&port).map(|port| &port.role);
    matches!(role, Some(PortRole::Uplink(uplink)) if uplink.hand_back.is_some())
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
