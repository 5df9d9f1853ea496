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
    fn build(&self, place: Option<&Path>) -> io::Result<(Connections, Affinities)> {
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
        let mut has_no_room = false;
        let (connections, affinities) = match options.build(place) {
            Err(error) if place.is_some() => {
                kept.problem = Some(says(directory, &error));
                has_no_room = true;
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
        if has_no_room {
            // What ends with this process must not come back with a later one.
            let _ = forget(directory);
        }
        let state = State { endpoint_loads: loads, ..State::around(connections, affinities, options.hash_key)? };
        Ok((state, kept))
    }
}

/// Removes what a switch kept in `directory`, and the directory if nothing else is in it; whether there was anything.
///
/// # Errors
/// What the kernel said to unlink.
pub fn remove_kept(directory: &Path) -> io::Result<bool> {
    let removed = forget(directory)?;
    // One that is not empty, or not there, stays.
    let _ = std::fs::remove_dir(directory);
    Ok(removed)
}

fn forget(directory: &Path) -> io::Result<bool> {
    let removed = [connections::CONTENT, affinity::CONTENT].map(|content| KeptMemory::remove(directory, content));
    removed.into_iter().try_fold(false, |any, removed| Ok(any | removed?))
}

fn says(directory: &Path, error: &io::Error) -> String {
    format!("connections will end with this process: they cannot be kept in {}: {error}", directory.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, ManualClock};

    /// Connections that end with a process must not come back with the one after it.
    #[test]
    fn what_cannot_be_kept_any_more_is_not_found_by_a_later_process() {
        let place = std::path::PathBuf::from(format!("/dev/shm/millrace-restoring-{}", std::process::id()));
        std::fs::create_dir_all(&place).expect("a directory on /dev/shm");
        let options = StateOptions {
            connections: 1024,
            timeouts: ConnectionTimeouts::default(),
            workers: 1,
            hash_key: HashKey::from_seed(1),
        };
        let now = Clock::Manual(ManualClock::new()).now();
        let start = || State::kept_in(&place, &options, now).expect("memory").1;
        assert_eq!(start(), Kept::default());
        let files = || std::fs::read_dir(&place).expect("read").count();
        assert_eq!(files(), 2, "connections and affinities");
        // A directory in the way of the new file.
        let in_the_way = place.join(format!("{}.new", connections::CONTENT.name));
        std::fs::create_dir(&in_the_way).expect("directory");
        let problem = start().problem.expect("a problem");
        assert!(problem.starts_with("connections will end with this process"), "{problem}");
        std::fs::remove_dir(&in_the_way).expect("directory");
        assert_eq!(files(), 0, "nothing to come back");
        assert_eq!(start(), Kept::default());
        assert!(remove_kept(&place).expect("removed") && !place.exists());
        assert!(!remove_kept(&place).expect("nothing to remove"));
    }
}
