//! Writing files: under a lock, to disk, into place by one rename.
//!
//! The lock (`flock` on `.millrace.lock`) makes read-compare-write one step among the processes of a directory; it
//! goes with the process that holds it. Creation does not rely on it alone: the rename refuses to replace a file.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

use crate::store::{ObjectKey, StoreError};

/// Longest wait for the lock; a writer holds it for the time of one scan and one write.
const PATIENCE: Duration = Duration::from_secs(10);

/// The lock file.
const LOCK: &str = ".millrace.lock";

/// What names of temporary files begin with, process and number behind it.
const TEMPORARY: &str = ".millrace.temporary.";

/// Distinguishes temporary files of one process.
static SEQUENCE: AtomicU64 = AtomicU64::new(0);

/// The right to write, until dropped.
#[derive(Debug)]
pub(super) struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Waits for the lock of `directory`.
    pub(super) fn acquire(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join(LOCK);
        let failed = |source| StoreError::Io { action: "lock", path: path.clone(), source };
        let file =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path).map_err(failed)?;
        let start = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { _file: file }),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) if start.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(1)),
                Err(Errno::WOULDBLOCK) => return Err(StoreError::Locked { path, seconds: PATIENCE.as_secs() }),
                Err(error) => return Err(failed(error.into())),
            }
        }
    }
}

/// Puts a file for the object into place; refuses if one of its name is there.
pub(super) fn create_file(directory: &Path, key: &ObjectKey, text: &str) -> Result<(), StoreError> {
    let path = directory.join(key.file_name());
    let temporary = write_temporary(directory, text)?;
    match renameat_with(CWD, &temporary, CWD, &path, RenameFlags::NOREPLACE) {
        Ok(()) => sync_directory(directory),
        Err(error) => {
            remove_quietly(&temporary);
            Err(match error {
                Errno::EXIST => StoreError::AlreadyExists { key: Box::new(key.clone()) },
                error => StoreError::Io { action: "create", path, source: error.into() },
            })
        }
    }
}

/// Puts a file for the object in the place of the one before.
pub(super) fn replace_file(directory: &Path, key: &ObjectKey, text: &str) -> Result<(), StoreError> {
    let path = directory.join(key.file_name());
    let temporary = write_temporary(directory, text)?;
    if let Err(source) = std::fs::rename(&temporary, &path) {
        remove_quietly(&temporary);
        return Err(StoreError::Io { action: "replace", path, source });
    }
    sync_directory(directory)
}

/// Removes the file of the object.
pub(super) fn remove_file(directory: &Path, key: &ObjectKey) -> Result<(), StoreError> {
    let path = directory.join(key.file_name());
    std::fs::remove_file(&path).map_err(|source| StoreError::Io { action: "remove", path, source })?;
    sync_directory(directory)
}

/// The same where nobody writes just now, and without a trace in a directory that nobody ever wrote to.
pub(super) fn remove_abandoned_unless_busy(directory: &Path) {
    let Ok(lock) = File::options().write(true).open(directory.join(LOCK)) else { return };
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
        remove_abandoned(directory);
    }
}

/// Removes what writers that died left behind. Called by the holder of the lock: nobody else is writing.
pub(super) fn remove_abandoned(directory: &Path) {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let abandoned = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(TEMPORARY));
    abandoned.for_each(|entry| remove_quietly(&entry.path()));
}

fn write_temporary(directory: &Path, text: &str) -> Result<PathBuf, StoreError> {
    let number = SEQUENCE.fetch_add(1, Ordering::Relaxed);
    let path = directory.join(format!("{TEMPORARY}{}.{number}", std::process::id()));
    let write = || {
        // A process of this number may have died and left its file behind.
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).open(&path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|source| {
        remove_quietly(&path);
        StoreError::Io { action: "write", path: path.clone(), source }
    })?;
    Ok(path)
}

fn sync_directory(directory: &Path) -> Result<(), StoreError> {
    let synced = File::open(directory).and_then(|opened| opened.sync_all());
    synced.map_err(|source| StoreError::Io { action: "sync", path: directory.to_owned(), source })
}

/// For temporary files: what remains is removed by the next writer.
fn remove_quietly(path: &Path) {
    drop(std::fs::remove_file(path));
}
