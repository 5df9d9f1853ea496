//! Question: what does TCP between two pods of one node reach through the switch, beside the Linux bridge?
//!
//! Shape: two pods in network namespaces of their own, made anew for each backend; one TCP stream by the demo's own
//! tool, then transactions of one byte. Backends: `bridge` (veth pods on a Linux bridge), `tap` (TAP pods on a switch
//! of this process, built by the production constructor, one worker). Repetitions are interleaved, so that a
//! machine with other work treats all alike; quote ratios of one run.
//! Unit: Gbit/s of payload, seconds of processor time of this process for each second and Gbit, microseconds.
//! `--worker` and `--ends` pin the worker, or both ends together, to a core. Needs root; bounded by its options.

mod backend;
mod bridge;
mod measure;
mod switch;

use std::time::Duration;

use anyhow::ensure;
use clap::Parser;

use backend::{Backend, Kind};
use measure::{Series, measure};

/// TCP through the switch beside the kernel's bridge, interleaved.
#[derive(Debug, Parser)]
struct Options {
    /// Backends to compare, in this order; the first is what the others are divided by
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Kind::Bridge, Kind::Tap])]
    backends: Vec<Kind>,
    /// Repetitions of each
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Milliseconds of each measurement
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(50..=10_000))]
    milliseconds: u64,
    /// Core of the worker; it is free to move otherwise
    #[arg(long)]
    worker: Option<usize>,
    /// Microseconds the worker spins before it sleeps
    #[arg(long)]
    spin: Option<u64>,
    /// Core of both ends; they are free to move otherwise
    #[arg(long)]
    ends: Option<usize>,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    ensure!(rustix::process::geteuid().is_root(), "network namespaces are made: run it as root");
    let duration = Duration::from_millis(options.milliseconds);
    let backends = options.backends.iter().map(|kind| Backend::build(*kind, options.worker, options.spin));
    let backends = backends.collect::<anyhow::Result<Vec<_>>>()?;
    let mut series: Vec<Series> = backends.iter().map(|backend| Series::new(backend.kind)).collect();
    for round in 0..options.rounds {
        for (backend, series) in backends.iter().zip(&mut series) {
            let sample = measure(&backend.pods, options.ends, duration)?;
            eprintln!("round {round}: {:8} {}", backend.kind.name(), sample.text());
            series.samples.push(sample);
        }
    }
    let base = series.first().map(Series::stream_median);
    series.iter().for_each(|series| println!("{}", series.text(base.unwrap_or(f64::NAN))));
    Ok(())
}
