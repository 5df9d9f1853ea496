//! Packets explained by a saved state.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_engine::clock::Time;
use millrace_engine::flow_cache::HashKey;
use millrace_engine::state::State;
use millrace_engine::tables::Snapshot;

use super::SavedState;
use crate::api::InspectFailure;
use crate::api::model::{TraceReport, TraceRequest};
use crate::compile::CompileError;
use crate::explain;
use crate::observe::KINDS;
use crate::reconcile::{Input, Reconciler};
use crate::store::{DirectoryStore, Event, ObjectStore, StoreError};

/// How long the objects may take to be told.
const OBJECTS: Duration = Duration::from_secs(30);
/// Any number, but always the same.
const SEED: u64 = 0x6d69_6c6c;

/// Why a bundle cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SupportError {
    /// A file cannot be read.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] std::io::Error),
    /// The state is no such document.
    #[error("{} is no state of this version", .0.display())]
    Decode(PathBuf, #[source] serde_json::Error),
    /// A value of the state is none of its sort.
    #[error("the state holds {value:?}, which is not {what}")]
    Value {
        /// The value.
        value: String,
        /// What it should be.
        what: &'static str,
    },
    /// The objects cannot be read.
    #[error("cannot read the bundle's objects")]
    Objects(#[from] StoreError),
    /// They were not told in time.
    #[error("the bundle's objects were not all told within {} s", OBJECTS.as_secs())]
    ObjectsLate,
    /// The plan contradicts itself.
    #[error("the bundle's objects cannot be compiled")]
    Compile(#[from] CompileError),
    /// No memory for the connections.
    #[error("no memory for the connections")]
    Memory(#[source] std::io::Error),
}

/// A node as a bundle has it.
pub struct Explainer {
    tables: Arc<Snapshot>,
    state: State,
    now: Time,
}

impl std::fmt::Debug for Explainer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Explainer").field("generation", &self.tables.generation).finish_non_exhaustive()
    }
}

impl Explainer {
    /// Reads the bundle in `directory` and builds tables and connections from it.
    ///
    /// # Errors
    /// See [`SupportError`].
    pub fn open(directory: &Path) -> Result<Self, SupportError> {
        let path = directory.join("state.json");
        let text = std::fs::read(&path).map_err(|error| SupportError::Read(path.clone(), error))?;
        let saved: SavedState = serde_json::from_slice(&text).map_err(|error| SupportError::Decode(path, error))?;
        let mut reconciler = Reconciler::new(saved.local()?);
        let watch = DirectoryStore::open(&directory.join("objects"))?.watch(&KINDS)?;
        loop {
            let event = watch.events.recv_timeout(OBJECTS).map_err(|_| SupportError::ObjectsLate)?;
            let synced = event == Event::Synced;
            reconciler.take(Input::Store(event));
            if synced {
                break;
            }
        }
        if let Some(error) = reconciler.settle(Instant::now()).error {
            return Err(error.into());
        }
        let mut tables = (*reconciler.publish_state().tables()).clone();
        tables.generation = saved.generation;
        let state = State::new(saved.connection_capacity, 1, HashKey::from_seed(SEED)).map_err(SupportError::Memory)?;
        saved.restore(&state.connections)?;
        Ok(Self { tables: Arc::new(tables), state, now: Time::from_nanoseconds(saved.clock_nanoseconds) })
    }

    /// Follows an imagined packet, as the agent would have at that moment.
    ///
    /// # Errors
    /// As the agent's: an unknown sender.
    pub fn imagined(&self, request: &TraceRequest) -> Result<TraceReport, InspectFailure> {
        explain::imagined(&self.tables, &self.state, request, self.now)
    }

    /// Follows a frame that comes in by the port of this name.
    ///
    /// # Errors
    /// As the agent's: an unknown port.
    pub fn frame(&self, port: &str, bytes: &[u8]) -> Result<TraceReport, InspectFailure> {
        explain::frame(&self.tables, &self.state, port, bytes, self.now)
    }
}
