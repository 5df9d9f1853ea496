//! Connections that kube-proxy's rules began go on in the switch, as they were translated.
//!
//! The kernel keeps a translation with its connection, but packets of Services do not come to it any more once they are
//! steered, and it forgets what was masqueraded by an interface when the way leads by another. So, once, before anything is
//! steered, the kernel's translated connections are read, and those that go to a Service in force become connections of the
//! switch: with the endpoint that kube-proxy chose and the source that the kernel chose, which answers find here since it is the
//! node's address among pods. Runs on the underlay thread.

use std::net::IpAddr;
use std::path::Path;

use millrace_engine::clock::Clock;
use millrace_engine::packet::parse::protocol;
use millrace_engine::state::{ConnectionFlags, ConnectionState, NewConnection, Tuple};
use millrace_engine::tables::services::Found;
use millrace_engine::tables::{RouteTarget, SegmentIndex, SegmentKind, Snapshot, address_octets};

use super::shared::Shared;
use crate::kernel::KernelError;
use crate::kernel::translated_flows::{End, TranslatedFlow, translated_flows};

/// What a kernel without ctnetlink answers.
const NO_TRACKING: [i32; 3] = [
    rustix::io::Errno::PROTONOSUPPORT.raw_os_error(),
    rustix::io::Errno::INVAL.raw_os_error(),
    rustix::io::Errno::OPNOTSUPP.raw_os_error(),
];

/// Name of the file that remembers it: the kernel keeps entries of connections that went elsewhere for days.
pub const RECORD: &str = "adopted";

/// Takes the kernel's connections to Services over, once since the node has booted: `record` is the file that remembers it.
/// Says what is in the way of it.
pub(super) fn adopt(shared: &Shared, record: &Path) -> Result<(), KernelError> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    if std::fs::read_to_string(record).is_ok_and(|known| known == boot) {
        return Ok(());
    }
    // Where nothing can be written, the next agent looks again, and finds its own connections in the way.
    let _ = std::fs::write(record, boot);
    let flows = match translated_flows() {
        // A kernel that tracks no connections translates none.
        Err(error) if error.errno().is_some_and(|number| NO_TRACKING.contains(&number)) => return Ok(()),
        flows => flows?,
    };
    let (tables, state, now) =
        shared.switch.with(|switch| (switch.tables(), std::sync::Arc::clone(switch.state()), Clock::Monotonic.now()));
    let adopted = flows.iter().filter_map(|flow| connection(&tables, flow));
    let adopted = adopted.filter(|new| state.connections.adopt(new, now)).count();
    shared.adopted.store(adopted as u64, std::sync::atomic::Ordering::Relaxed);
    Ok(())
}

/// The connection of the switch that is the same; `None` if it goes to no Service in force, or its answers would not come here.
fn connection(tables: &Snapshot, flow: &TranslatedFlow) -> Option<NewConnection> {
    let segment = tables.segments.iter().find(|segment| matches!(segment.kind, SegmentKind::Routed(_)))?;
    let SegmentKind::Routed(routed) = &segment.kind else { return None };
    let services = tables.services.get(segment.index)?;
    let Found::Frontend(frontend) = services.find(flow.called.0, flow.protocol, flow.called.1) else { return None };
    let own = |address: &IpAddr| routed.router_addresses.contains(address);
    let is_masqueraded = flow.seen_as != flow.client;
    if is_masqueraded && !own(&flow.seen_as.0) {
        return None;
    }
    // The node's own sockets call from inside, everybody else by an uplink.
    let is_hosts = tables.ports.iter().any(|port| match &port.role {
        millrace_engine::tables::PortRole::Host(host) => host.addresses.contains(&flow.client.0),
        _ => false,
    });
    // What the kernel need not masquerade it goes on with; and a pod's calls never came by the uplink.
    let is_inside = || routed.route(flow.client.0).is_some_and(|(_, route)| !is_outside(&route.target));
    if is_hosts && !is_masqueraded || !is_hosts && is_inside() {
        return None;
    }
    let side = if is_hosts { segment.index } else { SegmentIndex::OUTSIDE };
    let endpoint =
        frontend.service.number_of(flow.server).and_then(|at| frontend.service.endpoints.get(usize::from(at)));
    let flags = if is_masqueraded { ConnectionFlags::MASQUERADED } else { ConnectionFlags::NONE };
    Some(NewConnection {
        original: tuple(flow.client, flow.called, flow.protocol, side),
        reply: tuple(flow.server, flow.seen_as, flow.protocol, segment.index),
        state: match flow.protocol {
            protocol::TCP => ConnectionState::Established,
            protocol::SCTP => ConnectionState::SctpEstablished,
            _ => ConnectionState::Replied,
        },
        flags: flags.with(ConnectionFlags::SERVICE),
        service: frontend.service.id.tag(),
        endpoint: endpoint.map_or(0, |endpoint| endpoint.tag()),
        replaces: None,
    })
}

fn is_outside(target: &RouteTarget) -> bool {
    matches!(target, RouteTarget::Outside { .. })
}

fn tuple(from: End, to: End, protocol: u8, segment: SegmentIndex) -> Tuple {
    Tuple {
        source: address_octets(from.0),
        destination: address_octets(to.0),
        ports: [from.1, to.1],
        segment,
        protocol,
        ipv6: from.0.is_ipv6(),
    }
}
