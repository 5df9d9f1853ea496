//! The directory of one test: objects, configurations, state, sockets, logs, the plugin.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A name no other process and no other test uses.
pub(crate) fn unique(word: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("millrace-agent-{}-{}-{word}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Removed when dropped.
pub(crate) struct Directory(PathBuf);

impl Directory {
    /// Makes it, with the plugin and an empty directory of objects in it.
    pub(crate) fn create() -> Directory {
        Self::create_with(|_| ())
    }

    /// The same; `prepare` gets the directory while it is empty.
    pub(crate) fn create_with(prepare: impl FnOnce(&Path)) -> Directory {
        // A tmpfs, as /run is on a node: connections are kept there.
        let place = Path::new("/dev/shm");
        let place = if place.is_dir() { place.to_owned() } else { std::env::temp_dir() };
        let path = place.join(unique("test"));
        fs::create_dir_all(&path).expect("directory");
        prepare(&path);
        fs::create_dir(path.join("objects")).expect("directory");
        let directory = Directory(path);
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_millrace"), directory.plugin()).expect("link");
        directory
    }

    /// A file in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The plugin: the program under another name.
    pub(crate) fn plugin(&self) -> PathBuf {
        self.file("millrace-cni")
    }

    /// Writes a file of objects as an editor that cares would: whole, by renaming.
    pub(crate) fn write_objects(&self, name: &str, text: &str) {
        let beside = self.file(name);
        fs::write(&beside, text).expect("written");
        fs::rename(beside, self.file("objects").join(name)).expect("renamed");
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
