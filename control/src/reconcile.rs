//! The loop that keeps tables and objects in step.
//!
//! Inputs only change what is known; [`Reconciler::settle`] then computes everything from what is known. Inputs that
//! arrive together are settled together, so that a burst of a thousand objects costs one publish. Before the store
//! has told all objects nothing is published: tables of half a cluster would cut live connections after a restart.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver};
use millrace_engine::packet::PortIndex;
use millrace_engine::tables::ChangeSet;

use crate::cluster::{Cluster, NodeName};
use crate::compile::CompileError;
use crate::observe::Observed;
use crate::plan::{
    AttachedPod, LocalHost, LocalPort, LocalUplink, LocalView, NodePlan, OutsideView, Planned, Planner, UnderlayPath,
};
use crate::problem::Problem;
use crate::publish::PublishState;
use crate::receipts::{Arrival, Arrivals};
use crate::store::Event;

/// Inputs taken in before tables are computed, at most: bounds how long a change waits behind a stream of others.
pub const BATCH: usize = 4096;

/// How often a loop without inputs says that it lives.
const BEAT: Duration = Duration::from_secs(5);

/// Something that changed. Facts of this node come as the whole of their sort.
#[derive(Clone, Debug)]
pub enum Input {
    /// From the object store.
    Store(Event),
    /// All pods that are plugged in.
    Pods(BTreeMap<PortIndex, AttachedPod>),
    /// The host's own port.
    Host(Option<LocalHost>),
    /// All uplinks in use.
    Uplinks(BTreeMap<PortIndex, LocalUplink>),
    /// All ports of bridges that are plugged in.
    BridgePorts(BTreeMap<PortIndex, LocalPort>),
    /// All known paths to other nodes.
    Underlay(BTreeMap<IpAddr, UnderlayPath>),
    /// The host's ways to the outside.
    Outside(OutsideView),
    /// End the loop.
    Stop,
}

/// What came of settling.
#[derive(Clone, Debug)]
pub struct Settled {
    /// What the publish changed; `None` if the tables in force are right already, or nothing may be published yet.
    pub changes: Option<ChangeSet>,
    /// Why nothing was published, if the plan was refused.
    pub error: Option<CompileError>,
    /// The plan in force.
    pub plan: Option<Arc<NodePlan>>,
    /// Everything that is wrong at present, sorted.
    pub problems: Arc<Vec<Problem>>,
    /// What came of objects with a receipt and is in the tables in force now, or refused.
    pub arrived: Vec<Arrival>,
    /// Time since the first input of the batch was taken in; zero where nobody waited for one.
    pub took: Duration,
}

/// The state of the loop.
#[derive(Debug)]
pub struct Reconciler {
    observed: Observed,
    local: LocalView,
    planner: Planner,
    publish: PublishState,
    problems: Arc<Vec<Problem>>,
    arrivals: Arrivals,
}

impl Reconciler {
    /// A loop that knows nothing yet; `local` holds what the configuration fixes.
    #[must_use]
    pub fn new(local: LocalView) -> Self {
        Self {
            observed: Observed::default(),
            local,
            planner: Planner::default(),
            publish: PublishState::default(),
            problems: Arc::default(),
            arrivals: Arrivals::default(),
        }
    }

    /// As [`Reconciler::new`], putting tables into force at `tables`.
    #[must_use]
    pub fn publishing_to(local: LocalView, tables: Box<dyn crate::publish::Tables>) -> Self {
        Self { publish: PublishState::to(tables), ..Self::new(local) }
    }

    /// Takes an input in; false if it says to stop.
    pub fn take(&mut self, input: Input) -> bool {
        match input {
            Input::Store(event) => self.observe(event),
            Input::Pods(pods) => self.local.pods = pods,
            Input::Host(host) => self.local.host = host,
            Input::Uplinks(uplinks) => self.local.uplinks = uplinks,
            Input::BridgePorts(ports) => self.local.bridge_ports = ports,
            Input::Underlay(underlay) => self.local.underlay = underlay,
            Input::Outside(outside) => self.local.outside = outside,
            Input::Stop => return false,
        }
        true
    }

    fn observe(&mut self, event: Event) {
        self.arrivals.note(&event);
        self.observed.take(event);
    }

    /// Brings the tables into step with everything taken in.
    pub fn settle(&mut self, now: Instant) -> Settled {
        let synced = self.observed.is_synced();
        let planned = if synced {
            let touched = self.observed.take_touched();
            self.planner.plan(self.observed.cluster(), &self.local, &touched)
        } else {
            Planned::default()
        };
        let mut problems = self.observed.problems();
        problems.extend(planned.problems.into_iter().map(|problem| self.observed.placed(problem)));
        problems.sort_unstable();
        if *self.problems != problems {
            self.problems = Arc::new(problems);
        }
        let published = if synced { self.publish.publish(planned.plan, now) } else { Ok(None) };
        let (changes, error) = match published {
            Ok(changes) => (changes, None),
            Err(error) => (None, Some(error)),
        };
        let arrived = if synced && error.is_none() { self.arrivals.take() } else { Vec::new() };
        let plan = self.publish.plan().cloned();
        Settled { changes, error, plan, problems: Arc::clone(&self.problems), arrived, took: Duration::ZERO }
    }

    /// Runs until [`Input::Stop`] or until no sender of inputs is left. `settled` is called after each batch, `beat` then and
    /// every few seconds.
    pub fn run(
        &mut self,
        events: &Receiver<Event>,
        inputs: &Receiver<Input>,
        mut settled: impl FnMut(&Reconciler, &Settled),
        mut beat: impl FnMut(&Reconciler),
    ) {
        // A watch that ended leaves the last known objects in force.
        let ended = channel::never();
        let mut events = events;
        let mut goes_on = true;
        while goes_on {
            beat(self);
            channel::select! {
                recv(events) -> event => match event {
                    Ok(event) => self.observe(event),
                    Err(_) => events = &ended,
                },
                recv(inputs) -> input => match input {
                    Ok(input) => goes_on = self.take(input),
                    Err(_) => return,
                },
                default(BEAT) => continue,
            }
            let begin = Instant::now();
            events.try_iter().take(BATCH).for_each(|event| self.observe(event));
            for input in inputs.try_iter().take(BATCH) {
                goes_on &= self.take(input);
            }
            let outcome = self.settle(Instant::now());
            settled(self, &Settled { took: begin.elapsed(), ..outcome });
        }
    }

    /// The cluster as it is known.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        self.observed.cluster()
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> &NodeName {
        &self.local.node
    }

    /// What is plugged in here.
    #[must_use]
    pub fn local(&self) -> &LocalView {
        &self.local
    }

    /// What is in force.
    #[must_use]
    pub fn publish_state(&self) -> &PublishState {
        &self.publish
    }

    /// The same, to subscribe workers.
    pub fn publish_state_mut(&mut self) -> &mut PublishState {
        &mut self.publish
    }
}

/// A channel of inputs. Senders wait when the loop is far behind.
#[must_use]
pub fn inputs() -> (channel::Sender<Input>, Receiver<Input>) {
    channel::bounded(BATCH)
}
