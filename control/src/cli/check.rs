//! `millrace check`: looks for what should not be. Exit code 5 if something is found.

use clap::{Args, Subcommand};

use super::{Output, table};
use crate::api::model::IpamCheckReport;

/// Options of `millrace check`.
#[derive(Debug, Args)]
pub(super) struct CheckOptions {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Addresses held without a pod, pods without their address, blocks of vanished nodes, and what to do about each
    Ipam,
}

/// Something was found; what, is printed.
#[derive(Debug, thiserror::Error)]
#[error("{0} found, see above")]
pub(super) struct Found(pub(super) String);

pub(super) fn run(options: &CheckOptions) -> anyhow::Result<()> {
    let What::Ipam = options.what;
    let report: IpamCheckReport = options.output.client().document("/v1/check/ipam")?;
    options.output.print(&report, table::ipam_check)?;
    match report.findings.len() {
        0 => Ok(()),
        1 => Err(Found("1 leak".to_owned()).into()),
        count => Err(Found(format!("{count} leaks")).into()),
    }
}
