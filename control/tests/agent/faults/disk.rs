//! A disk of a test's own that can be filled: a tmpfs, in a mount namespace that no other program is in.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Set for a program that has its own mounts.
const INSIDE: &str = "MILLRACE_FAULT_MOUNTS";

/// Where namespaces have their names.
const NAMESPACES: &str = "/run/netns";

/// Size of the disk: every file of a node with some room.
const SIZE: &std::ffi::CStr = c"size=2m";

/// Unit in which a tmpfs gives room away.
pub(super) const PAGE_BYTES: u64 = 4096;

/// Runs the test `name` in another process with mounts of its own, or `run` if this is that process.
pub(super) fn with_own_mounts(name: &str, run: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        // To programs with other mounts the names of namespaces are empty files, which they may take for leftovers.
        std::fs::create_dir_all(NAMESPACES).expect("directory");
        mount("millrace-test", NAMESPACES, "tmpfs", MountFlags::empty(), SIZE).expect("tmpfs");
        return run();
    }
    let program = std::env::current_exe().expect("this program");
    let mut inside = Command::new("unshare");
    inside.args(["--mount", "--propagation", "private"]).arg(program).args(["--exact", name]).env(INSIDE, "1");
    assert!(inside.status().expect("unshare").success(), "{name} failed in its mount namespace");
}

/// Mounted until dropped.
pub(super) struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one at this empty directory.
    pub(super) fn mount(path: &Path) -> SmallDisk {
        mount("millrace-test", path, "tmpfs", MountFlags::empty(), SIZE).expect("tmpfs");
        SmallDisk(path.to_owned())
    }

    /// Leaves so many pages free, or none.
    pub(super) fn fill(&self, pages: u64) {
        let mut file = File::create(self.file()).expect("created");
        let page = [0u8; PAGE_BYTES as usize];
        let mut written = 0;
        loop {
            match file.write(&page) {
                Ok(bytes) => written += bytes as u64,
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => panic!("the disk does not become full: {error}"),
            }
        }
        file.set_len(written.saturating_sub(pages * PAGE_BYTES)).expect("shortened");
    }

    /// Gives the room back.
    pub(super) fn empty(&self) {
        let _ = std::fs::remove_file(self.file());
    }

    fn file(&self) -> PathBuf {
        self.0.join("filling")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}
