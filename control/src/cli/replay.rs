//! `millrace replay`: captures through the engine, offline and without root.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::check::Found;
use super::{Format, print_text};
use crate::cluster::NodeName;
use crate::problem::Problem;
use crate::replay::{Comparison, Conditions, PacketReport, ReplayClock, ReplayOptions, against, expect, replay_under};

/// Options of `millrace replay`.
#[derive(Debug, Args)]
#[command(
    after_help = "Ports: NAMESPACE/POD for a pod of the node, the interface of an Uplink, the name of a Port, or millrace0 \
    for the host's own. Exit code 5: with --against or --expect, the fate of a packet differs."
)]
pub(super) struct ReplayArguments {
    /// Directory of objects, as the agent's
    #[arg(long, value_name = "DIR")]
    objects: PathBuf,
    /// The node to be
    #[arg(long, value_name = "NAME")]
    node: String,
    /// A capture (pcap or pcapng) whose frames arrive at a port; may be given for several ports
    #[arg(long = "in", value_name = "PORT=FILE", required = true, value_parser = input)]
    inputs: Vec<(String, PathBuf)>,
    /// Write what leaves by each port into this directory, as pcapng
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Simulated workers; they change nothing of the result
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    workers: u8,
    /// What moves the clock: `capture`, or microseconds from packet to packet
    #[arg(long, value_name = "CLOCK", default_value = "capture", value_parser = clock)]
    clock: ReplayClock,
    /// Set the captures against other objects: list the packets whose fate would differ
    #[arg(long, value_name = "OTHER-OBJECTS", conflicts_with_all = ["expect", "out", "changes"])]
    against: Option<PathBuf>,
    /// Set the captures against what an earlier run wrote with --out: list the packets whose fate differs
    #[arg(long, value_name = "DIR", conflicts_with = "out")]
    expect: Option<PathBuf>,
    /// Other objects that come in force so many seconds after the first packet; may be given several times, in order
    #[arg(long = "change", value_name = "SECONDS=DIR", value_parser = change)]
    changes: Vec<(Duration, PathBuf)>,
    /// Let frames of one port with one time stamp arrive together, so that segments may be joined
    #[arg(long)]
    together: bool,
    /// Use plain code, as on a processor without vector instructions; it changes nothing of the result
    #[arg(long)]
    plain_code: bool,
    /// How to print the packets
    #[arg(short = 'o', long = "output", value_enum, default_value_t)]
    format: Format,
}

pub(super) fn input(text: &str) -> Result<(String, PathBuf), String> {
    let (port, file) = text.split_once('=').ok_or("it is not PORT=FILE")?;
    if port.is_empty() || file.is_empty() {
        return Err("it is not PORT=FILE".to_owned());
    }
    Ok((port.to_owned(), file.into()))
}

fn clock(text: &str) -> Result<ReplayClock, String> {
    if text == "capture" {
        return Ok(ReplayClock::Capture);
    }
    let microseconds = text.parse::<u32>().map_err(|_| "it is neither `capture` nor a number of microseconds")?;
    Ok(ReplayClock::Step(Duration::from_micros(microseconds.into())))
}

fn change(text: &str) -> Result<(Duration, PathBuf), String> {
    let (seconds, directory) = input(text).map_err(|_| "it is not SECONDS=DIR")?;
    let seconds = seconds.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    Ok((seconds.ok_or("it does not begin with a number of seconds")?, directory))
}

pub(super) fn run(arguments: &ReplayArguments) -> anyhow::Result<()> {
    if arguments.plain_code {
        millrace_engine::processor::use_plain_code();
    }
    let node = NodeName::new(&arguments.node).with_context(|| format!("--node {:?}", arguments.node))?;
    let options = ReplayOptions {
        objects: arguments.objects.clone(),
        node,
        inputs: arguments.inputs.clone(),
        out: arguments.out.clone(),
        workers: usize::from(arguments.workers),
        clock: arguments.clock,
    };
    let conditions = Conditions { changes: arguments.changes.clone(), together: arguments.together };
    if !conditions.changes.is_sorted_by_key(|(at, _)| *at) {
        anyhow::bail!("--change: give the changes in order of time");
    }
    if let Some(other) = &arguments.against {
        return compared(&against(&options, &conditions, other)?, ["now", "then"], arguments.format);
    }
    if let Some(stored) = &arguments.expect {
        return compared(&expect(&options, &conditions, stored)?, ["stored", "now"], arguments.format);
    }
    let mut text = String::new();
    let summary = replay_under(&options, &conditions, |fate| text += &line(&fate.report, arguments.format))?;
    print_text(&text)?;
    tell_problems(&summary.problems);
    let mut log = io::stderr();
    let _ = writeln!(
        log,
        "{} packets in, {} out, {} with a drop; tables of generation {}",
        summary.packets, summary.sent, summary.dropped, summary.generation
    );
    Ok(())
}

fn tell_problems(problems: &[Problem]) {
    for problem in problems {
        let _ = writeln!(io::stderr(), "problem: {problem}");
    }
}

/// Prints what differs; an error if something does.
fn compared(comparison: &Comparison, [one, other]: [&str; 2], format: Format) -> anyhow::Result<()> {
    let text = match format {
        Format::Table => {
            let differences = comparison.differences.iter().map(|difference| difference.text(one, other));
            differences.chain([format!("{comparison}\n")]).collect()
        }
        Format::Json => serde_json::to_string_pretty(comparison)? + "\n",
    };
    print_text(&text)?;
    tell_problems(&comparison.problems);
    match comparison.differing {
        0 => Ok(()),
        1 => Err(Found("1 packet with another fate".to_owned()).into()),
        count => Err(Found(format!("{count} packets with another fate")).into()),
    }
}

/// One line a packet, in either form.
fn line(report: &PacketReport, format: Format) -> String {
    match format {
        Format::Table => format!("{report}\n"),
        Format::Json => serde_json::to_string(report).unwrap_or_else(|error| error.to_string()) + "\n",
    }
}
