//! `millrace demo`: the newcomer's command.

use std::time::Duration;

use anyhow::bail;
use clap::Args;

use super::{Format, print_text};
use crate::demo;

/// Options of `millrace demo`.
#[derive(Debug, Args)]
pub(super) struct DemoOptions {
    /// Leave the cluster standing and print how to look around
    #[arg(long)]
    keep: bool,
    /// Remove clusters that were kept, and what killed runs left
    #[arg(long, conflicts_with = "keep")]
    remove: bool,
    /// How to print the result
    #[arg(short = 'o', long = "output", value_enum, default_value_t)]
    format: Format,
    /// Workers of each node's agent
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    workers: u8,
    /// Seconds of each measurement
    #[arg(long, value_name = "SECONDS", default_value = "2", hide = true, value_parser = parse_seconds)]
    seconds: Duration,
}

/// Everything works, but a goal of speed was missed: often the machine was busy.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("everything works, but a goal of speed was missed; the report says which")]
pub(super) struct GoalMissed;

pub(super) fn run(options: &DemoOptions) -> anyhow::Result<()> {
    if options.remove {
        let count = demo::remove()?;
        return match options.format {
            Format::Table => print_text(&format!("{count} removed\n")),
            Format::Json => print_text(&format!("{}\n", serde_json::json!({ "removed": count }))),
        };
    }
    let outcome = demo::run(&demo::Options {
        keep: options.keep,
        duration: options.seconds,
        workers: usize::from(options.workers),
    })?;
    match options.format {
        Format::Table => print_text(&outcome.to_text())?,
        Format::Json => print_text(&outcome.to_json()?)?,
    }
    if let Some(guide) = outcome.guide() {
        match options.format {
            Format::Table => print_text(&format!("\n{guide}"))?,
            // Standard output is the document.
            Format::Json => eprint!("{guide}"),
        }
    }
    match (outcome.held(), outcome.works()) {
        (true, _) => Ok(()),
        (false, true) => Err(GoalMissed.into()),
        (false, false) => bail!("not every check held; the report says which"),
    }
}

fn parse_seconds(text: &str) -> Result<Duration, &'static str> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let allowed = Duration::from_millis(50)..=Duration::from_secs(60);
    seconds.filter(|seconds| allowed.contains(seconds)).ok_or("a number from 0.05 to 60")
}
