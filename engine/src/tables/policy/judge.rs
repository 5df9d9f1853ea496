//! The verdict on one packet in one direction of one pod.
//!
//! The tiers are asked in the order Admin, NetworkPolicy, Baseline (ClusterNetworkPolicy v1alpha2, `spec.tier`).
//! Inside Admin and Baseline the first rule that matches decides; `Pass` leads to the next tier. A NetworkPolicy only
//! allows: if any selects the pod and none of their rules matches, the packet is denied and no further tier is asked.
//! Where no tier decides, the packet is allowed.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::{
    Action, Direction, DirectionPolicy, Identity, NamedPort, PeerSet, Peers, PolicyTable, Ports, Rule, RuleList,
};
use crate::packet::parse::protocol;

/// The other end, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub struct PeerView<'a> {
    /// What its address is, if it is a pod's or a node's.
    pub identity: Option<&'a Arc<Identity>>,
    /// Its address.
    pub address: IpAddr,
}

/// What of a packet a rule can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port; `None` where the packet shows none (other protocols, later fragments).
    pub port: Option<u16>,
}

/// Why a packet is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// A rule denies it: the rule at this place in this list.
    Rule(Arc<RuleList>, usize),
    /// These policies isolate the pod, and none of their rules allows it.
    Isolated(Arc<[Arc<RuleList>]>),
    /// The pod's labels are not known yet.
    Unknown,
}

impl Denial {
    /// The policies that deny; `None` if it is for want of knowledge.
    #[must_use]
    pub fn lists(&self) -> Option<&[Arc<RuleList>]> {
        match self {
            Denial::Rule(list, _) => Some(std::slice::from_ref(list)),
            Denial::Isolated(lists) => Some(lists),
            Denial::Unknown => None,
        }
    }
}

/// What denies it; of many isolating policies the first ones.
impl fmt::Display for Denial {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Denial::Rule(list, place) => write!(formatter, "denied by {}", list.rule_name(*place)),
            Denial::Isolated(lists) => {
                let named: Vec<&str> = lists.iter().take(NAMED_POLICIES).map(|list| &*list.policy.name).collect();
                write!(formatter, "isolated by {}", named.join(", "))?;
                match lists.len().saturating_sub(NAMED_POLICIES) {
                    0 => Ok(()),
                    more => write!(formatter, " and {more} more"),
                }
            }
            Denial::Unknown => formatter.write_str("the pod's labels are not known yet"),
        }
    }
}

/// Isolating policies that a denial names.
const NAMED_POLICIES: usize = 4;

/// The verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Allowed by the rule at this place in this list.
    Allowed(Arc<RuleList>, usize),
    /// Allowed because no policy speaks of it.
    NotJudged,
    /// Denied.
    Denied(Denial),
}

/// What one tier of ordered rules says.
enum Tier {
    Decided(Judgement),
    Undecided,
}

impl PolicyTable {
    /// Judges a packet in one direction of a pod. `peer` is the other end, `destination` what is known of the
    /// destination's address, whose names of ports count.
    #[must_use]
    pub fn judge(
        &self,
        policy: &DirectionPolicy,
        direction: Direction,
        packet: Packet,
        source: PeerView<'_>,
        destination: PeerView<'_>,
    ) -> Judgement {
        if policy.is_open() {
            return Judgement::NotJudged;
        }
        let peer = match direction {
            Direction::Ingress => source,
            Direction::Egress => destination,
        };
        let mut question = Question {
            table: self,
            packet,
            peer,
            networks: None,
            names: destination.identity.map_or(&[], |identity| &identity.named_ports),
        };
        if let Tier::Decided(judgement) = question.ordered(&policy.admin) {
            return judgement;
        }
        if policy.unknown {
            return Judgement::Denied(Denial::Unknown);
        }
        if !policy.isolating.is_empty() {
            return question.isolated(&policy.isolating);
        }
        match question.ordered(&policy.baseline) {
            Tier::Decided(judgement) => judgement,
            Tier::Undecided => Judgement::NotJudged,
        }
    }
}

/// One packet, asked of many rules.
struct Question<'a> {
    table: &'a PolicyTable,
    packet: Packet,
    peer: PeerView<'a>,
    /// Networks of the peer, looked up by the first rule that asks.
    networks: Option<&'a [PeerSet]>,
    names: &'a [NamedPort],
}

impl Question<'_> {
    fn ordered(&mut self, lists: &[Arc<RuleList>]) -> Tier {
        for list in lists {
            let Some(place) = list.rules.iter().position(|rule| self.matches(rule)) else { continue };
            return match list.rules[place].action {
                Action::Accept => Tier::Decided(Judgement::Allowed(Arc::clone(list), place)),
                Action::Deny => Tier::Decided(Judgement::Denied(Denial::Rule(Arc::clone(list), place))),
                Action::Pass => Tier::Undecided,
            };
        }
        Tier::Undecided
    }

    fn isolated(&mut self, lists: &Arc<[Arc<RuleList>]>) -> Judgement {
        for list in lists.iter() {
            if let Some(place) = list.rules.iter().position(|rule| self.matches(rule)) {
                return Judgement::Allowed(Arc::clone(list), place);
            }
        }
        Judgement::Denied(Denial::Isolated(Arc::clone(lists)))
    }

    fn matches(&mut self, rule: &Rule) -> bool {
        self.ports_match(&rule.ports) && self.peers_match(&rule.peers)
    }

    fn ports_match(&self, ports: &Ports) -> bool {
        let Packet { protocol, port } = self.packet;
        match ports {
            Ports::Any => true,
            Ports::In { ranges, named } => {
                has_ports(protocol)
                    && (ranges.iter().any(|range| {
                        // A rule for all ports of a protocol also holds for fragments that show none.
                        let in_range = port.map_or((range.first, range.last) == (0, u16::MAX), |port| {
                            (range.first..=range.last).contains(&port)
                        });
                        range.protocol == protocol && in_range
                    }) || port
                        .is_some_and(|port| named.iter().any(|(name, wanted)| self.is_named(name, *wanted, port))))
            }
        }
    }

    fn is_named(&self, name: &Arc<str>, wanted: Option<u8>, port: u16) -> bool {
        let protocol = self.packet.protocol;
        wanted.is_none_or(|wanted| wanted == protocol)
            && self.names.iter().any(|known| known.port == port && known.protocol == protocol && known.name == *name)
    }

    fn peers_match(&mut self, peers: &Peers) -> bool {
        match peers {
            Peers::Any => true,
            Peers::In { pods, networks } => {
                let identity = self.peer.identity;
                identity.is_some_and(|identity| pods.iter().any(|set| identity.is_in(set)))
                    || (!networks.is_empty() && self.is_in_any(networks))
            }
        }
    }

    fn is_in_any(&mut self, wanted: &[PeerSet]) -> bool {
        let (table, address) = (self.table, self.peer.address);
        let networks = *self.networks.get_or_insert_with(|| table.networks_of(address));
        wanted.iter().any(|set| networks.binary_search(set).is_ok())
    }
}

/// Protocols that rules with ports can speak of.
fn has_ports(number: u8) -> bool {
    matches!(number, protocol::TCP | protocol::UDP | protocol::SCTP)
}
