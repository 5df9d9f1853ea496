//! Which endpoints of a Service's port serve whom: readiness, termination, traffic policies, topology, client networks.
//!
//! The rules are kube-proxy's (`CategorizeEndpoints` in its pkg/proxy/topology.go): for each scope the ready ones, else
//! those that terminate and still serve, else none; hints narrow the cluster's scope only while ready ones are left.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use millrace_engine::limits::ENDPOINTS_PER_SERVICE;
use millrace_engine::packet::parse::protocol;
use millrace_engine::tables::services::{Endpoint, EndpointSet, EndpointState, Scope, ServiceId, ServicePort};

use super::Facts;
use super::places::Place;
use crate::cluster::{ClientSubnet, EndpointGroup, EndpointRecord, ServicePortRecord, ServiceRecord, SliceRecord};
use crate::stable_hash::hash_64;

/// A transport protocol's name in the API.
pub(super) fn protocol_name(number: u8) -> &'static str {
    match number {
        protocol::TCP => "TCP",
        protocol::UDP => "UDP",
        _ => "SCTP",
    }
}

/// The port as this node serves it in one family.
pub(super) fn service_port(
    service: &ServiceRecord,
    port: &ServicePortRecord,
    ipv4: bool,
    (slices, place): (&[&Arc<SliceRecord>], &Place),
    facts: &Facts,
    problems: &mut Vec<String>,
) -> ServicePort {
    let records = records(port, ipv4, slices, place);
    if records.len() > ENDPOINTS_PER_SERVICE {
        problems.push(format!("has {} endpoints, of which {ENDPOINTS_PER_SERVICE} are used", records.len()));
    }
    let (endpoints, records): (Vec<Endpoint>, Vec<&EndpointRecord>) = records
        .into_iter()
        .take(ENDPOINTS_PER_SERVICE)
        .map(|((_, port), record)| (endpoint(service, record, port, facts), record))
        .unzip();
    let chosen = Chosen::new(&endpoints, &records, facts);
    let scope = |members: &[u16], hinted| scope(service, &endpoints, &records, members, facts, hinted);
    let uses_local = service.internal_local || service.external_local;
    let protocol = protocol_name(port.protocol);
    let label = if port.name.is_empty() { port.port.to_string() } else { port.name.clone() };
    let name = format!("{}:{label}", service.name);
    ServicePort {
        id: ServiceId(hash_64(&format!("{name}/{protocol}/{}", if ipv4 { 4 } else { 6 }))),
        name: name.into(),
        protocol: port.protocol,
        cluster: scope(&chosen.cluster, chosen.hinted),
        local: if uses_local { scope(&chosen.local, false) } else { Scope::default() },
        any_usable: chosen.any,
        internal_local: service.internal_local,
        external_local: service.external_local,
        affinity: service.affinity,
        balance: service.balance,
        endpoints: endpoints.into(),
    }
}

/// Endpoints by address and port; of one that is listed twice the better state counts.
fn records<'a>(
    port: &ServicePortRecord,
    ipv4: bool,
    slices: &[&'a Arc<SliceRecord>],
    place: &Place,
) -> BTreeMap<(IpAddr, u16), &'a EndpointRecord> {
    let mut records: BTreeMap<(IpAddr, u16), &EndpointRecord> = BTreeMap::new();
    for slice in slices.iter().filter(|slice| slice.ipv4 == ipv4) {
        let ports = slice.ports.iter().filter(|known| known.name == port.name && known.protocol == port.protocol);
        for number in ports.map(|known| known.port) {
            let is_here =
                |record: &&EndpointRecord| record.pod.as_ref().is_none_or(|pod| !place.elsewhere.contains(pod));
            for record in slice.endpoints.iter().filter(is_here) {
                let known = records.entry((record.address, number)).or_insert(record);
                if rank(state(record)) < rank(state(known)) {
                    *known = record;
                }
            }
        }
    }
    records
}

fn state(record: &EndpointRecord) -> EndpointState {
    match (record.ready, record.serving, record.terminating) {
        (true, _, _) => EndpointState::Ready,
        (false, true, true) => EndpointState::ServingTerminating,
        (false, true, false) => EndpointState::Serving,
        (false, false, _) => EndpointState::NotServing,
    }
}

fn rank(state: EndpointState) -> u8 {
    match state {
        EndpointState::Ready => 0,
        EndpointState::ServingTerminating => 1,
        EndpointState::Serving => 2,
        EndpointState::NotServing => 3,
    }
}

fn endpoint(service: &ServiceRecord, record: &EndpointRecord, port: u16, facts: &Facts) -> Endpoint {
    let by_pod = record.pod.as_ref().and_then(|pod| service.weights.get(pod));
    let weight = by_pod.or_else(|| service.weights.get(&record.address.to_string())).copied().unwrap_or(1);
    Endpoint {
        name: record.pod.clone().unwrap_or_else(|| record.address.to_string()).into(),
        address: record.address,
        port,
        weight,
        local: facts.is_here(record.node.as_ref()),
        state: state(record),
    }
}

/// Numbers of the endpoints that serve.
struct Chosen {
    cluster: Vec<u16>,
    local: Vec<u16>,
    hinted: bool,
    any: bool,
}

impl Chosen {
    fn new(endpoints: &[Endpoint], records: &[&EndpointRecord], facts: &Facts) -> Self {
        let select = |keep: &dyn Fn(&Endpoint) -> bool| -> Vec<u16> {
            (0..).zip(endpoints).filter(|(_, endpoint)| keep(endpoint)).map(|(number, _)| number).collect()
        };
        let ready = select(&|endpoint| endpoint.state == EndpointState::Ready);
        let ending = select(&|endpoint| endpoint.state == EndpointState::ServingTerminating);
        let here = |numbers: &[u16]| -> Vec<u16> {
            numbers.iter().copied().filter(|number| endpoints[usize::from(*number)].local).collect()
        };
        let any = !ready.is_empty() || !ending.is_empty();
        let local = Some(here(&ready)).filter(|numbers| !numbers.is_empty()).unwrap_or_else(|| here(&ending));
        let near = near(&ready, records, facts);
        let hinted = near.is_some();
        let cluster = if ready.is_empty() { ending } else { near.unwrap_or(ready) };
        Self { cluster, local, hinted, any }
    }
}

/// The endpoints that hints send this node to: by node if every ready one says for which nodes it is and one names
/// this, else by zone in the same way (KEP-3015, KEP-4444).
fn near(ready: &[u16], records: &[&EndpointRecord], facts: &Facts) -> Option<Vec<u16>> {
    let by = |hints: fn(&EndpointRecord) -> &Vec<String>, own: Option<&str>| -> Option<Vec<u16>> {
        let own = own?;
        let of = |number: &u16| hints(records[usize::from(*number)]);
        if ready.is_empty() || ready.iter().any(|number| of(number).is_empty()) {
            return None;
        }
        let named = ready.iter().copied().filter(|number| of(number).iter().any(|hint| hint == own));
        Some(named.collect::<Vec<_>>()).filter(|named| !named.is_empty())
    };
    let node = facts.node.as_ref().map(crate::cluster::NodeName::as_str);
    by(|record| &record.node_hints, node).or_else(|| by(|record| &record.zone_hints, facts.zone.as_deref()))
}

fn scope(
    service: &ServiceRecord,
    endpoints: &[Endpoint],
    records: &[&EndpointRecord],
    members: &[u16],
    facts: &Facts,
    hinted: bool,
) -> Scope {
    let set = |members: &[u16]| EndpointSet::new(endpoints, members.iter().copied(), service.balance);
    let mut by_client: Vec<(IpNet, EndpointSet)> = Vec::new();
    let ipv4 = endpoints.first().is_none_or(|endpoint| endpoint.address.is_ipv4());
    for rule in service.client_subnets.iter().filter(|rule| rule.clients.addr().is_ipv4() == ipv4) {
        // Clients whose every group is empty get any endpoint.
        let first = first_group(rule, members, records, facts);
        by_client.push((rule.clients, set(first.as_deref().unwrap_or(members))));
    }
    by_client.sort_by_key(|(clients, _)| (std::cmp::Reverse(clients.prefix_len()), clients.network()));
    Scope { all: set(members), by_client: by_client.into(), hinted }
}

fn first_group(rule: &ClientSubnet, members: &[u16], records: &[&EndpointRecord], facts: &Facts) -> Option<Vec<u16>> {
    let is_in = |group: &EndpointGroup, number: &u16| {
        let record = records[usize::from(*number)];
        match group {
            EndpointGroup::Prefix(prefix) => prefix.contains(&record.address),
            EndpointGroup::Node(node) => record.node.as_ref().is_some_and(|own| own.as_str() == node),
            EndpointGroup::Zone(zone) => {
                let of_node = || record.node.as_ref().and_then(|node| facts.zones.get(node));
                record.zone.as_ref().or_else(of_node) == Some(zone)
            }
        }
    };
    let select = |group| members.iter().copied().filter(|number| is_in(group, number)).collect::<Vec<_>>();
    rule.groups.iter().map(select).find(|group| !group.is_empty())
}
