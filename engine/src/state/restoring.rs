//! State that outlives a process: what the former one left in a directory, and where this one keeps its own.

use std::io;
use std::path::Path;

use super::connections::{self, Restored};
use super::kept_memory::KeptMemory;
use super::{Affinities, ConnectionTimeouts, Connections, EndpointLoads, State, affinity};
use crate::clock::Time;
use crate::flow_cache::HashKey;

/// How a switch came by its state, and whether the next one will.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Connections that the former process left.
    pub connections: Restored,
    /// Clients whose endpoint it remembered.
    pub affinities: usize,
    /// Why connections will end with this process; `None` if they will not, or were not to be kept.
    pub problem: Option<String>,
}

/// What a switch's state is made for.
#[derive(Clone, Debug)]
pub(crate) struct StateOptions {
    /// Connections there is room for.
    pub(crate) connections: usize,
    /// How long they may be silent.
    pub(crate) timeouts: ConnectionTimeouts,
    /// Workers whose flow caches write back.
    pub(crate) workers: usize,
    /// Key of the flow hash.
    pub(crate) hash_key: HashKey,
}

impl StateOptions {
    /// Connections and affinities, in files of `place` or in memory that ends with the process.
    pub(super) fn build(&self, place: Option<&Path>) -> io::Result<(Connections, Affinities)> {
        let memory = |content, items| match place {
            Some(directory) => KeptMemory::in_file(directory, content, items),
            None => KeptMemory::anonymous(content, items),
        };
        let entries = |entries| memory(connections::CONTENT, entries);
        let connections = Connections::with_memory(self.connections, self.workers, self.hash_key, entries)?;
        let affinities = Affinities::with_memory(|items| memory(affinity::CONTENT, items))?;
        Ok((connections.with_timeouts(self.timeouts), affinities))
    }
}

impl State {
    /// Nothing learned yet.
    ///
    /// # Errors
    /// The kernel refused memory or a descriptor.
    pub(crate) fn with(options: &StateOptions) -> io::Result<State> {
        let (connections, affinities) = options.build(None)?;
        State::around(connections, affinities, options.hash_key)
    }

    /// What a former process left in `directory`, kept there for the next one. Nothing is lost where that cannot be: what
    /// was left is taken in all the same, and [`Kept::problem`] says why the next process will find nothing.
    ///
    /// # Errors
    /// The kernel refused memory or a descriptor.
    pub(crate) fn kept_in(directory: &Path, options: &StateOptions, now: Time) -> io::Result<(State, Kept)> {
        let mut kept = Kept::default();
        let left = [connections::CONTENT, affinity::CONTENT].map(|content| KeptMemory::left_in(directory, content));
        let [former_connections, former_affinities] = left.map(|left| {
            left.unwrap_or_else(|error| {
                kept.problem.get_or_insert_with(|| says(directory, &error));
                None
            })
        });
        let place = kept.problem.is_none().then_some(directory);
        let (connections, affinities) = match options.build(place) {
            Err(error) if place.is_some() => {
                kept.problem = Some(says(directory, &error));
                options.build(None)?
            }
            built => built?,
        };
        let loads = EndpointLoads::default();
        if let Some(former) = former_connections {
            kept.connections = connections.restore(&former, |service, endpoint| loads.restored(service, endpoint));
        }
        if let Some(former) = former_affinities {
            kept.affinities = affinities.restore(&former, now);
        }
        if kept.problem.is_none() {
            let mut contents = [connections::CONTENT, affinity::CONTENT].into_iter();
            let taken = contents.try_for_each(|content| KeptMemory::take_place(directory, content));
            kept.problem = taken.err().map(|error| says(directory, &error));
        }
        let state = State { endpoint_loads: loads, ..State::around(connections, affinities, options.hash_key)? };
        Ok((state, kept))
    }
}

pub(super) fn says(directory: &Path, error: &io::Error) -> String {
    format!("connections will end with this process: they cannot be kept in {}: {error}", directory.display())
}
