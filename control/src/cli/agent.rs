//! `millrace agent`: checks the configuration and runs the agent.

use std::path::PathBuf;

use clap::Args;

use super::print_text;
use crate::configuration::{Configuration, DEFAULT_FILE};

/// Options of `millrace agent`.
#[derive(Debug, Args)]
pub(super) struct AgentOptions {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = DEFAULT_FILE)]
    config: PathBuf,
    /// Print the default configuration with comments, and stop
    #[arg(long, conflicts_with = "check")]
    print_default: bool,
    /// Check the configuration, and stop
    #[arg(long)]
    check: bool,
}

pub(super) fn run(options: &AgentOptions) -> anyhow::Result<()> {
    if options.print_default {
        return print_text(&Configuration::default_text());
    }
    let configuration = Configuration::load(&options.config)?;
    if options.check {
        return print_text(&format!("{} is valid\n", options.config.display()));
    }
    crate::agent::run(&configuration)
}
