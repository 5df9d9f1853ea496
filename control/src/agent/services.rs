//! `show services`: the Services in force, with what their endpoints were given through this node.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use millrace_engine::packet::parse::protocol;
use millrace_engine::state::{ANY_ENDPOINT, State};
use millrace_engine::tables::Snapshot;
use millrace_engine::tables::services::{Frontend, ServiceId, ServicePort};

use crate::api::model::{EndpointReport, FrontendReport, ServiceReport};

/// A port of a Service, and the addresses that lead to it.
type Reached = (Arc<ServicePort>, Vec<FrontendReport>);

/// All ports of Services that packets are given endpoints by, in order of their names.
pub(super) fn report(tables: &Snapshot, state: &State) -> Vec<ServiceReport> {
    let mut found = BTreeMap::<(Arc<str>, ServiceId), Reached>::new();
    for (_, services) in tables.services.iter() {
        services.for_each(|address, port, frontend| {
            let key = (Arc::clone(&frontend.service.name), frontend.service.id);
            let entry = found.entry(key).or_insert_with(|| (Arc::clone(&frontend.service), Vec::new()));
            entry.1.push(frontend_report(address, port, frontend));
        });
    }
    let mut reports: Vec<ServiceReport> =
        found.into_values().map(|(port, frontends)| service_report(&port, frontends, state)).collect();
    reports.sort_by(|one, other| (&one.name, &one.frontends).cmp(&(&other.name, &other.frontends)));
    reports
}

fn frontend_report(address: Option<IpAddr>, port: u16, frontend: &Frontend) -> FrontendReport {
    FrontendReport {
        kind: frontend.kind.name().to_owned(),
        address: address.map(|address| address.to_string()),
        port,
        source_ranges: frontend.sources.iter().flat_map(|sources| sources.iter().map(ToString::to_string)).collect(),
    }
}

fn service_report(port: &ServicePort, frontends: Vec<FrontendReport>, state: &State) -> ServiceReport {
    let policy = |local: bool| if local { "Local" } else { "Cluster" }.to_owned();
    let endpoint = |(number, endpoint): (u16, &millrace_engine::tables::services::Endpoint)| {
        let load = state.endpoint_loads.get(port.id.tag(), endpoint.tag());
        EndpointReport {
            name: endpoint.name.to_string(),
            address: endpoint.address.to_string(),
            port: endpoint.port,
            state: endpoint.state.name().to_owned(),
            local: endpoint.local,
            weight: endpoint.weight,
            in_use: port.cluster.all.contains(number) || port.local.all.contains(number),
            picks: load.picks,
            live_connections: load.live,
        }
    };
    let all = state.endpoint_loads.get(port.id.tag(), ANY_ENDPOINT);
    ServiceReport {
        name: port.name.to_string(),
        protocol: match port.protocol {
            protocol::TCP => "tcp",
            protocol::UDP => "udp",
            _ => "sctp",
        }
        .to_owned(),
        balance: port.balance.name().to_owned(),
        affinity_seconds: port.affinity.map(|affinity| affinity.as_secs()),
        internal_policy: policy(port.internal_local),
        external_policy: policy(port.external_local),
        frontends,
        endpoints: (0..).zip(port.endpoints.iter()).map(endpoint).collect(),
        picks: all.picks,
        live_connections: all.live,
    }
}
