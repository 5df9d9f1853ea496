//! `millrace agent`: checks the configuration and runs the agent.

use std::path::PathBuf;

use clap::Args;

use super::print_text;
use crate::agent::{HOST_INTERFACE, Start};
use crate::api::client::Client;
use crate::api::model::StatusReport;
use crate::configuration::{Configuration, DEFAULT_FILE};

/// Options of `millrace agent`.
#[derive(Debug, Args)]
pub(super) struct AgentOptions {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = DEFAULT_FILE)]
    config: PathBuf,
    /// Take the objects from the API server that this kubeconfig leads to, whatever the configuration file says
    #[arg(long, value_name = "FILE", conflicts_with = "in_cluster")]
    kubeconfig: Option<PathBuf>,
    /// Take the objects from the API server of the cluster that this process is a pod of
    #[arg(long)]
    in_cluster: bool,
    /// Name of this node, as its Node object is called, whatever the configuration file says
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Print the default configuration with comments, and stop
    #[arg(long, conflicts_with = "check")]
    print_default: bool,
    /// Remove the host's own port, millrace0, with its addresses and routes, and stop: for a node that Millrace leaves
    #[arg(long, conflicts_with_all = ["check", "print_default"])]
    remove_host_port: bool,
    /// Take over from the agent that runs here, without losing a packet; if that fails it goes on
    #[arg(long, conflicts_with_all = ["check", "print_default", "remove_host_port"])]
    takeover: bool,
    /// Check the configuration, and stop
    #[arg(long)]
    check: bool,
}

pub(super) fn run(options: &AgentOptions) -> anyhow::Result<()> {
    if options.print_default {
        return print_text(&Configuration::default_text());
    }
    let configuration = Configuration::load(&options.config)?;
    let configuration = match &options.kubeconfig {
        Some(file) => configuration.with_kubeconfig(file.clone()),
        None if options.in_cluster => configuration.within_cluster(),
        None => configuration,
    };
    let configuration = match &options.node {
        Some(name) => configuration.for_node(name.clone()),
        None => configuration,
    };
    if options.check {
        return print_text(&format!("{} is valid\n", options.config.display()));
    }
    if options.remove_host_port {
        return remove_host_port(&configuration);
    }
    let start = if options.takeover { Start::Takeover } else { Start::Anew };
    crate::agent::run_as(&configuration, start)
}

/// A running agent would only make it again.
fn remove_host_port(configuration: &Configuration) -> anyhow::Result<()> {
    if Client::new(configuration.socket().to_owned()).show::<StatusReport>("status").is_ok() {
        anyhow::bail!("an agent is running at {}: stop it first", configuration.socket().display());
    }
    let removed = crate::agent::remove_host_port()?;
    print_text(&format!("{HOST_INTERFACE} {}\n", if removed { "is removed" } else { "is not there" }))
}
