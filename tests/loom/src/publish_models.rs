//! A publisher and a worker.

use std::sync::Arc;

use loom::sync::Mutex;
use loom::thread;

use crate::publish::Publisher;
use crate::{Snapshot, is_worker};

/// A worker lets go of tables while the publisher still holds them: no worker ever frees any.
#[test]
fn no_worker_frees_tables() {
    loom::model(|| {
        let mut publisher = Publisher::new();
        let mut subscription = publisher.subscribe();
        let worker = thread::spawn(move || {
            is_worker(true);
            let mut last = 0;
            for _ in 0..2 {
                let generation = subscription.refresh().generation;
                assert!(generation >= last, "tables went back from {last} to {generation}");
                last = generation;
            }
            subscription
        });
        publisher.publish(Snapshot::default());
        publisher.publish(Snapshot::default());
        assert!(publisher.generation_in_use() <= 2);
        publisher.collect();
        drop(worker.join().expect("the worker's assertions hold"));
        assert_eq!(publisher.current().generation, 2);
    });
}

/// A worker takes commands, then tables (`Worker::begin_turn`): once it sweeps for a publish it decides by its tables, so that
/// nothing decided by older ones can come behind the sweep.
#[test]
fn a_sweep_never_runs_ahead_of_its_tables() {
    loom::model(|| {
        let mut publisher = Publisher::new();
        let mut subscription = publisher.subscribe();
        let commands = Arc::new(Mutex::new(Vec::new()));
        let received = Arc::clone(&commands);
        let worker = thread::spawn(move || {
            for _ in 0..2 {
                let sweeps: Vec<u64> = std::mem::take(&mut *received.lock().expect("no panic under the lock"));
                let generation = subscription.refresh().generation;
                let newest = sweeps.into_iter().max().unwrap_or(0);
                assert!(generation >= newest, "a sweep for {newest} beside decisions by {generation}");
            }
        });
        // As `Switch::publish` does it.
        for _ in 0..2 {
            let changes = publisher.publish(Snapshot::default());
            commands.lock().expect("no panic under the lock").push(changes.generation);
        }
        worker.join().expect("the worker's assertions hold");
    });
}
