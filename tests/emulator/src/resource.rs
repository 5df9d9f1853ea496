//! The resources served: those built in, and those that definitions add.

use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::event::EVENT_GROUP;

/// One resource of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resource {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) plural: String,
    pub(crate) short_names: Vec<String>,
    pub(crate) namespaced: bool,
    /// Whether `status` is written by a path of its own only.
    pub(crate) status: bool,
    /// Whether it comes from a definition: then strategic patches and updates without a version are refused, and the
    /// generation counts.
    pub(crate) custom: bool,
}

/// Group, version, kind, plural, short name, namespaced, status.
type Row = (&'static str, &'static str, &'static str, &'static str, &'static str, bool, bool);

const BUILT_IN: &[Row] = &[
    ("", "v1", "Namespace", "namespaces", "ns", false, true),
    ("", "v1", "Node", "nodes", "no", false, true),
    ("", "v1", "Pod", "pods", "po", true, true),
    ("", "v1", "Service", "services", "svc", true, true),
    ("", "v1", "ConfigMap", "configmaps", "cm", true, false),
    ("", "v1", "Event", "events", "ev", true, false),
    ("", "v1", "ServiceAccount", "serviceaccounts", "sa", true, false),
    ("apps", "v1", "DaemonSet", "daemonsets", "ds", true, true),
    ("apps", "v1", "StatefulSet", "statefulsets", "sts", true, true),
    ("coordination.k8s.io", "v1", "Lease", "leases", "", true, false),
    ("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", "", true, false),
    (EVENT_GROUP, "v1", "Event", "events", "ev", true, false),
    ("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", "netpol", true, false),
    ("networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs", "", false, true),
    ("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", "", false, false),
    ("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", "", false, false),
    (DEFINITION_GROUP, "v1", "CustomResourceDefinition", "customresourcedefinitions", "crd", false, true),
];

/// Group of the objects that define resources.
pub(crate) const DEFINITION_GROUP: &str = "apiextensions.k8s.io";

impl Resource {
    /// All resources that every server has.
    pub(crate) fn built_in() -> Vec<Arc<Resource>> {
        let resource = |row: &Row| {
            let (group, version, kind, plural, short, namespaced, status) = *row;
            Arc::new(Resource {
                group: group.to_owned(),
                version: version.to_owned(),
                kind: kind.to_owned(),
                plural: plural.to_owned(),
                short_names: Some(short).filter(|name| !name.is_empty()).map(str::to_owned).into_iter().collect(),
                namespaced,
                status,
                custom: false,
            })
        };
        BUILT_IN.iter().map(resource).collect()
    }

    /// The resources that a `CustomResourceDefinition` adds: one for each version served.
    pub(crate) fn defined_by(definition: &Value) -> Option<Vec<Arc<Resource>>> {
        let spec = &definition["spec"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let names = &spec["names"];
        let (group, kind, plural) = (text(&spec["group"])?, text(&names["kind"])?, text(&names["plural"])?);
        let versions = spec["versions"].as_array()?.iter().filter(|version| version["served"] == true);
        let resource = |version: &Value| {
            Some(Arc::new(Resource {
                group: group.clone(),
                version: text(&version["name"])?,
                kind: kind.clone(),
                plural: plural.clone(),
                short_names: names["shortNames"].as_array().into_iter().flatten().filter_map(text).collect(),
                namespaced: spec["scope"] == "Namespaced",
                status: version["subresources"]["status"].is_object(),
                custom: true,
            }))
        };
        versions.map(resource).collect()
    }

    /// `v1`, `networking.k8s.io/v1`.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `pods`, `ippools.millrace.dev`: as messages name it.
    pub(crate) fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// What an object of it begins with; stored bodies lack it.
    pub(crate) fn head(&self) -> String {
        let mut head = String::new();
        let _ = write!(head, "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",", self.kind, self.api_version());
        head
    }

    /// Its entry in the list of an API group's resources.
    pub(crate) fn listed(&self) -> Value {
        json!({
            "name": self.plural, "singularName": self.kind.to_lowercase(), "namespaced": self.namespaced,
            "kind": self.kind, "shortNames": self.short_names,
            "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
        })
    }
}
