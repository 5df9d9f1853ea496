//! Which connections would get another verdict.

use millrace_engine::slow_path::judge_connection;
use millrace_engine::state::{Connection, Connections};
use millrace_engine::tables::Snapshot;

use super::{Names, protocol_name, verdict};
use crate::api::model::{FlowChangeReport, FlowEndReport, FlowVerdictReport, PolicyDiffReport};

/// The differences found so far, the first of them in full.
#[derive(Debug)]
pub(crate) struct Differences<'a> {
    names: &'a Names,
    limit: usize,
    report: PolicyDiffReport,
}

impl<'a> Differences<'a> {
    /// None yet; at most `limit` will be listed.
    pub(crate) fn new(names: &'a Names, limit: usize) -> Self {
        Self { names, limit, report: PolicyDiffReport::default() }
    }

    /// Counts a flow that was judged.
    pub(crate) fn judged(&mut self) {
        self.report.judged += 1;
    }

    /// Takes a flow whose verdict would be another.
    pub(crate) fn changing(
        &mut self,
        connection: &FlowTuples,
        state: &str,
        before: FlowVerdictReport,
        after: FlowVerdictReport,
    ) {
        self.report.changing += 1;
        if self.report.flows.len() >= self.limit {
            return;
        }
        let (client, server) = (&connection.original, &connection.reply);
        let end = |tuple: &millrace_engine::state::Tuple| FlowEndReport {
            name: self.names.get(tuple.source_address()),
            address: tuple.source_address().to_string(),
            port: tuple.ports[0],
        };
        self.report.flows.push(FlowChangeReport {
            protocol: protocol_name(client.protocol),
            state: state.to_owned(),
            source: end(client),
            destination: end(server),
            before,
            after,
        });
    }

    pub(crate) fn into_report(self) -> PolicyDiffReport {
        self.report
    }
}

/// The two directions of a flow: each end is the source of one, by its real address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlowTuples {
    pub(crate) original: millrace_engine::state::Tuple,
    pub(crate) reply: millrace_engine::state::Tuple,
}

impl From<&Connection> for FlowTuples {
    fn from(connection: &Connection) -> Self {
        Self { original: connection.original, reply: connection.reply }
    }
}

/// Judges every connection by the tables in force and by those that would be. Walks the connection table in bounded
/// steps, each under one shard's lock.
#[must_use]
pub fn connections(
    (before, after): (&Snapshot, &Snapshot),
    connections: &Connections,
    names: &Names,
    limit: usize,
) -> PolicyDiffReport {
    let mut differences = Differences::new(names, limit);
    let mut from = Some(0);
    let mut seen: Vec<Connection> = Vec::new();
    while let Some(place) = from {
        from = connections.for_each(place, |connection| seen.push(*connection));
        for connection in seen.drain(..) {
            differences.judged();
            let by = |tables| verdict(judge_connection(tables, &connection).iter());
            let (was, would_be) = (by(before), by(after));
            if was.allowed != would_be.allowed {
                let state = connection.state.name();
                differences.changing(&FlowTuples::from(&connection), state, was, would_be);
            }
        }
    }
    differences.into_report()
}
