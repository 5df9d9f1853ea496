//! `Pod` and `Namespace` objects.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ContainerPort as ApiPort, Namespace, Pod, PodStatus};
use millrace_cni::capabilities::RATES;
use millrace_engine::tables::Bandwidth;

use super::service::{port_number, protocol_number};
use super::{policy, quantity};
use crate::cluster::{
    AddressWishes, ContainerPort, FurtherInterface, HostPort, InterfaceName, NAMESPACE_NAME_LABEL, NamespaceName,
    NamespaceRecord, NetworkName, NodeName, PodName, PodRecord, PoolName, rate_limit,
};
use crate::store::{FieldError, Object};

/// Annotation of a pod: the very addresses it wants, at most one of each family, separated by commas.
const FIXED: &str = "millrace.dev/ip";
/// Annotation of a pod or a namespace: the pools its addresses come from, separated by commas.
const POOLS: &str = "millrace.dev/ip-pools";
/// Annotation of a pod or a namespace: what interfaces are made of, "tap" or "veth".
const INTERFACE: &str = "millrace.dev/interface";
/// Annotation of a pod or a namespace: the network that first interfaces are in.
const NETWORK: &str = "millrace.dev/network";
/// Annotation of a pod: its further interfaces, `NETWORK` or `NETWORK@INTERFACE`, separated by commas.
const NETWORKS: &str = "millrace.dev/networks";
/// Further interfaces of a pod, each a port of the switch.
const FURTHER_INTERFACES: usize = 8;
/// Annotations of a pod: most bits per second that it receives, and that it sends (`pkg/util/bandwidth` of Kubernetes).
const INGRESS_BANDWIDTH: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS_BANDWIDTH: &str = "kubernetes.io/egress-bandwidth";
/// Annotation of a mirror pod: the uid of the static pod, which is the one the runtime knows (`pkg/kubelet/types`).
const MIRROR: &str = "kubernetes.io/config.mirror";

pub(super) fn pod(object: &Object) -> Result<PodRecord, FieldError> {
    let pod: Pod = object.content.read()?;
    let content = &object.content;
    let name = PodName::new(object.key.namespace.as_deref().unwrap_or("default"), &object.key.name)
        .map_err(|error| FieldError::at(content, &["metadata", "name"], error.to_string()))?;
    let spec = pod.spec.as_ref();
    let node = spec.and_then(|spec| spec.node_name.as_deref()).filter(|node| !node.is_empty());
    let node = node.map(NodeName::new).transpose();
    let node = node.map_err(|error| FieldError::at(content, &["spec", "nodeName"], error.to_string()))?;
    let mut addresses: Vec<IpAddr> = Vec::new();
    let status = pod.status.as_ref();
    let listed = status.iter().flat_map(|status| status.pod_ips.iter().flatten()).map(|entry| ("podIPs", &entry.ip));
    let single = status.and_then(|status| status.pod_ip.as_ref()).map(|address| ("podIP", address));
    for (field, text) in listed.chain(single).filter(|(_, text)| !text.is_empty()) {
        let refused = |_| FieldError::at(content, &["status", field], format!("{text:?} is not an IP address"));
        let address = text.parse().map_err(refused)?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    let owners = pod.metadata.owner_references.iter().flatten();
    let mut sets = owners.filter(|owner| owner.kind == "StatefulSet" && owner.controller.unwrap_or(true));
    let address_wishes = AddressWishes {
        fixed: fixed(object)?,
        pools: pools(object)?,
        network: network(object)?,
        further: further(object)?,
        veth: veth(object)?,
        stateful_set: sets.next().map(|owner| Arc::from(owner.name.as_str())),
    };
    let host_network = spec.and_then(|spec| spec.host_network).unwrap_or(false);
    let containers = spec.into_iter().flat_map(|spec| {
        let lasting = spec.init_containers.iter().flatten();
        let lasting = lasting.filter(|container| container.restart_policy.as_deref() == Some("Always"));
        spec.containers.iter().chain(lasting)
    });
    let ports = containers.flat_map(|container| container.ports.iter().flatten()).map(container_port);
    let wrong = |message| FieldError::at(content, &["spec", "containers"], message);
    let ports = ports.collect::<Result<Vec<_>, String>>().map_err(wrong)?;
    let phase = status.and_then(|status| status.phase.as_deref());
    let mirrored = object.content.at(&["metadata", "annotations", MIRROR]).and_then(|value| value.text());
    let uid = mirrored.or(pod.metadata.uid.as_deref()).filter(|uid| !uid.is_empty());
    Ok(PodRecord {
        name,
        uid: uid.map(Arc::from),
        created: pod.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        node,
        labels: Arc::new(pod.metadata.labels.unwrap_or_default()),
        addresses,
        host_network,
        address_wishes,
        bandwidth: bandwidth(object)?,
        ports,
        ready: status.is_none_or(is_ready),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        finished: matches!(phase, Some("Succeeded" | "Failed")),
    })
}

/// As the pod's condition says. Where nobody writes conditions (a directory without a kubelet) a pod is ready.
fn is_ready(status: &PodStatus) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    conditions.find(|condition| condition.type_ == "Ready").is_none_or(|condition| condition.status == "True")
}

fn container_port(port: &ApiPort) -> Result<ContainerPort, String> {
    let number = |number: i32| port_number(number).ok_or_else(|| format!("{number} is not a port"));
    let host_port = port.host_port.filter(|port| *port != 0).map(number).transpose()?;
    let address = port.host_ip.as_deref().filter(|address| !address.is_empty());
    let address = address.map(|text| text.parse::<IpAddr>().map_err(|_| format!("{text:?} is not an IP address")));
    // The unspecified address means all the node has.
    let address = address.transpose()?.filter(|address| !address.is_unspecified());
    let protocol = protocol_number(port.protocol.as_deref());
    Ok(ContainerPort {
        name: port.name.clone().unwrap_or_default(),
        protocol: protocol.ok_or_else(|| format!("protocol {:?} is none of TCP, UDP, SCTP", port.protocol))?,
        port: number(port.container_port)?,
        host: host_port.map(|port| HostPort { port, address }),
    })
}

pub(super) fn namespace(object: &Object) -> Result<NamespaceRecord, FieldError> {
    let namespace: Namespace = object.content.read()?;
    let name = NamespaceName::new(&object.key.name)
        .map_err(|error| FieldError::at(&object.content, &["metadata", "name"], error.to_string()))?;
    // A wrong value counts as none: a namespace left out would take its labels, and with them policies, along.
    let (_, logs_denied) = policy::options(&object.content, &mut BTreeMap::new());
    let mut labels = namespace.metadata.labels.unwrap_or_default();
    labels.insert(NAMESPACE_NAME_LABEL.to_owned(), name.to_string());
    let veth = veth(object)?.unwrap_or_default();
    let (labels, network) = (Arc::new(labels), network(object)?);
    Ok(NamespaceRecord { name, labels, pools: pools(object)?, network, veth, logs_denied })
}

/// The parts of an annotation, without blanks; none if it is absent.
fn annotation<'a>(object: &'a Object, key: &str) -> impl Iterator<Item = &'a str> {
    let text = object.content.at(&["metadata", "annotations", key]).and_then(|value| value.text());
    text.unwrap_or_default().split(',').map(str::trim).filter(|part| !part.is_empty())
}

fn refused(object: &Object, key: &str, message: String) -> FieldError {
    FieldError::at(&object.content, &["metadata", "annotations", key], message)
}

fn fixed(object: &Object) -> Result<Vec<IpAddr>, FieldError> {
    let mut fixed: Vec<IpAddr> = Vec::new();
    for part in annotation(object, FIXED) {
        let address =
            part.parse::<IpAddr>().map_err(|_| refused(object, FIXED, format!("{part:?} is not an IP address")))?;
        if fixed.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            return Err(refused(object, FIXED, "has two addresses of one family; one of each is possible".to_owned()));
        }
        fixed.push(address);
    }
    Ok(fixed)
}

fn bandwidth(object: &Object) -> Result<Bandwidth, FieldError> {
    let limit = |key: &str| {
        let value = object.content.at(&["metadata", "annotations", key]);
        let Some(text) = value.and_then(|value| value.text()) else { return Ok(None) };
        let rate = quantity::whole(text).filter(|rate| RATES.contains(rate));
        let wrong = || refused(object, key, format!("{text:?} is no rate from 1k to 1P bits per second"));
        rate.map(|rate| Some(rate_limit(rate, None))).ok_or_else(wrong)
    };
    Ok(Bandwidth { from_port: limit(EGRESS_BANDWIDTH)?, to_port: limit(INGRESS_BANDWIDTH)? })
}

fn network(object: &Object) -> Result<Option<NetworkName>, FieldError> {
    let mut parts = annotation(object, NETWORK);
    let name = parts.next().map(NetworkName::new).transpose();
    let name = name.map_err(|error| refused(object, NETWORK, error.to_string()))?;
    match parts.next() {
        Some(_) => {
            let message = format!("the first interface is in one network; `{NETWORKS}` names those of further ones");
            Err(refused(object, NETWORK, message))
        }
        None => Ok(name),
    }
}

/// Further interfaces are named by their place in the list where nothing else is said.
fn further(object: &Object) -> Result<Vec<FurtherInterface>, FieldError> {
    let wrong = |message: String| refused(object, NETWORKS, message);
    let mut found: Vec<FurtherInterface> = Vec::new();
    for part in annotation(object, NETWORKS) {
        let by_place = format!("net{}", found.len() + 1);
        let (network, interface) = part.split_once('@').unwrap_or((part, &by_place));
        let network = NetworkName::new(network).map_err(|error| wrong(error.to_string()))?;
        let interface = InterfaceName::new(interface).map_err(|error| wrong(error.to_string()))?;
        if let Some(other) = found.iter().find(|other| other.interface == interface || other.network == network) {
            let message = format!("{part:?} and {}@{} share a name", other.network, other.interface);
            return Err(wrong(message));
        }
        found.push(FurtherInterface { interface, network });
    }
    if found.len() > FURTHER_INTERFACES {
        return Err(wrong(format!("a pod has at most {FURTHER_INTERFACES} further interfaces")));
    }
    Ok(found)
}

fn veth(object: &Object) -> Result<Option<bool>, FieldError> {
    let wanted = annotation(object, INTERFACE).map(|part| match part {
        "tap" => Ok(false),
        "veth" => Ok(true),
        other => Err(refused(object, INTERFACE, format!("{other:?} is neither \"tap\" nor \"veth\""))),
    });
    let mut wanted = wanted.collect::<Result<Vec<_>, _>>()?;
    match wanted.len() {
        0 | 1 => Ok(wanted.pop()),
        _ => Err(refused(object, INTERFACE, "a pod has one interface".to_owned())),
    }
}

fn pools(object: &Object) -> Result<Vec<PoolName>, FieldError> {
    let name = |part| PoolName::new(part).map_err(|error| refused(object, POOLS, error.to_string()));
    annotation(object, POOLS).map(name).collect()
}
