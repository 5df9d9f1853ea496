//! Services into their tables: what a changed Service had is taken away, what it has now is put in.

use std::collections::BTreeSet;

use millrace_engine::tables::services::{Frontend, SegmentServices};
use millrace_engine::tables::{SegmentIndex, ServiceTable};

use super::difference::differences;
use crate::plan::{FrontendKey, Owner, ServicesPlan};

/// Brings `table`, compiled from `before`, to `plan`.
pub(super) fn services(before: &ServicesPlan, plan: &ServicesPlan, table: &mut ServiceTable) {
    if before == plan {
        return;
    }
    let mut touched: BTreeSet<Owner> = BTreeSet::new();
    differences(&before.owners, &plan.owners, |owner, _| {
        touched.insert(owner.clone());
    });
    // An owner that did not change may have won or lost a claim.
    touched.extend(before.contested.symmetric_difference(&plan.contested).map(|(_, owner)| owner.clone()));
    let segments = |plan: &ServicesPlan| plan.segments.iter().copied().collect::<Vec<_>>();
    // First all that goes: what one loses another may get.
    for segment in segments(before) {
        table.edit(segment, |services| {
            touched.iter().for_each(|owner| remove(before, segment, owner, services));
            if !plan.segments.contains(&segment) {
                services.set_node_addresses(&[]);
                services.set_ranges(&[]);
                services.masquerade_all = false;
            }
        });
    }
    for segment in segments(plan) {
        table.edit(segment, |services| {
            touched.iter().for_each(|owner| insert(plan, segment, owner, services));
            services.set_node_addresses(&plan.node_addresses);
            services.set_ranges(&plan.ranges);
            services.masquerade_all = plan.masquerade_all;
        });
    }
}

/// The frontends of an owner, if it is served in this segment.
fn frontends<'a>(
    plan: &'a ServicesPlan,
    segment: SegmentIndex,
    owner: &Owner,
) -> impl Iterator<Item = &'a (FrontendKey, Frontend)> {
    let plan = plan.owners.get(owner).filter(|plan| plan.segment == segment);
    plan.into_iter().flat_map(|plan| &plan.frontends)
}

fn remove(plan: &ServicesPlan, segment: SegmentIndex, owner: &Owner, services: &mut SegmentServices) {
    let frontends = frontends(plan, segment, owner);
    for (key, _) in frontends.filter(|(key, _)| plan.holds(*key, owner)) {
        match *key {
            FrontendKey::Address { address, protocol, port } => services.remove(address, protocol, port),
            FrontendKey::NodePort { ipv4, protocol, port } => services.remove_node_port(ipv4, protocol, port),
        }
    }
}

fn insert(plan: &ServicesPlan, segment: SegmentIndex, owner: &Owner, services: &mut SegmentServices) {
    let frontends = frontends(plan, segment, owner);
    for (key, frontend) in frontends.filter(|(key, _)| plan.holds(*key, owner)) {
        let frontend = frontend.clone();
        match *key {
            FrontendKey::Address { address, protocol, port } => services.insert(address, protocol, port, frontend),
            FrontendKey::NodePort { ipv4, protocol, port } => {
                services.insert_node_port(ipv4, protocol, port, frontend);
            }
        }
    }
}
