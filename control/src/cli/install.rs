//! `millrace install` and `millrace uninstall`: Millrace onto a node, and off it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::Output;
use crate::agent::Step;
use crate::api::client::ApiError;
use crate::installation::removal::Removal;
use crate::installation::{CONFIGURATION_DIRECTORY, Installed, PLUGIN_DIRECTORY, network_configuration, plugin};

/// Time between two questions whether the agent is ready.
const PAUSE: Duration = Duration::from_millis(200);

/// Where the files are.
#[derive(Debug, Args)]
struct Places {
    /// Where the container runtime looks for plugins
    #[arg(long, value_name = "DIRECTORY", default_value = PLUGIN_DIRECTORY)]
    plugin_directory: PathBuf,
    /// Where the container runtime looks for network configurations
    #[arg(long, value_name = "DIRECTORY", default_value = CONFIGURATION_DIRECTORY)]
    configuration_directory: PathBuf,
    /// The agent's state directory
    #[arg(long, value_name = "DIRECTORY", default_value = millrace_cni::configuration::DEFAULT_STATE_DIRECTORY)]
    state_directory: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// Options of `millrace install`.
#[derive(Debug, Args)]
pub(super) struct InstallOptions {
    /// The plugin's program; else the millrace-cni beside this program, or this program itself
    #[arg(long, value_name = "FILE")]
    plugin: Option<PathBuf>,
    /// Install the plugin and nothing else: the agent writes the network configuration, where its file says so
    #[arg(long)]
    plugin_only: bool,
    /// How long to wait for an agent that can plug pods in, before the network configuration is written
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u32,
    #[command(flatten)]
    places: Places,
}

/// Options of `millrace uninstall`.
#[derive(Debug, Args)]
pub(super) struct UninstallOptions {
    /// Leave the plugin, which runtimes call once more for each pod that is still there
    #[arg(long)]
    keep_plugin: bool,
    /// Do not end when all is removed but wait to be told to: for a DaemonSet, whose pods may not end
    #[arg(long)]
    stay: bool,
    #[command(flatten)]
    places: Places,
}

/// What became of a file or a thing in the kernel.
#[derive(Debug, Serialize)]
struct Line {
    what: String,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Something could not be removed; what, is printed.
#[derive(Debug, thiserror::Error)]
#[error("{0} could not be removed, see above; run it again when the reason is mended")]
struct Left(usize);

pub(super) fn install(options: &InstallOptions) -> anyhow::Result<()> {
    let places = &options.places;
    let source = options.plugin.clone().unwrap_or_else(plugin::beside_this_program);
    let installed = plugin::install(&source, &places.plugin_directory)?;
    let mut lines = vec![Line::installed(places.plugin_directory.join(plugin::NAME), installed)];
    if !options.plugin_only {
        wait_for_agent(&places.output, Duration::from_secs(u64::from(options.wait)))?;
        let text = network_configuration::text(&places.output.socket, &places.state_directory);
        let installed = network_configuration::install(&places.configuration_directory, &text)?;
        lines.push(Line::installed(places.configuration_directory.join(network_configuration::NAME), installed));
        for name in network_configuration::before_ours(&places.configuration_directory) {
            let reason = Some(format!("container runtimes take it instead of {}", network_configuration::NAME));
            let what = places.configuration_directory.join(name).display().to_string();
            lines.push(Line { what, outcome: "comes first", reason });
        }
    }
    places.output.print(&lines, |lines| table(lines))
}

/// Without an agent that plugs pods in, a network configuration would only let them fail.
fn wait_for_agent(output: &Output, longest: Duration) -> Result<(), ApiError> {
    let (client, begin) = (output.client(), Instant::now());
    loop {
        match client.ready() {
            Ok(()) => return Ok(()),
            Err(error) if begin.elapsed() >= longest => return Err(error),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

pub(super) fn uninstall(options: &UninstallOptions) -> anyhow::Result<()> {
    let Places { plugin_directory, configuration_directory, state_directory, output } = &options.places;
    let removal = Removal {
        configuration_directory: configuration_directory.clone(),
        plugin_directory: plugin_directory.clone(),
        state_directory: state_directory.clone(),
        socket: output.socket.clone(),
        keep_plugin: options.keep_plugin,
    };
    let steps = removal.run()?;
    let left = steps.iter().filter(|step| step.outcome.is_err()).count();
    let lines: Vec<Line> = steps.iter().map(Line::of_step).collect();
    output.print(&lines, |lines| table(lines))?;
    if left > 0 {
        return Err(Left(left).into());
    }
    if options.stay { wait_for_end() } else { Ok(()) }
}

fn wait_for_end() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            _ = terminate.recv() => Ok(()),
            interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        }
    })
}

impl Line {
    fn installed(path: PathBuf, installed: Installed) -> Line {
        let outcome = match installed {
            Installed::Unchanged => "unchanged",
            Installed::Written => "written",
        };
        Line { what: path.display().to_string(), outcome, reason: None }
    }

    fn of_step(step: &Step) -> Line {
        let (outcome, reason) = match &step.outcome {
            Ok(true) => ("removed", None),
            Ok(false) => ("absent", None),
            Err(error) => ("stays", Some(format!("{error:#}"))),
        };
        Line { what: step.what.clone(), outcome, reason }
    }
}

fn table(lines: &[Line]) -> String {
    let line = |line: &Line| match &line.reason {
        Some(reason) => format!("{:<11} {}: {reason}\n", line.outcome, line.what),
        None => format!("{:<11} {}\n", line.outcome, line.what),
    };
    lines.iter().map(line).collect()
}
