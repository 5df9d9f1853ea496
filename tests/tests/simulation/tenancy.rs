//! Networks of the simulated cluster and the namespaces in them. What a namespace belongs to never changes, so that
//! nothing may ever pass between two networks.

/// A network.
#[derive(Debug)]
pub(crate) struct NetworkOf {
    /// Name of its object; the pods' own segment has none.
    pub(crate) object: Option<&'static str>,
    /// Identifier in tunnels.
    pub(crate) vni: u32,
    pub(crate) namespaces: &'static [&'static str],
}

/// All networks. The tenants have the addresses of the pods' segment.
pub(crate) const NETWORKS: [NetworkOf; 3] = [
    NetworkOf { object: None, vni: 1, namespaces: &["default", "shop", "office"] },
    NetworkOf { object: Some("blue"), vni: 5001, namespaces: &["blue"] },
    NetworkOf { object: Some("red"), vni: 5002, namespaces: &["red"] },
];

/// The network that pods of a namespace are in.
pub(crate) fn network_of_namespace(namespace: &str) -> usize {
    NETWORKS.iter().position(|network| network.namespaces.contains(&namespace)).unwrap_or(0)
}
