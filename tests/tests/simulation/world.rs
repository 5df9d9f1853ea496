//! The whole of it: nodes, links, store, pods and traffic, moved tick by tick from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use millrace_engine::drop_reason::DropReason;
use millrace_tests::cluster::{UPLINK, uplink_mac};
use millrace_tests::objects;
use millrace_tests::random::Random;

use crate::actions::Actions;
use crate::agent::Agent;
use crate::churn::{self, Pod};
use crate::faults;
use crate::invariants::{self, Invariant, Violation};
use crate::mutation::Mutation;
use crate::network::Network;
use crate::report::{EventLog, Figures};
use crate::store::Store;
use crate::tenancy::NETWORKS;
use crate::traffic::Traffic;
use crate::{convergence, delivery, wire};

/// Length of a tick.
pub(crate) const TICK: Duration = Duration::from_millis(1);

/// How large a run is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) nodes: usize,
    /// Pods of the whole cluster, at most.
    pub(crate) pods: usize,
    /// Ticks in which things happen.
    pub(crate) ticks: usize,
    /// Whether the run is of its own size: `MILLRACE_NODES` or `MILLRACE_PODS`.
    pub(crate) large: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) size: Size,
    pub(crate) now: usize,
    pub(crate) store: Store,
    pub(crate) agents: Vec<Agent>,
    pub(crate) network: Network,
    pub(crate) pods: BTreeMap<u32, Pod>,
    pub(crate) born: u32,
    pub(crate) actions: Actions,
    pub(crate) traffic: Traffic,
    pub(crate) log: EventLog,
    pub(crate) figures: Figures,
    pub(crate) mutation: Mutation,
    /// No faults and no changes any more.
    pub(crate) calm: bool,
    /// Nodes whose attachments changed in this tick.
    pub(crate) changed: BTreeSet<usize>,
    begin: Instant,
    place: Option<PathBuf>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.agents.clear();
        if let Some(place) = &self.place {
            let _ = std::fs::remove_dir_all(place);
        }
    }
}

impl World {
    pub(crate) fn new(seed: u64, size: Size, mutation: Mutation) -> Self {
        let mut random = Random::new(seed);
        let store = Store::new(seed, size.nodes);
        let place = format!("/dev/shm/millrace-simulation-{}-{seed}-{mutation:?}", std::process::id());
        let place = PathBuf::from(format!("{place}-{:?}", std::thread::current().id()));
        let ipv6 = random.below(4) == 0;
        write_ground(&store, &mut random, size);
        let mut world = Self {
            agents: Vec::new(),
            network: Network::new(mutation),
            pods: BTreeMap::new(),
            born: 0,
            actions: Actions::default(),
            traffic: Traffic::default(),
            log: EventLog::default(),
            figures: Figures::default(),
            now: 0,
            calm: false,
            changed: BTreeSet::new(),
            begin: Instant::now(),
            place: Some(place.clone()),
            random,
            size,
            store,
            mutation,
        };
        let address = |node: usize| -> IpAddr {
            let text = if ipv6 { format!("2001:db8::{:x}", node + 1) } else { format!("192.0.2.{}", node + 1) };
            text.parse().expect("address")
        };
        for number in 0..size.nodes {
            let kept_in = place.join(number.to_string());
            std::fs::create_dir_all(&kept_in).expect("a directory on /dev/shm");
            let workers = if size.large { 1 } else { 1 + world.random.below(2) };
            world.store.put(&objects::node(&format!("n{number}"), &[address(number)]));
            world.agents.push(Agent::new(number, address(number), workers, &world.store, Some(kept_in)));
        }
        for number in 0..size.nodes {
            let others = (0..size.nodes).filter(|other| *other != number);
            let next_hops = others.map(|other| (address(other), uplink_mac(other as u8 + 1))).collect();
            world.agents[number].tell_underlay(next_hops);
            world.agents[number].start();
        }
        if mutation == Mutation::BlindStore {
            world.store.be_blind();
        }
        if mutation == Mutation::DeafToPolicies {
            (0..size.nodes).for_each(|node| world.store.be_silent(node, "NetworkPolicy"));
        }
        if mutation == Mutation::DeafToBlocks {
            world.store.be_silent(0, "IpBlock");
        }
        world
    }

    /// Everything that happens, then peace.
    pub(crate) fn run(&mut self) -> Result<(), Violation> {
        let begin = if self.size.large { self.size.pods } else { self.size.pods / 2 };
        (0..begin).for_each(|_| churn::create_pod(self));
        for _ in 0..self.size.ticks {
            let times = if self.size.large { 4 } else { 1 };
            for _ in 0..times {
                churn::change(self);
                faults::strike(self);
            }
            self.step()?;
        }
        faults::heal(self);
        convergence::reach(self)
    }

    pub(crate) fn note(&mut self, kind: &'static str, text: &str) {
        self.figures.count(kind);
        self.log.note(self.now, &format!("{kind}: {text}"));
    }

    /// One tick.
    pub(crate) fn step(&mut self) -> Result<(), Violation> {
        self.now += 1;
        self.store.set_now(self.now);
        self.act()?;
        self.follow()?;
        self.arrive();
        self.converse();
        for number in 0..self.agents.len() {
            invariants::settle(&self.agents[number])?;
            self.collect(number)?;
        }
        invariants::links(&self.network)?;
        invariants::addresses(&self.agents)?;
        self.maintain();
        for agent in &mut self.agents {
            agent.advance(TICK);
            agent.forget_views(self.now);
        }
        Ok(())
    }

    /// Control planes take in what they are told.
    fn follow(&mut self) -> Result<(), Violation> {
        let changed = std::mem::take(&mut self.changed);
        for number in 0..self.agents.len() {
            let agent = &mut self.agents[number];
            let Some(published) = agent.follow(&self.store, self.now, changed.contains(&number)) else { continue };
            if let Some(error) = published.error {
                return Violation::of(Invariant::Tables, format!("node {}: {error}", self.agents[number].name));
            }
            self.log.hash_in(&published.told.to_be_bytes());
            self.review(number);
        }
        Ok(())
    }

    /// Frames come out of links.
    fn arrive(&mut self) {
        for (number, mut frame) in self.network.arrivals(self.now) {
            if self.agents[number].running.is_none() {
                continue;
            }
            match self.mutation {
                Mutation::SwappedTenants => {
                    let other = match wire::tunnelled(&frame.bytes) {
                        Some((vni, _)) if vni == NETWORKS[1].vni => NETWORKS[2].vni,
                        Some((vni, _)) if vni == NETWORKS[2].vni => NETWORKS[1].vni,
                        Some((vni, _)) => vni,
                        None => continue,
                    };
                    wire::relabel_tunnel(&mut frame.bytes, other);
                }
                Mutation::SwallowedArrival if self.random.per_mille(100) => {
                    self.agents[number].injected += 1;
                    continue;
                }
                _ => {}
            }
            self.agents[number].inject(UPLINK, frame);
        }
    }

    /// What came out of a node's switch.
    fn collect(&mut self, number: usize) -> Result<(), Violation> {
        let Some(node) = &self.agents[number].running else { return Ok(()) };
        let sent = node.switch().all_sent(UPLINK);
        let attached = self.agents[number].attachments.iter();
        let ports: Vec<(u32, u16)> = attached.map(|(pod, attachment)| (*pod, attachment.port)).collect();
        let mut delivered = Vec::new();
        {
            let switch = node.switch();
            for (pod, port) in ports {
                delivered.extend(switch.all_sent(port).into_iter().map(|frame| (pod, frame)));
            }
        }
        for frame in sent {
            self.log.hash_in(&frame.bytes);
            let to = delivery::departs(self, number, &frame)?;
            let Self { network, random, now, .. } = self;
            network.carry(random, *now, (number, to), frame);
        }
        for (pod, frame) in delivered {
            self.log.hash_in(&frame.bytes);
            delivery::arrives(self, number, pod, &frame)?;
        }
        Ok(())
    }

    /// Each node gives addresses and blocks back now and then. For that a tick counts as a second.
    fn maintain(&mut self) {
        let now = self.begin + Duration::from_secs(self.now as u64);
        for agent in &mut self.agents {
            if (self.now + agent.number * 7) % 40 == 0 {
                agent.maintain(now);
            }
        }
    }

    /// Counts what switches say of denials, before a switch ends and when all is over.
    pub(crate) fn count_denials(&mut self, number: usize) {
        let Some(node) = &self.agents[number].running else { return };
        let moved = node.switch().moved();
        let reasons = [DropReason::PolicyEgress, DropReason::PolicyIngress, DropReason::PolicyPodUnknown];
        self.figures.denials += reasons.iter().filter_map(|reason| moved.get(reason.name())).sum::<u64>();
    }
}

/// What every cluster has.
fn write_ground(store: &Store, random: &mut Random, size: Size) {
    for network in &NETWORKS {
        let cidr = if size.large { "10.0.0.0/16" } else { *random.pick(&["10.0.0.0/24", "10.0.0.0/25"]) };
        let mut four = objects::pool(network.object.unwrap_or("four"), cidr, if size.large { 28 } else { 29 });
        if let Some(name) = network.object {
            four["spec"]["network"] = name.into();
            store.put(&serde_json::json!({
                "apiVersion": "millrace.dev/v1alpha1", "kind": "Network", "metadata": {"name": name},
                "spec": {"vni": network.vni},
            }));
        } else {
            store.put(&objects::pool("six", if size.large { "fd00::/108" } else { "fd00::/118" }, 125));
        }
        store.put(&four);
        for namespace in network.namespaces {
            store.put(&churn::namespace(namespace, "x"));
        }
    }
}
