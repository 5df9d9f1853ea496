//! One port of a Service: its endpoints, which of them serve whom, and how one is picked.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::tables::lookup::{Maglev, Member, mix};

/// What names a port of a Service on every node: a hash of its namespace, name, port, protocol and family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(pub u64);

impl ServiceId {
    /// The number a cached decision keeps of it; 0 stands for no Service. Two Services with one number are decided
    /// again together, which is right, only more than needed.
    #[must_use]
    pub fn tag(self) -> u32 {
        ((self.0 >> 32) as u32).max(1)
    }
}

/// One port of a Service, for one family of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// What names it.
    pub id: ServiceId,
    /// Its name for people: `default/web:http`.
    pub name: Arc<str>,
    /// IP protocol number: TCP, UDP or SCTP.
    pub protocol: u8,
    /// All endpoints known, in order of address and port; at most 65,535.
    pub endpoints: Arc<[Endpoint]>,
    /// Those that serve where any node's may.
    pub cluster: Scope,
    /// Those that serve where only this node's may.
    pub local: Scope,
    /// Whether any endpoint on any node could serve: decides between telling the client and silence.
    pub any_usable: bool,
    /// Whether the cluster's own clients are served by this node's endpoints only.
    pub internal_local: bool,
    /// Whether clients from outside are.
    pub external_local: bool,
    /// How long a client stays with its endpoint after its last new connection, if it does.
    pub affinity: Option<Duration>,
    /// How one of several is picked.
    pub balance: Balance,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its name for people: the pod's, else the address.
    pub name: Arc<str>,
    /// Its address.
    pub address: IpAddr,
    /// The port it listens at.
    pub port: u16,
    /// Its share where shares are weighted.
    pub weight: u16,
    /// Whether it is on this node.
    pub local: bool,
    /// How it is.
    pub state: EndpointState,
}

/// How an endpoint is (KEP-1669).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndpointState {
    /// Serves and gets new connections.
    Ready,
    /// Ends, but still serves: gets new connections where no ready one is left.
    ServingTerminating,
    /// Serves, but is not to get new connections.
    Serving,
    /// Does not serve.
    NotServing,
}

impl EndpointState {
    /// The state as `show services` writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::ServingTerminating => "terminating",
            Self::Serving => "serving",
            Self::NotServing => "not-ready",
        }
    }

    /// Whether connections that exist may go on.
    #[must_use]
    pub const fn serves(self) -> bool {
        !matches!(self, Self::NotServing)
    }
}

impl Endpoint {
    /// What tells the endpoint from others, equal on every node.
    #[must_use]
    pub fn identity(&self) -> u64 {
        let bits = match self.address {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        mix(mix((bits >> 64) as u64) ^ mix(bits as u64).rotate_left(1) ^ u64::from(self.port))
    }
}

impl Endpoint {
    /// The number a connection keeps of it; never 0.
    #[must_use]
    pub fn tag(&self) -> u32 {
        ((self.identity() >> 32) as u32).max(1)
    }
}

impl ServicePort {
    /// The number of the endpoint at this address and port.
    #[must_use]
    pub fn number_of(&self, (address, port): (IpAddr, u16)) -> Option<u16> {
        let key = |endpoint: &Endpoint| (endpoint.address, endpoint.port);
        let at = self.endpoints.binary_search_by_key(&(address, port), key).ok()?;
        u16::try_from(at).ok()
    }

    /// Whether a connection to this server had better get another: it is no endpoint that serves, and some other is.
    /// Whatever policies and hints say: they are about new connections.
    #[must_use]
    pub fn is_stale(&self, server: (IpAddr, u16)) -> bool {
        let of = |number: u16| self.endpoints.get(usize::from(number));
        let serves = self.number_of(server).and_then(of).is_some_and(|endpoint| endpoint.state.serves());
        !serves && self.endpoints.iter().any(|endpoint| endpoint.state.serves())
    }
}

/// How one endpoint of several is picked for a new connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Balance {
    /// At random, uniform or by weight.
    #[default]
    Random,
    /// One after the other.
    RoundRobin,
    /// The one with the fewest live connections through this node.
    LeastConnections,
    /// By a hash of the client's address and port that gives the same on every node.
    Maglev,
}

impl Balance {
    /// The name as the annotation has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::RoundRobin => "round-robin",
            Self::LeastConnections => "least-connections",
            Self::Maglev => "maglev",
        }
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// The endpoints that may serve: all, and those that certain clients get first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// All of them.
    pub all: EndpointSet,
    /// What clients of these networks get instead, the longest prefix first. No set here is empty unless `all` is.
    pub by_client: Arc<[(IpNet, EndpointSet)]>,
    /// Whether topology hints narrowed it.
    pub hinted: bool,
}

impl Scope {
    /// The endpoints for a client, and the network that said so.
    #[must_use]
    pub fn of_client(&self, client: IpAddr) -> (&EndpointSet, Option<IpNet>) {
        let rule = self.by_client.iter().find(|(network, _)| network.contains(&client));
        rule.map_or((&self.all, None), |(network, set)| (set, Some(*network)))
    }
}

/// Some endpoints of a port, ready to be picked from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSet {
    /// Their numbers in the port's list, ascending.
    members: Arc<[u16]>,
    /// Sums of the weights up to each member; empty where all weigh the same.
    weights: Arc<[u32]>,
    /// The slots, where Maglev picks.
    maglev: Option<Maglev>,
}

impl EndpointSet {
    /// The set of these of `endpoints`; those of weight 0 are left out unless all are.
    #[must_use]
    pub fn new(endpoints: &[Endpoint], members: impl IntoIterator<Item = u16>, balance: Balance) -> Self {
        let weight = |number: &u16| endpoints.get(usize::from(*number)).map_or(0, |endpoint| endpoint.weight);
        let all: Vec<u16> = members.into_iter().filter(|number| usize::from(*number) < endpoints.len()).collect();
        let mut members: Vec<u16> = all.iter().copied().filter(|number| weight(number) > 0).collect();
        let drained = members.is_empty();
        if drained {
            members = all;
        }
        let share = |number: &u16| if drained { 1 } else { weight(number) };
        members.sort_unstable();
        members.dedup();
        let equal = members.windows(2).all(|pair| share(&pair[0]) == share(&pair[1]));
        let mut sum = 0;
        let weights = members.iter().map(|number| {
            sum += u32::from(share(number));
            sum
        });
        let weights: Arc<[u32]> = if equal { Arc::from([]) } else { weights.collect() };
        let slots = || {
            let member = |number: &u16| Member {
                number: *number,
                identity: endpoints[usize::from(*number)].identity(),
                weight: if equal { 1 } else { share(number) },
            };
            Maglev::new(&members.iter().map(member).collect::<Vec<_>>())
        };
        let maglev = (balance == Balance::Maglev).then(slots);
        Self { members: members.into(), weights, maglev }
    }

    /// The numbers of its endpoints, ascending.
    #[must_use]
    pub fn members(&self) -> &[u16] {
        &self.members
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether an endpoint is one of them.
    #[must_use]
    pub fn contains(&self, number: u16) -> bool {
        self.members.binary_search(&number).is_ok()
    }

    /// The member that 64 random bits fall on; uniform or by weight.
    #[must_use]
    pub fn at_random(&self, bits: u64) -> Option<u16> {
        let scaled = |count: u64| ((u128::from(bits) * u128::from(count)) >> 64) as u64;
        match self.weights.last() {
            None => self.members.get(scaled(self.members.len() as u64) as usize).copied(),
            Some(total) => self.at_weight(scaled(u64::from(*total)) as u32),
        }
    }

    /// The member whose turn it is, of weighted ones those with more weight more often, well mixed.
    #[must_use]
    pub fn in_turn(&self, turn: u64) -> Option<u16> {
        match self.weights.last() {
            None if self.members.is_empty() => None,
            None => self.members.get((turn % self.members.len() as u64) as usize).copied(),
            // Steps by the golden section, made odd against the total, visit every unit of weight once a round.
            Some(total) => {
                let total = u64::from(*total);
                self.at_weight((turn % total * stride(total) % total) as u32)
            }
        }
    }

    /// The member that Maglev gives a flow with this hash.
    #[must_use]
    pub fn by_hash(&self, hash: u64) -> Option<u16> {
        self.maglev.as_ref()?.member(hash)
    }

    /// Another member than `number`, any of them alike; `None` without another.
    #[must_use]
    pub fn other_than(&self, number: u16, bits: u64) -> Option<u16> {
        let others = (self.members.len() as u64).checked_sub(1).filter(|others| *others > 0)?;
        let at = self.members.binary_search(&number).ok()?;
        let step = ((u128::from(bits.rotate_left(32)) * u128::from(others)) >> 64) as usize + 1;
        self.members.get((at + step) % self.members.len()).copied()
    }

    fn at_weight(&self, weight: u32) -> Option<u16> {
        self.members.get(self.weights.partition_point(|sum| *sum <= weight)).copied()
    }
}

/// A step near the golden section of `total` that shares no factor with it.
fn stride(total: u64) -> u64 {
    let common = |mut a: u64, mut b: u64| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let near = total * 618 / 1_000;
    (near.max(1)..).find(|step| common(*step, total) == 1).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(weights: &[u16]) -> Vec<Endpoint> {
        let endpoint = |(number, weight): (usize, &u16)| Endpoint {
            name: format!("pod-{number}").into(),
            address: IpAddr::V4([10, 0, 0, number as u8].into()),
            port: 80,
            weight: *weight,
            local: false,
            state: EndpointState::Ready,
        };
        weights.iter().enumerate().map(endpoint).collect()
    }

    fn count(set: &EndpointSet, pick: impl Fn(&EndpointSet, u64) -> Option<u16>, draws: u64) -> Vec<u64> {
        let mut counts = vec![0; 4];
        (0..draws).for_each(|draw| counts[usize::from(pick(set, draw).expect("member"))] += 1);
        counts
    }

    #[test]
    fn turns_are_fair_and_weights_are_kept_exactly() {
        let equal = endpoints(&[1, 1, 1, 1]);
        let set = EndpointSet::new(&equal, [3, 1, 2], Balance::RoundRobin);
        assert_eq!(set.members(), [1, 2, 3]);
        assert_eq!(count(&set, EndpointSet::in_turn, 9), [0, 3, 3, 3]);
        let weighted = endpoints(&[5, 1, 2, 0]);
        let set = EndpointSet::new(&weighted, 0..4, Balance::RoundRobin);
        assert_eq!(count(&set, EndpointSet::in_turn, 80), [50, 10, 20, 0]);
        let longest = (0..80).map(|turn| set.in_turn(turn)).collect::<Vec<_>>();
        assert!(longest.windows(4).all(|run| run.iter().any(|member| *member != Some(0))), "well mixed: {longest:?}");
    }

    #[test]
    fn random_bits_fall_by_weight() {
        let weighted = endpoints(&[1, 0, 3, 4]);
        let set = EndpointSet::new(&weighted, 0..4, Balance::Random);
        let counts = count(&set, |set, draw| set.at_random(mix(draw + 1)), 80_000);
        for (found, expected) in counts.iter().zip([10_000u64, 0, 30_000, 40_000]) {
            assert!(found.abs_diff(expected) < 600, "{counts:?}");
        }
    }

    #[test]
    fn where_every_weight_is_zero_all_serve_alike() {
        let set = EndpointSet::new(&endpoints(&[0, 0]), 0..2, Balance::Random);
        assert_eq!(set.members(), [0, 1]);
        assert_eq!((set.at_random(0), set.at_random(u64::MAX)), (Some(0), Some(1)));
        assert_eq!(EndpointSet::default().at_random(5), None);
        assert_eq!(EndpointSet::default().in_turn(5), None);
    }
}
