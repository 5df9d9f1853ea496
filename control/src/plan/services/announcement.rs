//! Which node announces a load balancer's address on the nodes' own link, where nobody else has it.
//!
//! An address that lies in a network of an uplink's link is not routed by anybody: some node must answer for it there, and
//! exactly one. Every node computes the same choice from the same objects, without a word between them: of the nodes that
//! may, the one whose name hashes highest with the address (rendezvous hashing), so that an address moves only when its node
//! goes, and the addresses of a lost node spread over the others. A node may if it is ready, has an address in that network,
//! is not kept from load balancers by the well-known label, and has a ready endpoint where the policy is `Local`; if no node
//! has, one that terminates and still serves will do (KEP-1669: the last ones are used up to their end).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use millrace_engine::limits::ANNOUNCED_ADDRESSES;
use millrace_engine::packet::PortIndex;

use super::memory::{Input, Memory};
use crate::cluster::{Cluster, EndpointRecord, NodeRecord};
use crate::plan::LocalView;
use crate::problem::Problem;
use crate::stable_hash::hash_64;

/// Well-known label: load balancers shall not use this node.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

impl Memory {
    /// What this node announces, by address, with the uplink it does so on. A walk over the Services, and over the nodes
    /// for each address of a load balancer.
    pub(in crate::plan) fn announced(
        &self,
        cluster: &Cluster,
        local: &LocalView,
        problems: &mut Vec<Problem>,
    ) -> BTreeMap<IpAddr, PortIndex> {
        let mut services: BTreeMap<IpAddr, Vec<&Input>> = BTreeMap::new();
        for input in self.inputs().filter(|input| input.place.external && input.place.refused.is_none()) {
            for address in &input.service.load_balancer_ips {
                services.entry(*address).or_default().push(input);
            }
        }
        let is_of_node = |address: &IpAddr| cluster.nodes.values().any(|node| node.addresses.contains(address));
        let announces = |(address, inputs): (IpAddr, Vec<&Input>)| {
            let (network, port) = link_of(address, local).filter(|_| !is_of_node(&address))?;
            let candidates = cluster.nodes.values().filter(|node| is_candidate(node, network));
            let serving = candidates.filter_map(|node| {
                let by = inputs.iter().filter_map(|input| input.serving_at(node, address.is_ipv4())).max()?;
                Some((by, hash_64(&format!("{} {address}", node.name)), &node.name))
            });
            let (_, _, chosen) = serving.max()?;
            (*chosen == local.node).then_some((address, port))
        };
        let mut announced: BTreeMap<IpAddr, PortIndex> = services.into_iter().filter_map(announces).collect();
        let count = announced.len();
        if let Some((first, _)) = announced.iter().nth(ANNOUNCED_ADDRESSES) {
            let first = *first;
            problems.push(Problem::new(format!(
                "{count} addresses of load balancers fall to this node, which announces {ANNOUNCED_ADDRESSES}: those from \
                 {first} on are reached by nobody on the link"
            )));
            announced.retain(|address, _| *address < first);
        }
        announced
    }
}

/// The network on an uplink's link that an address lies in, the narrowest.
fn link_of(address: IpAddr, local: &LocalView) -> Option<(IpNet, PortIndex)> {
    let on_link =
        local.outside.routes.iter().filter(|(network, path)| path.gateway.is_none() && network.contains(&address));
    on_link.max_by_key(|(network, _)| network.prefix_len()).map(|(network, path)| (*network, path.port))
}

fn is_candidate(node: &NodeRecord, network: IpNet) -> bool {
    node.ready && !node.labels.contains_key(EXCLUDED) && node.addresses.iter().any(|address| network.contains(address))
}

/// By what a node serves a Service, the better one later.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Serving {
    /// By endpoints that terminate.
    Ending,
    /// By ready ones, or by those of other nodes.
    Ready,
}

impl Input {
    fn serving_at(&self, node: &NodeRecord, ipv4: bool) -> Option<Serving> {
        if !self.service.external_local {
            return Some(Serving::Ready);
        }
        let here = |endpoint: &&EndpointRecord| endpoint.node.as_ref() == Some(&node.name);
        let slices = self.slices.iter().filter(|slice| slice.ipv4 == ipv4);
        let serving = slices.flat_map(|slice| &slice.endpoints).filter(here).filter_map(|endpoint| {
            let ends = endpoint.serving && endpoint.terminating;
            if endpoint.ready { Some(Serving::Ready) } else { ends.then_some(Serving::Ending) }
        });
        serving.max()
    }
}
