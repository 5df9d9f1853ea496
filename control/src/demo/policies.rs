//! A policy while traffic runs: closed, opened, closed again, and how long each change takes to be felt, from the
//! writing of the object to the last or the first datagram that the other pod's thread reads.
//!
//! One flow of datagrams goes from a pod to one on the other node all the time, so what is cut is established.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Serialize;

use super::cluster::Cluster;
use super::interruption::Interruption;
use super::objects::{self, PODS, Rules, ServedPod};
use super::traffic::{Family, join};
use crate::api::model::PoliciesReport;

/// Pause between two datagrams.
const PACE: Duration = Duration::from_micros(500);
/// No datagram for so long, though some were sent: the way is closed.
const QUIET: Duration = Duration::from_millis(150);
/// That many of them.
const UNANSWERED: u64 = 50;
/// How long a change may take; far above what it does.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often is looked.
const STEP: Duration = Duration::from_millis(5);
/// The pod that the policy selects: of [`PODS`] the first on the other node.
const SELECTED: usize = 2;

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Policies {
    pub(super) changes: Vec<Change>,
    /// Datagrams that the policy denied, as the node of the selected pod counts them for it.
    pub(super) denied_packets: u64,
}

/// One change of the policy.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Change {
    pub(super) what: &'static str,
    /// From the writing of the object to its effect; `None` if there was none in time.
    pub(super) effect_milliseconds: Option<f64>,
}

/// The flow, as both its ends see it. Times are microseconds since the start, 0 is never.
struct Flow {
    start: Instant,
    ended: AtomicBool,
    sent: AtomicU64,
    /// What had been sent when the last one arrived.
    sent_at_arrival: AtomicU64,
    last_arrival: AtomicU64,
    first_arrival: AtomicU64,
}

impl Flow {
    fn now(&self) -> u64 {
        (self.start.elapsed().as_micros() as u64).max(1)
    }

    fn send(&self, socket: &UdpSocket) -> anyhow::Result<()> {
        while !self.ended.load(Ordering::Relaxed) {
            match socket.send(&[0; 64]) {
                Ok(_) => drop(self.sent.fetch_add(1, Ordering::Relaxed)),
                // Nobody has to be there.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error).context("cannot send"),
            }
            std::thread::sleep(PACE);
        }
        Ok(())
    }

    fn receive(&self, socket: &UdpSocket) -> anyhow::Result<()> {
        let mut buffer = [0; 128];
        while !self.ended.load(Ordering::Relaxed) {
            match socket.recv_from(&mut buffer) {
                Ok(_) => {
                    let now = self.now();
                    self.sent_at_arrival.store(self.sent.load(Ordering::Relaxed), Ordering::Relaxed);
                    self.last_arrival.store(now, Ordering::Relaxed);
                    let _ = self.first_arrival.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error).context("cannot receive"),
            }
        }
        Ok(())
    }

    /// When the last datagram arrived, once none does any more.
    fn closed(&self) -> Option<u64> {
        let last = self.last_arrival.load(Ordering::Relaxed);
        let since = self.sent.load(Ordering::Relaxed).saturating_sub(self.sent_at_arrival.load(Ordering::Relaxed));
        (self.now().saturating_sub(last) > QUIET.as_micros() as u64 && since > UNANSWERED).then_some(last)
    }

    /// When the first datagram arrived since this was reset.
    fn opened(&self) -> Option<u64> {
        Some(self.first_arrival.load(Ordering::Relaxed)).filter(|first| *first > 0)
    }
}

/// Closes, opens and closes while the flow goes on; leaves no policy behind.
pub(super) fn check(cluster: &Cluster, interruption: &Interruption) -> anyhow::Result<Policies> {
    let plugged: Vec<ServedPod<'_>> = cluster.pods.iter().map(ServedPod::of).collect();
    objects::write_pods(&cluster.objects(), &plugged)?;
    let (from, to) = (&cluster.pod(0)?.endpoint, &cluster.pod(SELECTED)?.endpoint);
    let (near, far) = (from.udp_socket(Family::Ipv4)?, to.udp_socket(Family::Ipv4)?);
    near.connect(far.local_addr()?)?;
    let flow = Flow {
        start: Instant::now(),
        ended: AtomicBool::new(false),
        sent: AtomicU64::new(0),
        sent_at_arrival: AtomicU64::new(0),
        last_arrival: AtomicU64::new(0),
        first_arrival: AtomicU64::new(0),
    };
    std::thread::scope(|scope| {
        let (sending, receiving) = (scope.spawn(|| flow.send(&near)), scope.spawn(|| flow.receive(&far)));
        let seen = change(cluster, &flow, interruption);
        flow.ended.store(true, Ordering::Relaxed);
        join(sending)?;
        join(receiving)?;
        seen
    })
}

fn change(cluster: &Cluster, flow: &Flow, interruption: &Interruption) -> anyhow::Result<Policies> {
    let arrived = wait(interruption, || flow.opened())?;
    ensure!(arrived.is_some(), "no datagram arrives before there is a policy");
    let (mut changes, mut denied_packets) = (Vec::new(), 0);
    for (what, rules) in [("closed", Rules::None), ("opened", Rules::Client), ("closed again", Rules::None)] {
        let closes = rules == Rules::None;
        let wrote = flow.now();
        objects::write_policy(&cluster.objects(), PODS[SELECTED].name, Some(rules))?;
        flow.first_arrival.store(if closes { u64::MAX } else { 0 }, Ordering::Relaxed);
        let effect = wait(interruption, || if closes { flow.closed() } else { flow.opened() })?;
        let milliseconds = |at: u64| at.saturating_sub(wrote) as f64 / 1000.0;
        changes.push(Change { what, effect_milliseconds: effect.map(milliseconds) });
        if closes {
            denied_packets += denied(cluster)?;
        }
    }
    objects::write_policy(&cluster.objects(), PODS[SELECTED].name, None)?;
    flow.first_arrival.store(0, Ordering::Relaxed);
    let reopened = wait(interruption, || flow.opened())?;
    ensure!(reopened.is_some(), "nothing arrives after the policy is gone");
    Ok(Policies { changes, denied_packets })
}

fn wait<T>(interruption: &Interruption, mut seen: impl FnMut() -> Option<T>) -> anyhow::Result<Option<T>> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = seen() {
            return Ok(Some(seen));
        }
        if Instant::now() > end {
            return Ok(None);
        }
        interruption.pause(STEP)?;
    }
}

/// Packets denied by the demo's policy on the node of the pod it selects.
fn denied(cluster: &Cluster) -> anyhow::Result<u64> {
    let wanted = PODS[SELECTED].node;
    let node = cluster.nodes.iter().find(|node| node.name == wanted).context("there is no such node")?;
    let report: PoliciesReport = node.agent.client().show("policies")?;
    let of_demo = report.policies.iter().filter(|policy| policy.policy == objects::POLICY);
    Ok(of_demo.map(|policy| policy.denied_packets).sum())
}
