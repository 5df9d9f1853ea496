//! Millrace off a node: first the network configuration, so that no pod comes, then the plugin, then what agents left in the
//! kernel, and the state directory and socket last, since the record of attachments tells what to look for.
//!
//! Needs neither agent nor objects, and may be repeated until nothing fails. Pods that are still plugged in lose their
//! interface. With pods there the plugin may stay ([`Removal::keep_plugin`]): runtimes call it once more when a pod goes,
//! and it answers without an agent.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use millrace_cni::agent_client::ClientError;
use millrace_cni::pending;
use millrace_engine::state::remove_kept;

use super::{network_configuration, plugin};
use crate::agent::{ADOPTION_FILE, ATTACHMENTS_FILE, KEPT_FILE, Step, remove_from_kernel};
use crate::api::client::{ApiError, Client};

/// What to remove, and from where.
#[derive(Clone, Debug)]
pub struct Removal {
    /// Where the network configuration is.
    pub configuration_directory: PathBuf,
    /// Where the plugin is.
    pub plugin_directory: PathBuf,
    /// The agent's state directory.
    pub state_directory: PathBuf,
    /// The agent's socket.
    pub socket: PathBuf,
    /// Leave the plugin for the pods that are still there.
    pub keep_plugin: bool,
}

/// An agent would only make everything again.
#[derive(Debug, thiserror::Error)]
#[error("an agent is running at {}: stop it first; nothing was removed", .0.display())]
pub struct AgentIsRunning(PathBuf);

impl Removal {
    /// Removes it, in the calling thread's network namespace.
    ///
    /// # Errors
    /// If an agent is running; then nothing was done. What fails of the steps stands in them.
    pub fn run(&self) -> Result<Vec<Step>, AgentIsRunning> {
        // One that does not answer in time may do so later.
        let answered = Client::new(self.socket.clone()).ready();
        if !matches!(answered, Err(ApiError::NotReachable(ClientError::Absent(..)))) {
            return Err(AgentIsRunning(self.socket.clone()));
        }
        let configuration = self.configuration_directory.join(network_configuration::NAME);
        let removed = network_configuration::remove(&self.configuration_directory);
        let mut steps = vec![Step::new(configuration.display().to_string(), removed)];
        if !self.keep_plugin {
            let program = self.plugin_directory.join(plugin::NAME);
            steps.push(Step::new(program.display().to_string(), plugin::remove(&self.plugin_directory)));
        }
        steps.extend(remove_from_kernel(&self.state_directory));
        // As long as anything stays, so does what it is found by.
        if steps.iter().all(|step| step.outcome.is_ok()) {
            let named =
                fs::read(self.state_directory.join(KEPT_FILE)).map(|name| PathBuf::from(OsString::from_vec(name)));
            let kept = named.unwrap_or_else(|_| self.socket.with_extension("kept"));
            let what = format!("state in {}", self.state_directory.display());
            steps.push(Step::new(what, remove_state(&self.state_directory)));
            let what = format!("connections in {}", kept.display());
            steps.push(Step::new(what, remove_kept(&kept)));
            steps.push(Step::new(self.socket.display().to_string(), remove_socket(&self.socket)));
        }
        Ok(steps)
    }
}

/// Only what this program put there; the directory itself if nothing else is in it. A container has it as a mount, which
/// stays.
fn remove_state(directory: &Path) -> std::io::Result<bool> {
    let record = unless_absent(fs::remove_file(directory.join(ATTACHMENTS_FILE)))?;
    unless_absent(fs::remove_file(directory.join(ADOPTION_FILE)))?;
    unless_absent(fs::remove_file(directory.join(KEPT_FILE)))?;
    let waiting = unless_absent(fs::remove_dir_all(pending::directory(directory)))?;
    let _ = fs::remove_dir(directory);
    Ok(record || waiting)
}

fn remove_socket(socket: &Path) -> std::io::Result<bool> {
    let removed = unless_absent(fs::remove_file(socket))?;
    let _ = socket.parent().map(fs::remove_dir);
    Ok(removed)
}

fn unless_absent(outcome: std::io::Result<()>) -> std::io::Result<bool> {
    match outcome {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        Err(error) => Err(error),
    }
}
