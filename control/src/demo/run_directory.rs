//! The directory of one run, `/run/millrace-demo-PID`, and the end of everything that belongs to it.
//!
//! All that a run makes can be found by the directory's name: namespaces are called after it and agents have their
//! configuration in it. So the end of a run needs nothing but the name, and a run that was killed is ended by the
//! next one. A living run holds a lock on its directory; one that was left standing on purpose has the file `kept`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::kernel::{Namespace, namespace};

const PARENT: &str = "/run";
const PREFIX: &str = "millrace-demo-";
const NAMESPACES: &str = "/run/netns";
/// Marks a cluster that shall stand until it is removed.
const KEPT: &str = "kept";
/// Marks that this run made `/run/netns`.
const MADE_NAMESPACES: &str = "made-run-netns";
/// How long an agent may take to end.
const END_TIME: Duration = Duration::from_secs(5);

/// The directory of this run; dropping it removes the run, unless it is kept.
#[derive(Debug)]
pub(super) struct RunDirectory {
    name: String,
    path: PathBuf,
    keep: bool,
    _lock: File,
}

impl RunDirectory {
    /// Makes and locks it.
    pub(super) fn create() -> anyhow::Result<RunDirectory> {
        let process = std::process::id();
        for number in 0.. {
            // A cluster that is kept may have had this process's number.
            let name = if number == 0 { format!("{PREFIX}{process}") } else { format!("{PREFIX}{process}.{number}") };
            let path = Path::new(PARENT).join(&name);
            match fs::create_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < 100 => continue,
                outcome => outcome.with_context(|| format!("cannot make {}", path.display()))?,
            }
            // A run that starts at this moment may have taken the directory for an abandoned one.
            let Some(lock) = lock(&path)? else { continue };
            let directory = RunDirectory { name, path, keep: false, _lock: lock };
            if !Path::new(NAMESPACES).exists() {
                File::create(directory.path.join(MADE_NAMESPACES))?;
            }
            return Ok(directory);
        }
        anyhow::bail!("no name is left for a directory in {PARENT}")
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a network namespace that belongs to this run.
    pub(super) fn namespace(&self, name: &str) -> anyhow::Result<Namespace> {
        Ok(Namespace::create_named(&format!("{}-{name}", self.name))?)
    }

    /// Leaves the run standing when this value is dropped.
    pub(super) fn keep(&mut self) -> anyhow::Result<()> {
        File::create(self.path.join(KEPT)).context("cannot mark the cluster as kept")?;
        self.keep = true;
        Ok(())
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = remove(&self.name) {
            super::say(&format!("could not remove everything: {error:#}"));
        }
    }
}

/// Removes runs that nobody attends to, and those that were kept if `kept_too`. Returns their names.
pub(super) fn remove_abandoned(kept_too: bool) -> anyhow::Result<Vec<String>> {
    let mut removed = Vec::new();
    for name in names_in(PARENT)?.filter(|name| name.starts_with(PREFIX)) {
        let path = Path::new(PARENT).join(&name);
        if path.join(KEPT).exists() && !kept_too {
            continue;
        }
        // Held until all is gone, so that no two remove it.
        let Some(_lock) = lock(&path)? else { continue };
        remove(&name).with_context(|| format!("cannot remove what an earlier run left as {name}"))?;
        removed.push(name);
    }
    Ok(removed)
}

/// The lock of a directory, if it is free and the directory still there.
fn lock(path: &Path) -> anyhow::Result<Option<File>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        outcome => outcome.with_context(|| format!("cannot open {}", path.display()))?,
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        outcome => outcome.with_context(|| format!("cannot lock {}", path.display()))?,
    }
    let still_there = fs::metadata(path).is_ok_and(|now| file.metadata().is_ok_and(|own| own.ino() == now.ino()));
    Ok(still_there.then_some(file))
}

/// Ends the run's agents, deletes its namespaces with all links in them, and its directory last: as long as anything
/// is left, so is the name to find it by.
fn remove(name: &str) -> anyhow::Result<()> {
    let path = Path::new(PARENT).join(name);
    end_agents(&path)?;
    let own = format!("{name}-");
    for namespace in names_in(NAMESPACES)?.filter(|namespace| namespace.starts_with(&own)) {
        namespace::delete_named(&namespace)?;
    }
    if path.join(MADE_NAMESPACES).exists() {
        remove_namespace_directory();
    }
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome.with_context(|| format!("cannot remove {}", path.display())),
    }
}

/// Takes `/run/netns` away again, unless somebody else uses it by now: then it is busy or not empty.
fn remove_namespace_directory() {
    let _ = rustix::mount::unmount(NAMESPACES, rustix::mount::UnmountFlags::empty());
    let _ = fs::remove_dir(NAMESPACES);
}

/// Names in a directory; none if there is no such directory.
fn names_in(directory: &str) -> anyhow::Result<impl Iterator<Item = String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        outcome => Some(outcome.with_context(|| format!("cannot read {directory}"))?),
    };
    // Collected, since the directory changes while the names are gone through.
    let names: Vec<_> =
        entries.into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    Ok(names.into_iter())
}

/// Ends every agent whose configuration lies in the directory.
fn end_agents(directory: &Path) -> anyhow::Result<()> {
    let numbers = names_in("/proc")?.filter_map(|name| Pid::from_raw(name.parse().ok()?));
    for process in numbers.filter(|process| is_agent(*process, directory)) {
        // The descriptor stays with this process even if its number is given to another.
        let Ok(descriptor) = pidfd_open(process, PidfdFlags::empty()) else { continue };
        if !is_agent(process, directory) {
            continue;
        }
        for signal in [Signal::TERM, Signal::KILL] {
            let _ = pidfd_send_signal(&descriptor, signal);
            let time = Timespec { tv_sec: END_TIME.as_secs().cast_signed(), tv_nsec: 0 };
            if poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&time)).is_ok_and(|ended| ended > 0) {
                break;
            }
        }
    }
    Ok(())
}

fn is_agent(process: Pid, directory: &Path) -> bool {
    let Ok(line) = fs::read(format!("/proc/{}/cmdline", process.as_raw_nonzero())) else { return false };
    let mut words = line.split(|byte| *byte == 0).skip(1);
    let mut next = || words.next().and_then(|word| std::str::from_utf8(word).ok());
    next() == Some("agent")
        && next() == Some("--config")
        && next().is_some_and(|file| Path::new(file).starts_with(directory))
}
