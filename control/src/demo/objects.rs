//! The cluster as objects: what a person would write into the directory of a standalone cluster.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Context;

use super::pods::Pod;

/// Name of the interface that the nodes are joined by.
pub(super) const UPLINK: &str = "uplink0";

/// A node to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct NodePlan {
    pub(super) name: &'static str,
    pub(super) ipv4: &'static str,
    pub(super) ipv6: &'static str,
}

/// A pod to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct PodPlan {
    pub(super) name: &'static str,
    pub(super) node: &'static str,
}

/// The nodes, on one link.
pub(super) const NODES: [NodePlan; 2] = [
    NodePlan { name: "a", ipv4: "192.0.2.1", ipv6: "2001:db8::1" },
    NodePlan { name: "b", ipv4: "192.0.2.2", ipv6: "2001:db8::2" },
];

/// The pods, two on each node. The first is where measurements start: to the second on its own node, to the third on
/// the other.
pub(super) const PODS: [PodPlan; 4] = [
    PodPlan { name: "client", node: "a" },
    PodPlan { name: "web-0", node: "a" },
    PodPlan { name: "web-1", node: "b" },
    PodPlan { name: "web-2", node: "b" },
];

/// A Service to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServicePlan {
    pub(super) name: &'static str,
    pub(super) ipv4: &'static str,
    pub(super) ipv6: &'static str,
    affinity: &'static str,
    /// Its port at every node.
    pub(super) node_port: u16,
}

/// The Service whose connections spread over all endpoints.
pub(super) const SPREAD: ServicePlan =
    ServicePlan { name: "web", ipv4: "10.96.0.10", ipv6: "fd00:96::10", affinity: "None", node_port: 30_080 };

/// The same endpoints for clients that stay with one of them.
pub(super) const AFFINE: ServicePlan = ServicePlan {
    name: "web-affine",
    ipv4: "10.96.0.11",
    ipv6: "fd00:96::11",
    affinity: "ClientIP",
    node_port: 30_081,
};

/// The Services' port, and that of their endpoints.
pub(super) const SERVICE_PORT: u16 = 80;
pub(super) const TARGET_PORT: u16 = 8080;

/// A pod that serves.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServedPod<'a> {
    pub(super) name: &'static str,
    node: &'static str,
    addresses: &'a [IpAddr],
}

impl<'a> ServedPod<'a> {
    pub(super) fn of(pod: &'a Pod) -> Self {
        Self { name: pod.name, node: pod.node, addresses: &pod.endpoint.addresses }
    }
}

const SHARED: &str = "\
# The cluster of `millrace demo`.
apiVersion: v1
kind: Namespace
metadata: {name: default}
---
apiVersion: millrace.dev/v1alpha1
kind: IpPool
metadata: {name: pods-ipv4}
spec: {cidr: 10.77.0.0/16}
---
apiVersion: millrace.dev/v1alpha1
kind: IpPool
metadata: {name: pods-ipv6}
spec: {cidr: 'fd00:77::/64'}
";

/// The `port` of the uplinks of all but one table: what is promised of AF_XDP is measured with it, though on a veth pair,
/// where it copies, an agent would choose otherwise.
pub(super) const AF_XDP: &str = "af_xdp";

/// Writes the objects into `directory`.
pub(super) fn write(directory: &Path) -> anyhow::Result<()> {
    fs::create_dir(directory).context("cannot make the directory of objects")?;
    let mut nodes = SHARED.to_owned();
    for NodePlan { name, ipv4, ipv6 } in NODES {
        write!(
            nodes,
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nstatus:\n  addresses:\n  \
             - {{type: InternalIP, address: {ipv4}}}\n  - {{type: InternalIP, address: '{ipv6}'}}\n"
        )?;
    }
    fs::write(directory.join("cluster.yaml"), nodes)?;
    write_uplinks(directory, AF_XDP)?;
    write_pods(directory, &[])
}

/// Writes the uplinks in place of what was written before; `port` is how their frames are moved.
pub(super) fn write_uplinks(directory: &Path, port: &str) -> anyhow::Result<()> {
    let mut text = "# Where tunnels leave each node.\n".to_owned();
    for NodePlan { name, .. } in NODES {
        write!(
            text,
            "---\napiVersion: millrace.dev/v1alpha1\nkind: Uplink\nmetadata: {{name: {name}-{UPLINK}}}\n\
             spec: {{node: {name}, interface: {UPLINK}, port: {port}}}\n"
        )?;
    }
    let (partial, whole) = (directory.join(".uplinks"), directory.join("uplinks.yaml"));
    fs::write(&partial, text)?;
    fs::rename(partial, whole).context("cannot write the uplinks")
}

/// Writes the pods: where each runs, and the addresses of those that are plugged in. A kubelet tells these in the pod's
/// status; it is by them that other nodes know whose address it is.
pub(super) fn write_pods(directory: &Path, plugged: &[ServedPod<'_>]) -> anyhow::Result<()> {
    let mut text = "# Where each pod runs; its addresses are assigned when it is plugged in.\n".to_owned();
    for PodPlan { name, node } in PODS {
        let addresses = plugged.iter().filter(|pod| pod.name == name).flat_map(|pod| pod.addresses);
        let listed: Vec<String> = addresses.map(|address| format!("{{ip: '{address}'}}")).collect();
        write!(
            text,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default, labels: {{app: demo, pod: {name}}}}}\n\
             spec: {{nodeName: {node}, containers: [{{name: demo}}]}}\nstatus: {{podIPs: [{}]}}\n",
            listed.join(", ")
        )?;
    }
    let (partial, whole) = (directory.join(".pods"), directory.join("pods.yaml"));
    fs::write(&partial, text)?;
    fs::rename(partial, whole).context("cannot write the pods")
}

/// Writes the Services and where they are served, in place of what was written before; no reader sees half of it.
pub(super) fn write_services(directory: &Path, served: &[ServedPod<'_>]) -> anyhow::Result<()> {
    let mut text = "# Two Services and the pods that serve them.\n".to_owned();
    for ServicePlan { name, ipv4, ipv6, affinity, node_port } in [SPREAD, AFFINE] {
        write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\n\
             spec:\n  type: NodePort\n  clusterIPs: [{ipv4}, '{ipv6}']\n  ipFamilyPolicy: RequireDualStack\n  sessionAffinity: {affinity}\n  \
             ports: [{{name: http, port: {SERVICE_PORT}, targetPort: {TARGET_PORT}, nodePort: {node_port}, protocol: TCP}}]\n"
        )?;
        for family in ["IPv4", "IPv6"] {
            write!(
                text,
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: {family}\nmetadata:\n  \
                 name: {name}-{}\n  namespace: default\n  labels: {{kubernetes.io/service-name: {name}}}\n\
                 ports: [{{name: http, port: {TARGET_PORT}, protocol: TCP}}]\nendpoints:\n",
                family.to_lowercase()
            )?;
            for pod in served {
                let mine = |address: &&IpAddr| address.is_ipv4() == (family == "IPv4");
                let address = pod.addresses.iter().find(mine).context("a pod without an address of each family")?;
                let ServedPod { name, node, .. } = pod;
                writeln!(
                    text,
                    "- {{addresses: ['{address}'], nodeName: {node}, conditions: {{ready: true}}, \
                     targetRef: {{kind: Pod, name: {name}, namespace: default}}}}"
                )?;
            }
        }
    }
    let (partial, whole) = (directory.join(".services"), directory.join("services.yaml"));
    fs::write(&partial, text)?;
    fs::rename(partial, whole).context("cannot write the Services")
}

/// The demo's policy, as `show policies` names it.
pub(super) const POLICY: &str = "default/demo";

/// What the policy lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rules {
    /// Nothing.
    None,
    /// What the first pod sends.
    Client,
}

/// Writes the policy of one pod in place of what was written before, or takes it away.
pub(super) fn write_policy(directory: &Path, pod: &str, rules: Option<Rules>) -> anyhow::Result<()> {
    let whole = directory.join("policy.yaml");
    let ingress = match rules {
        None => return fs::remove_file(whole).context("cannot take the policy away"),
        Some(Rules::None) => "[]".to_owned(),
        Some(Rules::Client) => format!("[{{from: [{{podSelector: {{matchLabels: {{pod: {}}}}}}}]}}]", PODS[0].name),
    };
    let text = format!(
        "# Who may open connections to {pod}.\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{name: demo, namespace: default}}\n\
         spec: {{podSelector: {{matchLabels: {{pod: {pod}}}}}, policyTypes: [Ingress], ingress: {ingress}}}\n"
    );
    let partial = directory.join(".policy");
    fs::write(&partial, text)?;
    fs::rename(partial, whole).context("cannot write the policy")
}

#[cfg(test)]
mod tests {
    use super::{Rules, ServedPod};
    use crate::observe::{KINDS, Observed};
    use crate::store::{DirectoryStore, Event, ObjectStore};

    #[test]
    fn all_objects_are_valid() {
        let directory = std::env::temp_dir().join(format!("millrace-demo-objects-{}", std::process::id()));
        super::write(&directory).expect("written");
        let addresses = ["10.77.0.1".parse().expect("address"), "fd00:77::1".parse().expect("address")];
        let served = ServedPod { name: "web-0", node: "a", addresses: &addresses };
        super::write_services(&directory, &[served]).expect("written");
        super::write_pods(&directory, &[served]).expect("written");
        super::write_policy(&directory, "web-1", Some(Rules::Client)).expect("written");
        let store = DirectoryStore::open(&directory).expect("store");
        let mut observed = Observed::default();
        let watch = store.watch(&KINDS).expect("watch");
        for event in &watch.events {
            let last = event == Event::Synced;
            observed.take(event);
            if last {
                break;
            }
        }
        drop(watch);
        std::fs::remove_dir_all(&directory).expect("removed");
        assert_eq!(observed.problems(), []);
        let cluster = observed.cluster();
        let counts = (cluster.nodes.len(), cluster.pods.len(), cluster.uplinks.len(), cluster.pools.len());
        assert_eq!(counts, (2, 4, 2, 2));
        assert_eq!((cluster.services.len(), cluster.policies.len()), (2, 1));
    }
}
