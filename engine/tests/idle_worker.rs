//! A worker with a thread of its own that nobody gives anything to do.

use std::time::{Duration, Instant};

use millrace_engine::switch::{Switch, SwitchOptions};
use rustix::thread::{CpuSet, Pid, sched_getaffinity};

/// Where the kernel may run the thread of this name.
fn allowed(name: &str) -> Option<CpuSet> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("tasks").flatten();
    let named = tasks
        .into_iter()
        .find(|task| std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name))?;
    let thread = named.file_name().to_str().and_then(|number| number.parse().ok()).and_then(Pid::from_raw);
    sched_getaffinity(thread).ok()
}

#[test]
fn it_gives_its_processor_up_for_a_long_sleep() {
    let anywhere = sched_getaffinity(None).expect("affinity");
    let core = (0..CpuSet::MAX_CPU).find(|core| anywhere.is_set(*core)).expect("a processor");
    let mut switch = Switch::new(SwitchOptions { cores: vec![core], ..SwitchOptions::default() }).expect("a switch");
    switch.start().expect("a thread");
    let patience = Instant::now() + Duration::from_secs(5);
    while allowed("worker-0").is_none_or(|allowed| allowed != anywhere) {
        assert!(Instant::now() < patience, "the worker sleeps where only {:?} may wake it", allowed("worker-0"));
        std::thread::sleep(Duration::from_millis(5));
    }
    switch.stop();
}
