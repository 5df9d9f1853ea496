//! Which endpoint a new connection gets: a pure function of tables, learned state, the packet and the time.
//!
//! First what may serve (policy, readiness, the client's network), then an affinity that holds, then the Service's way
//! of balancing. A client whose SYN was never answered is offered another of the same endpoints.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::clock::Time;
use crate::limits::LEAST_CONNECTIONS_LOOKS;
use crate::state::{ANY_ENDPOINT, State};
use crate::tables::lookup::mix;
use crate::tables::services::{Balance, Endpoint, EndpointSet, FrontendKind, Scope, ServicePort};

/// Where a packet's sender is, as the traffic policies tell senders apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    /// A pod of this node.
    Pod,
    /// This node's own kernel.
    Host,
    /// Anywhere else.
    Outside,
}

/// Who asks, and by what numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker {
    /// The client's address.
    pub(super) client: IpAddr,
    /// Keyed hash of the packet's tuple.
    pub(super) keyed: u64,
    /// Hash of the client and the Service's port that is the same on every node.
    pub(super) shared: u64,
    /// The endpoint that was tried and did not answer.
    pub(super) silent: Option<(IpAddr, u16)>,
}

/// Why this endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Why {
    /// What picked it.
    pub by: By,
    /// The client's network, if it has endpoints of its own.
    pub subnet: Option<IpNet>,
    /// Whether only endpoints of this node were asked.
    pub local: bool,
    /// Whether topology hints narrowed the choice.
    pub hinted: bool,
    /// Whether another endpoint did not answer.
    pub again: bool,
}

/// What picks an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// There is no other.
    Only,
    /// The client had it before.
    Affinity,
    /// The Service's way of balancing.
    Balance(Balance),
}

impl fmt::Display for Why {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.by {
            By::Only => formatter.write_str("only one")?,
            By::Affinity => formatter.write_str("affinity")?,
            By::Balance(balance) => write!(formatter, "{balance}")?,
        }
        if let Some(subnet) = self.subnet {
            write!(formatter, ", client in {subnet}")?;
        }
        for (said, word) in [(self.local, "local only"), (self.hinted, "hinted"), (self.again, "other was silent")] {
            if said {
                write!(formatter, ", {word}")?;
            }
        }
        Ok(())
    }
}

/// The endpoints that may serve a sender at this sort of address, and whether only this node's may.
pub(super) fn scope(kind: FrontendKind, port: &ServicePort, sender: Sender) -> (&Scope, bool) {
    let local = match kind {
        FrontendKind::ClusterIp => port.internal_local,
        // Senders inside the cluster take the short way to any endpoint: the policy is about keeping outsiders'
        // addresses.
        _ => port.external_local && sender == Sender::Outside,
    };
    (if local { &port.local } else { &port.cluster }, local)
}

/// Picks one; `None` if there is none, or none but the silent one.
pub(super) fn choose<'a>(
    state: &State,
    port: &'a ServicePort,
    scope: &Scope,
    local: bool,
    asker: &Asker,
    now: Time,
) -> Option<(&'a Endpoint, Why)> {
    let (set, subnet) = scope.of_client(asker.client);
    let why = |by| Why { by, subnet, local, hinted: scope.hinted && !local, again: asker.silent.is_some() };
    let is_silent = |endpoint: &Endpoint| asker.silent == Some((endpoint.address, endpoint.port));
    if port.affinity.is_some()
        && let Some(endpoint) = remembered(state, port, scope, asker.client, now)
        && !is_silent(endpoint)
    {
        return Some((endpoint, why(By::Affinity)));
    }
    let bits = mix(asker.keyed ^ now.nanoseconds().wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let number = match set.members() {
        [] => return None,
        [only] => *only,
        _ => balanced(state, port, set, asker, bits)?,
    };
    let endpoint = port.endpoints.get(usize::from(number))?;
    if is_silent(endpoint) {
        let other = set.other_than(number, bits)?;
        return Some((port.endpoints.get(usize::from(other))?, why(By::Balance(port.balance))));
    }
    let by = if set.members().len() == 1 { By::Only } else { By::Balance(port.balance) };
    Some((endpoint, why(by)))
}

/// The endpoint the client stays with, as long as it is one of those that may serve.
fn remembered<'a>(
    state: &State,
    port: &'a ServicePort,
    scope: &Scope,
    client: IpAddr,
    now: Time,
) -> Option<&'a Endpoint> {
    let known = state.affinities.find(port.id, client, now)?;
    let number = port.number_of(known)?;
    if scope.all.contains(number) { port.endpoints.get(usize::from(number)) } else { None }
}

fn balanced(state: &State, port: &ServicePort, set: &EndpointSet, asker: &Asker, bits: u64) -> Option<u16> {
    match port.balance {
        Balance::Random => set.at_random(bits),
        Balance::RoundRobin => set.in_turn(state.endpoint_loads.get(port.id.tag(), ANY_ENDPOINT).picks),
        Balance::LeastConnections => least_loaded(state, port, set, bits),
        Balance::Maglev => set.by_hash(asker.shared),
    }
}

/// Looks at a bounded run of the endpoints that begins anywhere, so that equals get equally much.
fn least_loaded(state: &State, port: &ServicePort, set: &EndpointSet, bits: u64) -> Option<u16> {
    let members = set.members();
    let first = ((u128::from(bits) * members.len() as u128) >> 64) as usize;
    let run = || members.iter().cycle().skip(first).take(members.len().min(LEAST_CONNECTIONS_LOOKS));
    let of = |number: &u16| port.endpoints.get(usize::from(*number)).map(|endpoint| (endpoint.tag(), endpoint.weight));
    let least = state.endpoint_loads.least_loaded(port.id.tag(), run().filter_map(of))?;
    run().find(|number| of(number).is_some_and(|(tag, _)| tag == least)).copied()
}
