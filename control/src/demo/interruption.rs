//! Ctrl-C and SIGTERM as a flag: whoever waits looks at it often, leaves with an error, and everything is undone on
//! the way out. Signal handlers run no code of ours.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

/// How often a waiter looks.
const STEP: Duration = Duration::from_millis(20);

/// Somebody wants the program to end.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// The flag.
#[derive(Clone, Debug, Default)]
pub struct Interruption(Arc<AtomicBool>);

impl Interruption {
    /// From now on SIGINT, SIGTERM and SIGHUP set the flag and do nothing else.
    pub fn on_signals() -> anyhow::Result<Interruption> {
        let interruption = Interruption::default();
        let flag = Arc::clone(&interruption.0);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let listen = |kind| signal(kind).context("cannot listen for signals");
        let [mut interrupt, mut terminate, mut hang_up] = {
            let _inside = runtime.enter();
            [listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?]
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => (),
                    _ = terminate.recv() => (),
                    _ = hang_up.recv() => (),
                }
                flag.store(true, Ordering::Relaxed);
                // The signals stay taken while this waits: a second Ctrl-C must not stop the cleaning up.
                std::future::pending::<()>().await;
            });
        })?;
        Ok(interruption)
    }

    /// Whether the flag is set.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// An error once the flag is set.
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.is_set() { Err(Interrupted) } else { Ok(()) }
    }

    /// Sleeps, unless interrupted.
    pub fn pause(&self, duration: Duration) -> Result<(), Interrupted> {
        let end = Instant::now() + duration;
        loop {
            self.check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(STEP));
        }
    }
}
