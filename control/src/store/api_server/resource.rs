//! Under which path a server has the objects of a kind.
//!
//! A table instead of discovery: the kinds are known when the program is built, and an agent that starts while half of
//! the server's groups are away must not conclude that a kind does not exist.

use crate::store::Kind;

/// A kind's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Resource {
    /// `Pod`.
    kind: &'static str,
    /// `v1`, `networking.k8s.io/v1`.
    api_version: &'static str,
    /// `pods`.
    pub(super) plural: &'static str,
    namespaced: bool,
    /// Whether a cluster may do without: a server that has no such kind has no such objects.
    pub(super) optional: bool,
}

const fn resource(api_version: &'static str, kind: &'static str, plural: &'static str, namespaced: bool) -> Resource {
    Resource { kind, api_version, plural, namespaced, optional: false }
}

const OURS: &str = "millrace.dev/v1alpha1";

/// All kinds read or written.
pub(super) const RESOURCES: [Resource; 16] = [
    resource("v1", "Node", "nodes", false),
    resource("v1", "Pod", "pods", true),
    resource("v1", "Namespace", "namespaces", false),
    resource("v1", "Service", "services", true),
    resource("discovery.k8s.io/v1", "EndpointSlice", "endpointslices", true),
    Resource { optional: true, ..resource("networking.k8s.io/v1", "ServiceCIDR", "servicecidrs", false) },
    resource("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies", true),
    Resource {
        optional: true,
        ..resource("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", "clusternetworkpolicies", false)
    },
    resource("apps/v1", "StatefulSet", "statefulsets", true),
    resource("events.k8s.io/v1", "Event", "events", true),
    resource(OURS, "Uplink", "uplinks", false),
    resource(OURS, "IpPool", "ippools", false),
    resource(OURS, "IpBlock", "ipblocks", false),
    resource(OURS, "Bridge", "bridges", false),
    resource(OURS, "Port", "ports", false),
    resource(OURS, "Network", "networks", false),
];

impl Resource {
    /// The place of a kind.
    pub(super) fn of(kind: &Kind) -> Option<&'static Resource> {
        RESOURCES.iter().find(|resource| resource.kind == kind.kind && resource.api_version == kind.api_version)
    }

    /// The path of its objects, of one namespace or of all.
    pub(super) fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.api_version.contains('/') { "/apis" } else { "/api" };
        match namespace.filter(|_| self.namespaced) {
            Some(namespace) => format!("{root}/{}/namespaces/{namespace}/{}", self.api_version, self.plural),
            None => format!("{root}/{}/{}", self.api_version, self.plural),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{KINDS, STATEFUL_SET};

    #[test]
    fn every_kind_that_is_read_has_a_place() {
        for kind in KINDS.iter().chain([&STATEFUL_SET]) {
            assert!(Resource::of(kind).is_some(), "{kind:?}");
        }
    }

    #[test]
    fn paths_are_those_of_the_api() {
        let path =
            |api_version, kind, namespace| Resource::of(&Kind::new(api_version, kind)).expect("known").path(namespace);
        assert_eq!(path("v1", "Pod", Some("shop")), "/api/v1/namespaces/shop/pods");
        assert_eq!(path("v1", "Pod", None), "/api/v1/pods");
        assert_eq!(path("v1", "Node", None), "/api/v1/nodes");
        let slices = path("discovery.k8s.io/v1", "EndpointSlice", Some("shop"));
        assert_eq!(slices, "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices");
        assert_eq!(path(OURS, "IpBlock", None), "/apis/millrace.dev/v1alpha1/ipblocks");
    }
}
