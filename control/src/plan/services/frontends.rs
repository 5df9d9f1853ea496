//! Under which addresses and ports a Service is reached at this node.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use millrace_engine::tables::services::{EndpointState, Frontend, FrontendKind};

use super::endpoints::service_port;
use super::places::Place;
use super::{Facts, FrontendKey, HealthCheck, ServicePlan};
use crate::cluster::{ServiceRecord, SliceRecord};

/// What a Service needs: in each family that it has a ClusterIP of, each port at each address. In a tenant's segment that
/// does not reach the outside it has its ClusterIPs only.
pub(super) fn service_plan(
    service: &ServiceRecord,
    slices: &[&Arc<SliceRecord>],
    place: &Place,
    facts: &Facts,
) -> ServicePlan {
    let mut plan = ServicePlan::default();
    plan.problems.extend(place.refused.clone());
    if let Some(network) = place.network.as_ref().filter(|_| !place.external && is_external(service)) {
        let message = format!("is called from inside only: its network {network} has no egress");
        plan.problems.push(message);
    }
    let Some(segment) = place.segment else { return plan };
    plan.segment = segment;
    for cluster_ip in &service.cluster_ips {
        let ipv4 = cluster_ip.is_ipv4();
        let own = |addresses: &[IpAddr]| -> Vec<IpAddr> {
            addresses.iter().copied().filter(|address| address.is_ipv4() == ipv4).collect()
        };
        let outer = |addresses| if place.external { own(addresses) } else { Vec::new() };
        let (external, balancer) = (outer(&service.external_ips), outer(&service.load_balancer_ips));
        for port in &service.ports {
            let served = Arc::new(service_port(service, port, ipv4, (slices, place), facts, &mut plan.problems));
            let mut add = |key, kind, sources| {
                if plan.frontends.iter().all(|(known, _)| *known != key) {
                    plan.frontends.push((key, Frontend { kind, service: Arc::clone(&served), sources }));
                }
            };
            let at = |address| FrontendKey::Address { address, protocol: port.protocol, port: port.port };
            add(at(*cluster_ip), FrontendKind::ClusterIp, None);
            external.iter().for_each(|address| add(at(*address), FrontendKind::ExternalIp, None));
            for address in &balancer {
                add(at(*address), FrontendKind::LoadBalancer, allowed(&service.source_ranges, *address, facts));
            }
            if let Some(number) = port.node_port.filter(|_| place.external) {
                let key = FrontendKey::NodePort { ipv4, protocol: port.protocol, port: number };
                add(key, FrontendKind::NodePort, None);
            }
            plan.ports.push(served);
        }
    }
    plan.health_check = service.health_check_port.filter(|_| place.external).map(|port| HealthCheck {
        port,
        local_ready_ipv4: local_ready(&plan, IpAddr::is_ipv4),
        local_ready_ipv6: local_ready(&plan, IpAddr::is_ipv6),
    });
    plan
}

/// Whether it has addresses or ports for clients outside.
fn is_external(service: &ServiceRecord) -> bool {
    let has_node_port = service.ports.iter().any(|port| port.node_port.is_some());
    has_node_port || !service.external_ips.is_empty() || !service.load_balancer_ips.is_empty()
}

/// Local ready endpoints of a family, each address once: a load balancer asks for the Service, not for one of its ports.
fn local_ready(plan: &ServicePlan, of_family: impl Fn(&IpAddr) -> bool) -> usize {
    let endpoints = plan.ports.iter().flat_map(|port| port.endpoints.iter());
    let ready = endpoints.filter(|endpoint| endpoint.local && endpoint.state == EndpointState::Ready);
    let mut addresses: Vec<IpAddr> = ready.map(|endpoint| endpoint.address).filter(of_family).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.len()
}

/// The networks let in at a load balancer's address; `None` for all. Where the node itself is let in, so is the address
/// as a source: a node that carries it uses it to reach itself. So are the node's own processes, which call under the
/// node's address among pods.
fn allowed(ranges: &[IpNet], address: IpAddr, facts: &Facts) -> Option<Arc<[IpNet]>> {
    let mut own: Vec<IpNet> =
        ranges.iter().copied().filter(|range| range.addr().is_ipv4() == address.is_ipv4()).collect();
    if own.is_empty() || own.iter().any(|range| range.prefix_len() == 0) {
        return None;
    }
    let (node, host) = &facts.own_addresses;
    if node.iter().any(|node| own.iter().any(|range| range.contains(node))) {
        own.push(IpNet::from(address));
        own.extend(host.iter().filter(|host| host.is_ipv4() == address.is_ipv4()).map(|host| IpNet::from(*host)));
    }
    own.sort_unstable();
    own.dedup();
    Some(own.into())
}
