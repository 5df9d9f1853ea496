//! One policy's rules of one direction, in the engine's terms.

use std::sync::Arc;

use millrace_engine::tables::policy::{
    Direction, PeerSet, Peers, PolicyInfo, PortRange, Ports, Rule, RuleCounts, RuleList,
};

use super::peer_sets::{network_set, node_set, pod_set};
use crate::cluster::{Peer, PolicyRecord, PortRecord, RuleRecord};

/// Compiles a direction, if the policy concerns it. Where the rules are those of `before`, what was counted goes on.
pub(super) fn compile(
    policy: &PolicyRecord,
    direction: Direction,
    logs_denied: bool,
    before: Option<&Arc<RuleList>>,
) -> Option<Arc<RuleList>> {
    let rules: Vec<Rule> = policy.rules(direction)?.iter().enumerate().map(|(at, record)| rule(at, record)).collect();
    let info =
        PolicyInfo { name: policy.name.to_string().into(), keeps_established: policy.keeps_established, logs_denied };
    let counts = match before {
        Some(before) if before.rules == rules => Arc::clone(&before.counts),
        _ => Arc::new(RuleCounts::new(rules.len())),
    };
    let list = RuleList { policy: info, rules, counts };
    // The very same list stays the very same memory.
    Some(before.filter(|before| ***before == list).map_or_else(|| Arc::new(list), Arc::clone))
}

fn rule(at: usize, record: &RuleRecord) -> Rule {
    Rule {
        number: u16::try_from(at + 1).unwrap_or(u16::MAX),
        name: record.name.clone(),
        action: record.action,
        peers: record.peers.as_deref().map_or(Peers::Any, peers),
        ports: record.ports.as_deref().map_or(Ports::Any, ports),
    }
}

fn peers(list: &[Peer]) -> Peers {
    let (mut pods, mut networks): (Vec<PeerSet>, Vec<PeerSet>) = (Vec::new(), Vec::new());
    for peer in list {
        match peer {
            Peer::Pods(selection) => pods.push(pod_set(selection)),
            Peer::Nodes(selector) => pods.push(node_set(selector)),
            Peer::Network(block) => networks.push(network_set(block)),
        }
    }
    Peers::In { pods: pods.into(), networks: networks.into() }
}

fn ports(list: &[PortRecord]) -> Ports {
    let ranges = list.iter().filter_map(|port| match port {
        PortRecord::Range(range) => Some(*range),
        PortRecord::Named(..) => None,
    });
    let ranges: Vec<PortRange> = ranges.collect();
    let named = list.iter().filter_map(|port| match port {
        PortRecord::Named(name, protocol) => Some((Arc::clone(name), *protocol)),
        PortRecord::Range(_) => None,
    });
    Ports::In { ranges: ranges.into(), named: named.collect() }
}
