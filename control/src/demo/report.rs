//! The result: one document, and the checks that decide the exit code.

use serde::Serialize;

use super::counters::NodeCounters;
use super::idle::{FIRST_PACKET_MICROSECONDS, FirstPacket, Idle, SHARE};
use super::performance::{Latency, RATIO, RETRANSMITTED_SHARE, Throughput};
use super::policies::Policies;
use super::reachability::{Row, Way};
use super::services::{CONNECTIONS, Services, Spread};
use super::uplinks::ByKind;

/// All that was seen.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    /// Whether every check held.
    pub(super) held: bool,
    /// Workers of each agent.
    pub(super) workers: usize,
    pub(super) checks: Vec<Check>,
    pub(super) reachability: Vec<Row>,
    /// `None` where pods do not even reach each other.
    pub(super) services: Option<Services>,
    /// The same.
    pub(super) policies: Option<Policies>,
    /// Every attempt, in order of time.
    pub(super) throughput: Vec<Throughput>,
    pub(super) latency: Vec<Latency>,
    /// Between the nodes, with uplinks of each kind.
    pub(super) by_uplink: Vec<ByKind>,
    pub(super) idle: Vec<Idle>,
    pub(super) first_packet_after_idle: Vec<FirstPacket>,
    pub(super) nodes: Vec<NodeCounters>,
    /// Whether unplugging all pods failed, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) unplug_failure: Option<String>,
}

/// One expectation.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) kind: CheckKind,
    pub(super) expected: String,
    pub(super) seen: String,
    pub(super) held: bool,
}

/// How a miss is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum CheckKind {
    /// Something does not work.
    Requirement,
    /// It works, slower than it should; a busy machine can be the cause.
    Goal,
}

impl Report {
    /// Compares what was seen with what is expected.
    pub(super) fn judge(&mut self) {
        self.checks = vec![
            self.reachability_check(),
            self.spread_check("Service: connections spread", |services| &services.spread),
            self.spread_check("Service: a node port from outside", |services| &services.from_outside),
            self.affinity_check(),
            self.departure_check(),
            self.policy_check(),
            self.unaccounted_check(),
            self.retransmission_check(),
            self.unplug_check(),
            self.ratio_check(),
            self.idle_check(),
            self.first_packet_check(),
        ];
        self.held = self.checks.iter().all(|check| check.held);
    }

    /// Whether everything works, though perhaps slower than it should.
    pub(super) fn works(&self) -> bool {
        self.checks.iter().all(|check| check.held || check.kind == CheckKind::Goal)
    }

    /// The attempt that is judged: one in which all is as expected, or else that with the best ratio.
    pub(super) fn judged(&self) -> Option<&Throughput> {
        let order = |attempt: &Throughput| (attempt.is_as_expected(), attempt.ratio);
        self.throughput.iter().max_by(|one, other| {
            let ((one, slow), (other, fast)) = (order(one), order(other));
            one.cmp(&other).then(slow.total_cmp(&fast))
        })
    }

    fn reachability_check(&self) -> Check {
        let reached = self.reachability.iter().filter(|row| row.reached).count();
        let all = self.reachability.len();
        requirement("reachability", format!("all {all}"), format!("{reached} of {all}"), all > 0 && reached == all)
    }

    fn spread_check(&self, name: &'static str, of: fn(&Services) -> &Vec<Spread>) -> Check {
        let spread = || self.services.iter().flat_map(of);
        let shares = spread().flat_map(|spread| spread.endpoints.iter().map(|share| share.connections));
        let least = shares.min().unwrap_or(0);
        let failed: usize = spread().map(|spread| spread.failed).sum();
        let wanted = CONNECTIONS / 6;
        let expected = format!("each endpoint at least {wanted} of {CONNECTIONS}, none failed");
        requirement(name, expected, format!("least {least}, {failed} failed"), least >= wanted && failed == 0)
    }

    fn affinity_check(&self) -> Check {
        let met = self.services.as_ref().map_or(0, |services| services.affine_endpoints);
        requirement("Service: an affine client", "one endpoint".to_owned(), met.to_string(), met == 1)
    }

    fn departure_check(&self) -> Check {
        let departure = self.services.as_ref().map(|services| &services.departure);
        let held = departure.is_some_and(|seen| seen.connections > 0 && seen.failed == 0 && seen.late == 0);
        let seen = departure.map_or_else(String::new, |seen| {
            format!(
                "{} of {} failed, {} late; the last after {:.1} ms",
                seen.failed, seen.connections, seen.late, seen.last_reached_milliseconds
            )
        });
        requirement("Service: an endpoint leaves", "no connection fails or comes late".to_owned(), seen, held)
    }

    fn policy_check(&self) -> Check {
        let changes = self.policies.iter().flat_map(|policies| &policies.changes);
        let seen: Vec<String> = changes
            .map(|change| match change.effect_milliseconds {
                Some(milliseconds) => format!("{} after {milliseconds:.1} ms", change.what),
                None => format!("not {}", change.what),
            })
            .collect();
        let denied = self.policies.as_ref().map_or(0, |policies| policies.denied_packets);
        let took_effect =
            |policies: &Policies| policies.changes.iter().all(|change| change.effect_milliseconds.is_some());
        let held = self.policies.as_ref().is_some_and(took_effect) && denied > 0;
        let expected = "closed, opened, closed again, denials counted for it".to_owned();
        requirement("policy on a live flow", expected, format!("{}; {denied} denied", seen.join(", ")), held)
    }

    fn unaccounted_check(&self) -> Check {
        let frames: Vec<_> = self.nodes.iter().map(|node| node.status.unaccounted_frames).collect();
        let seen = frames.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
        let held = !frames.is_empty() && frames.iter().all(|count| *count == 0);
        requirement("frames unaccounted for", "0".to_owned(), seen, held)
    }

    fn retransmission_check(&self) -> Check {
        let share = self.judged().map_or(f64::NAN, |attempt| attempt.retransmitted_share);
        let expected = format!("under {} %", RETRANSMITTED_SHARE * 100.0);
        requirement(
            "retransmitted across nodes",
            expected,
            format!("{:.4} %", share * 100.0),
            share < RETRANSMITTED_SHARE,
        )
    }

    fn unplug_check(&self) -> Check {
        let seen = self.unplug_failure.clone().unwrap_or_else(|| "done".to_owned());
        requirement("unplugging all pods", "done".to_owned(), seen, self.unplug_failure.is_none())
    }

    fn ratio_check(&self) -> Check {
        let ratio = self.judged().map_or(f64::NAN, |attempt| attempt.ratio);
        let expected = format!("at least {RATIO} times");
        goal("same-node TCP, of AF_XDP on veth", expected, format!("{ratio:.1} times"), ratio >= RATIO)
    }

    fn idle_check(&self) -> Check {
        let most = self.idle.iter().map(|idle| idle.share_of_core).fold(f64::NAN, f64::max);
        let expected = format!("under {} % of a core", SHARE * 100.0);
        goal("an idle agent", expected, format!("{:.2} %", most * 100.0), most < SHARE)
    }

    fn first_packet_check(&self) -> Check {
        let measured = self.first_packet_after_idle.iter().find(|first| first.way == Way::SameNode);
        let [to_interface, to_kernel, to_thread] = measured.map_or([f64::NAN; 3], |first| {
            [&first.to_interface, &first.to_kernel, &first.to_thread].map(|times| times.median_microseconds)
        });
        let expected = format!("in the pod's kernel in under {FIRST_PACKET_MICROSECONDS} us");
        let seen = format!(
            "{to_kernel:.0} us, {to_interface:.0} of them in the sender's kernel; its thread runs after {to_thread:.0} us"
        );
        goal("first packet after idle", expected, seen, to_kernel < FIRST_PACKET_MICROSECONDS)
    }
}

fn requirement(name: &'static str, expected: String, seen: String, held: bool) -> Check {
    Check { name, kind: CheckKind::Requirement, expected, seen, held }
}

fn goal(name: &'static str, expected: String, seen: String, held: bool) -> Check {
    Check { name, kind: CheckKind::Goal, expected, seen, held }
}
