//! The verdict on one packet in one direction of one pod.
//!
//! The tiers are asked in the order Admin, NetworkPolicy, Baseline (ClusterNetworkPolicy v1alpha2, `spec.tier`).
//! Inside Admin and Baseline the first rule that matches decides; `Pass` leads to the next tier. A NetworkPolicy only
//! allows: if any selects the pod and none of their rules matches, the packet is denied and no further tier is asked.
//! Where no tier decides, the packet is allowed.
//!
//! What is not known yet counts against the packet: an `Accept` wants a peer that surely is meant, and a `Deny` or a
//! `Pass` denies where the peer, or the name of its port, may be meant. So the verdict on an unknown peer is never
//! more open than the one that its labels will give.

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
    /// Whether it is an address of pods of which nothing is known: it may be in any set and have any named port.
    pub is_unknown: bool,
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
    /// The pod's labels are not known yet, and these policies may select it.
    Unknown(Arc<[Arc<RuleList>]>),
    /// The peer's labels are not known yet, and the rule at this place in this list may mean it.
    UnknownPeer(Arc<RuleList>, usize),
}

impl Denial {
    /// The policies that deny, or that may do so once everything is known; none before any policy is.
    #[must_use]
    pub fn lists(&self) -> &[Arc<RuleList>] {
        match self {
            Denial::Rule(list, _) | Denial::UnknownPeer(list, _) => std::slice::from_ref(list),
            Denial::Isolated(lists) | Denial::Unknown(lists) => lists,
        }
    }

    /// Whether it is for want of knowledge.
    #[must_use]
    pub const fn is_unknown(&self) -> bool {
        matches!(self, Denial::Unknown(_) | Denial::UnknownPeer(..))
    }
}

/// What denies it; of many isolating policies the first ones.
impl fmt::Display for Denial {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Denial::Rule(list, place) => write!(formatter, "denied by {}", list.rule_name(*place)),
            Denial::Isolated(lists) => write!(formatter, "isolated by {}", Named(lists)),
            Denial::Unknown(lists) if lists.is_empty() => formatter.write_str("the pod's labels are not known yet"),
            Denial::Unknown(lists) => {
                write!(formatter, "the pod's labels are not known yet, it may be selected by {}", Named(lists))
            }
            Denial::UnknownPeer(list, place) => {
                write!(formatter, "the peer's labels are not known yet, it may be meant by {}", list.rule_name(*place))
            }
        }
    }
}

/// Policies that a denial names.
const NAMED_POLICIES: usize = 4;

/// The names of policies, and how many more there are.
struct Named<'a>(&'a [Arc<RuleList>]);

impl fmt::Display for Named<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named: Vec<&str> = self.0.iter().take(NAMED_POLICIES).map(|list| &*list.policy.name).collect();
        formatter.write_str(&named.join(", "))?;
        match self.0.len().saturating_sub(NAMED_POLICIES) {
            0 => Ok(()),
            more => write!(formatter, " and {more} more"),
        }
    }
}

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

/// Whether a rule speaks of the packet, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Match {
    No,
    /// For all that is known it may.
    Possible,
    Yes,
}

impl From<bool> for Match {
    fn from(matches: bool) -> Self {
        if matches { Match::Yes } else { Match::No }
    }
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
            names_unknown: destination.is_unknown
                || destination.identity.is_some_and(|identity| identity.ports_unknown),
        };
        if let Some(lists) = &policy.unknown {
            return Judgement::Denied(Denial::Unknown(Arc::clone(lists)));
        }
        if let Tier::Decided(judgement) = question.ordered(&policy.admin) {
            return judgement;
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
    /// Whether the destination may have other names.
    names_unknown: bool,
}

impl Question<'_> {
    fn ordered(&mut self, lists: &[Arc<RuleList>]) -> Tier {
        let rules = lists.iter().flat_map(|list| list.rules.iter().enumerate().map(move |rule| (list, rule)));
        for (list, (place, rule)) in rules {
            let list = || Arc::clone(list);
            match (self.matches(rule), rule.action) {
                (Match::No, _) | (Match::Possible, Action::Accept) => {}
                (Match::Possible, Action::Deny | Action::Pass) => {
                    return Tier::Decided(Judgement::Denied(Denial::UnknownPeer(list(), place)));
                }
                (Match::Yes, Action::Accept) => return Tier::Decided(Judgement::Allowed(list(), place)),
                (Match::Yes, Action::Deny) => {
                    return Tier::Decided(Judgement::Denied(Denial::Rule(list(), place)));
                }
                (Match::Yes, Action::Pass) => return Tier::Undecided,
            }
        }
        Tier::Undecided
    }

    fn isolated(&mut self, lists: &Arc<[Arc<RuleList>]>) -> Judgement {
        for list in lists.iter() {
            if let Some(place) = list.rules.iter().position(|rule| self.matches(rule) == Match::Yes) {
                return Judgement::Allowed(Arc::clone(list), place);
            }
        }
        Judgement::Denied(Denial::Isolated(Arc::clone(lists)))
    }

    fn matches(&mut self, rule: &Rule) -> Match {
        match self.ports_match(&rule.ports) {
            Match::No => Match::No,
            ports => ports.min(self.peers_match(&rule.peers)),
        }
    }

    fn ports_match(&self, ports: &Ports) -> Match {
        let Packet { protocol, port } = self.packet;
        match ports {
            Ports::Any => Match::Yes,
            Ports::In { .. } if !has_ports(protocol) => Match::No,
            Ports::In { ranges, named } => {
                let in_ranges = ranges.iter().any(|range| {
                    // A rule for all ports of a protocol also holds for fragments that show none.
                    let in_range = port.map_or((range.first, range.last) == (0, u16::MAX), |port| {
                        (range.first..=range.last).contains(&port)
                    });
                    range.protocol == protocol && in_range
                });
                if in_ranges { Match::Yes } else { self.names_match(named) }
            }
        }
    }

    fn names_match(&self, named: &[(Arc<str>, Option<u8>)]) -> Match {
        let Packet { protocol, port: Some(port) } = self.packet else { return Match::No };
        let of_protocol = || named.iter().filter(|(_, wanted)| wanted.is_none_or(|wanted| wanted == protocol));
        let is_known = |name: &Arc<str>| {
            self.names.iter().any(|known| known.port == port && known.protocol == protocol && known.name == *name)
        };
        match of_protocol().any(|(name, _)| is_known(name)) {
            true => Match::Yes,
            false if self.names_unknown && of_protocol().next().is_some() => Match::Possible,
            false => Match::No,
        }
    }

    fn peers_match(&mut self, peers: &Peers) -> Match {
        let Peers::In { pods, networks } = peers else { return Match::Yes };
        let identity = self.peer.identity;
        if identity.is_some_and(|identity| pods.iter().any(|set| identity.is_in(set)))
            || (!networks.is_empty() && self.is_in_any(networks))
        {
            return Match::Yes;
        }
        let may_be_in = |set| identity.is_some_and(|identity| identity.may_be_in(set));
        let possible = !pods.is_empty() && (self.peer.is_unknown || pods.iter().any(may_be_in));
        if possible { Match::Possible } else { Match::No }
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
