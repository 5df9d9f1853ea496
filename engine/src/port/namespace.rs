//! Work inside another network namespace.
//!
//! A thread that enters a namespace is never used for anything else: each call starts a thread, moves it, runs the
//! closure and ends it, so no caller can find itself in a pod's namespace by mistake. What the closure opens (a TAP,
//! a socket) keeps the namespace it was opened in and can be used from any thread afterwards.
//!
//! A namespace is known by its path *and* inode: a path can be taken over by a new namespace when a pod is
//! replaced, and a port must not be plugged into that one. Costs about 50 us a call; never on a worker.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::thread::{LinkNameSpaceType, UnshareFlags};

/// Why a namespace could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The path does not lead to anything that can be opened.
    #[error("cannot open network namespace {path}: {source}", path = path.display())]
    Open {
        /// Path of the namespace.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another namespace now lies at the recorded path.
    #[error("{path} was network namespace {recorded} and is now {found}", path = path.display())]
    Replaced {
        /// Path of the namespace.
        path: PathBuf,
        /// Inode that was recorded.
        recorded: u64,
        /// Inode that was found.
        found: u64,
    },
    /// The kernel refused to move the thread.
    #[error("cannot enter network namespace {path}: {source}", path = path.display())]
    Enter {
        /// Path of the namespace.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused to make a namespace.
    #[error("cannot create a network namespace: {0}")]
    Create(#[source] io::Error),
    /// No thread could be started.
    #[error("cannot start a thread for work in a network namespace: {0}")]
    Thread(#[source] io::Error),
    /// The work inside the namespace panicked.
    #[error("work in a network namespace ended by a panic")]
    Panicked,
}

impl NamespaceError {
    /// Whether the namespace is no longer there: nothing lies at its path, or another one.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Open { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Replaced { .. } => true,
            Self::Enter { .. } | Self::Create(_) | Self::Thread(_) | Self::Panicked => false,
        }
    }
}

/// A network namespace, as it is written into the record of a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NamespaceHandle {
    path: PathBuf,
    inode: u64,
}

impl NamespaceHandle {
    /// The namespace that lies at `path` now.
    ///
    /// # Errors
    /// If nothing can be opened there.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, NamespaceError> {
        let path = path.into();
        let inode = open_file(&path)?.1;
        Ok(Self { path, inode })
    }

    /// A namespace written down earlier; whether it still exists shows when it is entered.
    #[must_use]
    pub fn recorded(path: impl Into<PathBuf>, inode: u64) -> Self {
        Self { path: path.into(), inode }
    }

    /// Where it lies, e.g. `/run/netns/cni-1234`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its number, which no two living namespaces share.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Runs `act` inside the namespace, on a thread of its own, and waits for it.
    ///
    /// # Errors
    /// If the namespace is gone, replaced or cannot be entered, or `act` panicked.
    pub fn enter<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
        let (file, found) = open_file(&self.path)?;
        if found != self.inode {
            return Err(NamespaceError::Replaced { path: self.path.clone(), recorded: self.inode, found });
        }
        on_own_thread(move || {
            rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&file),
                Some(LinkNameSpaceType::Network),
            )
            .map_err(|source| NamespaceError::Enter { path: self.path.clone(), source: source.into() })?;
            Ok(act())
        })
    }
}

/// Runs `act` inside a fresh network namespace, on a thread of its own, and waits for it. The namespace lives as
/// long as something of it is held: a mount, a descriptor, a socket.
///
/// # Errors
/// If the kernel refuses, or `act` panicked.
pub fn in_new_namespace<T: Send>(act: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
    on_own_thread(move || {
        // SAFETY: only unsharing the file table is unsafe; the network namespace is no memory.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
            .map_err(|source| NamespaceError::Create(source.into()))?;
        Ok(act())
    })
}

fn open_file(path: &Path) -> Result<(File, u64), NamespaceError> {
    let refused = |source| NamespaceError::Open { path: path.to_owned(), source };
    let file = File::open(path).map_err(refused)?;
    let inode = file.metadata().map_err(refused)?.ino();
    Ok((file, inode))
}

fn on_own_thread<T: Send>(act: impl FnOnce() -> Result<T, NamespaceError> + Send) -> Result<T, NamespaceError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("namespace".to_owned())
            .spawn_scoped(scope, act)
            .map_err(NamespaceError::Thread)?;
        thread.join().unwrap_or(Err(NamespaceError::Panicked))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> NamespaceHandle {
        NamespaceHandle::open("/proc/self/ns/net").expect("own namespace")
    }

    #[test]
    fn a_replaced_or_absent_namespace_is_refused() {
        let replaced = NamespaceHandle::recorded("/proc/self/ns/net", own().inode() + 1);
        assert!(matches!(replaced.enter(|| ()), Err(error @ NamespaceError::Replaced { .. }) if error.is_gone()));
        let absent = NamespaceHandle::recorded("/nowhere/netns", 1);
        assert!(matches!(absent.enter(|| ()), Err(error @ NamespaceError::Open { .. }) if error.is_gone()));
    }
}
