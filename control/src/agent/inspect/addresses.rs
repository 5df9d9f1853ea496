//! `show ipam` and `check ipam`: objects, allocator and record of attachments put side by side.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::agent::pods::{Pods, holder, network_name};
use crate::agent::shared::Shared;
use crate::api::InspectFailure;
use crate::api::model::{
    AddressReport, AssignedReport, BlockReport, FindingReport, IpamCheckReport, IpamReport, PoolReport,
};
use crate::cluster::{BlockRecord, Cidr, Cluster, NetworkName, PodName, PoolRecord};
use crate::cni_server::{Attachment, Attachments};
use crate::ipam::check::{self, Attached, Finding};
use crate::ipam::{AddressAllocator, AddressAllocators, AddressSource, Holder};

pub(super) fn ipam(shared: &Shared, pods: &Pods, attachments: &Attachments) -> Result<IpamReport, InspectFailure> {
    let cluster = known(shared)?;
    let records = attachments.all();
    Ok(pods.allocator(|allocator| IpamReport {
        node: shared.node.to_string(),
        source: source(allocator.pods().source()).to_owned(),
        pools: cluster.pools.values().map(|pool| pool_report(&cluster, pool)).collect(),
        blocks: block_reports(&cluster, allocator, shared),
        addresses: address_reports(allocator, &records),
    }))
}

pub(super) fn check(
    shared: &Shared,
    pods: &Pods,
    attachments: &Attachments,
) -> Result<IpamCheckReport, InspectFailure> {
    let cluster = known(shared)?;
    let records = attachments.all();
    let mut networks: BTreeMap<Option<NetworkName>, BTreeMap<IpAddr, Holder>> =
        BTreeMap::from([(None, BTreeMap::new())]);
    networks.extend(cluster.blocks.values().map(|block| (block.network.clone(), BTreeMap::new())));
    let source = pods.allocator(|allocators| {
        networks.extend(allocators.all().map(|(network, allocator)| (network.cloned(), allocator.held().clone())));
        allocators.pods().source()
    });
    let mut findings = Vec::new();
    for (network, held) in &networks {
        let attached: Vec<Attached> =
            records.iter().filter(|record| network_of(record) == *network).map(attached).collect();
        let uses_blocks = network.is_some() || source == AddressSource::Blocks;
        findings.extend(check::check(&cluster, (&shared.node, network.as_ref()), held, &attached, uses_blocks));
    }
    findings.sort_unstable();
    let report = |Finding { kind, subject, message }| FindingReport {
        kind: kind.name().to_owned(),
        subject,
        message,
        next_step: kind.next_step().to_owned(),
    };
    Ok(IpamCheckReport {
        node: shared.node.to_string(),
        addresses: networks.values().map(BTreeMap::len).sum::<usize>() as u64,
        blocks: cluster.blocks.len() as u64,
        findings: findings.into_iter().map(report).collect(),
    })
}

fn known(shared: &Shared) -> Result<std::sync::Arc<Cluster>, InspectFailure> {
    shared.standing().cluster.ok_or_else(|| InspectFailure::Unavailable("the objects are not known yet".to_owned()))
}

const fn source(source: AddressSource) -> &'static str {
    match source {
        AddressSource::Blocks => "blocks",
        AddressSource::PodCidr => "pod-cidr",
    }
}

fn pool_report(cluster: &Cluster, pool: &PoolRecord) -> PoolReport {
    let claimed = cluster.blocks_of(pool.network.as_ref()).filter(|block| pool.cidr().contains(block.cidr));
    PoolReport {
        name: pool.name().to_string(),
        cidr: pool.cidr().to_string(),
        block_length: pool.block_length(),
        blocks: claimed.count() as u64,
        blocks_possible: 1u64.checked_shl(u32::from(pool.block_length() - pool.cidr().length())).unwrap_or(u64::MAX),
        network: pool.network.as_ref().map(ToString::to_string),
        only_on_request: pool.only_on_request,
    }
}

fn block_reports(cluster: &Cluster, allocators: &AddressAllocators, shared: &Shared) -> Vec<BlockReport> {
    let used = |block: &BlockRecord| {
        let allocator = allocators.all().find(|(network, _)| *network == block.network.as_ref());
        let mut own = allocator.into_iter().flat_map(|(_, allocator)| allocator.blocks());
        own.find(|(own, ..)| *own == block.cidr).map(|(_, used, _)| used as u64)
    };
    let mut reports = Vec::new();
    let mut blocks: Vec<&BlockRecord> = cluster.blocks.values().collect();
    if allocators.pods().source() == AddressSource::PodCidr {
        let report = |(cidr, used, capacity): (Cidr, usize, usize)| BlockReport {
            cidr: cidr.to_string(),
            node: shared.node.to_string(),
            used: Some(used as u64),
            capacity: capacity as u64,
            ..BlockReport::default()
        };
        reports.extend(allocators.pods().blocks().map(report));
        blocks.retain(|block| block.network.is_some());
    }
    let report = |block: &BlockRecord| BlockReport {
        cidr: block.cidr.to_string(),
        pool: block.pool.to_string(),
        node: block.node.to_string(),
        network: block.network.as_ref().map(ToString::to_string),
        used: used(block),
        capacity: (1u64 << (block.cidr.address_bits() - block.cidr.length()).min(16)) - 1,
        lendable: block.lendable.count() as u64,
        assigned: block
            .assigned
            .iter()
            .map(|(address, entry)| AssignedReport {
                address: address.to_string(),
                node: entry.node.to_string(),
                kept_for: entry.kept_for.as_ref().map(|kept| kept.pod.to_string()),
            })
            .collect(),
    };
    blocks.sort_by_key(|block| (&block.network, block.cidr));
    reports.extend(blocks.into_iter().map(report));
    reports
}

fn address_reports(allocators: &AddressAllocators, records: &[Attachment]) -> Vec<AddressReport> {
    let pod = |name: &str| {
        let record = records.iter().find(|record| holder(&record.key) == name)?;
        record.pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name))
    };
    let of_network = |(network, allocator): (Option<&NetworkName>, &AddressAllocator)| {
        let report = |(address, holder): (&IpAddr, &String)| AddressReport {
            address: address.to_string(),
            network: network.map(ToString::to_string),
            pod: pod(holder),
            holder: holder.clone(),
        };
        allocator.held().iter().map(report).collect::<Vec<_>>()
    };
    allocators.all().flat_map(of_network).collect()
}

/// The network that an attachment has its addresses in.
fn network_of(record: &Attachment) -> Option<NetworkName> {
    network_name(record.port.as_ref().and_then(|port| port.network.as_ref()))
}

fn attached(record: &Attachment) -> Attached {
    let pod = record.pod.as_ref();
    Attached {
        holder: holder(&record.key),
        pod: pod.and_then(|pod| PodName::new(&pod.namespace, &pod.name).ok()),
        addresses: record.port.iter().flat_map(|port| port.addresses.iter().map(|address| address.addr())).collect(),
        namespace_is_there: record.namespace.is_there(),
    }
}
