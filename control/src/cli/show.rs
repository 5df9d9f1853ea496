//! `millrace show`: asks the agent for one document and prints it.

use clap::{Args, Subcommand};

use super::{Output, table};
use crate::api::model::{DropReport, NeighbourReport, PortReport, RouteReport, StationReport, WorkerReport};

/// Options of `millrace show`.
#[derive(Debug, Args)]
pub(super) struct ShowOptions {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Ports: what they are, how they work, what passed through them
    Ports,
    /// Worker threads: how busy they are, how well their flow caches work
    Workers,
    /// Routes of every segment
    Routes,
    /// Next hops on the underlay
    Neighbours,
    /// Stations of bridged segments: where each lives and how long it has been silent
    Fdb,
    /// Pools, blocks, and the addresses in use on this node
    Ipam,
    /// Entries of the flow caches
    Flows {
        /// How many at most
        #[arg(long, default_value_t = 1_000)]
        limit: usize,
    },
    /// Dropped frames by reason, with what to check next
    Drops,
    /// The node, its tables, and what is wrong with its objects
    Status,
}

pub(super) fn run(options: &ShowOptions) -> anyhow::Result<()> {
    let (output, client) = (&options.output, options.output.client());
    match &options.what {
        What::Ports => output.print(&client.show::<Vec<PortReport>>("ports")?, |list| table::ports(list)),
        What::Workers => output.print(&client.show::<Vec<WorkerReport>>("workers")?, |list| table::workers(list)),
        What::Routes => output.print(&client.show::<Vec<RouteReport>>("routes")?, |list| table::routes(list)),
        What::Neighbours => {
            output.print(&client.show::<Vec<NeighbourReport>>("neighbours")?, |list| table::neighbours(list))
        }
        What::Fdb => output.print(&client.show::<Vec<StationReport>>("fdb")?, |list| table::stations(list)),
        What::Ipam => output.print(&client.show("ipam")?, table::ipam),
        What::Flows { limit } => output.print(&client.show(&format!("flows?limit={limit}"))?, table::flows),
        What::Drops => output.print(&client.show::<Vec<DropReport>>("drops")?, |list| table::drops(list)),
        What::Status => output.print(&client.show("status")?, table::status),
    }
}
