//! What the agent tells about itself: reads counters, tables and kernel state into the API's documents.
//!
//! Runs on API threads. Counters are read while workers write them; each number is right, sums across workers may be
//! a moment apart.

mod addresses;
mod connections;
mod policy_preview;
mod receipts;
mod stations;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use millrace_engine::clock::Clock;
use millrace_engine::counters::{Event, WorkerCounters};
use millrace_engine::cycles::Work;
use millrace_engine::drop_reason::DropReason;
use millrace_engine::packet::PortIndex;
use millrace_engine::packet::parse::protocol;
use millrace_engine::tables::policy::Direction;
use millrace_engine::tables::{PortRole, RouteTarget, SegmentKind, Snapshot};
use millrace_engine::worker::FlowReport as CachedFlow;

use super::pods::Pods;
use super::shared::Shared;
use super::{policies, trace};
use crate::api::model::{
    ConnectionsQuery, ConnectionsReport, CyclesReport, DropReport, FlowReport, FlowsReport, IpamCheckReport,
    IpamReport, NeighbourReport, PoliciesReport, PolicyDiffReport, PolicyDiffRequest, PolicyReachQuery,
    PolicyReachReport, PortCyclesReport, PortReport, QueueReport, ReceiptReport, RouteReport, RouteTargetReport,
    ServiceReport, StationReport, StatusReport, TraceReport, TraceRequest, WorkerReport,
};
use crate::api::{Inspect, InspectFailure};
use crate::cni_server::Attachments;
use crate::kernel::{NeighbourState, Netlink};

/// Reads the agent for the API.
pub(super) struct Inspector {
    shared: Arc<Shared>,
    pods: Arc<Pods>,
    attachments: Arc<Attachments>,
}

impl Inspector {
    pub(super) fn new(shared: Arc<Shared>, pods: Arc<Pods>, attachments: Arc<Attachments>) -> Self {
        Self { shared, pods, attachments }
    }

    fn counters(&self) -> Vec<Arc<WorkerCounters>> {
        self.shared.switch.with(|switch| switch.counters().cloned().collect())
    }

    fn tables(&self) -> Arc<Snapshot> {
        self.shared.switch.with(|switch| switch.tables())
    }
}

impl Inspect for Inspector {
    fn ports(&self) -> Result<Vec<PortReport>, InspectFailure> {
        let queues = self.shared.switch.with(|switch| switch.queues());
        let counters = self.counters();
        let mut of_port: BTreeMap<PortIndex, (String, Vec<QueueReport>)> = BTreeMap::new();
        for (worker, queues) in queues.into_iter().enumerate() {
            for queue in queues {
                let entry = of_port.entry(queue.port).or_default();
                entry.0 = queue.description.kind.to_owned();
                entry.1.push(QueueReport {
                    worker: worker as u32,
                    mode: queue.description.mode,
                    kernel_dropped_frames: queue.kernel_drops,
                });
            }
        }
        let standing = self.shared.standing();
        let tables = self.tables();
        let report = |port: &Arc<millrace_engine::tables::Port>| {
            let (kind, queues) = of_port.remove(&port.index).unwrap_or_default();
            let addresses = match &port.role {
                PortRole::Pod(pod) => pod.addresses.clone(),
                PortRole::Host(host) => host.addresses.clone(),
                PortRole::Bridged(_) | PortRole::Mirror => Vec::new(),
                PortRole::Uplink(_) => {
                    let local = standing.local.as_ref().and_then(|local| local.uplinks.get(&port.index));
                    local.map(|uplink| uplink.addresses.clone()).unwrap_or_default()
                }
            };
            let sum = |pick: fn(&WorkerCounters, usize) -> u64| {
                counters.iter().map(|counters| pick(counters, usize::from(port.index.0))).sum()
            };
            let bandwidth = tables.bandwidth.get(&port.index).copied().unwrap_or_default();
            PortReport {
                index: port.index.0,
                name: port.name.to_string(),
                role: role(&port.role).to_owned(),
                kind,
                chosen: self.shared.why_chosen(port.index),
                segment: segment_of(&tables, &port.role),
                mac: mac_of(&port.role),
                addresses: addresses.iter().map(ToString::to_string).collect(),
                mtu_bytes: port.mtu,
                ingress_bits_per_second: bandwidth.to_port.map(|limit| limit.bits_per_second),
                egress_bits_per_second: bandwidth.from_port.map(|limit| limit.bits_per_second),
                queues,
                received_frames: sum(|counters, port| counters.port(port).received_frames.get()),
                received_bytes: sum(|counters, port| counters.port(port).received_bytes.get()),
                sent_frames: sum(|counters, port| counters.port(port).sent_frames.get()),
                sent_bytes: sum(|counters, port| counters.port(port).sent_bytes.get()),
                dropped_frames: sum(|counters, port| counters.port(port).dropped_frames.get()),
            }
        };
        Ok(tables.ports.iter().map(report).collect())
    }

    fn workers(&self) -> Result<Vec<WorkerReport>, InspectFailure> {
        let cores = self.shared.switch.with(|switch| switch.options().cores.clone());
        let uptime = self.shared.started.elapsed().as_nanos() as u64;
        let tables = self.tables();
        let report = |(number, counters): (usize, Arc<WorkerCounters>)| WorkerReport {
            worker: number as u32,
            cpu: cores.get(number).map(|core| *core as u32),
            generation: counters.generation.get(),
            // The workers of an agent sleep by this clock.
            slept_nanoseconds: counters.slept.nanoseconds(&Clock::Monotonic),
            uptime_nanoseconds: uptime,
            flow_cache_hits: counters.event(Event::FlowCacheHit).get(),
            flow_cache_misses: counters.event(Event::FlowCacheMiss).get(),
            flows: counters.flows.get(),
            held_frames: counters.held.get(),
            free_frames: counters.free_frames.get(),
            events: Event::ALL.iter().map(|event| (event.name().to_owned(), counters.event(*event).get())).collect(),
            cycles: cycles(&counters, &tables),
        };
        Ok(self.counters().into_iter().enumerate().map(report).collect())
    }

    fn routes(&self) -> Result<Vec<RouteReport>, InspectFailure> {
        let tables = self.tables();
        let mut routes = Vec::new();
        for segment in tables.segments.iter() {
            let SegmentKind::Routed(routed) = &segment.kind else { continue };
            let mut add = |address: IpAddr, length: u8, route: &millrace_engine::tables::Route| {
                routes.push(RouteReport {
                    segment: segment.name.to_string(),
                    prefix: format!("{address}/{length}"),
                    target: target(&tables, &route.target),
                    object: route.name.to_string(),
                });
            };
            routed.routes_ipv4.for_each(|bits, length, route| {
                add(IpAddr::V4(((bits >> 96) as u32).into()), length, route);
            });
            routed.routes_ipv6.for_each(|bits, length, route| add(IpAddr::V6(bits.into()), length, route));
        }
        Ok(routes)
    }

    fn services(&self) -> Result<Vec<ServiceReport>, InspectFailure> {
        let state = self.shared.switch.with(|switch| Arc::clone(switch.state()));
        Ok(super::services::report(&self.tables(), &state))
    }

    fn neighbours(&self) -> Result<Vec<NeighbourReport>, InspectFailure> {
        let unavailable = |error: crate::kernel::KernelError| InspectFailure::Unavailable(error.to_string());
        let mut netlink = Netlink::open().map_err(unavailable)?;
        let names: BTreeMap<u32, String> =
            netlink.links().map_err(unavailable)?.into_iter().map(|link| (link.index, link.name)).collect();
        let known = netlink.neighbours().map_err(unavailable)?;
        let mut nodes: BTreeMap<(u32, IpAddr), Vec<String>> = BTreeMap::new();
        let tables = self.tables();
        let mut peers = Vec::new();
        tables.tunnels.for_each_peer(|peer| peers.push(Arc::clone(peer)));
        for peer in peers {
            if let Ok(Some(route)) = netlink.lookup_route(peer.address) {
                nodes.entry((route.link, route.next_hop)).or_default().push(peer.name.to_string());
            }
        }
        let report = |((link, address), nodes): ((u32, IpAddr), Vec<String>)| {
            let entry = known.iter().find(|entry| entry.link == link && entry.address == address);
            NeighbourReport {
                interface: names.get(&link).cloned().unwrap_or_else(|| link.to_string()),
                address: address.to_string(),
                mac: entry.and_then(|entry| entry.mac).map(|mac| mac.to_string()),
                state: entry.map_or("incomplete", |entry| state(entry.state)).to_owned(),
                nodes,
            }
        };
        Ok(nodes.into_iter().map(report).collect())
    }

    fn flows(&self, limit: usize) -> Result<FlowsReport, InspectFailure> {
        let tables = self.tables();
        let total = self.counters().iter().map(|counters| counters.flows.get()).sum();
        let workers = self.shared.switch.with(|switch| switch.options().workers);
        let mut flows = Vec::new();
        for worker in 0..workers {
            let rest = limit.saturating_sub(flows.len());
            let cached = self.shared.switch.with(|switch| switch.flows(worker, rest));
            flows.extend(cached.iter().map(|flow| flow_report(&tables, worker, flow)));
        }
        Ok(FlowsReport { total, flows })
    }

    fn connections(&self, query: &ConnectionsQuery, limit: usize) -> Result<ConnectionsReport, InspectFailure> {
        let state = self.shared.switch.with(|switch| Arc::clone(switch.state()));
        Ok(connections::connections(&self.tables(), &state.connections, query, limit))
    }

    fn policies(&self, pod: Option<&str>) -> Result<PoliciesReport, InspectFailure> {
        policies::policies(&self.tables(), pod)
    }

    fn policy_diff(&self, request: &PolicyDiffRequest) -> Result<PolicyDiffReport, InspectFailure> {
        let state = self.shared.switch.with(|switch| Arc::clone(switch.state()));
        policy_preview::diff(&self.shared, &self.tables(), &state.connections, request)
    }

    fn policy_reach(&self, query: &PolicyReachQuery) -> Result<PolicyReachReport, InspectFailure> {
        policy_preview::reach(&self.shared, &self.tables(), query)
    }

    fn drops(&self) -> Result<Vec<DropReport>, InspectFailure> {
        let (counters, tables) = (self.counters(), self.tables());
        let report = |reason: &DropReason| DropReport {
            reason: reason.name().to_owned(),
            frames: counters.iter().map(|counters| counters.drops(*reason).get()).sum(),
            sentence: reason.sentence().to_owned(),
            next_step: reason.next_step().to_owned(),
            policies: match reason {
                DropReason::PolicyIngress => policies::denied(&tables, Direction::Ingress),
                DropReason::PolicyEgress => policies::denied(&tables, Direction::Egress),
                _ => Vec::new(),
            },
        };
        Ok(DropReason::ALL.iter().map(report).filter(|report| report.frames > 0).collect())
    }

    fn stations(&self) -> Result<Vec<StationReport>, InspectFailure> {
        let state = self.shared.switch.with(|switch| Arc::clone(switch.state()));
        Ok(stations::stations(&self.tables(), &state))
    }

    fn ipam(&self) -> Result<IpamReport, InspectFailure> {
        addresses::ipam(&self.shared, &self.pods, &self.attachments)
    }

    fn check_ipam(&self) -> Result<IpamCheckReport, InspectFailure> {
        addresses::check(&self.shared, &self.pods, &self.attachments)
    }

    fn status(&self) -> Result<StatusReport, InspectFailure> {
        let standing = self.shared.standing();
        let tables = self.tables();
        let count = |role: fn(&PortRole) -> bool| tables.ports.iter().filter(|port| role(&port.role)).count() as u32;
        let counters = self.counters();
        let plugged = standing.local.iter().flat_map(|local| &local.pods);
        let kept = self.shared.switch.with(|switch| switch.kept().clone());
        let is_bridged =
            |port: &PortIndex| tables.ports.get(*port).is_some_and(|port| matches!(port.role, PortRole::Bridged(_)));
        let of_networks = plugged.filter(|(port, pod)| pod.network.is_some() && is_bridged(port));
        Ok(StatusReport {
            node: self.shared.node.as_str().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.shared.started.elapsed().as_secs(),
            generation: tables.generation,
            tables_age_seconds: standing
                .published
                .map_or(0, |at| Instant::now().saturating_duration_since(at).as_secs()),
            workers: counters.len() as u32,
            ports: tables.ports.iter().count() as u32,
            pods: count(|role| matches!(role, PortRole::Pod(_))) + of_networks.count() as u32,
            uplinks: count(|role| matches!(role, PortRole::Uplink(_))),
            unaccounted_frames: settled_unaccounted(&counters),
            connections_taken_over: kept.connections.taken as u64,
            connections_not_taken_over: kept.connections.refused as u64,
            connections_adopted: self.shared.adopted.load(Ordering::Relaxed),
            connections_end: kept.problem,
            takeover_gaps_us: self.shared.takeover_gaps.get().cloned(),
            problems: self.shared.problems(),
            events: *self.shared.events.lock().unwrap_or_else(std::sync::PoisonError::into_inner),
        })
    }

    fn receipts(&self) -> Result<Vec<ReceiptReport>, InspectFailure> {
        Ok(receipts::tell(self.shared.receipts.all()))
    }

    fn trace(&self, request: &TraceRequest) -> Result<TraceReport, InspectFailure> {
        let state = self.shared.switch.with(|switch| Arc::clone(switch.state()));
        trace::trace(&self.tables(), &state, request)
    }
}

/// Where one worker's time goes.
fn cycles(counters: &WorkerCounters, tables: &Snapshot) -> CyclesReport {
    let measured = |port: &Arc<millrace_engine::tables::Port>| {
        let counts = counters.port(usize::from(port.index.0));
        let (packets, cycles) = (counts.measured_frames.get(), counts.measured_cycles.get());
        (packets > 0).then(|| PortCyclesReport { port: port.name.to_string(), packets, cycles })
    };
    let mut ports: Vec<PortCyclesReport> = tables.ports.iter().filter_map(measured).collect();
    ports.sort_by(|one, other| other.cycles.cmp(&one.cycles).then_with(|| one.port.cmp(&other.port)));
    CyclesReport {
        packets: counters.cycles.packets.get(),
        vectors: counters.cycles.vectors.get(),
        work: Work::ALL.iter().map(|work| (work.name().to_owned(), counters.cycles.of(*work).get())).collect(),
        idle: counters.cycles.idle.get(),
        ports,
    }
}

/// Frames unaccounted for over all workers. While packets move, counts are read between two of a worker's writes;
/// a loss is what stays, so the smallest of a few looks counts.
fn settled_unaccounted(counters: &[Arc<WorkerCounters>]) -> i64 {
    let look = || counters.iter().map(|counters| counters.unaccounted()).sum::<i64>();
    let mut least = look();
    for _ in 0..50 {
        if least == 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
        let now = look();
        if now.abs() < least.abs() {
            least = now;
        }
    }
    least
}

fn role(role: &PortRole) -> &'static str {
    match role {
        PortRole::Pod(_) => "pod",
        PortRole::Host(_) => "host",
        PortRole::Bridged(_) => "bridged",
        PortRole::Uplink(_) => "uplink",
        PortRole::Mirror => "mirror",
    }
}

fn segment_of(tables: &Snapshot, role: &PortRole) -> Option<String> {
    let name = |index| tables.segments.get(index).map(|segment| segment.name.to_string());
    match role {
        PortRole::Pod(pod) => name(pod.segment),
        PortRole::Host(host) => name(host.segment),
        PortRole::Bridged(bridged) => {
            let tagged = bridged.tagged.iter().filter_map(|member| {
                let segment = name(member.segment)?;
                Some(format!("{segment} tagged {}", member.identifier))
            });
            let all: Vec<String> = bridged.untagged.and_then(name).into_iter().chain(tagged).collect();
            (!all.is_empty()).then(|| all.join(", "))
        }
        PortRole::Uplink(_) | PortRole::Mirror => None,
    }
}

fn mac_of(role: &PortRole) -> Option<String> {
    match role {
        PortRole::Pod(pod) => Some(pod.mac.to_string()),
        PortRole::Host(host) => Some(host.mac.to_string()),
        PortRole::Bridged(_) | PortRole::Mirror => None,
        PortRole::Uplink(uplink) => Some(uplink.mac.to_string()),
    }
}

fn target(tables: &Snapshot, target: &RouteTarget) -> RouteTargetReport {
    match target {
        RouteTarget::Port { port, mac } => {
            RouteTargetReport::Port { port: port_name(tables, *port), mac: mac.to_string() }
        }
        RouteTarget::Tunnel { peer, mac } => RouteTargetReport::Tunnel { peer: peer.to_string(), mac: mac.to_string() },
        RouteTarget::Direct { peer } => RouteTargetReport::Direct { peer: peer.to_string() },
        RouteTarget::Outside { port, gateway, source, .. } => RouteTargetReport::Outside {
            port: port_name(tables, *port),
            gateway: gateway.map(|gateway| gateway.to_string()),
            source: source.to_string(),
        },
        RouteTarget::Unreachable => RouteTargetReport::Unreachable,
    }
}

fn port_name(tables: &Snapshot, port: PortIndex) -> String {
    tables.ports.get(port).map_or_else(|| format!("port {}", port.0), |port| port.name.to_string())
}

fn state(state: NeighbourState) -> &'static str {
    match state {
        NeighbourState::Permanent => "permanent",
        NeighbourState::Reachable => "reachable",
        NeighbourState::Stale => "stale",
        NeighbourState::Incomplete => "incomplete",
        NeighbourState::Failed => "failed",
    }
}

fn flow_report(tables: &Snapshot, worker: usize, flow: &CachedFlow) -> FlowReport {
    let key = &flow.key;
    let tunnelled = key.ingress >> 31 != 0;
    let port = (!tunnelled).then_some(PortIndex(key.ingress as u16));
    let segment = tables.segments.get(flow.segment);
    FlowReport {
        worker: worker as u32,
        segment: segment.map_or_else(String::new, |segment| segment.name.to_string()),
        ingress: port.map_or_else(|| "tunnel".to_owned(), |port| port_name(tables, port)),
        protocol: protocol_name(key.protocol),
        source: key.source.to_string(),
        source_port: key.ports[0],
        destination: key.destination.to_string(),
        destination_port: key.ports[1],
        verdict: "forward".to_owned(),
        egress: port_name(tables, flow.egress),
        packets: u64::from(flow.packets),
        bytes: flow.bytes,
        idle_milliseconds: u64::from(flow.idle_ms),
    }
}

fn protocol_name(number: u8) -> String {
    match number {
        protocol::TCP => "tcp".to_owned(),
        protocol::UDP => "udp".to_owned(),
        protocol::SCTP => "sctp".to_owned(),
        protocol::ICMP => "icmp".to_owned(),
        protocol::ICMPV6 => "icmpv6".to_owned(),
        other => other.to_string(),
    }
}
