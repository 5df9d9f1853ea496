//! What is due later: the steps of kubelets and controllers, and the ends of faults.

use std::collections::BTreeMap;

use crate::churn;
use crate::faults;
use crate::invariants::Violation;
use crate::world::World;

/// Something to be done at its tick.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    /// The runtime calls the plugin for a pod.
    Add(u32),
    /// The kubelet writes a pod's status.
    Status(u32),
    /// The runtime calls the plugin for the end of a pod.
    Delete(u32),
    /// A controller writes the endpoints of all Services.
    Endpoints,
    /// The end of a fault.
    End(faults::Ending),
}

/// Actions by tick, in the order in which they were planned.
#[derive(Debug, Default)]
pub(crate) struct Actions {
    waiting: BTreeMap<(usize, u64), Action>,
    planned: u64,
}

impl Actions {
    pub(crate) fn plan(&mut self, at: usize, action: Action) {
        self.planned += 1;
        self.waiting.insert((at, self.planned), action);
    }

    fn due(&mut self, now: usize) -> Option<Action> {
        let ((at, _), _) = self.waiting.first_key_value()?;
        if *at > now { None } else { self.waiting.pop_first().map(|(_, action)| action) }
    }

    /// Takes out the ends of faults that are yet to come.
    pub(crate) fn endings(&mut self) -> Vec<faults::Ending> {
        let ends = |action: &Action| matches!(action, Action::End(_));
        let keys: Vec<_> = self.waiting.iter().filter(|(_, action)| ends(action)).map(|(key, _)| *key).collect();
        let taken = keys.iter().filter_map(|key| self.waiting.remove(key));
        taken.filter_map(|action| if let Action::End(ending) = action { Some(ending) } else { None }).collect()
    }
}

impl World {
    /// Does what is due.
    pub(crate) fn act(&mut self) -> Result<(), Violation> {
        while let Some(action) = self.actions.due(self.now) {
            match action {
                Action::Add(pod) => churn::add(self, pod),
                Action::Status(pod) => churn::write_status(self, pod),
                Action::Delete(pod) => churn::delete(self, pod),
                Action::Endpoints => churn::write_endpoints(self),
                Action::End(ending) => faults::end(self, ending),
            }
        }
        Ok(())
    }

    /// Plans an action so many ticks from now, up to a bound.
    pub(crate) fn later(&mut self, bound: usize, action: Action) {
        let at = self.now + 1 + self.random.below(bound);
        self.actions.plan(at, action);
    }
}
