//! Files that others open at any moment: each appears whole or not at all.
//!
//! The content is written beside the target under a name with a dot before and `.new` behind it, which no runtime takes for a
//! configuration, is synchronised, and renamed over the target; then the directory is synchronised. What stood there before
//! stays until the rename, and whoever has it open or runs it keeps it. A lock on the directory makes two that write at once
//! take turns; what one left that was killed is overwritten.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::{InstallError, Installed};

/// Bytes compared at a time.
const PIECE: usize = 64 * 1024;

/// Makes `directory/name` a file of this mode with all that `content` reads; `content` is asked for anew for each reading.
pub(super) fn put<Content: Read>(
    directory: &Path,
    name: &str,
    mode: u32,
    content: impl Fn() -> Result<Content, InstallError>,
) -> Result<Installed, InstallError> {
    let opened = lock(directory)?;
    let target = directory.join(name);
    if is_same(&target, mode, content()?) {
        return Ok(Installed::Unchanged);
    }
    let beside = beside(directory, name);
    let written = write(&beside, mode, &mut content()?)
        .map_err(InstallError::write("write", &beside))
        .and_then(|()| fs::rename(&beside, &target).map_err(InstallError::write("replace", &target)));
    if let Err(error) = written {
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    opened.sync_all().map_err(InstallError::write("synchronise", directory))?;
    Ok(Installed::Written)
}

/// Removes `directory/name`, and what a killed writer left beside it. False if there was neither.
pub(super) fn remove(directory: &Path, name: &str) -> Result<bool, InstallError> {
    if !directory.exists() {
        return Ok(false);
    }
    let opened = lock(directory)?;
    let mut removed = false;
    for path in [directory.join(name), beside(directory, name)] {
        match fs::remove_file(&path) {
            Ok(()) => removed = true,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(InstallError::write("remove", &path)(error)),
        }
    }
    if removed {
        opened.sync_all().map_err(InstallError::write("synchronise", directory))?;
    }
    Ok(removed)
}

fn beside(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!(".{name}.new"))
}

/// Nobody else writes there by this module until the file is closed.
fn lock(directory: &Path) -> Result<File, InstallError> {
    let absent = |source| InstallError::NoDirectory { path: directory.to_owned(), source };
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(directory).map_err(absent)?;
    rustix::fs::flock(&opened, FlockOperation::LockExclusive)
        .map_err(|error| InstallError::write("lock", directory)(error.into()))?;
    Ok(opened)
}

fn write(path: &Path, mode: u32, content: &mut impl Read) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    io::copy(content, &mut file)?;
    // Whatever the mask of the process and an earlier file of the name have it.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()
}

/// A difference, or anything that cannot be read, makes it another file.
fn is_same(target: &Path, mode: u32, content: impl Read) -> bool {
    let same_mode = |metadata: &fs::Metadata| metadata.is_file() && metadata.mode() & 0o7777 == mode;
    fs::symlink_metadata(target).is_ok_and(|metadata| same_mode(&metadata))
        && File::open(target).and_then(|present| reads_equal(present, content)).unwrap_or(false)
}

fn reads_equal(mut one: impl Read, mut other: impl Read) -> io::Result<bool> {
    let (mut here, mut there) = (Vec::with_capacity(PIECE), Vec::with_capacity(PIECE));
    loop {
        here.clear();
        there.clear();
        (&mut one).take(PIECE as u64).read_to_end(&mut here)?;
        (&mut other).take(PIECE as u64).read_to_end(&mut there)?;
        if here != there {
            return Ok(false);
        }
        if here.is_empty() {
            return Ok(true);
        }
    }
}
