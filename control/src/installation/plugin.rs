//! The plugin's program in the directory where the container runtime looks for it.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::{InstallError, Installed, whole_file};

/// Name of the program; `type` of the network configuration.
pub const NAME: &str = "millrace-cni";
const MODE: u32 = 0o755;

/// Copies the program at `source` into `directory`. May be repeated; writes nothing if it is there already.
///
/// # Errors
/// What could not be read or written; an earlier program then stands as it was.
pub fn install(source: &Path, directory: &Path) -> Result<Installed, InstallError> {
    let unreadable = |error| InstallError::Read { path: source.to_owned(), source: error };
    let open = || File::open(source).map_err(unreadable);
    if open()?.metadata().map_err(unreadable)?.len() == 0 {
        return Err(InstallError::Empty(source.to_owned()));
    }
    whole_file::put(directory, NAME, MODE, open)
}

/// Takes it away. False if it was not there.
///
/// # Errors
/// What the kernel said.
pub fn remove(directory: &Path) -> Result<bool, InstallError> {
    whole_file::remove(directory, NAME)
}

/// The program that came with this one: beside it, or this one itself, which is the plugin when it is called by that name.
#[must_use]
pub fn beside_this_program() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    let beside = own.with_file_name(NAME);
    if beside.is_file() { beside } else { own }
}
