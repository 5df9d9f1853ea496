//! `millrace policy`: what policies would do before they are applied, and what they let through.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};

use super::check::Found;
use super::replay::input;
use super::{Output, table};
use crate::api::model::{PolicyDiffReport, PolicyDiffRequest, PolicyReachReport};
use crate::cluster::NodeName;
use crate::policy_preview::Proposal;
use crate::policy_preview::reach::{Question, Selection};
use crate::replay::{ReplayClock, ReplayOptions, policies};

/// Options of `millrace policy`.
#[derive(Debug, Args)]
pub(super) struct PolicyOptions {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List the flows whose verdict would change with these objects, and which rule would do it; changes nothing
    Diff(DiffOptions),
    /// Print who may reach whom on which ports, and which rules no flow has used
    Reach(ReachOptions),
}

#[derive(Debug, Args)]
struct DiffOptions {
    /// Policies, also namespaces, pods and nodes, to be applied; `-` is standard input
    #[arg(short = 'f', long = "file", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// As if the objects in the files were deleted
    #[arg(long)]
    delete: bool,
    /// Flows listed, at most; all are counted
    #[arg(long, default_value_t = 1_000)]
    limit: usize,
    /// End with exit code 5 if any verdict would change
    #[arg(long)]
    exit_code: bool,
    #[command(flatten)]
    offline: Offline,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
#[command(after_help = "WHO: NAMESPACE/POD, NAMESPACE/* or an address.")]
struct ReachOptions {
    /// Who opens; without it all pods
    #[arg(long, value_name = "WHO", value_parser = Selection::read)]
    from: Option<Selection>,
    /// Who answers; without it all pods
    #[arg(long, value_name = "WHO", value_parser = Selection::read)]
    to: Option<Selection>,
    /// Pairs listed, at most; all are counted
    #[arg(long, default_value_t = 1_000)]
    limit: usize,
    #[command(flatten)]
    offline: Offline,
    #[command(flatten)]
    output: Output,
}

/// A node made of objects and captures, in place of the agent.
#[derive(Debug, Args)]
struct Offline {
    /// Ask a directory of objects instead of the agent
    #[arg(long, value_name = "DIR", requires = "node")]
    objects: Option<PathBuf>,
    /// The node to be
    #[arg(long, value_name = "NAME", requires = "objects")]
    node: Option<String>,
    /// A capture (pcap or pcapng) whose frames arrive at a port; may be given for several ports
    #[arg(long = "in", value_name = "PORT=FILE", requires = "objects", value_parser = input)]
    inputs: Vec<(String, PathBuf)>,
}

impl Offline {
    fn replay(&self) -> anyhow::Result<Option<ReplayOptions>> {
        let (Some(objects), Some(node)) = (&self.objects, &self.node) else { return Ok(None) };
        Ok(Some(ReplayOptions {
            objects: objects.clone(),
            node: NodeName::new(node).with_context(|| format!("--node {node:?}"))?,
            inputs: self.inputs.clone(),
            out: None,
            workers: 1,
            clock: ReplayClock::Capture,
        }))
    }
}

pub(super) fn run(options: &PolicyOptions) -> anyhow::Result<()> {
    match &options.what {
        What::Diff(options) => diff(options),
        What::Reach(options) => reach(options),
    }
}

fn diff(options: &DiffOptions) -> anyhow::Result<()> {
    let proposal = Proposal::from_files(&options.files, options.delete)?;
    let report = match options.offline.replay()? {
        Some(replay) => {
            if replay.inputs.is_empty() {
                anyhow::bail!("offline there are no flows without a capture: give --in PORT=FILE");
            }
            let (report, problems) = policies::diff(&replay, &proposal, options.limit)?;
            PolicyDiffReport { problems: problems.iter().map(Into::into).collect(), ..report }
        }
        None => {
            let request =
                PolicyDiffRequest { objects: proposal.to_json(), delete: options.delete, limit: Some(options.limit) };
            options.output.client().policy_diff(&request)?
        }
    };
    options.output.print(&report, table::policy_diff)?;
    if options.exit_code && report.changing > 0 {
        return Err(Found(format!("{} flows whose verdict would change", report.changing)).into());
    }
    Ok(())
}

fn reach(options: &ReachOptions) -> anyhow::Result<()> {
    let report: PolicyReachReport = match options.offline.replay()? {
        Some(replay) => {
            let (from, to) = (options.from.clone().unwrap_or_default(), options.to.clone().unwrap_or_default());
            policies::reach(&replay, &Question { from, to, limit: options.limit })?
        }
        None => {
            let part = |name: &str, selection: &Option<Selection>| match selection {
                Some(selection) => format!("&{name}={}", super::show::percent_encoded(&selection.to_string())),
                None => String::new(),
            };
            let (from, to) = (part("from", &options.from), part("to", &options.to));
            options.output.client().document(&format!("/v1/policy/reach?limit={}{from}{to}", options.limit))?
        }
    };
    options.output.print(&report, table::policy_reach)
}
