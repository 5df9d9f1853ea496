//! `show connections`: walks the connection table in bounded steps, each under one shard's lock, and keeps what was
//! asked for.

use std::collections::HashMap;
use std::sync::Arc;

use millrace_engine::clock::{Clock, Time};
use millrace_engine::state::{Connection, Connections, Tuple};
use millrace_engine::tables::{PortRole, SegmentIndex, Snapshot};

use crate::api::model::{ConnectionReport, ConnectionsQuery, ConnectionsReport, TupleReport};

/// What is asked for, in the terms of the tables.
struct Wanted {
    /// Segment and addresses of the pod, in network order; of no pod, if the name is nobody's.
    pod: Option<Vec<(SegmentIndex, Vec<std::net::IpAddr>)>>,
    state: Option<String>,
    service: Option<String>,
}

/// Names of the ports of Services, by the numbers that connections keep.
struct ServiceNames(HashMap<u32, Arc<str>>);

/// The first connections that match, and how many there are.
pub(super) fn connections(
    tables: &Snapshot,
    connections: &Connections,
    query: &ConnectionsQuery,
    limit: usize,
) -> ConnectionsReport {
    let (wanted, services) = (Wanted::new(tables, query), ServiceNames::new(tables));
    let now = Clock::Monotonic.now();
    let mut report = ConnectionsReport { capacity: connections.capacity() as u64, ..Default::default() };
    let mut from = Some(0);
    while let Some(place) = from {
        from = connections.for_each(place, |connection| {
            report.total += 1;
            let service = services.of(connection);
            if wanted.is(connection, service) {
                report.matching += 1;
                if report.connections.len() < limit {
                    report.connections.push(one(tables, connection, service, now));
                }
            }
        });
    }
    report
}

impl Wanted {
    fn new(tables: &Snapshot, query: &ConnectionsQuery) -> Self {
        let pod = query.pod.as_ref().map(|name| {
            let named = tables.ports.iter().filter(|port| *port.name == **name);
            let places = named.filter_map(|port| match &port.role {
                PortRole::Pod(pod) => Some((pod.segment, pod.addresses.clone())),
                _ => None,
            });
            places.collect()
        });
        Self {
            pod,
            state: query.state.as_ref().map(|state| state.to_ascii_uppercase()),
            service: query.service.clone(),
        }
    }

    fn is(&self, connection: &Connection, service: Option<&str>) -> bool {
        let of_pod = |tuple: &Tuple, (segment, addresses): &(SegmentIndex, Vec<std::net::IpAddr>)| {
            tuple.segment == *segment && addresses.contains(&tuple.source_address())
        };
        let state = self.state.as_ref().is_none_or(|state| state == connection.state.name());
        // Each end is the source of one direction, by its real address.
        let tuples = [connection.original, connection.reply];
        let pod = self
            .pod
            .as_ref()
            .is_none_or(|places| places.iter().any(|place| tuples.iter().any(|tuple| of_pod(tuple, place))));
        let service = self.service.as_ref().is_none_or(|wanted| {
            // A port's name is the Service's, then a colon and the port's own.
            let rest = service.and_then(|name| name.strip_prefix(wanted.as_str()));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
        });
        state && pod && service
    }
}

impl ServiceNames {
    fn new(tables: &Snapshot) -> Self {
        let mut names = HashMap::new();
        for (_, services) in tables.services.iter() {
            services.for_each(|_, _, frontend| {
                names.insert(frontend.service.id.tag(), Arc::clone(&frontend.service.name));
            });
        }
        Self(names)
    }

    fn of(&self, connection: &Connection) -> Option<&str> {
        self.0.get(&connection.service).map(|name| &**name)
    }
}

fn one(tables: &Snapshot, connection: &Connection, service: Option<&str>, now: Time) -> ConnectionReport {
    const AHEAD_MS: u32 = 60_000;
    // A worker may have seen a packet since the clock was read. Ages count modulo 49 days.
    let passed = |since_ms: u32| {
        let passed = now.milliseconds32().wrapping_sub(since_ms);
        if passed > u32::MAX - AHEAD_MS { 0 } else { u64::from(passed) }
    };
    let segment = tables.segments.get(connection.original.segment);
    ConnectionReport {
        segment: segment.map_or_else(String::new, |segment| segment.name.to_string()),
        protocol: super::protocol_name(connection.original.protocol),
        state: connection.state.name().to_owned(),
        service: service.map(str::to_owned),
        replied: connection.replied,
        original: tuple(&connection.original),
        reply: tuple(&connection.reply),
        age_milliseconds: passed(connection.opened_ms),
        idle_milliseconds: passed(connection.seen_ms),
    }
}

fn tuple(tuple: &Tuple) -> TupleReport {
    TupleReport {
        source: tuple.source_address().to_string(),
        source_port: tuple.ports[0],
        destination: tuple.destination_address().to_string(),
        destination_port: tuple.ports[1],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_engine::flow_cache::HashKey;
    use millrace_engine::packet::{Mac, PortIndex};
    use millrace_engine::state::{ConnectionFlags, ConnectionState, NewConnection, Opened};
    use millrace_engine::tables::services::{Balance, Frontend, FrontendKind, Scope, ServiceId, ServicePort};
    use millrace_engine::tables::{PodPort, Port};

    fn web() -> ServicePort {
        ServicePort {
            // The number that connections keep of it is 1.
            id: ServiceId(1 << 32),
            name: "default/web:http".into(),
            protocol: 6,
            endpoints: Arc::default(),
            cluster: Scope::default(),
            local: Scope::default(),
            any_usable: true,
            internal_local: false,
            external_local: false,
            affinity: None,
            balance: Balance::Random,
        }
    }

    /// Connection number `number` from 10.1.0.1 to 10.1.0.2, or between other hosts.
    fn open(connections: &Connections, number: u16, of_pod: bool, state: ConnectionState) {
        let mut original = Tuple {
            source: [0; 16],
            destination: [0; 16],
            ports: [number, 80],
            segment: SegmentIndex(0),
            protocol: 6,
            ipv6: false,
        };
        original.source[..4].copy_from_slice(&[10, 1, 0, if of_pod { 1 } else { 3 }]);
        original.destination[..4].copy_from_slice(&[10, 1, 0, 2]);
        let new = NewConnection {
            original,
            reply: original.mirrored(),
            state,
            flags: ConnectionFlags::NONE,
            service: u32::from(of_pod),
            endpoint: 0,
            replaces: None,
        };
        assert!(matches!(connections.open(&new, Time::ZERO, |_| {}), Opened::New(..)));
    }

    #[test]
    fn filters_and_limit_choose_what_is_told() {
        let table = Connections::new(4096, 1, HashKey::from_seed(1)).expect("memory");
        (0..300).for_each(|number| open(&table, number, true, ConnectionState::Established));
        (300..400).for_each(|number| open(&table, number, false, ConnectionState::SynSent));
        let mut tables = Snapshot::default();
        let addresses = vec!["10.1.0.1".parse().expect("address")];
        let role = PortRole::Pod(PodPort { segment: SegmentIndex(0), mac: Mac::ZERO, addresses });
        tables.ports.insert(Port { index: PortIndex(1), name: "default/web".into(), mtu: 1450, role });
        tables.services.edit(SegmentIndex(0), |services| {
            let frontend = Frontend { kind: FrontendKind::ClusterIp, service: Arc::new(web()), sources: None };
            services.insert("10.96.0.1".parse().expect("address"), 6, 80, frontend);
        });
        let ask = |pod: Option<&str>, state: Option<&str>, limit| {
            let query =
                ConnectionsQuery { pod: pod.map(Into::into), state: state.map(Into::into), ..Default::default() };
            let report = connections(&tables, &table, &query, limit);
            assert_eq!((report.total, report.capacity), (400, 4096));
            (report.matching, report.connections.len())
        };
        assert_eq!(ask(None, None, 1000), (400, 400));
        assert_eq!(ask(Some("default/web"), None, 10), (300, 10));
        assert_eq!(ask(None, Some("syn_sent"), 1000), (100, 100));
        assert_eq!(ask(Some("default/web"), Some("SYN_SENT"), 1000), (0, 0));
        assert_eq!(ask(Some("default/nobody"), None, 1000), (0, 0));
        let to_service = |name: &str| {
            let query = ConnectionsQuery { service: Some(name.into()), ..Default::default() };
            let report = connections(&tables, &table, &query, 1);
            (report.matching, report.connections.first().and_then(|first| first.service.clone()))
        };
        let found = (300, Some("default/web:http".to_owned()));
        assert_eq!((to_service("default/web"), to_service("default/web:http")), (found.clone(), found));
        assert_eq!((to_service("default/we"), to_service("default/web:https")), ((0, None), (0, None)));
    }
}
