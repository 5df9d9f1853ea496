//! Plugins and agents are killed, namespaces vanish, the disk is full: nothing stays behind that nobody holds.
//!
//! Two tests. One makes calls by chance with faults at any moment and compares everything after each hundred; the other
//! puts one fault before each step of each verb in turn. Both work on a disk of their own, in a process with mounts of
//! its own. A usual run makes some hundred calls and meets every so many steps; `MILLRACE_FAULT_CALLS=10000` makes so many
//! calls and meets every step, `MILLRACE_FAULT_SEED` chooses others.

mod books;
mod disk;
mod numbers;
mod random;
mod sandbox;
mod steps;
mod tracer;
mod world;

use std::time::Instant;

use world::World;

/// Calls of a usual run.
const CALLS: usize = 400;

/// Of how many steps a usual run meets one.
const STRIDE: usize = 16;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn seed() -> u64 {
    setting("MILLRACE_FAULT_SEED").unwrap_or(5)
}

pub(crate) fn nothing_is_lost_whatever_goes_wrong() {
    disk::with_own_mounts("nothing_is_lost_whatever_goes_wrong", || {
        let calls = setting("MILLRACE_FAULT_CALLS").map_or(CALLS, |calls| calls as usize);
        let mut world = World::create();
        let begin = Instant::now();
        let tally = random::make_calls(&mut world, calls, seed());
        tally.print(begin.elapsed());
        tally.assert_bounded();
    });
}

pub(crate) fn nothing_is_lost_at_any_step() {
    disk::with_own_mounts("nothing_is_lost_at_any_step", || {
        let stride = if setting("MILLRACE_FAULT_CALLS").is_some() { 1 } else { STRIDE };
        let mut world = World::create();
        let begin = Instant::now();
        let faults = steps::go_through(&mut world, stride, seed() as usize);
        println!("{faults} faults, {} agents in {:.0} s", world.started, begin.elapsed().as_secs_f64());
    });
}
