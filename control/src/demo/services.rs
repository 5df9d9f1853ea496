//! A Service over both nodes, as a client pod and a client outside see it: how connections spread, that an affine client stays
//! with one endpoint, and that an endpoint which leaves takes no connection down.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Serialize;

use super::cluster::Cluster;
use super::interruption::Interruption;
use super::objects::{self, AFFINE, NODES, PODS, SERVICE_PORT, SPREAD, ServedPod, TARGET_PORT};
use super::traffic::{Endpoint, Family, named_server};

/// Connections of a family that are spread; each of three endpoints gets a third, and less than half of that by a chance
/// of one in ten million.
pub(super) const CONNECTIONS: usize = 240;
/// Connections of an affine client.
const AFFINE_CONNECTIONS: usize = 60;
/// How long one connection may take, far above a SYN's first repetition.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long the nodes may take to learn of the Services.
const IN_FORCE: Duration = Duration::from_secs(10);
/// How long a client asks before and after an endpoint leaves.
const HALF: Duration = Duration::from_millis(500);
/// How long after the change nothing may reach the endpoint that left.
const LEFT: Duration = Duration::from_millis(250);

/// All that was seen of the Services.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Services {
    pub(super) spread: Vec<Spread>,
    /// The same from outside, by the node port of the first node.
    pub(super) from_outside: Vec<Spread>,
    /// Endpoints that the affine client met, of one wanted.
    pub(super) affine_endpoints: usize,
    pub(super) departure: Departure,
}

/// Where connections of one family went.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Spread {
    pub(super) family: Family,
    pub(super) endpoints: Vec<Share>,
    pub(super) failed: usize,
}

/// What one endpoint got.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Share {
    pub(super) pod: &'static str,
    pub(super) node: &'static str,
    pub(super) connections: usize,
}

/// An endpoint left while a client went on connecting.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Departure {
    pub(super) pod: &'static str,
    pub(super) connections: usize,
    pub(super) failed: usize,
    /// Connections that still reached it later than the time given below.
    pub(super) late: usize,
    pub(super) late_after_milliseconds: u64,
    /// When the last connection reached it, from the change of the object on.
    pub(super) last_reached_milliseconds: f64,
}

/// Writes the Services, tries them, and leaves them as they were written first.
pub(super) fn check(cluster: &Cluster, interruption: &Interruption) -> anyhow::Result<Services> {
    let served: Vec<ServedPod<'_>> = cluster.pods.iter().skip(1).map(ServedPod::of).collect();
    let directory = cluster.objects();
    objects::write_services(&directory, &served)?;
    let ended = AtomicBool::new(false);
    let listening = cluster.pods.iter().skip(1).map(|pod| named_server::listen(&pod.endpoint, TARGET_PORT));
    let listening = listening.collect::<anyhow::Result<Vec<_>>>()?;
    std::thread::scope(|scope| {
        for (number, listeners) in listening.iter().enumerate() {
            let ended = &ended;
            scope.spawn(move || named_server::serve(listeners, number as u8, ended));
        }
        let seen = look(cluster, &served, interruption);
        ended.store(true, Ordering::Relaxed);
        seen
    })
}

fn look(cluster: &Cluster, served: &[ServedPod<'_>], interruption: &Interruption) -> anyhow::Result<Services> {
    wait_until_in_force(cluster, interruption)?;
    let client = &cluster.pod(0)?.endpoint;
    let both = |client, to: fn(Family) -> anyhow::Result<(IpAddr, u16)>| {
        let spread = Family::BOTH.into_iter().map(|family| spread(client, family, to(family)?, interruption));
        spread.collect::<anyhow::Result<Vec<_>>>()
    };
    let spread = both(client, |family| address(&SPREAD, family))?;
    let from_outside = both(cluster.outside()?, |family| node_port(&SPREAD, family))?;
    let affine = connect(client, address(&AFFINE, Family::Ipv4)?, AFFINE_CONNECTIONS, interruption)?;
    let mut met: Vec<u8> = affine.into_iter().map(|answer| answer.unwrap_or(u8::MAX)).collect();
    met.sort_unstable();
    met.dedup();
    let departure = departure(cluster, served, interruption)?;
    interruption.check()?;
    Ok(Services { spread, from_outside, affine_endpoints: met.len(), departure })
}

fn address(service: &objects::ServicePlan, family: Family) -> anyhow::Result<(IpAddr, u16)> {
    let text = if family == Family::Ipv4 { service.ipv4 } else { service.ipv6 };
    Ok((text.parse().with_context(|| format!("the address of {}", service.name))?, SERVICE_PORT))
}

fn node_port(service: &objects::ServicePlan, family: Family) -> anyhow::Result<(IpAddr, u16)> {
    let [first, _] = NODES;
    let text = if family == Family::Ipv4 { first.ipv4 } else { first.ipv6 };
    Ok((text.parse().context("the address of a node")?, service.node_port))
}

fn wait_until_in_force(cluster: &Cluster, interruption: &Interruption) -> anyhow::Result<()> {
    let end = Instant::now() + IN_FORCE;
    let client = &cluster.pod(0)?.endpoint;
    for service in [&SPREAD, &AFFINE] {
        for family in Family::BOTH {
            let from_pod = (client, address(service, family)?);
            let from_outside = (cluster.outside()?, node_port(service, family)?);
            for (client, to) in [from_pod, from_outside] {
                while !matches!(connect(client, to, 1, interruption)?.as_slice(), [Ok(_)]) {
                    interruption.pause(Duration::from_millis(20))?;
                    ensure!(Instant::now() < end, "Service {} does not answer over {}", service.name, family.text());
                }
            }
        }
    }
    Ok(())
}

fn connect(
    client: &Endpoint,
    to: (IpAddr, u16),
    times: usize,
    interruption: &Interruption,
) -> anyhow::Result<Vec<Result<u8, ErrorKind>>> {
    let goes_on = |done| done < times && !interruption.is_set();
    let answers = named_server::ask(client, to, PATIENCE, goes_on)?;
    Ok(answers.into_iter().map(|(_, answer)| answer).collect())
}

fn spread(client: &Endpoint, family: Family, to: (IpAddr, u16), interruption: &Interruption) -> anyhow::Result<Spread> {
    let answers = connect(client, to, CONNECTIONS, interruption)?;
    let share = |(number, plan): (usize, &objects::PodPlan)| {
        let connections = answers.iter().filter(|answer| **answer == Ok(number as u8)).count();
        Share { pod: plan.name, node: plan.node, connections }
    };
    let endpoints = PODS.iter().skip(1).enumerate().map(share).collect();
    Ok(Spread { family, endpoints, failed: answers.iter().filter(|answer| answer.is_err()).count() })
}

/// Takes the last endpoint, which is on the other node, out of the Service while a client goes on connecting; its server
/// goes on, as one that drains does.
fn departure(cluster: &Cluster, served: &[ServedPod<'_>], interruption: &Interruption) -> anyhow::Result<Departure> {
    let (leaving, staying) = served.split_last().context("no endpoint")?;
    let (client, to) = (&cluster.pod(0)?.endpoint, address(&SPREAD, Family::Ipv4)?);
    let (asked, changed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let start = Instant::now();
    let (answers, change) = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let goes_on = |done| {
                asked.store(done, Ordering::Relaxed);
                let until = if changed.load(Ordering::Relaxed) { 2 * HALF } else { 20 * HALF };
                start.elapsed() < until + LEFT && !interruption.is_set()
            };
            named_server::ask(client, to, PATIENCE, goes_on)
        });
        let rewritten = interruption.pause(HALF).map_err(anyhow::Error::from).and_then(|()| {
            objects::write_services(&cluster.objects(), staying)?;
            Ok(start.elapsed())
        });
        changed.store(true, Ordering::Relaxed);
        (super::traffic::join(asking), rewritten)
    });
    objects::write_services(&cluster.objects(), served)?;
    let (answers, change) = (answers?, change?);
    let number = staying.len() as u8;
    let reached = |answer: &&(Duration, Result<u8, ErrorKind>)| answer.1 == Ok(number);
    let last = answers.iter().filter(reached).map(|(when, _)| *when).max().unwrap_or_default();
    Ok(Departure {
        pod: leaving.name,
        connections: answers.len(),
        failed: answers.iter().filter(|(_, answer)| answer.is_err()).count(),
        late: answers.iter().filter(reached).filter(|(when, _)| *when > change + LEFT).count(),
        late_after_milliseconds: LEFT.as_millis() as u64,
        last_reached_milliseconds: last.saturating_sub(change).as_secs_f64() * 1000.0,
    })
}
