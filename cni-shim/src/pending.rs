//! What a DEL leaves behind when no agent answers: one small file, which the agent takes up when it is there again.
//!
//! DEL has to succeed while the agent is down, and the pod's namespace may live on, so that the agent could not tell by
//! itself that the pod is gone. The file is the request of DEL, written beside and renamed, under a name made of
//! container and interface: a repeated DEL writes the same file. Bounded: beyond [`FILES`] nothing more is written. Then,
//! and on a full disk, DEL fails and the runtime asks again ([`may_be_left_later`]): who took it for done would lose the
//! attachment. What a plugin that was killed had half written the agent takes away ([`sweep`]).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::protocol::DeleteRequest;

/// Most files that may wait.
pub const FILES: usize = 4_096;

/// What is being written has this behind its name.
const UNFINISHED: &str = "new";

/// A file that is unfinished for longer was left behind. A plugin that is slower than this fails, and is called again.
const UNFINISHED_AGE: Duration = Duration::from_secs(5);

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
        let message = format!("{FILES} requests wait in {} already", directory.display());
        return Err(io::Error::new(io::ErrorKind::QuotaExceeded, message));
    }
    let beside = file.with_extension(format!("json.{UNFINISHED}"));
    let written = fs::write(&beside, serde_json::to_vec(request)?).and_then(|()| fs::rename(&beside, &file));
    written.inspect_err(|_| {
        let _ = fs::remove_file(&beside);
    })
}

/// Whether a request that could not be left may be later: there is no room now. What cannot be written for another reason
/// never can; then the agent finds what is lost by the namespaces that are gone.
#[must_use]
pub fn may_be_left_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Takes away what plugins that were killed had half written.
///
/// # Errors
/// When the directory or a file is there and cannot be read or removed.
pub fn sweep(state_directory: &Path) -> io::Result<()> {
    let unless_absent = |error: io::Error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) };
    let entries = match fs::read_dir(directory(state_directory)) {
        Ok(entries) => entries,
        Err(error) => return unless_absent(error),
    };
    for entry in entries.take(2 * FILES) {
        let entry = entry?;
        let unfinished = entry.path().extension().is_some_and(|extension| extension == UNFINISHED);
        let since = entry.metadata().and_then(|metadata| metadata.modified());
        // A clock that was set back makes a file of the future, which gets old too.
        let old = since.is_ok_and(|since| since.elapsed().is_ok_and(|age| age >= UNFINISHED_AGE));
        if unfinished && old {
            fs::remove_file(entry.path()).or_else(unless_absent)?;
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_half_written_goes_and_what_is_being_written_stays() {
        let place = std::env::temp_dir().join(format!("millrace-pending-{}", std::process::id()));
        let file = |name: &str| directory(&place).join(name);
        sweep(&place).expect("no directory is nothing to sweep");
        fs::create_dir_all(directory(&place)).expect("directory");
        for name in ["a@eth0.json.new", "b@eth0.json.new", "c@eth0.json"] {
            fs::write(file(name), "{}").expect("written");
        }
        let old = std::time::SystemTime::now() - 2 * UNFINISHED_AGE;
        for name in ["a@eth0.json.new", "c@eth0.json"] {
            fs::File::options().write(true).open(file(name)).and_then(|file| file.set_modified(old)).expect("set");
        }
        sweep(&place).expect("swept");
        let left = ["a@eth0.json.new", "b@eth0.json.new", "c@eth0.json"].map(|name| file(name).exists());
        // Where the file cannot come into being, what was written of it does not stay either.
        fs::create_dir_all(file("d@eth0.json").join("in-the-way")).expect("directory");
        let request = DeleteRequest {
            network: String::new(),
            container_id: "d".into(),
            interface: "eth0".into(),
            network_namespace: None,
        };
        let refused = leave(&place, &request).is_err();
        let remains = file("d@eth0.json.new").exists();
        fs::remove_dir_all(&place).expect("removed");
        assert_eq!((left, refused, remains), ([false, true, true], true, false));
    }
}
