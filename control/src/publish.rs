//! The last step: tables into force, and the word on how that stands.
//!
//! One value, on the control thread. A plan that cannot be compiled changes nothing: the last good tables stay, and
//! the error is part of the status until a plan compiles.

use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_engine::tables::{ChangeSet, Publisher, Snapshot};

use crate::compile::{CompileError, compile};
use crate::plan::NodePlan;

/// Where tables are put into force: a [`Publisher`] alone, or a whole switch.
pub trait Tables: Send {
    /// The tables in force.
    fn current(&self) -> Arc<Snapshot>;
    /// Puts tables into force as the next generation and says what they change.
    fn publish(&mut self, snapshot: Snapshot) -> ChangeSet;
    /// Frees tables that no worker uses any more.
    fn collect(&mut self);
    /// The lowest generation a worker uses.
    fn generation_in_use(&self) -> u64;
    /// Tables kept because a worker may still read them.
    fn retired(&self) -> usize;
}

impl Tables for Publisher {
    fn current(&self) -> Arc<Snapshot> {
        Publisher::current(self)
    }

    fn publish(&mut self, snapshot: Snapshot) -> ChangeSet {
        Publisher::publish(self, snapshot)
    }

    fn collect(&mut self) {
        Publisher::collect(self);
    }

    fn generation_in_use(&self) -> u64 {
        Publisher::generation_in_use(self)
    }

    fn retired(&self) -> usize {
        Publisher::retired(self)
    }
}

/// What is in force, and how it got there.
pub struct PublishState {
    publisher: Box<dyn Tables>,
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

impl Default for PublishState {
    fn default() -> Self {
        Self::to(Box::new(Publisher::new()))
    }
}

impl std::fmt::Debug for PublishState {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("PublishState").field("published_at", &self.published_at).finish_non_exhaustive()
    }
}

impl PublishState {
    /// Publishes to `publisher`; nothing is in force yet.
    #[must_use]
    pub fn to(publisher: Box<dyn Tables>) -> Self {
        Self { publisher, plan: None, published_at: None, last_error: None }
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
