//! The socket file: who may open it, and when an old one may be replaced.
//!
//! The socket is bound under another name, given its mode, and renamed into place, so that it is never reachable
//! with wider rights and never missing during a restart. A lock file beside it is held while the agent lives:
//! two agents that start together cannot both find a stale socket. A socket on which somebody else listens is
//! left alone.

use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A bound socket. Dropping it removes the file, if it is still this one.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    file: SocketFile,
}

/// The file of a bound socket, removed when dropped.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: u64,
    /// Held open for its lock.
    lock: File,
}

/// Why the socket cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another agent lives.
    #[error("another agent listens on {}", .0.display())]
    InUse(PathBuf),
    /// The path holds something that is no socket.
    #[error("{} exists and is no socket", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("could not {attempt} {}", path.display())]
    System {
        /// What was attempted, as an infinitive.
        attempt: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Socket {
    /// Binds `path` with mode 0600; makes its directory if it is missing.
    ///
    /// # Errors
    /// When another agent lives, or the system refuses.
    pub fn bind(path: &Path) -> Result<Socket, SocketError> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .map_err(failed("make the directory", directory))?;
        let lock = lock(path)?;
        check_stale(path)?;
        let beside = with_suffix(path, ".new");
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed("remove", &beside)(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&beside).map_err(failed("bind", &beside))?;
        fs::set_permissions(&beside, Permissions::from_mode(0o600)).map_err(failed("set the mode of", &beside))?;
        let inode = fs::symlink_metadata(&beside).map_err(failed("look at", &beside))?.ino();
        fs::rename(&beside, path).map_err(failed("put in place", path))?;
        Ok(Socket { listener, file: SocketFile { path: path.to_owned(), inode, lock } })
    }

    /// The socket that another agent bound at `path`, with its lock: the file is removed by this one from now on.
    ///
    /// # Errors
    /// The file is not there.
    pub fn inherit(socket: OwnedFd, lock: OwnedFd, path: &Path) -> io::Result<Socket> {
        let inode = fs::symlink_metadata(path)?.ino();
        let file = SocketFile { path: path.to_owned(), inode, lock: File::from(lock) };
        Ok(Socket { listener: UnixListener::from(socket), file })
    }

    /// Other descriptors of socket and lock, for [`Socket::inherit`] in another process.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub fn share(&self) -> io::Result<[OwnedFd; 2]> {
        Ok([self.listener.as_fd().try_clone_to_owned()?, self.file.lock.as_fd().try_clone_to_owned()?])
    }

    /// The listener for the runtime that is current, and the file to keep while it is served.
    ///
    /// # Errors
    /// When the listener cannot be registered.
    pub fn into_listener(self) -> io::Result<(tokio::net::UnixListener, SocketFile)> {
        self.listener.set_nonblocking(true)?;
        Ok((tokio::net::UnixListener::from_std(self.listener)?, self.file))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            // A file left behind is stale and replaced at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn lock(path: &Path) -> Result<File, SocketError> {
    let beside = with_suffix(path, ".lock");
    let options = File::options().write(true).create(true).truncate(false).open(&beside);
    let file = options.map_err(failed("open", &beside))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(SocketError::InUse(path.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed("lock", &beside)(error)),
    }
}

/// Passes if nothing is there or a socket on which nobody listens.
fn check_stale(path: &Path) -> Result<(), SocketError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", path)(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(failed("connect to", path)(error)),
        Ok(_) => Err(SocketError::InUse(path.to_owned())),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn failed(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    move |source| SocketError::System { attempt, path: path.to_owned(), source }
}
