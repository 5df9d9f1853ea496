//! The slow path: the ordered list of stages that decides the first packet of a flow.
//!
//! [`decide`] is pure: it reads tables, state and the packet, changes nothing, and says everything that follows. So
//! the same function serves the worker, `millrace trace`, replay and the tests' "cached equals uncached". What the
//! packet taught is in the decision's lesson, written by whoever carries the decision out.
//!
//! Runs on a worker for the misses of a vector; the only locks are one shard of the MAC table and one of the
//! connection table, each for one look. `tracking.rs` says what the stages behind `connection` tell each other.

mod admit;
mod arrival;
mod bridge;
mod connection;
pub mod decision;
mod encap;
mod masquerade;
mod policy;
mod reply;
mod route;
pub mod service;
mod tracking;
mod walk;

pub use arrival::{Arrival, Tunnelled};
pub use decision::{
    Decision, Dependencies, Forward, Lesson, Location, Reason, Rejection, Reply, Stage, Trail, Verdict,
};
pub use masquerade::Masquerade;
pub use policy::judge_connection;
use std::ops::ControlFlow;
use walk::{Detail, Walk};

use crate::clock::Time;
use crate::drop_reason::DropReason;
use crate::state::State;
use crate::tables::{SegmentIndex, Snapshot};

/// Decides one packet. The order of the stages is the product; each file says why it stands where it does.
#[must_use]
pub fn decide(tables: &Snapshot, state: &State, arrival: &Arrival<'_>, now: Time) -> Decision {
    walked(Walk::new(tables, state, arrival, now, Detail::Everything))
}

/// The same for a worker: the trail holds what policies said and nothing else.
#[must_use]
pub(crate) fn decide_untold(tables: &Snapshot, state: &State, arrival: &Arrival<'_>, now: Time) -> Decision {
    walked(Walk::new(tables, state, arrival, now, Detail::Counted))
}

fn walked(mut walk: Walk<'_>) -> Decision {
    let verdict = match stages(&mut walk) {
        ControlFlow::Break(verdict) | ControlFlow::Continue(verdict) => verdict,
    };
    walk.into_decision(verdict)
}

fn stages(walk: &mut Walk<'_>) -> ControlFlow<Verdict, Verdict> {
    let segment = admit::admit(walk)?;
    reply::reply(walk, segment)?;
    bridge::bridge(walk, segment)?;
    connection::connection(walk, segment)?;
    service::service(walk, segment)?;
    let target = route::route(walk, segment)?;
    policy::policy(walk, segment, target)?;
    masquerade::masquerade(walk, segment, target)?;
    encap::encap(walk, segment, target)
}

/// Decides a packet of the switch's own in segment `segment`: it is admitted already and answers nothing, so only
/// the routing stages are walked.
#[must_use]
pub fn route_own(
    tables: &Snapshot,
    state: &State,
    arrival: &Arrival<'_>,
    segment: SegmentIndex,
    now: Time,
) -> Decision {
    let mut walk = Walk::new(tables, state, arrival, now, Detail::Counted);
    let verdict = match routing_stages(&mut walk, segment) {
        ControlFlow::Break(verdict) | ControlFlow::Continue(verdict) => verdict,
    };
    walk.into_decision(verdict)
}

fn routing_stages(walk: &mut Walk<'_>, segment: SegmentIndex) -> ControlFlow<Verdict, Verdict> {
    let Some(segment) = walk.tables.segments.get(segment) else {
        return walk.drop(Stage::Route, DropReason::NoRoute);
    };
    let target = route::route(walk, segment)?;
    encap::encap(walk, segment, target)
}
