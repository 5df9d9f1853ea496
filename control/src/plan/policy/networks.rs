//! Networks of rules as a list of prefixes, each with the sets that hold for its addresses.
//!
//! A prefix is listed where something begins or ends: a network, or what is left out of one. Each repeats what holds
//! from the prefixes around it, so that the longest prefix tells everything. Made anew when a network comes or goes:
//! one sort, and one step for each prefix and set that holds there.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use millrace_engine::tables::policy::PeerSet;

use super::peer_sets::network_set;
use crate::cluster::NetworkBlock;

/// What begins and ends at a prefix.
#[derive(Default)]
struct Edge {
    begins: Vec<PeerSet>,
    ends: Vec<PeerSet>,
}

/// The sets by prefix.
pub(super) fn by_prefix<'a>(blocks: impl Iterator<Item = &'a NetworkBlock>) -> BTreeMap<IpNet, Arc<[PeerSet]>> {
    // In the order of `IpNet`, a prefix comes before those inside it.
    let mut edges: BTreeMap<IpNet, Edge> = BTreeMap::new();
    for block in blocks {
        let set = network_set(block);
        block.except.iter().for_each(|except| edges.entry(*except).or_default().ends.push(set.clone()));
        edges.entry(block.cidr).or_default().begins.push(set);
    }
    let mut found = BTreeMap::new();
    let mut around: Vec<(IpNet, Arc<[PeerSet]>)> = Vec::new();
    for (prefix, edge) in edges {
        while around.last().is_some_and(|(outer, _)| !outer.contains(&prefix)) {
            around.pop();
        }
        let outer: &[PeerSet] = around.last().map_or(&[], |(_, sets)| sets);
        let mut sets: Vec<PeerSet> = outer.iter().filter(|set| !edge.ends.contains(set)).cloned().collect();
        sets.extend(edge.begins);
        sets.sort_unstable();
        let sets: Arc<[PeerSet]> = sets.into();
        around.push((prefix, Arc::clone(&sets)));
        found.insert(prefix, sets);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exception_ends_one_network_and_no_other() {
        let net = |text: &str| text.parse::<IpNet>().expect("prefix");
        let blocks = [
            NetworkBlock { cidr: net("10.0.0.0/8"), except: vec![net("10.1.0.0/16")] },
            NetworkBlock { cidr: net("10.1.2.0/24"), except: Vec::new() },
            NetworkBlock { cidr: net("0.0.0.0/0"), except: vec![net("10.1.2.0/25")] },
        ];
        let found = by_prefix(blocks.iter());
        let texts = |prefix: &str| {
            let mut texts: Vec<&str> = found[&net(prefix)].iter().map(PeerSet::text).collect();
            texts.sort_unstable();
            texts.join(" + ")
        };
        assert_eq!(texts("0.0.0.0/0"), "network 0.0.0.0/0 except 10.1.2.0/25");
        assert_eq!(texts("10.0.0.0/8"), "network 0.0.0.0/0 except 10.1.2.0/25 + network 10.0.0.0/8 except 10.1.0.0/16");
        assert_eq!(texts("10.1.0.0/16"), "network 0.0.0.0/0 except 10.1.2.0/25");
        assert_eq!(texts("10.1.2.0/24"), "network 0.0.0.0/0 except 10.1.2.0/25 + network 10.1.2.0/24");
        assert_eq!(texts("10.1.2.0/25"), "network 10.1.2.0/24");
    }
}
