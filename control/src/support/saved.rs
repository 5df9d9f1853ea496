//! What a node knows beside its objects, as one document.

use millrace_engine::clock::Time;
use millrace_engine::state::{ConnectionFlags, ConnectionState, Connections, Former, NewConnection, State, Tuple};
use millrace_engine::tables::SegmentIndex;
use serde::{Deserialize, Serialize};

use super::SupportError;
use super::local::LocalRecord;
use crate::plan::LocalView;

/// See the module. Its fields are no stable interface: a bundle is read by the version that wrote it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedState {
    /// Version of the program that wrote it.
    pub version: String,
    /// Generation of the tables in force.
    pub generation: u64,
    /// Where the switch's clock stood.
    pub clock_nanoseconds: u64,
    /// Most connections there may be.
    pub connection_capacity: usize,
    local: LocalRecord,
    connections: Vec<SavedConnection>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct SavedConnection {
    original: SavedTuple,
    reply: SavedTuple,
    /// Number of the state in `ConnectionState::ALL`.
    state: usize,
    masqueraded: bool,
    of_service: bool,
    policy_by_connection: bool,
    service: u32,
    endpoint: u32,
    replied: bool,
    fins: u8,
    opened_ms: u32,
    seen_ms: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct SavedTuple {
    source: [u8; 16],
    destination: [u8; 16],
    ports: [u16; 2],
    segment: u16,
    protocol: u8,
    ipv6: bool,
}

impl SavedState {
    /// What is known at this moment. Connections are read in bounded steps; those that come or go meanwhile may be there
    /// or not.
    #[must_use]
    pub fn of(local: &LocalView, generation: u64, state: &State, now: Time) -> Self {
        let mut connections = Vec::new();
        let mut from = Some(0);
        while let Some(place) = from {
            from = state.connections.for_each(place, |connection| {
                connections.push(SavedConnection::of(&Former::of(connection)));
            });
        }
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation,
            clock_nanoseconds: now.nanoseconds(),
            connection_capacity: state.connections.capacity(),
            local: LocalRecord::of(local),
            connections,
        }
    }

    pub(super) fn local(&self) -> Result<LocalView, SupportError> {
        self.local.view()
    }

    /// Takes the connections in; how many found no place.
    pub(super) fn restore(&self, into: &Connections) -> Result<usize, SupportError> {
        let mut refused = 0;
        for connection in &self.connections {
            refused += usize::from(!into.take_in(&connection.former()?));
        }
        Ok(refused)
    }
}

impl SavedConnection {
    fn of(former: &Former) -> Self {
        let connection = &former.connection;
        Self {
            original: SavedTuple::of(&connection.original),
            reply: SavedTuple::of(&connection.reply),
            state: ConnectionState::ALL.iter().position(|state| *state == connection.state).unwrap_or_default(),
            masqueraded: connection.flags.has(ConnectionFlags::MASQUERADED),
            of_service: connection.flags.has(ConnectionFlags::SERVICE),
            policy_by_connection: connection.flags.has(ConnectionFlags::POLICY_BY_CONNECTION),
            service: connection.service,
            endpoint: connection.endpoint,
            replied: former.replied,
            fins: former.fins,
            opened_ms: former.opened_ms,
            seen_ms: former.seen_ms,
        }
    }

    fn former(&self) -> Result<Former, SupportError> {
        let flags = [
            (self.masqueraded, ConnectionFlags::MASQUERADED),
            (self.of_service, ConnectionFlags::SERVICE),
            (self.policy_by_connection, ConnectionFlags::POLICY_BY_CONNECTION),
        ];
        let flags =
            flags.into_iter().filter(|(set, _)| *set).fold(ConnectionFlags::NONE, |all, (_, one)| all.with(one));
        let state = ConnectionState::ALL.get(self.state).copied();
        let state = state.filter(|state| state.is_of(self.original.protocol));
        let wrong = || SupportError::Value { value: self.state.to_string(), what: "a state of such a connection" };
        Ok(Former {
            connection: NewConnection {
                original: self.original.tuple(),
                reply: self.reply.tuple(),
                state: state.ok_or_else(wrong)?,
                flags,
                service: self.service,
                endpoint: self.endpoint,
                replaces: None,
            },
            replied: self.replied,
            fins: self.fins,
            opened_ms: self.opened_ms,
            seen_ms: self.seen_ms,
        })
    }
}

impl SavedTuple {
    fn of(tuple: &Tuple) -> Self {
        Self {
            source: tuple.source,
            destination: tuple.destination,
            ports: tuple.ports,
            segment: tuple.segment.0,
            protocol: tuple.protocol,
            ipv6: tuple.ipv6,
        }
    }

    fn tuple(&self) -> Tuple {
        Tuple {
            source: self.source,
            destination: self.destination,
            ports: self.ports,
            segment: SegmentIndex(self.segment),
            protocol: self.protocol,
            ipv6: self.ipv6,
        }
    }
}
