//! Stage 5, `service`: an address that stands for endpoints becomes one of them.
//!
//! Behind `connection`, since a known connection keeps the endpoint it was given, and before `route`, which needs the
//! real destination. Only what opens a connection is given an endpoint here; the rules are kube-proxy's (docs/services.md
//! has them, and where this program differs). Two sorts of known connection are decided anew: a UDP one whose endpoint
//! no longer serves while others do, and a TCP one that is asked for again because nobody ever answered.

mod choice;
mod pick;

use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;
use std::sync::Arc;

use choice::{Asker, Sender};
pub use choice::{By, Why};
pub use pick::{Pick, Picked};

use super::decision::{Reason, Rejection, Stage, Verdict};
use super::tracking::Tracking;
use super::{Masquerade, Walk};
use crate::drop_reason::DropReason;
use crate::packet::parse::{flag, protocol};
use crate::packet::wire::tcp;
use crate::state::{Connection, ConnectionFlags, ConnectionState, Direction, Tuple};
use crate::tables::lookup::mix;
use crate::tables::services::{Endpoint, Found, Frontend, FrontendKind, SegmentServices, ServiceId};
use crate::tables::{PortRole, Segment, SegmentKind, Snapshot, address_octets};

/// Gives what opens a connection to a Service its endpoint, or ends the walk.
pub(super) fn service(walk: &mut Walk<'_>, segment: &Segment) -> ControlFlow<Verdict> {
    let original = match &walk.tracking {
        Tracking::Untracked | Tracking::Related(..) => return ControlFlow::Continue(()),
        Tracking::Known(connection, _) => connection.original,
        Tracking::Opening(opening) => opening.original,
    };
    let Some(services) = services(walk.tables, segment, &original) else { return ControlFlow::Continue(()) };
    match walk.tracking {
        Tracking::Untracked | Tracking::Related(..) => ControlFlow::Continue(()),
        Tracking::Known(connection, direction) => known(walk, services, &connection, direction),
        Tracking::Opening(opening) => match find(services, &opening.original) {
            Found::Frontend(frontend) => opens(walk, services, frontend, &opening.original),
            Found::Nothing => ControlFlow::Continue(()),
            Found::WrongPort => refuse(walk, DropReason::ServiceWrongPort),
            Found::Unallocated(_) => walk.drop(Stage::Service, DropReason::ServiceUnallocated),
        },
    }
}

/// The Services that are asked: those of a connected segment, if one of them is called and none of the segment's own.
fn services<'a>(tables: &'a Snapshot, segment: &Segment, tuple: &Tuple) -> Option<&'a SegmentServices> {
    let own = tables.services.get(segment.index);
    let SegmentKind::Routed(routed) = &segment.kind else { return own };
    let is_called = |services: &&SegmentServices| matches!(find(services, tuple), Found::Frontend(_));
    if routed.connected.is_empty() || own.as_ref().is_some_and(is_called) {
        return own;
    }
    let others = routed.connected.iter().filter_map(|(_, other)| tables.services.get(*other));
    others.into_iter().find(is_called).or(own)
}

fn find<'a>(services: &'a SegmentServices, tuple: &Tuple) -> Found<'a> {
    services.find(tuple.destination_address(), tuple.protocol, tuple.ports[1])
}

/// Drops, and tells the client that nobody listens: by a reset, or an ICMP error where there are no resets.
fn refuse(walk: &mut Walk<'_>, reason: DropReason) -> ControlFlow<Verdict> {
    let is_tcp = walk.arrival.headers.protocol == protocol::TCP;
    walk.reject(Stage::Service, reason, if is_tcp { Rejection::Reset } else { Rejection::PortUnreachable })
}

/// A known connection keeps what it has, but for the two sorts named above.
fn known(
    walk: &mut Walk<'_>,
    services: &SegmentServices,
    connection: &Connection,
    direction: Direction,
) -> ControlFlow<Verdict> {
    walk.dependencies.service = connection.service;
    // A later fragment goes where its first one went.
    if direction == Direction::Reply || walk.arrival.headers.has(flag::LATER_FRAGMENT) {
        return ControlFlow::Continue(());
    }
    let Found::Frontend(frontend) = find(services, &connection.original) else {
        // Its Service is gone. Another may take the address, and would not know of a flow cached under the old one's name:
        // until then every packet of a UDP flow, which it would have to take over, is decided anew.
        walk.never_cached |= connection.service != 0 && connection.original.protocol == protocol::UDP;
        return ControlFlow::Continue(());
    };
    let server = (connection.reply.source_address(), connection.reply.ports[0]);
    let is_stale = connection.original.protocol == protocol::UDP && frontend.service.is_stale(server);
    let asks_again = connection.state == ConnectionState::SynSent
        && !connection.replied
        && connection.service != 0
        && walk.arrival.headers.tcp_flags_or_icmp_type & (tcp::flag::SYN | tcp::flag::ACK) == tcp::flag::SYN;
    if !is_stale && !asks_again {
        return ControlFlow::Continue(());
    }
    let silent = asks_again.then_some(server);
    if silent.is_some() && pick(walk, frontend, &connection.original, silent).is_none() {
        return ControlFlow::Continue(());
    }
    walk.reopen();
    give(walk, services, frontend, &connection.original, silent)
}

fn opens(
    walk: &mut Walk<'_>,
    services: &SegmentServices,
    frontend: &Frontend,
    original: &Tuple,
) -> ControlFlow<Verdict> {
    walk.dependencies.service = frontend.service.id.tag();
    give(walk, services, frontend, original, None)
}

fn give(
    walk: &mut Walk<'_>,
    services: &SegmentServices,
    frontend: &Frontend,
    original: &Tuple,
    silent: Option<(IpAddr, u16)>,
) -> ControlFlow<Verdict> {
    let client = original.source_address();
    let is_let_in = |sources: &Arc<[ipnet::IpNet]>| sources.iter().any(|network| network.contains(&client));
    // A loopback address means the node itself (RFC 1122 section 3.2.1.3), whoever writes it into a packet.
    let is_for_another = original.destination_address().is_loopback() && sender(walk) != Sender::Host;
    if is_for_another || !frontend.sources.as_ref().is_none_or(is_let_in) {
        return walk.drop(Stage::Service, DropReason::ServiceSourceRefused);
    }
    let port = &frontend.service;
    let Some((endpoint, why)) = pick(walk, frontend, original, silent) else {
        let reason = if port.any_usable { DropReason::ServiceNoLocalEndpoints } else { DropReason::ServiceNoEndpoints };
        // Endpoints elsewhere are alive: to say that nobody listens would be wrong.
        return if port.any_usable { walk.drop(Stage::Service, reason) } else { refuse(walk, reason) };
    };
    let masquerade = masquerade(services, frontend, endpoint, sender(walk), client);
    walk.note(Stage::Service, || {
        Reason::Picked(Box::new(Picked {
            service: Arc::clone(&port.name),
            kind: frontend.kind,
            endpoint: Arc::clone(&endpoint.name),
            address: SocketAddr::new(endpoint.address, endpoint.port),
            why,
            masquerade,
        }))
    });
    let (service_tag, endpoint_tag) = (port.id.tag(), endpoint.tag());
    if let Some(opening) = walk.opening() {
        opening.translation.destination = Some((address_octets(endpoint.address), endpoint.port));
        opening.masquerade = masquerade;
        opening.flags = opening.flags.with(ConnectionFlags::SERVICE);
        (opening.service, opening.endpoint) = (service_tag, endpoint_tag);
    }
    walk.dependencies.service = service_tag;
    walk.pick = Some(Pick {
        service: port.id,
        client,
        endpoint: (endpoint.address, endpoint.port),
        affinity: port.affinity,
        by: why.by,
        again: why.again,
    });
    ControlFlow::Continue(())
}

fn pick<'a>(
    walk: &Walk<'_>,
    frontend: &'a Frontend,
    original: &Tuple,
    silent: Option<(IpAddr, u16)>,
) -> Option<(&'a Endpoint, Why)> {
    let port = &frontend.service;
    let (scope, local) = choice::scope(frontend.kind, port, sender(walk));
    let asker = Asker {
        client: original.source_address(),
        keyed: walk.state.connections.keyed_hash(original),
        shared: shared_hash(port.id, original),
        silent,
    };
    choice::choose(walk.state, port, scope, local, &asker, walk.now)
}

fn sender(walk: &Walk<'_>) -> Sender {
    match walk.tables.ports.get(walk.arrival.port).map(|port| &port.role) {
        Some(PortRole::Pod(_)) => Sender::Pod,
        Some(PortRole::Host(_)) => Sender::Host,
        _ => Sender::Outside,
    }
}

/// The matrix of kube-proxy: whose source must become the node's.
fn masquerade(
    services: &SegmentServices,
    frontend: &Frontend,
    endpoint: &Endpoint,
    sender: Sender,
    client: IpAddr,
) -> Option<Masquerade> {
    if endpoint.address == client {
        return Some(Masquerade::Hairpin);
    }
    let external = frontend.kind != FrontendKind::ClusterIp;
    match sender {
        Sender::Host => Some(Masquerade::NotFromPod),
        Sender::Outside if !external => Some(Masquerade::NotFromPod),
        Sender::Pod if !external => services.masquerade_all.then_some(Masquerade::All),
        Sender::Pod | Sender::Outside => (!frontend.service.external_local).then_some(Masquerade::External),
    }
}

/// A hash of a Service's port and a client that is the same on every node, so that Maglev picks alike: it must never
/// change. The called address is no part of it: at a node port each node has its own.
fn shared_hash(service: ServiceId, tuple: &Tuple) -> u64 {
    let bits = u128::from_be_bytes(tuple.source);
    let client = mix((bits >> 64) as u64) ^ mix(bits as u64).rotate_left(17);
    mix(client ^ mix(service.0 ^ u64::from(tuple.ports[0])).rotate_left(31))
}
