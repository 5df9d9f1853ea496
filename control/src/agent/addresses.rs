//! The thread that gives back addresses and blocks this node no longer needs (`ipam::maintenance`) and those of nodes that
//! are gone (`ipam::vanished`), and takes up what DEL has left while no agent answered.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, RecvTimeoutError, Sender};

use super::pods::Pods;
use super::reports::Source;
use super::shared::Shared;
use crate::cni_server::CniServer;
use crate::ipam::vanished::VanishedNodes;

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(10);

/// The running thread.
pub(super) struct AddressMaintenance {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl AddressMaintenance {
    /// Starts it. It works only while the objects are known.
    pub(super) fn start(shared: Arc<Shared>, pods: Arc<Pods>, cni: Arc<CniServer>) -> std::io::Result<Self> {
        let (stop, stopped) = channel::bounded(0);
        let mut vanished = VanishedNodes::new(shared.node.clone());
        let thread = std::thread::Builder::new().name("addresses".into()).spawn(move || {
            while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                shared.report(Source::LeftDeletes, cni.take_up_pending());
                if let Some(cluster) = shared.standing().cluster {
                    pods.maintain_addresses(&mut vanished, &cluster, Instant::now());
                }
            }
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends it; a write at work is finished first.
    pub(super) fn stop(self) {
        drop(self.stop);
        let _ = self.thread.join();
    }
}
