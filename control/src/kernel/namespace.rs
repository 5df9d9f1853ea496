//! Making and deleting network namespaces.
//!
//! A named namespace is a file under `/run/netns` on which the namespace is mounted, the same convention iproute2
//! follows, so `ip netns exec NAME` works on it. An anonymous one lives as long as its descriptor. Pods' namespaces
//! are made by the container runtime; these are for `millrace demo` and the tests.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use millrace_engine::port::namespace::{NamespaceHandle, in_new_namespace};
use rustix::fs::FlockOperation;
use rustix::mount::{MountPropagationFlags, UnmountFlags};

use super::KernelError;

const DIRECTORY: &str = "/run/netns";
const OWN: &str = "/proc/thread-self/ns/net";

/// A namespace this process made; dropping it deletes it unless [`Namespace::keep`] was called.
#[derive(Debug)]
pub struct Namespace {
    handle: NamespaceHandle,
    /// Its name under `/run/netns`; none for an anonymous one.
    name: Option<String>,
    /// What keeps an anonymous one alive.
    _file: File,
}

impl Namespace {
    /// Makes the namespace `/run/netns/NAME`, with the loopback interface down as the kernel leaves it.
    ///
    /// # Errors
    /// If the name is taken or illegal, or the kernel refused; nothing is left behind.
    pub fn create_named(name: &str) -> Result<Self, KernelError> {
        let path = named_path(name)?;
        prepare_directory().map_err(KernelError::file(format!("prepare {DIRECTORY}")))?;
        let attempt = || format!("create network namespace {}", path.display());
        File::create_new(&path).map_err(KernelError::file(attempt()))?;
        let mounted = in_new_namespace(|| -> io::Result<File> {
            rustix::mount::mount_bind(OWN, &path)?;
            File::open(OWN)
        });
        let outcome = match mounted {
            Ok(Ok(file)) => NamespaceHandle::open(&path).map(|handle| (handle, file)).map_err(KernelError::from),
            Ok(Err(source)) => Err(KernelError::File { attempt: attempt(), source }),
            Err(error) => Err(error.into()),
        };
        match outcome {
            Ok((handle, file)) => Ok(Self { handle, name: Some(name.to_owned()), _file: file }),
            Err(error) => {
                let _ = delete_named(name);
                Err(error)
            }
        }
    }

    /// Makes a namespace without a name, reachable as `/proc/PID/fd/N` while this value lives.
    ///
    /// # Errors
    /// If the kernel refused.
    pub fn create_anonymous() -> Result<Self, KernelError> {
        let file = in_new_namespace(|| File::open(OWN))?
            .map_err(KernelError::file("create an anonymous network namespace".to_owned()))?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        Ok(Self { handle: NamespaceHandle::open(path)?, name: None, _file: file })
    }

    /// How to enter it.
    #[must_use]
    pub fn handle(&self) -> &NamespaceHandle {
        &self.handle
    }

    /// Leaves a named namespace standing.
    #[must_use]
    pub fn keep(mut self) -> NamespaceHandle {
        self.name = None;
        self.handle.clone()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = delete_named(name);
        }
    }
}

/// Deletes `/run/netns/NAME`; the namespace ends when nothing else holds it. False if there was none.
///
/// # Errors
/// If the kernel refused to unmount or remove it.
pub fn delete_named(name: &str) -> Result<bool, KernelError> {
    let path = named_path(name)?;
    match rustix::mount::unmount(&path, UnmountFlags::DETACH) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(error) => {
            return Err(KernelError::file(format!("unmount network namespace {}", path.display()))(error.into()));
        }
    }
    match fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(KernelError::file(format!("delete network namespace {}", path.display()))(source)),
    }
}

/// The namespace `/run/netns/NAME`.
///
/// # Errors
/// If there is none.
pub fn open_named(name: &str) -> Result<NamespaceHandle, KernelError> {
    Ok(NamespaceHandle::open(named_path(name)?)?)
}

fn named_path(name: &str) -> Result<PathBuf, KernelError> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        let source = io::Error::from(io::ErrorKind::InvalidInput);
        return Err(KernelError::File { attempt: format!("use {name:?} as a namespace's name"), source });
    }
    Ok(Path::new(DIRECTORY).join(name))
}

/// Makes the directory a shared mount, so that namespaces in it are seen and deleted in every mount namespace.
/// Under a lock on the directory, since several processes may find it unprepared at once; iproute2 takes the same.
fn prepare_directory() -> io::Result<()> {
    fs::create_dir_all(DIRECTORY)?;
    let directory = File::open(DIRECTORY)?;
    rustix::fs::flock(&directory, FlockOperation::LockExclusive)?;
    let share = || rustix::mount::mount_change(DIRECTORY, MountPropagationFlags::SHARED | MountPropagationFlags::REC);
    match share() {
        Err(rustix::io::Errno::INVAL) => {
            rustix::mount::mount_bind_recursive(DIRECTORY, DIRECTORY)?;
            Ok(share()?)
        }
        outcome => Ok(outcome?),
    }
}
