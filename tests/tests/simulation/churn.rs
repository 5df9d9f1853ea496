//! What people, kubelets and controllers do: pods come, are told of and go, labels, policies and Services change.
//!
//! A pod's life is that of Kubernetes: its object, the call of the plugin with addresses from the production allocators,
//! its status, endpoints; then the end of its object, before or after the call that takes it away. Steps that need an
//! agent or the store are tried again until they are done.

use millrace_control::observe::{CLUSTER_NETWORK_POLICY, NETWORK_POLICY, SERVICE};
use millrace_control::store::ObjectKey;
use millrace_tests::objects;
use millrace_tests::policies::Plugged;
use serde_json::{Value, json};

use crate::actions::Action;
use crate::faults;
use crate::tenancy::{NETWORKS, network_of_namespace};
use crate::view::pod_key;
use crate::world::World;

/// Labels of pods, one of which each has.
const ROLES: [&str; 3] = ["a", "b", "c"];
const TEAMS: [&str; 2] = ["x", "y"];
/// Ports that pods listen at.
pub(crate) const PORTS: [u16; 2] = [8080, 9090];
/// Names of Services, and the role that each selects.
pub(crate) const SERVICES: [(&str, &str); 3] = [("one", "a"), ("two", "b"), ("three", "c")];
/// Policies of either kind at one time, at most.
const POLICIES: usize = 6;
/// Time between two tries of a kubelet, in ticks.
pub(crate) const RETRY: usize = 10;
/// Time until a kubelet writes a status, at most.
pub(crate) const STATUS: usize = 20;

/// A pod as the cluster means it.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) namespace: &'static str,
    pub(crate) name: String,
    pub(crate) node: usize,
    pub(crate) network: usize,
    role: &'static str,
    /// Whether its status tells its addresses.
    pub(crate) told: bool,
    /// Whether it is to end.
    pub(crate) leaving: bool,
    has_object: bool,
}

/// Address of a Service.
pub(crate) fn service_address(number: usize) -> std::net::IpAddr {
    std::net::IpAddr::from([10, 96, 0, number as u8 + 1])
}

pub(crate) fn namespace(name: &str, team: &str) -> Value {
    let network = NETWORKS[network_of_namespace(name)].object;
    let annotations = network.map_or(json!({}), |network| json!({"millrace.dev/network": network}));
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"team": team}, "annotations": annotations},
    })
}

/// One change, perhaps.
pub(crate) fn change(world: &mut World) {
    match world.random.below(24) {
        0..=3 if world.pods.len() < world.size.pods => create_pod(world),
        4 | 5 => remove_pod(world),
        6 => relabel_pod(world),
        7 | 8 => change_policy(world),
        9 => change_service(world),
        10 if world.random.below(4) == 0 => {
            let name = *world.random.pick(NETWORKS[0].namespaces);
            let team = *world.random.pick(&TEAMS);
            world.note("namespace relabelled", &format!("{name} {team}"));
            world.store.put(&namespace(name, team));
        }
        _ => {}
    }
}

pub(crate) fn create_pod(world: &mut World) {
    let network = [0, 0, 0, 0, 1, 2][world.random.below(6)];
    let namespace = *world.random.pick(NETWORKS[network].namespaces);
    let number = world.born;
    world.born += 1;
    // Some names come again, as those of a StatefulSet do.
    let taken = |name: &String| world.pods.values().any(|pod| pod.has_object && pod.name == *name);
    let again = Some(format!("set-{}", world.random.below(4))).filter(|name| !taken(name));
    let name = again.filter(|_| world.random.below(3) == 0).unwrap_or_else(|| format!("p{number}"));
    let (node, role) = (world.random.below(world.agents.len()), *world.random.pick(&ROLES));
    let pod = Pod { namespace, name, node, network, role, told: false, leaving: false, has_object: true };
    world.note("pod created", &format!("{number} {namespace}/{} on n{node} role {role}", pod.name));
    world.store.put(&object(number, &pod, &[]));
    world.pods.insert(number, pod);
    world.later(5, Action::Add(number));
}

fn object(number: u32, pod: &Pod, addresses: &[std::net::IpAddr]) -> Value {
    let listed: Vec<Value> = addresses.iter().map(|address| json!({"ip": address.to_string()})).collect();
    let phase = if addresses.is_empty() { "Pending" } else { "Running" };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": pod.name, "namespace": pod.namespace, "uid": format!("u{number}"), "labels": {"role": pod.role},
            "creationTimestamp": format!("2026-01-01T{:02}:{:02}:{:02}Z", number / 3600, number / 60 % 60, number % 60),
        },
        "spec": {"nodeName": format!("n{}", pod.node), "containers": [{"name": "c"}]},
        "status": {"phase": phase, "podIPs": listed},
    })
}

/// The runtime asks for an interface and addresses.
pub(crate) fn add(world: &mut World, number: u32) {
    let Some(pod) = world.pods.get(&number).filter(|pod| !pod.leaving).cloned() else { return };
    let addresses = match world.agents[pod.node].allocate(number, pod.network) {
        Ok(addresses) => addresses,
        Err(error) => {
            world.figures.count("ADD refused");
            world.log.note(world.now, &format!("ADD of {number} refused: {error}"));
            return world.later(RETRY, Action::Add(number));
        }
    };
    if !world.calm && world.random.below(40) == 0 {
        // The agent ends with addresses agreed upon and nothing recorded.
        faults::crash(world, pod.node);
        return world.later(RETRY, Action::Add(number));
    }
    world.note("pod plugged in", &format!("{number} {addresses:?} at n{}", pod.node));
    let plugged = Plugged {
        namespace: pod.namespace.to_owned(),
        name: pod.name.clone(),
        uid: (number % 3 > 0).then(|| format!("u{number}")),
        addresses,
    };
    world.agents[pod.node].plug_in(number, pod.network, plugged);
    world.changed.insert(pod.node);
    world.later(STATUS, Action::Status(number));
}

/// The kubelet tells the addresses, if it reaches the store.
pub(crate) fn write_status(world: &mut World, number: u32) {
    let Some(pod) = world.pods.get(&number).filter(|pod| pod.has_object).cloned() else { return };
    if world.store.is_away(pod.node) {
        return world.later(RETRY, Action::Status(number));
    }
    let Some(attachment) = world.agents[pod.node].attachments.get(&number) else { return };
    world.store.put(&object(number, &pod, &attachment.addresses.clone()));
    world.pods.get_mut(&number).expect("it was there").told = true;
    world.later(RETRY, Action::Endpoints);
}

fn remove_pod(world: &mut World) {
    let staying: Vec<u32> = world.pods.iter().filter(|(_, pod)| !pod.leaving).map(|(number, _)| *number).collect();
    if staying.len() <= world.size.pods / 4 {
        return;
    }
    let number = *world.random.pick(&staying);
    let by_force = world.random.below(4) == 0;
    world.note(if by_force { "pod deleted by force" } else { "pod deleted" }, &number.to_string());
    world.pods.get_mut(&number).expect("it was there").leaving = true;
    if by_force {
        remove_object(world, number);
    }
    world.later(10, Action::Delete(number));
}

fn remove_object(world: &mut World, number: u32) {
    let Some(pod) = world.pods.get_mut(&number).filter(|pod| pod.has_object) else { return };
    pod.has_object = false;
    let key = pod_key(pod.namespace, &pod.name);
    world.store.remove(&key);
    world.later(RETRY, Action::Endpoints);
}

/// The runtime takes the interface away; then the object goes.
pub(crate) fn delete(world: &mut World, number: u32) {
    let Some(node) = world.pods.get(&number).map(|pod| pod.node) else { return };
    if !world.agents[node].pull_out(number) {
        return world.later(RETRY, Action::Delete(number));
    }
    world.changed.insert(node);
    world.traffic.ended(number);
    remove_object(world, number);
    world.pods.remove(&number);
}

fn relabel_pod(world: &mut World) {
    let known: Vec<u32> = world.pods.iter().filter(|(_, pod)| pod.has_object).map(|(number, _)| *number).collect();
    if known.is_empty() {
        return;
    }
    let (number, role) = (*world.random.pick(&known), *world.random.pick(&ROLES));
    world.note("pod relabelled", &format!("{number} {role}"));
    let pod = world.pods.get_mut(&number).expect("it was there");
    pod.role = role;
    let pod = pod.clone();
    let attachment = world.agents[pod.node].attachments.get(&number).filter(|_| pod.told);
    let addresses = attachment.map(|attachment| attachment.addresses.clone()).unwrap_or_default();
    world.store.put(&object(number, &pod, &addresses));
    world.later(RETRY, Action::Endpoints);
}

fn roles(world: &mut World) -> Value {
    if world.random.below(3) == 0 { json!({}) } else { json!({"matchLabels": {"role": world.random.pick(&ROLES)}}) }
}

fn peer(world: &mut World) -> Value {
    let team = *world.random.pick(&TEAMS);
    match world.random.below(4) {
        0 => json!({"namespaceSelector": {"matchLabels": {"team": team}}, "podSelector": roles(world)}),
        1 => json!({"namespaceSelector": {"matchLabels": {"team": team}}}),
        2 => json!({"ipBlock": {"cidr": world.random.pick(&["10.0.0.0/26", "10.0.0.0/24", "fd00::/16"])}}),
        _ => json!({"podSelector": roles(world)}),
    }
}

fn rules(world: &mut World, peers: &str) -> Value {
    let rule = |world: &mut World| {
        let mut rule = json!({});
        if world.random.below(4) > 0 {
            rule[peers] = (0..=world.random.below(2)).map(|_| peer(world)).collect::<Vec<_>>().into();
        }
        if world.random.below(3) == 0 {
            rule["ports"] =
                json!([{"port": world.random.pick(&PORTS), "protocol": world.random.pick(&["TCP", "UDP"])}]);
        }
        rule
    };
    (0..world.random.below(3)).map(|_| rule(world)).collect::<Vec<_>>().into()
}

/// A policy comes, changes or goes.
fn change_policy(world: &mut World) {
    let number = world.random.below(POLICIES);
    let name = format!("policy-{number}");
    let of_cluster = number == 5;
    let namespace = ["default", "shop", "default", "blue", "office", "default"][number];
    let key = if of_cluster {
        ObjectKey::cluster_scoped(CLUSTER_NETWORK_POLICY, &name)
    } else {
        ObjectKey { kind: NETWORK_POLICY, namespace: Some(namespace.to_owned()), name: name.clone() }
    };
    if world.random.below(3) == 0 {
        world.note("policy deleted", &name);
        return world.store.remove(&key);
    }
    let object = if of_cluster { cluster_policy(world, &name) } else { network_policy(world, namespace, &name) };
    world.note("policy written", &format!("{name} {}", object["spec"]));
    world.store.put(&object);
}

fn network_policy(world: &mut World, namespace: &str, name: &str) -> Value {
    let types = world.random.pick(&[vec!["Ingress"], vec!["Egress"], vec!["Ingress", "Egress"]]).clone();
    let selector = roles(world);
    let (ingress, egress) = (rules(world, "from"), rules(world, "to"));
    let mut spec = json!({"podSelector": selector, "policyTypes": types});
    if types.contains(&"Ingress") {
        spec["ingress"] = ingress;
    }
    if types.contains(&"Egress") {
        spec["egress"] = egress;
    }
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    })
}

fn cluster_policy(world: &mut World, name: &str) -> Value {
    let action = *world.random.pick(&["Accept", "Deny", "Pass"]);
    let pods = json!({"namespaceSelector": {}, "podSelector": roles(world)});
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {"name": name},
        "spec": {
            "tier": world.random.pick(&["Admin", "Baseline"]), "priority": 3, "subject": {"namespaces": {}},
            "ingress": [{"action": action, "from": [{"pods": pods}]}],
        },
    })
}

fn change_service(world: &mut World) {
    let number = world.random.below(SERVICES.len());
    let (name, _) = SERVICES[number];
    if world.random.below(4) == 0 {
        world.note("service deleted", name);
        let key = |kind| ObjectKey { kind, namespace: Some("default".to_owned()), name: name.to_owned() };
        return world.store.remove(&key(SERVICE));
    }
    let ports = json!(["TCP", "UDP"].map(|protocol| {
        json!({"name": protocol.to_lowercase(), "port": 80, "targetPort": 8080, "protocol": protocol})
    }));
    let affinity = if number == 0 { "ClientIP" } else { "None" };
    let more = json!({"ports": ports, "sessionAffinity": affinity});
    let mut service = objects::service(name, &[&service_address(number).to_string()], more);
    service["metadata"]["namespace"] = "default".into();
    world.note("service written", name);
    world.store.put(&service);
    world.later(RETRY, Action::Endpoints);
}

/// The controller of endpoints: pods with the role that are told of.
pub(crate) fn write_endpoints(world: &mut World) {
    for (name, role) in SERVICES {
        let mut endpoints = Vec::new();
        for (number, pod) in &world.pods {
            let serves = pod.namespace == "default" && pod.role == role && pod.told && !pod.leaving;
            let Some(attachment) = world.agents[pod.node].attachments.get(number).filter(|_| serves) else { continue };
            let address = attachment.addresses.iter().find(|address| address.is_ipv4());
            endpoints.extend(address.map(|address| (address.to_string(), format!("n{}", pod.node))));
        }
        let listed: Vec<_> = endpoints.iter().map(|(at, node)| (at.as_str(), node.as_str(), Value::Null)).collect();
        let mut slice = objects::slice(name, true, &listed);
        slice["metadata"]["namespace"] = "default".into();
        slice["ports"] =
            json!(["TCP", "UDP"].map(|name| json!({"name": name.to_lowercase(), "port": 8080, "protocol": name})));
        world.store.put(&slice);
    }
}
