//! State that passes from a process that runs to the next one, without a moment in which it belongs to neither.
//!
//! ```text
//!  former:    forwards, notes changes ............. stands still | ends, or goes on
//!  successor: reads everything (follow) ......... reads changes (catch_up) | forwards | takes the place (succeed)
//! ```
//! Connections, the counts of endpoints that follow from them, and clients' affinities pass. Stations of bridged segments are
//! learned anew, from the next frame of each; until then frames to them are flooded, as to any station that is unknown.
//! Fragments whose first one came before are not known to the successor; limited ports begin with a full burst.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::connections::{self, Followed, JOURNAL_CONTENT};
use super::kept_memory::KeptMemory;
use super::restoring::{Kept, StateOptions, says};
use super::{EndpointLoads, State, affinity};
use crate::clock::Time;

/// The files of a process that goes on, as its successor gets them.
#[derive(Debug)]
pub struct StateFiles {
    /// Its connections.
    pub connections: OwnedFd,
    /// Its clients' affinities.
    pub affinities: OwnedFd,
    /// Which of its connections changed since it gave the files away.
    pub journal: OwnedFd,
}

/// What a successor still needs of the former process.
#[derive(Debug)]
pub(crate) struct Succession {
    connections: KeptMemory,
    affinities: KeptMemory,
    journal: KeptMemory,
    followed: Followed,
    /// Where this process keeps its own, if it has found room there.
    place: Option<PathBuf>,
}

impl State {
    /// Begins to note changes; the files, for a successor.
    ///
    /// # Errors
    /// The kernel refused memory or a descriptor.
    pub(crate) fn hand_over(&self) -> io::Result<StateFiles> {
        Ok(StateFiles {
            journal: self.connections.begin_journal()?,
            connections: self.connections.file().try_clone_to_owned()?,
            affinities: self.affinities.file().try_clone_to_owned()?,
        })
    }

    /// The successor did not come up.
    pub fn keep(&self) {
        self.connections.end_journal();
    }

    /// The state of a successor of a process that goes on, kept in `directory` as soon as it [succeeds](Self::succeed).
    ///
    /// # Errors
    /// The files have another layout, or the kernel refused memory or a descriptor.
    pub(crate) fn following(
        files: StateFiles,
        directory: Option<&Path>,
        options: &StateOptions,
        now: Time,
    ) -> io::Result<(Self, Kept, Succession)> {
        let other = || io::Error::new(io::ErrorKind::InvalidData, "the running agent keeps its connections otherwise");
        let former = |file, content| KeptMemory::of_another(file, content)?.ok_or_else(other);
        let connections_of = former(files.connections, connections::CONTENT)?;
        let affinities_of = former(files.affinities, affinity::CONTENT)?;
        let journal = former(files.journal, JOURNAL_CONTENT)?;
        let mut kept = Kept::default();
        let mut place = directory;
        let (connections, affinities) = match options.build(place) {
            Err(error) if let Some(directory) = place.take() => {
                kept.problem = Some(says(directory, &error));
                options.build(None)?
            }
            built => built?,
        };
        let loads = EndpointLoads::default();
        let (restored, followed) =
            connections.follow(&connections_of, |service, endpoint| loads.restored(service, endpoint));
        (kept.connections, kept.affinities) = (restored, affinities.restore(&affinities_of, now));
        let state = State { endpoint_loads: loads, ..State::around(connections, affinities, options.hash_key)? };
        let (connections, affinities, place) = (connections_of, affinities_of, place.map(Path::to_owned));
        Ok((state, kept, Succession { connections, affinities, journal, followed, place }))
    }

    /// Takes in what changed since; the former process stands still.
    pub(crate) fn catch_up(&self, succession: &mut Succession, kept: &mut Kept) {
        let loads = &self.endpoint_loads;
        let refused = kept.connections.refused;
        let caught_up = self.connections.catch_up(
            (&succession.connections, &succession.journal),
            &mut succession.followed,
            |service, endpoint| loads.restored(service, endpoint),
            |removed| removed.counted.into_iter().for_each(|(service, endpoint)| loads.ended(service, endpoint)),
        );
        kept.connections.taken = self.connections.live();
        kept.connections.refused = refused + caught_up.refused;
    }

    /// The former process is gone: what this one keeps takes its place. Clients whose endpoint the former one chose at last
    /// are remembered too.
    pub(crate) fn succeed(&self, succession: Succession, kept: &mut Kept, now: Time) {
        kept.affinities += self.affinities.restore_unknown(&succession.affinities, now);
        let Some(directory) = &succession.place else { return };
        let mut contents = [connections::CONTENT, affinity::CONTENT].into_iter();
        let taken = contents.try_for_each(|content| KeptMemory::take_place(directory, content));
        kept.problem = taken.err().map(|error| says(directory, &error));
    }
}
