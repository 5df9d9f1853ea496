//! The state of one walk: what the stages read, and what they have found so far.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::ControlFlow;

use super::decision::{Decision, Dependencies, Lesson, Reason, Rejection, Stage, Trail, Verdict};
use super::service::Pick;
use super::tracking::Tracking;
use super::{Arrival, Reply};
use crate::clock::Time;
use crate::drop_reason::DropReason;
use crate::packet::parse::flag;
use crate::packet::{Mac, Network};
use crate::state::{FragmentKey, Fragmented, State};
use crate::tables::{HandBack, SegmentIndex, Snapshot};

/// What a walk's trail is to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detail {
    /// Every stage's reason, with names: for people and tests.
    Everything,
    /// Only what policies said, which is counted for each of their rules: the names of everything else are clones that
    /// would cost a new flow a third of its time.
    Counted,
}

/// One packet's walk through the stages.
pub(super) struct Walk<'a> {
    pub(super) tables: &'a Snapshot,
    pub(super) state: &'a State,
    pub(super) arrival: &'a Arrival<'a>,
    pub(super) now: Time,
    pub(super) dependencies: Dependencies,
    pub(super) lesson: Option<Lesson>,
    /// Whether the packet came by an uplink outside of any tunnel and is ours.
    pub(super) from_outside: bool,
    /// Whether the packet came by an uplink outside of any tunnel, from another node of the cluster.
    pub(super) from_neighbour: bool,
    /// Tags that said the packet's segment and come off.
    pub(super) pop_tags: u8,
    /// Whose packet it is, from stage `connection` on.
    pub(super) tracking: Tracking,
    /// Whether the decision holds for this packet alone.
    pub(super) never_cached: bool,
    /// The endpoint that stage `service` picked.
    pub(super) pick: Option<Pick>,
    /// What later fragments of the packet are to be known by, if it is the first.
    pub(super) fragment: Option<(FragmentKey, Fragmented)>,
    detail: Detail,
    trail: Trail,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        tables: &'a Snapshot,
        state: &'a State,
        arrival: &'a Arrival<'a>,
        now: Time,
        detail: Detail,
    ) -> Self {
        let dependencies = Dependencies {
            ingress: arrival.port,
            egress: arrival.port,
            segment: SegmentIndex::default(),
            source: arrival.headers.source_address(),
            destination: arrival.headers.destination_address(),
            ingress_peer: arrival.tunnel.map(|tunnel| tunnel.peer),
            egress_peer: None,
            source_mac: Mac::ZERO,
            destination_mac: Mac::ZERO,
            service: 0,
        };
        Self {
            tables,
            state,
            arrival,
            now,
            dependencies,
            lesson: None,
            from_outside: false,
            from_neighbour: false,
            pop_tags: 0,
            tracking: Tracking::Untracked,
            never_cached: false,
            pick: None,
            fragment: None,
            detail,
            trail: Trail::default(),
        }
    }

    /// Where the packet's connection knows it from, if the packet is of `segment`.
    pub(super) fn side(&self, segment: SegmentIndex) -> SegmentIndex {
        if self.from_outside { SegmentIndex::OUTSIDE } else { segment }
    }

    /// Whether another node sent the packet on: it believes the destination to be here.
    pub(super) fn is_from_node(&self) -> bool {
        self.arrival.tunnel.is_some() || self.from_neighbour
    }

    /// Notes why a stage did what it did.
    pub(super) fn note(&mut self, stage: Stage, reason: impl FnOnce() -> Reason) {
        if self.detail == Detail::Everything {
            self.trail.push(stage, reason());
        }
    }

    /// Notes what is counted, whoever reads the trail.
    pub(super) fn record(&mut self, stage: Stage, reason: Reason) {
        self.trail.push(stage, reason);
    }

    /// Ends the walk with a drop.
    pub(super) fn drop<T>(&mut self, stage: Stage, reason: DropReason) -> ControlFlow<Verdict, T> {
        self.note(stage, || Reason::Dropped(reason));
        ControlFlow::Break(Verdict::Drop(reason))
    }

    /// Ends the walk of a later fragment until its first one was decided.
    pub(super) fn hold<T>(
        &mut self,
        stage: Stage,
        key: FragmentKey,
        otherwise: Option<HandBack>,
    ) -> ControlFlow<Verdict, T> {
        self.note(stage, || Reason::AwaitsFirst);
        ControlFlow::Break(Verdict::Hold(key, otherwise))
    }

    /// Ends the walk with an answer.
    pub(super) fn answer<T>(&mut self, reply: Reply) -> ControlFlow<Verdict, T> {
        self.note(Stage::Reply, || Reason::Answered(reply));
        ControlFlow::Break(Verdict::Reply(reply))
    }

    /// Ends the walk with a drop that the sender is told of, unless the packet is one that nobody may be told of
    /// (RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e)): an ICMP error, a later fragment, a group or unspecified
    /// address.
    pub(super) fn reject<T>(
        &mut self,
        stage: Stage,
        reason: DropReason,
        rejection: Rejection,
    ) -> ControlFlow<Verdict, T> {
        if !may_be_told(self.arrival) {
            return self.drop(stage, reason);
        }
        self.note(stage, || Reason::Rejected(reason, rejection));
        ControlFlow::Break(Verdict::Reject(reason, rejection))
    }

    pub(super) fn into_decision(self, verdict: Verdict) -> Decision {
        let headers = self.arrival.headers;
        let forwards = matches!(verdict, Verdict::Forward(_));
        let is_handed_back = matches!(verdict, Verdict::HandBack(_));
        let cacheable = forwards
            && !self.never_cached
            && !headers.has(flag::UNCACHEABLE)
            && matches!(headers.network, Network::Ipv4 | Network::Ipv6)
            && self.tracking.is_settled(headers);
        // What goes no further opens no connection and keeps none alive.
        let tracked = if forwards { self.tracking.lesson(headers) } else { None };
        Decision {
            verdict,
            lesson: self.lesson.or(tracked),
            pick: self.pick.filter(|_| forwards),
            fragment: self.fragment.filter(|_| forwards || is_handed_back),
            trail: self.trail,
            dependencies: self.dependencies,
            cacheable,
        }
    }
}

fn may_be_told(arrival: &Arrival<'_>) -> bool {
    let headers = arrival.headers;
    let sender = headers.source_address();
    let single_sender = match sender {
        IpAddr::V4(address) => !address.is_multicast() && address != Ipv4Addr::BROADCAST && !address.is_loopback(),
        IpAddr::V6(address) => !address.is_multicast() && !address.is_loopback(),
    };
    single_sender
        && !sender.is_unspecified()
        && !headers.has(flag::ICMP_ERROR | flag::LATER_FRAGMENT | flag::GROUP_MAC)
        && !headers.destination_address().is_multicast()
}
