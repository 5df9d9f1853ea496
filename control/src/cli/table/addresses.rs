//! `show ipam` and `check ipam` for people.

use std::fmt::Write as _;

use super::{count, left, number, render, right};
use crate::api::model::{BlockReport, IpamCheckReport, IpamReport, PoolReport};

/// `show ipam`.
pub(in crate::cli) fn ipam(report: &IpamReport) -> String {
    let mut text = String::new();
    let pool = |pool: &PoolReport| {
        let use_of = match (&pool.network, pool.only_on_request) {
            (Some(network), false) => format!("pods of {network}"),
            (Some(network), true) => format!("pods of {network} that name it"),
            (None, true) => "pods that name it".to_owned(),
            (None, false) => "everybody".to_owned(),
        };
        let blocks = format!("{} of {}", number(pool.blocks), number(pool.blocks_possible));
        vec![left(&pool.name), left(&pool.cidr), right(format!("/{}", pool.block_length)), right(blocks), left(use_of)]
    };
    let heads = ["Pool", "Addresses", "Block", "Claimed", "For"];
    text.push_str(&render(&heads, report.pools.iter().map(pool), "There is no IpPool."));
    let block = |block: &BlockReport| {
        let used = block.used.map_or_else(|| "?".to_owned(), number);
        vec![
            left(of_network(&block.cidr, block.network.as_deref())),
            left(&block.node),
            right(format!("{used} of {}", number(block.capacity))),
            right(number(block.lendable)),
            left(assigned(block)),
        ]
    };
    text.push('\n');
    let heads = ["Block", "Node", "Used", "Lendable", "Assigned"];
    text.push_str(&render(&heads, report.blocks.iter().map(block), "No block is claimed."));
    text.push('\n');
    let rows = report.addresses.iter().map(|entry| {
        let address = of_network(&entry.address, entry.network.as_deref());
        vec![left(address), left(entry.pod.as_deref().unwrap_or("-")), left(&entry.holder)]
    });
    text.push_str(&render(&["Address", "Pod", "Held by"], rows, "No address is in use on this node."));
    text
}

fn of_network(place: &str, network: Option<&str>) -> String {
    network.map_or_else(|| place.to_owned(), |network| format!("{place} in {network}"))
}

fn assigned(block: &BlockReport) -> String {
    let entry = |entry: &crate::api::model::AssignedReport| match &entry.kept_for {
        Some(pod) => format!("{} on {} for {pod}", entry.address, entry.node),
        None => format!("{} to {}", entry.address, entry.node),
    };
    block.assigned.iter().map(entry).collect::<Vec<_>>().join("\n")
}

/// `check ipam`.
pub(in crate::cli) fn ipam_check(report: &IpamCheckReport) -> String {
    let looked = format!(
        "Looked at {} of node {} and {} of all nodes.\n",
        if report.addresses == 1 { "1 address".to_owned() } else { number(report.addresses) + " addresses" },
        report.node,
        count(report.blocks, "block")
    );
    if report.findings.is_empty() {
        return looked + "Nothing is lost.\n";
    }
    let rows = report.findings.iter().map(|finding| {
        vec![left(&finding.subject), left(&finding.kind), left(format!("{}\n{}", finding.message, finding.next_step))]
    });
    let mut text = render(&["Address or block", "Finding", "What is wrong, and what to do"], rows, "");
    let _ = write!(text, "{looked}");
    text
}
