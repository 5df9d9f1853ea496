//! Processor time: of the whole machine, whoever uses it (a kernel's part runs in anybody's name), and of single processes.

use std::time::Instant;

use anyhow::Context;
use rustix::process::Pid;

/// Ticks of `/proc/stat` (`USER_HZ`): the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// A reading of the machine.
pub(crate) struct Machine {
    at: Instant,
    busy: u64,
}

impl Machine {
    pub(crate) fn read() -> anyhow::Result<Machine> {
        let text = std::fs::read_to_string("/proc/stat")?;
        let line = text.lines().next().and_then(|line| line.strip_prefix("cpu ")).context("/proc/stat")?;
        let ticks: Vec<u64> = line.split_whitespace().filter_map(|ticks| ticks.parse().ok()).collect();
        // user, nice, system, (idle, iowait,) irq, softirq
        let busy = [0, 1, 2, 5, 6].iter().filter_map(|place| ticks.get(*place)).sum();
        Ok(Machine { at: Instant::now(), busy })
    }

    /// Processors in use since the reading.
    pub(crate) fn used(&self) -> anyhow::Result<f64> {
        let now = Machine::read()?;
        let seconds = now.at.duration_since(self.at).as_secs_f64();
        Ok((now.busy - self.busy) as f64 / TICKS_PER_SECOND / seconds.max(1e-9))
    }
}

/// Seconds that all threads of these processes have run (`schedstat`).
pub(crate) fn run_time(processes: &[Pid]) -> f64 {
    let threads = |process: &Pid| std::fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero()));
    let threads = processes.iter().filter_map(|process| threads(process).ok()).flatten().flatten();
    let time = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("schedstat")).ok());
    let nanoseconds = time.filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    nanoseconds.sum::<u64>() as f64 / 1e9
}
