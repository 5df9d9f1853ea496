//! The real thing: objects through observe, plan and compile into tables, packets through the engine's slow path.
//!
//! Pods of node `a` are plugged in as its view says; what the node itself sends comes by the host's own port, and
//! everybody else out of the tunnel from the node that has the address. Tables
//! are made by the production functions, and the verdict is that of `slow_path::decide`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use millrace_control::api::model::PolicyReachReport;
use millrace_control::cluster::{InterfaceName, NodeName, PodName, StationMac};
use millrace_control::compile::compile;
use millrace_control::observe::Observed;
use millrace_control::plan::{
    AttachedPod, GATEWAY_MAC, LocalHost, LocalUplink, LocalView, POD_SEGMENT, Planner, UnderlayPath,
};
use millrace_control::policy_preview::reach::{Question, reach};
use millrace_control::store::{Event, Located, Object, ObjectKey};
use millrace_engine::clock::{Clock, ManualClock, Time};
use millrace_engine::drop_reason::DropReason;
use millrace_engine::flow_cache::HashKey;
use millrace_engine::packet::parse::parse;
use millrace_engine::packet::{Mac, PortIndex};
use millrace_engine::slow_path::{Arrival, Decision, Stage, Tunnelled, Verdict, decide, judge_connection};
use millrace_engine::state::{Connection, ConnectionFlags, ConnectionState, NewConnection, Opened, State, Tuple};
use millrace_engine::tables::{PortRole, RouteTarget, SegmentKind, Snapshot};
use millrace_engine::testing::{ACK, SYN, frame};
use serde_json::Value;

use super::{Flow, NODE, NodeView};

const UPLINK: PortIndex = PortIndex(0);
/// The host's own port.
const HOST: PortIndex = PortIndex(90);
/// Source port of every flow.
const CLIENT_PORT: u16 = 40_000;
const HOST_MAC: Mac = Mac([2, 0, 0, 0, 0, 90]);

/// A node that follows objects and judges packets.
#[derive(Debug)]
pub struct Judge {
    observed: Observed,
    planner: Planner,
    local: LocalView,
    tables: Snapshot,
    state: State,
}

/// What the node that judges knows beside objects, as long as nothing is plugged in.
///
/// # Panics
/// Never: its names are valid.
#[must_use]
pub fn local_view() -> LocalView {
    let mut local = LocalView::new(NodeName::new(NODE).expect("name"));
    let uplink = LocalUplink {
        interface: InterfaceName::new("eth1").expect("interface"),
        mac: Mac([2, 0, 0, 0, 0, 0xee]),
        mtu: 1500,
        addresses: vec![IpAddr::from([192, 0, 2, 1])],
        link_up: true,
    };
    local.uplinks = BTreeMap::from([(UPLINK, uplink)]);
    let path = |last| UnderlayPath {
        on_link: false,
        port: UPLINK,
        source: IpAddr::from([192, 0, 2, 1]),
        source_mac: Mac([2, 0, 0, 0, 0, 0xee]),
        next_hop: Some(Mac([2, 0, 0, 0, 0, last])),
        mtu: 1500,
    };
    local.underlay = (2..5).map(|last| (IpAddr::from([192, 0, 2, last]), path(last))).collect();
    local.host = Some(LocalHost {
        port: HOST,
        interface: InterfaceName::new("millrace0").expect("interface"),
        mac: HOST_MAC,
        mtu: 1450,
        own_addresses: Vec::new(),
        addresses: vec![IpAddr::from([192, 0, 2, 1])],
    });
    local
}

impl Default for Judge {
    fn default() -> Self {
        Self::new()
    }
}

impl Judge {
    /// A node that knows nothing.
    ///
    /// # Panics
    /// If the machine gives no memory.
    #[must_use]
    pub fn new() -> Self {
        Self {
            observed: Observed::default(),
            planner: Planner::default(),
            local: local_view(),
            tables: Snapshot::default(),
            state: State::new(1024, 1, HashKey::from_seed(1)).expect("memory"),
        }
    }

    /// Begins anew, with the same learned state, of which judging leaves none.
    pub fn forget(&mut self) {
        self.observed = Observed::default();
        self.planner = Planner::default();
        self.local.pods.clear();
    }

    /// Takes an object in.
    ///
    /// # Panics
    /// If it is none, or is refused.
    pub fn apply(&mut self, object: &Value) {
        let object = Object::read(Located::from(object), None).expect("an object");
        self.observed.take(Event::Applied(object));
        assert_eq!(self.observed.problems(), [], "objects of a test must be valid");
    }

    /// Takes the end of an object in.
    ///
    /// # Panics
    /// If it is none.
    pub fn delete(&mut self, object: &Value) {
        self.observed.take(Event::Deleted(ObjectKey::read(&Located::from(object)).expect("an object")));
    }

    /// Plugs in what the node sees and compiles; whether planning anew gives the same policies.
    ///
    /// # Panics
    /// If the plan is refused.
    pub fn settle(&mut self, view: &NodeView, compare: bool) -> bool {
        self.plug_in(view);
        let touched = self.observed.take_touched();
        let planned = self.planner.plan(self.observed.cluster(), &self.local, &touched);
        self.tables = compile(&planned.plan, None).expect("tables");
        !compare || {
            let anew = millrace_control::plan::plan(self.observed.cluster(), &self.local);
            anew.plan == planned.plan
                && anew.problems == planned.problems
                && format!("{:?}", anew.plan.policy) == format!("{:?}", planned.plan.policy)
        }
    }

    fn plug_in(&mut self, view: &NodeView) {
        self.local.unknown_pods_open = view.open;
        let attached = view.plugged.iter().enumerate().map(|(at, plugged)| {
            let port = at as u16 + 1;
            let attached = AttachedPod {
                host_ports: Vec::new(),
                bandwidth: Default::default(),
                network: None,
                further: false,
                pod: PodName::new(&plugged.namespace, &plugged.name).expect("name"),
                uid: plugged.uid.as_deref().map(Arc::from),
                container_id: plugged.name.clone(),
                interface: InterfaceName::new("eth0").expect("interface"),
                mac: Mac([2, 0, 0, 0, 1, port as u8]),
                addresses: plugged.addresses.clone(),
                mtu: 1450,
            };
            (PortIndex(port), attached)
        });
        self.local.pods = attached.collect();
    }

    /// The tables.
    #[must_use]
    pub fn tables(&self) -> &Snapshot {
        &self.tables
    }

    /// Decides the first packet of a flow.
    ///
    /// # Panics
    /// If the flow cannot be made a packet.
    #[must_use]
    pub fn decide(&self, flow: Flow) -> Decision {
        self.decide_packet(flow).1
    }

    /// Where a sender's packets come in, from which station to which.
    fn entrance(&self, source: IpAddr) -> (PortIndex, Option<Tunnelled>, [Mac; 2]) {
        let sender = self.local.pods.iter().find(|(_, pod)| pod.addresses.contains(&source));
        let is_own = |address: &IpAddr| *address == source;
        let host = self.tables.ports.get(HOST).map(|port| &port.role);
        match (sender, host) {
            (Some((port, pod)), _) => (*port, None, [pod.mac, GATEWAY_MAC]),
            (None, Some(PortRole::Host(host))) if host.addresses.iter().any(is_own) => {
                (HOST, None, [HOST_MAC, GATEWAY_MAC])
            }
            _ => {
                let own = StationMac::of_node(&NodeName::new(NODE).expect("name")).mac();
                (UPLINK, Some(self.home(source)), [Mac([2, 0, 0, 0, 2, 1]), own])
            }
        }
    }

    fn decide_between(&self, flow: Flow, [source_port, port]: [u16; 2], flags: u8) -> (Tuple, Decision) {
        let (entrance, tunnel, [from, to]) = self.entrance(flow.source);
        let built = frame().from(from, flow.source).to(to, flow.destination);
        let built = match flow.protocol {
            "TCP" => built.tcp(flags).ports(source_port, port),
            "UDP" => built.udp().ports(source_port, port),
            "SCTP" => built.sctp(0).ports(source_port, port).payload(&[1, 0, 0, 4]),
            "ICMP" => built.echo_request(7, 1),
            other => panic!("protocol {other}"),
        };
        let bytes = built.build();
        let headers = parse(&bytes, bytes.len()).expect("a packet");
        let arrival = Arrival { port: entrance, tunnel, frame: &bytes, headers: &headers, gso: None };
        let decision = decide(&self.tables, &self.state, &arrival, Clock::Manual(ManualClock::new()).now());
        (Tuple::of(&headers, POD_SEGMENT), decision)
    }

    /// The same, and the packet's tuple.
    fn decide_packet(&self, flow: Flow) -> (Tuple, Decision) {
        self.decide_between(flow, [CLIENT_PORT, flow.port], SYN)
    }

    /// Holds a connection open that the flow's first packet has opened, whatever policies say of it.
    fn with_connection<T>(&self, flow: Flow, act: impl FnOnce(&Connection) -> T) -> T {
        let (original, _) = self.decide_packet(flow);
        let new = NewConnection {
            original,
            reply: original.mirrored(),
            state: ConnectionState::Established,
            flags: ConnectionFlags::NONE,
            service: 0,
            endpoint: 0,
            replaces: None,
        };
        let connections = &self.state.connections;
        let Opened::New(reference) = connections.open(&new, Time::ZERO, |_| {}) else { panic!("no room") };
        let done = act(&connections.get(reference).expect("it was just opened"));
        connections.remove(reference);
        done
    }

    /// Whether the answer to the flow's first packet gets through, once that one did.
    ///
    /// # Errors
    /// The trail of a packet that policies deny.
    ///
    /// # Panics
    /// If anything but policies stops the packet.
    pub fn answered(&self, flow: Flow) -> Result<(), String> {
        let answer = Flow { source: flow.destination, destination: flow.source, ..flow };
        self.with_connection(flow, |_| {
            passed(answer, &self.decide_between(answer, [flow.port, CLIENT_PORT], SYN | ACK).1)
        })
    }

    /// What is said of the flow once it is a connection, without a packet, in the words of a trail.
    ///
    /// # Panics
    /// If the table of connections has no room.
    #[must_use]
    pub fn said_of_connection(&self, flow: Flow) -> Vec<String> {
        self.with_connection(flow, |connection| {
            judge_connection(&self.tables, connection).iter().map(ToString::to_string).collect()
        })
    }

    /// What the stage says of the flow's first packet.
    #[must_use]
    pub fn said_of_packet(&self, flow: Flow) -> Vec<String> {
        let decision = self.decide(flow);
        let steps = decision.trail.steps().iter().filter(|step| step.stage == Stage::Policy);
        steps.map(|step| step.reason.to_string()).collect()
    }

    /// Who may reach whom, as `millrace policy reach` has it.
    ///
    /// # Panics
    /// If it cannot be told.
    #[must_use]
    pub fn reach(&self) -> PolicyReachReport {
        let question = Question { limit: usize::MAX, ..Question::default() };
        reach(self.observed.cluster(), &self.local, &question).expect("told")
    }

    /// The tunnel that packets from an address come by.
    fn home(&self, address: IpAddr) -> Tunnelled {
        let segment = self.tables.segments.iter().next().expect("a segment");
        let SegmentKind::Routed(routed) = &segment.kind else { panic!("the pods' segment is routed") };
        match routed.route(address).map(|(_, route)| &route.target) {
            Some(RouteTarget::Tunnel { peer, .. }) => {
                Tunnelled { peer: *peer, vni: segment.vni.expect("tunnels reach the segment") }
            }
            other => panic!("{address} is at no other node: {other:?}"),
        }
    }

    /// Whether the node lets the flow through.
    ///
    /// # Errors
    /// The trail of a packet that policies deny.
    ///
    /// # Panics
    /// If anything but policies stops the packet.
    pub fn allowed(&self, flow: Flow) -> Result<(), String> {
        passed(flow, &self.decide(flow))
    }
}

fn passed(flow: Flow, decision: &Decision) -> Result<(), String> {
    match &decision.verdict {
        Verdict::Forward(_) => Ok(()),
        Verdict::Drop(DropReason::PolicyEgress | DropReason::PolicyIngress | DropReason::PolicyPodUnknown) => {
            Err(decision.trail.to_string())
        }
        _ => panic!("{flow}: {}", decision.trail),
    }
}
