//! Which ports have limits of bandwidth: what the runtime passed when it plugged the pod in, and for what it did not pass
//! the pod's annotations as they are now.

use std::collections::BTreeMap;

use millrace_engine::packet::PortIndex;
use millrace_engine::tables::Bandwidth;

use super::{AttachedPod, LocalView};
use crate::cluster::Cluster;

/// Limits by port; pods without any are not in it.
pub(super) fn limits(cluster: &Cluster, local: &LocalView) -> BTreeMap<PortIndex, Bandwidth> {
    let of_pod = |(port, pod): (&PortIndex, &AttachedPod)| {
        // What a pod says it says of its first interface.
        let object = cluster.pods.get(&pod.pod).filter(|object| !pod.further && pod.is_of(object));
        let annotated = object.map(|object| object.bandwidth).unwrap_or_default();
        let bandwidth = Bandwidth {
            from_port: pod.bandwidth.from_port.or(annotated.from_port),
            to_port: pod.bandwidth.to_port.or(annotated.to_port),
        };
        (!bandwidth.is_unlimited()).then_some((*port, bandwidth))
    };
    local.pods.iter().filter_map(of_pod).collect()
}
