//! What the agent's threads share: the switch, and how the configuration stands.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::channel::Sender;
use millrace_engine::packet::PortIndex;
use millrace_engine::switch::Switch;
use millrace_engine::tables::{ChangeSet, Snapshot};

use super::event_writer::Events;
use super::takeover::Inherited;
use crate::api::model;
use crate::cluster::{Cluster, NodeName, PoolName};
use crate::observe::IP_POOL;
use crate::plan::{LocalView, NodePlan};
use crate::problem::Problem;
use crate::publish::Tables;
use crate::receipts::Receipts;
use crate::reconcile::{Input, Reconciler, Settled};
use crate::store::ObjectKey;

/// The switch, one caller at a time. Calls are short: a publish, an attachment, a step of a list.
#[derive(Clone, Debug)]
pub(crate) struct SharedSwitch(Arc<Mutex<Switch>>);

impl SharedSwitch {
    /// Shares a switch.
    pub(crate) fn new(switch: Switch) -> Self {
        Self(Arc::new(Mutex::new(switch)))
    }

    /// Runs `act` on it, when nobody else does.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Switch) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Tables for SharedSwitch {
    fn current(&self) -> Arc<Snapshot> {
        self.with(|switch| switch.tables())
    }

    fn publish(&mut self, snapshot: Snapshot) -> ChangeSet {
        self.with(|switch| switch.publish(snapshot))
    }

    fn collect(&mut self) {
        self.with(Switch::collect_tables);
    }

    fn generation_in_use(&self) -> u64 {
        self.with(|switch| switch.generation_in_use())
    }

    fn retired(&self) -> usize {
        self.with(|switch| switch.retired_tables())
    }
}

/// How the configuration stood when it was last settled.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing {
    /// The objects; `None` until the store has told them all.
    pub(super) cluster: Option<Arc<Cluster>>,
    /// What is plugged in here, as the plan saw it.
    pub(super) local: Option<Arc<LocalView>>,
    /// The plan in force.
    pub(super) plan: Option<Arc<NodePlan>>,
    /// What is wrong with the objects.
    pub(super) problems: Arc<Vec<Problem>>,
    /// Why the newest plan is not in force.
    pub(super) refused: Option<String>,
    /// When tables were last published.
    pub(super) published: Option<Instant>,
    /// Whether uplinks were looked at once: before, the pods' MTU is not known.
    pub(super) uplinks_known: bool,
}

/// What all threads know.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) node: NodeName,
    pub(super) switch: SharedSwitch,
    pub(super) inputs: Sender<Input>,
    pub(super) started: Instant,
    /// Which versions of objects are in force.
    pub(super) receipts: Arc<Receipts>,
    /// Connections of the kernel that go on in the switch.
    pub(super) adopted: AtomicU64,
    standing: Mutex<Standing>,
    changed: Condvar,
    /// Problems that are not of objects: an unusable record, a lost attachment.
    reports: Mutex<Vec<model::Problem>>,
    /// Problems of the uplinks, replaced at each look.
    uplink_problems: Mutex<Vec<model::Problem>>,
    /// Why uplinks that nobody chose a kind for have theirs.
    uplinks_chosen: Mutex<BTreeMap<PortIndex, String>>,
    /// Pools that had no address for a pod, with the moment and the words.
    exhausted: Mutex<BTreeMap<PoolName, (Instant, String)>>,
    /// What became of Events.
    pub(super) events: Events,
    /// Queues of the agent that this one takes over from.
    pub(super) inherited: Inherited,
    /// Whether another agent is taking over: then interfaces stay as they are.
    pub(super) handing_over: AtomicBool,
    /// Microseconds in which nobody forwarded when this agent took over, for each worker.
    pub(super) takeover_gaps: OnceLock<Vec<u64>>,
}

/// A pool without an address is a problem for so long after the last pod that wanted one: runtimes ask again within
/// minutes.
const EXHAUSTED: Duration = Duration::from_secs(300);

impl Shared {
    pub(super) fn new(
        node: NodeName,
        switch: SharedSwitch,
        inputs: Sender<Input>,
        problem: Option<model::Problem>,
    ) -> Self {
        Self {
            node,
            switch,
            inputs,
            started: Instant::now(),
            receipts: Arc::default(),
            adopted: AtomicU64::new(0),
            standing: Mutex::default(),
            changed: Condvar::new(),
            reports: Mutex::new(problem.into_iter().collect()),
            uplink_problems: Mutex::default(),
            uplinks_chosen: Mutex::default(),
            exhausted: Mutex::default(),
            events: Events::default(),
            inherited: Inherited::default(),
            handing_over: AtomicBool::new(false),
            takeover_gaps: OnceLock::new(),
        }
    }

    /// The same with queues of the agent before.
    pub(super) fn inheriting(self, inherited: Inherited) -> Self {
        Self { inherited, ..self }
    }

    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it stands now.
    pub(super) fn standing(&self) -> Standing {
        self.lock().clone()
    }

    /// Takes the outcome of a settling up.
    pub(super) fn settled(&self, reconciler: &Reconciler, settled: &Settled) {
        let mut standing = self.lock();
        if settled.plan.is_some() {
            if standing.cluster.as_deref() != Some(reconciler.cluster()) {
                standing.cluster = Some(Arc::new(reconciler.cluster().clone()));
            }
            standing.local = Some(Arc::new(reconciler.local().clone()));
        }
        standing.plan.clone_from(&settled.plan);
        standing.problems = Arc::clone(&settled.problems);
        standing.refused = settled.error.as_ref().map(ToString::to_string);
        if settled.changes.is_some() {
            standing.published = Some(Instant::now());
        }
        self.changed.notify_all();
    }

    /// Notes that the uplinks were looked at.
    pub(super) fn uplinks_looked_at(&self, problems: Vec<model::Problem>) {
        *self.uplink_problems.lock().unwrap_or_else(PoisonError::into_inner) = problems;
        self.lock().uplinks_known = true;
        self.changed.notify_all();
    }

    /// Notes why an uplink has the kind it has; nothing if its object says so, or it is given back.
    pub(super) fn uplink_chosen(&self, port: PortIndex, why: Option<String>) {
        let mut chosen = self.uplinks_chosen.lock().unwrap_or_else(PoisonError::into_inner);
        match why {
            Some(why) => drop(chosen.insert(port, why)),
            None => drop(chosen.remove(&port)),
        }
    }

    /// Why an uplink has the kind it has, where nobody chose it.
    pub(super) fn why_chosen(&self, port: PortIndex) -> Option<String> {
        self.uplinks_chosen.lock().unwrap_or_else(PoisonError::into_inner).get(&port).cloned()
    }

    /// Notes a problem for `show status`.
    pub(super) fn report(&self, message: String) {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        let problem = model::Problem::from(message);
        if reports.len() < 100 && !reports.contains(&problem) {
            reports.push(problem);
        }
    }

    /// Takes back what [`report`](Self::report) said and is true no more.
    pub(super) fn retract(&self, message: &str) {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.retain(|problem| problem.message != message);
    }

    /// Notes that these pools had no address for a pod.
    pub(super) fn exhausted(&self, pools: &[PoolName], said: &str) {
        let mut exhausted = self.exhausted.lock().unwrap_or_else(PoisonError::into_inner);
        pools.iter().for_each(|pool| drop(exhausted.insert(pool.clone(), (Instant::now(), said.to_owned()))));
    }

    /// Notes that a pod got addresses: what was said of their pools is over.
    pub(super) fn gave(&self, addresses: &[IpAddr], cluster: &Cluster) {
        let gave = |pool: &PoolName| {
            let pool = cluster.pools.get(pool);
            pool.is_none_or(|pool| addresses.iter().any(|address| pool.cidr().has(*address)))
        };
        self.exhausted.lock().unwrap_or_else(PoisonError::into_inner).retain(|pool, _| !gave(pool));
    }

    fn exhausted_pools(&self) -> Vec<Problem> {
        let mut exhausted = self.exhausted.lock().unwrap_or_else(PoisonError::into_inner);
        exhausted.retain(|_, (at, _)| at.elapsed() < EXHAUSTED);
        let problem = |(pool, (_, said)): (&PoolName, &(Instant, String))| {
            let key = ObjectKey::cluster_scoped(IP_POOL, pool.as_str());
            Problem::new(said.clone()).of(&key).kind("address_pool_exhausted")
        };
        exhausted.iter().map(problem).collect()
    }

    /// All problems, as the API tells them.
    pub(super) fn problems(&self) -> Vec<model::Problem> {
        let (of_objects, of_node) = self.problems_apart();
        of_objects.iter().map(Into::into).chain(of_node).collect()
    }

    /// All problems: those of the configuration, and those of the node.
    pub(super) fn problems_apart(&self) -> (Vec<Problem>, Vec<model::Problem>) {
        let standing = self.standing();
        let mut of_objects = standing.problems.to_vec();
        of_objects.extend(self.exhausted_pools());
        let mut of_node: Vec<model::Problem> = standing.refused.iter().cloned().map(model::Problem::from).collect();
        of_node.extend(self.uplink_problems.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
        of_node.extend(self.reports.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
        (of_objects, of_node)
    }

    /// Waits until `met` holds; false if it did not within `limit`.
    pub(super) fn wait_until(&self, limit: Duration, met: impl Fn(&Standing) -> bool) -> bool {
        let (standing, outcome) = self
            .changed
            .wait_timeout_while(self.lock(), limit, |standing| !met(standing))
            .unwrap_or_else(PoisonError::into_inner);
        drop(standing);
        !outcome.timed_out()
    }

    /// Waits until every worker decides by tables that have this port, or no longer have it.
    pub(super) fn wait_for_port(&self, port: PortIndex, present: bool, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let planned = self.wait_until(limit, |standing| {
            standing.plan.as_ref().is_some_and(|plan| plan.ports.contains_key(&port) == present)
        });
        // Published already: the workers were woken and take the tables up within one turn.
        while planned && Instant::now() < until {
            let (current, in_use) = self.switch.with(|switch| (switch.tables().generation, switch.generation_in_use()));
            if in_use >= current {
                return true;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        false
    }
}
