//! The network configuration: the file that tells a container runtime to call the plugin.
//!
//! It is `deploy/10-millrace.conflist`, with the agent's socket and state directory where they are not the usual ones.
//! Runtimes take the first file of their directory by name, so others may stand before it: [`before_ours`] names them.

use std::path::Path;

use millrace_cni::configuration::{DEFAULT_SOCKET, DEFAULT_STATE_DIRECTORY};
use serde_json::Value;

use super::{InstallError, Installed, whole_file};

/// Name of the file.
pub const NAME: &str = "10-millrace.conflist";
const MODE: u32 = 0o644;
const USUAL: &str = include_str!("../../../deploy/10-millrace.conflist");
/// How files end that a runtime takes for configurations (libcni, `ConfFiles`).
const ENDINGS: [&str; 3] = ["conf", "conflist", "json"];

/// Its text for an agent at this socket with this state directory.
#[must_use]
pub fn text(socket: &Path, state_directory: &Path) -> String {
    let mut document: Value = serde_json::from_str(USUAL).unwrap_or_else(|_| unreachable!("a test reads it"));
    let mut changed = false;
    for (key, path, usual) in
        [("socket", socket, DEFAULT_SOCKET), ("stateDirectory", state_directory, DEFAULT_STATE_DIRECTORY)]
    {
        if path != Path::new(usual) {
            document["plugins"][0][key] = Value::from(path.to_string_lossy());
            changed = true;
        }
    }
    if changed { format!("{document:#}\n") } else { USUAL.to_owned() }
}

/// Puts the text into `directory`, last of all that an installation does. May be repeated.
///
/// # Errors
/// What could not be written; an earlier configuration then stands as it was.
pub fn install(directory: &Path, text: &str) -> Result<Installed, InstallError> {
    whole_file::put(directory, NAME, MODE, || Ok(text.as_bytes()))
}

/// Takes it away, first of all that a removal does. False if it was not there.
///
/// # Errors
/// What the kernel said.
pub fn remove(directory: &Path) -> Result<bool, InstallError> {
    whole_file::remove(directory, NAME)
}

/// Configurations in `directory` that a runtime takes instead of ours, by name.
#[must_use]
pub fn before_ours(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let is_configuration =
        |name: &String| Path::new(name).extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known));
    let mut before: Vec<String> = names.filter(|name| name.as_str() < NAME).filter(is_configuration).collect();
    before.sort_unstable();
    before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_places_give_the_file_as_it_is_delivered() {
        assert_eq!(text(Path::new(DEFAULT_SOCKET), Path::new(DEFAULT_STATE_DIRECTORY)), USUAL);
    }

    #[test]
    fn other_places_are_told_to_the_plugin() {
        let text = text(Path::new("/run/other.sock"), Path::new("/srv/state"));
        let document: Value = serde_json::from_str(&text).expect("JSON");
        let plugin = &document["plugins"][0];
        assert_eq!((&plugin["socket"], &plugin["stateDirectory"]), (&"/run/other.sock".into(), &"/srv/state".into()));
        assert_eq!(plugin["type"], super::super::plugin::NAME);
        // All else is as delivered.
        let usual: Value = serde_json::from_str(USUAL).expect("JSON");
        assert_eq!(plugin["capabilities"], usual["plugins"][0]["capabilities"]);
    }
}
