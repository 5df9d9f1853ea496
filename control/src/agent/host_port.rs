//! The host's own port: `millrace0`, a persistent TAP in the agent's own namespace.
//!
//! Made at the first look and taken up again by every later agent; a stopped or killed agent leaves it standing with
//! its address and routes, so that sockets of the host keep their source. It goes by [`remove`] only, which is
//! `millrace agent --remove-host-port`. Should somebody delete it, the next look makes it again. Runs on the underlay
//! thread, but for [`remove`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use millrace_engine::limits;
use millrace_engine::packet::parse::protocol;
use millrace_engine::packet::{Mac, PortIndex};
use millrace_engine::port::PortQueue;
use millrace_engine::port::tap::{TapDevice, TapQueue};
use millrace_engine::tables::PortRole;

use super::pods::Pods;
use super::shared::{Shared, Standing};
use crate::cluster::{InterfaceName, NodeName};
use crate::kernel::{GuardedPorts, HostInterface, KernelError, Netlink, OwnPorts, configure_host_interface};
use crate::plan::{GATEWAY_MAC, HostPlan, HostServices, LocalHost, NodePlan};
use crate::stable_hash::hash_64;

/// Name of the interface.
pub const HOST_INTERFACE: &str = "millrace0";

/// Number of the port.
const HOST_PORT: PortIndex = PortIndex(0);

/// The host's own port.
pub(super) struct HostPort {
    shared: Arc<Shared>,
    pods: Arc<Pods>,
    interface: InterfaceName,
    mac: Mac,
    /// Number of the link whose queues the workers hold.
    attached: Option<u32>,
    /// What the host sends to Services, with the plan and the host's addresses that it follows from.
    services: Option<(Arc<NodePlan>, Vec<IpAddr>, Arc<HostServices>)>,
    problems: Vec<String>,
}

impl HostPort {
    pub(super) fn new(shared: Arc<Shared>, pods: Arc<Pods>) -> Self {
        let interface = InterfaceName::new(HOST_INTERFACE).unwrap_or_else(|_| unreachable!("the name is a valid one"));
        let mac = mac(&shared.node);
        Self { shared, pods, interface, mac, attached: None, services: None, problems: Vec::new() }
    }

    /// Brings the port and its interface into step with the plan; what of it is there afterwards.
    /// `leads_here`: whether the host's routes may lead to it already.
    pub(super) fn follow(&mut self, netlink: &mut Netlink, standing: &Standing, leads_here: bool) -> Option<LocalHost> {
        self.problems.clear();
        if let Err(problem) = self.attach(netlink) {
            self.problems.push(problem);
            return None;
        }
        // Before a plan knows the port, what an earlier agent left is right.
        let told = standing.local.as_deref().is_some_and(|local| local.host.is_some());
        let configured = match standing.plan.as_deref().filter(|_| told) {
            Some(plan) => {
                self.claim(standing, &plan.host);
                let services = self.services(standing);
                self.configure(netlink, standing, plan, &services, leads_here)
            }
            None => Ok(()),
        };
        let said = |error: KernelError| format!("the host's own port: {error}");
        self.problems.extend(configured.err().map(said));
        self.local(netlink).map_err(|error| self.problems.push(said(error))).ok()
    }

    /// What of Services the host sends by this port; a walk over all of them, once for each plan.
    fn services(&mut self, standing: &Standing) -> Arc<HostServices> {
        let (Some(plan), Some(cluster)) = (&standing.plan, &standing.cluster) else { return Arc::default() };
        let own = standing.local.as_deref().and_then(|local| local.host.as_ref()).map(|host| host.addresses.as_slice());
        let own = own.unwrap_or_default();
        let known = self.services.as_ref().filter(|(known, at, _)| Arc::ptr_eq(known, plan) && at.as_slice() == own);
        let services = match known {
            Some((_, _, services)) => Arc::clone(services),
            None => Arc::new(plan.services.for_host(cluster, own)),
        };
        self.services = Some((Arc::clone(plan), own.to_vec(), Arc::clone(&services)));
        if services.loopback_ports.len() > limits::OWN_PORT_RULES {
            self.problems.push(format!(
                "pods have {} ports at loopback addresses of the node, which serves {} ranges of them",
                services.loopback_ports.len(),
                limits::OWN_PORT_RULES
            ));
        }
        if services.left_out > 0 {
            self.problems.push(format!(
                "the host routes {} addresses of Services to the switch, {} found no room",
                limits::HOST_SERVICE_ROUTES,
                services.left_out
            ));
        }
        services
    }

    fn configure(
        &self,
        netlink: &mut Netlink,
        standing: &Standing,
        plan: &NodePlan,
        services: &HostServices,
        leads_here: bool,
    ) -> Result<(), KernelError> {
        // Without an uplink in the plan the MTU of pods is a guess, and right after a start a wrong one.
        let bounded = plan.ports.values().any(|port| matches!(port.role, PortRole::Uplink(_)));
        let wanted = HostInterface {
            name: HOST_INTERFACE,
            mac: self.mac,
            gateway_mac: GATEWAY_MAC,
            mtu: bounded.then_some(plan.pod_mtu),
            addresses: &plan.host.addresses,
            leads_here,
            prefixes: &plan.host.prefixes.union(&services.prefixes).copied().collect(),
            own_addresses: &services.addresses,
            own_ports: &OwnPorts::covering(&services.ports, &services.loopback_ports),
            guarded_ports: &guarded_ports(standing, plan, services),
        };
        configure_host_interface(netlink, &wanted)
    }

    /// What is wrong with it.
    pub(super) fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Opens the queues, if there is no interface or another one than was attached.
    fn attach(&mut self, netlink: &mut Netlink) -> Result<(), String> {
        let failed = |error: &dyn std::error::Error| {
            format!(
                "the host has no port of its own, so node and pods do not reach each other: {error}; an interface \
                 {HOST_INTERFACE} of another kind must be removed (`ip link delete {HOST_INTERFACE}`), and /dev/net/tun must \
                 be there"
            )
        };
        let found = netlink.link(HOST_INTERFACE).map_err(|error| failed(&error))?.map(|link| link.index);
        if found.is_some() && found == self.attached {
            return Ok(());
        }
        if self.attached.take().is_some() {
            self.shared.switch.with(|switch| switch.detach(HOST_PORT));
        }
        let workers = self.shared.switch.with(|switch| switch.options().workers);
        let inherited = self.shared.inherited.take(HOST_PORT).map_err(|error| failed(&error))?;
        let (index, queues) = match found.zip(inherited) {
            Some((index, inherited)) => (index, inherited.queues),
            None => {
                let device = TapDevice::open(HOST_INTERFACE, workers).map_err(|error| failed(&error))?;
                let boxed = |queue: TapQueue| -> Option<Box<dyn PortQueue>> { Some(Box::new(queue)) };
                (device.index(), device.into_queues(HOST_PORT).into_iter().map(boxed).collect())
            }
        };
        self.shared.switch.with(|switch| switch.attach(HOST_PORT, queues)).map_err(|error| failed(&error))?;
        self.attached = Some(index);
        Ok(())
    }

    /// Sees to it that there is a block whose first address can be the node's.
    fn claim(&mut self, standing: &Standing, plan: &HostPlan) {
        let Some(cluster) = standing.cluster.as_deref().filter(|_| plan.lacks_block) else { return };
        if let Err(error) = self.pods.claim_for_node(cluster) {
            self.problems.push(format!("the node has no address among pods: {error}"));
        }
    }

    fn local(&self, netlink: &mut Netlink) -> Result<LocalHost, KernelError> {
        let link = netlink.existing_link(HOST_INTERFACE)?;
        let all = netlink.all_addresses()?;
        let own = all.iter().filter(|(index, _)| *index == link.index);
        let own_addresses: Vec<IpAddr> = own.map(|(_, address)| address.addr()).collect();
        let mut addresses: Vec<IpAddr> = all.iter().map(|(_, address)| address.addr()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let interface = self.interface.clone();
        Ok(LocalHost { port: HOST_PORT, interface, mac: link.mac, mtu: link.mtu, own_addresses, addresses })
    }
}

/// Ports that outsiders reach the switch by at the host's own addresses: those of masqueraded connections and of Services.
fn guarded_ports(standing: &Standing, plan: &NodePlan, services: &HostServices) -> BTreeSet<GuardedPorts> {
    let uplinks = standing.local.iter().flat_map(|local| local.uplinks.values());
    let interfaces = uplinks.map(|uplink| uplink.interface.as_str().to_owned()).collect();
    let (first, last) = (plan.outside.ports.first(), plan.outside.ports.last());
    let masqueraded = plan.outside.sources.iter().flat_map(|address| {
        [protocol::TCP, protocol::UDP, protocol::SCTP].map(|protocol| (*address, protocol, first, last))
    });
    GuardedPorts::covering(&interfaces, masqueraded, &services.served)
}

/// A locally administered MAC address that is the same each time for one node.
fn mac(node: &NodeName) -> Mac {
    let [a, b, c, d, e, ..] = hash_64(&format!("{} {HOST_INTERFACE}", node.as_str())).to_be_bytes();
    Mac([0x02, a, b, c, d, e])
}

/// Takes the interface away, with all addresses and routes on it; false if there is none. No agent may be running.
///
/// # Errors
/// If the interface is no TAP, or what the kernel said.
pub fn remove() -> anyhow::Result<bool> {
    let mut netlink = Netlink::open()?;
    // Rules do not go with the interface, and may outlive one that somebody deleted.
    netlink.set_own_ports(&BTreeMap::new(), &BTreeSet::new(), Some(&BTreeSet::new()))?;
    let Some(link) = netlink.link(HOST_INTERFACE)? else { return Ok(false) };
    if link.kind.as_deref() != Some("tun") {
        anyhow::bail!(
            "{HOST_INTERFACE} is not the host's port of this program but a {}",
            link.kind.unwrap_or_default()
        );
    }
    Ok(netlink.delete_link(HOST_INTERFACE)?)
}
