//! `millrace replay`: captures through the engine, offline and without root.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::{Format, print_text};
use crate::cluster::NodeName;
use crate::replay::{PacketReport, ReplayClock, ReplayOptions, replay};

/// Options of `millrace replay`.
#[derive(Debug, Args)]
#[command(after_help = "Ports: NAMESPACE/POD for a pod of the node, or the interface of an Uplink.")]
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

pub(super) fn run(arguments: &ReplayArguments) -> anyhow::Result<()> {
    let node = NodeName::new(&arguments.node).with_context(|| format!("--node {:?}", arguments.node))?;
    let options = ReplayOptions {
        objects: arguments.objects.clone(),
        node,
        inputs: arguments.inputs.clone(),
        out: arguments.out.clone(),
        workers: usize::from(arguments.workers),
        clock: arguments.clock,
    };
    let mut text = String::new();
    let summary = replay(&options, |report| text += &line(report, arguments.format))?;
    print_text(&text)?;
    let mut log = io::stderr();
    for problem in &summary.problems {
        let _ = writeln!(log, "problem: {problem}");
    }
    let _ = writeln!(
        log,
        "{} packets in, {} out, {} with a drop; tables of generation {}",
        summary.packets, summary.sent, summary.dropped, summary.generation
    );
    Ok(())
}

/// One line a packet, in either form.
fn line(report: &PacketReport, format: Format) -> String {
    match format {
        Format::Table => format!("{report}\n"),
        Format::Json => serde_json::to_string(report).unwrap_or_else(|error| error.to_string()) + "\n",
    }
}
