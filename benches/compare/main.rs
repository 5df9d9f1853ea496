//! Question: what do pods reach through this switch, beside the kernel's own network and Open vSwitch?
//!
//! Shape: two nodes joined by a veth pair and three pods, made anew for each backend ([`site`]); the same loads over each
//! ([`load`]): TCP streams, 64-byte frames, transactions, connections; pod to pod on a node and across, and through a
//! Service among many. All backends stand at once, but only the one that is measured runs: the processes of the others
//! are stopped. Rounds are interleaved, so that a machine with other work treats all alike. Every backend may use all
//! processors; worker threads (of this switch and of Open vSwitch) are pinned one for each node, each on its own core.
//! Unit: stated with each value. Writes each value, a table, charts and what machine it was into `--output`. Needs
//! root; all traffic stays in namespaces of its own; bounded by its options.

mod backend;
mod chart;
mod kernel;
mod load;
mod machine;
mod measure;
mod millrace;
mod openvswitch;
mod processors;
mod program;
mod results;
mod services;
mod site;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Parser;

use backend::{Backend, Kind, build, pause};
use measure::{Metric, Value};
use results::Sample;
use services::Services;

/// This switch beside the kernel and Open vSwitch, the same loads, interleaved.
#[derive(Debug, Parser)]
struct Options {
    /// What to compare; what is not installed is left out, and said
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Kind::Millrace, Kind::MillraceAfXdp, Kind::Nftables, Kind::Iptables, Kind::OvsAfxdp, Kind::OvsSystem])]
    backends: Vec<Kind>,
    /// Repetitions of each
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Milliseconds of each measurement
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(50..=10_000))]
    milliseconds: u64,
    /// How many Services there are, one run of the Service's loads for each
    #[arg(long, value_delimiter = ',', default_values_t = [10, 1_000], value_parser = clap::value_parser!(u32).range(1..=20_000))]
    services: Vec<u32>,
    /// Leave pod to pod out
    #[arg(long)]
    only_services: bool,
    /// Directory to write results into
    #[arg(long)]
    output: Option<PathBuf>,
}

/// A backend with what was measured of it.
struct Entry {
    kind: Kind,
    backend: Box<dyn Backend>,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    ensure!(rustix::process::geteuid().is_root(), "network namespaces are made: run it as root");
    let machine = machine::describe();
    let mut entries = Vec::new();
    for kind in &options.backends {
        if let Some(packages) = kind.missing() {
            eprintln!("{} is left out: apt-get install {packages}", kind.name());
            continue;
        }
        let backend = build(*kind).with_context(|| format!("cannot build {}", kind.name()))?;
        pause(&*backend, true);
        entries.push(Entry { kind: *kind, backend });
    }
    let mut samples = Vec::new();
    if !options.only_services {
        each_round(&options, &mut entries, &mut samples, |backend, duration, values| {
            measure::pods(backend, duration, values)
        })?;
    }
    for count in &options.services {
        program(&mut entries, *count as usize, &mut samples)?;
        each_round(&options, &mut entries, &mut samples, |backend, duration, values| {
            measure::service(backend, services(backend, *count as usize)?, duration, values)
        })?;
    }
    drop(entries);
    let table = results::table(&samples);
    println!("{}", results::markdown(&table));
    match &options.output {
        Some(directory) => write(directory, &machine, &options, &samples, &table),
        None => {
            eprintln!("for files: --output benches/results/DATE-{}", machine::short_name());
            Ok(())
        }
    }
}

fn services(backend: &dyn Backend, count: usize) -> anyhow::Result<Services> {
    let far = *backend.ends().far.addresses.first().context("an end without an address")?;
    Ok(Services { count, far })
}

/// Every backend in turn, as often as there are rounds; the others stand still meanwhile.
fn each_round(
    options: &Options,
    entries: &mut [Entry],
    samples: &mut Vec<Sample>,
    measure: impl Fn(&dyn Backend, Duration, &mut Vec<Value>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let duration = Duration::from_millis(options.milliseconds);
    for round in 0..usize::from(options.rounds) {
        for Entry { kind, backend } in entries.iter() {
            let mut values = Vec::new();
            pause(&**backend, false);
            let measured = measure(&**backend, duration, &mut values);
            pause(&**backend, true);
            // What one backend cannot do is no reason to lose what the others can.
            if let Err(error) = measured {
                eprintln!("round {round}: {}: {error:#}", kind.name());
            }
            eprintln!("round {round}: {}: {} values", kind.name(), values.len());
            samples.extend(values.into_iter().map(|value| Sample { backend: kind.name(), round, value }));
        }
    }
    Ok(())
}

fn program(entries: &mut [Entry], count: usize, samples: &mut Vec<Sample>) -> anyhow::Result<()> {
    for Entry { kind, backend } in entries {
        let services = services(&**backend, count)?;
        pause(&**backend, false);
        let took = backend.program(services);
        pause(&**backend, true);
        match took {
            Ok(took) => {
                eprintln!("{count} Services in {}: {took:.2?}", kind.name());
                let metric = Metric { way: format!("Service of {count}"), load: "programming all", unit: "seconds" };
                let value = Value { metric, value: took.as_secs_f64() };
                samples.push(Sample { backend: kind.name(), round: 0, value });
            }
            Err(error) => eprintln!("{count} Services in {}: {error:#}", kind.name()),
        }
    }
    Ok(())
}

fn write(
    directory: &Path,
    machine: &str,
    options: &Options,
    samples: &[Sample],
    table: &results::Table,
) -> anyhow::Result<()> {
    let charts = directory.join("charts");
    std::fs::create_dir_all(&charts)?;
    std::fs::write(directory.join("samples.csv"), results::csv(samples))?;
    let head = format!(
        "# Comparison\n\n{machine}- {} rounds of {} ms each\n\nMedians, in brackets lowest to highest. How it is taken: \
         [benchmarking](../../../docs/benchmarking.md).\n\n",
        options.rounds, options.milliseconds
    );
    std::fs::write(directory.join("README.md"), head + &results::markdown(table))?;
    for (name, text) in chart::charts(table) {
        std::fs::write(charts.join(name), text)?;
    }
    Ok(())
}
