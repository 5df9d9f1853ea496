//! The cluster as objects: what a person would write into the directory of a standalone cluster.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context;

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

/// Writes the objects into `directory`.
pub(super) fn write(directory: &Path) -> anyhow::Result<()> {
    fs::create_dir(directory).context("cannot make the directory of objects")?;
    let mut nodes = SHARED.to_owned();
    for NodePlan { name, ipv4, ipv6 } in NODES {
        write!(
            nodes,
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nstatus:\n  addresses:\n  \
             - {{type: InternalIP, address: {ipv4}}}\n  - {{type: InternalIP, address: '{ipv6}'}}\n\
             ---\napiVersion: millrace.dev/v1alpha1\nkind: Uplink\nmetadata: {{name: {name}-{UPLINK}}}\n\
             spec: {{node: {name}, interface: {UPLINK}}}\n"
        )?;
    }
    let mut pods = "# Where each pod runs; its addresses are assigned when it is plugged in.\n".to_owned();
    for PodPlan { name, node } in PODS {
        write!(
            pods,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default, labels: {{app: demo}}}}\n\
             spec: {{nodeName: {node}, containers: [{{name: demo}}]}}\n"
        )?;
    }
    fs::write(directory.join("cluster.yaml"), nodes)?;
    fs::write(directory.join("pods.yaml"), pods)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::observe::{KINDS, Observed};
    use crate::store::{DirectoryStore, Event, ObjectStore};

    #[test]
    fn all_objects_are_valid() {
        let directory = std::env::temp_dir().join(format!("millrace-demo-objects-{}", std::process::id()));
        super::write(&directory).expect("written");
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
    }
}
