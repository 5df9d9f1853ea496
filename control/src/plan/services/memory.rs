//! Plans of Services kept with the inputs they came from, and who claims which address and port.
//!
//! Everything here can be computed from the cluster alone; what is kept only saves doing it again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::host_ports::{self, PodHostPorts};
use super::places::{Place, Places};
use super::{Facts, FrontendKey, Owner, ServicePlan, ServicesPlan, derive, frontends};
use crate::cluster::{Cluster, Cursor, PodName, ServiceName, ServiceRecord, SliceRecord};
use crate::plan::tenants::Tenants;
use crate::plan::{LocalView, POD_SEGMENT, tenant_segments};
use crate::problem::Problem;

/// What the plan of a Service came from.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) service: Arc<ServiceRecord>,
    pub(super) slices: Vec<Arc<SliceRecord>>,
    pub(super) place: Arc<Place>,
}

impl Input {
    /// Whether it is this Service with these slices, by looking at pointers.
    fn is<'a>(
        &self,
        service: &Arc<ServiceRecord>,
        slices: impl ExactSizeIterator<Item = &'a Arc<SliceRecord>>,
        place: &Place,
    ) -> bool {
        Arc::ptr_eq(&self.service, service)
            && *self.place == *place
            && self.slices.len() == slices.len()
            && self.slices.iter().zip(slices).all(|(known, slice)| Arc::ptr_eq(known, slice) || known == slice)
    }
}

/// The last result of each Service.
#[derive(Debug, Default)]
pub(in crate::plan) struct Memory {
    facts: Facts,
    services: BTreeMap<ServiceName, Input>,
    pods: BTreeMap<PodName, PodHostPorts>,
    plans: Arc<BTreeMap<Owner, Arc<ServicePlan>>>,
    claims: HashMap<FrontendKey, BTreeSet<Owner>>,
    /// Keys with more than one claim.
    contested_keys: BTreeSet<FrontendKey>,
    /// Addresses of the node with a port that is claimed there, and as a node port besides.
    shared_keys: BTreeSet<FrontendKey>,
    contested: Arc<BTreeSet<(FrontendKey, Owner)>>,
    faulty: BTreeSet<Owner>,
    /// Plans made since the start, for tests of the promise that only what changed is planned.
    planned: u64,
}

impl Memory {
    /// What the Services need at present.
    pub(in crate::plan) fn plan(
        &mut self,
        cluster: &Cluster,
        local: &LocalView,
        tenants: &Tenants,
        problems: &mut Vec<Problem>,
    ) -> ServicesPlan {
        let facts = Facts::new(cluster, local);
        if self.facts != facts {
            *self = Self { facts, planned: self.planned, ..Self::default() };
        }
        let mut changed = Vec::new();
        let published = host_ports::of_node(cluster, local);
        let present = tenant_segments::present(cluster, local, tenants);
        let places = Places::of(cluster, tenants, &present);
        let of_tenants = present.iter().filter_map(|network| tenants.segment(Some(network)));
        let segments = std::iter::once(POD_SEGMENT).chain(of_tenants).collect();
        let kept = self.services(cluster, local, &places, &mut changed) + self.host_ports(&published, &mut changed);
        if kept != self.services.len() + self.pods.len() {
            self.forget_the_gone(cluster, &published, &mut changed);
        }
        self.take(changed);
        self.report(problems);
        ServicesPlan {
            owners: Arc::clone(&self.plans),
            contested: Arc::clone(&self.contested),
            segments,
            node_addresses: self.facts.node_addresses.clone(),
            ranges: super::ranges(cluster, local),
            masquerade_all: local.services.masquerade_all,
        }
    }

    /// What the plans of Services came from.
    pub(super) fn inputs(&self) -> impl Iterator<Item = &Input> {
        self.services.values()
    }

    /// How many plans were made since the start.
    pub(in crate::plan) fn planned(&self) -> u64 {
        self.planned
    }

    /// Plans the Services whose inputs differ; says how many there are in all. One walk over Services, slices and what
    /// is remembered, side by side: nothing is looked up for a Service that did not change.
    fn services(
        &mut self,
        cluster: &Cluster,
        local: &LocalView,
        places: &Places,
        changed: &mut Vec<(Owner, Option<ServicePlan>)>,
    ) -> usize {
        let (mut known, mut slices) = (Cursor::over(&self.services), cluster.slices.walk());
        let (mut count, mut inputs) = (0, Vec::new());
        for (name, service) in cluster.services.iter().filter(|(_, service)| service.proxied) {
            count += 1;
            let (known, written) = (known.find(name), slices.find(name));
            let place = places.get(name.namespace());
            let slices: Vec<Arc<SliceRecord>> = match written {
                Some(written) if known.is_some_and(|known| known.is(service, written.values(), place)) => continue,
                Some(written) => written.values().cloned().collect(),
                None => derive::slices(service, cluster, local, &self.facts),
            };
            if known.is_some_and(|known| known.is(service, slices.iter(), place)) {
                continue;
            }
            let plan = frontends::service_plan(service, &slices.iter().collect::<Vec<_>>(), place, &self.facts);
            changed.push((Owner::Service(name.clone()), Some(plan)));
            let (service, place) = (Arc::clone(service), Arc::clone(place));
            inputs.push((name.clone(), Input { service, slices, place }));
        }
        self.services.extend(inputs);
        count
    }

    /// The same for pods of this node that have ports of the node.
    fn host_ports(
        &mut self,
        published: &BTreeMap<PodName, PodHostPorts>,
        changed: &mut Vec<(Owner, Option<ServicePlan>)>,
    ) -> usize {
        for (name, ports) in published {
            if self.pods.get(name) != Some(ports) {
                changed.push((Owner::Pod(name.clone()), Some(ports.plan(&self.facts))));
                self.pods.insert(name.clone(), ports.clone());
            }
        }
        published.len()
    }

    fn forget_the_gone(
        &mut self,
        cluster: &Cluster,
        published: &BTreeMap<PodName, PodHostPorts>,
        changed: &mut Vec<(Owner, Option<ServicePlan>)>,
    ) {
        let is_proxied = |name: &ServiceName| cluster.services.get(name).is_some_and(|service| service.proxied);
        let gone = self.services.extract_if(.., |name, _| !is_proxied(name));
        changed.extend(gone.map(|(name, _)| (Owner::Service(name), None)));
        let gone = self.pods.extract_if(.., |name, _| !published.contains_key(name));
        changed.extend(gone.map(|(name, _)| (Owner::Pod(name), None)));
    }

    /// Takes changed plans in, and settles who has which key.
    fn take(&mut self, changed: Vec<(Owner, Option<ServicePlan>)>) {
        if changed.is_empty() {
            return;
        }
        let mut touched = BTreeSet::new();
        let plans = Arc::make_mut(&mut self.plans);
        for (owner, plan) in changed {
            self.planned += u64::from(plan.is_some());
            let before = match plan {
                Some(plan) => {
                    if plan.problems.is_empty() {
                        self.faulty.remove(&owner);
                    } else {
                        self.faulty.insert(owner.clone());
                    }
                    for (key, _) in &plan.frontends {
                        self.claims.entry(*key).or_default().insert(owner.clone());
                        touched.insert(*key);
                    }
                    plans.insert(owner.clone(), Arc::new(plan))
                }
                None => {
                    self.faulty.remove(&owner);
                    plans.remove(&owner)
                }
            };
            let now = plans.get(&owner);
            for (key, _) in before.iter().flat_map(|before| &before.frontends) {
                if now.is_some_and(|now| now.frontends.iter().any(|(known, _)| known == key)) {
                    continue;
                }
                touched.insert(*key);
                if let Some(claims) = self.claims.get_mut(key) {
                    claims.remove(&owner);
                    if claims.is_empty() {
                        self.claims.remove(key);
                    }
                }
            }
        }
        self.settle_claims(&touched);
    }

    fn settle_claims(&mut self, touched: &BTreeSet<FrontendKey>) {
        let mut differs = false;
        for key in touched {
            let several = self.claims.get(key).is_some_and(|claims| claims.len() > 1);
            let was = if several { !self.contested_keys.insert(*key) } else { self.contested_keys.remove(key) };
            differs |= several || was;
        }
        let at_node: BTreeSet<FrontendKey> = touched.iter().flat_map(|key| self.at_node(*key)).collect();
        for key in at_node {
            let is_shared = self.claims.contains_key(&key) && self.node_port_holder(key).is_some();
            let was = if is_shared { !self.shared_keys.insert(key) } else { self.shared_keys.remove(&key) };
            differs |= is_shared || was;
        }
        if differs {
            let keys: BTreeSet<FrontendKey> = self.contested_keys.union(&self.shared_keys).copied().collect();
            let losers = |key: &FrontendKey| {
                let winner = self.winner(*key).cloned();
                let claims = self.claims.get(key).into_iter().flatten().cloned();
                let key = *key;
                claims
                    .filter(move |owner| Some(owner) != winner.as_ref())
                    .map(move |owner| (key, owner))
                    .collect::<Vec<_>>()
            };
            self.contested = Arc::new(keys.iter().flat_map(losers).collect());
        }
    }

    /// The addresses of the node that a key stands for, each as a key of its own.
    fn at_node(&self, key: FrontendKey) -> Vec<FrontendKey> {
        match key {
            FrontendKey::Address { address, .. } => {
                if self.facts.node_addresses.contains(&address) {
                    vec![key]
                } else {
                    Vec::new()
                }
            }
            FrontendKey::NodePort { ipv4, protocol, port } => {
                let own = self.facts.node_addresses.iter().filter(|address| address.is_ipv4() == ipv4);
                own.map(|address| FrontendKey::Address { address: *address, protocol, port }).collect()
            }
        }
    }

    /// Who has the node port with the number of an address's port.
    fn node_port_holder(&self, key: FrontendKey) -> Option<&Owner> {
        let FrontendKey::Address { address, protocol, port } = key else { return None };
        self.claims.get(&FrontendKey::NodePort { ipv4: address.is_ipv4(), protocol, port })?.first()
    }

    /// Who has a key: as with kube-proxy the addresses of Services come first, then node ports, then pods' host ports.
    fn winner(&self, key: FrontendKey) -> Option<&Owner> {
        let first = self.claims.get(&key).and_then(BTreeSet::first);
        match first {
            Some(Owner::Pod(_)) if self.shared_keys.contains(&key) => self.node_port_holder(key),
            first => first,
        }
    }

    fn report(&self, problems: &mut Vec<Problem>) {
        for owner in &self.faulty {
            let messages = self.plans.get(owner).into_iter().flat_map(|plan| &plan.problems);
            problems.extend(messages.map(|message| Problem::new(message.clone()).of(&owner.key()).kind("not_served")));
        }
        for (key, owner) in self.contested.iter() {
            let first = self.winner(*key).map_or_else(String::new, |owner| owner.key().to_string());
            problems.push(
                Problem::new(format!("{key} belongs to {first} already")).of(&owner.key()).kind("address_contested"),
            );
        }
        for key in &self.shared_keys {
            let (Some(winner), Some(loser)) = (self.winner(*key), self.node_port_holder(*key)) else { continue };
            if winner != loser {
                let message = format!("its node port does not serve at {key}, which belongs to {}", winner.key());
                problems.push(Problem::new(message).of(&loser.key()).kind("address_contested"));
            }
        }
    }
}

impl std::fmt::Display for FrontendKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let protocol = |number: u8| super::endpoints::protocol_name(number);
        match self {
            FrontendKey::Address { address, protocol: number, port } => {
                write!(formatter, "{} {}", std::net::SocketAddr::new(*address, *port), protocol(*number))
            }
            FrontendKey::NodePort { ipv4, protocol: number, port } => {
                write!(formatter, "node port {port} {} IPv{}", protocol(*number), if *ipv4 { 4 } else { 6 })
            }
        }
    }
}
