//! The last step: tables into force, and the word on how that stands.
//!
//! One value, on the control thread. A plan that cannot be compiled changes nothing: the last good tables stay, and
//! the error is part of the status until a plan compiles.

use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_engine::tables::{ChangeSet, Publisher, Snapshot, Subscription};

use crate::compile::{CompileError, compile};
use crate::plan::NodePlan;

/// What is in force, and how it got there.
#[derive(Debug, Default)]
pub struct PublishState {
    publisher: Publisher,
    plan: Option<Arc<NodePlan>>,
    published_at: Option<Instant>,
    last_error: Option<CompileError>,
}

/// How publishing stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishStatus {
    /// Generation in force; 0 before the first publish.
    pub generation: u64,
    /// Lowest generation that a worker still uses.
    pub generation_in_use: u64,
    /// How long the generation has been in force.
    pub age: Option<Duration>,
    /// Why the newest plan is not in force, if so.
    pub last_error: Option<CompileError>,
    /// Tables kept because a worker may still read them.
    pub retired: usize,
}

impl PublishState {
    /// A worker's side.
    pub fn subscribe(&mut self) -> Subscription {
        self.publisher.subscribe()
    }

    /// Puts `plan` into force. `None` if it is in force already.
    pub fn publish(&mut self, plan: NodePlan, now: Instant) -> Result<Option<ChangeSet>, CompileError> {
        self.publisher.collect();
        if self.plan.as_deref() == Some(&plan) {
            self.last_error = None;
            return Ok(None);
        }
        let current = self.publisher.current();
        let previous = self.plan.as_deref().map(|before| (before, current.as_ref()));
        match compile(&plan, previous) {
            Ok(snapshot) => {
                let changes = self.publisher.publish(snapshot);
                self.plan = Some(Arc::new(plan));
                self.published_at = Some(now);
                self.last_error = None;
                Ok(Some(changes))
            }
            Err(error) => {
                self.last_error = Some(error.clone());
                Err(error)
            }
        }
    }

    /// The plan in force.
    #[must_use]
    pub fn plan(&self) -> Option<&Arc<NodePlan>> {
        self.plan.as_ref()
    }

    /// The tables in force.
    #[must_use]
    pub fn tables(&self) -> Arc<Snapshot> {
        self.publisher.current()
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self, now: Instant) -> PublishStatus {
        PublishStatus {
            generation: self.publisher.current().generation,
            generation_in_use: self.publisher.generation_in_use(),
            age: self.published_at.map(|at| now.saturating_duration_since(at)),
            last_error: self.last_error.clone(),
            retired: self.publisher.retired(),
        }
    }
}
