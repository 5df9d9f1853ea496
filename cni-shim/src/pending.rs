//! What a DEL leaves behind when no agent answers: one small file, which the agent takes up when it is there again.
//!
//! DEL has to succeed while the agent is down, and the pod's namespace may live on, so that the agent could not tell by
//! itself that the pod is gone. The file is the request of DEL, written beside and renamed, under a name made of
//! container and interface: a repeated DEL writes the same file. Bounded: beyond [`FILES`] nothing more is written,
//! and the agent then finds what is lost by the namespaces that are gone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::protocol::DeleteRequest;

/// Most files that may wait.
pub const FILES: usize = 4_096;

/// Longest name of a file (`NAME_MAX` in include/uapi/linux/limits.h).
const NAME_BYTES: usize = 255;

/// The directory below the agent's state directory.
#[must_use]
pub fn directory(state_directory: &Path) -> PathBuf {
    state_directory.join("pending")
}

/// The file of an attachment; `None` if its name is too long for one.
#[must_use]
pub fn file(state_directory: &Path, container_id: &str, interface: &str) -> Option<PathBuf> {
    // Neither part can have an '@' that would make two attachments one: a container's name cannot.
    let name = format!("{container_id}@{interface}.json");
    (name.len() + ".new".len() <= NAME_BYTES).then(|| directory(state_directory).join(name))
}

/// Leaves the request for the agent.
///
/// # Errors
/// When it cannot be written, or too many wait already.
pub fn leave(state_directory: &Path, request: &DeleteRequest) -> io::Result<()> {
    let file = file(state_directory, &request.container_id, &request.interface)
        .ok_or_else(|| io::Error::other("the container's name is too long for a file"))?;
    let directory = directory(state_directory);
    fs::create_dir_all(&directory)?;
    if fs::read_dir(&directory)?.take(FILES).count() >= FILES && !file.exists() {
        return Err(io::Error::other(format!("{FILES} requests wait in {} already", directory.display())));
    }
    let beside = file.with_extension("json.new");
    fs::write(&beside, serde_json::to_vec(request)?)?;
    fs::rename(&beside, &file)
}

/// All requests that wait, with their files. A file that makes no sense is left out and told as an error.
///
/// # Errors
/// When the directory is there and cannot be read.
pub fn waiting(state_directory: &Path) -> io::Result<Vec<(PathBuf, Result<DeleteRequest, String>)>> {
    let entries = match fs::read_dir(directory(state_directory)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut waiting = Vec::new();
    for entry in entries.take(2 * FILES) {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let request = fs::read(&path).map_err(|error| error.to_string());
            let request = request.and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string()));
            waiting.push((path, request));
        }
    }
    waiting.sort_by(|first, second| first.0.cmp(&second.0));
    Ok(waiting)
}
