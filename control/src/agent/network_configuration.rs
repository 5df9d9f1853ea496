//! Tells the container runtime to call the plugin, once pods can be plugged in.
//!
//! Not before: a node counts as ready as soon as its runtime has a network configuration, and pods come at once. Never taken
//! back: a runtime that lost it would call the node unready at each restart, while ADD waits for the agent anyway. Written once
//! a start, so that whoever takes it away to drain the node is not worked against. A thread of its own, since a directory may
//! answer slowly; what fails is a problem in the status and tried again.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};

use super::reports::Source;
use super::shared::Shared;
use crate::installation::network_configuration;

/// Time between two looks whether pods can be plugged in.
const LOOK: Duration = Duration::from_millis(100);
/// Time after which a directory that refused is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// The running thread; ends when it is dropped.
pub(super) struct NetworkConfiguration {
    ending: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl NetworkConfiguration {
    /// Puts `text` into `directory` when `ready` says that pods can be plugged in.
    pub(super) fn start(
        shared: Arc<Shared>,
        (directory, text): (PathBuf, String),
        ready: impl Fn() -> bool + Send + 'static,
    ) -> std::io::Result<Self> {
        let (ending, ended) = channel::bounded(0);
        let thread = std::thread::Builder::new().name("network-configuration".into());
        let thread = thread.spawn(move || {
            if wait(&ended, LOOK, &ready) {
                write(&shared, &ended, &directory, &text);
            }
        })?;
        Ok(Self { ending: Some(ending), thread: Some(thread) })
    }
}

impl Drop for NetworkConfiguration {
    fn drop(&mut self) {
        drop(self.ending.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn write(shared: &Shared, ended: &Receiver<()>, directory: &std::path::Path, text: &str) {
    let written = wait(ended, AGAIN, || {
        let failed = network_configuration::install(directory, text).err();
        let told = |error| format!("the container runtime does not know of the plugin: {error}");
        shared.report(Source::NetworkConfiguration, failed.as_ref().map(told));
        failed.is_none()
    });
    // Until the other plugin's file goes, looked at from time to time.
    let first = || network_configuration::before_ours(directory).into_iter().next();
    let stands_before = |first| {
        format!(
            "{} holds {first}, which container runtimes take instead of {}: take it away when this node is to leave it",
            directory.display(),
            network_configuration::NAME
        )
    };
    if written {
        wait(ended, AGAIN, || {
            let first = first();
            let is_alone = first.is_none();
            shared.report(Source::NetworkConfiguration, first.map(stands_before));
            is_alone
        });
    }
}

/// Tries until `done`; false if the agent ended first.
fn wait(ended: &Receiver<()>, pause: Duration, mut done: impl FnMut() -> bool) -> bool {
    loop {
        if done() {
            return true;
        }
        if ended.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
            return false;
        }
    }
}
