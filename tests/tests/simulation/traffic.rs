//! Pods talk: conversations by TCP and UDP, straight or by a Service, that open, go on and are watched.
//!
//! A conversation is established once its client had two answers. From then on it has one server and must go on with it,
//! unless a pod of it ends, a view that a node of it judges by denies it or has the server no more behind the Service, or a
//! clock jumps over a datagram flow's time. That is looked at with each publish.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use millrace_control::plan::GATEWAY_MAC;
use millrace_engine::testing::{ACK, PSH, SYN, frame};
use millrace_tests::policies::Flow;

use crate::churn::{self, SERVICES};
use crate::oracle;
use crate::tenancy::NETWORKS;
use crate::wire::{Label, Seen};
use crate::world::World;

/// Conversations at one time for each ten pods.
const CONVERSATIONS: usize = 8;
/// Port of Services.
const SERVICE_PORT: u16 = 80;
/// Marks the number of a probe, which nobody answers.
pub(crate) const PROBE: u32 = 1 << 31;
/// For whoever stands behind a Service.
const ANYBODY: u32 = u32::MAX;

/// A client and whom it talks to.
#[derive(Clone, Debug)]
pub(crate) struct Conversation {
    pub(crate) client: u32,
    pub(crate) network: usize,
    tcp: bool,
    source: (IpAddr, u16),
    pub(crate) dialed: (IpAddr, u16),
    service: Option<usize>,
    target: u32,
    /// Pods that got a packet of it, with the address and port they are reached at.
    pub(crate) served: BTreeMap<u32, (IpAddr, u16)>,
    /// The one that answered.
    pub(crate) server: Option<u32>,
    /// Addresses that nodes may have chosen for it so far.
    pub(crate) endpoints: BTreeSet<IpAddr>,
    answers: u32,
    sequence: u32,
    pub(crate) established: bool,
    pub(crate) excused: bool,
    /// The last sequence number that was answered.
    pub(crate) answered: u32,
}

/// All conversations.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) conversations: BTreeMap<u32, Conversation>,
    pub(crate) next: u32,
    /// Answers that pods send with the next tick: the pod, and what it got.
    answers: Vec<(u32, Seen)>,
    /// Probes that arrived: their numbers, and at which pod.
    pub(crate) probed: BTreeSet<(u32, u32)>,
}

impl Traffic {
    /// A pod is gone.
    pub(crate) fn ended(&mut self, pod: u32) {
        for conversation in self.conversations.values_mut() {
            if conversation.client == pod || conversation.server == Some(pod) || conversation.target == pod {
                conversation.excused = true;
            }
        }
    }
}

impl Conversation {
    pub(crate) fn is_kept(&self) -> bool {
        self.established && !self.excused
    }

    fn protocol(&self) -> &'static str {
        if self.tcp { "TCP" } else { "UDP" }
    }

    /// The connection to one of its servers, as policies judge it.
    pub(crate) fn flow(&self, server: u32) -> Option<Flow> {
        let (destination, port) = *self.served.get(&server)?;
        Some(Flow { source: self.source.0, destination, protocol: self.protocol(), port })
    }

    /// An answer of that server, judged by itself.
    pub(crate) fn answer_flow(&self, server: u32) -> Option<Flow> {
        let (source, _) = *self.served.get(&server)?;
        Some(Flow { source, destination: self.source.0, protocol: self.protocol(), port: self.source.1 })
    }
}

impl World {
    /// Sends what is due in this tick: answers, and requests unless all is calm.
    pub(crate) fn converse(&mut self) {
        for (pod, seen) in std::mem::take(&mut self.traffic.answers) {
            self.answer(pod, &seen);
        }
        if self.calm {
            return;
        }
        let bound = 2 + self.size.pods * CONVERSATIONS / 10;
        let goes_on = |conversation: &&Conversation| !conversation.excused;
        let open = self.traffic.conversations.values().filter(goes_on).count();
        if open < bound {
            self.begin();
        }
        let numbers: Vec<u32> = self.traffic.conversations.keys().copied().collect();
        for _ in 0..(3 + self.size.pods / 20).min(numbers.len()) {
            let number = *self.random.pick(&numbers);
            self.request(number);
        }
        if numbers.len() > 2 * bound {
            self.traffic.conversations.retain(|_, conversation| !conversation.excused);
        }
    }

    fn begin(&mut self) {
        let plugged: Vec<u32> = self.pods.iter().filter(|(_, pod)| !pod.leaving).map(|(number, _)| *number).collect();
        if plugged.len() < 2 {
            return;
        }
        let client = *self.random.pick(&plugged);
        let Some(source) = self.address(client, true) else { return };
        let network = self.pods[&client].network;
        let tcp = self.random.below(3) > 0;
        let by_service = network == 0 && self.random.below(2) == 0;
        let family = network > 0 || by_service || self.random.below(2) == 0;
        let (service, target, dialed) = if by_service {
            let service = self.random.below(SERVICES.len());
            (Some(service), ANYBODY, (churn::service_address(service), SERVICE_PORT))
        } else {
            let same = plugged.iter().copied().filter(|other| self.pods[other].network == network && *other != client);
            let same: Vec<u32> = same.collect();
            if same.is_empty() {
                return;
            }
            let target = *self.random.pick(&same);
            let Some(address) = self.address(target, family) else { return };
            (None, target, (address, *self.random.pick(&churn::PORTS)))
        };
        let source = self.address(client, family).unwrap_or(source);
        self.traffic.next += 1;
        let number = self.traffic.next;
        let conversation = Conversation {
            client,
            network,
            tcp,
            source: (source, 10_000 + (number % 50_000) as u16),
            dialed,
            service,
            target,
            served: BTreeMap::new(),
            server: None,
            endpoints: BTreeSet::new(),
            answers: 0,
            sequence: 0,
            established: false,
            excused: false,
            answered: 0,
        };
        self.figures.conversations_begun += 1;
        self.traffic.conversations.insert(number, conversation);
    }

    /// An address that a pod was given.
    pub(crate) fn address(&self, pod: u32, ipv4: bool) -> Option<IpAddr> {
        let attachment = self.agents[self.pods.get(&pod)?.node].attachments.get(&pod)?;
        attachment.addresses.iter().copied().find(|address| address.is_ipv4() == ipv4)
    }

    /// Puts a packet of a pod before its port; nothing happens while nobody reads there.
    pub(crate) fn send(
        &mut self,
        pod: u32,
        built: impl FnOnce(millrace_engine::packet::Mac) -> millrace_engine::port::memory::WireFrame,
    ) -> bool {
        let Some(node) = self.pods.get(&pod).map(|pod| pod.node) else { return false };
        let Some((port, mac)) = self.agents[node].attachments.get(&pod).map(|known| (known.port, known.mac)) else {
            return false;
        };
        if self.agents[node].running.is_none() {
            return false;
        }
        self.figures.packets += 1;
        self.agents[node].inject(port, built(mac));
        true
    }

    /// The next packet of a conversation from its client; its sequence number.
    pub(crate) fn request(&mut self, number: u32) -> u32 {
        let Some(conversation) = self.traffic.conversations.get_mut(&number) else { return 0 };
        let Some(pod) = self.pods.get(&conversation.client) else { return 0 };
        conversation.sequence += 1;
        if let Some(service) = conversation.service {
            for view in self.agents[pod.node].views() {
                conversation.endpoints.extend(oracle::endpoints(view, SERVICES[service].0));
            }
        }
        let conversation = conversation.clone();
        let label = Label {
            conversation: number,
            sequence: conversation.sequence,
            from: conversation.client,
            to: conversation.target,
            network: conversation.network as u8,
            reply: false,
        };
        let ((source, from), (destination, to)) = (conversation.source, conversation.dialed);
        let opening = conversation.answers == 0;
        self.send(conversation.client, |mac| {
            let built = frame().from(mac, source).to(GATEWAY_MAC, destination);
            let built = if conversation.tcp { built.tcp(if opening { SYN } else { ACK | PSH }) } else { built.udp() };
            built.ports(from, to).payload(&label.bytes()).wire()
        });
        conversation.sequence
    }

    fn answer(&mut self, pod: u32, seen: &Seen) {
        let Some(asked) = seen.label else { return };
        let network = asked.network;
        let label = Label { from: pod, to: asked.from, network, reply: true, ..asked };
        let flags = if seen.flags & SYN != 0 { SYN | ACK } else { ACK | PSH };
        self.send(pod, |mac| {
            let built = frame().from(mac, seen.destination).to(GATEWAY_MAC, seen.source);
            let built = if seen.protocol == 6 { built.tcp(flags) } else { built.udp() };
            built.ports(seen.ports[1], seen.ports[0]).payload(&label.bytes()).wire()
        });
    }

    /// A pod got a request of a conversation: it will answer.
    pub(crate) fn asked(&mut self, pod: u32, seen: Seen) {
        self.traffic.answers.push((pod, seen));
    }

    /// A client got the answer of a server.
    pub(crate) fn answered(&mut self, number: u32, label: Label) {
        let Some(conversation) = self.traffic.conversations.get_mut(&number) else { return };
        conversation.answered = conversation.answered.max(label.sequence);
        conversation.answers += 1;
        conversation.excused |= label.from == conversation.client;
        if conversation.server.is_some_and(|server| server != label.from) {
            // Two endpoints answered before one was settled upon.
            conversation.excused |= !conversation.established;
            return;
        }
        conversation.server = Some(label.from);
        if conversation.answers == 2 && !conversation.excused {
            conversation.established = true;
            self.figures.established += 1;
        }
        if conversation.answers == 1 {
            self.request(number);
        }
    }

    /// Looks which conversations go on by what a node has been told now.
    pub(crate) fn review(&mut self, node: usize) {
        let Self { agents, pods, traffic, .. } = self;
        for conversation in traffic.conversations.values_mut().filter(|conversation| conversation.is_kept()) {
            let Some(server) = conversation.server else { continue };
            let home = |pod: u32| pods.get(&pod).map(|pod| pod.node);
            let (of_client, of_server) = (home(conversation.client) == Some(node), home(server) == Some(node));
            if !of_client && !of_server {
                continue;
            }
            let (Some(view), Some(flow)) = (agents[node].views().last(), conversation.flow(server)) else { continue };
            let served = conversation
                .service
                .filter(|_| of_client)
                .is_none_or(|service| oracle::endpoints(view, SERVICES[service].0).contains(&flow.destination));
            conversation.excused = !served || oracle::allowed(view, conversation.network, flow).is_err();
        }
    }

    /// A clock jumped over the time that datagram flows have.
    pub(crate) fn excuse_datagrams(&mut self, node: usize) {
        for conversation in self.traffic.conversations.values_mut().filter(|conversation| !conversation.tcp) {
            let ends = [Some(conversation.client), conversation.server];
            let here = |pod: &u32| self.pods.get(pod).is_some_and(|pod| pod.node == node);
            conversation.excused |= ends.iter().flatten().any(here);
        }
    }

    /// Name of a network, for words.
    pub(crate) fn network_name(network: usize) -> &'static str {
        NETWORKS[network].object.unwrap_or("pods")
    }
}
