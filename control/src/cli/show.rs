//! `millrace show`: asks the agent for one document and prints it.

use clap::{Args, Subcommand};

use super::{Output, table};
use crate::api::model::{
    DropReport, NeighbourReport, PortReport, ReceiptReport, RouteReport, ServiceReport, StationReport, WorkerReport,
};

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
    /// Services: addresses, endpoints with their state, connections given and alive
    Services,
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
    /// Connections: who speaks to whom, in which state
    Connections {
        /// How many at most
        #[arg(long, default_value_t = 1_000)]
        limit: usize,
        /// Only those of this pod: NAMESPACE/NAME
        #[arg(long)]
        pod: Option<String>,
        /// Only those in this state, as Linux names it: ESTABLISHED, SYN_SENT, UNREPLIED
        #[arg(long)]
        state: Option<String>,
        /// Only those opened to this Service: NAMESPACE/NAME, or one port of it, NAMESPACE/NAME:PORT
        #[arg(long)]
        service: Option<String>,
    },
    /// Policies that judge pods of this node, with what each rule decided
    Policies {
        /// Only those of one pod of this node, in the order in which they are asked
        #[arg(long, value_name = "NAMESPACE/POD")]
        pod: Option<String>,
    },
    /// Services, their endpoints and policies: which version every worker decides by, since when, how long it took
    Receipts {
        /// Only objects of this name: NAMESPACE/NAME, or NAME of a kind without namespaces
        name: Option<String>,
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
        What::Services => output.print(&client.show::<Vec<ServiceReport>>("services")?, |list| table::services(list)),
        What::Neighbours => {
            output.print(&client.show::<Vec<NeighbourReport>>("neighbours")?, |list| table::neighbours(list))
        }
        What::Fdb => output.print(&client.show::<Vec<StationReport>>("fdb")?, |list| table::stations(list)),
        What::Ipam => output.print(&client.show("ipam")?, table::ipam),
        What::Flows { limit } => output.print(&client.show(&format!("flows?limit={limit}"))?, table::flows),
        What::Connections { limit, pod, state, service } => {
            let part = |name: &str, value: &Option<String>| match value {
                Some(value) => format!("&{name}={}", percent_encoded(value)),
                None => String::new(),
            };
            let filters = [("pod", pod), ("state", state), ("service", service)].map(|(name, value)| part(name, value));
            let path = format!("connections?limit={limit}{}", filters.concat());
            output.print(&client.show(&path)?, table::connections)
        }
        What::Policies { pod } => {
            let pod = pod.as_ref().map(|pod| format!("?pod={}", percent_encoded(pod))).unwrap_or_default();
            output.print(&client.show(&format!("policies{pod}"))?, table::policies)
        }
        What::Receipts { name } => {
            let mut list = client.show::<Vec<ReceiptReport>>("receipts")?;
            list.retain(|receipt| name.as_ref().is_none_or(|name| receipt.name == *name));
            output.print(&list, |list| table::receipts(list))
        }
        What::Drops => output.print(&client.show::<Vec<DropReport>>("drops")?, |list| table::drops(list)),
        What::Status => output.print(&client.show("status")?, table::status),
    }
}

/// A value as a query may carry it (RFC 3986 section 2.1).
pub(super) fn percent_encoded(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    let encode = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    value.bytes().map(encode).collect()
}
